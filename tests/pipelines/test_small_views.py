# SPDX-License-Identifier: GPL-3.0-or-later
"""The small 4DM in the pipeline, at toy size and untrained: shapes, the input's own view, resumption, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.guidance.sds import distillation_loss
from backend.models.kinesplat_small_4dm import KinesplatSmall4DM
from backend.models.text import Vocabulary
from backend.pipelines.multi_view_video import VIEWS, view_poses
from backend.pipelines.small_views import SIDE, SmallVideoModel
from backend.progress import JobCancelled, Run
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
    video = disc_video(10)
    run = run_in(tmp_path)
    views = model.views(video, "a dog yodels", run=run, **ASKED)
    assert views.pictures.shape == (VIEWS, 10, SIDE, SIDE, 4)
    assert np.abs(views.pictures[0, ..., 3].astype(int) - 255 * video[:, 3].int().numpy()).max() <= 1
    assert (views.cameras[0].width, views.cameras[0].times[-1]) == (SIDE, 1.0)
    assert any("yodel" in note for note in run.notes)
    assert model.models() == [{"name": "tiny 1", "licence": "CC0-1.0"}]


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


@pytest.mark.slow
def test_on_a_pretended_card(card, tmp_path: Path) -> None:
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
