# SPDX-License-Identifier: GPL-3.0-or-later
"""Numba kernels of hash grids: look up, and its derivatives by table and position, up to the second order.

One level of a grid per call, so that a thread that has a level to itself may add to its entries, and so that a level
stays in the cache. Between its corners a level is multilinear; so all kernels gather the corners and then reduce them
in the same way. Four dimensions are two cells of three, one at either side in time.

Arguments of all kernels: positions [P, D] in 0..1; table [E, 2] of all levels; the level's scale, resolution, first
entry, number of entries and whether they are hashed; the samples `first` to `last`; then rows of this level's two
features in arrays [2 L, P], number `row` and the next. What they compute says `hash_grid`.
"""

import numpy as np
from numba import njit

from backend.compiled import kernel

PRIMES = (1, 2_654_435_761, 805_459_861, 3_674_653_429)
_Y, _Z, _T = (np.uint32(prime) for prime in PRIMES[1:])
_F, _U, _ONE = np.float32, np.uint32, np.uint32(1)
FASTMATH = {"nsz", "arcp", "contract", "reassoc"}
_TABLE = "float32[:,::1]"  # positions, table, rows
_LEVEL = "float32, int32, uint32, uint32, boolean"  # scale, resolution, start, entries, hashed
_SAMPLES = "int64, int64, int64"  # first, last, row


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _cell(position, scale, resolution):
    """The lower corner along one axis, and how far beyond it. NaN stays NaN, at a corner that exists."""
    place = position * scale + _F(0.5)
    corner = min(max(np.int32(place), np.int32(0)), resolution)
    return np.uint32(corner), place - _F(corner)


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _entry(hashed, x, y, z, t, start, entries):
    """Where a corner is in the table, from what each axis adds to that."""
    if hashed:
        return np.int64(start + ((x ^ y ^ z ^ t) & (entries - _ONE)))
    index = x + y + z + t
    if index >= entries:  # beyond the last corner of a row lies the next row, and beyond the end the beginning
        index -= entries
    return np.int64(start + index)


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _strides(hashed, resolution):
    width = np.uint32(resolution)
    if hashed:
        return _Y, _Z, _T
    return width, width * width, width * width * width


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _entries(hashed, x, y, z, t, strides, start, entries):
    """The eight corners of a cell of three dimensions; x changes fastest. `t` is what time adds."""
    x0, y0, z0 = x, y * strides[0], z * strides[1]
    x1, y1, z1 = x + _ONE, (y + _ONE) * strides[0], (z + _ONE) * strides[1]
    return (
        _entry(hashed, x0, y0, z0, t, start, entries),
        _entry(hashed, x1, y0, z0, t, start, entries),
        _entry(hashed, x0, y1, z0, t, start, entries),
        _entry(hashed, x1, y1, z0, t, start, entries),
        _entry(hashed, x0, y0, z1, t, start, entries),
        _entry(hashed, x1, y0, z1, t, start, entries),
        _entry(hashed, x0, y1, z1, t, start, entries),
        _entry(hashed, x1, y1, z1, t, start, entries),
    )


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _mix(a, b, share):
    return a + share * (b - a)


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _reduced(c, x, y, z):
    """Value, slopes along x, y, z and mixed second derivatives xy, xz, yz of a trilinear cell with corners `c`.

    The optimiser drops those that a kernel does not use.
    """
    x00, x10, x01, x11 = c[1] - c[0], c[3] - c[2], c[5] - c[4], c[7] - c[6]  # slopes along x at (y, z)
    v00, v10, v01, v11 = c[0] + x * x00, c[2] + x * x10, c[4] + x * x01, c[6] + x * x11
    v0, v1 = _mix(v00, v10, y), _mix(v01, v11, y)  # at z
    return (
        _mix(v0, v1, z),
        _mix(_mix(x00, x10, y), _mix(x01, x11, y), z),
        _mix(v10 - v00, v11 - v01, z),
        v1 - v0,
        _mix(x10 - x00, x11 - x01, z),
        _mix(x01 - x00, x11 - x10, y),
        (v11 - v01) - (v10 - v00),
    )


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _feature(table, at, f):
    return (
        table[at[0], f],
        table[at[1], f],
        table[at[2], f],
        table[at[3], f],
        table[at[4], f],
        table[at[5], f],
        table[at[6], f],
        table[at[7], f],
    )


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _weighed(table, at, g0, g1):
    return (
        table[at[0], 0] * g0 + table[at[0], 1] * g1,
        table[at[1], 0] * g0 + table[at[1], 1] * g1,
        table[at[2], 0] * g0 + table[at[2], 1] * g1,
        table[at[3], 0] * g0 + table[at[3], 1] * g1,
        table[at[4], 0] * g0 + table[at[4], 1] * g1,
        table[at[5], 0] * g0 + table[at[5], 1] * g1,
        table[at[6], 0] * g0 + table[at[6], 1] * g1,
        table[at[7], 0] * g0 + table[at[7], 1] * g1,
    )


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _add(grad, at, weight, g0, g1):
    grad[at, 0] += weight * g0
    grad[at, 1] += weight * g1


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _spread(grad, at, x, y, z, factor, g0, g1):
    """Add the gradients to the eight corners by their weights times `factor`."""
    for_y0, for_y1 = factor * (_F(1) - y), factor * y
    w00, w10, w01, w11 = for_y0 * (_F(1) - z), for_y1 * (_F(1) - z), for_y0 * z, for_y1 * z
    _add(grad, at[0], w00 - w00 * x, g0, g1)
    _add(grad, at[1], w00 * x, g0, g1)
    _add(grad, at[2], w10 - w10 * x, g0, g1)
    _add(grad, at[3], w10 * x, g0, g1)
    _add(grad, at[4], w01 - w01 * x, g0, g1)
    _add(grad, at[5], w01 * x, g0, g1)
    _add(grad, at[6], w11 - w11 * x, g0, g1)
    _add(grad, at[7], w11 * x, g0, g1)


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _spread_slopes(grad, at, x, y, z, vx, vy, vz, rest, rest_slope, g0, g1):
    """The same with how fast the weights, times `rest`, change in the direction v; `rest` changes by `rest_slope`."""
    ux, uy, uz = _F(1) - x, _F(1) - y, _F(1) - z
    w00, w10, w01, w11 = uy * uz, y * uz, uy * z, y * z
    s00, s10 = -vy * uz - uy * vz, vy * uz - y * vz
    s01, s11 = -vy * z + uy * vz, vy * z + y * vz
    lower, upper = ux * rest_slope - vx * rest, x * rest_slope + vx * rest
    below, above = ux * rest, x * rest
    _add(grad, at[0], lower * w00 + below * s00, g0, g1)
    _add(grad, at[1], upper * w00 + above * s00, g0, g1)
    _add(grad, at[2], lower * w10 + below * s10, g0, g1)
    _add(grad, at[3], upper * w10 + above * s10, g0, g1)
    _add(grad, at[4], lower * w01 + below * s01, g0, g1)
    _add(grad, at[5], upper * w01 + above * s01, g0, g1)
    _add(grad, at[6], lower * w11 + below * s11, g0, g1)
    _add(grad, at[7], upper * w11 + above * s11, g0, g1)


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries):
    x, fx = _cell(positions[p, 0], scale, resolution)
    y, fy = _cell(positions[p, 1], scale, resolution)
    z, fz = _cell(positions[p, 2], scale, resolution)
    t, ft = _U(0), _F(0)
    if in_time:
        t, ft = _cell(positions[p, 3], scale, resolution)
    early = _entries(hashed, x, y, z, t * strides[2], strides, start, entries)
    late = early
    if in_time:
        late = _entries(hashed, x, y, z, (t + _ONE) * strides[2], strides, start, entries)
    return early, late, fx, fy, fz, ft


