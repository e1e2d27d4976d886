# SPDX-License-Identifier: GPL-3.0-or-later
"""Numba kernels of the motion: blending of rigid poses per Gaussian, and rigidity between control points.

Torch alone takes several times as long for the blend (many small gathers), so value and gradient are written by hand.
A pose is 16 numbers: rotation matrix (0..8, row by row), translation (9..11), quaternion wxyz (12..15). All arrays are
float32 and contiguous, indices int32. The sums run in a fixed order: same input, same bits.
"""

import numpy as np
from numba import njit

from backend.compiled import FASTMATH, kernel

POSE_SIZE = 16
_F = np.float32
_POSES, _TABLE, _INDEX = "float32[:,:,::1]", "float32[:,::1]", "int32[:,::1]"  # types of arguments


@njit(fastmath=FASTMATH, error_model="numpy")
def _blend_poses(pose, index, weights, n, blended):
    """Weighted sum of a Gaussian's poses, quaternions turned to the side of the first."""
    for c in range(16):
        blended[c] = _F(0)
    first = index[n, 0]
    for k in range(index.shape[1]):
        b = index[n, k]
        weight = weights[n, k]
        for c in range(12):
            blended[c] += weight * pose[b, c]
        dot = (
            pose[b, 12] * pose[first, 12]
            + pose[b, 13] * pose[first, 13]
            + pose[b, 14] * pose[first, 14]
            + pose[b, 15] * pose[first, 15]
        )
        if dot < _F(0):
            weight = -weight
        for c in range(12, 16):
            blended[c] += weight * pose[b, c]


@kernel(f"void({_POSES}, {_INDEX}, {_TABLE}, {_TABLE}, {_TABLE}, {_POSES}, {_POSES})")
def blend_forward(poses, index, weights, means, quats, out_means, out_quats):
    """Move Gaussians.

    poses [T, B, 16], index [N, k], weights [N, k], means [N, 3], quats [N, 4] -> out_means [T, N, 3],
    out_quats [T, N, 4] (not normalised: a blend of unit quaternions times the Gaussian's own).
    """
    m = np.empty(16, np.float32)
    for t in range(poses.shape[0]):
        for n in range(means.shape[0]):
            _blend_poses(poses[t], index, weights, n, m)
            x, y, z = means[n, 0], means[n, 1], means[n, 2]
            for row in range(3):
                out_means[t, n, row] = m[3 * row] * x + m[3 * row + 1] * y + m[3 * row + 2] * z + m[9 + row]
            aw, ax, ay, az = m[12], m[13], m[14], m[15]
            bw, bx, by, bz = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
            out_quats[t, n, 0] = aw * bw - ax * bx - ay * by - az * bz
            out_quats[t, n, 1] = aw * bx + ax * bw + ay * bz - az * by
            out_quats[t, n, 2] = aw * by - ax * bz + ay * bw + az * bx
            out_quats[t, n, 3] = aw * bz + ax * by - ay * bx + az * bw


