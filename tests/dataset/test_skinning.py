# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np

from backend.data.skinning import skin


def test_skinning_blends_the_bones():
    vertices, normals = np.float32([[1, 0, 0], [0, 1, 0]]), np.float32([[1, 0, 0], [0, 0, 1]])
    joints, weights = np.int32([[0, 1, 0, 0], [1, 0, 0, 0]]), np.float32([[0.25, 0.75, 0, 0], [1, 0, 0, 0]])
    identity, turned = np.eye(3, 4), np.float32([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 0]])  # a quarter about Z, moved
    matrices = np.stack([identity, turned])[None].astype(np.float32)
    positions, directions = np.empty((1, 2, 3), np.float32), np.empty((1, 2, 3), np.float32)
    skin(vertices, normals, joints, weights, matrices, positions, directions)
    np.testing.assert_allclose(positions[0], [[0.25 + 0.75 * 5, 0.75, 0], [4, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(directions[0], [[0.25, 0.75, 0], [0, 0, 1]], atol=1e-6)