@njit(forceinline=True, error_model="numpy", fastmath=FASTMATH)
def _look_up(hashed, positions, table, scale, resolution, start, entries, first, last, row, out):
    in_time, strides = positions.shape[1] == 4, _strides(hashed, resolution)
    for p in range(first, last):
        early, late, x, y, z, t = _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries)
        a = _reduced(_feature(table, early, 0), x, y, z)[0]
        b = _reduced(_feature(table, early, 1), x, y, z)[0]
        if in_time:
            a = _mix(a, _reduced(_feature(table, late, 0), x, y, z)[0], t)
            b = _mix(b, _reduced(_feature(table, late, 1), x, y, z)[0], t)
        out[row, p] = a
        out[row + 1, p] = b


@kernel(f"void({_TABLE}, {_TABLE}, {_LEVEL}, {_SAMPLES}, {_TABLE})", FASTMATH)
def look_up(positions, table, scale, resolution, start, entries, hashed, first, last, row, out):
    """The features: out[row], out[row + 1]."""
    if hashed:
        _look_up(True, positions, table, scale, resolution, start, entries, first, last, row, out)
    else:
        _look_up(False, positions, table, scale, resolution, start, entries, first, last, row, out)


@kernel(f"void({_TABLE}, {_TABLE}, {_LEVEL}, {_SAMPLES}, {_TABLE}, {_TABLE})", FASTMATH)
def look_up_slope(positions, table, scale, resolution, start, entries, hashed, first, last, row, tangent, out):
    """How fast the features change as positions move by `tangent` [P, D]."""
    in_time, strides = positions.shape[1] == 4, _strides(hashed, resolution)
    for p in range(first, last):
        early, late, x, y, z, t = _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries)
        for f in range(2):
            r = _reduced(_feature(table, early, f), x, y, z)
            slope = r[1] * tangent[p, 0] + r[2] * tangent[p, 1] + r[3] * tangent[p, 2]
            if in_time:
                s = _reduced(_feature(table, late, f), x, y, z)
                slope = _mix(slope, s[1] * tangent[p, 0] + s[2] * tangent[p, 1] + s[3] * tangent[p, 2], t)
                slope += (s[0] - r[0]) * tangent[p, 3]
            out[row + f, p] = scale * slope


