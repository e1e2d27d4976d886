# SPDX-License-Identifier: GPL-3.0-or-later
"""The visual hull keeps what is thin, and what all views together leave of a grid."""

import numpy as np
import pytest
import torch

from backend.splatting.observations import Observations
from backend.splatting.render import render
from backend.splatting.sight import project
from backend.splatting.visual_hull import carve, visual_hull
from blender_addon.contract.orbit import Orbit, orbit_cameras


def test_a_tail_thinner_than_a_coarse_cell_stays() -> None:
    rng = np.random.default_rng(0)
    body = rng.normal(size=(300, 3))
    body = 0.15 * body / np.linalg.norm(body, axis=1, keepdims=True) - [0.3, 0, 0.013]
    tail = np.stack([np.linspace(-0.15, 0.5, 200), np.full(200, 0.004), np.full(200, 0.012)], axis=1)
    points = torch.from_numpy(np.concatenate([body, tail])).float()
    scales = torch.cat([torch.full((300, 3), 0.02), torch.full((200, 3), 0.006)])
    cameras = orbit_cameras(Orbit(frames=16), 128, 128, moving=False)
    still = points.expand(16, -1, -1), torch.tensor([1.0, 0, 0, 0]).expand(16, 500, 4)
    matrices = torch.from_numpy(cameras.viewmats()).float(), torch.from_numpy(cameras.Ks).float()
    images = render(*still, scales, torch.full((500,), 0.99), torch.full((500, 3), 0.5), *matrices, 128, 128)
    hull, _ = visual_hull(Observations(images, cameras), np.ones(16), 1.0, 2_000, rng)
    assert hull[:, 0].max() > 0.45
    assert (np.abs(hull[hull[:, 0] > 0.1][:, 2] - 0.012) < 0.04).all()


@pytest.mark.parametrize("agreement", [1.0, 0.7])
def test_cells_that_are_left_out_early_would_not_have_come_back(agreement: float) -> None:
    """The same cells as when each view has its say on each of them."""
    rng = np.random.default_rng(1)
    cameras = orbit_cameras(Orbit(frames=8), 24, 24, moving=False)
    images = torch.zeros(8, 24, 24, 4)
    images[:, 6:18, 6:18, 3] = torch.from_numpy(rng.random((8, 12, 12)) < 0.9).float()
    weights = rng.uniform(0.2, 1.0, 8)
    low, high, cells = np.full(3, -1.0), np.full(3, 1.0), 12
    line = (np.arange(cells) + 0.5) / cells * 2 - 1
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    seen, kept = np.zeros(cells**3), np.zeros(cells**3)
    for image, viewmat, intrinsics, weight in zip(images, cameras.viewmats(), cameras.Ks, weights, strict=True):
        pixels, _, inside = project(points, viewmat, intrinsics, 24, 24)
        seen += weight * inside
        kept += weight * inside * image[..., 3].numpy()[pixels[:, 1], pixels[:, 0]]
    wanted = (seen > 0.5 * weights.sum()) & (kept >= (agreement - 1e-6) * seen)
    assert 0 < wanted.sum() < 0.5 * wanted.size
    carved = carve(Observations(images, cameras), weights, agreement, low, high, cells)
    np.testing.assert_array_equal(carved.ravel(), wanted)
