# SPDX-License-Identifier: GPL-3.0-or-later
"""Real spherical harmonics as 3D Gaussian Splatting counts them: for numbers, arrays and node sockets alike."""

from typing import Any

MAX_DEGREE = 4
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
