# SPDX-License-Identifier: GPL-3.0-or-later
"""Which points are near which."""

import numpy as np
from mathutils.kdtree import KDTree

_CELLS = 1 << 20  # along each side: the number of a cell fits into 60 bits


def tree_of(points: np.ndarray) -> KDTree:
    """A tree that finds the nearest of points [N, 3]."""
    tree = KDTree(len(points))
    for index, point in enumerate(points.tolist()):
        tree.insert(point, index)
    tree.balance()
    return tree


def path_through(places: np.ndarray) -> np.ndarray:  # [N]
    """The order of places [N, 3] along a path that fills space (Morton's): neighbors on it are near each other."""
    low, high = places.min(axis=0), places.max(axis=0)
    cells = ((places - low) / max((high - low).max(), 1e-12) * (_CELLS - 1)).astype(np.int64)
    number = np.zeros(len(places), np.int64)
    for bit in range(_CELLS.bit_length() - 1):
        for axis in range(3):
            number |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(number, kind="stable")
