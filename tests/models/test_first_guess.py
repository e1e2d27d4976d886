# SPDX-License-Identifier: GPL-3.0-or-later
"""First guesses: inflation keeps the outline and is round, a prompt finds the subject that it names."""

import numpy as np
import pytest
import torch

from backend.models.first_guess import inflate, remember
from backend.models.volume import HALF_SIDE, VOXELS, render_volume, voxel_centers
from blender_addon.contract.orbit import Orbit, orbit_cameras


def disc(size: int, radius: float) -> torch.Tensor:  # [4, size, size]
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    mask = line[:, None] ** 2 + line[None, :] ** 2 < radius**2
    return mask * torch.tensor([0.9, 0.2, 0.1, 1.0])[:, None, None]


def test_the_first_view_of_an_inflated_picture_is_the_picture():
    picture = disc(64, 0.4)
    cameras = orbit_cameras(Orbit(frames=4, closed=False), 64, 64, moving=False)
    focal = torch.from_numpy(2 * cameras.Ks[:, 0, 0] / 64)
    views = render_volume(inflate(picture), torch.from_numpy(cameras.camera_to_world), focal, 64)
    seen, shown = views[0, 3] > 0.5, picture[3] > 0.5
    assert (seen & shown).sum() / (seen | shown).sum() > 0.85  # voxels are about as large as pixels
    color = views[0, :3, 32, 32]
    assert color[0] > 3 * color[1]
    side = (views[1, 3] > 0.5).sum() / shown.sum()
    assert 0.5 < side < 1.0  # round from the side too, and a little flatter


def test_a_faint_picture_has_the_outline_of_the_opaque_one():
    picture = disc(32, 0.4)
    assert torch.equal(inflate(0.25 * picture)[..., 3], inflate(picture)[..., 3])


def test_an_empty_picture_is_an_empty_volume():
    assert not inflate(torch.zeros(4, 16, 16)).any()


@pytest.fixture
def memory():
    def ball(radius: float) -> np.ndarray:
        inside = voxel_centers(torch.device("cpu")).norm(dim=-1) < radius
        return (inside[..., None] * torch.tensor([0.2, 0.4, 0.6, 1.0])).numpy()

    return remember(["fox", "red fox", "clown fish", "koi fish"], [ball(r) for r in (0.1, 0.2, 0.3, 0.4)])


def test_a_memory_gives_back_its_volumes(memory):
    inside = voxel_centers(torch.device("cpu")).norm(dim=-1) < 0.3
    volume = memory.volume(2)
    assert torch.equal(volume[..., 3] > 0, inside)
    assert torch.allclose(volume[inside], torch.tensor([0.2, 0.4, 0.6, 1.0]), atol=1 / 255)
    assert memory.places.max() < VOXELS**3
    assert HALF_SIDE > 0.5


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [("a fox runs", 0), ("the red fox is running", 1), ("Clown fish, swimming", 2), ("a koi", 3)],
)
def test_a_prompt_finds_the_subject_that_it_names(memory, prompt, subject):
    assert memory.nearest(prompt, seed=0) == subject


def test_the_seed_chooses_among_equals_and_nothing_is_made_up(memory):
    assert {memory.nearest("a fish", seed) for seed in range(4)} == {2, 3}
    assert memory.nearest("a spaceship", seed=0) is None
