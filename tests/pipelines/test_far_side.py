# SPDX-License-Identifier: GPL-3.0-or-later
"""The far side of pictures: what reaches their edges goes on there, and what does not is seen from the front alone."""

import numpy as np
import pytest

from backend.pipelines.far_side import far_side

SIZE = 64
HAIR, SKIN, WHITE, BLACK = np.float32([[0.4, 0.2, 0.1], [0.9, 0.7, 0.6], [1, 1, 1], [0, 0, 0]])


def disc(radius: float) -> np.ndarray:  # [SIZE, SIZE] bool
    line = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    return line[:, None] ** 2 + line**2 < radius**2


def picture(colors: np.ndarray) -> np.ndarray:  # [SIZE, SIZE, 3] -> [SIZE, SIZE, 4]: a round subject, its edge soft
    alpha = np.where(disc(0.8), 1, np.where(disc(0.84), 0.5, 0)).astype(np.float32)[..., None]
    return np.concatenate([colors * alpha, alpha], -1)


def test_a_face_is_not_on_the_back_of_the_head():
    shown = np.where(disc(0.5)[..., None], SKIN, HAIR)
    shown[28:32, 28:32] = BLACK
    far = far_side(picture(shown), mirrored=False)[disc(0.8)]
    np.testing.assert_allclose(far, np.broadcast_to(HAIR, far.shape), atol=1e-5)


def test_stripes_go_round():
    shown = np.where((np.arange(SIZE) // 8 % 2 == 0)[:, None, None], WHITE, BLACK) + np.zeros((SIZE, SIZE, 3))
    far = far_side(picture(shown.astype(np.float32)), mirrored=False)
    middles = np.arange(20, 48, 8)
    np.testing.assert_allclose(far[middles, 32], shown[middles, 32], atol=0.02)


def test_what_goes_round_is_found_past_what_hangs_before_it():
    """A coat between arms of another color, which are nearer than its shoulders."""
    shown = np.tile(HAIR, (SIZE, SIZE, 1))
    shown[20:, :24], shown[20:, 40:] = SKIN, SKIN
    far = far_side(picture(shown), mirrored=False)
    np.testing.assert_allclose(far[40, 32], HAIR, atol=0.02)
    np.testing.assert_allclose(far[40, 16], SKIN, atol=0.02)


def test_a_mirrored_one_is_as_the_near_side():
    shown = np.where(disc(0.5)[..., None], SKIN, HAIR)
    far = far_side(picture(shown), mirrored=True)
    np.testing.assert_allclose(far[disc(0.84)], shown[disc(0.84)], atol=1e-6)


@pytest.mark.parametrize("pixels", [0, 1])
def test_of_hardly_anything_there_is_a_far_side(pixels):
    given = np.zeros((SIZE, SIZE, 4), np.float32)
    given[30 : 30 + pixels, 30] = 1
    far = far_side(given, mirrored=False)
    assert far.dtype == np.float32
    np.testing.assert_array_equal(far[given[..., 3] > 0], 1.0)
