# SPDX-License-Identifier: GPL-3.0-or-later
"""Which splats touch which tile of the picture, front to back, as one list for all tiles of all images.

Tiles of all images are numbered through: tile = image * tiles per image + row * tiles per row + column. The list is in
CSR form: tile t has the entries offsets[t] to offsets[t + 1]. A splat is listed only where its ellipse, not just the
box round it, comes into the tile (as in Hanson et al., "Speedy-Splat", 2025).
"""

import numpy as np
from numba import njit

from backend.compiled import kernel
from backend.splatting.rasterize.layout import (
    EXTENT_X,
    EXTENT_Y,
    LEAN,
    MEAN_X,
    MEAN_Y,
    SHARP_X,
    SHARP_Y,
    TILE_HEIGHT,
    TILE_WIDTH,
)

F = np.float32
ZERO, HALF, ONE = F(0), F(0.5), F(1)
GROWTH = F(1.001)  # of an ellipse, so that rounding cannot leave a pixel out
WIDE, HIGH = F(TILE_WIDTH), F(TILE_HEIGHT)
RADIX_BITS = 11  # three passes cover the 32 bits of a depth


@njit(inline="always")
def reach_x(splat):
    """Half the width of a splat's ellipse in the row of pixels through its center."""
    return GROWTH * splat[EXTENT_Y] * np.sqrt(splat[SHARP_Y] / splat[SHARP_X])


@njit(inline="always")
def _cell(pixel, side, cells):
    """The tile of a pixel, along one axis, from 0 to `cells`."""
    return int(min(max(np.floor(pixel / side), ZERO), F(cells)))


@njit(inline="always")
def _tile_rows(splat, rows):
    """The rows of tiles that a splat touches: first and end."""
    y, ey = splat[MEAN_Y] - HALF, GROWTH * splat[EXTENT_Y]
    return _cell(np.ceil(y - ey), HIGH, rows), _cell(np.floor(y + ey) + HIGH, HIGH, rows)


@njit(inline="always")
def _tile_columns(splat, columns):
    """The columns of tiles that the box round a splat touches: first and end."""
    x, ex = splat[MEAN_X] - HALF, GROWTH * splat[EXTENT_X]
    return _cell(np.ceil(x - ex), WIDE, columns), _cell(np.floor(x + ex) + WIDE, WIDE, columns)


@njit(inline="always")
def _exact_columns(splat, row, columns):
    """The columns of tiles that a splat touches in one row of tiles: first and end."""
    x, ey, lean, reach = splat[MEAN_X] - HALF, GROWTH * splat[EXTENT_Y], splat[LEAN], reach_x(splat)
    low = F(row * TILE_HEIGHT) + HALF - splat[MEAN_Y]
    low, high = max(low, -ey), min(low + HIGH - ONE, ey)
    if low > high:
        return 0, 0
    turn = lean * ey * ey / (GROWTH * splat[EXTENT_X])  # the height at which the ellipse reaches farthest to the right
    left, right = min(max(-turn, low), high), min(max(turn, low), high)
    first = x + lean * left - reach * np.sqrt(max(ONE - (left / ey) ** 2, ZERO))
    last = x + lean * right + reach * np.sqrt(max(ONE - (right / ey) ** 2, ZERO))
    return _cell(np.ceil(first), WIDE, columns), _cell(np.floor(last) + WIDE, WIDE, columns)


@kernel("void(float32[:,::1], uint32[:,::1], int64, int64, int64, int64, int64, int32[:,::1], int32[::1], int64[::1])")
def sort_and_count(
    splats,  # [I * N, columns]
    splat_bits,  # the same memory as uint32
    count,  # N
    columns,  # tiles per row
    rows,
    start,  # images [start, stop)
    stop,
    order,  # [I, N] out: visible splats of each image, front to back; equal depths in their order of input
    visible,  # [I] out: how many they are
    counts,  # [I * tiles] zeros; out: splats per tile
):
    """Order the visible splats of some images by depth (radix sort: positive floats order like their bits)."""
    depth = splats.shape[1] - 1
    spare = np.empty(count, np.int32)
    histogram = np.empty(1 << RADIX_BITS, np.int64)
    mask = np.uint32((1 << RADIX_BITS) - 1)
    for image in range(start, stop):
        here, there = spare, order[image]  # three passes end in `order`
        found = 0
        for s in range(image * count, (image + 1) * count):
            if splats[s, EXTENT_X] >= ZERO:
                here[found] = s
                found += 1
                splat = splats[s]
                y0, y1 = _tile_rows(splat, rows)
                x0, x1 = _tile_columns(splat, columns)
                exact = y1 - y0 > 1 and x1 - x0 > 1
                for y in range(y0, y1):
                    if exact:
                        x0, x1 = _exact_columns(splat, y, columns)
                    for x in range(x0, x1):
                        counts[(image * rows + y) * columns + x] += 1
        visible[image] = found
        for shift in (0, RADIX_BITS, 2 * RADIX_BITS):
            histogram[:] = 0
            for k in range(found):
                histogram[(splat_bits[here[k], depth] >> np.uint32(shift)) & mask] += 1
            total = 0
            for digit in range(histogram.shape[0]):
                size = histogram[digit]
                histogram[digit] = total
                total += size
            for k in range(found):
                digit = (splat_bits[here[k], depth] >> np.uint32(shift)) & mask
                there[histogram[digit]] = here[k]
                histogram[digit] += 1
            here, there = there, here


@kernel("void(float32[:,::1], int64, int64, int64, int64, int32[:,::1], int32[::1], int64[::1], int32[::1])")
def fill(
    splats,  # [I * N, columns]
    columns,
    rows,
    start,  # images [start, stop)
    stop,
    order,  # [I, N]
    visible,  # [I]
    offsets,  # [I * tiles + 1]
    entries,  # [offsets[-1]] out: splats of each tile, front to back
):
    """Write the tiles' lists of some images."""
    tiles = columns * rows
    for image in range(start, stop):
        cursor = offsets[image * tiles : (image + 1) * tiles].copy()
        for k in range(visible[image]):
            s = order[image, k]
            splat = splats[s]
            y0, y1 = _tile_rows(splat, rows)
            x0, x1 = _tile_columns(splat, columns)
            exact = y1 - y0 > 1 and x1 - x0 > 1
            for y in range(y0, y1):
                if exact:
                    x0, x1 = _exact_columns(splat, y, columns)
                for x in range(x0, x1):
                    tile = y * columns + x
                    entries[cursor[tile]] = s
                    cursor[tile] += 1


@kernel("void(float32[:,::1], int32[::1], int64, int64, float32[:,::1])")
def scatter(
    entry_gradients,  # [entries, 6 + channels]
    entries,
    start,  # entries [start, stop): those of whole images
    stop,
    splat_gradients,  # [I * N, 6 + channels] zeros; out
):
    """Sum the gradients of each splat over its tiles, in the order of the list, so that the sum is always the same."""
    for k in range(start, stop):
        s = entries[k]
        for column in range(entry_gradients.shape[1]):
            splat_gradients[s, column] += entry_gradients[k, column]
