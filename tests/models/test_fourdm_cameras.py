# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras of 4DM: numbers of the public code, and our orbits in its world."""

import pytest
import torch

from backend.models.fourdm_cameras import condition, from_orbit, with_pixel_view
from blender_addon.contract.orbit import Orbit
from tests import golden
from tests.models.fourdm_small import ring, tensors

EXACT = {"atol": 1e-6, "rtol": 0}


CALLS = [
    call
    for call in golden.facts("fourdm/cases")["cameras"]
    if call["blender_axes"] and call["azimuth_span_deg"] == 360  # of the other axes and arcs our orbits are none
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["key"])
def test_rings(call: dict) -> None:
    cameras = ring(call["num_views"], call["elevation_deg"], call["azimuth_start_deg"])
    if call["extra_zero_row"]:
        cameras = with_pixel_view(cameras)
    torch.testing.assert_close(cameras, tensors("cameras")[call["key"]], **EXACT)


def test_only_positions_are_scaled_and_the_argument_stays() -> None:
    given = tensors("cameras")["normalize_in"].clone()
    out = condition(given)
    torch.testing.assert_close(out, tensors("cameras")["normalize_out"], **EXACT)
    assert torch.equal(given, tensors("cameras")["normalize_in"])
    assert torch.equal(out.view(-1, 4, 4)[:, :3, :3], given[:, :3, :3])
    assert condition(torch.eye(4)).isfinite().all()  # a camera in the origin


@pytest.mark.parametrize("case", ["train_cam_relradius0", "train_cam_relradius1"])
def test_cameras_of_the_optimisation(case: str) -> None:
    wanted = {name.removeprefix(f"{case}_"): value for name, value in tensors("cameras").items() if case in name}
    torch.testing.assert_close(condition(wanted["c2w"]), wanted["cond16"], **EXACT)
    # Their azimuth 0 is the front, which a ring has at 90.
    for azimuth, elevation, row in zip(wanted["azimuth"], wanted["elevation"], wanted["cond16"], strict=True):
        torch.testing.assert_close(ring(1, elevation.item(), azimuth.item() + 90)[0], row, **EXACT)


@pytest.mark.parametrize("elevation", [0.0, 5.0, -20.0])
def test_our_front_is_their_front(elevation: float) -> None:
    ours = torch.tensor(Orbit(4, elevation=elevation, distance=2.0, closed=False).camera_to_world())
    assert from_orbit(ours)[0].view(4, 4)[0, 3] == pytest.approx(torch.tensor(elevation).deg2rad().cos().item())
