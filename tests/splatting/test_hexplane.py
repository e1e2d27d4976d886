# SPDX-License-Identifier: GPL-3.0-or-later
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.progress import JobCancelled, Progress, Run
from backend.splatting import checkpoint
from backend.splatting.config import ConstructConfig, HexPlaneConfig
from backend.splatting.construct import STAGE_SHARES, STAGES, construct
from backend.splatting.gaussians import GaussianParameters
from backend.splatting.hexplane import HexPlaneMotion
from blender_addon.contract.clip import Clip, FrameMotion, check_clip, read_clip, write_clip
from tests.splatting.scenes import swinging_arm

SMALL = HexPlaneConfig(points=5, scales=(1, 2), channels=3, width=8)
TINY = ConstructConfig(
    motion="hexplane",
    hexplane=HexPlaneConfig(points=8, channels=4, width=16),
    gaussians=100,
    shape_steps=4,
    coarse_steps=6,
    fine_steps=4,
    coarse_pixels=16,
    fine_pixels=24,
)


def some_gaussians(count: int = 40) -> GaussianParameters:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return GaussianParameters(
        means=drawn(count, 3),
        quats=drawn(count, 4),
        log_scales=drawn(count, 3) - 4,
        opacity_logits=drawn(count),
        color_logits=drawn(count, 3),
        harmonics=torch.zeros(count, 0, 3),
        weight_offsets=torch.zeros(count, 4),
    )


def moving_model(loop: bool = True, frames: int = 9) -> HexPlaneMotion:
    """Whose planes of time hold anything."""
    model = HexPlaneMotion(some_gaussians().means, frames, loop, ConstructConfig(hexplane=SMALL))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in model.parameters().values():
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return model


def planned(folder: Path, **options) -> Run:
    run = Run(folder, **options)
    run.plan(STAGE_SHARES)
    return run


def bilinear(plane: np.ndarray, column: float, row: float) -> np.ndarray:  # [C, H, W]; -1..1 over the nodes
    _, height, width = plane.shape
    x, y = np.clip((column + 1) / 2, 0, 1) * (width - 1), np.clip((row + 1) / 2, 0, 1) * (height - 1)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - left, y - top
    above, below = plane[:, top], plane[:, top + 1]
    rows = [(1 - u) * line[:, left] + u * line[:, left + 1] for line in (above, below)]
    return (1 - v) * rows[0] + v * rows[1]


def test_a_new_model_keeps_still() -> None:
    gaussians = some_gaussians()
    model = HexPlaneMotion(gaussians.means, 9, False, ConstructConfig(hexplane=SMALL))
    moved = model.moved(torch.tensor([0.0, 0.3, 1.0]), gaussians)
    for tensor, rest in zip(moved[:3], gaussians.at_rest(3)[:3], strict=True):
        torch.testing.assert_close(tensor, rest.expand_as(tensor), atol=1e-6, rtol=1e-5)


def test_nothing_moves_at_time_0_and_a_loop_ends_there() -> None:
    gaussians = some_gaussians()
    for loop in (True, False):
        moved = moving_model(loop).moved(torch.tensor([0.0, 0.4, 1.0]), gaussians)
        for tensor, rest in zip(moved[:3], gaussians.at_rest(1)[:3], strict=True):
            assert torch.equal(tensor[0], rest.reshape(tensor[0].shape))
            assert (tensor[1] - tensor[0]).abs().max() > 1e-3
            assert torch.equal(tensor[2], tensor[0]) == loop


@pytest.mark.parametrize("loop", [True, False])
def test_features_are_products_of_six_planes(loop: bool) -> None:
    model, gaussians = moving_model(loop), some_gaussians(6)
    times = torch.tensor([0.0, 0.35, 0.9])
    features = model._features(gaussians.means, times).detach().numpy()
    places = ((gaussians.means - model.center) / model.reach).numpy()
    for n, (x, y, z) in enumerate(places):
        for t, time in enumerate(2 * times.numpy() - 1):
            expected = []
            for scale in SMALL.scales:
                product = np.ones(SMALL.channels)
                for axes, at in {
                    **{"xy": (x, y), "xz": (x, z), "yz": (y, z)},
                    **{"xt": (x, time), "yt": (y, time), "zt": (z, time)},
                }.items():
                    plane = model.planes[f"{axes}_{scale}"].detach().numpy()
                    if loop and axes[1] == "t":
                        plane = np.concatenate([plane, plane[:, :1]], axis=1)
                    product = product * bilinear(plane, *at)
                expected.append(product)
            np.testing.assert_allclose(features[:, t, n], np.concatenate(expected), rtol=2e-4, atol=2e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    model, gaussians = moving_model(), some_gaussians().require_grad()
    generator = torch.Generator().manual_seed(5)
    times = torch.tensor([0.2, 0.7])

    def loss() -> torch.Tensor:
        weighted = torch.Generator().manual_seed(6)
        moved = model.moved(times, gaussians)
        return sum(
            (tensor * torch.randn(tensor.shape, generator=weighted)).sum() for tensor in moved[:3]
        ) + model.prior(0.5, np.random.default_rng(0))

    tensors = {**model.parameters(), "means": gaussians.means, "quats": gaussians.quats, "s": gaussians.log_scales}
    gradients = torch.autograd.grad(loss(), list(tensors.values()))
    for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator)
        step = 1e-3 / direction.norm()
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                tensor += sign * step * direction
                values.append(float(loss()))
                tensor -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * float(step))
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.03, abs=0.05), name


