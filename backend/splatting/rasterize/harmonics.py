# SPDX-License-Identifier: GPL-3.0-or-later
"""Color that depends on the side one looks from: spherical harmonics, and the gradients of coefficients and means.

The real harmonic of degree l and order m in the direction (x, y, z) of length 1 is P(z) C_|m|(x, y) for m >= 0 and
P(z) S_|m|(x, y) for m < 0, where C_m + i S_m = (x + i y)^m and P is the m-th derivative of Legendre's polynomial of
degree l, with a factor. Number l^2 + l + m, and signs, are those of 3DGS (Kerbl et al. 2023) and gsplat.
"""

import math

import numpy as np
from numba import njit
from numpy.polynomial import Legendre

from backend.compiled import kernel
from backend.splatting.rasterize.arguments import MAX_SH_DEGREE
from backend.splatting.rasterize.layout import EXTENT_X, FIRST_CHANNEL, FIRST_CHANNEL_GRADIENT

F = np.float32
ZERO, HALF, ONE = F(0), F(0.5), F(1)


def _polynomials() -> np.ndarray:  # [degree, order, power] float32
    """The coefficients of P, lowest power first."""
    table = np.zeros((MAX_SH_DEGREE + 1, MAX_SH_DEGREE + 1, MAX_SH_DEGREE + 1), np.float32)
    for degree in range(MAX_SH_DEGREE + 1):
        for order in range(degree + 1):
            length = (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - order) / math.factorial(degree + order)
            factor = (-1) ** order * math.sqrt(length * (2 if order else 1))
            powers = factor * Legendre.basis(degree).deriv(order).convert(kind=np.polynomial.Polynomial).coef
            table[degree, order, : len(powers)] = powers
    return table


POLYNOMIALS = _polynomials()


@njit(inline="always")
def _polynomial(degree, order, z):
    """P(z) and its derivative."""
    value, slope = ZERO, ZERO
    for power in range(degree - order, -1, -1):
        slope = slope * z + value
        value = value * z + POLYNOMIALS[degree, order, power]
    return value, slope


@njit(inline="always")
def _directions(mean, center):
    """The unit vector from a camera to a mean, and 1 / distance."""
    x, y, z = mean[0] - center[0], mean[1] - center[1], mean[2] - center[2]
    inverse = ONE / np.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


_INPUTS = "float32[:,:,::1], float32[:,:,:,::1], float32[:,::1], int64, int64"


@kernel(f"void({_INPUTS}, int64, int64, float32[:,::1])")
def shade(
    means,  # [B or 1, N, 3]; 1 where all images share it
    coefficients,  # [B or 1, N, K, 3]
    centers,  # [I, 3] of the cameras, I = B * cameras
    cameras,
    degree,
    start,  # Gaussians [start, stop) of all images
    stop,
    splats,  # [I * N, columns] as projected; out: three channels
):
    """The colors of visible splats."""
    count = means.shape[1]
    for image in range(centers.shape[0]):
        mu = means[min(image // cameras, means.shape[0] - 1)]
        sh = coefficients[min(image // cameras, coefficients.shape[0] - 1)]
        for n in range(start, stop):
            splat = splats[image * count + n]
            if splat[EXTENT_X] < ZERO:
                continue
            x, y, z, _ = _directions(mu[n], centers[image])
            red, green, blue = HALF, HALF, HALF
            c, s = ONE, ZERO
            for order in range(degree + 1):
                for level in range(order, degree + 1):
                    value, _ = _polynomial(level, order, z)
                    k = level * level + level
                    red += value * c * sh[n, k + order, 0]
                    green += value * c * sh[n, k + order, 1]
                    blue += value * c * sh[n, k + order, 2]
                    if order > 0:
                        red += value * s * sh[n, k - order, 0]
                        green += value * s * sh[n, k - order, 1]
                        blue += value * s * sh[n, k - order, 2]
                c, s = x * c - y * s, x * s + y * c
            splat[FIRST_CHANNEL] = max(red, ZERO)
            splat[FIRST_CHANNEL + 1] = max(green, ZERO)
            splat[FIRST_CHANNEL + 2] = max(blue, ZERO)


@kernel(f"void({_INPUTS}, float32[:,::1], float32[:,::1], int64, int64, float32[:,:,::1], float32[:,:,:,::1])")
def shade_backward(
    means,
    coefficients,
    centers,
    cameras,
    degree,
    splats,  # [I * N, columns] as `shade` left them
    splat_gradients,  # [I * N, 6 + channels]
    start,
    stop,
    means_gradient,  # [B or 1, N, 3] is added to
    coefficients_gradient,  # [B or 1, N, K, 3] zeros; out
):
    """Gradients of coefficients, and of means through the direction of view."""
    count = means.shape[1]
    for image in range(centers.shape[0]):
        mu = means[min(image // cameras, means.shape[0] - 1)]
        sh = coefficients[min(image // cameras, coefficients.shape[0] - 1)]
        mu_out = means_gradient[min(image // cameras, means.shape[0] - 1)]
        sh_out = coefficients_gradient[min(image // cameras, coefficients.shape[0] - 1)]
        for n in range(start, stop):
            splat = splats[image * count + n]
            if splat[EXTENT_X] < ZERO:
                continue
            grad = splat_gradients[image * count + n]
            # A color held at 0 does not move.
            red = grad[FIRST_CHANNEL_GRADIENT] if splat[FIRST_CHANNEL] > ZERO else ZERO
            green = grad[FIRST_CHANNEL_GRADIENT + 1] if splat[FIRST_CHANNEL + 1] > ZERO else ZERO
            blue = grad[FIRST_CHANNEL_GRADIENT + 2] if splat[FIRST_CHANNEL + 2] > ZERO else ZERO
            x, y, z, inverse = _directions(mu[n], centers[image])
            gx, gy, gz = ZERO, ZERO, ZERO
            c, s, c_before, s_before = ONE, ZERO, ZERO, ZERO  # of this order, and of the one before
            for order in range(degree + 1):
                for level in range(order, degree + 1):
                    value, slope = _polynomial(level, order, z)
                    k = level * level + level
                    g = red * sh[n, k + order, 0] + green * sh[n, k + order, 1] + blue * sh[n, k + order, 2]
                    sh_out[n, k + order, 0] += value * c * red
                    sh_out[n, k + order, 1] += value * c * green
                    sh_out[n, k + order, 2] += value * c * blue
                    gz += slope * c * g
                    if order > 0:
                        gx += value * F(order) * c_before * g
                        gy -= value * F(order) * s_before * g
                        g = red * sh[n, k - order, 0] + green * sh[n, k - order, 1] + blue * sh[n, k - order, 2]
                        sh_out[n, k - order, 0] += value * s * red
                        sh_out[n, k - order, 1] += value * s * green
                        sh_out[n, k - order, 2] += value * s * blue
                        gz += slope * s * g
                        gx += value * F(order) * s_before * g
                        gy += value * F(order) * c_before * g
                c_before, s_before = c, s
                c, s = x * c - y * s, x * s + y * c
            along = gx * x + gy * y + gz * z
            mu_out[n, 0] += (gx - along * x) * inverse
            mu_out[n, 1] += (gy - along * y) * inverse
            mu_out[n, 2] += (gz - along * z) * inverse
