# SPDX-License-Identifier: GPL-3.0-or-later
"""Real spherical harmonics as 3D Gaussian Splatting counts them: for numbers, arrays and node sockets alike."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .color import linear_to_srgb, srgb_to_linear

MAX_DEGREE = 4
SHARED_DEGREE = 3  # the highest that 3DGS itself has, and so the formats that others read
C0 = 0.28209479177387814  # the constant term: 1 / (2 sqrt(pi))


def sh_basis(degree: int, x: Any, y: Any, z: Any) -> list[Any]:
    """Values of the basis functions after the constant one, (degree + 1)^2 - 1 of them.

    `x, y, z` is the unit vector from the camera to the Gaussian: numbers, arrays, or anything that adds and
    multiplies. Order and signs are those of 3D Gaussian Splatting (Kerbl et al. 2023): within a degree m runs from
    -degree to degree, odd m with negative sign.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"Spherical harmonics of degree {degree} are not supported, only 0 to {MAX_DEGREE}.")
    basis: list[Any] = []
    if degree >= 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        basis += [
            1.0925484305920792 * xy,
            -1.0925484305920792 * yz,
            0.31539156525252005 * (2.0 * zz - xx - yy),
            -1.0925484305920792 * xz,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        sine, cosine = 3.0 * xx - yy, xx - 3.0 * yy  # y sine and x cosine: the third harmonics round the Z axis
        basis += [
            -0.5900435899266435 * y * sine,
            2.890611442640554 * xy * z,
            -0.4570457994644658 * y * (4.0 * zz - xx - yy),
            0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy),
            -0.4570457994644658 * x * (4.0 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * cosine,
        ]
    if degree >= 4:
        basis += [
            2.5033429417967046 * xy * (xx - yy),
            -1.7701307697799304 * yz * sine,
            0.9461746957575601 * xy * (7.0 * zz - 1.0),
            -0.6690465435572892 * yz * (7.0 * zz - 3.0),
            0.10578554691520431 * (zz * (35.0 * zz - 30.0) + 3.0),
            -0.6690465435572892 * xz * (7.0 * zz - 3.0),
            0.47308734787878004 * (xx - yy) * (7.0 * zz - 1.0),
            -1.7701307697799304 * xz * cosine,
            0.6258357354491761 * (xx * cosine - yy * sine),
        ]
    return basis


def turned(sh: np.ndarray, matrix: np.ndarray) -> np.ndarray:  # [N, K, 3], [3, 3] orthogonal -> [N, K, 3] float32
    """Coefficients that give, in each direction that `matrix` has turned or mirrored, the color of the former one."""
    if sh.shape[1] == 1 or np.allclose(matrix, np.eye(3), atol=1e-7):
        return sh
    directions = _directions()
    degree = math.isqrt(sh.shape[1]) - 1
    # Turning mixes the coefficients of each degree among themselves: enough directions tell how.
    change = np.linalg.pinv(_basis(degree, directions @ matrix.T)) @ _basis(degree, directions)
    return np.einsum("kl,nlc->nkc", change.astype(np.float32), sh)


def converted(sh: np.ndarray, source: str, target: str) -> np.ndarray:  # [N, K, 3] -> [N, K, 3] float32
    """The same colors in another color space, "srgb" or "linear"; colors below 0 count as 0, as they do when drawn.

    Exact where K is 1. A color that depends on the view is no sum of harmonics any more once it is converted: what
    comes out is the nearest such sum.
    """
    if source == target:
        return sh
    convert = {"srgb": linear_to_srgb, "linear": srgb_to_linear}[target]
    if sh.shape[1] == 1:
        return ((convert(0.5 + C0 * sh.astype(np.float64)) - 0.5) / C0).astype(np.float32)
    return _refitted(sh, convert)


def _refitted(sh: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    degree = math.isqrt(sh.shape[1]) - 1
    basis = _basis(degree, _directions())
    back = np.linalg.pinv(basis)
    result = np.empty(sh.shape, np.float32)
    for start in range(0, len(sh), 10_000):  # a million Gaussians in all directions at once would fill the memory
        some = slice(start, start + 10_000)
        colors = convert(0.5 + np.einsum("pk,nkc->npc", basis, sh[some]))
        result[some] = np.einsum("kp,npc->nkc", back, colors - 0.5)
    return result


def _basis(degree: int, directions: np.ndarray) -> np.ndarray:  # [P, 3] unit -> [P, K]
    return np.stack([np.full(len(directions), C0), *sh_basis(degree, *directions.T)], axis=-1)


def _directions(count: int = 64) -> np.ndarray:  # [count, 3] unit
    """Evenly over the sphere, on a spiral from pole to pole."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
