# SPDX-License-Identifier: GPL-3.0-or-later
"""A guide to the motion: where each Gaussian is believed to go, from scene flow seen in pictures of time 0.

Pictures alone pull a limb only where it nearly overlaps its image already, and say nothing of what they do not show.
What else is known about the movement is told by scene flow, from a network that knows how things move
(`models.scene_flow`): for what pictures show, how far it moves by which time, and how sure that is. Or the movement is
known as a whole, as where it was invented before the pictures were (`surface_motion`), or where the subject is an
animated mesh whose surface was followed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from backend.splatting.sight import project, seen_in
from blender_addon.contract.surface import SurfaceSamples

DEPTH_TOLERANCE = 0.03  # clip space; what lies deeper behind what a camera sees first is hidden from it
POINTS_PER_CELL = 4  # of the depth picture that decides this, on average: enough to close it against what is behind
INSIDE = 0.5  # of coverage
NEIGHBOURS = 3  # whose movements a point takes
LEAST_MOTION = 0.003  # clip space; errors are told relative to the mean motion, or this


@dataclass(frozen=True)
class SceneFlow:
    """M pictures of how far the surface moves. Float32."""

    flow: Tensor  # [M, H, W, 3] movement from time 0 to `times`, world axes, times 2 / depth at time 0
    spread: Tensor  # [M, H, W] of the same kind: how far off it may well be
    coverage: Tensor  # [M, H, W] 0..1, share of the pixel that shows surface
    viewmats: Tensor  # [M, 4, 4] world to camera, OpenCV axes
    Ks: Tensor  # [M, 3, 3] pixels
    times: Tensor  # [M] 0..1


@dataclass(frozen=True)
class SurfaceMotion:
    """How points on the surface move, all of it. Float32, clip space."""

    points: Tensor  # [P, 3] at time 0
    movement: Tensor  # [T, P, 3] from there
    times: Tensor  # [T] 0..1


@dataclass(frozen=True)
class Guide:
    """Believed movements of N points at U times."""

    times: Tensor  # [U] 0..1
    movement: Tensor  # [U, N, 3] from time 0, clip space
    weight: Tensor  # [U, N] above 0 where there is a belief; mean 1
    unit: float  # mean length of the movements, clip space

    def to(self, device: torch.device) -> "Guide":
        """The same on another device."""
        return Guide(self.times.to(device), self.movement.to(device), self.weight.to(device), self.unit)

    def of(self, chosen: Tensor, moments: Tensor | slice = slice(None)) -> "Guide":
        """The beliefs about some of the points, at all times or at some."""
        movement, weight = self.movement[moments][:, chosen], self.weight[moments][:, chosen]
        return Guide(self.times[moments], movement, weight, self.unit)

    def error(self, moved: Tensor, rest: Tensor) -> Tensor:  # [U, N, 3], [N, 3]
        """Mean distance of points at `moved` (at rest: `rest`) from where they should be, as a share of the motion."""
        distance = (moved - rest - self.movement).square().sum(-1).add(1e-8).sqrt()
        return (self.weight * distance).sum() / self.weight.sum().clamp_min(1e-6) / self.unit


def movement_of(samples: SurfaceSamples | None) -> SurfaceMotion | None:
    """How the surface moves, where its samples tell."""
    if samples is None or samples.movement is None:
        return None
    times = torch.linspace(0, 1, len(samples.movement))
    return SurfaceMotion(torch.from_numpy(samples.points), torch.from_numpy(samples.movement), times)


def make_guide(told: SceneFlow | SurfaceMotion, points: np.ndarray) -> Guide:  # [N, 3] float32
    """What is told about points on the surface at time 0."""
    return _from_surface(told, points) if isinstance(told, SurfaceMotion) else _from_pictures(told, points)


def _from_surface(told: SurfaceMotion, points: np.ndarray) -> Guide:
    """Points move as those nearest to them do, the nearer ones more."""
    distances, index = cKDTree(told.points.numpy()).query(points, k=min(NEIGHBOURS, len(told.points)))
    distances, index = (torch.from_numpy(array.reshape(len(points), -1)) for array in (distances, index))
    nearness = 1 / distances.float().clamp_min(1e-4)
    shares = nearness / nearness.sum(1, keepdim=True)
    movement = sum(told.movement[:, near] * share[:, None] for near, share in zip(index.T, shares.T, strict=True))
    unit = float(movement.norm(dim=-1).mean())
    return Guide(told.times, movement, torch.ones(movement.shape[:2]), max(unit, LEAST_MOTION))


def _from_pictures(flow: SceneFlow, points: np.ndarray) -> Guide:
    """Where several pictures show a point at one time, the surer ones count more."""
    times = torch.unique(flow.times)
    precision = torch.zeros(len(times), len(points))
    movement = torch.zeros(len(times), len(points), 3)
    height, width = flow.coverage.shape[1:]
    views: dict[bytes, tuple[Tensor, np.ndarray, np.ndarray]] = {}  # many pictures are from the same few cameras
    for picture in range(len(flow.times)):
        camera = flow.viewmats[picture].numpy().tobytes() + flow.Ks[picture].numpy().tobytes()
        if camera not in views:
            matrices = flow.viewmats[picture].numpy(), flow.Ks[picture].numpy()
            cell = (POINTS_PER_CELL * float(flow.coverage[picture].sum()) / len(points)) ** 0.5
            views[camera] = _sight(points, *matrices, width, height, max(cell, 1.0))
        grid, depth, seen = views[camera]
        maps = torch.cat([flow.flow[picture], flow.spread[picture, ..., None]], -1) * flow.coverage[picture, ..., None]
        maps = torch.cat([maps, flow.coverage[picture, ..., None]], -1).permute(2, 0, 1)[None]
        sampled = torch.nn.functional.grid_sample(maps, grid, align_corners=False)[0, :, 0].T  # [N, 5]
        inside = torch.from_numpy(seen) & (sampled[:, 4] > INSIDE)
        found = sampled[:, :4] / sampled[:, 4:].clamp_min(INSIDE) * torch.from_numpy(depth / 2).float()[:, None]
        sure = inside / found[:, 3].clamp_min(1e-4).square()
        moment = int(torch.searchsorted(times, flow.times[picture]))
        precision[moment] += sure
        movement[moment] += sure[:, None] * found[:, :3]
    movement = movement / precision.clamp_min(1e-6)[..., None]
    weight = precision.sqrt()
    unit = float((weight * movement.norm(dim=-1)).sum() / weight.sum().clamp_min(1e-6))
    return Guide(times, movement, weight / weight.mean().clamp_min(1e-6), max(unit, LEAST_MOTION))


def _sight(
    points: np.ndarray, viewmat: np.ndarray, intrinsics: np.ndarray, width: int, height: int, cell: float
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Where a camera sees points: for `grid_sample` [1, 1, N, 2], their depths [N], and whether it does [N]."""
    pixels, depth, inside = project(points, viewmat, intrinsics, width, height)
    seen = seen_in(pixels, depth, inside, cell, DEPTH_TOLERANCE)
    exact = (points @ viewmat[:3, :3].T + viewmat[:3, 3]) @ intrinsics.T
    exact = exact[:, :2] / np.maximum(exact[:, 2:], 1e-6)
    grid = torch.from_numpy(2 * exact / [width, height] - 1).float()[None, None]
    return grid, depth, seen
