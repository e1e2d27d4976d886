# SPDX-License-Identifier: GPL-3.0-or-later
"""One outline becomes another one, and what need not move stays."""

import numpy as np
import pytest
from scipy import ndimage

from backend.pipelines.registration import registered

SIZE = 96
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]


def ellipse(row: float, column: float, high: float, wide: float) -> np.ndarray:
    return ((ROWS - row) / high) ** 2 + ((COLUMNS - column) / wide) ** 2 < 1


def bent(mask: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The mask where its pixels have gone to."""
    there = np.stack([ROWS, COLUMNS]) + shift
    found = np.zeros((SIZE, SIZE))
    for share in np.linspace(0, 1, 3):  # between the pixels, too
        at = np.rint(there[:, mask] + share * 0.5).astype(int).clip(0, SIZE - 1)
        found[tuple(at)] = 1
    return ndimage.binary_closing(found, iterations=2)


def test_the_same_outline_stays():
    mask = ellipse(48, 48, 20, 30)
    assert np.abs(registered(mask, mask)).max() < 1e-3


@pytest.mark.parametrize("wanted", [ellipse(50, 46, 24, 27), ellipse(46, 52, 17, 33)], ids=["rounder", "longer"])
def test_an_ellipse_becomes_another(wanted):
    mask = ellipse(48, 48, 20, 30)
    shift = registered(mask, wanted)
    made = bent(mask, shift)
    assert (made & wanted).sum() / (made | wanted).sum() > 0.95 > (mask & wanted).sum() / (mask | wanted).sum()


def test_a_leg_goes_to_where_it_is():
    """And the body above it stays where it is."""
    body = ellipse(30, 48, 12, 30)
    mask, wanted = body.copy(), body.copy()
    mask[30:70, 40:46] = True
    wanted[30:70, 46:52] = True
    shift = registered(mask, wanted)
    assert shift[1, 50:65, 42:44].mean() == pytest.approx(6, abs=1.5)
    assert np.abs(shift[:, 20:28, 60:70]).max() < 1


@pytest.mark.parametrize("at", [(0, 0), (SIZE - 20, SIZE - 20)])
def test_outlines_at_the_edge_of_the_picture(at):
    mask, wanted = np.zeros((2, SIZE, SIZE), bool)
    mask[at[0] : at[0] + 20, at[1] : at[1] + 20] = True
    wanted[at[0] : at[0] + 20, at[1] : at[1] + 14] = True
    shift = registered(mask, wanted)
    assert np.isfinite(shift).all()
    assert np.abs(shift).max() < 12
