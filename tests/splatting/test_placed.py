# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians that are told where they are, also those that are not there all the time."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.progress import JobCancelled
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import COARSE, GUIDED, construct
from backend.splatting.observations import Observations
from backend.splatting.placed import PlacedMotion
from backend.splatting.render import render, render_clip
from backend.splatting.tracks import make_tracks
from blender_addon.contract.clip import FrameMotion, check_clip
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics, orbit_camera, orbit_cameras
from blender_addon.contract.surface import SurfacePieces, SurfaceSamples
from tests.splatting.test_construct import TINY, arrays_of, cancel_after, planned
from tests.splatting.test_followed import at_points
from tests.splatting.test_tracks import ball, lasting, pieces_of

FRAMES, PIXELS = 9, 48
COMES = 4  # the time at which the second ball is there


def appearing() -> SurfacePieces:
    """A ball that grows to three times its size, beside which another one comes at half the time."""
    rng = np.random.default_rng(0)
    points, normals, sizes = lasting(ball(rng, 600, radius=0.12), FRAMES)
    growth = np.linspace(1 / 3, 1, FRAMES)[:, None]
    growing = growth[..., None] * points * 1.5 - np.array([0.25, 0, 0]), normals, sizes * growth
    return pieces_of([(0, 0, growing), (1, COMES, lasting(ball(rng, 400, (0.3, 0, 0), 0.12), FRAMES - COMES))], FRAMES)


def pictures(cameras: Cameras) -> Observations:
    """What cameras see of it: the first ball orange, the second one blue."""
    images = []
    for view, time in enumerate(np.round(cameras.times * (FRAMES - 1)).astype(int)):
        parts = [(0.25 * -1, 0.18 * np.linspace(1 / 3, 1, FRAMES)[time], (0.9, 0.5, 0.1))]
        parts += [(0.3, 0.12, (0.2, 0.4, 0.8))] * int(time >= COMES)
        dots = [ball(np.random.default_rng(1), 400, (x, 0, 0), radius)[0][0] for x, radius, _ in parts]
        looks = np.repeat([color for *_, color in parts], 400, axis=0)
        means = torch.from_numpy(np.concatenate(dots)).float()[None]
        quats = torch.tensor([1.0, 0, 0, 0]).expand(1, means.shape[1], 4)
        shape = torch.full((means.shape[1], 3), 0.015), torch.full((means.shape[1],), 0.95)
        viewmat, K = cameras.viewmats()[view : view + 1], cameras.Ks[view : view + 1]  # noqa: N806
        seen = torch.from_numpy(viewmat).float(), torch.from_numpy(K).float(), cameras.width, cameras.height
        images.append(render(means, quats, *shape, torch.from_numpy(looks).float(), *seen))
    return Observations(torch.cat(images), cameras)


@pytest.fixture(scope="module")
def inputs() -> tuple[Observations, Observations, SurfaceSamples, ConstructConfig]:
    still = orbit_cameras(Orbit(frames=8, closed=False), PIXELS, PIXELS, moving=False)
    still = Cameras(still.camera_to_world, still.Ks, np.ones(8), PIXELS, PIXELS)  # when all of it is there
    surface = SurfaceSamples(*appearing().at(FRAMES - 1), pieces=appearing())
    return pictures(orbit_cameras(Orbit(frames=FRAMES), PIXELS, PIXELS, moving=True)), pictures(still), surface, TINY


def test_gaussians_go_along_with_their_tracks() -> None:
    tracks = make_tracks(appearing(), 200, FRAMES - 1, 0)
    motion = PlacedMotion(tracks, torch.device("cpu"))
    gaussians = at_points(tracks.at_home()[0])
    times = torch.linspace(0, 1, FRAMES)
    moved = motion.moved(times, gaussians)
    np.testing.assert_allclose(moved.means, tracks.means, atol=1e-6)
    np.testing.assert_array_equal(moved.presence.numpy(), tracks.there)
    np.testing.assert_allclose(moved.scales[:, :, 0] / gaussians.scales[:, 0], tracks.sizes, atol=1e-5)
    aside = at_points(tracks.at_home()[0] + np.float32([0, 0, 0.01]))
    beside = motion.moved(times, aside).means - moved.means
    np.testing.assert_allclose(beside[..., 2], 0.01 * tracks.sizes, atol=1e-6)  # none of them turns
    between = motion.moved((times[COMES - 1 : COMES] + times[COMES : COMES + 1]) / 2, gaussians)
    comes = ~tracks.there[0]
    np.testing.assert_allclose(between.presence[0, comes], 0.5, atol=1e-5)


