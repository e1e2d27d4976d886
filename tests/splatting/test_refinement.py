# SPDX-License-Identifier: GPL-3.0-or-later
"""Clips that are refined: nothing changes by itself, pictures are those of the clip, gradients reach all of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.splatting.refinement import RefinableClip
from backend.splatting.render import render_clip
from blender_addon.contract import rotations
from blender_addon.contract.clip import BasisMotion, Clip, FrameMotion, check_clip
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera


def turning(sh: int = 1, frames: int = 5, bases: int = 6, count: int = 60) -> Clip:
    """A cloud whose parts turn by up to 140 degrees and drift."""
    rng = np.random.default_rng(2)
    angle = np.radians(np.linspace(0, 140, frames))[:, None] * rng.uniform(0.3, 1, bases)
    axis = rng.normal(size=(bases, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    quats = np.concatenate([np.cos(angle / 2)[..., None], np.sin(angle / 2)[..., None] * axis], -1)
    drift = np.linspace(0, 0.1, frames)[:, None, None] * rng.normal(size=(bases, 3))
    weights = rng.uniform(0.1, 1, (count, 4))
    index = np.stack([rng.permutation(bases)[:4] for _ in range(count)])
    return Clip(
        means=rng.uniform(-0.25, 0.25, (count, 3)).astype(np.float32),
        quats=rotations.normalize(rng.normal(size=(count, 4))).astype(np.float32),
        scales=rng.uniform(0.02, 0.06, (count, 3)).astype(np.float32),
        opacities=rng.uniform(0.2, 0.95, count).astype(np.float32),
        sh=rng.normal(size=(count, sh, 3)).astype(np.float32) * 0.3,
        motion=BasisMotion(
            quats.astype(np.float32),
            drift.astype(np.float32),
            index.astype(np.int32),
            (weights / weights.sum(1, keepdims=True)).astype(np.float32),
        ),
        name="Turning",
        fps=12.0,
    )


def cameras(times: list[float]) -> Cameras:
    poses = np.stack([orbit_camera(70.0 * view, 10, 1.5) for view in range(len(times))])
    return Cameras(poses, np.repeat(intrinsics(45, 24, 24)[None], len(times), 0), np.array(times), 24, 24)


@pytest.mark.parametrize("sh", [1, 4])
def test_pictures_are_those_of_the_clip(sh: int) -> None:
    clip = turning(sh)
    seen = cameras([0.5, 0.0, 1.0, 0.25, 0.5])  # frames, in any order
    refined = RefinableClip(clip)
    torch.testing.assert_close(refined.render(seen), render_clip(clip, seen), atol=2e-3, rtol=0)


def test_a_clip_again() -> None:
    clip = turning()
    same = RefinableClip(clip).to_clip()
    check_clip(same)
    assert (same.name, same.fps) == ("Turning", 12.0)
    for name in ("means", "scales", "opacities", "sh"):
        np.testing.assert_allclose(getattr(same, name), getattr(clip, name), atol=1e-5, err_msg=name)
    for frame in range(clip.frame_count):
        np.testing.assert_allclose(same.frame(frame).means, clip.frame(frame).means, atol=1e-5)


def test_between_frames_it_lies_between() -> None:
    refined = RefinableClip(turning())
    early, middle, late = (refined.render(cameras([time])) for time in (0.25, 0.375, 0.5))
    assert (middle - early).abs().mean() < (late - early).abs().mean()
    assert (middle - early).abs().mean() > 0


def test_all_of_it_follows_a_loss_of_pictures() -> None:
    clip = turning(4)
    seen = cameras([0.0, 0.25, 0.5, 0.75, 1.0])
    target = render_clip(replace(clip, sh=0.5 * clip.sh, means=clip.means + np.float32(0.02)), seen)
    refined = RefinableClip(clip)
    optimizer, errors = refined.optimizer(), []
    for _ in range(30):
        error = (refined.render(seen) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        for name, tensor in refined.parameters().items():
            assert not tensor.numel() or tensor.grad.abs().max() > 0, name
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.4 * errors[0]
    assert np.abs(refined.to_clip().means - clip.means).max() > 1e-3


def test_priors_of_the_motion() -> None:
    clip = turning()
    count = clip.motion.basis_quats.shape[1]
    still = replace(clip.motion, basis_quats=np.tile(np.float32([1, 0, 0, 0]), (5, count, 1)))
    steady = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None] * np.ones((1, count, 3), np.float32)
    rigid = RefinableClip(replace(clip, motion=replace(still, basis_translations=steady)))
    times = np.linspace(0, 1, 5)
    assert float(rigid.rigidity(times).detach()) == pytest.approx(0, abs=1e-6)
    assert float(rigid.jerkiness().detach()) == pytest.approx(0, abs=1e-6)
    assert float(RefinableClip(clip).rigidity(times).detach()) > 1e-3
    jerky = np.where(np.arange(5)[:, None, None] % 2, steady, -steady)
    assert float(RefinableClip(replace(clip, motion=replace(still, basis_translations=jerky))).jerkiness()) > 1


def test_other_clips_are_refused() -> None:
    clip = turning()
    frames = clip.frames()
    for other in (
        replace(clip, color_space="linear"),
        replace(clip, motion=FrameMotion(frames.means, frames.quats)),
    ):
        with pytest.raises(ValueError, match="sRGB that move by bases"):
            RefinableClip(other)