@kernel(
    f"void({_POSES}, {_INDEX}, {_TABLE}, {_TABLE}, {_TABLE}, {_POSES}, {_POSES}, "
    f"{_POSES}, {_TABLE}, {_TABLE}, {_TABLE})"
)
def blend_backward(
    poses,
    index,
    weights,
    means,
    quats,
    grad_out_means,
    grad_out_quats,
    grad_poses,
    grad_means,
    grad_quats,
    grad_weights,
):
    """Vector-Jacobian product of `blend_forward`; adds to grad_poses, grad_means, grad_quats and grad_weights.

    With grad_weights [0, k] that one is left out.
    """
    of_weights = grad_weights.shape[0] > 0
    m = np.empty(16, np.float32)
    g = np.empty(16, np.float32)
    for t in range(poses.shape[0]):
        for n in range(means.shape[0]):
            _blend_poses(poses[t], index, weights, n, m)
            for row in range(3):
                slope = grad_out_means[t, n, row]
                for column in range(3):
                    g[3 * row + column] = slope * means[n, column]
                    grad_means[n, column] += slope * m[3 * row + column]
                g[9 + row] = slope
            gw, gx, gy, gz = (
                grad_out_quats[t, n, 0],
                grad_out_quats[t, n, 1],
                grad_out_quats[t, n, 2],
                grad_out_quats[t, n, 3],
            )
            # d(a b)/da: gradient times the conjugate of b from the right
            bw, bx, by, bz = quats[n, 0], -quats[n, 1], -quats[n, 2], -quats[n, 3]
            g[12] = gw * bw - gx * bx - gy * by - gz * bz
            g[13] = gw * bx + gx * bw + gy * bz - gz * by
            g[14] = gw * by - gx * bz + gy * bw + gz * bx
            g[15] = gw * bz + gx * by - gy * bx + gz * bw
            # d(a b)/db: the conjugate of a times the gradient
            aw, ax, ay, az = m[12], -m[13], -m[14], -m[15]
            grad_quats[n, 0] += aw * gw - ax * gx - ay * gy - az * gz
            grad_quats[n, 1] += aw * gx + ax * gw + ay * gz - az * gy
            grad_quats[n, 2] += aw * gy - ax * gz + ay * gw + az * gx
            grad_quats[n, 3] += aw * gz + ax * gy - ay * gx + az * gw
            first = index[n, 0]
            for k in range(index.shape[1]):
                b = index[n, k]
                weight = weights[n, k]
                for c in range(12):
                    grad_poses[t, b, c] += weight * g[c]
                dot = (
                    poses[t, b, 12] * poses[t, first, 12]
                    + poses[t, b, 13] * poses[t, first, 13]
                    + poses[t, b, 14] * poses[t, first, 14]
                    + poses[t, b, 15] * poses[t, first, 15]
                )
                side = _F(-1) if dot < _F(0) else _F(1)
                for c in range(12, 16):
                    grad_poses[t, b, c] += side * weight * g[c]
                if of_weights:
                    slope = _F(0)
                    for c in range(12):
                        slope += poses[t, b, c] * g[c]
                    for c in range(12, 16):
                        slope += side * poses[t, b, c] * g[c]
                    grad_weights[n, k] += slope


# Fast square roots are off by a bit, and no motion must be none exactly.
@kernel(f"void({_POSES}, {_TABLE}, {_POSES})", fastmath=set())
def poses_forward(offsets, points, poses):
    """Six numbers per control point -> pose about that point.

    offsets [T, B, 6] (translation, rho) and points [B, 3] -> poses [T, B, 16]: rotation q = normalise(1, rho / 2) about
    the point, then translation.
    """
    for t in range(offsets.shape[0]):
        for b in range(points.shape[0]):
            rx, ry, rz = offsets[t, b, 3] * _F(0.5), offsets[t, b, 4] * _F(0.5), offsets[t, b, 5] * _F(0.5)
            w = _F(1) / np.sqrt(_F(1) + rx * rx + ry * ry + rz * rz)
            x, y, z = rx * w, ry * w, rz * w
            p = poses[t, b]
            p[0], p[1], p[2] = _F(1) - _F(2) * (y * y + z * z), _F(2) * (x * y - w * z), _F(2) * (x * z + w * y)
            p[3], p[4], p[5] = _F(2) * (x * y + w * z), _F(1) - _F(2) * (x * x + z * z), _F(2) * (y * z - w * x)
            p[6], p[7], p[8] = _F(2) * (x * z - w * y), _F(2) * (y * z + w * x), _F(1) - _F(2) * (x * x + y * y)
            for row in range(3):
                turned = p[3 * row] * points[b, 0] + p[3 * row + 1] * points[b, 1] + p[3 * row + 2] * points[b, 2]
                p[9 + row] = points[b, row] + offsets[t, b, row] - turned
            p[12], p[13], p[14], p[15] = w, x, y, z


