# SPDX-License-Identifier: GPL-3.0-or-later
"""4D-aware score distillation (4Diffusion, Eq. 10): how far renders are from what the video network makes of them.

    low, high = timestep_bounds(iteration)
    timestep = int(torch.randint(low, high + 1, ()))
    distillation_loss(latents, noise, timestep, branches, scheduler).backward()

The B latents are those of one group: all times and views of one object (8 x 4), with the same time step.
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from backend.guidance.classifier_free import guide_plain
from backend.guidance.sampling import Branches
from backend.guidance.schedules import TRAIN_STEPS, add_noise, clean_of

GUIDANCE = 5.0  # scale of classifier-free guidance
RESCALE = 0.2  # how much of the contrast that guidance has added is taken back
ANNEALED = 5_000  # iterations until the time steps have reached their final range
START = 0.98  # of the diffusion time: where the range of the time steps begins, both ends of it
FINAL = (0.02, 0.25)  # where its lower and its upper end come to
_TINY = 1e-8  # beside standard deviations that may be 0


def timestep_bounds(iteration: int, iterations: int = ANNEALED, final: tuple[float, float] = FINAL) -> tuple[int, int]:
    """First and last time step, both included, that an iteration may draw: they fall linearly to `final`, then stay.

    At the start all is nearly noise and decides the shape, in the end there is little noise and it is about the detail.
    With `iterations` 0 the start is left out.
    """
    progress = min(max(iteration / iterations, 0.0), 1.0) if iterations else 1.0
    low, high = (int(TRAIN_STEPS * (START + (end - START) * progress) + 1e-6) for end in final)
    return low, high


def distillation_loss(
    latents: Tensor,
    noise: Tensor,
    timestep: int,
    branches: Branches,
    scheduler: DDIMScheduler,
    guidance: float = GUIDANCE,
    rescale: float = RESCALE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """How far latents [B, 4, h, w] of renders are from what the network sees in them under noise; a gradient in these.

    branches: conditional and unconditional prediction, in this order; the network gets no gradient.
    dtype: in which it is given the noisy latents.
    """
    with torch.no_grad():
        noisy = add_noise(scheduler, latents, noise, timestep)
        rows = torch.full((len(noisy),), timestep, device=noisy.device)
        conditional, unconditional = (part.float() for part in branches(noisy.to(dtype), rows))
        target = reconstruction(conditional, unconditional, noisy, timestep, scheduler, guidance, rescale)
    return reconstruction_loss(latents, target)


@torch.no_grad()
def reconstruction(
    conditional: Tensor,
    unconditional: Tensor,
    noisy: Tensor,
    timestep: int,
    scheduler: DDIMScheduler,
    guidance: float = GUIDANCE,
    rescale: float = RESCALE,
) -> Tensor:
    """The clean latents that the guided network sees in the noisy ones; without a gradient.

    Guidance exaggerates contrast. The share `rescale` of the result is therefore taken at the standard deviation, over
    the whole group, of what the conditional prediction alone amounts to (Lin et al., "Common Diffusion Noise Schedules
    and Sample Steps are Flawed", 2024, section 3.4, here of clean latents).

    conditional, unconditional, noisy: [B, 4, h, w], the predictions without those of the extra view.
    """
    clean = clean_of(scheduler, guide_plain(conditional, unconditional, guidance), noisy, timestep)
    plain = clean_of(scheduler, conditional, noisy, timestep)
    factor = (plain.std() + _TINY) / (clean.std() + _TINY)
    return rescale * factor * clean + (1 - rescale) * clean


def reconstruction_loss(latents: Tensor, target: Tensor) -> Tensor:
    """1 / (2 B) sum (z - z0)^2 of latents [B, 4, h, w]: the form that 4Diffusion uses. Gradient: (z - z0) / B."""
    return 0.5 * (latents - target.detach()).square().sum() / len(latents)
