# SPDX-License-Identifier: GPL-3.0-or-later
"""Poses of baked meshes."""

import numba
import numpy as np

_F = np.float32


@numba.njit(cache=True, nogil=True, fastmath=True)
def skin(vertices, normals, joints, weights, matrices, positions, directions):
    """Linear blend skinning of T poses.

    vertices, normals [V, 3], joints [V, 4], weights [V, 4] (sum 1), matrices [T, B, 3, 4]
    -> positions [T, V, 3], directions [T, V, 3] (normals, not normalised). All float32.
    """
    for t in range(matrices.shape[0]):
        for v in range(vertices.shape[0]):
            x, y, z = vertices[v, 0], vertices[v, 1], vertices[v, 2]
            nx, ny, nz = normals[v, 0], normals[v, 1], normals[v, 2]
            for row in range(3):
                p, n = _F(0), _F(0)
                for k in range(4):
                    w = weights[v, k]
                    if w > 0:
                        m = matrices[t, joints[v, k], row]
                        p += w * (m[0] * x + m[1] * y + m[2] * z + m[3])
                        n += w * (m[0] * nx + m[1] * ny + m[2] * nz)
                positions[t, v, row] = p
                directions[t, v, row] = n
