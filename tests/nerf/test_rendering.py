# SPDX-License-Identifier: GPL-3.0-or-later
"""Rays, occupancy and volume rendering: against closed forms, splatting's cameras, and a dense sum in plain numbers."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.nerf.field import Field, SpaceTimeHash
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.occupancy import SAMPLES_PER_RAY, Occupancy, step_length
from backend.nerf.rendering import Quality, Rays, Rendered, march, rays_of, render, sample
from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras
from tests.nerf.scenes import COLOR, RADIUS, Ball

EVERYTHING = Quality(least_alpha=0.0)  # all samples in the box


def cameras(pixels: int = 24, frames: int = 3) -> Cameras:
    return orbit_cameras(
        Orbit(frames, azimuth_start=20, elevation=25, distance=1.8, fov=45), pixels, pixels, moving=True
    )


def occupancy_of(field: torch.nn.Module) -> Occupancy:
    occupancy = Occupancy()
    generator = torch.Generator().manual_seed(0)
    for iteration in range(0, 128, 16):
        occupancy.update(field, iteration, generator)
    return occupancy


def test_rays_agree_with_the_projection_of_splatting() -> None:
    """A point on a pixel's ray is projected, by `viewmats` and `Ks`, onto that pixel's centre."""
    views = Cameras(
        cameras().camera_to_world,
        cameras().Ks + np.array([[0, 0, 3.0], [0, 5, -2], [0, 0, 0]]),
        cameras().times,
        24,
        20,
    )
    rays = rays_of(views)
    assert len(rays.origins) == 3 * 20 * 24
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(len(rays.origins)))
    for view, row, column, distance in ((0, 0, 0, 0.5), (1, 19, 3, 1.0), (2, 7, 23, 2.5)):
        number = (view * 20 + row) * 24 + column
        point = (rays.origins[number] + distance * rays.directions[number]).double().numpy()
        in_camera = views.viewmats()[view] @ [*point, 1]
        u, v, depth = views.Ks[view] @ in_camera[:3]
        assert (u / depth, v / depth) == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)
        assert depth > 0
        assert float(rays.times[number]) == pytest.approx(views.times[view])
    chosen = rays_of(views, slice(1, 2))
    torch.testing.assert_close(chosen.directions, rays.directions[480:960])


def test_samples_fill_the_box_and_nothing_else() -> None:
    half = math.sqrt(0.5)
    rays = Rays(
        torch.tensor([[-3.0, 0, 0], [0.0, 0, 0], [-3.0, 0, 0], [-2.0, -2, 0]]),
        torch.tensor([[1.0, 0, 0], [0.0, 0, 1], [0.0, 1, 0], [half, half, 0]]),
        torch.zeros(4),
    )
    step = step_length(1.0)
    ray, distance = march(None, rays, torch.full((4,), 0.5), step, SAMPLES_PER_RAY, 1.0)
    counts = torch.bincount(ray, minlength=4).tolist()
    assert counts == pytest.approx([2 / step, 1 / step, 0, 2 * math.sqrt(2) / step], abs=1)
    points = rays.origins[ray] + distance[:, None] * rays.directions[ray]
    assert float(points.abs().max()) <= 1 + 1e-6
    assert bool((ray.diff() >= 0).all())
    torch.testing.assert_close(distance.diff()[ray.diff() == 0], torch.full((len(ray) - 3,), step), rtol=0, atol=1e-5)


def test_a_ball_looks_as_geometry_says() -> None:
    """Opaque where a ray meets the ball of its time; the depth is where it does, within a step."""
    field, views = Ball(2_000.0), cameras(48)
    field.requires_grad_(False)
    rays = rays_of(views)
    rendered = render(field, occupancy_of(field), rays, with_normals=True)
    to_center = field.center(rays.times) - rays.origins
    along = (to_center * rays.directions).sum(dim=-1)
    missed_by = (to_center.square().sum(dim=-1) - along.square()).clamp(min=0).sqrt()
    sure = (missed_by - RADIUS).abs() > step_length(1.0)
    hit = (missed_by < RADIUS).float()
    assert 0.05 < float(hit.mean()) < 0.5
    torch.testing.assert_close(rendered.opacity[sure], hit[sure], rtol=0, atol=1e-3)
    torch.testing.assert_close(rendered.colors[sure], (hit[:, None] * torch.tensor(COLOR))[sure], rtol=0, atol=1e-3)
    expected = along - (RADIUS**2 - missed_by.square()).clamp(min=0).sqrt()
    inside = sure & (hit > 0)
    late = (rendered.depth - expected)[inside].abs().detach()
    assert float(late.quantile(0.9)) < 1.1 * step_length(1.0)
    assert float(late.max()) < 2 / 32  # a cell that the ball only grazes may be missed
    everywhere = render(field, None, rays.at(inside))
    assert float((everywhere.depth - expected[inside]).abs().max()) < 1.1 * step_length(1.0)
    assert float(rendered.facing_away[inside].max()) < 0.1
    assert float((rendered.normals * rays.directions).sum(dim=-1)[inside & (missed_by < 0.1)].max()) < -0.9
    white = rendered.over(1.0)
    torch.testing.assert_close(
        white[sure & (hit == 0)], torch.ones(int((sure & (hit == 0)).sum()), 3), rtol=0, atol=1e-3
    )


def rough_field() -> Field:
    """Not a ball: features are large, so that density varies, and there is haze everywhere."""
    torch.manual_seed(3)
    field = Field(SpaceTimeHash(HashGridConfig(levels=4, log2_table=12, base=6, growth=1.6)), width=32)
    with torch.no_grad():
        for table in (field.encoding.space.table, field.encoding.space_time.table):
            table.normal_(std=2.0)
        field.density_network.layers[1].weight.mul_(12)
    return field


def dense(field: Field, rays: Rays) -> tuple[Tensor, Tensor]:
    """Colours and opacity by the sum over all samples of one ray after the other, in float64."""
    step, shift = step_length(1.0), torch.full((1,), 0.5)
    colors, opacity = [], []
    for number in range(len(rays.origins)):
        one = rays.at(slice(number, number + 1))
        _, distance = march(None, one, shift, step, SAMPLES_PER_RAY, 1.0)
        values = field(one.origins + distance[:, None] * one.directions, one.times.expand(len(distance)))
        light, color = 1.0, torch.zeros(3, dtype=torch.float64)
        for density, shade in zip(values.densities.double(), values.colors.double(), strict=True):
            alpha = 1 - torch.exp(-density * step)
            color = color + light * alpha * shade
            light = light * (1 - alpha)
        colors.append(color)
        opacity.append(1 - light)
    return torch.stack(colors), torch.stack(opacity)


@pytest.mark.slow
def test_packed_sums_are_the_plain_ones_with_their_gradients() -> None:
    field = rough_field()
    rays = rays_of(cameras(4)).at(slice(0, 40))
    rendered = render(field, None, rays, EVERYTHING)
    colors, opacity = dense(field, rays)
    assert 0.02 < float(opacity.detach().mean()) < 0.98
    torch.testing.assert_close(rendered.colors.double(), colors, rtol=0, atol=2e-5)
    torch.testing.assert_close(rendered.opacity.double(), opacity, rtol=0, atol=2e-5)
    parameters = list(field.parameters())
    ours = torch.autograd.grad(rendered.over(0.3).square().sum(), parameters)
    plain = torch.autograd.grad((colors + (1 - opacity[:, None]) * 0.3).square().sum(), parameters)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.slow
def test_leaving_out_the_empty_changes_nothing_visible() -> None:
    field = rough_field()
    field.blob_density = 60.0  # a ball with a rough surface
    rays = rays_of(cameras(20))
    with torch.no_grad():
        every = render(field, None, rays, EVERYTHING)
        skipping = render(field, occupancy_of(field), rays)
    difference = (every.over(1.0) - skipping.over(1.0)).abs()
    assert float(difference.mean()) < 0.004
    assert float(difference.max()) < 0.12
    occupied = float(occupancy_of(field).occupied.float().mean())
    assert 0.01 < occupied < 0.6


def test_empty_rays_cost_nothing() -> None:
    field = Ball().requires_grad_(False)
    occupancy = occupancy_of(field)
    rays = rays_of(cameras(64))
    field.looked_at = 0
    render(field, occupancy, rays, Quality(chunk=len(rays.origins)))
    whole, _ = march(None, rays, torch.full_like(rays.times, 0.5), step_length(1.0), SAMPLES_PER_RAY, 1.0)
    assert 0 < field.looked_at < 0.12 * len(whole)
    nothing = render(field, occupancy, Rays(rays.origins, -rays.directions, rays.times), with_normals=True)
    assert float(nothing.opacity.max()) == float(nothing.colors.max()) == 0


def test_what_is_hidden_is_left_out() -> None:
    """Of an opaque ball the first sample of each ray that hits it counts; of a thin one all within."""
    rays, counts = rays_of(cameras(24)), {}
    for density in (2_000.0, 2.0):
        ray, distance = sample(Ball(density), None, rays, torch.full_like(rays.times, 0.5), Quality())
        counts[density] = torch.bincount(ray)
        assert bool((ray.diff() >= 0).all())
        assert bool((distance.diff()[ray.diff() == 0] > 0).all())
    assert int(counts[2_000.0].max()) == 1
    assert torch.equal(counts[2_000.0] > 0, counts[2.0] > 0)
    assert int(counts[2.0].max()) == pytest.approx(2 * RADIUS / step_length(1.0), abs=2)


@pytest.mark.slow
@pytest.mark.parametrize(("use_kernels", "pixels", "chunk"), [(True, 10, 16), (False, 3, 2)])
def test_chunks_bound_the_memory_and_change_nothing(use_kernels: bool, pixels: int, chunk: int) -> None:
    """Also with normals, whose gradient is a second derivative, and with a random shift of the samples."""
    field = rough_field()
    occupancy, rays = occupancy_of(field), rays_of(cameras(pixels))
    for grid in (field.encoding.space, field.encoding.space_time):
        grid.use_kernels = use_kernels
    results = []
    for size in (len(rays.origins), chunk):
        saved: list[weakref.ref] = []

        def note(tensor: Tensor, saved: list[weakref.ref] = saved) -> Tensor:
            saved.append(weakref.ref(tensor))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            generator = torch.Generator().manual_seed(5)
            rendered = render(
                field, occupancy, rays, Quality(chunk=size), with_normals=True, jitter=True, generator=generator
            )
        gc.collect()
        alive = {id(tensor): tensor.numel() for ref in saved if (tensor := ref()) is not None}
        kept = sum(alive.values()) - sum(parameter.numel() for parameter in field.parameters())
        loss = rendered.over(0.5).square().sum() + rendered.facing_away.sum() + rendered.normals.square().sum()
        gradients = torch.autograd.grad(loss, list(field.parameters()))
        results.append((rendered, gradients, kept))
    (whole, of_whole, kept_whole), (parts, of_parts, kept_parts) = results
    torch.testing.assert_close(parts.colors, whole.colors)
    torch.testing.assert_close(parts.facing_away, whole.facing_away, rtol=1e-3, atol=1e-4)
    for one, other in zip(of_parts, of_whole, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4 * float(other.abs().max()))
    assert kept_parts < kept_whole / 10, (kept_parts, kept_whole)


@pytest.mark.slow
def test_occupancy_follows_the_field() -> None:
    """It holds all places of the ball over time, lets go of what has become empty, and begins full."""
    occupancy, field = Occupancy(), Ball()
    points = torch.rand(500, 3) * 2 - 1
    assert bool(occupancy.contains(points).all())
    occupancy = occupancy_of(field)
    times = torch.linspace(0, 1, 8)
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    for time in times:
        inside = field.center(time[None]) + 0.9 * RADIUS * directions * torch.rand(500, 1).pow(1 / 3)
        assert float(occupancy.contains(inside).float().mean()) > 0.999
    before = float(occupancy.occupied.float().mean())
    assert before < 0.1
    occupancy.update(Ball(0.0), 3)  # not its turn
    assert float(occupancy.occupied.float().mean()) == before
    with torch.no_grad():
        field.density.fill_(0.5)  # thinner than what counts
    for iteration in range(256, 256 + 16 * 300, 16):
        occupancy.update(field, iteration)
    assert float(occupancy.alphas.max()) < 0.02


def test_no_rays_at_all() -> None:
    rays = rays_of(cameras(2)).at(slice(0, 0))
    rendered = render(Ball(), None, rays)
    assert isinstance(rendered, Rendered)
    assert rendered.over(1.0).shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_what_the_cpu_draws() -> None:
    field = rough_field()
    rays = rays_of(cameras(16))
    here = render(field, None, rays, EVERYTHING, with_normals=True)
    there = render(field.cuda(), None, rays.to("cuda"), EVERYTHING, with_normals=True)
    torch.testing.assert_close(there.over(0.5).cpu(), here.over(0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(there.normals.cpu(), here.normals, rtol=0, atol=1e-2)
