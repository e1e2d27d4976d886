# SPDX-License-Identifier: GPL-3.0-or-later
"""A slow, plain splat renderer in float64: what Blender's pictures are compared with.

EWA projection (Zwicker et al. 2002) with 3D Gaussian Splatting's rules: 0.3 pixels^2 added to each projected
covariance, nothing below alpha 1/255, alpha at most 0.999, near to far by the depth of the centers, blended in the
space in which the colors are coded.
"""

import math

import numpy as np

from blender_addon.contract import rotations
from blender_addon.contract.clip import Gaussians


def render(
    gaussians: Gaussians,
    sh: np.ndarray,  # [N, K, 3]
    to_world: np.ndarray,  # [4, 4] rotation, translation, uniform scale
    camera_to_world: np.ndarray,  # [4, 4] OpenGL axes
    focal: float,  # pixels
    size: int,  # the picture is size x size
) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied color [size, size, 3] and alpha [size, size], the top row first."""
    linear = np.asarray(to_world, np.float64)[:3, :3]
    rotation, origin = camera_to_world[:3, :3], camera_to_world[:3, 3]
    means = gaussians.means @ linear.T + to_world[:3, 3]
    x, y, z = ((means - origin) @ rotation).T
    depths = -z
    axes = rotation.T @ linear @ (rotations.to_matrix(gaussians.quats.astype(np.float64)) * gaussians.scales[:, None])
    jacobian = np.zeros((len(means), 2, 3))
    jacobian[:, 0, 0] = focal / depths
    jacobian[:, 0, 2] = focal * x / depths**2
    jacobian[:, 1, 1] = -focal / depths
    jacobian[:, 1, 2] = -focal * y / depths**2
    projected = jacobian @ axes
    covariance = projected @ projected.swapaxes(1, 2) + 0.3 * np.eye(2)
    conics = np.linalg.inv(covariance)
    center = np.stack([size / 2 + focal * x / depths, size / 2 - focal * y / depths], axis=-1)

    camera = np.linalg.inv(to_world) @ np.append(origin, 1)
    directions = gaussians.means - camera[:3]
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    colors = np.maximum(0.5 + np.einsum("nk,nkc->nc", sh_values(directions, sh.shape[1]), sh), 0)

    color, clear = np.zeros((size, size, 3)), np.ones((size, size))
    for i in np.argsort(depths):
        if depths[i] < 0.01:
            continue
        reach = 3.4 * np.sqrt(np.diag(covariance[i]))
        left, top = np.maximum(np.floor(center[i] - reach).astype(int), 0)
        right, bottom = np.minimum(np.ceil(center[i] + reach).astype(int) + 1, size)
        if left >= right or top >= bottom:
            continue
        dx = np.arange(left, right) + 0.5 - center[i, 0]
        dy = (np.arange(top, bottom) + 0.5 - center[i, 1])[:, None]
        power = conics[i, 0, 0] * dx * dx + 2 * conics[i, 0, 1] * dx * dy + conics[i, 1, 1] * dy * dy
        alpha = np.minimum(gaussians.opacities[i] * np.exp(-0.5 * power), 0.999)
        alpha[alpha < 1 / 255] = 0
        weight = clear[top:bottom, left:right] * alpha
        color[top:bottom, left:right] += weight[..., None] * colors[i]
        clear[top:bottom, left:right] *= 1 - alpha
    return color, 1 - clear


def sh_values(directions: np.ndarray, coefficients: int) -> np.ndarray:  # [N, 3] -> [N, K]
    """Real spherical harmonics by their definition, from associated Legendre polynomials with Condon-Shortley phase.

    That phase is what gives odd orders their minus sign in 3D Gaussian Splatting.
    """
    x, y, z = directions.astype(np.float64).T
    azimuth, ring = np.arctan2(y, x), np.sqrt(np.maximum(1 - z * z, 0))
    top = round(coefficients**0.5)
    legendre = {(0, 0): np.ones_like(z)}
    for degree in range(1, top):
        legendre[degree, degree] = -(2 * degree - 1) * ring * legendre[degree - 1, degree - 1]
        legendre[degree, degree - 1] = (2 * degree - 1) * z * legendre[degree - 1, degree - 1]
        for order in range(degree - 1):
            one, two = legendre[degree - 1, order], legendre[degree - 2, order]
            legendre[degree, order] = ((2 * degree - 1) * z * one - (degree + order - 1) * two) / (degree - order)
    values = []
    for degree in range(top):
        for order in range(-degree, degree + 1):
            m = abs(order)
            norm = (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m)
            turning = np.cos(m * azimuth) if order >= 0 else np.sin(m * azimuth)
            values.append(math.sqrt(norm * (2 if m else 1)) * legendre[degree, m] * turning)
    return np.stack(values, axis=-1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of numbers between 0 and 1, in dB."""
    return float(-10 * np.log10(np.mean((a - b) ** 2)))
