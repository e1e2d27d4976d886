# SPDX-License-Identifier: GPL-3.0-or-later
"""Inflated pictures: right from the front, round from the side, mirrored from behind."""

import numpy as np
import pytest

from backend.models.inflation import inflated_views, thickness
from blender_addon.contract.orbit import orbit_camera

SIZE, DISTANCE, FOV = 64, 1.1, 45.0


def disc(radius: float, middle: float = 0.0) -> np.ndarray:  # [SIZE, SIZE, 4] premultiplied
    line = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    mask = line[:, None] ** 2 + (line[None, :] - middle) ** 2 < radius**2
    return (mask[..., None] * np.array([0.9, 0.2, 0.1, 1.0])).astype(np.float32)


def looks(picture: np.ndarray, *azimuths: float) -> np.ndarray:  # [V, SIZE, SIZE, 4]
    poses = np.stack([orbit_camera(azimuth, 0.0, DISTANCE) for azimuth in azimuths])
    return inflated_views(picture[None], poses, DISTANCE, FOV)[0]


def test_a_disc_becomes_nearly_a_ball():
    depth = thickness(disc(0.4)[..., 3] > 0.5)
    pixels = 0.4 * SIZE / 2
    assert depth.max() == pytest.approx(pixels * (3 / 4) ** 0.5, rel=0.05)  # Poisson: sqrt(3 / 4 (R^2 - r^2))
    assert depth[0, 0] == 0


def test_the_front_is_the_picture_itself():
    picture = disc(0.4)
    front, side = looks(picture, 0, 90)
    wrong = (front[..., 3] > 0.5) != (picture[..., 3] > 0.5)
    assert wrong.mean() < 0.01
    np.testing.assert_allclose(front[32, 32], picture[32, 32], atol=1e-6)
    assert 0.5 < side[..., 3].sum() / picture[..., 3].sum() < 1.0  # round from the side too, and a little flatter


def test_the_far_side_has_its_own_color():
    picture, blue = disc(0.4), np.tile(np.float32([0, 0, 1]), (1, SIZE, SIZE, 1))
    poses = np.stack([orbit_camera(azimuth, 0.0, DISTANCE) for azimuth in (0, 90, 180)])
    front, side, back = inflated_views(picture[None], poses, DISTANCE, FOV, far=blue)[0]
    np.testing.assert_allclose(front[32, 32], picture[32, 32], atol=1e-6)
    np.testing.assert_allclose(back[32, 32], (0, 0, 1, 1), atol=1e-6)
    assert 0.4 < (side[..., 2] > 0.5).sum() / side[..., 3].sum() < 0.6


def test_sides_stand_where_the_cameras_say():
    picture = disc(0.2, middle=0.5)  # on the first camera's right
    back = looks(picture, 180)[0]
    columns = np.flatnonzero(back[..., 3].any(axis=0))
    assert columns.mean() < 0.4 * SIZE  # from behind, on the left
    side = looks(picture, 90)[0]  # on the subject's right, which comes nearer: larger
    columns = np.flatnonzero(side[..., 3].any(axis=0))
    assert abs(columns.mean() - SIZE / 2) < 3
    assert np.ptp(columns) > np.ptp(np.flatnonzero(looks(disc(0.2), 90)[0][..., 3].any(axis=0)))


def test_a_line_of_one_pixel_is_seen_from_all_sides():
    picture = np.zeros((SIZE, SIZE, 4), np.float32)
    picture[10:50, 30] = (0.5, 0.5, 0.5, 1)
    for view in looks(picture, 0, 90, 180, 270):
        assert view[..., 3].sum() > 30


def test_of_nothing_nothing_is_seen():
    assert not looks(np.zeros((SIZE, SIZE, 4), np.float32), 0, 45).any()
