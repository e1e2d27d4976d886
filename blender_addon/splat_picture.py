# SPDX-License-Identifier: GPL-3.0-or-later
"""Small pictures of Gaussians, drawn by numpy: without a render engine, a scene or a graphics card.

The rules are those of 3D Gaussian Splatting, and so those of the node groups: each Gaussian is projected as an ellipse
(EWA, Zwicker et al. 2002), and the ellipses are blended from near to far by the depth of their centers.
"""

import itertools

import numpy as np

from .contract import rotations
from .contract.clip import Gaussians
from .contract.color import linear_to_srgb
from .contract.spherical_harmonics import C0, sh_basis
from .node_groups import DILATION, MAX_ALPHA, MIN_ALPHA

_PAIRS = 1 << 20  # of a Gaussian and a pixel that are worked on at once: about 100 MB
_OPAQUE = 1e-3  # a pixel through which less light passes is done


def draw(
    gaussians: Gaussians, sh: np.ndarray, camera_to_world: np.ndarray, focal: float, size: int
) -> np.ndarray:  # [size, size, 4] float32
    """A square picture, color times alpha and alpha, the top row first.

    Args:
        gaussians: of one moment.
        sh: [N, K, 3] their spherical harmonics.
        camera_to_world: [4, 4] in the space of the Gaussians, without scale, OpenGL axes (right, up, backward).
        focal: focal length in pixels; the camera looks at the middle of the picture.
        size: side of the picture in pixels, 256 at most.
    """
    rotation, origin = camera_to_world[:3, :3], camera_to_world[:3, 3]
    x, y, z = ((gaussians.means - origin) @ rotation).T
    near_first = np.argsort(-z)
    near_first = near_first[(z[near_first] < -1e-6) & (gaussians.opacities[near_first] > MIN_ALPHA)]
    x, y, depth = x[near_first], y[near_first], -z[near_first]
    opacity = gaussians.opacities[near_first].astype(np.float64)

    turned = rotation.T @ rotations.to_matrix(gaussians.quats[near_first].astype(np.float64))
    axes = turned * gaussians.scales[near_first][:, None]
    across = (focal / depth)[:, None] * (axes[:, 0] + (x / depth)[:, None] * axes[:, 2])  # [N, 3] pixels
    down = -(focal / depth)[:, None] * (axes[:, 1] + (y / depth)[:, None] * axes[:, 2])
    xx, yy = np.square(across).sum(1) + DILATION, np.square(down).sum(1) + DILATION
    xy = (across * down).sum(1)
    determinant = xx * yy - xy * xy
    center_x, center_y = size / 2 + focal * x / depth, size / 2 - focal * y / depth
    reach = np.sqrt(2 * np.log(opacity / MIN_ALPHA))  # in standard deviations, to where it is too faint

    left, right = _pixels(center_x, reach * np.sqrt(xx), size)
    top, bottom = _pixels(center_y, reach * np.sqrt(yy), size)
    width = right - left
    counts = width * (bottom - top)
    colors = _colors(gaussians.means[near_first] - origin, sh[near_first])

    light = np.zeros((3, size * size))
    clear = np.ones(size * size)
    for chunk in _chunks(counts):
        which = np.repeat(np.arange(chunk.start, chunk.stop), counts[chunk])
        place = np.arange(len(which)) - np.repeat(np.cumsum(counts[chunk]) - counts[chunk], counts[chunk])
        column, row = left[which] + place % width[which], top[which] + place // width[which]
        dx, dy = column + 0.5 - center_x[which], row + 0.5 - center_y[which]
        distance = (yy[which] * dx * dx - 2 * xy[which] * dx * dy + xx[which] * dy * dy) / determinant[which]
        alpha = np.minimum(opacity[which] * np.exp(-distance / 2), MAX_ALPHA)
        pixel = row * size + column
        seen = np.flatnonzero((alpha >= MIN_ALPHA) & (clear[pixel] > _OPAQUE))
        if not len(seen):
            continue
        seen = seen[np.argsort(pixel[seen].astype(np.uint16), kind="stable")]  # of each pixel, near ones stay first
        pixel, alpha, which = pixel[seen], alpha[seen], which[seen]
        passed = np.log1p(-alpha)  # logarithm of the light that each lets through
        before = np.cumsum(passed) - passed
        firsts = np.flatnonzero(np.diff(pixel, prepend=-1))
        before -= np.repeat(before[firsts], np.diff(firsts, append=len(pixel)))
        weight = clear[pixel] * np.exp(before) * alpha
        for channel in range(3):
            light[channel] += np.bincount(pixel, weight * colors[which, channel], size * size)
        clear *= np.exp(np.bincount(pixel, passed, size * size))
    return np.concatenate([light, 1 - clear[None]]).T.reshape(size, size, 4).astype(np.float32)


def to_srgb(picture: np.ndarray) -> np.ndarray:  # [..., 4] -> [..., 4]
    """A picture whose color times alpha is linear, as one where it is sRGB."""
    alpha = picture[..., 3:]
    linear = np.clip(np.divide(picture[..., :3], alpha, out=np.zeros_like(picture[..., :3]), where=alpha > 0), 0, 1)
    return np.concatenate([linear_to_srgb(linear) * alpha, alpha], axis=-1).astype(picture.dtype)


def _pixels(center: np.ndarray, reach: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and the one after the last that a Gaussian reaches, within the picture."""
    first = np.clip(np.floor(center - reach), 0, size).astype(np.int64)
    return first, np.maximum(np.clip(np.ceil(center + reach), 0, size).astype(np.int64), first)


def _colors(directions: np.ndarray, sh: np.ndarray) -> np.ndarray:  # [N, 3], [N, K, 3] -> [N, 3]
    x, y, z = (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).T
    degree = round(sh.shape[1] ** 0.5) - 1
    colors = 0.5 + C0 * sh[:, 0]
    for index, value in enumerate(sh_basis(degree, x, y, z), 1):
        colors = colors + value[:, None] * sh[:, index]
    return np.maximum(colors, 0)


def _chunks(counts: np.ndarray) -> list[slice]:
    """Stretches of the Gaussians that cover about `_PAIRS` pixels each."""
    parts = np.cumsum(counts) // _PAIRS
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1), len(counts)]
    return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]
