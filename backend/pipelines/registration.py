# SPDX-License-Identifier: GPL-3.0-or-later
"""How one outline becomes another one: where each of its pixels has to go.

Demons (Thirion, "Image matching as a diffusion process", 1998) on distances from the edge, so that what lies along an
edge goes to the nearest place of the other edge, and all between goes along smoothly.
"""

import numpy as np
from numba import njit
from scipy import ndimage

from backend.compiled import kernel

ROUNDS = ((60, 3.0), (60, 2.0), (80, 1.2))  # how many, and how stiff: pixels, over which shifts are smoothed
PULL = 2.0  # pixels, over which what pulls at them is smoothed
FARTHEST = 14.0  # pixels from an edge, that count
MARGIN = 24  # pixels round both outlines; beyond, nothing moves


def registered(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:  # [H, W] bool, twice -> [2, H, W] float32
    """How many rows and columns each pixel of an outline has to go for it to become a wanted one."""
    shift = np.zeros((2, *known.shape), np.float32)
    places = np.argwhere(known | wanted)
    low, high = np.maximum(places.min(0) - MARGIN, 0), places.max(0) + 1 + MARGIN
    part = slice(low[0], high[0]), slice(low[1], high[1])
    here, there = (np.ascontiguousarray(_distances(mask)[part], np.float32) for mask in (known, wanted))
    slopes = np.stack(np.gradient(there))
    found = np.zeros_like(slopes)
    for count, stiff in ROUNDS:
        _demons(here, there, slopes, found, count, _taps(PULL), _taps(stiff))
    shift[:, *part] = found
    return shift


def _distances(mask: np.ndarray) -> np.ndarray:
    """How far each pixel is from the edge, negative outside."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return (inside - outside).clip(-FARTHEST, FARTHEST)


def _taps(sigma: float) -> np.ndarray:  # [2 n + 1] float32
    """Weights of a Gaussian filter."""
    reach = np.arange(-int(3 * sigma + 0.5), int(3 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * np.square(reach / sigma))
    return (weights / weights.sum()).astype(np.float32)


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[:,:,::1], float32[:,:,::1], int64, float32[::1], float32[::1])",
    fastmath=True,
)
def _demons(here, there, slopes, shift, count, pull_taps, stiff_taps):
    """Go on with `shift` [2, H, W] for so many rounds."""
    height, width = here.shape
    down_slope, across_slope = slopes[0], slopes[1]
    pull = np.empty((2, height, width), np.float32)
    spare = np.empty((height, width + len(pull_taps) + len(stiff_taps)), np.float32)
    bottom, right = np.float32(height - 1), np.float32(width - 1)
    for _ in range(count):
        for y in range(height):
            for x in range(width):
                row = min(max(y + shift[0, y, x], np.float32(0)), bottom)
                column = min(max(x + shift[1, y, x], np.float32(0)), right)
                i, j = min(int(row), height - 2), min(int(column), width - 2)
                v, u = row - i, column - j
                a, b, c, d = (1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u
                found = a * there[i, j] + b * there[i, j + 1] + c * there[i + 1, j] + d * there[i + 1, j + 1]
                off = here[y, x] - found
                if off == 0:  # as it is nearly everywhere: both are as far from an edge as counts
                    pull[0, y, x] = pull[1, y, x] = 0
                    continue
                s, t = down_slope, across_slope
                down = a * s[i, j] + b * s[i, j + 1] + c * s[i + 1, j] + d * s[i + 1, j + 1]
                across = a * t[i, j] + b * t[i, j + 1] + c * t[i + 1, j] + d * t[i + 1, j + 1]
                near = np.exp(-min(abs(here[y, x]), abs(found)) / np.float32(5))
                push = near * off / (down * down + across * across + off * off / 8 + np.float32(1e-3))
                pull[0, y, x], pull[1, y, x] = push * down, push * across
        for k in range(2):
            _smooth(pull[k], pull_taps, spare)
            shift[k] += np.float32(0.7) * pull[k]
            _smooth(shift[k], stiff_taps, spare)


@njit(fastmath=True)
def _smooth(field, taps, spare):
    """Filter a field [H, W] along both axes, in place; beyond its edges it goes on as there."""
    height, width = field.shape
    reach = len(taps) // 2
    for y in range(height):
        for x in range(width):
            spare[y, x + reach] = 0
        for k in range(len(taps)):
            source, tap = min(max(y + k - reach, 0), height - 1), taps[k]
            for x in range(width):
                spare[y, x + reach] += tap * field[source, x]
        for x in range(reach):
            spare[y, x], spare[y, width + reach + x] = spare[y, reach], spare[y, width + reach - 1]
    for y in range(height):
        for x in range(width):
            field[y, x] = 0
        for k in range(len(taps)):
            tap = taps[k]
            for x in range(width):
                field[y, x] += tap * spare[y, x + k]
