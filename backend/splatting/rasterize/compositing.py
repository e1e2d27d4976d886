# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: N806 - capitals as in the formulas
"""Splats to pixels, tile by tile, and the gradients back.

Per pixel, front to back: alpha_i = min(0.999, opacity_i exp(-sigma_i)), weight_i = alpha_i T_i, T_(i+1) = T_i (1 -
alpha_i), color = sum weight_i color_i, alpha = 1 - T at the end. Contributions under 1/255 are skipped and a pixel ends
before T falls to 1e-4.

The inner loops run over the 16 pixels of a tile's row and must become SIMD code. Hence their indices are unsigned
(Numba lets signed ones count from the end, and that check stops LLVM's vectorizer: five times slower), the state of a
tile is one flat buffer, branches are selects and exp is a polynomial.
"""

import numpy as np
from numba import njit

from backend.splatting.rasterize.compiled import FASTMATH_FINITE, kernel
from backend.splatting.rasterize.layout import (
    BLUE,
    CONIC_XX,
    CONIC_XY,
    CONIC_YY,
    EXTENT_Y,
    GREEN,
    MAX_ALPHA,
    MEAN_X,
    MEAN_Y,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    OPACITY,
    RED,
    TILE,
)

F, U = np.float32, np.uint64
ZERO, HALF, ONE = F(0), F(0.5), F(1)
PIXELS = TILE * TILE
MAX_SIGMA = F(6)  # exp(-6) < 1/255: beyond, nothing is drawn, and the polynomial need not hold
CHECK = 16  # a tile is asked after every so many splats whether all its pixels are finished

# The tile's buffer: five planes of 256 forward, six backward. T is negated once the pixel is finished. COUNT is how
# many entries of the tile's list there are up to and including the last one drawn in the pixel.
PLANE_T, PLANE_COUNT = U(0), U(PIXELS)
PLANE_RED, PLANE_GREEN, PLANE_BLUE = U(2 * PIXELS), U(3 * PIXELS), U(4 * PIXELS)
PLANE_BEHIND = U(5 * PIXELS)

# exp(x) on [-6/16, 0], fitted for the smallest largest error: after four squarings 1.9e-6 relative.
E1, E2, E3, E4, E5 = F(0.99999976158), F(0.49999111889), F(0.1665597409), F(0.0410964787), F(0.00692328857)


@njit(inline="always")
def _exp_negative(sigma):
    """exp(-sigma) for sigma in [0, 6], by multiplications and additions alone."""
    x = sigma * F(-1 / 16)
    p = ONE + x * (E1 + x * (E2 + x * (E3 + x * (E4 + x * E5))))
    p = p * p
    p = p * p
    p = p * p
    return p * p


@njit(inline="always")
def _rows(splat, top):
    """The rows of the tile with the given first row that the splat can touch: first and end."""
    y, ey = splat[MEAN_Y] - HALF, splat[EXTENT_Y]
    return max(0, int(np.floor(y - ey)) - top), min(TILE, int(np.floor(y + ey)) + 2 - top)


@njit(inline="always")
def _blend_row(buffer, steps, row, number, left, mx, xx, x1, x0, opacity, red, green, blue):
    """Blend one splat into one row; sigma = xx dx^2 + x1 dx + x0 along it, number = its place in the list from 1."""
    for x in range(U(TILE)):
        dx = (left + steps[x]) - mx
        sigma = min(xx * dx * dx + x1 * dx + x0, MAX_SIGMA)
        alpha = min(opacity * _exp_negative(sigma), MAX_ALPHA)
        hit = alpha >= MIN_ALPHA
        T = buffer[PLANE_T + row + x]
        T_next = T * (ONE - alpha)
        drawn = hit & (T_next > MIN_TRANSMITTANCE)
        weight = alpha * T if drawn else ZERO
        buffer[PLANE_RED + row + x] += weight * red
        buffer[PLANE_GREEN + row + x] += weight * green
        buffer[PLANE_BLUE + row + x] += weight * blue
        buffer[PLANE_COUNT + row + x] = number if drawn else buffer[PLANE_COUNT + row + x]
        buffer[PLANE_T + row + x] = T_next if drawn else (-abs(T) if hit else T)


