# SPDX-License-Identifier: GPL-3.0-or-later
"""Which splats touch which tile of the picture, front to back, as one list for all tiles of all images.

Tiles of all images are numbered through: tile = image * tiles per image + row * tiles per row + column. The list is in
CSR form: tile t has the entries offsets[t] to offsets[t + 1].
"""

import numpy as np
from numba import njit

from backend.splatting.rasterize.compiled import kernel
from backend.splatting.rasterize.layout import DEPTH, EXTENT_X, EXTENT_Y, GRADIENT_COLUMNS, MEAN_X, MEAN_Y, TILE

F = np.float32
PER_TILE = F(1 / TILE)
RADIX_BITS = 11  # three passes cover the 32 bits of a depth


@njit(inline="always")
def _tile_box(splat, columns, rows):
    """The tiles that a splat's box touches: first column, end column, first row, end row."""
    x, y, ex, ey = splat[MEAN_X], splat[MEAN_Y], splat[EXTENT_X], splat[EXTENT_Y]
    return (
        min(max(int(np.floor((x - ex) * PER_TILE)), 0), columns),
        min(max(int(np.floor((x + ex) * PER_TILE)) + 1, 0), columns),
        min(max(int(np.floor((y - ey) * PER_TILE)), 0), rows),
        min(max(int(np.floor((y + ey) * PER_TILE)) + 1, 0), rows),
    )


@kernel("void(float32[:,::1], uint32[:,::1], int64, int64, int64, int64, int64, int32[:,::1], int32[::1], int64[::1])")
def sort_and_count(
    splats,  # [I * N, 12]
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
    spare = np.empty(count, np.int32)
    histogram = np.empty(1 << RADIX_BITS, np.int64)
    mask = np.uint32((1 << RADIX_BITS) - 1)
    for image in range(start, stop):
        here, there = spare, order[image]  # three passes end in `order`
        found = 0
        for s in range(image * count, (image + 1) * count):
            if splats[s, EXTENT_X] >= F(0):
                here[found] = s
                found += 1
                x0, x1, y0, y1 = _tile_box(splats[s], columns, rows)
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        counts[(image * rows + y) * columns + x] += 1
        visible[image] = found
        for shift in (0, RADIX_BITS, 2 * RADIX_BITS):
            histogram[:] = 0
            for k in range(found):
                histogram[(splat_bits[here[k], DEPTH] >> np.uint32(shift)) & mask] += 1
            total = 0
            for digit in range(histogram.shape[0]):
                size = histogram[digit]
                histogram[digit] = total
                total += size
            for k in range(found):
                digit = (splat_bits[here[k], DEPTH] >> np.uint32(shift)) & mask
                there[histogram[digit]] = here[k]
                histogram[digit] += 1
            here, there = there, here


@kernel("void(float32[:,::1], int64, int64, int64, int64, int32[:,::1], int32[::1], int64[::1], int32[::1])")
def fill(
    splats,  # [I * N, 12]
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
            x0, x1, y0, y1 = _tile_box(splats[s], columns, rows)
            for y in range(y0, y1):
                for x in range(x0, x1):
                    tile = y * columns + x
                    entries[cursor[tile]] = s
                    cursor[tile] += 1


@kernel("void(float32[:,::1], int32[::1], int64, int64, float32[:,::1])")
def scatter(
    entry_gradients,  # [entries, 9]
    entries,
    start,  # entries [start, stop): those of whole images
    stop,
    splat_gradients,  # [I * N, 9] zeros; out
):
    """Sum the gradients of each splat over its tiles, in the order of the list, so that the sum is always the same."""
    for k in range(start, stop):
        s = entries[k]
        for column in range(GRADIENT_COLUMNS):
            splat_gradients[s, column] += entry_gradients[k, column]
