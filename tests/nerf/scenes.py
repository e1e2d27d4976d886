# SPDX-License-Identifier: GPL-3.0-or-later
"""A field that is known in closed form: a ball that moves along x, with the interface of `Field`."""

import torch
from torch import Tensor, nn

from backend.nerf.field import Values

RADIUS, SPEED = 0.3, 0.4
COLOR = (0.8, 0.4, 0.1)


class Ball(nn.Module):
    """Dense within RADIUS of (SPEED (time - 1/2), 0, 0), nothing outside."""

    radius = 1.0

    def __init__(self, density: float = 200.0) -> None:
        super().__init__()
        self.density = nn.Parameter(torch.tensor(density))
        self.looked_at = 0  # samples, most of one call

    def center(self, times: Tensor) -> Tensor:
        return torch.stack([SPEED * (times - 0.5), torch.zeros_like(times), torch.zeros_like(times)], dim=-1)

    def densities(self, points: Tensor, times: Tensor) -> Tensor:
        self.looked_at = max(self.looked_at, len(points))
        return self.density * ((points - self.center(times)).norm(dim=-1) < RADIUS)

    def forward(self, points: Tensor, times: Tensor, with_normals: bool = False) -> Values:
        colors = torch.tensor(COLOR).expand(len(points), 3)
        normals = nn.functional.normalize(points - self.center(times), dim=-1) if with_normals else None
        return Values(self.densities(points, times), colors, normals)
