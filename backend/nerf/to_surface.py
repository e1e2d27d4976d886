# SPDX-License-Identifier: GPL-3.0-or-later
"""From a field to what Gaussians are constructed from: points on its surface, and pictures from everywhere.

4Diffusion's result is the field itself; turning it into Gaussians is ours, not the paper's.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backend.nerf.field import Field
from backend.nerf.occupancy import Occupancy
from backend.nerf.rendering import Quality, Rays, first_hits, rays_of, render
from backend.progress import UserError
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

ROUNDS = 50  # of rays that may be cast before a field counts as empty


class Surface(NamedTuple):
    """M points of the visible surface at time 0."""

    points: np.ndarray  # [M, 3] float32
    normals: np.ndarray  # [M, 3] float32, unit, outward
    colors: np.ndarray  # [M, 3] float32, 0..1


@torch.no_grad()
def surface(
    field: Field,
    occupancy: Occupancy | None,
    count: int,
    seed: int = 0,
    quality: Quality = Quality(),  # noqa: B008
) -> Surface:
    """`count` points where half of the light of random lines is stopped, evenly over what is visible from outside.

    Lines of all directions and offsets meet each piece of a convex surface in proportion to its area (Crofton).

    Raises:
        UserError: the field is empty at time 0.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(field.parameters()).device
    points, directions, missing = [], [], count
    for _ in range(ROUNDS):
        rays = _random_lines(4 * count, field.radius, generator).to(device)
        distance = first_hits(field, occupancy, rays, quality)
        hit = distance.isfinite().nonzero()[:missing, 0]
        points.append(rays.origins[hit] + distance[hit, None] * rays.directions[hit])
        directions.append(rays.directions[hit])
        missing -= len(hit)
        if not missing:
            break
    else:
        raise UserError("empty_field", "The radiance field is empty.", "Try another seed or more iterations.")
    points, directions = torch.cat(points), torch.cat(directions)
    values = [field(part, part.new_zeros(len(part)), with_normals=True) for part in points.split(quality.chunk)]
    colors = torch.cat([value.colors for value in values])
    normals = torch.cat([value.normals for value in values])
    # In a noisy field a normal may point inwards, or be none: then the way that the light came from is a better guess.
    inwards = (normals * directions).sum(dim=-1) >= 0
    normals = torch.where(inwards[:, None], -directions, normals)
    return Surface(*(tensor.cpu().numpy() for tensor in (points, normals, colors)))


def camera_grid(
    times: int,
    azimuths: int,
    elevations: tuple[float, ...] = (0.0,),
    distance: float = 1.1,
    fov: float = 45.0,
    pixels: int = 256,
    azimuth_start: float = 0.0,
) -> Cameras:
    """Cameras all round at all times: V = times x elevations x azimuths views in this order. Degrees, clip space."""
    around = [
        orbit_camera(azimuth_start + 360 * number / azimuths, elevation, distance)
        for elevation in elevations
        for number in range(azimuths)
    ]
    return Cameras(
        camera_to_world=np.tile(np.stack(around), (times, 1, 1)),
        Ks=np.repeat(intrinsics(fov, pixels, pixels)[None], times * len(around), axis=0),
        times=np.repeat(np.linspace(0, 1, times) if times > 1 else np.zeros(1), len(around)),
        width=pixels,
        height=pixels,
    )


@torch.no_grad()
def pictures(
    field: Field,
    occupancy: Occupancy | None,
    cameras: Cameras,
    quality: Quality = Quality(),  # noqa: B008
) -> Tensor:  # [V, H, W, 4] float32, on the CPU
    """What the cameras see, as observations have it: sRGB-coded, colour multiplied by alpha."""
    device = next(field.parameters()).device
    seen = []
    for view in range(len(cameras.times)):
        rendered = render(field, occupancy, rays_of(cameras, slice(view, view + 1)).to(device), quality)
        picture = torch.cat([rendered.colors, rendered.opacity[:, None]], dim=-1)
        seen.append(picture.view(cameras.height, cameras.width, 4).clamp(0, 1).cpu())
    return torch.stack(seen)


def _random_lines(count: int, radius: float, generator: torch.Generator) -> Rays:
    """Lines of all directions through the ball that holds the box, from outside it, at time 0."""
    reach = 3**0.5 * radius
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    other = torch.nn.functional.normalize(torch.linalg.cross(directions, torch.randn(count, 3, generator=generator)))
    offset = reach * torch.rand(count, generator=generator).sqrt()[:, None] * other
    return Rays(offset - reach * directions, directions, torch.zeros(count))
