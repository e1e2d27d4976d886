# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of 4DM's motion modules on ImageDream, which is frozen (4Diffusion, section 3.2, Eq. 7)."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.schedules import add_noise, linear_schedule
from backend.models.encoders import load_imagedream_encoders
from backend.models.fourdm import PUBLISHED, FourDM, FourDMConfig
from backend.models.fourdm_cameras import from_orbit
from backend.models.fourdm_inputs import add_pixel_view, drop_pixel_view, join, lay_out
from backend.models.fourdm_weights import BASE, fourdm_from, imagedream_tensors  # noqa: F401 - BASE: for the trainer
from backend.models.text import Vocabulary
from backend.pictures import on_white
from backend.training.batches import ViewBatch
from backend.training.config import TrainConfig, resized

encoders = cache(load_imagedream_encoders)


def build(config: TrainConfig, vocabulary: Vocabulary) -> FourDM:
    """ImageDream with fresh motion modules, which alone are to be trained.

    Weights come from the folder `config.weights`, by default the usual one; `config.network` has sizes that differ
    from the released ones. In a run that asks for bf16 the base, which needs no more, is held in it.

    Raises:
        UserError: there are no weights, they are of another network, or there is no such size.
    """
    base_type = torch.bfloat16 if config.precision == "bf16" else torch.float32
    network = fourdm_from(imagedream_tensors(config.weights or None, base_type), None, sized(config), dtype=base_type)
    for module in network.motion_modules():
        module.float()
    network.gradient_checkpointing = config.checkpoint_activations
    network.freeze_base()
    return network


def sized(config: TrainConfig) -> FourDMConfig:
    """Sizes of the network: the released ones, or those that `config.network` changes.

    Raises:
        UserError: there is no such size.
    """
    return resized(PUBLISHED, config.network)


def loss(network: torch.nn.Module, batch: ViewBatch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """|eps - eps_theta|^2 of the views, all times and views of a clip at one noise level (Eq. 7).

    In a share `drop_all` of the clips image and cameras are dropped, together: tokens, pixel view and camera matrices
    are zeros. The text stays; the frozen base knows how to be without.
    """
    device = batch.views.device
    size, frames, views = batch.views.shape[:3]
    look = encoders(config.weights or None, device)
    video = on_white(batch.video, 2)
    clean = look.latents(on_white(batch.views.flatten(1, 2), 2), noise).flatten(0, 1)  # rows: clip, time, view
    pixels = look.latents(video, None)  # as in sampling: the means
    image = look.image.tokens(video.flatten(0, 1)).unflatten(0, (size, frames))
    text, cameras = look.text(list(batch.captions)), from_orbit(batch.camera_to_world)

    known = torch.rand(size, generator=noise, device=device) >= config.drop_all
    given = join(
        *(lay_out(text[k], cameras[k] * known[k], image[k] * known[k], pixels[k] * known[k]) for k in range(size))
    )

    schedule = linear_schedule()
    timestep = torch.randint(schedule.config.num_train_timesteps, (size,), generator=noise, device=device)
    eps = torch.randn(clean.shape, generator=noise, device=device)
    noisy = add_noise(schedule, clean, eps, timestep.repeat_interleave(frames * views))
    predicted = network(
        add_pixel_view(noisy, views),
        timestep.repeat_interleave(given.frames * given.views),
        given.text,
        cameras=given.cameras,
        image=given.image,
        pixels=given.pixels,
        frames=given.frames,
        views=given.views,
    )
    return {"loss": functional.mse_loss(drop_pixel_view(predicted.float(), given.views), eps)}
