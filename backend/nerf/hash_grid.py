# SPDX-License-Identifier: GPL-3.0-or-later
"""Multiresolution hash grids in three and four dimensions (Mueller et al., "Instant Neural Graphics Primitives", 2022).

Level l is a lattice whose cells are 1 / s_l wide, s_l = base * growth^l - 1; two numbers are kept for each corner and
interpolated linearly between corners (section 3, Eq. 1-4). Where the paper is silent, tiny-cuda-nn's conventions:

- Corner coordinates are floor(x s_l + 1/2) and the next; the level is r_l = ceil(s_l) + 1 corners wide.
- A level whose r_l^D corners fit into 2^log2_table entries is dense: x + y r_l + z r_l^2 + ..., modulo its entries. It
  has r_l^D entries, rounded up to a multiple of 8. As x s_l + 1/2 reaches beyond the last corner near the far end of
  the box, the lattice wraps round there by half a cell.
- All other levels have 2^log2_table entries, at (x p1) xor (y p2) xor (z p3) xor (t p4), modulo their number, in
  unsigned 32 bits; p = 1, 2654435761, 805459861, 3674653429.
- The table is flat, level after level, the two numbers of an entry side by side; it starts uniform in +-1e-4.

Positions outside 0..1 count as the nearest inside. On the CPU, in float32, Numba kernels do the work (`kernels`); in
torch it takes several times as long. Both are differentiable twice, by the table and by the positions: analytic
normals are a derivative, and losses of normals are one more.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backend.nerf import kernels
from backend.nerf.kernels import PRIMES

DIMENSIONS = (3, 4)  # that grids may have
FEATURES = 2  # numbers per corner
START = 1e-4  # of the numbers
CHUNK = 16_384  # samples of one task of a thread


@dataclass(frozen=True)
class HashGridConfig:
    """Size of a grid. The defaults are 4Diffusion's: the finest level is 4096 corners wide."""

    levels: int = 16
    log2_table: int = 19  # entries per level at most, as a power of two
    base: int = 16  # corners of the coarsest level
    growth: float = 1.4472692  # from one level to the next


@dataclass(frozen=True)
class Level:
    """Where one level lies in the table and in space."""

    scale: float  # cells per unit of length, a float32
    resolution: int
    start: int  # first entry
    entries: int
    hashed: bool

    @property
    def arguments(self) -> tuple:
        """As the kernels take them."""
        numbers = np.float32(self.scale), np.int32(self.resolution), np.uint32(self.start), np.uint32(self.entries)
        return (*numbers, self.hashed)


