# SPDX-License-Identifier: GPL-3.0-or-later
"""Splat files of another program, and what they were made of."""

from pathlib import Path

import numpy as np

from backend.exchange.webp import decode_webp
from blender_addon.contract import rotations
from blender_addon.contract.clip import Gaussians
from blender_addon.contract.splat_files.opening import read_splats
from blender_addon.contract.splat_files.splats import Splats

DATA = Path(__file__).resolve().parents[2] / "data" / "splats"


def opened(path: Path) -> Splats:
    return read_splats(path, decode_webp)


def source() -> Splats:
    return opened(DATA / "source.ply")


def random_splats(n: int = 300, degree: int = 2, seed: int = 0) -> tuple[Gaussians, np.ndarray]:
    random = np.random.default_rng(seed)
    moment = Gaussians(
        means=random.uniform(-2, 3, (n, 3)).astype(np.float32),
        quats=rotations.normalize(random.normal(size=(n, 4))).astype(np.float32),
        scales=random.uniform(0.02, 0.2, (n, 3)).astype(np.float32),
        opacities=random.uniform(0.05, 0.95, n).astype(np.float32),
    )
    return moment, random.uniform(-0.5, 0.5, (n, (degree + 1) ** 2, 3)).astype(np.float32)


def assert_alike(
    splats: Splats,
    moment: Gaussians,
    sh: np.ndarray,
    *,
    means=1e-6,
    shape=1e-6,
    opacities=1e-6,
    colors=1e-6,
    further=1e-6,
) -> None:
    """The same Gaussians, in whatever order, to within these; `shape` is of covariances, and a share of the largest."""
    apart = np.linalg.norm(splats.moment.means[:, None] - moment.means, axis=-1)
    order = apart.argmin(axis=1)
    assert sorted(order) == list(range(len(sh)))
    np.testing.assert_allclose(splats.moment.means, moment.means[order], atol=means)
    expected = covariances(moment)[order]
    np.testing.assert_allclose(covariances(splats.moment), expected, atol=shape * np.abs(expected).max())
    np.testing.assert_allclose(splats.moment.opacities, moment.opacities[order], atol=opacities)
    np.testing.assert_allclose(splats.sh[:, 0], sh[order, 0], atol=colors)
    np.testing.assert_allclose(splats.sh[:, 1:], sh[order, 1:], atol=further)


def covariances(moment: Gaussians) -> np.ndarray:  # [N, 3, 3]
    axes = rotations.to_matrix(rotations.normalize(moment.quats.astype(np.float64))) * moment.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)
