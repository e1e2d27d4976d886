# SPDX-License-Identifier: GPL-3.0-or-later
"""The small 4DM in the pipeline, at toy size and untrained: shapes, the input's own view, resumption, gradients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from backend.guidance.sds import distillation_loss
from backend.models import kinesplat_small
from backend.models.kinesplat_small_4dm import KinesplatSmall4DM
from backend.models.small_fourdm import to_pictures
from backend.models.text import Vocabulary
from backend.pipelines.known_poses import known_poses, motions_of
from backend.pipelines.multi_view_video import DISTANCE, FOV, VIEWS, view_poses
from backend.pipelines.small_views import SIDE, SmallVideoModel
from backend.progress import JobCancelled, Run
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera
from tests.models.test_small_fourdm import SIDE as RESOLUTION
from tests.models.test_small_fourdm import network


@pytest.fixture
def model() -> SmallVideoModel:
    words = Vocabulary(("dog", "fox", "run", "walk", "whale"))
    return SmallVideoModel(KinesplatSmall4DM(network(motion=True), words, RESOLUTION, "tiny 1", "CC0-1.0"))


def disc_video(frames: int) -> torch.Tensor:  # [F, 4, SIDE, SIDE]
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    shifts = torch.linspace(-0.2, 0.2, frames)
    masks = line[:, None] ** 2 + (line[None, :] - shifts[:, None, None]) ** 2 < 0.16
    return masks[:, None] * torch.tensor([0.8, 0.3, 0.1, 1.0])[:, None, None]


def run_in(folder: Path, **options: object) -> Run:
    folder.mkdir(exist_ok=True)
    run = Run(folder, **options)
    run.plan({"Viewing": 1.0})
    run.begin("Viewing")
    return run


ASKED = {"seed": 0, "steps": 2, "elevation": 0.0}


def test_views_of_a_video(model: SmallVideoModel, tmp_path: Path) -> None:
    told = []
    video = disc_video(10)
    run = run_in(tmp_path, on_progress=told.append)
    views = model.views(video, "a dog yodels", run=run, **ASKED)
    shares = [progress.step / progress.total for progress in told]
    assert shares == sorted(shares)  # though a dog is sought first, which does not fit
    assert shares[-1] == 1
    assert views.pictures.shape == (VIEWS, 10, SIDE, SIDE, 4)
    assert np.abs(views.pictures[0, ..., 3].astype(int) - 255 * video[:, 3].int().numpy()).max() <= 1
    assert (views.cameras[0].width, views.cameras[0].times[-1]) == (SIDE, 1.0)
    assert any("yodel" in note for note in run.notes)
    assert any("No shape" in note for note in run.notes)
    names = [told["name"] for told in model.models()]
    assert names == ["tiny 1", kinesplat_small.load(device="cpu").name]


def test_a_face_is_not_on_the_back_of_the_head(model: SmallVideoModel, tmp_path: Path) -> None:
    """An untrained network shows what it begins at."""
    video = disc_video(3)
    middle = slice(SIDE // 2 - 6, SIDE // 2 + 6)
    video[1, :3, middle, middle] = torch.tensor([0.1, 0.3, 0.9])[:, None, None]
    views = model.views(video, "", run=run_in(tmp_path), **ASKED).pictures[:, 1]
    front, back = (view[SIDE // 2, SIDE // 2].astype(int) for view in views[[0, 2]])
    assert front[2] > front[0] + 100
    assert back[0] > back[2] + 50


def test_a_cancelled_run_goes_on_to_the_same(model: SmallVideoModel, tmp_path: Path) -> None:
    video = disc_video(10)
    whole = model.views(video, "", run=run_in(tmp_path / "whole"), **ASKED).pictures
    calls = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 5

    with pytest.raises(JobCancelled):
        model.views(video, "", run=run_in(tmp_path / "broken", is_cancelled=stop), **ASKED)
    np.testing.assert_array_equal(model.views(video, "", run=run_in(tmp_path / "broken"), **ASKED).pictures, whole)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_distillation_has_a_gradient(model: SmallVideoModel, tmp_path: Path, scale: float) -> None:
    poses = torch.from_numpy(view_poses(3.0)).float()
    pictures = torch.rand(8 * VIEWS, 4, 40, 40).requires_grad_()
    with model.guidance(disc_video(12), "dog", run_in(tmp_path)) as guidance:
        guidance.scale = scale
        latents = guidance.encode(pictures)
        assert latents.shape == (8 * VIEWS, 4, RESOLUTION, RESOLUTION)
        branches = guidance.branches(poses, np.arange(3, 11))
        conditional, unconditional = branches(latents.detach(), torch.full((len(latents),), 500))
        assert torch.equal(conditional, unconditional) == (scale == 1)
        shown = guidance.encode(disc_video(12))[3:11].unflatten(0, (8, 1))  # from the front, the first of the sides
        front = conditional.unflatten(0, (8, VIEWS))[:, :1]
        assert (front[:, :, 3] > 0.8)[shown[:, :, 3] == 1].float().mean() > 0.97  # but for the inflated rim
        loss = distillation_loss(
            latents, torch.randn_like(latents), 500, branches, guidance.schedule, guidance.scale, guidance.rescale
        )
        loss.backward()
    assert pictures.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def horse() -> torch.Tensor:  # [2, F, 4, SIDE, SIDE]
    """A known subject that walks, from its side, as 4Diffusion's cameras see it, and from behind or before."""
    known = kinesplat_small.load(device="cpu")
    number = known.memory.subjects.index("white horse")
    walk = next(clip for clip in motions_of(known)[number] if known.motions.actions[clip] == "walk")
    poses = known_poses(known, number, {walk})
    seen = []
    for positions in poses.positions[1:9]:
        cameras = Cameras(
            camera_to_world=np.stack([orbit_camera(azimuth, 0.0, DISTANCE) for azimuth in (90.0, 180.0)]),
            Ks=np.repeat(intrinsics(FOV, SIDE, SIDE)[None], 2, axis=0),
            times=np.zeros(2),
            width=SIDE,
            height=SIDE,
        )
        seen.append(replace(poses.mesh, positions=np.float32(0.55) * positions).pictures(cameras))
    return torch.from_numpy(np.stack(seen, 1)).movedim(-1, 2)


