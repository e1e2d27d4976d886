# SPDX-License-Identifier: GPL-3.0-or-later
"""Solids behind pictures: which points behind each pixel belong to the subject, and how that looks from other sides.

A solid is a grid of RAYS x RAYS rays of the camera that took the picture, at -Y in distance 2, and of DEPTHS depths
along each. What the picture shows, its outline and its colors, is kept at the picture's own resolution.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from backend.compiled import kernel
from backend.models.inflation import FLATNESS, thickness
from backend.pictures import colors
from blender_addon.contract.orbit import Cameras, Orbit

RAYS = 128
DEPTHS = 96
HALF_DEPTH = 0.72  # clip space
SMOOTH = 0.8  # steps of the grid, so that surfaces are no stairs
ROUNDS, SPREAD = 60, 1.5  # rays: of what fills an outline, from what is there
INSIDE = 0.5  # of a smoothed solid
SHARE = 0.8  # of what is at the likeliest depth: enough behind a pixel of the outline that has less than INSIDE


def occupancy(points: np.ndarray, faces: np.ndarray, half: float) -> np.ndarray:  # [RAYS, RAYS, DEPTHS] bool
    """Which points of the grid lie within a mesh, or are touched by it.

    points: [V, 3] float32, clip space; faces: [F, 3] int32, counter-clockwise from outside; half: tangent of half the
    field of view.
    """
    winding = np.zeros((RAYS, RAYS, DEPTHS + 1), np.int16)
    touched = np.zeros((RAYS, RAYS, DEPTHS), np.bool_)
    _cross(points, faces, RAYS / 2 / half, 2 * HALF_DEPTH / DEPTHS, winding, touched)
    last = DEPTHS - touched[..., ::-1].argmax(-1)
    entered = winding[..., :-1].cumsum(-1) >= 1
    # Where a ray enters more often than it leaves, the mesh has a hole: nothing is behind the last surface.
    entered &= (winding.sum(-1) == 0)[..., None] | (np.arange(DEPTHS) < last[..., None])
    return entered | touched


def filled(solid: np.ndarray, mask: np.ndarray, half: float) -> np.ndarray:  # [RAYS, RAYS, DEPTHS] float32
    """A solid [RAYS, RAYS, DEPTHS] bool as far as an outline [RAYS, RAYS] reaches, smoothed.

    What is cut off from the largest part falls away. Where the outline has nothing behind it then, it is inflated, at
    depths between those of what is around.
    """
    mask = ndimage.binary_dilation(mask)  # pixels at the edge belong to it in part
    solid = _largest(solid & mask[..., None])
    covered = solid.any(-1)
    depths = ((np.arange(DEPTHS) + 0.5) / DEPTHS * 2 - 1) * HALF_DEPTH
    if not covered.any():
        middle = np.zeros(mask.shape)
    else:
        nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
        first = solid.argmax(-1)
        beyond = ~solid & (np.arange(DEPTHS) > first[..., None])
        last = np.where(beyond.any(-1), beyond.argmax(-1), DEPTHS) - 1
        middle = ((depths[first] + depths[last]) / 2)[tuple(nearest)]  # of the nearest to the camera of what is there
        known = middle
        for _ in range(ROUNDS):  # between them, depths change gradually: else legs are torn
            middle = np.where(covered, known, ndimage.gaussian_filter(middle, SPREAD))
    reach = np.maximum(FLATNESS * 2 * half * Orbit.distance / RAYS * thickness(mask), 2 * HALF_DEPTH / DEPTHS)
    lens = np.abs(depths - middle[..., None]) <= reach[..., None]
    whole = solid | (lens & (mask & ~covered)[..., None])
    return ndimage.gaussian_filter(whole.astype(np.float32), SMOOTH)


def _largest(solid: np.ndarray) -> np.ndarray:
    """The largest part of a solid whose points touch each other, if only at a corner."""
    parts, count = ndimage.label(solid, np.ones((3, 3, 3)))
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if count > 1 else solid


def solid_views(
    picture: np.ndarray, far: np.ndarray, solid: np.ndarray, cameras: Cameras, *, whole: bool = True
) -> np.ndarray:
    """A solid in the colors of its picture, seen from other sides.

    picture: [H, W, 4] float32 0..1, H = W, premultiplied, as a camera at -Y in distance 2 with the field of view of
    `cameras` sees the subject; far: [H, W, 3] float32, colors of its other side, see `far_side`; solid:
    [RAYS, RAYS, DEPTHS] float32, above INSIDE within. whole: one that is deeper than 1 is made smaller, so that all
    cameras see all of it.

    Returns [V, H, W, 4] float32, premultiplied, H and W as `cameras` say.
    """
    half = cameras.width / 2 / cameras.Ks[0, 0, 0]
    grid = torch.from_numpy(np.ascontiguousarray(solid.transpose(2, 0, 1)))[:, None]
    size = picture.shape[:2]
    deepest = torch.stack([functional.interpolate(one[None], size, mode="bilinear")[0, 0] for one in grid]).amax(0)
    deepest = np.maximum(SHARE * deepest.numpy(), 1e-3)
    least = np.where(picture[..., 3] > 0.5, np.minimum(deepest, INSIDE), np.inf).astype(np.float32)
    low, high = _box(solid, least, half)
    poses = cameras.camera_to_world.astype(np.float32)
    if whole:
        poses[:, :3, 3] *= max(1, high[1] - low[1])
    sides = np.stack([colors(picture), far]).astype(np.float32)
    views = np.zeros((len(poses), cameras.height, cameras.width, 4), np.float32)
    _look(sides, _turns(solid, np.isfinite(least), half), least, solid, poses, low, high, half, views)
    return views


def _turns(solid: np.ndarray, shown: np.ndarray, half: float) -> np.ndarray:  # [H, W] float32, clip space
    """The depth behind each pixel where a solid turns to its far side.

    Half-way between where its ray enters and where it leaves at last; but no deeper than if it were round:
    seen from its front, a fish has an eye on each side, no stripe.
    """
    within = solid > np.minimum(INSIDE, SHARE * solid.max(-1, keepdims=True))
    first, last = within.argmax(-1), DEPTHS - 1 - within[..., ::-1].argmax(-1)
    ray = np.minimum((np.arange(len(shown)) + 0.5) * RAYS / len(shown), RAYS - 1).astype(int)
    entered, halfway = (
        (of * (2 * HALF_DEPTH / DEPTHS) - HALF_DEPTH)[np.ix_(ray, ray)] for of in (first, (first + last + 1) / 2)
    )
    reach = 2 * half * Orbit.distance / len(shown) * thickness(shown)
    return np.minimum(halfway, entered + reach).astype(np.float32)


def _box(solid: np.ndarray, least: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:  # [3], [3] float32
    """Corners of a box around what is seen; the first is beyond the second where there is nothing."""
    rows, columns = (np.isfinite(least).any(axis).nonzero()[0] for axis in (1, 0))
    depths = (solid > least.min(initial=INSIDE)).any((0, 1)).nonzero()[0]
    if not len(rows):
        return np.ones(3, np.float32), -np.ones(3, np.float32)
    pixel = 2 * half / len(least)
    ys = (depths[[0, -1]] + np.array([-0.5, 1.5])) * (2 * HALF_DEPTH / DEPTHS) - HALF_DEPTH  # between two, it is passed
    away = Orbit.distance + ys[:, None]
    xs = ((columns[[0, -1]] + [0, 1]) * pixel - half) * away
    zs = (half - (rows[[-1, 0]] + [1, 0]) * pixel) * away
    low, high = (np.array([of(xs), of(ys), of(zs)], np.float32) for of in (np.min, np.max))
    return low, high


@kernel("void(float32[:,::1], int32[:,::1], float64, float64, int16[:,:,::1], boolean[:,:,::1])", fastmath=True)
def _cross(points, faces, focal, step, winding, touched):
    """Add to `winding` [R, R, D + 1], at the first depth that is behind it, 1 for each surface that a ray enters and -1
    for each that it leaves; mark the depths [R, R, D] in which these lie. focal: rays."""
    rays, depths = touched.shape[0], touched.shape[2]
    middle, nearest = rays * 0.5, -0.5 * depths * step
    for f in range(faces.shape[0]):
        a, b, c = points[faces[f, 0]], points[faces[f, 1]], points[faces[f, 2]]
        za, zb, zc = a[1] + 2, b[1] + 2, c[1] + 2
        xa, ya = middle + focal * a[0] / za, middle - focal * a[2] / za
        xb, yb = middle + focal * b[0] / zb, middle - focal * b[2] / zb
        xc, yc = middle + focal * c[0] / zc, middle - focal * c[2] / zc
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if abs(area) < 1e-9:
            continue
        top, bottom = math.ceil(min(ya, yb, yc) - 0.5), math.floor(max(ya, yb, yc) - 0.5)
        left, right = math.ceil(min(xa, xb, xc) - 0.5), math.floor(max(xa, xb, xc) - 0.5)
        for row in range(max(0, top), min(rays - 1, bottom) + 1):
            for column in range(max(0, left), min(rays - 1, right) + 1):
                x, y = column + 0.5, row + 0.5
                wb = ((x - xa) * (yc - ya) - (xc - xa) * (y - ya)) / area
                wc = ((xb - xa) * (y - ya) - (x - xa) * (yb - ya)) / area
                if wb < 0 or wc < 0 or wb + wc > 1:
                    continue
                depth = (1 / ((1 - wb - wc) / za + wb / zb + wc / zc) - 2 - nearest) / step
                first = min(max(math.ceil(depth - 0.5), 0), depths)
                winding[row, column, first] += 1 if area < 0 else -1  # rows grow downwards
                if 0 <= depth < depths:
                    touched[row, column, int(depth)] = True


@kernel(
    "void(float32[:,:,:,::1], float32[:,::1], float32[:,::1], float32[:,:,::1], float32[:,:,::1], float32[::1], "
    "float32[::1], float64, float32[:,:,:,::1])",
    fastmath=True,
)
def _look(sides, turns, least, solid, poses, low, high, half, out):
    """March the rays of each view through a box, from `low` to `high`, in steps of one pixel of the picture.

    sides [2, H, W, 3]: colors before and behind `turns` [H, W]; least [H, W]: what is inside behind each pixel; outside
    of the outline nothing is.
    """
    size, rays, depths = least.shape[0], solid.shape[0], solid.shape[2]
    height, width = out.shape[1], out.shape[2]
    pixel = np.float32(2 * half / size)
    step, coarser = 2 * pixel, np.float32(rays / size)
    along_scale = np.float32(depths / (2 * HALF_DEPTH))
    direction = np.empty(3, np.float32)
    for v in range(poses.shape[0]):
        pose = poses[v]
        for row in range(height):
            for column in range(width):
                a = ((column + np.float32(0.5)) * 2 - width) * np.float32(half) / width
                b = (height - (row + np.float32(0.5)) * 2) * np.float32(half) / width
                enter, leave = np.float32(0.05), np.float32(100)
                for k in range(3):
                    direction[k] = pose[k, 0] * a + pose[k, 1] * b - pose[k, 2]
                    if abs(direction[k]) < np.float32(1e-6):
                        if pose[k, 3] < low[k] or pose[k, 3] > high[k]:
                            leave = np.float32(-1)
                    else:
                        one = (low[k] - pose[k, 3]) / direction[k]
                        two = (high[k] - pose[k, 3]) / direction[k]
                        enter, leave = max(enter, min(one, two)), min(leave, max(one, two))
                t = enter
                while t <= leave:
                    y = pose[1, 3] + t * direction[1]
                    away = y + np.float32(2)  # from the picture's camera
                    i = ((pose[0, 3] + t * direction[0]) / away + np.float32(half)) / pixel
                    j = (np.float32(half) - (pose[2, 3] + t * direction[2]) / away) / pixel
                    if 0 <= i < size and 0 <= j < size and least[int(j), int(i)] <= 1:
                        place = (y + np.float32(HALF_DEPTH)) * along_scale - np.float32(0.5)
                        k = math.floor(place)
                        share = place - k
                        x, z = i * coarser - np.float32(0.5), j * coarser - np.float32(0.5)
                        i0, j0 = max(math.floor(x), 0), max(math.floor(z), 0)
                        i1, j1 = min(i0 + 1, rays - 1), min(j0 + 1, rays - 1)
                        across, down = (
                            min(max(x - i0, np.float32(0)), np.float32(1)),
                            min(max(z - j0, np.float32(0)), np.float32(1)),
                        )
                        value = np.float32(0)
                        for d in range(2):
                            if 0 <= k + d < depths:
                                upper = solid[j0, i0, k + d] * (1 - across) + solid[j0, i1, k + d] * across
                                lower = solid[j1, i0, k + d] * (1 - across) + solid[j1, i1, k + d] * across
                                value += (upper * (1 - down) + lower * down) * (share if d else 1 - share)
                        if value > least[int(j), int(i)]:
                            side = int(y > turns[int(j), int(i)])
                            for c in range(3):
                                out[v, row, column, c] = sides[side, int(j), int(i), c]
                            out[v, row, column, 3] = 1
                            break
                    t += step