@kernel(f"void({_POSES}, {_TABLE}, {_POSES}, {_POSES})")
def poses_backward(poses, points, grad_poses, grad_offsets):
    """Vector-Jacobian product of `poses_forward` for offsets; writes grad_offsets [T, B, 6]."""
    for t in range(poses.shape[0]):
        for b in range(points.shape[0]):
            w, x, y, z = poses[t, b, 12], poses[t, b, 13], poses[t, b, 14], poses[t, b, 15]
            g = grad_poses[t, b]
            for row in range(3):
                grad_offsets[t, b, row] = g[9 + row]
            # dL/dR, with the part that reaches R through the translation
            r00, r01, r02 = g[0] - g[9] * points[b, 0], g[1] - g[9] * points[b, 1], g[2] - g[9] * points[b, 2]
            r10, r11, r12 = g[3] - g[10] * points[b, 0], g[4] - g[10] * points[b, 1], g[5] - g[10] * points[b, 2]
            r20, r21, r22 = g[6] - g[11] * points[b, 0], g[7] - g[11] * points[b, 1], g[8] - g[11] * points[b, 2]
            gw = g[12] + _F(2) * (x * (r21 - r12) + y * (r02 - r20) + z * (r10 - r01))
            gx = g[13] + _F(2) * (-_F(2) * x * (r11 + r22) + y * (r01 + r10) + z * (r02 + r20) + w * (r21 - r12))
            gy = g[14] + _F(2) * (x * (r01 + r10) - _F(2) * y * (r00 + r22) + z * (r12 + r21) + w * (r02 - r20))
            gz = g[15] + _F(2) * (x * (r02 + r20) + y * (r12 + r21) - _F(2) * z * (r00 + r11) + w * (r10 - r01))
            # q = u / |u| with u = (1, rho / 2) and w = 1 / |u|
            along = gw * w + gx * x + gy * y + gz * z
            grad_offsets[t, b, 3] = _F(0.5) * w * (gx - along * x)
            grad_offsets[t, b, 4] = _F(0.5) * w * (gy - along * y)
            grad_offsets[t, b, 5] = _F(0.5) * w * (gz - along * z)


@kernel(f"float64({_POSES}, {_TABLE}, {_INDEX}, float32[::1], float32, float32, {_POSES})")
def rigidity(poses, points, edges, edge_weights, weight_length, weight_turn, grad_poses):
    """As-rigid-as-possible energy between neighbouring control points, and its gradient in one pass.

    Sum over times and edges (i, j) of edge weight times weight_length |x_j - x_i - R_i (p_j - p_i)|^2 +
    weight_turn |q_i - q_j|^2, where x is where the pose takes the point p. Adds to grad_poses [T, B, 16].
    """
    energy = 0.0
    moved = np.empty((points.shape[0], 3), np.float32)
    grad_moved = np.empty((points.shape[0], 3), np.float32)
    for t in range(poses.shape[0]):
        for b in range(points.shape[0]):
            for row in range(3):
                moved[b, row] = (
                    poses[t, b, 3 * row] * points[b, 0]
                    + poses[t, b, 3 * row + 1] * points[b, 1]
                    + poses[t, b, 3 * row + 2] * points[b, 2]
                    + poses[t, b, 9 + row]
                )
                grad_moved[b, row] = _F(0)
        for e in range(edges.shape[0]):
            i, j, weight = edges[e, 0], edges[e, 1], edge_weights[e]
            for row in range(3):
                stretch = moved[j, row] - moved[i, row]
                for column in range(3):
                    stretch -= poses[t, i, 3 * row + column] * (points[j, column] - points[i, column])
                energy += weight_length * weight * stretch * stretch
                slope = _F(2) * weight_length * weight * stretch
                grad_moved[j, row] += slope
                grad_moved[i, row] -= slope
                for column in range(3):
                    grad_poses[t, i, 3 * row + column] -= slope * (points[j, column] - points[i, column])
            for c in range(12, 16):
                turn = poses[t, i, c] - poses[t, j, c]
                energy += weight_turn * weight * turn * turn
                slope = _F(2) * weight_turn * weight * turn
                grad_poses[t, i, c] += slope
                grad_poses[t, j, c] -= slope
        for b in range(points.shape[0]):
            for row in range(3):
                grad_poses[t, b, 9 + row] += grad_moved[b, row]
                for column in range(3):
                    grad_poses[t, b, 3 * row + column] += grad_moved[b, row] * points[b, column]
    return energy
