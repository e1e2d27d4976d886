# SPDX-License-Identifier: GPL-3.0-or-later
"""At which noise levels the small networks are trained."""

import torch
from torch import Tensor


def timesteps(uniform: Tensor) -> Tensor:
    """Shares of the diffusion time [B] from uniform numbers [B]: evenly spread over the batch, denser towards noise.

    Motion is decided at high noise. Every eighth sample or so is pure noise, where sampling starts.
    """
    size = len(uniform)
    spread = ((torch.arange(size, device=uniform.device) + uniform) / size).sqrt()
    return torch.where(spread > 0.9375, torch.ones_like(spread), spread.clamp_min(0.01))
