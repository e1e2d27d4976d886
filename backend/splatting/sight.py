# SPDX-License-Identifier: GPL-3.0-or-later
"""What a camera sees of points on a surface: where they lie in its picture, and which of them others hide."""

import numpy as np
import torch
from torch import Tensor


def project(
    points: np.ndarray,  # [N, 3]
    viewmat: np.ndarray,  # [4, 4] world to camera, OpenCV axes
    intrinsics: np.ndarray,  # [3, 3]
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [N, 2] (column, row; int64, clipped to the picture), depths [N], and which lie inside the picture [N]."""
    in_camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    depth = in_camera[:, 2]
    ahead = depth > 1e-6
    plane = in_camera @ intrinsics.T
    # Column by column: NumPy is several times slower along an axis of two.
    column, row = (np.floor(plane[:, axis] / np.where(ahead, depth, 1.0)) for axis in (0, 1))
    inside = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = np.empty((len(points), 2), np.int64)
    pixels[:, 0], pixels[:, 1] = column.clip(0, width - 1), row.clip(0, height - 1)
    return pixels, depth, inside


def unhidden(cells: Tensor, depth: Tensor, tolerance: float) -> Tensor:  # [T, N] int64, [T, N] -> [T, N] bool
    """Which points T cameras see, by a coarse depth picture: none in the same cell is nearer by `tolerance` or more.

    Cells count from 0, in any order. They have to be large enough that the surface in front leaves none empty. A point
    at infinite depth is not seen and hides nothing.
    """
    count = int(cells.max()) + 1 if cells.numel() else 0
    nearest = depth.new_full((len(depth), count), torch.inf).scatter_reduce(1, cells, depth, "amin")
    return depth < nearest.gather(1, cells) + tolerance


def seen_in(pixels: np.ndarray, depth: np.ndarray, inside: np.ndarray, cell: float, tolerance: float) -> np.ndarray:
    """Which of N points a camera sees, by what `project` says of them and cells of so many pixels a side: [N] bool."""
    column, row = (pixels / cell).astype(np.int64).T
    cells = torch.from_numpy(row * (column.max(initial=0) + 1) + column)
    return unhidden(cells[None], torch.from_numpy(np.where(inside, depth, np.inf))[None], tolerance)[0].numpy()
