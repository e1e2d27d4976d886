# SPDX-License-Identifier: GPL-3.0-or-later
"""Surface points and pictures for construction, of a field in closed form; and a fit of a tiny scene."""

import math

import numpy as np
import pytest
import torch

from backend.nerf.field import BETAS, EPSILON, Field, SpaceTimeHash
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.occupancy import Occupancy, step_length
from backend.nerf.rendering import Quality, Rays, first_hits, rays_of, render
from backend.nerf.to_surface import camera_grid, pictures, surface
from backend.progress import UserError
from backend.splatting.observations import Observations
from blender_addon.contract.surface import SurfaceSamples, check_surface_samples
from tests.nerf.scenes import COLOR, RADIUS, SPEED, Ball


@pytest.mark.slow
def test_surface_points_lie_evenly_on_the_ball_of_time_0() -> None:
    found = surface(Ball(2_000.0), None, 3_000, quality=Quality(samples=128))
    check_surface_samples(SurfaceSamples(found.points, found.normals))
    from_center = found.points + np.array([SPEED / 2, 0, 0])
    assert np.abs(np.linalg.norm(from_center, axis=1) - RADIUS).max() < 1.1 * step_length(1.0, 128)
    assert (found.normals * from_center).sum(axis=1) / RADIUS == pytest.approx(np.ones(3_000), abs=0.15)
    np.testing.assert_allclose(found.colors, np.tile(np.float32(COLOR), (3_000, 1)))
    octants = np.bincount((from_center > 0) @ [1, 2, 4], minlength=8)
    assert octants.min() > 0.8 * 3_000 / 8
    again = surface(Ball(2_000.0), None, 3_000, quality=Quality(samples=128))
    np.testing.assert_array_equal(again.points, found.points)


def test_a_soft_surface_lies_where_half_of_the_light_is_gone() -> None:
    """Within the ball after ln 2 / density."""
    ray = Rays(
        torch.tensor([[-2.0, 0, 0], [-2.0, 0.9, 0]]), torch.tensor([[1.0, 0, 0]]).repeat(2, 1), torch.full((2,), 0.5)
    )
    for density in (5.0, 20.0, 500.0):
        distance = first_hits(Ball(density), None, ray)
        assert float(distance[0]) == pytest.approx(2 - RADIUS + math.log(2) / density, abs=0.6 * step_length(1.0))
        assert float(distance[1]) == math.inf
    assert float(first_hits(Ball(0.5), None, ray)[0]) == math.inf  # lets more than half through


def test_an_empty_field_is_told_to_people() -> None:
    with pytest.raises(UserError, match="empty"):
        surface(Ball(0.0), None, 10, quality=Quality(samples=16))


def test_pictures_are_observations_of_the_moving_ball() -> None:
    cameras = camera_grid(3, 4, (0.0, 20.0), distance=2.0, fov=45, pixels=32)
    cameras.check()
    assert len(cameras.times) == 3 * 2 * 4
    assert cameras.times.tolist() == [0.0] * 8 + [0.5] * 8 + [1.0] * 8
    images = pictures(Ball(2_000.0), None, cameras)
    observations = Observations(images, cameras)
    assert images.shape == (24, 32, 32, 4)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[..., :3], images[..., 3:] * torch.tensor(COLOR), rtol=0, atol=1e-3)
    column = torch.arange(32) + 0.5
    front = observations.subset(np.array([0, 8, 16])).images[..., 3]  # from -Y: x to the right
    middle = (front * column).sum(dim=(1, 2)) / front.sum(dim=(1, 2))
    pixels_per_unit = cameras.Ks[0, 0, 0] / 2.0
    assert middle.numpy() == pytest.approx(16 + pixels_per_unit * SPEED * np.array([-0.5, 0, 0.5]), abs=0.3)


@pytest.mark.slow
def test_a_tiny_scene_is_learnt() -> None:
    """The moving ball from pictures: 200 steps, judged by views and times that were not shown."""
    torch.manual_seed(0)
    ball, quality = Ball(2_000.0).requires_grad_(False), Quality(samples=32)
    shown = camera_grid(4, 6, (0.0, 35.0), distance=2.0, fov=40, pixels=32)
    unseen = camera_grid(4, 3, (15.0,), distance=2.0, fov=40, pixels=32, azimuth_start=30)
    target, rays = pictures(ball, None, shown).flatten(0, 2), rays_of(shown)
    field = Field(SpaceTimeHash(HashGridConfig(levels=6, log2_table=13, base=6, growth=1.5)), width=32)
    occupancy, generator = Occupancy(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(field.parameter_groups(network_rate=1e-2), betas=BETAS, eps=EPSILON)
    for iteration in range(200):
        occupancy.update(field, iteration, generator)
        chosen = torch.randint(len(target), (1_024,), generator=generator)
        rendered = render(field, occupancy, rays.at(chosen), quality, jitter=True, generator=generator)
        background = torch.rand(1_024, 3, generator=generator)
        wanted = target[chosen, :3] + (1 - target[chosen, 3:]) * background
        loss = (rendered.over(background) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    true, seen = pictures(ball, None, unseen), pictures(field, occupancy, unseen, quality)
    psnr = -10 * (true - seen).square().mean().log10()
    still = pictures(ball, None, camera_grid(1, 3, (15.0,), distance=2.0, fov=40, pixels=32, azimuth_start=30))
    frozen = -10 * (true - still.repeat(4, 1, 1, 1)).square().mean().log10()
    assert float(psnr) > 24.0
    assert float(psnr) > float(frozen) + 6  # it has learnt the motion, too
