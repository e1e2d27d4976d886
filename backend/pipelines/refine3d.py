# SPDX-License-Identifier: GPL-3.0-or-later
"""VideoMV's 3D-aware refinement: views that are only nearly of one object are made into views of one object.

clean latents of an orbit -> decode four of its views -> 3D Gaussians (LGM) -> draw them from all cameras -> encode

A video network that denoises an orbit has no object in it; this puts one there, at the steps that
`backend.guidance.sampling.Refinement` names.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.models.lgm import FOV, LGM, VIEWS, Splats, normalised, plucker_rays, refiner_poses
from backend.splatting.rasterize import rasterize
from blender_addon.contract.orbit import Cameras, intrinsics

BACKGROUND = {"text": 0.5, "image": 0.7}  # grey behind the Gaussians, as VideoMV's two networks have it
OVERSIZE = 2  # the Gaussians are drawn at this many times the resolution of the views
PIXEL_BLUR = 0.3  # pixel^2, of the rasteriser that LGM was trained with


def refiner(
    model: LGM,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    camera_to_world: Tensor,
    background: float,
) -> Callable[[Tensor], Tensor]:
    """What a `Refinement` calls.

    Args:
        model: with weights, in any precision.
        decode: latents [N, 4, h, w], scaled as the video network has them -> pictures [N, 3, H, H], 0..1.
        encode: the way back; its caller decides whether it draws from the encoder's distribution, as VideoMV does.
        camera_to_world: [T, 4, 4], OpenGL axes, looking at the origin, T a multiple of four, with LGM's field of view
            of 39.6 degrees: the cameras of the orbit. Any right-handed frame.
        background: grey value 0..1, see BACKGROUND.

    Returns:
        A function of clean latents [B, 4, T, h, w] that returns such latents, float32.

    Raises:
        ValueError: T is no multiple of four.
    """
    frames = len(camera_to_world)
    if frames % VIEWS:
        raise ValueError(f"refinement needs a multiple of {VIEWS} views, not {frames}")
    seen = list(range(0, frames, frames // VIEWS))  # a quarter of the orbit apart: 0, 6, 12, 18 of 24
    poses = refiner_poses(camera_to_world)
    weight = next(model.parameters())

    @torch.no_grad()
    def refine(clean: Tensor) -> Tensor:
        batch = len(clean)
        pictures = decode(clean[:, :, seen].transpose(1, 2).flatten(0, 1)).float().clamp(0, 1)  # [B 4, 3, H, H]
        size = pictures.shape[-1]
        rays = plucker_rays(poses[seen], size).to(pictures.device).repeat(batch, 1, 1, 1)
        views = torch.cat([normalised(pictures), rays], dim=1).unflatten(0, (batch, VIEWS))
        splats = model(views.to(weight))
        drawn = look(splats, poses, OVERSIZE * size, background).flatten(0, 1)
        drawn = functional.interpolate(drawn, (size, size), mode="nearest")
        return encode(drawn).float().unflatten(0, (batch, frames)).transpose(1, 2)

    return refine


def look(splats: Splats, poses: Tensor, size: int, background: float, fov: float = FOV) -> Tensor:
    """Pictures [B, V, 3, size, size] in 0..1 of B sets of Gaussians, each seen by all cameras.

    poses [V, 4, 4]: camera to world, OpenGL axes, in the space of the Gaussians. fov: degrees.
    """
    count = len(poses)
    matrices = np.repeat(intrinsics(fov, size, size)[None], count, axis=0)
    cameras = Cameras(poses.cpu().double().numpy(), matrices, np.zeros(count), size, size)
    device = splats.means.device
    pictures, _, _ = rasterize(
        *splats,
        torch.from_numpy(cameras.viewmats()).float().to(device),
        torch.from_numpy(cameras.Ks).float().to(device),
        size,
        size,
        eps2d=PIXEL_BLUR,
        backgrounds=torch.full((3,), background, device=device),
    )
    return pictures.movedim(-1, -3)
