# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from backend.progress import UserError
from backend.splatting.gaussians import discs, sample_colors
from backend.splatting.observations import Observations
from backend.splatting.spread import spread_samples
from backend.splatting.visual_hull import visual_hull
from blender_addon.contract import rotations
from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras
from tests.splatting.scenes import swinging_arm


def sphere(count: int, radius: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    normals = np.random.default_rng(1).normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return (radius * normals).astype(np.float32), normals.astype(np.float32)


def painted_sphere(cameras: Cameras, radius: float = 0.4) -> Observations:
    """Ray-cast: each point of the sphere shows its own place as colour."""
    column, row = np.meshgrid(np.arange(cameras.width) + 0.5, np.arange(cameras.height) + 0.5)
    images = []
    for camera, k in zip(cameras.camera_to_world, cameras.Ks, strict=True):
        rays = np.stack([(column - k[0, 2]) / k[0, 0], -(row - k[1, 2]) / k[1, 1], -np.ones_like(row)], axis=-1)
        rays = rays @ camera[:3, :3].T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        origin = camera[:3, 3]
        along = -(rays @ origin)
        inside = along**2 - (origin @ origin - radius**2)
        hit = origin + (along - np.sqrt(np.maximum(inside, 0)))[..., None] * rays
        alpha = (inside > 0).astype(np.float32)[..., None]
        images.append(np.concatenate([(hit + 0.5) * alpha, alpha], axis=-1))
    return Observations(torch.from_numpy(np.stack(images)).float(), cameras)


def test_discs_are_thin_along_the_normal() -> None:
    points, normals = sphere(300)
    normals[:3] = [[0, 0, 1], [0, 0, -1], [1, 0, 0]]
    gaussians = discs(points, normals, np.full((300, 3), 0.5))
    turned = rotations.to_matrix(gaussians.quats.numpy()) @ np.array([0, 0, 1.0])
    np.testing.assert_allclose(turned, normals, atol=1e-5)
    scales = gaussians.scales
    assert torch.equal(scales[:, 0], scales[:, 1])
    assert (scales[:, 2] < 0.5 * scales[:, 0]).all()
    torch.testing.assert_close(gaussians.quats.norm(dim=1), torch.ones(300))


def test_colors_survive_the_optimiser_form() -> None:
    points, normals = sphere(50)
    colors = np.random.default_rng(0).random((50, 3)) * 0.9 + 0.05
    gaussians = discs(points, normals, colors)
    np.testing.assert_allclose(gaussians.colors.numpy(), colors, atol=1e-6)
    np.testing.assert_allclose(0.5 + 0.28209479 * gaussians.sh[:, 0].numpy(), colors, atol=1e-6)


def test_thinned_gaussians_cover_as_much() -> None:
    gaussians = discs(*sphere(400), np.full((400, 3), 0.5))
    few, chosen = gaussians.thinned(100, np.random.default_rng(0))
    assert len(few.means) == len(chosen) == 100
    assert torch.equal(few.means, gaussians.means[chosen])
    area, whole = few.scales[:, :2].prod(dim=1).sum(), gaussians.scales[:, :2].prod(dim=1).sum()
    assert 0.8 < area / whole < 1.0
    assert gaussians.thinned(400, np.random.default_rng(0))[0].means.shape == (400, 3)


@pytest.mark.parametrize("count", [200, 3000])
def test_samples_are_spread_evenly_over_the_surface(count: int) -> None:
    points, normals = sphere(1000)
    chosen, chosen_normals = spread_samples(points, normals, count, np.random.default_rng(0))
    assert chosen.shape == chosen_normals.shape == (count, 3)
    assert chosen.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(chosen, axis=1), 0.4, atol=0.02)
    if count < 1000:
        assert len(np.unique(chosen, axis=0)) == count
        largest_gap = cKDTree(chosen).query(points)[0].max()
        assert largest_gap < 0.8 * cKDTree(points[:count]).query(points)[0].max()  # those are drawn by chance


def test_surface_colors_come_from_the_views_that_see_them() -> None:
    views = painted_sphere(orbit_cameras(Orbit(12, elevation=15, closed=False), 96, 96, moving=False))
    points, normals = sphere(500)
    colors = sample_colors(points, normals, views, np.ones(12))
    seen = np.abs(points[:, 2]) < 0.2
    assert np.abs(colors - (points + 0.5))[seen].max() < 0.06
    bottom = points[:, 2] < -0.38  # no camera looks there
    assert np.abs(colors - (points + 0.5))[bottom].max() < 0.4  # they take the color of the nearest point that is seen
    nearest = np.linalg.norm(points[bottom][0] - points[~bottom], axis=1).argsort()[:30]
    assert np.abs(colors[bottom][0] - colors[~bottom][nearest]).sum(1).min() < 0.1
    nothing = np.zeros_like(views.images.numpy())
    unseen = sample_colors(points, normals, replace(views, images=torch.from_numpy(nothing)), np.ones(12))
    np.testing.assert_array_equal(unseen, 0.5)


def test_visual_hull_of_a_sphere() -> None:
    views = painted_sphere(orbit_cameras(Orbit(24, closed=False), 96, 96, moving=False))
    points, normals = visual_hull(views, np.ones(24), 1.0, 2000, np.random.default_rng(0))
    equator = np.abs(points[:, 2]) < 0.2
    np.testing.assert_allclose(np.linalg.norm(points[equator], axis=1), 0.4, atol=0.03)
    outward = (normals * points).sum(axis=1) / np.linalg.norm(points, axis=1)
    assert outward[equator].min() > 0.7
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)


def test_visual_hull_with_disagreeing_silhouettes_says_so() -> None:
    views = painted_sphere(orbit_cameras(Orbit(8, closed=False), 48, 48, moving=False))
    images = views.images.clone()
    images[::2, :, 24:] = 0
    images[1::2, :, :24] = 0
    with pytest.raises(UserError, match="do not fit together"):
        visual_hull(Observations(images, views.cameras), np.ones(8), 1.0, 100, np.random.default_rng(0))


def test_hull_of_a_moving_subject_leaves_room_for_what_moved() -> None:
    scene = swinging_arm(frames=9)
    chance = np.linspace(1, 0.2, 9)
    strict, _ = visual_hull(scene.moving, chance, 1.0, 800, np.random.default_rng(0))
    tolerant, _ = visual_hull(scene.moving, chance, 0.8, 800, np.random.default_rng(0))
    assert strict[:, 0].max() < 0.42  # the tip of the arm, at 0.5, is cut off by views of other times
    assert tolerant[:, 0].max() > strict[:, 0].max() + 0.03
