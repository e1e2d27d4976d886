# SPDX-License-Identifier: GPL-3.0-or-later
"""Outlines made round: how deep a subject may be behind each pixel, and how it then looks from other sides.

A picture is seen so where no network makes more of it (`still_subject`); the small 4DM starts from it (`small_fourdm`).
"""

import math

import numpy as np
from numba import njit

from backend.compiled import kernel
from backend.pictures import colors

ROUNDNESS = 3.0  # of the Poisson equation: 2 makes rods round, 4 makes balls round
FLATNESS = 0.85  # depth of what is inflated / its width
SWEEPS = 400  # at most
TOLERANCE = 1e-3  # of a sweep's largest change, relative to the largest value
STEP = 1.5  # pixels, of the rays: what the small 4DM was trained with
_NUMBERS, _PICTURE = "float32[:,::1]", "float32[:,:,::1]"  # types of arguments


def thickness(mask: np.ndarray) -> np.ndarray:  # [H, W] bool -> [H, W] float32, pixels
    """Half the depth of an inflated outline: the root of the solution of Poisson's equation, zero outside."""
    return np.sqrt(_poisson(np.ascontiguousarray(np.pad(mask, 1)), ROUNDNESS))


def inflated_views(
    pictures: np.ndarray,
    camera_to_world: np.ndarray,
    distance: float,
    fov: float,
    step: float = STEP,
    far: np.ndarray | None = None,
) -> np.ndarray:
    """Pictures inflated, and seen from other sides.

    Args:
        pictures: [F, H, W, 4] float32 0..1, H = W, premultiplied, as a camera at -Y in `distance` sees the subject.
        camera_to_world: [V, 4, 4] of the other cameras, clip space.
        distance, fov: of all of them; the field of view in degrees.
        step: pixels, of the rays.
        far: [F, H, W, 3] float32 0..1, colors of the far side; None: those of the near side.

    Returns:
        [F, V, H, W, 4] float32, premultiplied.
    """
    size = pictures.shape[1]
    views = np.zeros((len(pictures), len(camera_to_world), *pictures.shape[1:]), np.float32)
    half = math.tan(math.radians(fov) / 2)
    poses = np.array(camera_to_world, np.float32, order="C")
    for number, (picture, out) in enumerate(zip(pictures, views, strict=True)):
        depth = thickness(picture[..., 3] > 0.5) * np.float32(FLATNESS * 2 * half * distance / size)
        near = np.ascontiguousarray(colors(picture), np.float32)
        behind = near if far is None else np.ascontiguousarray(far[number], np.float32)
        _look(near, behind, np.ascontiguousarray(depth, np.float32), poses, distance, half, step, out)
    return views


@kernel(f"{_NUMBERS}(boolean[:,::1], float64)", fastmath=True)
def _poisson(mask, source):  # [H + 2, W + 2] bool -> [H, W] float32: by successive over-relaxation
    height, width = mask.shape
    u = np.zeros((height, width), np.float32)
    omega = np.float32(2 / (1 + math.sin(math.pi / max(min(height, width) / 2, 4))))
    for _ in range(SWEEPS):
        largest, change = np.float32(0), np.float32(0)
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                if mask[y, x]:
                    wanted = (u[y - 1, x] + u[y + 1, x] + u[y, x - 1] + u[y, x + 1] + np.float32(source)) / 4
                    step = omega * (wanted - u[y, x])
                    u[y, x] += step
                    change = max(change, abs(step))
                    largest = max(largest, u[y, x])
        if change <= TOLERANCE * largest:
            break
    return np.maximum(u[1:-1, 1:-1], 0)


@kernel(
    f"void({_PICTURE}, {_PICTURE}, {_NUMBERS}, {_PICTURE}, float64, float64, float64, float32[:,:,:,::1])",
    fastmath=True,
)
def _look(near, behind, depth, poses, distance, half, pixels, out):
    """March the rays of each view through {points whose distance from the middle plane is at most `depth`}.

    All rays take the same steps of so many `pixels`, and each only those that lie in a box round these points.
    """
    size = near.shape[0]
    reach = np.float32(0.87)  # half the diagonal of the cube that a subject fits into
    pixel = np.float32(2 * half / size)
    step = np.float32(pixels * distance) * pixel
    steps = np.empty(int(2 * reach / step) + 2, np.float32)
    count, t = 0, np.float32(distance) - reach
    while t < distance + reach:
        steps[count] = t
        count += 1
        t += step
    low, high = _box(depth, distance, half, pixel, step)
    if low[0] > high[0]:
        return
    direction = np.empty(3, np.float32)
    for v in range(poses.shape[0]):
        pose = poses[v]
        for row in range(size):
            for column in range(size):
                a = (column + np.float32(0.5)) * pixel - np.float32(half)
                b = np.float32(half) - (row + np.float32(0.5)) * pixel
                for k in range(3):
                    direction[k] = pose[k, 0] * a + pose[k, 1] * b - pose[k, 2]
                enter, leave = steps[0], steps[count - 1]
                for k in range(3):
                    if abs(direction[k]) < np.float32(1e-6):
                        if pose[k, 3] < low[k] or pose[k, 3] > high[k]:
                            leave = enter - 2 * step
                    else:
                        one = (low[k] - pose[k, 3]) / direction[k]
                        two = (high[k] - pose[k, 3]) / direction[k]
                        enter, leave = max(enter, min(one, two)), min(leave, max(one, two))
                if leave < enter:
                    continue
                first = max(0, int((enter - steps[0]) / step) - 1)
                last = min(count, int((leave - steps[0]) / step) + 3)
                for t in steps[first:last]:
                    y = pose[1, 3] + t * direction[1]
                    along = y + np.float32(distance)  # depth as the first camera sees it
                    if along > np.float32(0.05):
                        i = math.floor(((pose[0, 3] + t * direction[0]) / along + np.float32(half)) / pixel)
                        j = math.floor((np.float32(half) - (pose[2, 3] + t * direction[2]) / along) / pixel)
                        if 0 <= i < size and 0 <= j < size and depth[j, i] > 0 and abs(y) <= max(depth[j, i], step / 2):
                            color = near if y < 0 else behind
                            for k in range(3):
                                out[v, row, column, k] = color[j, i, k]
                            out[v, row, column, 3] = 1
                            break


@njit(fastmath=True)
def _box(depth, distance, half, pixel, step):
    """Corners [3] of a box round what is inflated, with a step to spare; the first beyond the second: there is none."""
    size = depth.shape[0]
    left, right, top, bottom = size, -1, size, -1
    thick = step / 2
    for j in range(size):
        for i in range(size):
            if depth[j, i] > 0:
                left, right, top, bottom = min(left, i), max(right, i), min(top, j), max(bottom, j)
                thick = max(thick, depth[j, i])
    low, high = np.full(3, np.float32(1)), np.full(3, np.float32(-1))
    if right < 0:
        return low, high
    near, far = distance - thick, distance + thick  # of the first camera
    xs = (left * pixel - half, (right + 1) * pixel - half)
    zs = (half - (bottom + 1) * pixel, half - top * pixel)
    low[0], high[0] = min(xs[0] * near, xs[0] * far) - step, max(xs[1] * near, xs[1] * far) + step
    low[1], high[1] = -thick - step, thick + step
    low[2], high[2] = min(zs[0] * near, zs[0] * far) - step, max(zs[1] * near, zs[1] * far) + step
    return low, high
