# SPDX-License-Identifier: GPL-3.0-or-later
"""Quaternions (wxyz) for numpy arrays of any leading shape."""

import numpy as np


def normalize(quats: np.ndarray) -> np.ndarray:  # [..., 4] -> [..., 4]
    """Unit quaternions; a zero quaternion becomes the identity."""
    norms = np.sqrt(np.einsum("...i,...i->...", quats, quats))
    unit = quats / np.maximum(norms, 1e-12)[..., None]
    unit[norms <= 1e-12] = (1, 0, 0, 0)
    return unit


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [..., 4], [..., 4] -> [..., 4]
    """Hamilton product: first rotate by `b`, then by `a`."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    product = np.empty(np.broadcast_shapes(a.shape, b.shape), np.result_type(a, b))
    product[..., 0] = aw * bw - ax * bx - ay * by - az * bz
    product[..., 1] = aw * bx + ax * bw + ay * bz - az * by
    product[..., 2] = aw * by - ax * bz + ay * bw + az * bx
    product[..., 3] = aw * bz + ax * by - ay * bx + az * bw
    return product


def to_matrix(quats: np.ndarray) -> np.ndarray:  # [..., 4] unit -> [..., 3, 3]
    """Rotation matrices of unit quaternions."""
    w, x, y, z = np.moveaxis(quats, -1, 0)
    matrices = np.empty((*quats.shape[:-1], 3, 3), quats.dtype)
    matrices[..., 0, 0], matrices[..., 0, 1] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z)
    matrices[..., 0, 2], matrices[..., 1, 0] = 2 * (x * z + w * y), 2 * (x * y + w * z)
    matrices[..., 1, 1], matrices[..., 1, 2] = 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    matrices[..., 2, 0], matrices[..., 2, 1] = 2 * (x * z - w * y), 2 * (y * z + w * x)
    matrices[..., 2, 2] = 1 - 2 * (x * x + y * y)
    return matrices


def from_matrix(matrices: np.ndarray) -> np.ndarray:  # [..., 3, 3] proper rotations -> [..., 4] unit
    """Quaternions of rotation matrices; of the two of each rotation, the one whose largest component is above 0."""
    m = matrices
    trace = np.trace(m, axis1=-2, axis2=-1)
    # Four times the products of each pair of components: its row with the largest diagonal is the most exact one.
    products = np.empty((*m.shape[:-2], 4, 4), m.dtype)
    products[..., 0, 0] = 1 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        products[..., 1 + i, 1 + i] = 1 - trace + 2 * m[..., i, i]
        products[..., 0, 1 + i] = products[..., 1 + i, 0] = m[..., k, j] - m[..., j, k]
        products[..., 1 + i, 1 + j] = products[..., 1 + j, 1 + i] = m[..., i, j] + m[..., j, i]
    largest = np.argmax(np.diagonal(products, axis1=-2, axis2=-1), axis=-1)
    return normalize(np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :])


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:  # [..., 4] x 2 -> [..., 4]
    """Spherical interpolation along the shorter arc; `weight` 0 gives `a`, 1 gives `b`."""
    dot = np.sum(a * b, axis=-1, keepdims=True)
    b = np.where(dot < 0, -b, b)
    angle = np.arccos(np.clip(np.abs(dot), 0, 1))
    sine = np.sin(angle)
    straight = sine < 1e-6  # nearly equal: the straight line is exact enough and does not divide by 0
    safe = np.where(straight, 1, sine)
    weight_a = np.where(straight, 1 - weight, np.sin((1 - weight) * angle) / safe)
    weight_b = np.where(straight, weight, np.sin(weight * angle) / safe)
    return normalize(weight_a * a + weight_b * b)


def same_side(quats: np.ndarray, former: np.ndarray) -> np.ndarray:  # [..., 4] x 2 -> [..., 4]
    """The same rotations as `quats`, each with the sign that brings it nearer to its `former`."""
    return np.where(np.einsum("...i,...i->...", quats, former)[..., None] < 0, -quats, quats)


def make_continuous(quats: np.ndarray) -> np.ndarray:  # [T, ..., 4] -> [T, ..., 4]
    """Flip signs so that each quaternion lies on the side of its predecessor in time."""
    continuous = quats.copy()
    for t in range(1, len(quats)):
        continuous[t] = same_side(quats[t], continuous[t - 1])
    return continuous
