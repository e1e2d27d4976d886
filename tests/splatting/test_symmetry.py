# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror stands where the subject is alike on both sides, shows what is there, and tells the unseen sides."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.evaluation.metrics import track_error
from backend.progress import Run
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import STAGE_SHARES, construct
from backend.splatting.render import render
from backend.splatting.scene import prepare
from backend.splatting.symmetry import Mirror, Plane, find_plane
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import intrinsics, orbit_camera
from tests.splatting.scenes import Scene, two_arms

SMALL = ConstructConfig(
    gaussians=500, control_points=40, shape_steps=40, coarse_steps=100, fine_steps=40, coarse_pixels=32,
    hypotheses=("free",),
)  # fmt: skip


@pytest.mark.parametrize(("angle", "offset"), [(0.0, 0.0), (0.7, 0.05), (1.571, -0.03), (2.9, 0.1)])
def test_the_plane_is_found_though_limbs_are_elsewhere(angle: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    plane = Plane(angle, offset)
    half = rng.normal(size=(800, 3)) * [0.1, 0.3, 0.15] + [0, 0.1 * rng.normal(), 0]
    along = np.array([-np.sin(angle), np.cos(angle), 0])
    half = np.abs(half[:, :1]) * plane.normal + half[:, 1:2] * along + half[:, 2:] * [0, 0, 1]
    half += offset * plane.normal + 0.2 * along * (half[:, 2:] > 0.1)
    limb = rng.normal(size=(150, 3)) * 0.03 + 0.25 * along + 0.2 * plane.normal
    found = find_plane(np.concatenate([half, plane.reflected(half), limb]))
    assert abs(found.normal @ plane.normal) > 0.999
    assert found.offset * np.sign(found.normal @ plane.normal) == pytest.approx(offset, abs=0.01)


def test_what_a_camera_in_the_mirror_sees_is_what_there_is() -> None:
    rng = np.random.default_rng(1)
    means = torch.from_numpy(rng.normal(size=(40, 3)) * 0.15).float()
    looks = torch.full((40, 3), 0.03), torch.full((40,), 0.9), torch.from_numpy(rng.random((40, 3))).float()
    viewmats = torch.from_numpy(np.stack([np.linalg.inv(orbit_camera(azimuth, 15, 2.0)) for azimuth in (30, 200)]))
    viewmats = (torch.diag(torch.tensor([1.0, -1, -1, 1])).double() @ viewmats).float()
    Ks = torch.from_numpy(intrinsics(39.6, 64, 48)).float().repeat(2, 1, 1)  # noqa: N806
    Ks[:, 0, 2] += 5  # not the middle

    def seen(means: torch.Tensor, viewmats: torch.Tensor, Ks: torch.Tensor) -> torch.Tensor:  # noqa: N803
        quats = torch.tensor([1.0, 0, 0, 0]).expand(2, 40, 4)
        return render(means.expand(2, -1, -1), quats, *looks, viewmats, Ks, 64, 48)

    mirror = Mirror(Plane(0.8, 0.07), 0.0)
    reflected = torch.from_numpy(mirror.plane.reflected(means.numpy())).float()
    images, turned, others = mirror.views(seen(means, viewmats, Ks), viewmats, Ks)
    torch.testing.assert_close(seen(reflected, turned, others), images, atol=1e-4, rtol=0)
    assert (seen(means, turned, others) - images).abs().max() > 0.1
    assert float(torch.linalg.det(turned[0, :3, :3])) == pytest.approx(1.0, abs=1e-5)


def test_times_of_the_other_side() -> None:
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(Mirror(Plane(0, 0), 0.0).times(times), times)
    torch.testing.assert_close(Mirror(Plane(0, 0), 0.5).times(times), torch.tensor([0.5, 0.75, 1.0, 0.25, 0.5]))


def test_pictures_in_the_mirror_come_after_the_own_and_count_by_their_outlines() -> None:
    views = two_arms(0.5)
    scene = prepare(views.moving, views.static, SMALL, frames=13)
    both = scene.and_mirrored(Mirror(Plane(0, 0), 0.5))
    assert len(both.times) == len(both.age) == len(both.moving[0].images) == 13 + 13 + 12
    torch.testing.assert_close(both.times[26:], torch.full((12,), 0.5))  # time 0 from all sides, half a cycle later
    np.testing.assert_allclose(both.age[:13], scene.age)
    assert both.age[13] == pytest.approx(6)
    assert both.moving[1].colored.tolist() == [True] * 13 + [False] * 25
    alone = replace(scene, has_static=False).and_mirrored(Mirror(Plane(0, 0), 0.5))
    assert len(alone.times) == 26


def built(scene: Scene, folder: Path, config: ConstructConfig) -> Clip:
    run = Run(folder)
    run.plan(STAGE_SHARES)
    return construct(scene.moving, scene.static, scene.surface, config, run)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0.0, 0.5])
def test_the_other_side_tells_what_was_not_seen(tmp_path: Path, lag: float) -> None:
    scene = two_arms(lag)
    without, found = (
        built(scene, tmp_path / name, config)
        for name, config in (("without", replace(SMALL, mirrors=())), ("with", SMALL))
    )
    assert (without.provenance["hypothesis"]["lag"], found.provenance["hypothesis"]["lag"]) == (None, lag)
    error, less = (track_error(clip.frames().means, scene.tracks) for clip in (without, found))
    assert less < 0.9 * error


@pytest.mark.slow
def test_sides_that_move_otherwise_are_left_to_themselves(tmp_path: Path) -> None:
    assert built(two_arms(0.25), tmp_path, SMALL).provenance["hypothesis"]["lag"] is None
