# SPDX-License-Identifier: GPL-3.0-or-later
"""The noise schedules of the published networks: VideoMV (text, image), ImageDream and 4DM.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, a_t = the product of 1 - beta up to t, t = 0..999. The schedulers are those of
diffusers; what they leave open is the choice of time steps (`set_timesteps`) and the way from any one to any other of
clean latents, noise and what a network predicts.
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

TRAIN_STEPS = 1_000
EPSILON, V, CLEAN = "epsilon", "v_prediction", "sample"  # what networks predict, in diffusers' words
_COMMON = {  # of DDIM as both projects sample: t = 1, 1 + stride, ...; after t = 1 comes t = 0, not clean latents
    "num_train_timesteps": TRAIN_STEPS,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def linear_schedule() -> DDIMScheduler:
    """Of VideoMV's text network, ImageDream and 4DM: betas linear in their square roots; the network predicts noise.

    a_999 is 0.0047, not 0: the noisiest latents still show the clean ones a little.
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=EPSILON, **_COMMON
    )


def cosine_schedule() -> DDIMScheduler:
    """Of VideoMV's image network: cosine (s = 0.008), rescaled so that a_999 = 0; the network predicts v.

    Rescaling: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024, algorithm 1.
    """
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True, prediction_type=V, **_COMMON)


def set_timesteps(scheduler: DDIMScheduler, steps: int) -> list[int]:
    """Make `scheduler` sample in `steps` steps, and return their times, noisiest first.

    t = 1 + k * floor(1000 / steps) for all k that stay below 1000, as both projects have it. So 30 steps become 31;
    diffusers would leave the noisiest one out.

    Raises:
        ValueError: `steps` is not in 1..1000.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps must lie in 1..{TRAIN_STEPS}, not {steps}")
    scheduler.set_timesteps(steps)  # which also sets the stride that `step` goes back by
    times = torch.arange(0, TRAIN_STEPS, TRAIN_STEPS // steps).add(1).clamp(max=TRAIN_STEPS - 1).flip(0)
    scheduler.timesteps = times
    return times.tolist()


def add_noise(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor | int) -> Tensor:
    """x_t of clean latents [B, ...] at t: [B] int64, or one for all."""
    signal, spread = factors(scheduler, timestep, clean)
    return signal * clean + spread * noise


def velocity(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor | int) -> Tensor:
    """v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans and Ho, "Progressive Distillation", 2022, appendix D)."""
    signal, spread = factors(scheduler, timestep, clean)
    return signal * noise - spread * clean


def clean_of(scheduler: DDIMScheduler, prediction: Tensor, noisy: Tensor, timestep: Tensor | int) -> Tensor:
    """The clean latents that a prediction at x_t amounts to. Noise tells nothing about them where a_t = 0."""
    if predicts(scheduler) == CLEAN:
        return prediction
    signal, spread = factors(scheduler, timestep, noisy)
    if predicts(scheduler) == EPSILON:
        return (noisy - spread * prediction) / signal
    return signal * noisy - spread * prediction


def prediction_of(scheduler: DDIMScheduler, clean: Tensor, noisy: Tensor, timestep: Tensor | int) -> Tensor:
    """The prediction at x_t that amounts to these clean latents: inverse of `clean_of`."""
    if predicts(scheduler) == CLEAN:
        return clean
    signal, spread = factors(scheduler, timestep, noisy)
    if predicts(scheduler) == EPSILON:
        return (noisy - signal * clean) / spread
    return (signal * noisy - clean) / spread


def predicts(scheduler: DDIMScheduler) -> str:
    """EPSILON, V or CLEAN.

    Raises:
        ValueError: the scheduler is for networks that predict something else.
    """
    kind = scheduler.config.prediction_type
    if kind not in (EPSILON, V, CLEAN):
        raise ValueError(f"networks predict noise, v or clean latents, not {kind!r}")
    return kind


def factors(scheduler: DDIMScheduler, timestep: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t), to multiply `like` [B, ...] by: float32, whatever `like` is, on its device."""
    timestep = torch.as_tensor(timestep, device=scheduler.alphas_cumprod.device)
    alpha = scheduler.alphas_cumprod[timestep].to(like.device).reshape(-1, *[1] * (like.ndim - 1))
    return alpha.sqrt(), (1 - alpha).sqrt()
