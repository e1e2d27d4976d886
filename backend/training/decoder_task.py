# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the decoder of motion latents: to mend what warping the static frames leaves undone."""

from functools import cache

import torch
from torch import Tensor

from backend.models import motion_latents
from backend.models.diffusion import add_noise
from backend.models.small import SmallVideoNet
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training import motion_task
from backend.training.batches import Batch
from backend.training.checkpoint import read_about, read_average
from backend.training.config import TrainConfig

PRESENCE = 0.68  # quantile: a limb that is somewhere here is rather kept than wiped out, as a median (0.5) would
ESTIMATED = 0.7  # of the samples; the others are decoded from true latents
NOISIEST = 0.6  # share of the diffusion time from which latents are estimated


def build(config: TrainConfig, vocabulary: Vocabulary) -> motion_latents.MotionDecoder:
    """The decoder, freshly initialised."""
    return motion_latents.MotionDecoder(**config.network)


def loss(network: torch.nn.Module, batch: Batch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """Quantile loss of the decoded frames; absolute errors of them, of the warp alone and of no motion beside it.

    With `config.motion_run` most latents are that network's estimates from noisy ones: the decoder learns what it can
    count on.
    """
    moving, static = batch.moving, batch.static
    magnitude = motion_task.magnitude_of(moving, static)
    latents = motion_latents.encode(batch.flow, moving, static, magnitude)
    if config.motion_run:
        latents = estimated(latents, magnitude, batch, config, noise)
    decoded = network(latents, static, magnitude, batch.viewmats, batch.focal).float()
    with torch.no_grad():
        flow = (latents * motion_latents.latent_unit(magnitude))[:, :, : motion_latents.FLOW_CHANNELS]
        warped = motion_latents.warp(static, flow, batch.viewmats, batch.focal)
    missing = moving - decoded
    return {
        "loss": 2 * torch.maximum(PRESENCE * missing, (PRESENCE - 1) * missing).mean(),
        "error": missing.abs().mean(),
        "warp": (warped - moving).abs().mean(),
        "still": (static - moving).abs().mean(),
    }


@torch.no_grad()
def estimated(
    latents: Tensor, magnitude: Tensor, batch: Batch, config: TrainConfig, noise: torch.Generator
) -> Tensor:  # [B, T, 4, h, w]
    """Most of the latents as the motion network makes them out through noise."""
    size, device = len(latents), latents.device
    timestep = (torch.rand(size, generator=noise, device=device) * NOISIEST).clamp_min(0.01).to(device)
    chosen = (torch.rand(size, generator=noise, device=device) < ESTIMATED).to(device)
    eps = torch.randn(latents.shape, generator=noise, device=device)
    known = torch.ones(size, dtype=torch.bool, device=device)
    given = (timestep, batch.times, batch.camera_to_world, batch.tokens, magnitude, known)
    network = motion_network(config.motion_run, device)
    guess = network(add_noise(latents, eps, timestep), motion_task.condition(batch.static), *given).float()
    return torch.where(chosen[:, None, None, None, None], guess, latents)


@cache
def motion_network(run: str, device: torch.device) -> SmallVideoNet:
    """The averaged network of a motion run, checkpoint or packed run.

    Raises:
        UserError: there is none, or it is of another task.
    """
    about = read_about(run)
    if about["task"] != "motion":
        raise UserError("runs_differ", f"{run} trained the task {about['task']}, not motion.")
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in about["network"].items()}
    network = motion_task.build(TrainConfig(task="motion", network=sizes), Vocabulary(about["vocabulary"]))
    network.load_state_dict(read_average(run))
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
