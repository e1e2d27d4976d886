# SPDX-License-Identifier: GPL-3.0-or-later
"""Code points of H.273 against published values."""

import numpy as np
import pytest

from backend.video.color import BT2020, HLG, LINEAR, P3_D65, PQ, decode, is_srgb, to_srgb

BT709 = 1


def test_what_is_srgb_stays_as_it_is():
    ramp = np.linspace(0, 1, 50)[:, None].repeat(3, 1)
    assert is_srgb(1, 1)
    assert is_srgb(2, 2)
    assert to_srgb(ramp, 13, BT709) == pytest.approx(ramp, abs=1e-4)


def test_pq_has_white_at_203_nits():  # ITU-R BT.2408: 58 % of the signal
    assert decode(np.array([0.58]), PQ)[0] * 203 == pytest.approx(203, rel=0.02)
    assert decode(np.array([1.0]), PQ)[0] * 203 == pytest.approx(10_000, rel=1e-3)
    assert decode(np.array([0.0]), PQ)[0] == pytest.approx(0, abs=1e-6)


def test_hlg_has_white_at_three_quarters():  # ITU-R BT.2408: 75 % of the signal is 203 cd/m2 on a display of 1,000
    white = decode(np.full((1, 3), 0.75), HLG)
    assert white[0] == pytest.approx([1, 1, 1], rel=0.02)
    assert decode(np.full((1, 3), 1.0), HLG)[0, 0] * 203 == pytest.approx(1000, rel=0.01)


def test_linear_light():
    assert to_srgb(np.full((1, 3), 0.2140), LINEAR, BT709)[0] == pytest.approx([0.5] * 3, abs=1e-3)


@pytest.mark.parametrize("primaries", [BT2020, P3_D65])
def test_gray_stays_gray_and_colors_grow_stronger(primaries):
    gray = np.array([[0.25] * 3, [0.5] * 3, [1.0] * 3])
    assert to_srgb(gray, 1, primaries) == pytest.approx(gray, abs=2e-3)
    red = to_srgb(np.array([[0.7, 0.3, 0.3]]), 1, primaries)[0]
    assert red[0] > 0.7
    assert red[1] < 0.3
    assert not is_srgb(1, primaries)
