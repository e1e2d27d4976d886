# SPDX-License-Identifier: GPL-3.0-or-later
"""How the side of a subject looks that a picture does not show."""

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra

from backend.pictures import colors

RIM = 1 / 64  # of a picture's side: so wide is what is seen of what goes round
DETOUR = 0.15  # of a picture's side, for crossing from black to one color


def far_side(picture: np.ndarray, *, mirrored: bool) -> np.ndarray:  # [H, W, 4] -> [H, W, 3] float32
    """Colors of what a premultiplied picture does not show, behind each of its pixels.

    What reaches the edge goes round it: each pixel has the color of that of the rim which is nearest, where crossing
    from one color to another is a detour. So stripes, coats and hair go on, and a face is not on the back of the head.
    mirrored: all of it looks as the near side.
    """
    color, mask = colors(picture), picture[..., 3] > 0.5
    if mirrored or not mask.any():
        return color
    width = RIM * len(picture)
    rim = mask & ~ndimage.binary_erosion(mask, iterations=max(round(width), 1))
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    _, _, nearest = dijkstra(_ways_between(color, number), indices=number[rim], min_only=True, return_predecessors=True)
    far, weight = color.copy(), mask.astype(np.float32)
    far[mask] = color[mask][nearest]
    blurred = ndimage.gaussian_filter(far * weight[..., None], (width / 2, width / 2, 0))
    blurred /= np.maximum(ndimage.gaussian_filter(weight, width / 2), 1e-3)[..., None]
    return np.where((mask & ~rim)[..., None], blurred, color)


def _ways_between(color: np.ndarray, number: np.ndarray) -> csr_array:  # [H, W, 3], [H, W] -> [N, N]
    """How far pixels are from those that they touch: a graph of those whose number is not -1."""
    high, wide = number.shape
    ends, lengths = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one = slice(0, high - down), slice(max(-right, 0), wide - max(right, 0))
        two = slice(down, high), slice(max(right, 0), wide - max(-right, 0))
        both = (number[one] >= 0) & (number[two] >= 0)
        step = np.hypot(down, right) / high + DETOUR * np.abs(color[one] - color[two]).sum(-1)[both]
        ends += [(number[one][both], number[two][both]), (number[two][both], number[one][both])]
        lengths += [step, step]
    count = number.max() + 1
    return coo_array((np.concatenate(lengths), np.concatenate(ends, axis=1)), (count, count)).tocsr()
