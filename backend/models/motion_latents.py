# SPDX-License-Identifier: GPL-3.0-or-later
"""Motion latents: how a moving orbit differs from its static orbit, small, smooth, and zero where nothing moves.

Four channels at half resolution: scene flow (how far the surface point that a pixel sees has come since time 0, in
world axes, times 2 / depth, so that it projects exactly without knowing the depth) and the change of coverage. They
play the part of the VAE's latents. What is decoded is the flow, which `pipelines/moved_subject.py` shows; the coverage
only teaches the network where outlines go.

Latents are divided by sqrt(m): their size says nothing about how *much* moves, which the magnitude alone decides.
"""

import torch
from torch import Tensor
from torch.nn import functional

CHANNELS = 4
FLOW_CHANNELS = 3
FLOW_UNIT = 0.04  # about twice the root mean square of flow / sqrt(m) over the training clips
COVERAGE_UNIT = 0.15  # likewise
MAGNITUDE_FLOOR = 0.05  # keeps the unit of clips that hardly move above zero


def latent_unit(magnitude: Tensor) -> Tensor:  # [B] -> [B, 1, 4, 1, 1]
    """What latents of clips of this motion magnitude are multiplied by to give flow and coverage."""
    units = torch.tensor([FLOW_UNIT] * FLOW_CHANNELS + [COVERAGE_UNIT], device=magnitude.device)
    return (magnitude + MAGNITUDE_FLOOR).sqrt()[:, None, None, None, None] * units[:, None, None]


def encode(flow: Tensor, moving: Tensor, static: Tensor, magnitude: Tensor) -> Tensor:
    """Motion latents [B, T, 4, H/2, W/2] of moving orbits whose scene flow is known.

    flow [B, T, 3, H, W]: world axes, times 2 / depth, weighted by coverage; moving, static [B, T, 4, H, W]:
    premultiplied RGBA; magnitude [B].
    """
    coverage = half(moving[:, :, 3:])
    spread = fill(half(flow).flatten(0, 1), coverage.flatten(0, 1)).unflatten(0, flow.shape[:2])
    return torch.cat([spread, coverage - half(static[:, :, 3:])], 2) / latent_unit(magnitude)


def half(images: Tensor) -> Tensor:  # [B, T, C, H, W] -> [B, T, C, H/2, W/2]
    """Mean of 2 x 2 pixels."""
    return functional.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, images.shape[:2])


def fill(values: Tensor, weights: Tensor) -> Tensor:
    """Spread values over the pixels that have none, smoothly: averages of ever coarser grids, coarse to fine.

    values [N, C, H, W] summed with weights [N, 1, H, W] -> [N, C, H, W]; H = W is a power of two.
    """
    levels = [(values, weights)]
    while levels[-1][0].shape[-1] > 1:
        levels.append(tuple(functional.avg_pool2d(level, 2) for level in levels[-1]))
    values, weights = levels.pop()
    filled = values / weights.clamp_min(1e-8)
    for values, weights in reversed(levels):
        coarse = functional.interpolate(filled, scale_factor=2, mode="bilinear", align_corners=False)
        trust = weights.clamp(0, 1).sqrt()
        filled = trust * values / weights.clamp_min(1e-8) + (1 - trust) * coarse
    return filled


def warp(static: Tensor, flow: Tensor, viewmats: Tensor, focal: Tensor) -> Tensor:
    """Static frames [B, T, C, H, W] moved by scene flow [B, T, 3, h, w] (of any size), in the same view.

    viewmats [B, T, 4, 4]: world to camera, OpenCV axes; focal [B, T]: focal length / half the width. The camera looks
    at the origin through the middle of the picture.
    """
    batch, frames, _, height, width = static.shape
    with torch.autocast(flow.device.type, enabled=False):  # half precision is a quarter of a pixel off
        camera = torch.einsum("btij,btjhw->btihw", viewmats[..., :3, :3].to(flow), flow)
    camera = functional.interpolate(camera.flatten(0, 1), (height, width), mode="bilinear", align_corners=False)
    k = focal.reshape(-1, 1, 1).to(camera)
    y = (torch.arange(height, device=static.device, dtype=camera.dtype) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=static.device, dtype=camera.dtype) + 0.5) / width * 2 - 1
    nearer = 1 - (camera[:, 2] / 2).clamp(max=0.5)
    grid_x = (x[None, None, :] - k * camera[:, 0] / 2) / nearer
    grid_y = (y[None, :, None] - k * camera[:, 1] / 2) / nearer
    grid = torch.stack([grid_x, grid_y], -1)
    return functional.grid_sample(static.flatten(0, 1), grid, align_corners=False).unflatten(0, (batch, frames))
