# SPDX-License-Identifier: GPL-3.0-or-later
"""The visual hull keeps what is thin."""

import numpy as np
import torch

from backend.splatting.observations import Observations
from backend.splatting.render import render
from backend.splatting.visual_hull import visual_hull
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
