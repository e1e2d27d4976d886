# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the motion network: static orbit, text, cameras and motion magnitude -> motion latents."""

import torch
from torch import Tensor
from torch.nn import functional

from backend.models import motion_latents
from backend.models.diffusion import add_noise, alphas_cumprod
from backend.models.motion_magnitude import frames_magnitude, latent_magnitude, reconstruction_loss
from backend.models.small import SmallConfig, SmallVideoNet
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training.batches import Batch
from backend.training.config import TrainConfig, resized
from backend.training.timesteps import timesteps

CONDITION_CHANNELS = 16  # static RGBA in 2 x 2 blocks


def build(config: TrainConfig, vocabulary: Vocabulary) -> SmallVideoNet:
    """The network, freshly initialised; where all samples go without the static orbit, blind to it.

    Raises:
        UserError: there is no such size, or there are no motion latents of such pictures.
    """
    if config.resolution < 16 or config.resolution.bit_count() != 1:
        hint = "Take 64, 128 or 256."
        raise UserError("bad_config", f"resolution = {config.resolution} must be a power of two, 16 or more.", hint)
    sizes = SmallConfig(
        latent_channels=motion_latents.CHANNELS,
        condition_channels=CONDITION_CHANNELS,
        vocabulary=len(vocabulary.words),
        vector_channels=motion_latents.FLOW_CHANNELS,
    )
    network = SmallVideoNet(resized(sizes, config.network))
    if config.drop_orbit >= 1:  # weights of what is always 0 stay as they are
        first = motion_latents.CHANNELS
        with torch.no_grad():
            network.entrance.weight[:, first : first + CONDITION_CHANNELS] = 0
    return network


def loss(network: torch.nn.Module, batch: Batch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """Denoising and magnitude losses on one batch."""
    size, device = len(batch.tokens), batch.tokens.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=noise, device=device)

    still = draw(size) < config.static
    moving = torch.where(still[:, None, None, None, None], batch.static, batch.moving)
    flow = batch.flow * ~still[:, None, None, None, None]
    magnitude = frames_magnitude(moving, batch.static)
    clean = motion_latents.encode(flow, moving, batch.static, magnitude)

    fate = draw(size)
    known = fate >= config.drop_all
    worded = fate >= config.drop_all + config.drop_text
    timestep = timesteps(draw(size))
    eps = torch.randn(clean.shape, generator=noise, device=device)
    noisy = add_noise(clean, eps, timestep)
    given = (timestep, batch.times, batch.camera_to_world, batch.tokens * worded[:, None], magnitude, known)
    shown = condition(batch.static)
    if config.drop_orbit:
        shown = shown * (draw(size) >= config.drop_orbit)[:, None, None, None, None]
    predicted = network(noisy, shown, *given).float()

    weight = importance(moving, batch.static)
    error = (weight * (predicted - clean).square()).mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))
    true, found = latent_magnitude(clean), latent_magnitude(predicted)
    unit = 1 / (true.detach() + 0.1)  # each clip counts alike, however large its latents are
    denoising = (error * unit).mean()
    # Compared as amplitudes, so that the few largest do not rule.
    magnitudes = reconstruction_loss((found + 1e-4).sqrt(), (true + 1e-4).sqrt(), alphas_cumprod(timestep).square())
    reconstruction = (magnitudes * unit).mean()
    return {
        "loss": denoising + config.reconstruction_weight * reconstruction,
        "denoising": denoising.detach(),
        "reconstruction": reconstruction.detach(),
    }


def importance(moving: Tensor, static: Tensor) -> Tensor:  # [B, T, 4, H, W] -> [B, T, 1, H/2, W/2]
    """How much each latent matters: far from the subject there is nothing to move."""
    near = motion_latents.half(torch.maximum(moving, static)[:, :, 3:]).flatten(0, 1)
    return 0.1 + functional.max_pool2d(near, 3, 1, 1).unflatten(0, moving.shape[:2])


def condition(static: Tensor) -> Tensor:  # [B, T, 4, H, W] -> [B, T, 16, H/2, W/2]
    """The static orbit as the network is shown it."""
    return functional.pixel_unshuffle(static.flatten(0, 1), 2).unflatten(0, static.shape[:2]) * 2 - 1