def test_the_prior_prices_roughness_and_motion() -> None:
    settings = replace(SMALL, variation_weight=1.0, smooth_weight=0.0, transient_weight=0.0)
    rng = np.random.default_rng(0)

    def price(change, **weights) -> float:
        model = HexPlaneMotion(
            some_gaussians().means, 12, False, ConstructConfig(hexplane=replace(settings, **weights))
        )
        with torch.no_grad():
            for name, plane in model.planes.items():
                change(name, plane)
        return float(model.prior(0.0, rng).detach())

    def flat(name: str, plane: torch.Tensor) -> None:
        plane.fill_(1.0)

    def steady(name: str, plane: torch.Tensor) -> None:
        plane.fill_(1.0)
        if name[1] == "t":
            plane += 0.5 * torch.linspace(0, 1, plane.shape[1])[None, :, None]

    def slope(name: str, plane: torch.Tensor) -> None:
        plane.copy_(torch.arange(plane.shape[2]).expand_as(plane))

    no_motion = {"variation_weight": 0.0, "transient_weight": 1.0}
    assert price(flat) == price(flat, **no_motion) == 0
    assert price(slope) == pytest.approx(6)  # 3 planes, 2 resolutions, a difference of 1 along one axis of each
    assert price(steady, variation_weight=0.0, smooth_weight=1.0) == pytest.approx(0, abs=1e-10)
    assert price(steady, **no_motion) == pytest.approx(6 * 0.25)


def test_the_baked_clip_is_the_model_at_its_frames(tmp_path: Path) -> None:
    model, gaussians = moving_model(), some_gaussians()
    times = torch.linspace(0, 1, 9)
    motion = model.to_clip(times, gaussians)
    moved = model.moved(times, gaussians)
    np.testing.assert_allclose(motion.frame_means, moved.means.detach(), atol=1e-6)
    np.testing.assert_allclose(motion.frame_scales, moved.scales.detach(), rtol=1e-5)
    quats = torch.nn.functional.normalize(moved.quats.detach(), dim=-1).numpy()
    np.testing.assert_allclose(np.abs((motion.frame_quats * quats).sum(axis=-1)), 1, atol=1e-5)
    rest = torch.nn.functional.normalize(gaussians.quats, dim=-1)
    arrays = (gaussians.means, rest, gaussians.scales, gaussians.opacities, gaussians.sh)
    write_clip(tmp_path / "clip.npz", Clip(*(array.numpy() for array in arrays), motion=motion))
    clip = read_clip(tmp_path / "clip.npz")
    np.testing.assert_array_equal(clip.frame(5).means, motion.frame_means[5])
    np.testing.assert_array_equal(clip.frame(5).scales, motion.frame_scales[5])


@pytest.mark.slow
def test_a_killed_fit_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = swinging_arm(pixels=24)
    inputs = scene.moving, scene.static, scene.surface, TINY
    whole = construct(*inputs, planned(tmp_path / "whole"))
    check_clip(whole)
    assert isinstance(whole.motion, FrameMotion)
    assert np.abs(whole.frame(4).means - whole.means).max() > 1e-4
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "MOST_TIME", math.inf)
    calls = iter(range(10**9))
    with pytest.raises(JobCancelled):
        construct(*inputs, planned(tmp_path / "killed", is_cancelled=lambda: next(calls) >= 8))
    steps: list[Progress] = []
    resumed = construct(*inputs, planned(tmp_path / "killed", on_progress=steps.append))
    assert STAGES[0] not in {step.stage for step in steps}  # it did not begin again
    for name, array in vars(whole.motion).items():
        np.testing.assert_array_equal(array, vars(resumed.motion)[name], err_msg=name)


@pytest.mark.slow
def test_a_moving_scene_is_recovered_from_views_that_nobody_showed(tmp_path: Path) -> None:
    from tests.splatting.test_construct import mean_psnr

    scene = swinging_arm()
    config = ConstructConfig(
        motion="hexplane", gaussians=800, shape_steps=80, coarse_steps=150, fine_steps=60, coarse_pixels=32
    )
    clip = construct(scene.moving, scene.static, scene.surface, config, planned(tmp_path))
    assert mean_psnr(clip, scene.moving) > 24
    assert mean_psnr(clip, scene.truth) > mean_psnr(clip, scene.truth, frozen=True) + 2