@njit(inline="always")
def _all_finished(buffer):
    highest = -ONE
    for pixel in range(U(PIXELS)):
        highest = max(highest, buffer[PLANE_T + pixel])
    return highest <= ZERO


@kernel(
    "void(float32[:,::1], int64[::1], int32[::1], int32[::1], int64, int64, "
    "float32[:,:,:,::1], float32[:,:,:,::1], float32[:,:,:,::1])",
    FASTMATH_FINITE,
)
def composite(
    splats,  # [I * N, 12]
    offsets,  # [I * tiles + 1]
    entries,  # [offsets[-1]]
    chosen,  # tiles to draw
    columns,  # tiles per row
    rows,
    colors,  # [I, H, W, 3] out; only the chosen tiles are written
    alphas,  # [I, H, W, 1] out
    ends,  # [I, H, W, 2] out: T at the end and COUNT, for the backward pass
):
    """Draw some tiles."""
    height, width = colors.shape[1], colors.shape[2]
    steps = np.arange(TILE).astype(np.float32)
    buffer = np.empty(5 * PIXELS, np.float32)
    for tile in chosen:
        image, place = tile // (columns * rows), tile % (columns * rows)
        left, top = (place % columns) * TILE, (place // columns) * TILE
        first_x, first_y = F(left) + HALF, F(top) + HALF
        buffer[:PIXELS] = ONE
        buffer[PIXELS:] = ZERO
        for k in range(offsets[tile], offsets[tile + 1]):
            number = k - offsets[tile] + 1
            splat = splats[entries[k]]
            mx, my, a, b, c = splat[MEAN_X], splat[MEAN_Y], splat[CONIC_XX], splat[CONIC_XY], splat[CONIC_YY]
            opacity, red, green, blue = splat[OPACITY], splat[RED], splat[GREEN], splat[BLUE]
            begin, end = _rows(splat, top)
            for y in range(begin, end):
                dy = first_y + F(y) - my
                _blend_row(
                    buffer, steps, U(y * TILE), F(number), first_x, mx, HALF * a, b * dy, HALF * c * dy * dy,
                    opacity, red, green, blue,
                )  # fmt: skip
            if number % CHECK == 0 and _all_finished(buffer):
                break
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                pixel = y * TILE + x
                T = abs(buffer[pixel])
                colors[image, top + y, left + x, 0] = buffer[2 * PIXELS + pixel]
                colors[image, top + y, left + x, 1] = buffer[3 * PIXELS + pixel]
                colors[image, top + y, left + x, 2] = buffer[4 * PIXELS + pixel]
                alphas[image, top + y, left + x, 0] = ONE - T
                ends[image, top + y, left + x, 0] = T
                ends[image, top + y, left + x, 1] = buffer[PIXELS + pixel]


@njit(inline="always")
def _blend_row_backward(buffer, steps, row, number, left, mx, xx, x1, x0, opacity, red, green, blue):
    """Gradients of one splat from one row: sums of s, s dx, s dx^2 (s = -dL/dsigma) and of the three colors.

    With g = dL/dcolor and gA = dL/dalpha of the pixel: dL/dalpha_i = T_i c_i.g - behind_i / (1 - alpha_i), where
    behind_i = sum over j > i of weight_j c_j.g - gA T_end. It grows from the back, so that it is accurate where little
    is behind; T_i = T_(i+1) / (1 - alpha_i) is recovered on the way.
    """
    sum_0, sum_x, sum_xx, sum_r, sum_g, sum_b = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for x in range(U(TILE)):
        dx = (left + steps[x]) - mx
        sigma = min(xx * dx * dx + x1 * dx + x0, MAX_SIGMA)
        raw = opacity * _exp_negative(sigma)
        alpha = min(raw, MAX_ALPHA)
        drawn = (alpha >= MIN_ALPHA) & (number <= buffer[PLANE_COUNT + row + x])
        inverse = ONE / (ONE - alpha)
        T_next = buffer[PLANE_T + row + x]
        T = T_next * inverse if drawn else T_next
        weight = alpha * T if drawn else ZERO
        gr, gg, gb = buffer[PLANE_RED + row + x], buffer[PLANE_GREEN + row + x], buffer[PLANE_BLUE + row + x]
        cg = red * gr + green * gg + blue * gb
        behind = buffer[PLANE_BEHIND + row + x]
        d_alpha = T * cg - behind * inverse
        s = d_alpha * alpha if drawn & (raw <= MAX_ALPHA) else ZERO  # a clamped alpha does not move
        sum_0 += s
        sum_x += s * dx
        sum_xx += s * dx * dx
        sum_r += weight * gr
        sum_g += weight * gg
        sum_b += weight * gb
        buffer[PLANE_BEHIND + row + x] = behind + weight * cg
        buffer[PLANE_T + row + x] = T
    return sum_0, sum_x, sum_xx, sum_r, sum_g, sum_b


@kernel(
    "void(float32[:,::1], int64[::1], int32[::1], int32[::1], int64, int64, "
    "float32[:,:,:,::1], float32[:,:,:,::1], float32[:,:,:,::1], float32[:,::1])",
    FASTMATH_FINITE,
)
def composite_backward(
    splats,
    offsets,
    entries,
    chosen,
    columns,
    rows,
    ends,  # [I, H, W, 2] as `composite` left them
    colors_gradient,  # [I, H, W, 3]
    alphas_gradient,  # [I, H, W, 1]
    entry_gradients,  # [entries, 9] zeros; out
):
    """Gradients of every entry in some tiles' lists, from the back to the front."""
    height, width = ends.shape[1], ends.shape[2]
    steps = np.arange(TILE).astype(np.float32)
    buffer = np.empty(6 * PIXELS, np.float32)
    for tile in chosen:
        image, place = tile // (columns * rows), tile % (columns * rows)
        left, top = (place % columns) * TILE, (place // columns) * TILE
        first_x, first_y = F(left) + HALF, F(top) + HALF
        buffer[:] = ZERO  # COUNT 0: nothing is drawn in pixels outside the picture
        deepest = ZERO
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                pixel = y * TILE + x
                T, count = ends[image, top + y, left + x, 0], ends[image, top + y, left + x, 1]
                deepest = max(deepest, count)
                buffer[pixel] = T
                buffer[PIXELS + pixel] = count
                buffer[2 * PIXELS + pixel] = colors_gradient[image, top + y, left + x, 0]
                buffer[3 * PIXELS + pixel] = colors_gradient[image, top + y, left + x, 1]
                buffer[4 * PIXELS + pixel] = colors_gradient[image, top + y, left + x, 2]
                buffer[5 * PIXELS + pixel] = -alphas_gradient[image, top + y, left + x, 0] * T
        for number in range(int(deepest), 0, -1):
            k = offsets[tile] + number - 1
            splat = splats[entries[k]]
            mx, my, a, b, c = splat[MEAN_X], splat[MEAN_Y], splat[CONIC_XX], splat[CONIC_XY], splat[CONIC_YY]
            opacity, red, green, blue = splat[OPACITY], splat[RED], splat[GREEN], splat[BLUE]
            begin, end = _rows(splat, top)
            s, sx, sy, sxx, sxy, syy, sr, sg, sb = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            for y in range(begin, end):
                dy = first_y + F(y) - my
                row_s, row_sx, row_sxx, row_r, row_g, row_b = _blend_row_backward(
                    buffer, steps, U(y * TILE), F(number), first_x, mx, HALF * a, b * dy, HALF * c * dy * dy,
                    opacity, red, green, blue,
                )  # fmt: skip
                s += row_s
                sx += row_sx
                sy += row_s * dy
                sxx += row_sxx
                sxy += row_sx * dy
                syy += row_s * dy * dy
                sr += row_r
                sg += row_g
                sb += row_b
            # sigma = 1/2 (a dx^2 + c dy^2) + b dx dy with d = pixel - mean; alpha moves by -alpha dsigma.
            out = entry_gradients[k]
            out[MEAN_X] = a * sx + b * sy
            out[MEAN_Y] = b * sx + c * sy
            out[CONIC_XX] = -HALF * sxx
            out[CONIC_XY] = -sxy
            out[CONIC_YY] = -HALF * syy
            out[OPACITY] = s / opacity
            out[RED] = sr
            out[GREEN] = sg
            out[BLUE] = sb
