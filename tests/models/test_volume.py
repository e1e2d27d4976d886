# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of volumes: what is left out of the work has no part in them."""

import torch
from torch.nn import functional

from backend.models.volume import (
    AMBIENT,
    DIFFUSE,
    EDGE,
    HALF_SIDE,
    LIGHT,
    RAY_STEPS,
    VOXELS,
    render_volume,
    voxel_centers,
)
from blender_addon.contract.orbit import Orbit, orbit_cameras


def test_pictures_are_those_of_all_samples_of_all_rays() -> None:
    generator = torch.Generator().manual_seed(0)
    solid = (voxel_centers(torch.device("cpu")).norm(dim=-1) < 0.4).float()
    solid *= 0.3 + torch.rand(VOXELS, VOXELS, VOXELS, generator=generator)  # also what one sees through
    colors = torch.rand(VOXELS, VOXELS, VOXELS, 3, generator=generator)
    volume = torch.cat([colors * solid[..., None], solid[..., None]], -1).clamp(0, 1)
    cameras = orbit_cameras(Orbit(frames=3, closed=False), 24, 24, moving=False)
    poses, focal = torch.from_numpy(cameras.camera_to_world), torch.from_numpy(2 * cameras.Ks[:, 0, 0] / 24)
    torch.testing.assert_close(
        render_volume(volume, poses, focal, 24), all_samples(volume, poses, focal, 24), atol=1e-5, rtol=0
    )


def test_an_empty_volume_shows_nothing() -> None:
    cameras = orbit_cameras(Orbit(frames=2), 8, 8, moving=False)
    focal = torch.from_numpy(2 * cameras.Ks[:, 0, 0] / 8)
    empty = torch.zeros(VOXELS, VOXELS, VOXELS, 4)
    assert not render_volume(empty, torch.from_numpy(cameras.camera_to_world), focal, 8).any()


def all_samples(volume: torch.Tensor, poses: torch.Tensor, focal: torch.Tensor, size: int) -> torch.Tensor:
    """The same picture by picture, with nothing left out."""
    padded = functional.pad(volume[..., 3], [1] * 6)
    inner, lower, upper = slice(1, -1), slice(None, -2), slice(2, None)
    slope = torch.stack(
        [
            padded[inner, inner, upper] - padded[inner, inner, lower],
            padded[inner, upper, inner] - padded[inner, lower, inner],
            padded[upper, inner, inner] - padded[lower, inner, inner],
        ]
    )
    slope = functional.avg_pool3d(slope[None], 3, 1, 1)[0]
    field = torch.cat([volume[None, ..., 3], volume[..., :3].movedim(-1, 0), slope])[None]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    reach = HALF_SIDE * 3**0.5
    depths = 2 - reach + 2 * reach * (torch.arange(RAY_STEPS) + 0.5) / RAY_STEPS
    pictures = []
    for pose, k in zip(poses.float(), focal.float(), strict=True):
        v, u = torch.meshgrid(axis / k, axis / k, indexing="ij")
        rays = torch.stack([u, -v, -torch.ones_like(u)], -1) @ pose[:3, :3].T
        places = (pose[:3, 3] + rays * depths[:, None, None, None]) / HALF_SIDE
        seen = functional.grid_sample(field, places[None], align_corners=False)[0]
        alpha = ((seen[0] - EDGE[0]) / (EDGE[1] - EDGE[0])).clamp(0, 1)
        lit = torch.cat([torch.ones(1, size, size), 1 - alpha[:-1]]).cumprod(0)
        towards = pose[:3, :3] @ (torch.tensor(LIGHT) * torch.tensor([1.0, -1.0, -1.0]))
        facing = torch.einsum("cshw,c->shw", -functional.normalize(seen[4:], dim=0), towards)
        shade = AMBIENT + DIFFUSE * facing.clamp_min(0)
        color = (seen[1:4] / seen[0].clamp_min(EDGE[0])).clamp(0, 1) * shade
        pictures.append(torch.cat([(color * alpha * lit).sum(1), (alpha * lit).sum(0)[None]]))
    return torch.stack(pictures).clamp(0, 1)
