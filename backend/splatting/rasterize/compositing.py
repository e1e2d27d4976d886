# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: N806 - capitals as in the formulas
"""Splats to pixels, tile by tile, and the gradients back.

Per pixel, front to back: alpha_i = min(0.999, opacity_i exp(-sigma_i)), weight_i = alpha_i T_i, T_(i+1) = T_i (1 -
alpha_i), color = sum weight_i color_i, alpha = 1 - T at the end. Contributions under 1/255 are skipped and a pixel ends
before T falls to 1e-4.

The inner loops take eight pixels of a row at once (`lanes`), from the first one that the splat reaches. A tile's state
is one flat buffer of planes, so that it stays in the nearest cache. Branches are selects and exp is a polynomial.
Pictures have any number of channels, all drawn in one pass.
"""

import numpy as np
from numba import njit

from backend.compiled import FASTMATH_FINITE, kernel
from backend.splatting.rasterize.lanes import (
    WIDTH,
    absolute,
    ceil,
    floor,
    greatest,
    load,
    maximum,
    minimum,
    root,
    select,
    spread,
    steps,
    store,
    total,
)
from backend.splatting.rasterize.layout import (
    EXTENT_Y,
    FIRST_CHANNEL,
    FIRST_CHANNEL_GRADIENT,
    LEAN,
    MAX_ALPHA,
    MEAN_X,
    MEAN_Y,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    OPACITY,
    ROW,
    SHARP_X,
    SHARP_Y,
    TILE_HEIGHT,
    TILE_WIDTH,
)
from backend.splatting.rasterize.tiles import GROWTH, reach_x

F, U = np.float32, np.uint64
ZERO, HALF, ONE = F(0), F(0.5), F(1)
PIXELS = ROW * TILE_HEIGHT
MAX_SIGMA = F(6)  # exp(-6) < 1/255: beyond, nothing is drawn, and the polynomial need not hold
CHECK = 16  # a tile is asked after every so many splats whether all its pixels are finished

# The planes of a tile's buffer. T is negated once the pixel is finished. COUNT is how many entries of the tile's list
# there are up to and including the last one drawn in the pixel. Then the channels; backward, their gradients.
PLANE_T, PLANE_COUNT, PLANE_BEHIND = U(0), U(PIXELS), U(2 * PIXELS)
CHANNELS_FORWARD, CHANNELS_BACKWARD = 2, 3

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
    y, ey = splat[MEAN_Y] - HALF, GROWTH * splat[EXTENT_Y]
    return max(0, int(np.ceil(y - ey)) - top), min(TILE_HEIGHT, int(np.floor(y + ey)) + 1 - top)


@njit(inline="always")
def _find_spans(spans, splat, left, top):
    """Per row of a tile the first pixel that the splat reaches, and per row the end, as floats from the tile's left."""
    ey = GROWTH * splat[EXTENT_Y]
    reach, x, y = reach_x(splat), splat[MEAN_X] - left - HALF, splat[MEAN_Y] - top - HALF
    for row in range(U(0), U(TILE_HEIGHT), U(WIDTH)):
        dy = steps() + (F(row) - y)
        height = dy * (ONE / ey)
        half = reach * root(maximum(ONE - height * height, ZERO))
        center = x + splat[LEAN] * dy
        store(spans, row, ceil(maximum(center - half, ZERO)))
        store(spans, row + U(TILE_HEIGHT), floor(minimum(center + half, F(TILE_WIDTH - 1))) + ONE)


@njit(inline="always")
def _blend(buffer, at, number, u0, sharp, sigma0, splat, channels):
    """Blend one splat into eight pixels: sigma = sharp (u0 + i)^2 + sigma0, number = its place in the list from 1."""
    u = steps() + u0
    sigma = minimum(sharp * u * u + sigma0, MAX_SIGMA)
    alpha = minimum(splat[OPACITY] * _exp_negative(sigma), MAX_ALPHA)
    hit = alpha >= MIN_ALPHA
    T = load(buffer, PLANE_T + at)
    T_next = T * (ONE - alpha)
    drawn = hit & (T_next > MIN_TRANSMITTANCE)
    weight = select(drawn, alpha * T, ZERO)
    for channel in range(channels):
        plane = U((CHANNELS_FORWARD + channel) * PIXELS) + at
        store(buffer, plane, load(buffer, plane) + weight * splat[FIRST_CHANNEL + channel])
    store(buffer, PLANE_COUNT + at, select(drawn, number, load(buffer, PLANE_COUNT + at)))
    store(buffer, PLANE_T + at, select(drawn, T_next, select(hit, ZERO - absolute(T), T)))


