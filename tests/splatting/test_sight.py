# SPDX-License-Identifier: GPL-3.0-or-later
"""What cameras see of points: places in the picture, and who hides whom."""

import numpy as np
import torch

from backend.splatting.sight import project, seen_in, unhidden
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera


def test_projection_agrees_with_the_camera() -> None:
    camera = orbit_camera(0, 0, 2.0)  # at -Y: x is right, z is up
    cameras = Cameras(camera[None], intrinsics(39.6, 100, 80)[None], np.zeros(1), 100, 80)
    points = np.array([[0, 0, 0], [0.2, 0, 0.1], [0, -3, 0], [5, 0, 0]])
    pixels, depth, inside = project(points, cameras.viewmats()[0], cameras.Ks[0], 100, 80)
    focal = cameras.Ks[0, 0, 0]
    np.testing.assert_allclose(depth, [2, 2, -1, 2], atol=1e-12)
    assert inside.tolist() == [True, True, False, False]
    assert pixels[0].tolist() == [50, 40]
    assert pixels[1].tolist() == [int(50 + 0.1 * focal), int(40 - 0.05 * focal)]


def test_nearer_points_hide_those_behind_them() -> None:
    cells = torch.tensor([[0, 0, 0, 7, 7], [0, 1, 2, 3, 4]])
    depth = torch.tensor([[1.0, 1.04, 1.2, 3.0, torch.inf]] * 2)
    assert unhidden(cells, depth, 0.05).tolist() == [[True, True, False, True, False], [True, True, True, True, False]]


def test_a_camera_sees_the_near_side_of_a_sphere() -> None:
    points = np.random.default_rng(0).normal(size=(20_000, 3))
    points *= 0.4 / np.linalg.norm(points, axis=1, keepdims=True)
    camera = orbit_camera(0, 0, 2.0)  # at -Y
    cameras = Cameras(camera[None], intrinsics(39.6, 90, 60)[None], np.zeros(1), 90, 60)
    found = project(points, cameras.viewmats()[0], cameras.Ks[0], 90, 60)
    seen = seen_in(*found, cell=3.0, tolerance=0.1)
    assert seen[points[:, 1] < -0.3].all()
    assert not seen[points[:, 1] > 0.2].any()


def test_what_lies_outside_the_picture_is_not_seen_and_hides_nothing() -> None:
    pixels, depth = np.array([[0, 5], [0, 5], [1, 5]]), np.array([1.0, 2.0, 2.0])
    assert seen_in(pixels, depth, np.array([False, True, True]), 4.0, 0.05).tolist() == [False, True, True]
    assert not seen_in(pixels, depth, np.zeros(3, bool), 4.0, 0.05).any()
