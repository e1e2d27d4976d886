# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of Diffusion4D as it was published: absolute latents, L = L_ldm + omega L_mr (section 3.3)."""

from functools import cache
from pathlib import Path

import torch
from diffusers import I2VGenXLUNet
from torch import Tensor
from torch.nn import functional

from backend.models.encoders import load_encoders
from backend.models.motion_magnitude import clean_latents, latent_magnitude, motion_magnitude, reconstruction_loss
from backend.models.published import (
    NEGATIVE_PROMPT,
    PREDICTION,
    PublishedVideoNet,
    load_base,
    scheduler,
)
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training.batches import Batch
from backend.training.config import TrainConfig

encoders = cache(load_encoders)


def build(config: TrainConfig, vocabulary: Vocabulary) -> PublishedVideoNet:
    """The network, its base from `config.weights`; or of the sizes in `config.network`, freshly initialised.

    Raises:
        UserError: neither is there.
    """
    if config.network:
        sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in config.network.items()}
        base = I2VGenXLUNet(**sizes)
    else:
        base = load_base(weights_folder(config))
    return PublishedVideoNet(base, checkpoint_activations=config.checkpoint_activations)


def loss(network: torch.nn.Module, batch: Batch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """L_ldm and L_mr on one batch. The unconditional branch has neither text nor image nor magnitude (Eq. 3)."""
    size, device = len(batch.captions), batch.static.device
    look = encoders(weights_folder(config), device)
    moving, static = on_white(batch.moving), on_white(batch.static)
    clean, still = look.latents(moving, noise), look.latents(static, noise)
    magnitude = motion_magnitude(batch.moving.permute(0, 1, 3, 4, 2), batch.static.permute(0, 1, 3, 4, 2))

    known = (torch.rand(size, generator=noise) >= config.drop_all).to(device)
    texts = [text if kept else NEGATIVE_PROMPT for text, kept in zip(batch.captions, known.tolist(), strict=True)]
    image = look.image(static[:, 0]) * known[:, None]
    schedule = scheduler()
    timestep = torch.randint(schedule.config.num_train_timesteps, (size,), generator=noise).to(device)
    alpha_bar = schedule.alphas_cumprod.to(device)[timestep]
    eps = torch.randn(clean.shape, generator=noise).to(device)
    noisy = schedule.add_noise(clean, eps, timestep)
    target = schedule.get_velocity(clean, eps, timestep)
    given = (batch.camera_to_world, look.text(texts), image, magnitude, known)
    predicted = network(noisy, still, timestep, *given).float()

    denoising = functional.mse_loss(predicted, target)
    found = latent_magnitude(clean_latents(predicted, noisy, alpha_bar, PREDICTION), still)
    # The loss weights by the square of what it is given: here alpha_bar itself is wanted.
    reconstruction = reconstruction_loss(found, latent_magnitude(clean, still), alpha_bar.sqrt()).mean()
    return {
        "loss": denoising + config.reconstruction_weight * reconstruction,
        "denoising": denoising.detach(),
        "reconstruction": reconstruction.detach(),
    }


def on_white(pictures: Tensor) -> Tensor:  # [B, T, 4, H, W] premultiplied -> [B, T, 3, H, W]
    """The background that VideoMV's image network was trained on."""
    return pictures[:, :, :3] + 1 - pictures[:, :, 3:]


def weights_folder(config: TrainConfig) -> Path:
    """Where the weights lie that training begins from.

    Raises:
        UserError: nobody said.
    """
    if not config.weights:
        raise UserError(
            "no_weights",
            "The published-size network begins from I2VGen-XL's weights, and nobody said where they are.",
            "Name their folder, in diffusers' layout, with --weights.",
        )
    return Path(config.weights)
