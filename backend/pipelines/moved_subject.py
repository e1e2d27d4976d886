# SPDX-License-Identifier: GPL-3.0-or-later
"""A still subject that is moved and looked at: pictures of a moving orbit from its static orbit and a movement.

Gaussians that are fitted to the static orbit go along with the control points of the subject's surface. So a limb hides
what is behind it, and a wing that was seen edge-on shows its face, from all sides alike. What the Gaussians leave
undone in the static pictures (fine markings, hair-sharp outlines) is warped along with what it lies on: where nothing
moves, the pictures are those that were given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from backend.models.motion_latents import fill, warp
from backend.splatting.config import ConstructConfig
from backend.splatting.gaussians import GaussianParameters, discs, sample_colors
from backend.splatting.motion import blend
from backend.splatting.observations import Observations, joined
from backend.splatting.render import render
from backend.splatting.shape import fit_still
from backend.splatting.surface_motion import Surface, flow_of, make_surface, poses
from backend.splatting.visual_hull import visual_hull
from blender_addon.contract.surface import SurfaceSamples

PRESET = "final"  # of construction, for the shape: thin parts take many iterations
GAUSSIANS = 3_000
SHAPE_PIXELS = 128  # longer side of the pictures that it is fitted to, at most
EDGE_ON = 0.25  # cosine between a face and its direction to a camera, below which the camera cannot tell what it shows
SOLID = 0.3  # opacity of Gaussians that cover a surface
GAP = 3.0  # between Gaussians, in widths of discs, that is more than a hole in their spread
FLAT = 0.1  # of a surface, from which on it is worth filling: discs at outlines are seen where they move apart
OPAQUE, WIDTH = 3.0, 0.7  # logit; of discs, in distances of neighbours
FLOW_PIXELS = 32  # to a side, of the flow by which is warped what the Gaussians leave undone
NEAR = 1 / 64  # of the side of a picture, at least a pixel: farther from the Gaussians nothing is left undone


@dataclass(frozen=True)
class MovedSubject:
    """What is moved, and by what. Clip space; pictures premultiplied."""

    gaussians: GaussianParameters
    surface: Surface
    index: Tensor  # [N, 4] control points that each Gaussian follows
    weights: Tensor  # [N, 4] how much, sum 1
    static: Observations
    undone: Tensor  # [T, 5, H, W]: static pictures minus those of the Gaussians, and how near these are

    def movement(self, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, P, 3]
        """How far the points of the surface move with control points that are shifted so far."""
        points, control = self.surface.points, self.surface.control
        unturned = points.new_zeros(len(points), 4)
        moved, _ = blend(poses(self.surface, shifts), points, unturned, control.index, control.weights)
        return moved - points

    def pictures(self, shifts: Tensor) -> Tensor:  # [T, 4, H, W]
        """The subject with control points shifted by [T, B, 3], from the cameras of the static orbit."""
        flow = fill(*flow_of(self.surface, shifts, FLOW_PIXELS))
        drawn = self._drawn(shifts, torch.arange(len(shifts)), self.static.images.shape[2])
        undone = warp(self.undone[None], flow[None], self.static.viewmats[None], self.surface.focal[None])[0]
        stranded = (undone[:, 4:] - _nearness(drawn)).clamp_min(0)  # what it lay on is not there any more
        pictures = drawn + (1 - stranded) * undone[:, :4]
        alpha = pictures[:, 3:].clamp(0, 1)
        return torch.cat([torch.minimum(pictures[:, :3].clamp_min(0), alpha), alpha], 1)

    def sketch(self, shifts: Tensor, frames: Tensor) -> Tensor:  # [T, B, 3], [F] int64 -> [F, 4, h, w]
        """Some of the pictures as the Gaussians alone show them, small: to look at while more is to come."""
        return self._drawn(shifts, frames, min(self.static.images.shape[2], SHAPE_PIXELS))

    def _drawn(self, shifts: Tensor, frames: Tensor, width: int) -> Tensor:  # [F, 4, h, width]
        moved = poses(self.surface, shifts[frames])
        return _drawn(self.gaussians, self.index, self.weights, moved, self.static, frames, width)


def make_moved_subject(
    static: Observations,
    times: np.ndarray,
    samples: SurfaceSamples | None,
    check: Callable[[], None],
    *,
    loop: bool,
    further: Observations | None = None,
) -> MovedSubject:
    """Fit Gaussians to a static orbit and tie them to its surface.

    Args:
        static: pictures of time 0.
        times: [T] 0..1, at which the same cameras are to see it move.
        samples: of its surface; without them the visual hull serves.
        check: called after each iteration.
        loop: it is to end at time 1 as it began at time 0.
        further: pictures of time 0 from other cameras, of the same size.

    Raises:
        UserError: the silhouettes have no place in common.
    """
    seen = static if further is None else joined([static, further])
    if samples is None:
        rng = np.random.default_rng(0)
        samples = SurfaceSamples(*visual_hull(seen, np.ones(len(seen.images)), 1.0, GAUSSIANS, rng))
    surface = make_surface(samples, static, times, loop=loop)
    config = ConstructConfig.for_preset(PRESET, GAUSSIANS)
    config = replace(config, coarse_pixels=SHAPE_PIXELS, fine_pixels=SHAPE_PIXELS)
    with torch.enable_grad():
        gaussians = fit_still(seen, samples, config, check)
    gaussians = _with_edge_on(gaussians, surface, seen)
    _, nearest = cKDTree(surface.points.numpy()).query(gaussians.means.numpy())
    index, weights = surface.control.index[nearest], surface.control.weights[nearest]
    at_rest = poses(surface, torch.zeros(len(static.images), *surface.control.points.shape))
    drawn = _drawn(gaussians, index, weights, at_rest, static, torch.arange(len(at_rest)), static.images.shape[2])
    undone = torch.cat([static.images.permute(0, 3, 1, 2) - drawn, _nearness(drawn)], 1)
    return MovedSubject(gaussians, surface, index, weights, static, undone)


def _with_edge_on(gaussians: GaussianParameters, surface: Surface, static: Observations) -> GaussianParameters:
    """The Gaussians, and discs where the fit has left none as the surface is seen edge-on at best.

    They hardly show at rest. A wing that was held flat shows its face with them.
    """
    points, normals = surface.points, surface.normals
    cameras = -(static.viewmats[:, None, :3, 3] @ static.viewmats[:, :3, :3])  # [T, 1, 3]
    squarely = (functional.normalize(cameras - points, dim=-1) * normals).sum(-1).amax(0)
    colors = sample_colors(points.numpy(), normals.numpy(), static, np.ones(len(static.images)))
    faces = discs(points.numpy(), normals.numpy(), colors)
    solid = gaussians.means[gaussians.opacities > SOLID].numpy()
    gap = torch.from_numpy(cKDTree(solid).query(points.numpy())[0]) if len(solid) else torch.ones(len(points))
    bare = (squarely < EDGE_ON) & (gap > GAP * faces.scales.amax(1))
    if bare.float().mean() < FLAT:
        return gaussians
    faces = faces.picked(bare)
    faces.opacity_logits.fill_(OPAQUE)
    faces.log_scales += math.log(WIDTH)
    given = gaussians.tensors()
    return replace(gaussians, **{name: torch.cat([given[name], one]) for name, one in faces.tensors().items()})


def _nearness(drawn: Tensor) -> Tensor:  # [T, 4, H, W] -> [T, 1, H, W]
    """The most coverage around each pixel."""
    reach = max(round(NEAR * drawn.shape[-1]), 1)
    size = 1, 1, 2 * reach + 1, 2 * reach + 1  # torch's pooling takes a hundred times as long for 512 pixels
    return torch.from_numpy(ndimage.maximum_filter(drawn[:, 3:].numpy(), size, mode="constant"))


def _drawn(
    gaussians: GaussianParameters,
    index: Tensor,
    weights: Tensor,
    moved: Tensor,
    cameras: Observations,
    frames: Tensor,
    width: int,
) -> Tensor:  # [F, B, 16] -> [F, 4, h, width]
    """Gaussians that follow control points at these poses, as the cameras of some frames see them."""
    means, quats = blend(moved, gaussians.means, gaussians.quats, index, weights)
    looks = gaussians.scales, gaussians.opacities, gaussians.colors
    height = round(cameras.images.shape[1] * width / cameras.images.shape[2])
    scale = torch.tensor([width / cameras.images.shape[2], height / cameras.images.shape[1], 1.0])[:, None]
    viewmats, intrinsics = cameras.viewmats[frames], cameras.Ks[frames] * scale
    return render(means, quats, *looks, viewmats, intrinsics, width, height).permute(0, 3, 1, 2)
