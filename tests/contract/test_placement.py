# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians that a matrix takes along: their covariances, and their colors from each side."""

import numpy as np
import pytest

from blender_addon.contract import rotations
from blender_addon.contract.clip import Gaussians
from blender_addon.contract.color import linear_to_srgb
from blender_addon.contract.placement import UP_AXES, placed, placed_sh
from blender_addon.contract.spherical_harmonics import C0, converted, sh_basis
from tests.contract.clips import random_clip

RANDOM = np.random.default_rng(1)
TURN = rotations.to_matrix(rotations.normalize(np.array([0.8, 0.3, -0.2, 0.45])))
LINEAR = {
    "turned": TURN,
    "scaled": 2.5 * TURN,
    "mirrored": 0.4 * TURN @ np.diag([1, -1, 1]),
    "stretched": TURN @ np.diag([1, 3, 0.2]),
    "sheared": TURN @ np.array([[1, 0.7, 0], [0, 1, 0], [0, 0, -2.0]]),
    **{axis: matrix[:3, :3] for axis, matrix in UP_AXES.items()},
}


def affine(linear: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, [0.4, -2, 1]
    return matrix


def covariances(moment: Gaussians) -> np.ndarray:  # [N, 3, 3]
    axes = rotations.to_matrix(moment.quats.astype(np.float64)) * moment.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def colors(sh: np.ndarray, directions: np.ndarray) -> np.ndarray:  # [N, K, 3], [P, 3] -> [N, P, 3]
    degree = round(sh.shape[1] ** 0.5) - 1
    basis = np.stack([np.full(len(directions), C0), *sh_basis(degree, *directions.T)], axis=-1)
    return 0.5 + np.einsum("pk,nkc->npc", basis, sh)


def some_directions() -> np.ndarray:  # [40, 3]
    directions = RANDOM.normal(size=(40, 3))
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", LINEAR)
def test_positions_and_covariances_go_along(kind) -> None:
    linear, moment = LINEAR[kind], random_clip(n=30).frame(0)
    there = placed(moment, affine(linear))
    np.testing.assert_allclose(there.means, moment.means @ linear.T + [0.4, -2, 1], atol=1e-5)
    expected = linear @ covariances(moment) @ linear.T
    np.testing.assert_allclose(covariances(there), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(there.quats, axis=-1), 1, atol=1e-6)
    assert (there.scales > 0).all()
    assert {array.dtype for array in vars(there).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", [kind for kind in LINEAR if kind not in ("stretched", "sheared")])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_colors_go_along(kind, degree) -> None:
    linear, sh = LINEAR[kind], random_clip(n=5, sh_degree=degree).sh
    turn = linear / np.cbrt(abs(np.linalg.det(linear)))
    directions = some_directions()
    seen = colors(placed_sh(sh, affine(linear)), directions @ turn.T)
    np.testing.assert_allclose(seen, colors(sh, directions), atol=1e-5)


def test_a_stretch_turns_colors_by_the_turn_in_it() -> None:
    sh = random_clip(n=5, sh_degree=2).sh
    both = placed_sh(sh, affine(TURN @ np.diag([1, 3, 0.2])))
    np.testing.assert_allclose(both, placed_sh(sh, affine(TURN)), atol=1e-5)


def test_y_up_and_y_down_differ_by_half_a_turn_about_z() -> None:
    np.testing.assert_array_equal(UP_AXES["Y"] @ [0, 0, 1, 0], [0, 1, 0, 0])  # up
    np.testing.assert_array_equal(UP_AXES["Y"] @ [0, -1, 0, 0], [0, 0, 1, 0])  # the front
    np.testing.assert_array_equal(np.diag([-1, -1, 1, 1]) @ UP_AXES["Y_DOWN"], UP_AXES["Y"])


def test_a_flat_matrix_is_refused() -> None:
    clip = random_clip()
    with pytest.raises(ValueError, match="one of the scales is 0"):
        placed(clip.frame(0), np.diag([1.0, 0, 1, 1]))
    with pytest.raises(ValueError, match="one of the scales is 0"):
        placed_sh(clip.sh, np.diag([1.0, 0, 1, 1]))


def test_quaternions_of_matrices() -> None:
    quats = rotations.normalize(RANDOM.normal(size=(500, 4)))
    halves = rotations.normalize(
        np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]], float)
    )
    for some in (quats, halves):
        again = rotations.from_matrix(rotations.to_matrix(some))
        np.testing.assert_allclose(rotations.same_side(again, some), some, atol=1e-7)


def test_colors_of_one_side_are_converted_exactly() -> None:
    sh = random_clip(n=50, sh_degree=0).sh
    there = converted(sh, "linear", "srgb")
    up = np.array([[0.0, 0, 1]])
    np.testing.assert_allclose(colors(there, up), linear_to_srgb(colors(sh, up)), atol=1e-5)
    bright = np.where(0.5 + C0 * sh < 0, -0.5 / C0, sh)
    np.testing.assert_allclose(converted(there, "srgb", "linear"), bright, atol=1e-4)
    assert converted(sh, "srgb", "srgb") is sh


def test_colors_that_depend_on_the_view_are_converted_nearly() -> None:
    sh = 0.15 * random_clip(n=50, sh_degree=2).sh
    there, directions = converted(sh, "linear", "srgb"), some_directions()
    assert np.abs(colors(there, directions) - linear_to_srgb(colors(sh, directions))).mean() < 0.005
