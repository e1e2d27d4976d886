# SPDX-License-Identifier: GPL-3.0-or-later
"""The field against the public code's, whose hash grids were replaced by sines (they need CUDA): what is wired how."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad

from backend.nerf.field import SMALL, Field, Mlp, SpaceTimeHash
from backend.nerf.hash_grid import HashGrid, HashGridConfig
from tests import golden

KNOWN = golden.tensors("nerf/fourdm_field")
TOLERANCE = {"rtol": 0, "atol": 5e-5}
WEIGHTS = "field_hash_spacetime.w"


class Sine(nn.Module):
    """sin(x W + b) in place of a hash grid."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(KNOWN[f"{WEIGHTS}.encoding.encoding.{name}.weight"])
        self.bias = nn.Parameter(KNOWN[f"{WEIGHTS}.encoding.encoding.{name}.bias"])

    def forward(self, positions: Tensor) -> Tensor:
        return torch.sin(positions @ self.weight + self.bias)

    def pull(self, positions: Tensor, gradient: Tensor) -> Tensor:
        return (gradient * torch.cos(positions @ self.weight + self.bias)) @ self.weight.T


def field_of_sines() -> Field:
    encoding = SpaceTimeHash(HashGridConfig(levels=4, log2_table=4, base=4))
    encoding.space, encoding.space_time = Sine("encoding"), Sine("encoding_time")
    field = Field(encoding, width=16)
    for network, name in ((field.density_network, "density_network"), (field.color_network, "feature_network")):
        for layer, number in zip(network.layers, (0, 2), strict=True):
            layer.weight = nn.Parameter(KNOWN[f"{WEIGHTS}.{name}.layers.{number}.weight"])
    return field


@pytest.mark.parametrize(("run", "time"), [("none", 0.0), ("t0.0", 0.0), ("t0.3", 0.3), ("t1.0", 1.0)])
def test_values_are_the_public_code_s(run: str, time: float) -> None:
    """No time at all means time 0 there."""
    points, field = KNOWN["field.points"], field_of_sines()
    times = torch.full((len(points),), time)
    known = {
        name: KNOWN[f"field_hash_spacetime.{run}.{name}"] for name in ("density", "features", "normal", "encoding")
    }
    values = field(points, times, with_normals=True)
    torch.testing.assert_close(field.encoding((points + 1) / 2, times), known["encoding"], **TOLERANCE)
    torch.testing.assert_close(values.densities, known["density"][:, 0], **TOLERANCE)
    torch.testing.assert_close(values.colors, known["features"].sigmoid(), **TOLERANCE)
    torch.testing.assert_close(values.normals, known["normal"], **TOLERANCE)
    without = field(points, times)
    torch.testing.assert_close(without.densities, values.densities)
    torch.testing.assert_close(without.colors, values.colors)
    torch.testing.assert_close(field.densities(points, times), values.densities)


@pytest.mark.parametrize(
    ("name", "hidden", "bias", "numbers"), [("mlp1", 1, False, (0, 2)), ("mlp2b", 2, True, (0, 2, 4))]
)
def test_networks_are_the_public_code_s(name: str, hidden: int, bias: bool, numbers: tuple[int, ...]) -> None:
    network = Mlp(8, 3, width=16, hidden=hidden, bias=bias)
    for layer, number in zip(network.layers, numbers, strict=True):
        layer.weight = nn.Parameter(KNOWN[f"{name}.w.layers.{number}.weight"])
        if bias:
            layer.bias = nn.Parameter(KNOWN[f"{name}.w.layers.{number}.bias"])
    torch.testing.assert_close(network(KNOWN[f"{name}.x"]), KNOWN[f"{name}.y"], **TOLERANCE)


def small_field() -> Field:
    torch.manual_seed(1)
    field = Field(SpaceTimeHash(HashGridConfig(levels=3, log2_table=9, base=4, growth=1.7)), width=16)
    with torch.no_grad():
        for table in (field.encoding.space.table, field.encoding.space_time.table):
            table.normal_()
    return field


@pytest.mark.parametrize("use_kernels", [True, False])
def test_normals_and_their_gradients_are_autograd_s(use_kernels: bool) -> None:
    """Of hash grids, against differentiating the density by the points and once more by all parameters."""
    field = small_field()
    for module in field.modules():
        if isinstance(module, HashGrid):
            module.use_kernels = use_kernels
    points, times = torch.rand(60, 3) - 0.5, torch.rand(60)
    values = field(points, times, with_normals=True)
    tracked = points.clone().requires_grad_()
    (slope,) = grad(field.densities(tracked, times).sum(), tracked, create_graph=True)
    expected = -nn.functional.normalize(slope, dim=-1)
    torch.testing.assert_close(values.normals, expected, rtol=1e-4, atol=1e-4)
    pattern = torch.randn(60, 3)
    wanted = [*field.encoding.parameters(), *field.density_network.parameters()]
    ours, plain = (grad((normals * pattern).sum(), wanted) for normals in (values.normals, expected))
    for one, other in zip(ours, plain, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_normals_need_no_graph() -> None:
    field = small_field()
    with torch.no_grad():
        values = field(torch.rand(5, 3) - 0.5, torch.zeros(5), with_normals=True)
    assert not any(value.requires_grad for value in values)
    torch.testing.assert_close(values.normals.norm(dim=-1), torch.ones(5))


def test_a_new_field_is_a_soft_ball() -> None:
    field = Field(SpaceTimeHash(SMALL))
    points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0, 1.0]])
    densities = field.densities(points, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(densities, nn.functional.softplus(torch.tensor([10.0, 0, -10])), rtol=0.01, atol=1e-4)


def test_every_parameter_has_a_rate() -> None:
    field = small_field()
    grids, networks = field.parameter_groups()
    assert (grids["lr"], networks["lr"]) == (1e-2, 1e-3)
    assert {id(one) for one in [*grids["params"], *networks["params"]]} == {id(one) for one in field.parameters()}
