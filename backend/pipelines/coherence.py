# SPDX-License-Identifier: GPL-3.0-or-later
"""Motion latents of which all frames tell one movement of one surface."""

import torch
from torch import Tensor

from backend.models.motion_latents import FLOW_CHANNELS, fill
from backend.splatting.surface_motion import Surface, flow_of, kept_in_view, lift

FIRST_ROUNDS, ROUNDS = 3, 1  # of least squares, without and with a beginning
MOST_GAIN = 1.5  # least squares shrink what does not fit together


class Coherence:
    """Brings latents into line, time after time: what differs little from the last ones takes little work."""

    def __init__(self, surface: Surface, unit: Tensor) -> None:
        """unit: what latents are multiplied by (`motion_latents.latent_unit`)."""
        self.surface, self.unit = surface, unit[0, :, :FLOW_CHANNELS].cpu()
        self.shifts: Tensor | None = None  # of control points, for the last latents in their own size
        self.told: Tensor | None = None  # [T, B, 3] shifts that the last latents tell of

    @torch.no_grad()
    def __call__(self, latents: Tensor, size: float = 1.0) -> Tensor:  # [1, T, 4, h, w]
        """The latents times `size`, with the flow of the movement that comes nearest to theirs."""
        latents = latents * size
        flow = latents[0, :, :FLOW_CHANNELS].cpu() * self.unit
        if self.shifts is None:
            shifts = lift(self.surface, flow, rounds=FIRST_ROUNDS)
        else:
            shifts = lift(self.surface, flow, self.shifts * size, ROUNDS)
        self.shifts = shifts / size
        told, coverage = flow_of(self.surface, shifts, flow.shape[-1])
        gain = float((told * flow).sum() / (told.square() / coverage.clamp_min(1e-6)).sum().clamp_min(1e-9))
        gain = min(max(gain, 1.0), MOST_GAIN)
        self.told = gain * shifts
        filled = fill(gain * told, coverage)
        return torch.cat([(filled / self.unit).to(latents)[None], latents[:, :, FLOW_CHANNELS:]], 2)

    def in_view(self) -> Tensor:  # [T, B, 3]
        """The shifts that the last latents tell of, as far as the subject stays in the pictures."""
        return kept_in_view(self.surface, self.told)
