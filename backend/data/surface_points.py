# SPDX-License-Identifier: GPL-3.0-or-later
"""Points on the surface of a triangle mesh, and where its motion takes them."""

import numpy as np

from backend.progress import UserError
from blender_addon.contract.surface import even_samples


def sample_triangles(
    corners: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:  # [F, 3, 3] -> [M], [M, 3]
    """Triangles and barycentric weights of `count` points, evenly by area, always the same ones for a seed.

    Raises:
        UserError: the triangles have no area.
    """
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    if not areas.sum() > 0:
        raise UserError("no_surface", "The model has no surface at the first frame.", "Leave the clip out.")
    return even_samples(areas, count, np.random.default_rng(seed))


def follow_surface(corners: np.ndarray, count: int, seed: int = 1) -> np.ndarray:  # [T, F, 3, 3] -> [T, M, 3] float32
    """Points that are even on the surface at the first time, at all times."""
    chosen, weights = sample_triangles(corners[0], count, seed)
    return np.einsum("mc,tmcd->tmd", weights, corners[:, chosen]).astype(np.float32)
