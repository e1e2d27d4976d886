# SPDX-License-Identifier: GPL-3.0-or-later
"""Construction on a GPU: the same fit in whole batches, on one device, without waiting for it.

Without a GPU the device "meta" stands in: its tensors have shapes but no numbers, so whatever mixes devices, or wants
to know a number in the middle of a step, fails.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.evaluation.metrics import psnr
from backend.pictures import over_white
from backend.progress import JobCancelled, Run
from backend.splatting import checkpoint, construct, render
from backend.splatting.config import ConstructConfig
from backend.splatting.engine import choose_engine
from backend.splatting.fit import Fit
from backend.splatting.gaussians import discs
from backend.splatting.guide import Guide, SurfaceMotion
from backend.splatting.hypotheses import Hypothesis, Trial
from backend.splatting.refinement import RefinableClip
from backend.splatting.render import render_clip
from backend.splatting.scene import prepare
from blender_addon.contract.clip import Clip, check_clip
from tests.splatting.oracle import bumpy_sphere, camera
from tests.splatting.scenes import Scene, swinging_arm

META = torch.device("meta")
SMALL = ConstructConfig(
    gaussians=800, control_points=48, shape_steps=60, coarse_steps=80, fine_steps=40, coarse_pixels=32
)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return swinging_arm()


def planned(folder: Path, **options) -> Run:
    run = Run(folder, **options)
    run.plan(construct.STAGE_SHARES)
    return run


def quality(clip: Clip, scene: Scene) -> tuple[float, float]:
    """PSNR of the shown and of unseen views."""
    views = (scene.moving, scene.truth)
    return tuple(
        float(psnr(over_white(render_clip(clip, view.cameras)), over_white(view.images)).mean()) for view in views
    )


class NoCheckpoint:
    def is_due(self) -> bool:
        return False


def drawn_on_meta(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,  # noqa: N803
    width: int, height: int, **options,
) -> tuple[Tensor, Tensor, dict]:  # fmt: skip
    """Pictures that depend on all inputs."""
    tensors = (means, quats, scales, opacities, colors, viewmats, Ks)
    assert {tensor.device for tensor in tensors} == {META}
    every = sum(tensor.sum() for tensor in tensors)
    shape = (len(means), 1, height, width)
    return every.expand(*shape, 3), every.expand(*shape, 1), {}


@pytest.mark.slow
def test_the_steps_of_a_fit_stay_on_their_device_and_never_wait(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"shape_steps": 3, "guide_steps": 3, "coarse_steps": 3, "fine_steps": 3}
    # Densification counts on the host, a few times in all.
    config = replace(SMALL, **steps, static_chance=1.0, hypotheses=("free",), mirrors=(), densify_times=0)
    here = prepare(scene.moving, scene.static, config, frames=9)
    points = scene.surface.points[:200]
    fit = Fit(discs(points, scene.surface.normals[:200], np.full((200, 3), 0.5)))
    fit.rest_means = fit.gaussians.means.detach().clone()
    fit.begin_motion(here)
    there = replace(here.to(META), config=config.with_whole_batches())
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, **options: torch.optim.SGD(args[0], lr=0.1))  # knows meta
    motion = fit.motion
    motion.control = motion.control.to(META)
    motion.coefficients = motion.coefficients.detach().to(META).requires_grad_()
    fit = Fit(fit.gaussians.to(META), fit.rest_means.to(META), motion)
    fit.motion_optimizer = torch.optim.Adam([{"params": [motion.coefficients], "name": "coefficients"}])
    monkeypatch.setattr(fit, "begin_motion", lambda *arguments: None)
    trial = Trial(Hypothesis(), 1.0, 1.0)  # numbers that have to come from the device
    monkeypatch.setattr(construct, "_tried", lambda *arguments: trial)
    monkeypatch.setattr(render, "rasterize", drawn_on_meta)
    for name in ("preview_shape", "preview_motion"):
        monkeypatch.setattr(construct, name, lambda fit, scene: np.zeros((2, 2, 3), np.uint8))

    reported = []
    run = planned(tmp_path, on_progress=reported.append)
    guide = Guide(torch.rand(4), torch.randn(4, 200, 3), torch.ones(4, 200), 1.0).to(META)
    construct._fit_shape(fit, there, NoCheckpoint(), run)
    for stage in (construct._follow_guide, construct._fit_motion, construct._fit_both):
        stage(fit, there, guide, NoCheckpoint(), run)
    assert fit.stage == 4
    assert motion.coefficients.grad.device == META
    gradients = {name: tensor.grad for name, tensor in fit.gaussians.tensors().items() if tensor.grad is not None}
    assert gradients.keys() >= {"means", "quats", "log_scales", "opacity_logits", "color_logits"}
    assert all(gradient.device == META for gradient in gradients.values())
    assert len([progress for progress in reported if progress.step == 3]) == 4  # the last step of each stage


@pytest.mark.slow
def test_whole_batches_find_the_motion_too(scene: Scene, tmp_path: Path) -> None:
    config = replace(SMALL.with_whole_batches(), shape_steps=30, coarse_steps=40, fine_steps=15)
    clip = construct.construct(scene.moving, scene.static, scene.surface, config, planned(tmp_path))
    shown, unseen = quality(clip, scene)
    assert shown > 24
    assert unseen > quality_frozen(clip, scene) + 2


def quality_frozen(clip: Clip, scene: Scene) -> float:
    drawn = render_clip(clip, scene.truth.cameras, frozen=True)
    return float(psnr(over_white(drawn), over_white(scene.truth.images)).mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("eps2d", [0.02, 0.3])
def test_pictures_and_gradients_on_cuda_are_those_of_the_cpu(eps2d: float) -> None:
    """A whole clip in one call. CUDA's fast math may take single contributions for the other side of a cut-off."""
    moments, count, pixels = 12, 2_000, 96
    cloud = [tensor.float() for tensor in bumpy_sphere(count)]
    cameras = [camera(pixels, pixels, azimuth=0.5 * moment) for moment in range(moments)]
    viewmats, intrinsics = (torch.stack(part).float()[:, None] for part in zip(*cameras, strict=True))
    shift = torch.linspace(0, 0.3, moments)[:, None, None] * torch.tensor([1.0, 0.5, 0.2])
    random = torch.Generator().manual_seed(3)
    upstream = torch.randn(moments, 1, pixels, pixels, 4, generator=random)
    results = []
    for engine in (choose_engine("cpu"), choose_engine("cuda")):
        given = (cloud[0] + shift, *cloud[1:])
        inputs = [tensor.detach().to(engine.device).requires_grad_() for tensor in given]
        seen = (tensor.to(engine.device) for tensor in (viewmats, intrinsics))
        colors, alphas, _ = render.rasterize(*inputs, *seen, pixels, pixels, eps2d=eps2d)
        picture = torch.cat([colors, alphas], dim=-1)
        picture.backward(upstream.to(engine.device))
        results.append([tensor.detach().cpu() for tensor in (picture, *(tensor.grad for tensor in inputs))])
    for name, mine, theirs in zip(
        ("picture", *["means", "quats", "scales", "opacities", "colors"]), *results, strict=True
    ):
        error = (mine - theirs).abs()
        assert error.mean() < 1e-3 * mine.abs().mean(), name
        rank = max(int(0.001 * error.numel()), 1)  # all but a thousandth
        assert error.flatten().topk(rank).values[-1] < 0.02 * mine.abs().max(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_construction_on_cuda_is_as_good_as_on_the_cpu(scene: Scene, tmp_path: Path) -> None:
    inputs = (scene.moving, scene.static, scene.surface, SMALL)
    on_cpu = construct.construct(*inputs, planned(tmp_path / "cpu"))
    on_gpu = construct.construct(*inputs, planned(tmp_path / "gpu"), choose_engine("cuda"))
    check_clip(on_gpu)
    for mine, theirs in zip(quality(on_gpu, scene), quality(on_cpu, scene), strict=True):
        assert mine > theirs - 0.5  # dB; whole batches should do better


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_fit_begun_on_cuda_goes_on_on_the_cpu_and_back(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "MOST_TIME", math.inf)
    inputs = (scene.moving, scene.static, scene.surface, SMALL)
    cuda, cpu = choose_engine("cuda"), choose_engine("cpu")
    for engine, steps in ((cuda, 90), (cpu, 20)):
        calls = iter(range(10**9))
        reports = steps // construct.GPU_REPORT_STEPS if engine.is_gpu else steps
        run = planned(tmp_path, is_cancelled=lambda calls=calls, reports=reports: next(calls) >= reports)
        with pytest.raises(JobCancelled):
            construct.construct(*inputs, run, engine)
    told = []
    clip = construct.construct(*inputs, planned(tmp_path, on_progress=told.append), cuda)
    assert told[0].fraction > 0.3  # it did not begin again
    assert quality(clip, scene)[0] > 22


@pytest.mark.slow
@pytest.mark.parametrize("motion", ["bases", "hexplane"])
def test_construction_on_a_pretended_card(card, motion: str, scene: Scene, tmp_path: Path) -> None:
    """All stages, previews and checkpoints, with gsplat's contract checked; the CPU's kernels draw."""
    few = {"shape_steps": 12, "coarse_steps": 12, "fine_steps": 12, "densify_times": 1, "sh_degree": 1}
    config = replace(SMALL, motion=motion, hypotheses=("free", "jointed"), **few)
    engine = choose_engine("auto")
    assert engine.is_gpu
    clip = construct.construct(scene.moving, scene.static, scene.surface, config, planned(tmp_path), engine)
    check_clip(clip)
    waiting = {line.split(":")[0] for kind, line in card.waits if "local_scalar" in kind}
    seldom = ("previews", "construct", "scene", "densify")  # not in every step
    assert waiting <= {f"backend/splatting/{name}.py" for name in seldom}


@pytest.mark.slow
@pytest.mark.parametrize("motion", ["bases", "hexplane"])
def test_a_motion_that_is_told_on_a_pretended_card(card, motion: str, scene: Scene, tmp_path: Path) -> None:
    """Known as a whole, or as a guide to the fit; and a clip that is refined."""
    few = {"shape_steps": 4, "guide_steps": 4, "coarse_steps": 4, "fine_steps": 4}
    tracks = torch.from_numpy(scene.tracks)
    told = SurfaceMotion(tracks[0], tracks - tracks[0], torch.linspace(0, 1, len(tracks)))
    config = replace(SMALL, motion=motion, mirrors=(), **few)
    given = scene.moving, scene.static, scene.surface, config, planned(tmp_path), choose_engine("auto")
    clip = construct.construct(*given, told=told)
    check_clip(clip)
    if motion == "bases":
        refinable = RefinableClip(clip, "cuda")
        optimizer = refinable.optimizer()
        loss = refinable.render(scene.moving.cameras).square().mean() + refinable.rigidity(scene.moving.cameras.times)
        (loss + refinable.jerkiness()).backward()
        optimizer.step()
        check_clip(refinable.to_clip())
