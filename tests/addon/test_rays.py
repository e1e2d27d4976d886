# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside or outside of closed surfaces, against balls and cubes, where that is known."""

import numpy as np
import pytest

from blender_addon import rays

SIDES = 40


def ball(radius: float, middle=(0.0, 0.0, 0.0)) -> np.ndarray:  # [F, 3, 3]
    """A ball of triangles: its corners lie on it."""
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, SIDES + 1), np.linspace(0, 2 * np.pi, SIDES + 1), indexing="ij")
    azimuth[:, -1] = 0  # exactly, so that the seam is closed
    places = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1)
    places[[0, -1], :, :2] = 0
    a, b, c, d = places[:-1, :-1], places[1:, :-1], places[1:, 1:], places[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -2), np.stack([a, c, d], -2)]).reshape(-1, 3, 3)
    return radius * faces + np.array(middle)


def cube() -> np.ndarray:
    """From -1 to 1 along each axis."""
    faces = []
    for axis in range(3):
        for side in (-1, 1):
            corners = np.insert(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]), axis, side, axis=1)
            faces += [corners[[0, 1, 2]], corners[[0, 2, 3]]]
    return np.array(faces, np.float64)


@pytest.fixture
def places() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.3, 1.3, (20_000, 3)).astype(np.float32)


@pytest.mark.parametrize("at_once", [rays._AT_ONCE, 100])
def test_balls_one_in_the_other(places, at_once, monkeypatch) -> None:
    """What is hollow is outside again. It does not matter how many pairs are looked at together."""
    monkeypatch.setattr(rays, "_AT_ONCE", at_once)
    places = places[:: 1 if at_once > 100 else 20]
    inside = rays.inside_test(np.concatenate([ball(1.0), ball(0.5)]))(places)
    away = np.linalg.norm(places, axis=1)
    clear = np.minimum(np.abs(away - 1), np.abs(away - 0.5)) > 0.01  # of the faces, which are flat
    assert clear.mean() > 0.9
    assert np.array_equal(inside[clear], ((away < 1) & (away > 0.5))[clear])


def test_a_cube_and_places_in_line_with_its_edges() -> None:
    places = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 13)] * 3), -1).reshape(-1, 3)
    clear = np.all(np.abs(np.abs(places) - 1) > 1e-6, axis=1)
    assert np.array_equal(rays.inside_test(cube())(places)[clear], np.all(np.abs(places) < 1, axis=1)[clear])


def test_no_places_and_none_near() -> None:
    test = rays.inside_test(ball(1.0))
    assert test(np.empty((0, 3))).shape == (0,)
    assert not test(np.full((3, 3), 7.0)).any()
    assert not rays.inside_test(0 * ball(1.0))(np.zeros((1, 3))).any()  # it has shrunk to a point


def test_closed_or_open() -> None:
    """A seam, where corners are there twice, is no hole; a missing face is one."""
    assert rays.is_closed(ball(1.0))
    assert rays.is_closed(cube())
    assert not rays.is_closed(cube()[1:])
    assert not rays.is_closed(np.empty((0, 3, 3)))
