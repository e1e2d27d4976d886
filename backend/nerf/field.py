# SPDX-License-Identifier: GPL-3.0-or-later
"""The dynamic radiance field of 4Diffusion: density and colour of places at times (section 3.3 and table 3).

    features = HashGrid3D(x, y, z) + HashGrid4D(x, y, z, t);  density = softplus(MLP(features) + blob(x))
    color = sigmoid(MLP(features)), the same from all sides;  normal = -d density / dx, of length 1

The blob, 10 (1 - |x| / 0.5), makes the field begin as a soft ball (Magic3D, Lin et al. 2023). The field spans the box
-radius..radius of the frame that cameras are given in: ours, Z up. Times are 0..1.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from backend.nerf.hash_grid import HashGrid, HashGridConfig

PUBLISHED = HashGridConfig()
SMALL = HashGridConfig(levels=8, log2_table=15, base=8, growth=1.5)  # finest 137: pictures of 64 to 128 pixels on a CPU
TABLE_RATE, NETWORK_RATE = 1e-2, 1e-3  # AdamW's of 4Diffusion
BETAS, EPSILON = (0.9, 0.99), 1e-15


class Values(NamedTuple):
    """What the field is at P places and times."""

    densities: Tensor  # [P] at least 0, per unit of length
    colors: Tensor  # [P, 3] 0..1
    normals: Tensor | None = None  # [P, 3] unit length, from dense to empty


class SpaceTimeHash(nn.Module):
    """Sum of a grid over space, for what rests, and one over space and time, for what moves."""

    def __init__(self, config: HashGridConfig = PUBLISHED) -> None:
        super().__init__()
        self.space, self.space_time = HashGrid(3, config), HashGrid(4, config)
        self.channels = self.space.channels

    def forward(self, places: Tensor, times: Tensor) -> Tensor:  # [P, 3] 0..1, [P] 0..1 -> [P, C]
        """Features of places in the box, its corners being 0 and 1."""
        return self.space(places) + self.space_time(torch.cat([places, times[:, None]], dim=-1))

    def pull(self, places: Tensor, times: Tensor, gradient: Tensor) -> Tensor:  # [P, 3], [P], [P, C] -> [P, 3]
        """The gradient by the places of sum(features * gradient), differentiable in the rest."""
        in_time = self.space_time.pull(torch.cat([places, times[:, None]], dim=-1), gradient)
        return self.space.pull(places, gradient) + in_time[:, :3]


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, outputs: int, width: int = 64, hidden: int = 1, bias: bool = False) -> None:
        super().__init__()
        sizes = [inputs, *[width] * hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))

    def forward(self, values: Tensor) -> Tensor:  # [P, inputs] -> [P, outputs]
        """Products with the samples as columns, which is how grids give and want them."""
        columns = values.t()
        for number, layer in enumerate(self.layers):
            columns = layer.weight @ (columns.relu() if number else columns)
            if layer.bias is not None:
                columns = columns + layer.bias[:, None]
        return columns.t()


class Field(nn.Module):
    """Density and colour over an encoding: a module with `channels`, `forward` and `pull` as `SpaceTimeHash` has them.

    Points are [P, 3] within the box -radius..radius, times [P].
    """

    def __init__(
        self,
        encoding: nn.Module,
        width: int = 64,
        radius: float = 1.0,
        blob_density: float = 10.0,
        blob_radius: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoding, self.radius = encoding, radius
        self.blob_density, self.blob_radius = blob_density, blob_radius
        self.density_network, self.color_network = (Mlp(encoding.channels, outputs, width) for outputs in (1, 3))

    def forward(self, points: Tensor, times: Tensor, with_normals: bool = False) -> Values:
        """The field there. Differentiable in its parameters; with normals not in the points."""
        if with_normals:
            return self._with_normals(points, times)
        features = self.encoding(self._places(points), times)
        return Values(self._densities(features, points), self.color_network(features).sigmoid())

    def densities(self, points: Tensor, times: Tensor) -> Tensor:  # [P]
        """The densities alone."""
        return self._densities(self.encoding(self._places(points), times), points)

    def parameter_groups(self, table_rate: float = TABLE_RATE, network_rate: float = NETWORK_RATE) -> list[dict]:
        """For AdamW with `BETAS` and `EPSILON`: grids learn ten times as fast as networks."""
        networks = [*self.density_network.parameters(), *self.color_network.parameters()]
        return [
            {"params": list(self.encoding.parameters()), "lr": table_rate},
            {"params": networks, "lr": network_rate},
        ]

    def _with_normals(self, points: Tensor, times: Tensor) -> Values:
        """The derivative by the points in two parts, through the features and through the blob."""
        wanted = torch.is_grad_enabled()
        places = self._places(points).detach()
        with torch.enable_grad():
            features = self.encoding(places, times)
            if not features.requires_grad:
                features.requires_grad_()
            points = points.detach().requires_grad_()
            densities = self._densities(features, points)
            by_features, by_points = torch.autograd.grad(densities.sum(), [features, points], create_graph=wanted)
        slopes = by_points + self.encoding.pull(places, times, by_features) / (2 * self.radius)
        values = Values(densities, self.color_network(features).sigmoid(), -normalize(slopes, dim=-1))
        return values if wanted else Values(*(value.detach() for value in values))

    def _densities(self, features: Tensor, points: Tensor) -> Tensor:
        blob = self.blob_density * (1 - points.norm(dim=-1) / self.blob_radius)
        return softplus(self.density_network(features)[:, 0] + blob)

    def _places(self, points: Tensor) -> Tensor:
        return (points / self.radius + 1) / 2