@kernel(f"void({_TABLE}, {_TABLE}, {_LEVEL}, {_SAMPLES}, {_TABLE}, {_TABLE})", FASTMATH)
def pull(positions, table, scale, resolution, start, entries, hashed, first, last, row, gradient, out):
    """Add to `out` [P, D] the gradient by the positions of sum(features * gradient)."""
    in_time, strides = positions.shape[1] == 4, _strides(hashed, resolution)
    for p in range(first, last):
        early, late, x, y, z, t = _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries)
        g0, g1 = scale * gradient[row, p], scale * gradient[row + 1, p]
        r = _reduced(_weighed(table, early, g0, g1), x, y, z)
        if in_time:
            s = _reduced(_weighed(table, late, g0, g1), x, y, z)
            out[p, 0] += _mix(r[1], s[1], t)
            out[p, 1] += _mix(r[2], s[2], t)
            out[p, 2] += _mix(r[3], s[3], t)
            out[p, 3] += s[0] - r[0]
        else:
            out[p, 0] += r[1]
            out[p, 1] += r[2]
            out[p, 2] += r[3]


@kernel(f"void({_TABLE}, {_TABLE}, {_LEVEL}, {_SAMPLES}, {_TABLE}, {_TABLE}, {_TABLE})", FASTMATH)
def pull_slope(positions, table, scale, resolution, start, entries, hashed, first, last, row, gradient, tangent, out):
    """Add how fast that gradient changes as positions move by `tangent` [P, D]."""
    in_time, strides = positions.shape[1] == 4, _strides(hashed, resolution)
    for p in range(first, last):
        early, late, x, y, z, t = _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries)
        square = scale * scale
        g0, g1 = square * gradient[row, p], square * gradient[row + 1, p]
        vx, vy, vz = tangent[p, 0], tangent[p, 1], tangent[p, 2]
        r = _reduced(_weighed(table, early, g0, g1), x, y, z)
        xy, xz, yz = r[4], r[5], r[6]
        if in_time:
            s = _reduced(_weighed(table, late, g0, g1), x, y, z)
            xy, xz, yz = _mix(xy, s[4], t), _mix(xz, s[5], t), _mix(yz, s[6], t)
            tx, ty, tz, vt = s[1] - r[1], s[2] - r[2], s[3] - r[3], tangent[p, 3]
            out[p, 0] += tx * vt
            out[p, 1] += ty * vt
            out[p, 2] += tz * vt
            out[p, 3] += tx * vx + ty * vy + tz * vz
        out[p, 0] += xy * vy + xz * vz
        out[p, 1] += xy * vx + yz * vz
        out[p, 2] += xz * vx + yz * vy


@kernel(f"void({_TABLE}, {_LEVEL}, {_SAMPLES}, {_TABLE}, {_TABLE})", FASTMATH)
def push(positions, scale, resolution, start, entries, hashed, first, last, row, gradient, out):
    """Add to `out` [E, 2] the gradient by the table of sum(features * gradient)."""
    in_time, strides = positions.shape[1] == 4, _strides(hashed, resolution)
    for p in range(first, last):
        g0, g1 = gradient[row, p], gradient[row + 1, p]
        early, late, x, y, z, t = _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries)
        _spread(out, early, x, y, z, _F(1) - t, g0, g1)
        if in_time:
            _spread(out, late, x, y, z, t, g0, g1)


@kernel(f"void({_TABLE}, {_LEVEL}, {_SAMPLES}, {_TABLE}, {_TABLE}, {_TABLE})", FASTMATH)
def push_slope(positions, scale, resolution, start, entries, hashed, first, last, row, gradient, tangent, out):
    """Add how fast that gradient changes as positions move by `tangent` [P, D]."""
    in_time, strides = positions.shape[1] == 4, _strides(hashed, resolution)
    for p in range(first, last):
        g0, g1 = scale * gradient[row, p], scale * gradient[row + 1, p]
        vx, vy, vz = tangent[p, 0], tangent[p, 1], tangent[p, 2]
        early, late, x, y, z, t = _locate(in_time, hashed, positions, p, strides, scale, resolution, start, entries)
        if in_time:
            vt = tangent[p, 3]
            _spread_slopes(out, early, x, y, z, vx, vy, vz, _F(1) - t, -vt, g0, g1)
            _spread_slopes(out, late, x, y, z, vx, vy, vz, t, vt, g0, g1)
        else:
            _spread_slopes(out, early, x, y, z, vx, vy, vz, _F(1), _F(0), g0, g1)
