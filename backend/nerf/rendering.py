# SPDX-License-Identifier: GPL-3.0-or-later
"""Volume rendering of a field: rays of cameras, samples where there may be something, and what adds up along rays.

    C = sum_i T_i alpha_i c_i,  alpha_i = 1 - exp(-density_i step),  T_i = prod_{j < i} (1 - alpha_j)

(Mildenhall et al., "NeRF", 2020, Eq. 3). The samples of all rays lie packed one after the other, each with the number
of its ray, so that rays through nothing cost nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backend.nerf.field import Field
from backend.nerf.occupancy import LEAST_ALPHA, SAMPLES_PER_RAY, Occupancy, step_length
from blender_addon.contract.orbit import Cameras

LEAST_LIGHT = 1e-4  # that must still come through for a sample to count
CHUNK = 4_096  # rays that are rendered at once
BLOCK = 16  # samples of each ray that are looked at before it is asked whether light comes through


class Rays(NamedTuple):
    """R lines of sight, each at a time."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3] unit length
    times: Tensor  # [R] 0..1

    def at(self, chosen: Tensor | slice) -> "Rays":
        """Some of them, by index or mask."""
        return Rays(*(tensor[chosen] for tensor in self))

    def to(self, device: torch.device | str) -> "Rays":
        """The same on another device."""
        return Rays(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Rendered:
    """What R rays see."""

    colors: Tensor  # [R, 3], times opacity
    opacity: Tensor  # [R] 0..1
    depth: Tensor  # [R], times opacity: distance from the rays' origins
    normals: Tensor | None = None  # [R, 3], times opacity: mean normal, not of length 1
    facing_away: Tensor | None = None  # [R]: see `losses.orientation`

    def over(self, background: Tensor | float) -> Tensor:  # broadcasts to [R, 3] -> [R, 3]
        """The colours with what shows through."""
        return self.colors + (1 - self.opacity[:, None]) * background


@dataclass(frozen=True)
class Quality:
    """How finely rays are sampled. The defaults are 4Diffusion's."""

    samples: int = SAMPLES_PER_RAY  # along the longest way through the box
    least_alpha: float = LEAST_ALPHA  # of a sample that counts; the occupancy's, where that is less
    chunk: int = CHUNK  # rays at once: what bounds the memory


def rays_of(cameras: Cameras, views: np.ndarray | slice = slice(None)) -> Rays:
    """The rays through the centres of all pixels of `views`, view after view and row after row: R = V H W."""
    to_world = torch.from_numpy(cameras.camera_to_world[views]).float()
    Ks = torch.from_numpy(cameras.Ks[views]).float()  # noqa: N806
    times = torch.from_numpy(cameras.times[views]).float()
    row, column = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pixels = torch.stack([column, row, torch.ones_like(row)], dim=-1).flatten(0, 1) + torch.tensor([0.5, 0.5, 0])
    in_camera = pixels @ torch.linalg.inv(Ks).mT * torch.tensor([1.0, -1.0, -1.0])  # [V, H W, 3]: y up, z backward
    directions = torch.nn.functional.normalize(in_camera @ to_world[:, :3, :3].mT, dim=-1)
    origins = to_world[:, None, :3, 3].expand_as(directions)
    return Rays(origins.flatten(0, 1), directions.flatten(0, 1), times[:, None].expand(directions.shape[:2]).flatten())


def render(
    field: Field,
    occupancy: Occupancy | None,
    rays: Rays,
    quality: Quality = Quality(),
    *,
    with_normals: bool = False,
    jitter: bool = False,
    generator: torch.Generator | None = None,
) -> Rendered:
    """What the rays see, differentiable in the field's parameters.

    Args:
        field: on the rays' device.
        occupancy: what to leave out; None: nothing.
        rays: any number of them. More than a chunk are rendered a chunk at a time, and again for the gradient (as in
            deferred back-propagation, Zhang et al., "ARF", 2022), so that memory does not grow with their number but
            for results and places of samples. The field must not change in between.
        quality: see there.
        with_normals: whether to render normals, and how far they face away.
        jitter: move the samples of each ray by a random part of a step, as training wants it; else by half a step.
        generator: of that, on the CPU.
    """
    count = len(rays.origins)
    shift = torch.rand(count, generator=generator) if jitter else torch.full((count,), 0.5)
    shift = shift.to(rays.origins.device)
    step = step_length(field.radius, quality.samples)
    chunks = []
    for first in range(0, max(count, 1), quality.chunk):
        part = slice(first, first + quality.chunk)
        packed = sample(field, occupancy, rays.at(part), shift[part], quality)
        chunks.append((field, rays.at(part), *packed, step, with_normals))
    parameters = [parameter for parameter in field.parameters() if parameter.requires_grad]
    if len(chunks) == 1 or not parameters:
        sums = torch.cat([_sums(*chunk) for chunk in chunks])
    else:
        sums = _InChunks.apply(chunks, *parameters)
    colors, opacity, depth, normals, away = sums.split([3, 1, 1, 3, 1] if with_normals else [3, 1, 1, 0, 0], 1)
    extra = (normals, away[:, 0]) if with_normals else (None, None)
    return Rendered(colors, opacity[:, 0], depth[:, 0], *extra)


@torch.no_grad()
def sample(
    field: Field, occupancy: Occupancy | None, rays: Rays, shift: Tensor, quality: Quality
) -> tuple[Tensor, Tensor]:  # [P] int64, [P]
    """Ray and distance of each sample that counts, ray after ray and front to back.

    First those in occupied cells; of these such as are not too thin, nor hidden by those before.
    """
    step = step_length(field.radius, quality.samples)
    ray, distance = march(occupancy, rays, shift, step, quality.samples, field.radius)
    least = quality.least_alpha if occupancy is None else min(quality.least_alpha, float(occupancy.threshold))
    if not least or not len(ray):
        return ray, distance
    least_depth, darkness = -np.log1p(-least), -np.log(LEAST_LIGHT)
    rank = _rank(ray)
    passed = torch.zeros_like(rays.times)  # optical depth in front of a block, for each ray
    kept = []
    for first in range(0, int(rank.max()) + 1, BLOCK):  # a few samples of all rays, then what is behind them, if lit
        block = ((rank >= first) & (rank < first + BLOCK) & (passed[ray] < darkness)).nonzero()[:, 0]
        if not len(block):
            break  # samples of higher rank lie behind
        of_ray = ray[block]
        origins, directions, times = rays.at(of_ray)
        depths = field.densities(origins + distance[block, None] * directions, times) * step
        lit = passed[of_ray] + _before(depths, of_ray) < darkness
        kept.append(block[(depths > least_depth) & lit])
        passed.index_add_(0, of_ray, depths)
    counts = torch.cat(kept).sort().values
    return ray[counts], distance[counts]


def march(
    occupancy: Occupancy | None, rays: Rays, shift: Tensor, step: float, samples: int, radius: float
) -> tuple[Tensor, Tensor]:  # [P] int64, [P]
    """Ray and distance of all samples in the box and in occupied cells. shift: [R] 0..1, of the first, in steps."""
    at_planes = (torch.tensor([[-radius], [radius]], device=shift.device)[:, None] - rays.origins) / rays.directions
    near = at_planes.amin(dim=0).nan_to_num(-torch.inf).amax(dim=-1).clamp(min=0)  # NaN: in a plane and along it
    far = at_planes.amax(dim=0).nan_to_num(torch.inf).amin(dim=-1)
    hits = (far > near).nonzero()[:, 0]
    distance = near[hits, None] + (torch.arange(samples, device=shift.device) + shift[hits, None]) * step
    inside = distance < far[hits, None]
    ray, number = inside.nonzero().unbind(dim=1)
    distance, ray = distance[ray, number], hits[ray]
    if occupancy is None:
        return ray, distance
    origins, directions, _ = rays.at(ray)
    within = occupancy.contains(origins + distance[:, None] * directions)
    return ray[within], distance[within]


def first_hits(
    field: Field,
    occupancy: Occupancy | None,
    rays: Rays,
    quality: Quality = Quality(),
    level: float = 0.5,
) -> Tensor:  # [R]
    """How far away the share `level` of the light has been stopped; infinite where it never is. No gradient."""
    found = []
    step = step_length(field.radius, quality.samples)
    for first in range(0, len(rays.origins), quality.chunk):
        part = rays.at(slice(first, first + quality.chunk))
        ray, distance = sample(field, occupancy, part, torch.full_like(part.times, 0.5), quality)
        origins, directions, times = part.at(ray)
        with torch.no_grad():
            depths = field.densities(origins + distance[:, None] * directions, times) * step
        before, limit = _before(depths, ray), -np.log1p(-level)
        # Within a step the density is even; the light falls to the level somewhere in one step of each ray.
        reached = (before < limit) & (before + depths >= limit)
        at = distance + ((limit - before) / depths - 0.5) * step
        found.append(torch.full_like(part.times, torch.inf).index_copy(0, ray[reached], at[reached]))
    return torch.cat(found)


def _sums(field: Field, rays: Rays, ray: Tensor, distance: Tensor, step: float, with_normals: bool) -> Tensor:
    """Colour, opacity, depth, normals and how far they face away of each ray [R, 5 or 9] over its samples."""
    origins, directions, times = rays.at(ray)
    values = field(origins + distance[:, None] * directions, times, with_normals)
    depths = values.densities * step
    weights = torch.exp(-_before(depths, ray)) * -torch.expm1(-depths)
    columns = [values.colors, torch.ones_like(weights)[:, None], distance[:, None]]
    if with_normals:
        columns.append(values.normals)
    sums = weights[:, None] * torch.cat(columns, dim=-1)
    if with_normals:
        away = (values.normals * directions).sum(dim=-1).clamp(min=0).square()
        sums = torch.cat([sums, (weights.detach() * away)[:, None]], dim=-1)
    return sums.new_zeros(len(rays.origins), sums.shape[1]).index_add(0, ray, sums)


class _InChunks(torch.autograd.Function):
    """`_sums` of one chunk after the other, of which none keeps a graph: the gradient computes them again.

    torch.utils.checkpoint would do so, but computes all again for each derivative within, of which normals have some.
    """

    @staticmethod
    def forward(ctx, chunks: list[tuple], *parameters: Tensor) -> Tensor:
        ctx.chunks = chunks
        ctx.save_for_backward(*parameters)  # so that a field that was changed in between is noticed
        return torch.cat([_sums(*chunk) for chunk in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        parameters = ctx.saved_tensors
        total = [torch.zeros_like(parameter) for parameter in parameters]
        first = 0
        for chunk in ctx.chunks:
            last = first + len(chunk[1].origins)
            with torch.enable_grad():
                sums = _sums(*chunk)
            if sums.requires_grad:
                parts = torch.autograd.grad(sums, parameters, gradient[first:last], allow_unused=True)
                for whole, part in zip(total, parts, strict=True):
                    if part is not None:
                        whole += part
            first = last
        return None, *total


def _before(depths: Tensor, ray: Tensor) -> Tensor:  # [P], [P] -> [P]
    """Optical depth of the samples before each, of its own ray; in float64 within, as the sum runs over all rays."""
    if not len(ray):
        return depths
    before = depths.double().cumsum(dim=0) - depths
    return (before - before[_first(ray)]).to(depths.dtype)


def _rank(ray: Tensor) -> Tensor:  # [P] -> [P]
    """Which sample of its ray each is, from 0."""
    return torch.arange(len(ray), device=ray.device) - _first(ray)


def _first(ray: Tensor) -> Tensor:  # [P] -> [P]
    """Index of the first sample of each sample's ray."""
    starts = torch.cat([ray.new_ones(1, dtype=torch.bool), ray[1:] != ray[:-1]])
    return starts.nonzero()[:, 0][starts.cumsum(dim=0) - 1]
