# SPDX-License-Identifier: GPL-3.0-or-later
"""The noise schedule of kinesplat-small: cosine, from clean to pure noise (zero terminal SNR).

z_t = cos(pi t / 2) z_0 + sin(pi t / 2) eps for t in 0..1. Samplers are diffusers' own, on 1,200 steps of it.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from backend.progress import Run

STEPS = 1_200  # divided by nearly every number of sampling steps: DDIM counts in whole parts of it
_SMALLEST = 2.0**-24  # of alpha_bar: multistep solvers take its logarithm


def alphas_cumprod(timestep: Tensor) -> Tensor:
    """alpha_bar at shares t of the diffusion time, 0 clean to 1 pure noise."""
    return torch.cos(timestep * (math.pi / 2)).square()


def add_noise(clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """z_t of [B, ...] at t [B]."""
    alpha_bar = alphas_cumprod(timestep).reshape(-1, *[1] * (clean.ndim - 1))
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def scheduler(name: str = "ddim", steps: int = STEPS) -> SchedulerMixin:
    """A sampler for networks that predict the clean latents. `name`: "ddim" or "dpm" (DPM-Solver++ 2M)."""
    alpha_bar = alphas_cumprod(torch.arange(1, steps + 1, dtype=torch.float64) / steps).clamp_min(_SMALLEST)
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    common = {
        "num_train_timesteps": steps,
        "trained_betas": betas.numpy(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if name == "ddim":
        return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    if name == "dpm":
        from diffusers import DPMSolverMultistepScheduler  # brings scipy.stats, half a second; the default does without

        return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    raise ValueError(f"unknown sampler {name!r}")


def share(step: Tensor, steps: int = STEPS) -> Tensor:
    """The share of the diffusion time, as networks take it, of a scheduler's time step 0..steps - 1."""
    return (step.float() + 1) / steps


def denoise(
    shape: tuple[int, ...],
    predict: Callable[[Tensor, Tensor], Tensor],
    sampler: str,
    steps: int,
    seed: int,
    run: Run | None,
    preview: Callable[[Tensor], np.ndarray],
    device: torch.device,
) -> Tensor:
    """Sample clean latents with one of diffusers' samplers; `predict` gives clean latents from noisy ones."""
    schedule = scheduler(sampler)
    schedule.set_timesteps(steps)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    for number, step in enumerate(schedule.timesteps):
        clean = predict(latents, share(step).expand(1).to(device))
        latents = schedule.step(clean, step, latents).prev_sample
        if run is not None:
            run.report(number + 1, steps, preview=lambda clean=clean: preview(clean))
    return clean