def test_a_video_gets_the_shape_of_what_its_prompt_names(model: SmallVideoModel, horse, tmp_path: Path) -> None:
    told = []
    run = run_in(tmp_path, on_progress=told.append)
    views = model.views(horse[0], "a horse walks", run=run, **ASKED)
    shares = [progress.step / progress.total for progress in told]
    assert shares == sorted(shares)
    assert sum(0 < share < 0.4 for share in shares) > 8  # it stands still nowhere
    assert shares[-1] == 1
    assert len(run.notes) == 1
    assert "horse" in run.notes[0]
    assert np.abs(views.pictures[0, ..., 3].astype(int) - 255 * horse[0, :, 3].numpy()).max() <= 1
    made, true = views.pictures[1, ..., 3] > 127, horse[1, :, 3].numpy() > 0.5
    assert (made & true).sum() / (made | true).sum() > 0.6
    own, others = (some[some[..., 3] > 127][:, :3] for some in (views.pictures[0], views.pictures[1:]))
    assert others.min() >= own.min()  # its own, and not those of nothing


def test_a_frame_without_the_subject_stays_empty(model: SmallVideoModel, horse, tmp_path: Path) -> None:
    video = horse[0].clone()
    video[3] = 0
    pictures = model.views(video, "a horse walks", run=run_in(tmp_path), **ASKED).pictures
    assert not pictures[:, 3].any()
    assert all(pictures[:, frame, ..., 3].any() for frame in (2, 4))


def test_distillation_of_a_known_shape_asks_that(model: SmallVideoModel, horse, tmp_path: Path) -> None:
    poses = torch.from_numpy(view_poses(0.0)).float()
    with model.guidance(horse[0], "a horse walks", run_in(tmp_path)) as guidance:
        branches = guidance.branches(poses, np.arange(2, 4))
        noise = torch.randn(2 * VIEWS, 4, RESOLUTION, RESOLUTION)
        first, second = branches(noise, torch.full((2 * VIEWS,), 900))
        again, _ = branches(-noise, torch.full((2 * VIEWS,), 500))
    assert torch.equal(first, second)
    assert torch.equal(first, again)
    front = to_pictures(first).unflatten(0, (2, VIEWS))[:, 0, 3]
    shown = functional.interpolate(horse[0, 2:4, 3:], (RESOLUTION, RESOLUTION), mode="area")[:, 0]
    assert (front - shown).abs().mean() < 0.05


@pytest.mark.slow
def test_on_a_pretended_card(card, horse, tmp_path: Path) -> None:
    words = Vocabulary(("dog",))
    made = KinesplatSmall4DM(network(motion=True).to("cuda"), words, RESOLUTION, "tiny 1", "CC0-1.0")
    model, run = SmallVideoModel(made), run_in(tmp_path)
    assert model.views(disc_video(3), "a dog", run=run, **ASKED).pictures.shape == (VIEWS, 3, SIDE, SIDE, 4)
    with model.guidance(disc_video(8), "a dog", run) as guidance:
        for device in ("cpu", "cuda"):  # Gaussians may be drawn on the CPU beside a GPU
            pictures = torch.rand(8 * VIEWS, 4, 24, 24, device=device, requires_grad=True)
            latents = guidance.encode(pictures)
            branches = guidance.branches(torch.from_numpy(view_poses(0.0)).float(), np.arange(8))
            noise = torch.randn(latents.shape).to(latents.device)
            rest = branches, guidance.schedule, guidance.scale, guidance.rescale, guidance.dtype
            distillation_loss(latents, noise, 500, *rest).backward()
            assert pictures.grad.device.type == device
    with model.guidance(horse[0], "a horse walks", run) as guidance:  # of a known shape, which no network tells
        branches = guidance.branches(torch.from_numpy(view_poses(0.0)).float(), np.arange(4))
        latents = guidance.encode(torch.rand(4 * VIEWS, 4, 24, 24, requires_grad=True))
        rest = branches, guidance.schedule, guidance.scale, guidance.rescale, guidance.dtype
        assert distillation_loss(latents, torch.randn(latents.shape).to(latents.device), 500, *rest).is_cuda
