# SPDX-License-Identifier: GPL-3.0-or-later
"""Points spread evenly over a surface that other points sample."""

import numpy as np
from scipy.spatial import cKDTree

LONE = 0.05  # clip space: how far apart the likes of a point are that has no neighbours


def spread_samples(
    points: np.ndarray,  # [M, 3] float32
    normals: np.ndarray,  # [M, 3] float32
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # [count, 3] x 2
    """`count` points spread evenly over the surface that `points` sample, with their normals."""
    chosen, shift = spread(points, normals, count, rng)
    return (points[chosen] + shift).astype(np.float32), normals[chosen]


def spread(
    points: np.ndarray,  # [M, 3]
    normals: np.ndarray,  # [M, 3]
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # [count] int64, [count, 3]
    """Which of `points` lie evenly on the surface, and how far beside them.

    Where there are too few, some are taken twice and shifted along the surface.
    """
    if len(points) >= count:
        return one_per_cell(points, count, rng), np.zeros((count, 3))
    extra = rng.integers(len(points), size=count - len(points))
    spacing = neighbour_distances(points)
    shift = rng.normal(size=(len(extra), 3)) * 0.5 * spacing[extra, None]
    shift -= (shift * normals[extra]).sum(axis=1, keepdims=True) * normals[extra]
    return np.concatenate([np.arange(len(points)), extra]), np.concatenate([np.zeros_like(points), shift])


def one_per_cell(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:  # [M, 3] -> [count] int64
    """Indices of `count` points, one from each cell of a grid as far as that goes: even, and quick for any number."""
    order = rng.permutation(len(points))
    if count < 2:
        return order[:count]
    shuffled = points[order] - points.min(axis=0)
    small, large = 1e-6, float(shuffled.max()) + 1e-6  # size of a cell: too many are filled, too few are
    kept = np.zeros(1, np.int64)  # of a single cell
    for _ in range(20):
        size = (small * large) ** 0.5
        cells = (shuffled / size).astype(np.int64).clip(0, 2**20)
        _, first = np.unique(cells @ np.array([1 << 42, 1 << 21, 1]), return_index=True)
        if len(first) > count:
            small = size
        else:
            large, kept = size, first
        if large < 1.02 * small:
            break
    # The few that are missing, from anywhere.
    rest = np.setdiff1d(np.arange(len(points)), kept, assume_unique=True)
    return order[np.concatenate([kept, rest[: count - len(kept)]])]


def neighbour_distances(points: np.ndarray) -> np.ndarray:  # [N, 3] -> [N]
    """Mean distance of each point to its three nearest neighbours, or `LONE`."""
    neighbours = min(3, len(points) - 1)
    if neighbours < 1:
        return np.full(len(points), LONE)
    return cKDTree(points).query(points, neighbours + 1)[0][:, 1:].mean(axis=1)