def test_gradients_reach_the_gaussians() -> None:
    tracks = make_tracks(appearing(), 50, FRAMES - 1, 0)
    motion, gaussians = PlacedMotion(tracks, torch.device("cpu")), at_points(tracks.at_home()[0]).require_grad()
    moved = motion.moved(torch.tensor([0.3]), gaussians)
    (moved.means.sum() + moved.quats.sum() + moved.scales.sum() + gaussians.opacities_at(moved).sum()).backward()
    for tensor in (gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.opacity_logits):
        assert tensor.grad.abs().sum() > 0


def test_what_grows_and_comes_is_constructed(inputs, tmp_path: Path) -> None:
    stages, notes = [], []
    run = planned(tmp_path, on_progress=lambda progress: stages.append(progress.stage))
    run.note = notes.append
    clip = construct(*inputs, run)
    check_clip(clip)
    assert not notes
    assert isinstance(clip.motion, FrameMotion)
    comes = clip.means[:, 0] > 0.1
    assert (clip.motion.frame_opacities[:COMES, comes] == 0).all()
    assert clip.motion.frame_opacities[COMES:, comes].mean() > 0.5
    np.testing.assert_array_equal(clip.means, clip.motion.frame_means[0])
    grown = clip.motion.frame_scales[-1, ~comes] / clip.motion.frame_scales[0, ~comes]
    np.testing.assert_allclose(grown, 3, rtol=1e-3)
    views = [(azimuth, time) for azimuth in (45, 225) for time in range(FRAMES)]
    cameras = Cameras(
        np.stack([orbit_camera(azimuth, 20, 2.0) for azimuth, _ in views]),
        np.repeat(intrinsics(39.6, PIXELS, PIXELS)[None], len(views), axis=0),
        np.array([time / (FRAMES - 1) for _, time in views]),
        PIXELS,
        PIXELS,
    )
    error = (render_clip(clip, cameras) - pictures(cameras).images).square().mean()
    frozen = (render_clip(clip, cameras, frozen=True) - pictures(cameras).images).square().mean()
    assert error < 0.05 * frozen
    assert GUIDED not in stages
    assert stages.count(COARSE) <= 1  # nothing is fitted there


def test_a_fit_that_was_stopped_goes_on_to_the_same_result(inputs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("backend.splatting.checkpoint.INTERVAL", 0.0)
    monkeypatch.setattr("backend.splatting.checkpoint.MOST_TIME", math.inf)
    whole = arrays_of(construct(*inputs, planned(tmp_path / "whole")))
    for steps in (5, TINY.shape_steps + 4):
        with pytest.raises(JobCancelled):
            construct(*inputs, planned(tmp_path / "cut", is_cancelled=cancel_after(steps)))
    for name, array in arrays_of(construct(*inputs, planned(tmp_path / "cut"))).items():
        np.testing.assert_array_equal(array, whole[name])


def test_without_a_static_orbit(inputs, tmp_path: Path) -> None:
    moving, _, surface, config = inputs
    clip = construct(moving, None, surface, config, planned(tmp_path))
    assert (clip.motion.frame_opacities[0] == 0).any()


def test_a_deformation_field_takes_the_static_orbit_as_of_its_time(inputs, tmp_path: Path) -> None:
    """It finds its motion in the pictures, and these are no pictures of time 0."""
    moving, static, surface, config = inputs
    clip = construct(moving, static, surface, replace(config, motion="hexplane"), planned(tmp_path))
    check_clip(clip)
    assert clip.frame_count == FRAMES