@njit(inline="always")
def _all_finished(buffer):
    highest = spread(-ONE)
    for at in range(PLANE_T, PLANE_T + U(PIXELS), U(WIDTH)):
        highest = maximum(highest, load(buffer, at))
    return greatest(highest) <= ZERO


@kernel(
    "void(float32[:,::1], int64[::1], int32[::1], int32[::1], int64, int64, "
    "float32[:,:,:,::1], float32[:,:,:,::1], float32[:,:,:,::1])",
    FASTMATH_FINITE,
)
def composite(
    splats,  # [I * N, columns]
    offsets,  # [I * tiles + 1]
    entries,  # [offsets[-1]]
    chosen,  # tiles to draw
    columns,  # tiles per row
    rows,
    pictures,  # [I, H, W, channels] out; only the chosen tiles are written
    alphas,  # [I, H, W, 1] out
    ends,  # [I, H, W, 2] out: T at the end and COUNT, for the backward pass
):
    """Draw some tiles."""
    height, width, channels = pictures.shape[1:]
    buffer = np.empty((CHANNELS_FORWARD + channels) * PIXELS, np.float32)
    spans = np.empty(2 * TILE_HEIGHT, np.float32)
    for tile in chosen:
        image, place = tile // (columns * rows), tile % (columns * rows)
        left, top = (place % columns) * TILE_WIDTH, (place // columns) * TILE_HEIGHT
        wide, high = min(TILE_WIDTH, width - left), min(TILE_HEIGHT, height - top)
        buffer[:] = ZERO
        for y in range(high):
            buffer[y * ROW : y * ROW + wide] = ONE  # T; pixels outside the picture are finished
        for k in range(offsets[tile], offsets[tile + 1]):
            number = k - offsets[tile] + 1
            splat = splats[entries[k]]
            _find_spans(spans, splat, F(left), F(top))
            begin, end = _rows(splat, top)
            for y in range(begin, end):
                dy = F(top + y) + HALF - splat[MEAN_Y]
                u0 = F(left) + HALF - splat[MEAN_X] - splat[LEAN] * dy
                sigma0 = HALF * splat[SHARP_Y] * dy * dy
                x, stop = int(spans[y]), int(spans[TILE_HEIGHT + y])
                while x < stop:
                    _blend(buffer, U(y * ROW + x), F(number), u0 + F(x), HALF * splat[SHARP_X], sigma0, splat, channels)
                    x += WIDTH
            if number % CHECK == 0 and _all_finished(buffer):
                break
        for y in range(high):
            for x in range(wide):
                pixel = y * ROW + x
                T = abs(buffer[pixel])
                for channel in range(channels):
                    pictures[image, top + y, left + x, channel] = buffer[(CHANNELS_FORWARD + channel) * PIXELS + pixel]
                alphas[image, top + y, left + x, 0] = ONE - T
                ends[image, top + y, left + x, 0] = T
                ends[image, top + y, left + x, 1] = buffer[PIXELS + pixel]


@njit(inline="always")
def _blend_backward(buffer, sums, at, number, u, sharp, sigma0, splat, channels):
    """What eight pixels say about one splat: s = -dL/dsigma; the channels' gradients are added to `sums`.

    With g = dL/dcolor and gA = dL/dalpha of the pixel: dL/dalpha_i = T_i c_i.g - behind_i / (1 - alpha_i), where
    behind_i = sum over j > i of weight_j c_j.g - gA T_end. It grows from the back, so that it is accurate where little
    is behind; T_i = T_(i+1) / (1 - alpha_i) is recovered on the way.
    """
    sigma = minimum(sharp * u * u + sigma0, MAX_SIGMA)
    raw = splat[OPACITY] * _exp_negative(sigma)
    alpha = minimum(raw, MAX_ALPHA)
    drawn = (alpha >= MIN_ALPHA) & (load(buffer, PLANE_COUNT + at) >= number)
    inverse = ONE / (ONE - alpha)
    T_next = load(buffer, PLANE_T + at)
    T = select(drawn, T_next * inverse, T_next)
    weight = select(drawn, alpha * T, ZERO)
    cg = spread(ZERO)
    for channel in range(channels):
        g = load(buffer, U((CHANNELS_BACKWARD + channel) * PIXELS) + at)
        cg = cg + g * splat[FIRST_CHANNEL + channel]
        store(sums, U(channel * WIDTH), load(sums, U(channel * WIDTH)) + weight * g)
    behind = load(buffer, PLANE_BEHIND + at)
    store(buffer, PLANE_BEHIND + at, behind + weight * cg)
    store(buffer, PLANE_T + at, T)
    # A clamped alpha does not move.
    return select(drawn & (raw <= MAX_ALPHA), (T * cg - behind * inverse) * alpha, ZERO)


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
    pictures_gradient,  # [I, H, W, channels]
    alphas_gradient,  # [I, H, W, 1]
    entry_gradients,  # [entries, 6 + channels] out: of every entry in the tiles' lists
):
    """Gradients of every entry in some tiles' lists, from the back to the front."""
    height, width, channels = pictures_gradient.shape[1:]
    buffer = np.empty((CHANNELS_BACKWARD + channels) * PIXELS, np.float32)
    sums = np.empty(channels * WIDTH, np.float32)
    spans = np.empty(2 * TILE_HEIGHT, np.float32)
    for tile in chosen:
        image, place = tile // (columns * rows), tile % (columns * rows)
        left, top = (place % columns) * TILE_WIDTH, (place // columns) * TILE_HEIGHT
        buffer[:] = ZERO  # COUNT 0: nothing is drawn in pixels outside the picture
        deepest = ZERO
        for y in range(min(TILE_HEIGHT, height - top)):
            for x in range(min(TILE_WIDTH, width - left)):
                pixel = y * ROW + x
                T, count = ends[image, top + y, left + x, 0], ends[image, top + y, left + x, 1]
                deepest = max(deepest, count)
                buffer[pixel] = T
                buffer[PIXELS + pixel] = count
                buffer[2 * PIXELS + pixel] = -alphas_gradient[image, top + y, left + x, 0] * T
                for channel in range(channels):
                    buffer[(CHANNELS_BACKWARD + channel) * PIXELS + pixel] = pictures_gradient[
                        image, top + y, left + x, channel
                    ]
        entry_gradients[offsets[tile] + int(deepest) : offsets[tile + 1]] = ZERO
        for number in range(int(deepest), 0, -1):
            k = offsets[tile] + number - 1
            splat = splats[entries[k]]
            sharp, lean = splat[SHARP_X], splat[LEAN]
            sums[:] = ZERO
            sum_0, sum_u, sum_uu = spread(ZERO), spread(ZERO), spread(ZERO)
            sum_y, sum_uy, sum_yy = spread(ZERO), spread(ZERO), spread(ZERO)
            _find_spans(spans, splat, F(left), F(top))
            begin, end = _rows(splat, top)
            for y in range(begin, end):
                dy = F(top + y) + HALF - splat[MEAN_Y]
                u0 = F(left) + HALF - splat[MEAN_X] - lean * dy
                sigma0 = HALF * splat[SHARP_Y] * dy * dy
                x, stop = int(spans[y]), int(spans[TILE_HEIGHT + y])
                while x < stop:
                    u = steps() + (u0 + F(x))
                    s = _blend_backward(
                        buffer, sums, U(y * ROW + x), F(number), u, HALF * sharp, sigma0, splat, channels
                    )
                    su, sy = s * u, s * dy
                    sum_0 = sum_0 + s
                    sum_u = sum_u + su
                    sum_uu = sum_uu + su * u
                    sum_y = sum_y + sy
                    sum_uy = sum_uy + su * dy
                    sum_yy = sum_yy + sy * dy
                    x += WIDTH
            # sigma = 1/2 (sharp u^2 + SHARP_Y dy^2), u = dx - lean dy; the loss moves by -s dsigma.
            out = entry_gradients[k]
            out[MEAN_X] = sharp * total(sum_u)
            out[MEAN_Y] = splat[SHARP_Y] * total(sum_y) - lean * out[MEAN_X]
            out[SHARP_X] = -HALF * total(sum_uu)
            out[LEAN] = sharp * total(sum_uy)
            out[SHARP_Y] = -HALF * total(sum_yy)
            out[OPACITY] = total(sum_0) / splat[OPACITY]
            for channel in range(channels):
                out[FIRST_CHANNEL_GRADIENT + channel] = total(load(sums, U(channel * WIDTH)))
