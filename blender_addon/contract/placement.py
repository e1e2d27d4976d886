# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians moved, turned, scaled and stretched by a matrix: what formats without a transform of their own need."""

import numpy as np

from . import rotations, spherical_harmonics
from .clip import Gaussians

# From Blender's axes (Z up) to those that other programs stand on. Y down is Y up, turned by half a turn about Z: the
# turn that viewers such as SuperSplat give every PLY file, as cameras of photogrammetry count downwards.
UP_AXES = {
    "Z": np.eye(4),
    "Y": np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
    "Y_DOWN": np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
}


def placed(moment: Gaussians, matrix: np.ndarray) -> Gaussians:
    """The Gaussians of one moment where `matrix` [4, 4] takes them.

    Any matrix will do that keeps space three-dimensional: what it stretches or shears becomes the Gaussian of the
    stretched covariance, whose axes come out in the order of their lengths.

    Raises:
        ValueError: the matrix is flat (a scale of 0).
    """
    matrix = np.asarray(matrix, np.float64)
    linear = matrix[:3, :3]
    means = moment.means.astype(np.float64) @ linear.T + matrix[:3, 3]
    turn, scale = _turn_and_scale(linear)
    if scale is not None:
        quats = rotations.multiply(rotations.from_matrix(turn), moment.quats.astype(np.float64))
        scales = moment.scales * scale
    else:
        axes = rotations.to_matrix(moment.quats.astype(np.float64)) * moment.scales[..., None, :]
        directions, scales, _ = np.linalg.svd(linear @ axes)
        directions[..., :, 2] *= np.sign(np.linalg.det(directions))[..., None]  # a proper rotation, the same ellipsoid
        quats = rotations.from_matrix(directions)
    single = np.float32
    return Gaussians(
        means.astype(single), rotations.normalize(quats).astype(single), scales.astype(single), moment.opacities
    )


def placed_sh(sh: np.ndarray, matrix: np.ndarray) -> np.ndarray:  # [N, K, 3] -> [N, K, 3]
    """Spherical harmonics of Gaussians that `matrix` [4, 4] has taken somewhere.

    Turned and mirrored exactly; of a stretch, which no harmonics can follow, the turn that comes nearest to it counts.

    Raises:
        ValueError: the matrix is flat (a scale of 0).
    """
    turn, _ = _turn_and_scale(np.asarray(matrix, np.float64)[:3, :3])
    mirrored = np.linalg.det(np.asarray(matrix, np.float64)[:3, :3]) < 0
    return spherical_harmonics.turned(sh, -turn if mirrored else turn)


def _turn_and_scale(linear: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The rotation nearest to a matrix [3, 3] (or to its mirror image), and its scale; None where it stretches.

    A Gaussian looks the same when it is mirrored through its own middle: so the mirror image will do.
    """
    left, stretch, right = np.linalg.svd(linear)
    if not stretch[2] > 1e-9 * stretch[0]:
        raise ValueError("The Gaussians would become flat: one of the scales is 0.")
    turn = left @ right
    turn *= np.sign(np.linalg.det(turn))
    uniform = stretch[0] - stretch[2] <= 1e-5 * stretch[0]
    return turn, float(stretch.mean()) if uniform else None
