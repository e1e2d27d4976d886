# SPDX-License-Identifier: GPL-3.0-or-later
"""Scene flow of an orbit as construction takes it: which pictures are compared, and in which axes the answer is."""

import numpy as np
import pytest
import torch

from backend.pipelines import scene_flow
from backend.progress import JobCancelled
from backend.splatting.observations import Observations, joined
from blender_addon.contract.orbit import Cameras, Orbit, further_cameras, joined_cameras, orbit_camera, orbit_cameras


class Stand(torch.nn.Module):
    """A network that believes that all moves by its colour: red along the camera's right, of near and far pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, moving, near, far, poses, times):
        self.seen.append((moving, near, far, poses, times))
        local = moving.new_zeros(*moving.shape[:2], 2, 3, *moving.shape[3:])
        local[:, :, 0, 0], local[:, :, 1, 0] = near[:, :, 0], far[:, :, 0]
        # Mirrored pictures come with mirrored poses: what goes right there goes left here.
        local[1] = -local[1]
        flow = torch.einsum("btij,btsjhw->btsihw", poses[..., :3, :3], local)
        return flow, flow.new_full((*flow.shape[:3], 1, *flow.shape[4:]), 0.02)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Stand:
    network = Stand()
    monkeypatch.setattr(scene_flow, "load", lambda device=None: network.to(device or "cpu"))
    return network


def orbit(moving: bool, pixels: int = 96, frames: int = 8) -> Observations:
    cameras = orbit_cameras(Orbit(frames=frames), pixels, pixels, moving=moving)
    images = torch.rand(frames, pixels, pixels, 4, generator=torch.Generator().manual_seed(int(moving)))
    images[..., 3] = 1
    return Observations(images, cameras)


def test_near_and_far_pictures_are_told_apart_and_answers_are_unmirrored(network: Stand) -> None:
    moving, static = orbit(True), orbit(False)
    flow = scene_flow.observe_scene_flow(moving, static)
    assert flow.flow.shape == (16, 64, 64, 3)
    [(_given, near, far, _poses, times)] = network.seen
    torch.testing.assert_close(times[0], moving.times)
    small = torch.nn.functional.interpolate(static.images.permute(0, 3, 1, 2), (64, 64), mode="area")
    torch.testing.assert_close(near[0], small)
    torch.testing.assert_close(near[1], small.flip(-1))
    opposite = scene_flow.opposite_views(moving.cameras.camera_to_world, static.cameras.camera_to_world)
    torch.testing.assert_close(far[0], small[opposite].flip(-1))
    # The mean of both mirror images is what the stand-in says of the picture as it is, in world axes.
    right = torch.from_numpy(moving.cameras.camera_to_world[:, :3, 0]).float()
    expected = small[:, 0, ..., None] * right[:, None, None]
    torch.testing.assert_close(flow.flow[:8], expected, atol=1e-5, rtol=1e-4)
    expected = small[opposite][:, 0, ..., None] * right[:, None, None]
    torch.testing.assert_close(flow.flow[8:], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(flow.viewmats[8:], static.viewmats[opposite])


def test_other_scales_come_to_the_one_that_was_learned(network: Stand) -> None:
    cameras = orbit_cameras(Orbit(frames=8, distance=4.0), 80, 40, moving=True)
    still = orbit_cameras(Orbit(frames=8, distance=4.0), 80, 40, moving=False)
    images = torch.rand(8, 40, 80, 4)
    flow = scene_flow.observe_scene_flow(Observations(images, cameras), Observations(images, still))
    usual = scene_flow.observe_scene_flow(orbit(True), orbit(False))
    per_unit = [float(each.Ks[0, 0, 0]) / distance for each, distance in ((flow, 4.0), (usual, 2.0))]
    assert per_unit[0] == pytest.approx(per_unit[1], rel=0.02)
    torch.testing.assert_close(flow.Ks[:, :2, 2], usual.Ks[:, :2, 2], atol=1.0, rtol=0)


def test_still_views_from_farther_away_change_nothing(network: Stand) -> None:
    """As those from above and below of a wide subject are: they would change the scale of all, or be taken for far."""
    moving, static = orbit(True), orbit(False)
    wanted = scene_flow.observe_scene_flow(moving, static)
    above = further_cameras(Orbit(distance=3.0), 96, 96)
    away = orbit_cameras(Orbit(frames=8, distance=3.0, azimuth_start=180 - 360 / 14), 96, 96, moving=False)
    cameras = joined_cameras([above, away])
    others = Observations(torch.ones(len(cameras.times), 96, 96, 4), cameras)
    found = scene_flow.observe_scene_flow(moving, joined([static, others]))
    for name, value in vars(wanted).items():
        torch.testing.assert_close(getattr(found, name), value)


def test_a_long_orbit_can_be_cancelled_between_its_parts(network: Stand) -> None:
    asked = []

    def check() -> None:
        asked.append(True)
        if len(asked) == 2:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        scene_flow.observe_scene_flow(orbit(True, 16, 60), orbit(False, 16, 60), check=check)
    assert len(network.seen) == 1  # of three


def test_nothing_is_said_where_there_is_nothing_to_compare(network: Stand) -> None:
    moving, static = orbit(True), orbit(False)
    assert scene_flow.observe_scene_flow(moving, None) is None
    aside = Cameras(
        np.stack([orbit_camera(azimuth, 30, 2.0) for azimuth in range(8)]),
        static.cameras.Ks, static.cameras.times, 96, 96,
    )  # fmt: skip
    assert scene_flow.observe_scene_flow(moving, Observations(static.images, aside)) is None
    assert network.seen == []


def test_several_pictures_of_a_time_go_into_chains_and_long_ones_are_dealt_out() -> None:
    times = np.repeat(np.arange(5) / 4, 2)
    poses = np.stack([orbit_camera(azimuth, 0, 2.0) for azimuth in [10, 100] * 5])
    chains = scene_flow._chains(times, poses)
    assert [chain.tolist() for chain in chains] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    long = scene_flow._chains(np.arange(48) / 47, np.stack([orbit_camera(a, 0, 2.0) for a in range(48)]))
    assert [len(chain) for chain in long] == [24, 24]
    assert sorted(np.concatenate(long).tolist()) == list(range(48))


def test_the_network_may_be_on_a_card_that_the_rest_is_not_on(card, network: Stand) -> None:
    moving, static = orbit(True), orbit(False)
    wanted = scene_flow.observe_scene_flow(moving, static, "cpu")
    found = scene_flow.observe_scene_flow(moving, static, "cuda")
    assert network.unused.is_cuda
    for name, value in vars(wanted).items():
        torch.testing.assert_close(getattr(found, name), value)
