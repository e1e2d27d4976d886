# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a field may be anything but empty at any time, so that rendering leaves out the rest.

One grid over the field's box (Mueller et al. 2022, appendix E.2). A cell keeps the largest of what was seen there at
8 times, at a place drawn anew each time; what was seen before fades, so that cells can become empty again.
"""

import torch
from torch import Tensor, nn

from backend.nerf.field import Field

RESOLUTION = 32  # cells along each side
MOMENTS = 8  # times that are looked at
SAMPLES_PER_RAY = 256  # along the longest way through the box
INTERVAL = 16  # iterations between two updates
EVERYWHERE = 256  # iterations during which all cells are looked at; later half as many, in part the occupied
FADING = 0.95  # per update
LEAST_ALPHA = 0.01  # of a step, for a cell to be occupied and for a sample to count
BATCH = 65_536  # samples at once


def step_length(radius: float, samples: int = SAMPLES_PER_RAY) -> float:
    """How far apart samples are: the box's diagonal over their number."""
    return 2 * 3**0.5 * radius / samples


class Occupancy(nn.Module):
    """The grid; all cells are occupied until the first update."""

    def __init__(self, radius: float = 1.0, resolution: int = RESOLUTION) -> None:
        super().__init__()
        self.radius, self.resolution = radius, resolution
        self.register_buffer("alphas", torch.ones(resolution**3))  # of a step of SAMPLES_PER_RAY
        self.register_buffer("occupied", torch.ones(resolution**3, dtype=torch.bool))
        self.register_buffer("threshold", torch.tensor(LEAST_ALPHA))

    @torch.no_grad()
    def update(
        self, field: Field, iteration: int, generator: torch.Generator | None = None, interval: int = INTERVAL
    ) -> None:
        """Look at cells again if it is this iteration's turn (0, 16, ...).

        generator: of the places, on the CPU.
        """
        if iteration % interval:
            return
        device, cells = self.alphas.device, self.resolution**3
        if iteration < EVERYWHERE:
            chosen = torch.arange(cells, device=device)
        else:
            drawn = torch.randint(cells, (cells // 4,), generator=generator).to(device)
            known = self.occupied.nonzero()[:, 0]
            if len(known) > cells // 4:
                known = known[torch.randint(len(known), (cells // 4,), generator=generator).to(device)]
            chosen = torch.cat([drawn, known]).unique()
        axes = torch.stack(torch.unravel_index(chosen, (self.resolution,) * 3), dim=-1)
        inside = torch.rand(len(chosen), 3, generator=generator).to(device)
        points = ((axes + inside) / self.resolution * 2 - 1) * self.radius
        densities = torch.cat([_most(field, batch) for batch in points.split(BATCH // MOMENTS)])
        alphas = -torch.expm1(-densities * step_length(self.radius))
        faded = self.alphas[chosen] * FADING if iteration else torch.zeros_like(alphas)
        self.alphas[chosen] = torch.maximum(faded, alphas)
        # Where nearly all is thin, as in the beginning, thin is what counts.
        self.threshold.copy_(self.alphas.mean().clamp(max=LEAST_ALPHA))
        self.occupied.copy_(self.alphas > self.threshold)

    def contains(self, points: Tensor) -> Tensor:  # [..., 3] -> [...] bool
        """Whether points of the box lie in occupied cells."""
        axes = ((points / self.radius + 1) * (self.resolution / 2)).long().clamp_(0, self.resolution - 1)
        return self.occupied[(axes[..., 0] * self.resolution + axes[..., 1]) * self.resolution + axes[..., 2]]


def _most(field: Field, points: Tensor) -> Tensor:  # [P, 3] -> [P]
    """The largest density of points over time."""
    times = torch.linspace(0, 1, MOMENTS, device=points.device)
    each = field.densities(points.repeat(MOMENTS, 1), times.repeat_interleave(len(points)))
    return each.view(MOMENTS, -1).amax(dim=0)
