# SPDX-License-Identifier: GPL-3.0-or-later
"""Canonical Gaussians (those of time 0) as an optimiser sees them: unbounded numbers, started as discs on a surface."""

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from backend.splatting.observations import Observations
from backend.splatting.sight import project, seen_in
from backend.splatting.spread import neighbour_distances
from backend.splatting.tracks import Tracks
from blender_addon.contract.clip import BASES_PER_GAUSSIAN

SH_DC = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
THICKNESS = 0.35  # of a disc beside its radius
SMALLEST, LARGEST = 0.002, 0.05  # standard deviation of a disc at the start, clip space
START_OPACITY_LOGIT = 1.5  # opacity 0.82
DEPTH_CELLS = 64  # along the longer side of the depth picture that decides which discs a camera sees
DEPTH_TOLERANCE = 0.03  # clip space


class Moved(NamedTuple):
    """Where N Gaussians are at T moments, and how they lie and reach there."""

    means: Tensor  # [T, N, 3] clip space
    quats: Tensor  # [T, N, 4] wxyz, any length above 0
    scales: Tensor  # [T, N, 3] linear standard deviations, or [N, 3] where they stay
    presence: Tensor | None = None  # [T, N] 0..1, how much of each is there; None where all of all is


@dataclass
class GaussianParameters:
    """N Gaussians as leaf tensors of an optimiser."""

    means: Tensor  # [N, 3] clip space
    quats: Tensor  # [N, 4] wxyz, any length above 0
    log_scales: Tensor  # [N, 3]
    opacity_logits: Tensor  # [N]
    color_logits: Tensor  # [N, 3] of the colour in the fit's space
    harmonics: Tensor  # [N, K - 1, 3] spherical harmonics above the constant one; none where K is 1
    weight_offsets: Tensor  # [N, 4] to the logarithms of the weights by which control points lead them
    blur: float = 0.0  # clip space; nothing finer can be told from the pictures, so no Gaussian is

    @property
    def scales(self) -> Tensor:  # [N, 3]
        """Linear standard deviations, `blur` included.

        The blur of a pixel belongs to the Gaussians, not to the rasteriser: so pictures larger than those of the fit
        show the same surface, not beads with gaps between (the 3D smoothing filter of Mip-Splatting, Yu et al. 2024).
        """
        return ((2 * self.log_scales).exp() + self.blur**2).sqrt()

    @property
    def opacities(self) -> Tensor:  # [N]
        """0..1."""
        return self.opacity_logits.sigmoid()

    def opacities_at(self, moved: Moved) -> Tensor:  # [N] or [T, N]
        """The same where they have moved to."""
        return self.opacities if moved.presence is None else self.opacities * moved.presence

    @property
    def colors(self) -> Tensor:  # [N, 3]
        """0..1, in the colour space of the fit."""
        return self.color_logits.sigmoid()

    @property
    def sh(self) -> Tensor:  # [N, K, 3]
        """Colours as spherical harmonics."""
        return torch.cat([((self.colors - 0.5) / SH_DC)[:, None], self.harmonics], dim=1)

    @property
    def sh_degree(self) -> int:
        """Of the harmonics: 0 is one colour from all sides."""
        return math.isqrt(1 + self.harmonics.shape[1]) - 1

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type is Tensor}

    def at_rest(self, moments: int) -> Moved:
        """The same at so many moments."""
        return Moved(self.means.expand(moments, -1, -1), self.quats.expand(moments, -1, -1), self.scales)

    def to(self, device: torch.device) -> "GaussianParameters":
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def require_grad(self) -> "GaussianParameters":
        """Make every parameter a leaf with gradient, in place."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.detach().clone().requires_grad_())
        return self

    def picked(self, chosen: Tensor) -> "GaussianParameters":
        """Those at `chosen` [n]. They carry no gradient."""
        return replace(self, **{name: tensor.detach()[chosen] for name, tensor in self.tensors().items()})

    @torch.no_grad()
    def thinned(self, count: int, rng: np.random.Generator) -> tuple["GaussianParameters", np.ndarray]:
        """About `count` of them, drawn by chance and grown so that they cover the same surface, and which they are.

        They carry no gradient.
        """
        if count >= len(self.means):
            chosen, growth = np.arange(len(self.means)), 1.0
        else:
            chosen = np.sort(rng.permutation(len(self.means))[:count])
            growth = 0.95 * (len(self.means) / count) ** 0.5
        thin = replace(self, **{name: tensor[chosen].clone() for name, tensor in self.tensors().items()})
        thin.log_scales += float(np.log(growth))
        return thin, chosen


def discs(
    points: np.ndarray,  # [N, 3]
    normals: np.ndarray,  # [N, 3]
    colors: np.ndarray,  # [N, 3]
    sh_degree: int = 0,
    spacing: float | None = None,
) -> GaussianParameters:
    """Flat Gaussians on a surface, as wide as the distance to their neighbours (`spacing`, where that is known), thin
    along the normal.

    Harmonics above the constant one begin at 0.
    """
    distances = neighbour_distances(points) if spacing is None else np.full(len(points), spacing)
    spacing = torch.from_numpy(distances.clip(SMALLEST, LARGEST)).float()
    normal = torch.from_numpy(normals).float()
    # The quaternion that turns +Z into the normal: (1 + z.n, z x n), or half a turn about X where n is -Z.
    z = torch.tensor([0.0, 0.0, 1.0]).expand_as(normal)
    quats = torch.cat([1 + normal[:, 2:], torch.linalg.cross(z, normal)], dim=-1)
    quats[quats.norm(dim=-1) < 1e-3] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    colors = torch.from_numpy(colors).float().clamp(0.03, 0.97)
    return GaussianParameters(
        means=torch.from_numpy(points).float().clone(),
        quats=torch.nn.functional.normalize(quats, dim=-1),
        log_scales=torch.stack([spacing, spacing, THICKNESS * spacing], dim=-1).log(),
        opacity_logits=torch.full((len(points),), START_OPACITY_LOGIT),
        color_logits=colors.logit(),
        harmonics=torch.zeros(len(points), (sh_degree + 1) ** 2 - 1, 3),
        weight_offsets=torch.zeros(len(points), BASES_PER_GAUSSIAN),
    )


def sample_colors(
    points: np.ndarray,  # [N, 3]
    normals: np.ndarray,  # [N, 3]
    views: Observations,
    view_weights: np.ndarray,  # [V]
) -> np.ndarray:  # [N, 3] float64, 0..1
    """Colours of surface points, averaged over the views that see them; where none does, that of the nearest one seen.

    Grey where nothing is seen at all.
    """
    total = np.zeros((len(points), 4))
    for view, weight in enumerate(view_weights):
        total += weight * _seen_colors(points, normals, views, view)
    return _mean_colors(total, points)


def sample_track_colors(tracks: Tracks, sets: list[Observations]) -> np.ndarray:  # [S, 3] float64, 0..1
    """Colors of tracks, from all pictures that see them where they are at that time; else as `sample_colors`."""
    normals, total = tracks.normals(), np.zeros((len(tracks.homes), 4))
    for views in sets:
        for view, time in enumerate(views.cameras.times):
            moment = round(time * (len(tracks.means) - 1))
            there = tracks.there[moment]
            total[there] += _seen_colors(tracks.means[moment, there], normals[moment, there], views, view)
    return _mean_colors(total, tracks.at_home()[0])


def _seen_colors(points: np.ndarray, normals: np.ndarray, views: Observations, view: int) -> np.ndarray:  # [N, 4]
    """Colors in one picture times how much they face it, and this; 0 for points that it does not show."""
    image, viewmat = views.images[view].numpy(), views.cameras.viewmats()[view]
    height, width = image.shape[:2]
    cell = max(max(width, height) / DEPTH_CELLS, 1.0)
    pixels, depth, inside = project(points, viewmat, views.cameras.Ks[view], width, height)
    column, row = pixels.T
    towards = np.linalg.inv(viewmat)[:3, 3] - points
    facing = (normals * towards).sum(axis=1) / np.maximum(np.linalg.norm(towards, axis=1), 1e-9)
    seen = seen_in(pixels, depth, inside, cell, DEPTH_TOLERANCE) & (facing > 0.2) & (image[row, column, 3] > 0.9)
    found = np.zeros((len(points), 4))
    found[seen, :3] = facing[seen, None] * image[row[seen], column[seen], :3]
    found[seen, 3] = facing[seen]
    return found


def _mean_colors(total: np.ndarray, points: np.ndarray) -> np.ndarray:  # [N, 4], [N, 3] -> [N, 3]
    seen = total[:, 3] > 0
    if not seen.any():
        return np.full((len(points), 3), 0.5)
    colors = total[:, :3] / np.maximum(total[:, 3:], 1e-9)
    _, nearest = cKDTree(points[seen]).query(points[~seen])
    colors[~seen] = colors[seen][nearest]
    return colors
