# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras as ImageDream and 4DM take them: 16 numbers per view, a camera-to-world matrix at distance 1.

Matrices have OpenGL axes (columns right, up, backward, position) in Blender's world (Z up). The networks' front is
at +X; that of our orbits is at -Y.
"""

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


def with_pixel_view(cameras: Tensor) -> Tensor:
    """[..., n, 16] -> [..., n + 1, 16]: the pixel view has no camera, which is zeros."""
    return torch.cat([cameras, torch.zeros_like(cameras[..., :1, :])], -2)
