# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the decoder of motion latents: to mend what warping the static frames leaves undone."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from backend.models import motion_latents
from backend.models.motion_magnitude import motion_magnitude

if TYPE_CHECKING:
    from backend.training.batches import Batch
    from backend.training.config import TrainConfig


def build(config: "TrainConfig", vocabulary: object) -> motion_latents.MotionDecoder:
    """The decoder, freshly initialised."""
    return motion_latents.MotionDecoder(**config.network)


def loss(network: torch.nn.Module, batch: "Batch", config: "TrainConfig", noise: torch.Generator) -> dict[str, Tensor]:
    """Absolute error of the decoded moving frames, and of the warp alone for comparison.

    Half of the latents are disturbed, smoothly, as a network's are: the decoder must not count on perfect ones.
    """
    moving, static = batch.moving, batch.static
    magnitude = motion_magnitude(moving.permute(0, 1, 3, 4, 2), static.permute(0, 1, 3, 4, 2))
    clean = motion_latents.encode(batch.flow, moving, static, magnitude)
    coarse = torch.randn((*clean.shape[:3], 8, 8), generator=noise).to(clean)
    smooth = functional.interpolate(coarse.flatten(0, 1), clean.shape[-2:], mode="bicubic").view_as(clean)
    amount = config.disturbance * (torch.rand(len(clean), generator=noise) - 0.5).clamp_min(0) * 2
    latents = clean + amount.to(clean)[:, None, None, None, None] * smooth
    decoded = network(latents, static, magnitude, batch.viewmats, batch.focal).float()
    with torch.no_grad():
        flow = (latents * motion_latents.latent_unit(magnitude))[:, :, : motion_latents.FLOW_CHANNELS]
        warped = motion_latents.warp(static, flow, batch.viewmats, batch.focal)
    error = (decoded - moving).abs().mean()
    return {"loss": error, "warp": (warped - moving).abs().mean(), "still": (static - moving).abs().mean()}
