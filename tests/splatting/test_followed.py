# SPDX-License-Identifier: GPL-3.0-or-later
"""Motions that are known as a whole, written as poses of control points."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.evaluation.metrics import track_error
from backend.progress import JobCancelled
from backend.splatting.construct import COARSE, FINE, GUIDED, SHAPE, construct
from backend.splatting.followed import FollowedMotion
from backend.splatting.gaussians import GaussianParameters
from backend.splatting.guide import SurfaceMotion, movement_of
from tests.splatting.scenes import Scene, swinging_arm
from tests.splatting.test_construct import TINY, arrays_of, cancel_after, planned

TIMES = torch.linspace(0, 1, 9)


def at_points(points: np.ndarray) -> GaussianParameters:
    """Gaussians there, all alike."""
    count = len(points)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(count, 4).clone()
    zeros = {name: torch.zeros(count, 3) for name in ("log_scales", "color_logits")}
    none = {"opacity_logits": torch.zeros(count), "harmonics": torch.zeros(count, 0, 3)}
    return GaussianParameters(torch.from_numpy(points), quats, **zeros, **none, weight_offsets=torch.zeros(count, 4))


def turning(points: np.ndarray, turns: float) -> SurfaceMotion:
    """All of it turns about the vertical, evenly."""
    angles = 2 * np.pi * turns * TIMES.numpy()
    c, s, o = np.cos(angles), np.sin(angles), np.zeros(len(angles))
    matrices = np.stack([c, -s, o, s, c, o, o, o, o + 1], 1).reshape(-1, 3, 3)
    moved = np.einsum("tij,nj->tni", matrices, points)
    return SurfaceMotion(torch.from_numpy(points), torch.from_numpy((moved - points).astype(np.float32)), TIMES)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return swinging_arm()


@pytest.fixture(scope="module")
def followed(scene: Scene) -> Scene:
    """The same, whose surface tells how it moves."""
    points, movement = scene.tracks[0], scene.tracks - scene.tracks[0]
    return replace(scene, surface=replace(scene.surface, points=points, movement=movement))


def test_a_whole_turn_and_more_is_followed() -> None:
    """Series in time of half a turn at most could not."""
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (400, 3)).astype(np.float32)
    motion = FollowedMotion(torch.from_numpy(points), turning(points, 1.3), TIMES, replace(TINY, control_points=8))
    moved = motion.moved(TIMES, at_points(points))
    wanted = points + turning(points, 1.3).movement.numpy()
    np.testing.assert_allclose(moved.means.numpy(), wanted, atol=2e-3)
    angle = 2 * torch.arccos(moved.quats[1, :, 0].abs() / moved.quats[1].norm(dim=-1))
    assert torch.allclose(angle, torch.tensor(2 * math.pi * 1.3 / 8), atol=1e-2)


def test_points_go_where_the_nearest_go_and_stand_where_they_stood(scene: Scene) -> None:
    told = movement_of(replace(scene.surface, points=scene.tracks[0], movement=scene.tracks - scene.tracks[0]))
    motion = FollowedMotion(torch.from_numpy(scene.tracks[0]), told, TIMES, TINY)
    moved = motion.moved(TIMES, at_points(scene.tracks[0])).means.numpy()
    np.testing.assert_allclose(moved[0], scene.tracks[0], atol=1e-6)
    assert track_error(moved, scene.tracks) < 0.06
    some = torch.tensor([5, 7])
    few = motion.moved(TIMES[3:5], at_points(scene.tracks[0]).picked(some), some).means.numpy()
    np.testing.assert_allclose(few, moved[3:5][:, some], atol=1e-6)


def test_a_clip_holds_it_as_bases(scene: Scene) -> None:
    told = movement_of(replace(scene.surface, points=scene.tracks[0], movement=scene.tracks - scene.tracks[0]))
    motion = FollowedMotion(torch.from_numpy(scene.tracks[0]), told, TIMES, TINY).to_clip(TIMES, None)
    assert motion.basis_index.shape == motion.basis_weights.shape == (len(scene.tracks[0]), 4)
    assert (motion.basis_weights >= 0).all()
    np.testing.assert_allclose(motion.basis_weights.sum(1), 1, atol=1e-5)
    assert (np.einsum("tbc,tbc->tb", motion.basis_quats[1:], motion.basis_quats[:-1]) > 0).all()


def test_times_between_those_that_are_told_lie_between() -> None:
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 3)).astype(np.float32)
    movement = torch.tensor([[0.0, 0, 0], [0.2, 0, 0], [0.2, 0.2, 0]])[:, None].expand(3, 50, 3).contiguous()
    told = SurfaceMotion(torch.from_numpy(points), movement, torch.tensor([0.0, 0.5, 1.0]))
    times = torch.tensor([0.0, 0.1, 0.75, 1.0])
    moved = FollowedMotion(torch.from_numpy(points), told, times, TINY).moved(times, at_points(points)).means.numpy()
    way = [[0, 0, 0], [0.04, 0, 0], [0.2, 0.1, 0], [0.2, 0.2, 0]]
    np.testing.assert_allclose(moved - points, np.array(way)[:, None] + 0 * points, atol=1e-4)


def test_construction_goes_where_the_surface_went(scene: Scene, followed: Scene, tmp_path: Path) -> None:
    stages = []
    run = planned(tmp_path / "known", on_progress=lambda progress: stages.append(progress.stage))
    told = movement_of(followed.surface)
    clip = construct(scene.moving, scene.static, followed.surface, TINY, run, told=told)
    assert track_error(clip.frames().means, scene.tracks) < 0.1
    assert {SHAPE, FINE} <= set(stages)
    assert GUIDED not in stages
    assert [stage for stage in stages if stage == COARSE] in ([], [COARSE])  # nothing is fitted there


def test_a_fit_that_was_stopped_goes_on_to_the_same_result(scene: Scene, followed: Scene, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("backend.splatting.checkpoint.INTERVAL", 0.0)
    monkeypatch.setattr("backend.splatting.checkpoint.MOST_TIME", math.inf)
    inputs, told = (scene.moving, scene.static, followed.surface, TINY), movement_of(followed.surface)
    whole = arrays_of(construct(*inputs, planned(tmp_path / "whole"), told=told))
    with pytest.raises(JobCancelled):
        construct(*inputs, planned(tmp_path / "cut", is_cancelled=cancel_after(TINY.shape_steps + 4)), told=told)
    for name, array in arrays_of(construct(*inputs, planned(tmp_path / "cut"), told=told)).items():
        np.testing.assert_array_equal(array, whole[name])
