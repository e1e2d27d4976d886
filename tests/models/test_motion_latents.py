# SPDX-License-Identifier: GPL-3.0-or-later
"""Geometry of motion latents: what warps where, what is filled, and what latents hold."""

import numpy as np
import pytest
import torch

from backend.models.motion_latents import encode, fill, half, latent_unit, warp
from blender_addon.contract.orbit import Orbit, orbit_cameras

SIZE, FRAMES = 32, 5


def cameras():
    """viewmats [1, T, 4, 4], focal / half the width [1, T]."""
    orbit = orbit_cameras(Orbit(frames=FRAMES, elevation=20.0), SIZE, SIZE, moving=True)
    focal = 2 * orbit.Ks[:, 0, 0] / orbit.width
    return torch.from_numpy(orbit.viewmats()).float()[None], torch.from_numpy(focal).float()[None]


def blob(points: torch.Tensor, viewmats: torch.Tensor, focal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A soft opaque dot round the projection of one point per frame [T, 3], and the points' depths [T]."""
    seen = torch.einsum("tij,tj->ti", viewmats[0, :, :3, :3], points) + viewmats[0, :, :3, 3]
    center = focal[0, :, None] * seen[:, :2] / seen[:, 2:]
    line = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    square = (line[None, None, :] - center[:, 0, None, None]) ** 2 + (
        line[None, :, None] - center[:, 1, None, None]
    ) ** 2
    alpha = torch.exp(-square / 0.03)
    color = torch.tensor([0.8, 0.3, 0.1]).reshape(1, 3, 1, 1)
    return torch.cat([alpha[:, None] * color, alpha[:, None]], 1)[None], seen[:, 2]


@pytest.mark.parametrize("motion", [(0.2, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.2), (-0.1, 0.15, 0.1)])
def test_a_point_is_warped_to_where_it_has_moved(motion):
    viewmats, focal = cameras()
    rest = torch.tensor([0.1, -0.05, 0.1]).expand(FRAMES, 3)
    static, _ = blob(rest, viewmats, focal)
    moved = rest + torch.tensor(motion)
    truth, depth = blob(moved, viewmats, focal)
    flow = (torch.tensor(motion) * 2 / depth[:, None])[None, :, :, None, None].expand(-1, -1, -1, 4, 4)
    warped = warp(static, flow, viewmats, focal)
    # The dot does not grow as it comes nearer, a warp does: compare where they are, not their rims.
    line = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1

    def center(images: torch.Tensor) -> torch.Tensor:
        alpha = images[0, :, 3]
        mass = alpha.sum((1, 2))
        return torch.stack([(alpha * line).sum((1, 2)) / mass, (alpha * line[:, None]).sum((1, 2)) / mass])

    torch.testing.assert_close(center(warped), center(truth), rtol=0, atol=0.015)
    assert (center(static) - center(truth)).abs().max() > 0.08


def test_no_flow_warps_nothing():
    viewmats, focal = cameras()
    static = torch.rand(1, FRAMES, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        warp(static, torch.zeros(1, FRAMES, 3, 8, 8), viewmats, focal), static, atol=1e-4, rtol=0
    )


def test_filling_keeps_what_is_known_and_is_smooth_elsewhere():
    weights = torch.zeros(1, 1, 16, 16)
    weights[:, :, 4:8, 4:8] = 1
    filled = fill(weights * torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1), weights)
    torch.testing.assert_close(filled, torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 16, 16))
    weights[:, :, 12, 12] = 1
    values = weights * 2
    values[:, :, 12, 12] = 6
    filled = fill(values, weights)
    assert filled[0, 0, 5, 5] == 2
    assert filled[0, 0, 12, 12] == 6
    assert ((filled >= 2 - 1e-5) & (filled <= 6 + 1e-5)).all()
    assert (fill(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)) == 0).all()


def test_latents_hold_flow_and_coverage_in_units_of_the_magnitude():
    generator = torch.Generator().manual_seed(1)
    moving, static = torch.rand((2, 2, FRAMES, 4, 16, 16), generator=generator)
    moving[:, :, 3] = 1  # covered everywhere: nothing to fill
    flow = torch.rand((2, FRAMES, 3, 16, 16), generator=generator)
    magnitude = torch.tensor([0.5, 8.0])
    real = encode(flow, moving, static, magnitude) * latent_unit(magnitude)
    assert real.shape == (2, FRAMES, 4, 8, 8)
    torch.testing.assert_close(real[:, :, :3], half(flow))
    torch.testing.assert_close(real[:, :, 3:], half(moving[:, :, 3:]) - half(static[:, :, 3:]))
    ratio = latent_unit(magnitude)[1] / latent_unit(magnitude)[0]
    assert ratio.flatten().tolist() == pytest.approx([np.sqrt(8.05 / 0.55)] * 4)
    assert (encode(flow * 0, static, static, torch.zeros(2)) == 0).all()  # what does not move is zero