def levels_of(config: HashGridConfig, dimensions: int) -> list[Level]:
    """The levels of a grid, coarse to fine.

    Raises:
        ValueError: a size that the formulas do not allow for.
    """
    if dimensions not in DIMENSIONS:
        raise ValueError(f"hash grids have 3 or 4 dimensions, not {dimensions}")
    if config.levels < 1 or not 3 <= config.log2_table <= 24 or config.base < 4 or config.growth < 1:
        raise ValueError(f"no such grid: {config}")
    levels, start = [], 0
    for number in range(config.levels):
        scale = float(np.float32(config.base * config.growth**number - 1))
        resolution = math.ceil(scale) + 1
        corners, most = resolution**dimensions, 2**config.log2_table
        entries = min(-(-corners // 8) * 8, most)
        levels.append(Level(scale, resolution, start, entries, corners > most))
        start += entries
    if start >= 2**31:
        raise ValueError(f"no such grid: {start} entries are too many")
    return levels


class HashGrid(nn.Module):
    """A grid over [0, 1]^dimensions."""

    def __init__(self, dimensions: int, config: HashGridConfig = HashGridConfig()) -> None:
        super().__init__()
        self.levels = levels_of(config, dimensions)
        self.dimensions, self.use_kernels = dimensions, True
        entries = self.levels[-1].start + self.levels[-1].entries
        self.table = nn.Parameter(torch.empty(entries, FEATURES).uniform_(-START, START))

    @property
    def channels(self) -> int:
        """How many features a position has."""
        return FEATURES * len(self.levels)

    def forward(self, positions: Tensor) -> Tensor:  # [P, D] -> [P, 2 L], coarse level first
        """The features of positions, in float32 as the table."""
        positions = positions.clamp(0, 1)
        if self._kernels_fit(positions):
            return _LookUp.apply(positions, self.table, self._work)
        return look_up(positions, self.table, self.levels)

    def pull(self, positions: Tensor, gradient: Tensor) -> Tensor:  # [P, D], [P, 2 L] -> [P, D]
        """The gradient by the positions of sum(features * gradient); differentiable in the gradient and the table.

        Autograd gives the same where the positions want a gradient, but works out the table's along the way.
        """
        if self._kernels_fit(positions):
            slopes = _Pull.apply(positions.clamp(0, 1), self.table, gradient, self._work)
            return slopes * ((positions >= 0) & (positions <= 1))
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            features = self(positions)
            return torch.autograd.grad((features * gradient).sum(), positions, create_graph=wanted)[0]

    def _kernels_fit(self, positions: Tensor) -> bool:
        return self.use_kernels and positions.is_cpu and positions.dtype == self.table.dtype == torch.float32

    @cached_property
    def _work(self) -> "_Work":
        return _Work(self.levels)


def look_up(positions: Tensor, table: Tensor, levels: list[Level]) -> Tensor:  # [P, D], [E, 2] -> [P, 2 L]
    """What `HashGrid` computes, in torch: any device and type of numbers; positions within 0..1."""
    dimensions = positions.shape[1]
    bits = torch.arange(2**dimensions, device=positions.device)
    sides = torch.stack([(bits >> axis) & 1 for axis in range(dimensions)], dim=-1)  # [C, D]: 0 lower, 1 upper
    features = []
    for level in levels:
        place = positions * level.scale + 0.5
        lower = place.detach().floor().nan_to_num().clamp(0, level.resolution)
        share = (place - lower)[:, None]  # [P, 1, D]
        weights = torch.where(sides.bool(), share, 1 - share).prod(dim=-1)  # [P, C]
        corners = lower.long()[:, None] + sides  # [P, C, D]
        if level.hashed:
            index = corners[..., 0]
            for axis in range(1, dimensions):
                index = index ^ (corners[..., axis] * PRIMES[axis])  # below 2^63, and only low bits count
        else:
            index = sum(corners[..., axis] * level.resolution**axis for axis in range(dimensions))
        entries = table[level.start + index % level.entries]  # [P, C, 2]
        features.append((weights[..., None] * entries).sum(dim=1))
    return torch.cat(features, dim=-1)


class _Work:
    """The kernels of a grid with their work shared out over threads, the same results for any number of these."""

    def __init__(self, levels: list[Level]) -> None:
        self.levels = [(FEATURES * row, level.arguments) for row, level in enumerate(levels)]

    def by_level_and_chunk(self, kernel, samples: int, inputs: tuple, *more: np.ndarray) -> None:
        """For kernels that write to the features of each sample."""
        tasks = [
            (*inputs, *level, first, min(first + CHUNK, samples), row, *more)
            for row, level in self.levels
            for first in range(0, samples, CHUNK)
        ]
        _run(kernel, tasks)

    def by_chunk(self, kernel, samples: int, inputs: tuple, *more: np.ndarray) -> None:
        """For kernels that add to something of each sample."""

        def all_levels(first: int) -> None:
            for row, level in self.levels:
                kernel(*inputs, *level, first, min(first + CHUNK, samples), row, *more)

        _run(all_levels, [(first,) for first in range(0, samples, CHUNK)])

    def by_level(self, kernel, samples: int, inputs: tuple, *more: np.ndarray) -> None:
        """For kernels that add to the table."""
        _run(kernel, [(*inputs, *level, 0, samples, row, *more) for row, level in reversed(self.levels)])


def _run(function, tasks: list[tuple]) -> None:
    """Call `function(*task)` for all tasks, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), len(tasks))
    if threads <= 1:
        for task in tasks:
            function(*task)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="hash-grid") as pool:  # 0.1 ms; none outlives the call
        for future in [pool.submit(function, *task) for task in tasks]:
            future.result()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


class _LookUp(torch.autograd.Function):
    """Features [P, 2 L]."""

    @staticmethod
    def forward(ctx, positions: Tensor, table: Tensor, work: _Work) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.work = work
        features = torch.empty(FEATURES * len(work.levels), len(positions))
        inputs = _array(positions), _array(table)
        work.by_level_and_chunk(kernels.look_up, len(positions), inputs, features.numpy())
        return features.t()  # lies in memory as matrix products of few channels and many samples want it

    @staticmethod
    def backward(ctx, gradient: Tensor):
        positions, table = ctx.saved_tensors
        by_positions = _Pull.apply(positions, table, gradient, ctx.work) if ctx.needs_input_grad[0] else None
        by_table = _Push.apply(positions, table, gradient, ctx.work) if ctx.needs_input_grad[1] else None
        return by_positions, by_table, None


class _Pull(torch.autograd.Function):
    """The gradient [P, D] by the positions of sum(features * gradient)."""

    @staticmethod
    def forward(ctx, positions: Tensor, table: Tensor, gradient: Tensor, work: _Work) -> Tensor:
        ctx.save_for_backward(positions, table, gradient)
        ctx.work = work
        slopes = torch.zeros(positions.shape)
        inputs = _array(positions), _array(table)
        work.by_chunk(kernels.pull, len(positions), inputs, _array(gradient.t()), slopes.numpy())
        return slopes

    @staticmethod
    @once_differentiable
    def backward(ctx, tangent: Tensor):
        positions, table, gradient = ctx.saved_tensors
        work, samples = ctx.work, len(positions)
        inputs, rows, along = (_array(positions), _array(table)), _array(gradient.t()), _array(tangent)
        by_positions = by_table = by_gradient = None
        if ctx.needs_input_grad[0]:
            by_positions = torch.zeros(positions.shape)
            work.by_chunk(kernels.pull_slope, samples, inputs, rows, along, by_positions.numpy())
        if ctx.needs_input_grad[1]:
            by_table = torch.zeros(table.shape)
            work.by_level(kernels.push_slope, samples, inputs[:1], rows, along, by_table.numpy())
        if ctx.needs_input_grad[2]:
            slopes = torch.empty(rows.shape)
            work.by_level_and_chunk(kernels.look_up_slope, samples, inputs, along, slopes.numpy())
            by_gradient = slopes.t()
        return by_positions, by_table, by_gradient, None


class _Push(torch.autograd.Function):
    """The gradient [E, 2] by the table of sum(features * gradient). The table itself has no say, but for its shape."""

    @staticmethod
    def forward(ctx, positions: Tensor, table: Tensor, gradient: Tensor, work: _Work) -> Tensor:
        ctx.save_for_backward(positions, gradient)
        ctx.work = work
        sums = torch.zeros(table.shape)
        work.by_level(kernels.push, len(positions), (_array(positions),), _array(gradient.t()), sums.numpy())
        return sums

    @staticmethod
    def backward(ctx, like_table: Tensor):
        positions, gradient = ctx.saved_tensors
        by_positions = _Pull.apply(positions, like_table, gradient, ctx.work) if ctx.needs_input_grad[0] else None
        by_gradient = _LookUp.apply(positions, like_table, ctx.work) if ctx.needs_input_grad[2] else None
        return by_positions, None, by_gradient, None
