# SPDX-License-Identifier: GPL-3.0-or-later
"""Hash grids: conventions by hand, the kernels against torch, derivatives up to the second order."""

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from backend.nerf.hash_grid import HashGrid, HashGridConfig, levels_of, look_up

MIXED = HashGridConfig(levels=4, log2_table=10, base=4, growth=1.9)  # dense levels and hashed ones
DIMENSIONS = pytest.mark.parametrize("dimensions", [3, 4])


def grid_of(dimensions: int, config: HashGridConfig = MIXED) -> HashGrid:
    torch.manual_seed(dimensions)
    grid = HashGrid(dimensions, config)
    with torch.no_grad():
        grid.table.normal_()
    return grid


def test_the_published_size() -> None:
    """16 levels, the finest 4096 wide; in three dimensions five levels are dense, in four two."""
    for dimensions, dense in ((3, 5), (4, 2)):
        levels = levels_of(HashGridConfig(), dimensions)
        assert [level.hashed for level in levels] == [False] * dense + [True] * (16 - dense)
        assert levels[0].resolution == 16
        assert levels[0].scale == 15
        assert levels[15].resolution in (4096, 4097)
        assert levels[15].scale == pytest.approx(4095, rel=1e-5)
        assert all(level.entries == 2**19 for level in levels[dense:])
        assert [level.start for level in levels[1:]] == [level.start + level.entries for level in levels[:-1]]
    with torch.device("meta"):
        assert HashGrid(3).channels == 32


def test_corners_lie_where_the_formulas_say() -> None:
    """A position in the middle between no corners: what it reads is one entry."""
    levels = levels_of(MIXED, 3)
    for level, hashed in ((levels[0], False), (levels[3], True)):
        corner = (1, 2, 3)
        position = torch.tensor([[(c - 0.5) / level.scale for c in corner]], dtype=torch.float64)
        if hashed:
            index = (1 ^ (2 * 2654435761) ^ (3 * 805459861)) % 2**32 % level.entries
        else:
            index = 1 + 2 * level.resolution + 3 * level.resolution**2
        table = torch.zeros(levels[-1].start + levels[-1].entries, 2, dtype=torch.float64)
        table[level.start + index] = torch.tensor([5.0, 7.0])
        number = levels.index(level)
        found = look_up(position, table, levels)[0, 2 * number : 2 * number + 2]
        torch.testing.assert_close(found, torch.tensor([5.0, 7.0], dtype=torch.float64))


def test_sizes_that_make_no_sense_are_refused() -> None:
    for config, dimensions in ((MIXED, 2), (HashGridConfig(levels=0), 3), (HashGridConfig(growth=0.5), 3)):
        with pytest.raises(ValueError, match="no"):
            levels_of(config, dimensions)


@pytest.mark.slow
@DIMENSIONS
def test_torch_is_differentiable_twice(dimensions: int) -> None:
    levels = levels_of(HashGridConfig(levels=2, log2_table=6, base=4, growth=3.0), dimensions)
    table = torch.randn(levels[-1].start + levels[-1].entries, 2, dtype=torch.float64, requires_grad=True)
    positions = torch.rand(3, dimensions, dtype=torch.float64, requires_grad=True)

    def features(positions: Tensor, table: Tensor) -> Tensor:
        return look_up(positions, table, levels)

    assert gradcheck(features, (positions, table))
    assert gradgradcheck(features, (positions, table))


def derivatives(grid: HashGrid, positions: Tensor, use_kernels: bool) -> list[Tensor]:
    """Features; gradients by positions and table; and those of a loss of the gradient by the positions."""
    grid.use_kernels = use_kernels
    positions = positions.clone().requires_grad_()
    features = grid(positions)
    pattern = torch.linspace(-1, 2, features.numel()).view_as(features)
    loss = (features.square() * pattern).sum()  # not linear, so that the outer derivative goes through all inputs
    first = grad(loss, [positions, grid.table], create_graph=True)
    slope_loss = (first[0] * torch.linspace(1, 3, positions.numel()).view_as(positions)).square().sum()
    table_loss = (first[1] * torch.linspace(1, 3, grid.table.numel()).view_as(grid.table)).sum()
    return [
        features,
        *first,
        *grad(slope_loss, [positions, grid.table], retain_graph=True),
        *grad(table_loss, [positions, grid.table]),
    ]


@DIMENSIONS
def test_kernels_give_what_torch_gives(dimensions: int) -> None:
    grid = grid_of(dimensions)
    positions = torch.rand(500, dimensions)
    positions[0], positions[1] = 0, 1  # the ends of the box, where the lattice wraps
    for ours, plain in zip(derivatives(grid, positions, True), derivatives(grid, positions, False), strict=True):
        scale = plain.abs().max()
        torch.testing.assert_close(ours / scale, plain / scale, rtol=0, atol=2e-5)
    assert torch.isfinite(ours).all()


@DIMENSIONS
def test_threads_change_nothing(dimensions: int) -> None:
    grid, threads = grid_of(dimensions), torch.get_num_threads()
    positions = torch.rand(40_000, dimensions)
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            points = positions.clone().requires_grad_()
            features = grid(points)
            results.append([features, *grad(features.sin().sum(), [points, grid.table])])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@DIMENSIONS
@pytest.mark.parametrize("use_kernels", [True, False])
def test_pulling_is_the_gradient_by_positions(dimensions: int, use_kernels: bool) -> None:
    """Without a gradient that the positions ask for themselves; differentiable in the gradient that is pulled."""
    grid = grid_of(dimensions)
    grid.use_kernels = use_kernels
    positions, gradient = torch.rand(50, dimensions) * 1.2 - 0.1, torch.randn(50, grid.channels, requires_grad=True)
    tracked = positions.clone().requires_grad_()
    (expected,) = grad((grid(tracked) * gradient).sum(), tracked, create_graph=True)
    pulled = grid.pull(positions, gradient)
    torch.testing.assert_close(pulled, expected)
    wanted = [gradient, grid.table]
    for ours, plain in zip(grad(pulled.square().sum(), wanted), grad(expected.square().sum(), wanted), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_positions_outside_and_not_a_number_do_no_harm() -> None:
    grid = grid_of(3)
    inside = grid(torch.tensor([[0.0, 1.0, 0.5]]))
    assert torch.equal(grid(torch.tensor([[-9.0, 1e9, 0.5]])), inside)
    for use_kernels in (True, False):
        grid.use_kernels = use_kernels
        assert grid(torch.tensor([[float("nan"), 0.5, 0.5]])).isnan().all()
    assert grid(torch.empty(0, 3)).shape == (0, 8)
