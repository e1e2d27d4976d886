# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras as ImageDream and 4DM take them: 16 numbers per view, a camera-to-world matrix at distance 1.

Matrices have OpenGL axes (columns right, up, backward, position) in Blender's world (Z up). The networks' front is
at +X; that of our orbits is at -Y.
"""

import math

import torch
from torch import Tensor

FRONT_TO_X = ((0.0, -1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))  # a quarter turn about Z


def from_orbit(camera_to_world: Tensor) -> Tensor:
    """Our orbits' cameras (clip space, front at -Y) [..., 4, 4] -> the network's [..., 16] float32."""
    turn = torch.tensor(FRONT_TO_X, device=camera_to_world.device)
    return condition(turn @ camera_to_world.float())


def condition(camera_to_world: Tensor) -> Tensor:
    """Matrices in the networks' world [..., 4, 4] -> [..., 16]: positions brought to length 1, row by row.

    The argument stays as it is (the released code changes it).
    """
    position = camera_to_world[..., :3, 3]
    scaled = camera_to_world.clone()
    scaled[..., :3, 3] = position / (position.norm(dim=-1, keepdim=True) + 1e-8)
    return scaled.flatten(-2)


def ring(
    views: int, elevation: float = 0.0, azimuth_start: float = 90.0, azimuth_span: float = 360.0, *, z_up: bool = True
) -> Tensor:
    """Cameras round the origin at distance 1: [views, 16] float32. Degrees.

    Azimuth 0 stands at -Y, 90, the networks' front, at +X. `z_up=False`: Y up, azimuth 0 at +Z. A span of 360 leaves
    out the last view, which would be the first again; so does any other.
    """
    azimuth = torch.deg2rad(azimuth_start + azimuth_span / views * torch.arange(views, dtype=torch.float64))
    elevation = torch.full_like(azimuth, math.radians(elevation))
    level = [azimuth.sin() * elevation.cos(), -azimuth.cos() * elevation.cos(), elevation.sin()]
    backward = torch.stack(level, -1)
    right = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)], -1)
    matrices = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    matrices[:, :3] = torch.stack([right, torch.linalg.cross(backward, right), backward, backward], -1)
    if not z_up:
        matrices[:, :3] = torch.stack([matrices[:, 0], matrices[:, 2], -matrices[:, 1]], 1)
    return matrices.flatten(1).float()


def with_pixel_view(cameras: Tensor) -> Tensor:
    """[..., n, 16] -> [..., n + 1, 16]: the pixel view has no camera, which is zeros."""
    return torch.cat([cameras, torch.zeros_like(cameras[..., :1, :])], -2)
