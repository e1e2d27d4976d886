# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of Diffusion4D as it was published: absolute latents, L = L_ldm + omega L_mr (section 3.3)."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.schedules import add_noise, clean_of, cosine_schedule, velocity
from backend.models import i2vgen
from backend.models.checkpoints import load_strictly
from backend.models.diffusion4d import Diffusion4DNet
from backend.models.encoders import load_videomv_encoders
from backend.models.motion_magnitude import latent_magnitude, motion_magnitude, reconstruction_loss
from backend.models.published import BASES, base_tensors
from backend.models.text import Vocabulary
from backend.models.videomv import IMAGE, NEGATIVE_PROMPT, VideoMVConfig
from backend.pictures import on_white
from backend.progress import UserError
from backend.training.batches import Batch
from backend.training.config import TrainConfig, resized

encoders = cache(load_videomv_encoders)


def build(config: TrainConfig, vocabulary: Vocabulary) -> Diffusion4DNet:
    """The image network on VideoMV's weights; or of the sizes in `config.network`, from nothing.

    Weights come from the folder `config.weights`, by default the usual one.

    Raises:
        UserError: there are no weights, or there is no such size.
    """
    network = Diffusion4DNet(sized(config), checkpoint_activations=config.checkpoint_activations)
    if not config.network:
        load_strictly(network.base, beginning(config), f"The weights {config.base or BASES['image']}")
    return network


def beginning(config: TrainConfig) -> dict[str, Tensor]:
    """What the image network begins from: VideoMV's released weights, or I2VGen-XL's, on which those were trained.

    Raises:
        UserError: they are missing or damaged, or nothing is known of such weights.
    """
    folder = config.weights or None
    if config.base in ("", BASES["image"]):
        return base_tensors("image", folder, torch.float32)
    if config.base == i2vgen.NAME:
        return i2vgen.i2vgen_tensors(folder, sized(config))
    hint = f"It is {BASES['image']} or {i2vgen.NAME}."
    raise UserError("bad_config", f"base = {config.base!r} is unknown.", hint)


def sized(config: TrainConfig) -> VideoMVConfig:
    """Sizes of the image network: the published ones, or those that `config.network` changes.

    Raises:
        UserError: there is no such size.
    """
    return resized(IMAGE, config.network)


def loss(network: torch.nn.Module, batch: Batch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """L_ldm and L_mr on one batch. The unconditional branch has neither text nor image nor magnitude (Eq. 3).

    It keeps cameras, static orbit and the first view's latents, as VideoMV's keeps its cameras and latents.
    """
    size, device = len(batch.captions), batch.static.device
    look = encoders(config.weights or None, device)
    moving, static = on_white(batch.moving, 2), on_white(batch.static, 2)  # as VideoMV's image network was trained
    clean, still = look.latents(moving, noise), look.latents(static, noise)
    magnitude = motion_magnitude(batch.moving.permute(0, 1, 3, 4, 2), batch.static.permute(0, 1, 3, 4, 2))

    known = torch.rand(size, generator=noise, device=device) >= config.drop_all
    orbit_known = torch.rand(size, generator=noise, device=device) >= config.drop_orbit
    texts = [text if kept else NEGATIVE_PROMPT for text, kept in zip(batch.captions, known.tolist(), strict=True)]
    image = look.image(static[:, 0]) * known[:, None]
    schedule = cosine_schedule()
    timestep = torch.randint(schedule.config.num_train_timesteps, (size,), generator=noise, device=device)
    eps = torch.randn(clean.shape, generator=noise, device=device)
    noisy = add_noise(schedule, clean, eps, timestep)
    target = velocity(schedule, clean, eps, timestep)
    predicted = network(
        noisy,
        timestep,
        batch.camera_to_world,
        look.text(texts),
        magnitude=magnitude,
        magnitude_known=known,
        static_latents=still,
        static_known=orbit_known,
        image=image,
        image_latents=still[:, 0],
    ).float()

    denoising = functional.mse_loss(predicted, target)
    found = latent_magnitude(clean_of(schedule, predicted, noisy, timestep), still)
    alpha_bar = schedule.alphas_cumprod.to(device)[timestep]
    reconstruction = reconstruction_loss(found, latent_magnitude(clean, still), alpha_bar).mean()
    return {
        "loss": denoising + config.reconstruction_weight * reconstruction,
        "denoising": denoising.detach(),
        "reconstruction": reconstruction.detach(),
    }
