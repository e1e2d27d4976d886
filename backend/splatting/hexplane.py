# SPDX-License-Identifier: GPL-3.0-or-later
"""The motion as a HexPlane deformation field: feature planes over space and time, read by a small network.

That of 4DGaussians (Wu et al., "4D Gaussian Splatting for Real-Time Dynamic Scene Rendering", CVPR 2024, section 4.2),
which Diffusion4D constructs with; chosen by `ConstructConfig.motion = "hexplane"`. A Gaussian's place and a time are
looked up in six planes, xy xz yz xt yt zt, in several resolutions; the products of the six go through a network
whose heads shift, turn and stretch the Gaussian. Clips keep the result frame by frame.

Other than in the paper's code, (1) what the network says of time 0 is subtracted, so that the Gaussians of time 0 are
the canonical ones; (2) a turn is a rotation before the Gaussian's own, not a sum of quaternions, which would mean
another turn for each Gaussian of one place; (3) in a clip that loops the planes close in time; (4) the planes span the
subject's own box.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize, pad

from backend.splatting.config import ConstructConfig
from backend.splatting.gaussians import GaussianParameters, Moved
from backend.splatting.motion_torch import multiply
from blender_addon.contract.clip import FrameMotion
from blender_addon.contract.rotations import make_continuous

SPACE_PLANES, TIME_PLANES = ("xy", "xz", "yz"), ("xt", "yt", "zt")
START = 0.1, 0.5  # of the features of space, drawn between these; those of time are 1, which is no motion
MARGIN = 1.1  # size of the box that the planes span, beside the subject's own
HEADS = {"shift": 3, "turn": 3, "stretch": 3}


class HexPlaneMotion:
    """A deformation of Gaussians in the box of `rest_means` [N, 3] over a clip of so many `frames`.

    `loop`: its end equals its beginning.
    """

    def __init__(self, rest_means: Tensor, frames: int, loop: bool, config: ConstructConfig) -> None:
        self.settings, self.loop = config.hexplane, loop
        low, high = rest_means.amin(dim=0), rest_means.amax(dim=0)
        self.center, self.reach = (low + high) / 2, ((high - low) / 2 * MARGIN).clamp_min(1e-6)
        channels, width = self.settings.channels, self.settings.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            moments = max(frames // 2, 2)  # half as many nodes as frames
            planes = {}
            for scale in self.settings.scales:
                points = scale * self.settings.points
                for axes in SPACE_PLANES:
                    planes[f"{axes}_{scale}"] = torch.empty(channels, points, points).uniform_(*START)
                for axes in TIME_PLANES:
                    planes[f"{axes}_{scale}"] = torch.ones(channels, moments, points)
            layers = {"trunk": nn.Linear(channels * len(self.settings.scales), width)}
            for head, size in HEADS.items():
                layers |= {f"{head}_hidden": nn.Linear(width, width), f"{head}_out": nn.Linear(width, size)}
            for layer in layers.values():
                nn.init.xavier_uniform_(layer.weight)
        self.planes = {name: plane.to(rest_means.device).requires_grad_() for name, plane in planes.items()}
        self.layers = nn.ModuleDict(layers).to(rest_means.device)

    def parameters(self) -> dict[str, Tensor]:
        """What an optimiser changes, by name."""
        weights = {name.replace(".", "_"): tensor for name, tensor in self.layers.named_parameters()}
        return {**self.planes, **weights}

    def rates(self) -> dict[str, float]:
        """Adam's step for each of the parameters, while the fit is not far."""
        settings = self.settings
        return {
            name: settings.plane_rate if name in self.planes else settings.network_rate for name in self.parameters()
        }

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Take over the values of `parameters`, as `parameters()` gave them."""
        with torch.no_grad():
            for name, tensor in self.parameters().items():
                tensor.copy_(parameters[name])

    def moved(self, times: Tensor, gaussians: GaussianParameters, chosen: Tensor | None = None) -> Moved:
        """The Gaussians of time 0 at `times` [T], 0..1.

        Where a Gaussian is decides how it moves, so which of all it is (`chosen`) says nothing here. Differentiable in
        the parameters and the Gaussians. Exactly the Gaussians themselves at time 0, and at time 1 of a loop.
        """
        if self.loop:
            times = times.remainder(1)
        said = self._deformation(gaussians.means, torch.cat([times.new_zeros(1), times]))
        since = (said[:, 1:] - said[:, :1]) * (times > 0)[
            :, None
        ]  # equal terms of a matrix product may be rounded apart
        shift, turn, stretch = since.permute(1, 2, 0).split(list(HEADS.values()), dim=-1)
        rotation = normalize(pad(turn / 2, (1, 0), value=1.0), dim=-1)
        return Moved(gaussians.means + shift, multiply(rotation, gaussians.quats), gaussians.scales * stretch.exp())

    def prior(self, progress: float, rng: np.random.Generator) -> Tensor:
        """What the planes cost: differences between neighbours in space, bends in time, and any motion at all.

        The total variation, smoothness in time and sparse transients of K-Planes (Fridovich-Keil et al., CVPR 2023,
        section 3.3). They stay the same all through the fit and draw nothing.
        """
        settings = self.settings
        cost = self.center.new_zeros(())
        for name, plane in self.planes.items():
            if name[:2] in SPACE_PLANES:
                variation = sum(plane.diff(dim=dim).square().mean() for dim in (1, 2))
                cost = cost + settings.variation_weight * variation
            else:
                bends = self._closed(plane).diff(n=2, dim=1).square().mean()
                cost = cost + settings.smooth_weight * bends + settings.transient_weight * (plane - 1).abs().mean()
        return cost

    @torch.no_grad()
    def to_clip(self, frame_times: Tensor, gaussians: GaussianParameters) -> FrameMotion:
        """The motion of these Gaussians at `frame_times` [T] as a clip keeps it."""
        moments = [self.moved(time[None], gaussians)[:3] for time in frame_times]
        means, quats, scales = (torch.cat(parts).cpu().numpy() for parts in zip(*moments, strict=True))
        quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
        return FrameMotion(means, make_continuous(quats).astype(np.float32), scales)

    def _deformation(self, means: Tensor, times: Tensor) -> Tensor:  # [N, 3], [T] -> [9, T, N]
        """What the heads say of each place and time, before that of time 0 is taken off."""
        features = self._features(means, times)
        trunk = self._layer("trunk", features.flatten(1)).relu()
        said = [self._layer(f"{head}_out", self._layer(f"{head}_hidden", trunk).relu()) for head in HEADS]
        return torch.cat(said).unflatten(1, features.shape[1:])

    def _layer(self, name: str, values: Tensor) -> Tensor:  # [in, P] -> [out, P]
        layer = self.layers[name]
        return torch.addmm(layer.bias[:, None], layer.weight, values)

    def _features(self, means: Tensor, times: Tensor) -> Tensor:  # [N, 3], [T] -> [scales * channels, T, N]
        """Products of what the six planes hold, for one resolution after the other."""
        place = (means - self.center) / self.reach  # -1..1
        moment = (2 * times - 1)[:, None].expand(-1, len(means))
        along = {axis: place[None, :, column] for column, axis in enumerate("xyz")}  # [1, N]
        at = {axes: torch.stack([along[axes[0]], along[axes[1]]], dim=-1) for axes in SPACE_PLANES}
        at |= {axes: torch.stack([along[axes[0]].expand_as(moment), moment], dim=-1) for axes in TIME_PLANES}

        def read(axes: str, scale: int) -> Tensor:  # [channels, 1 or T, N]
            plane = self.planes[f"{axes}_{scale}"]
            plane = self._closed(plane) if axes in TIME_PLANES else plane
            return grid_sample(plane[None], at[axes][None], padding_mode="border", align_corners=True)[0]

        planes = SPACE_PLANES + TIME_PLANES
        products = [math.prod(read(axes, scale) for axes in planes) for scale in self.settings.scales]
        return torch.cat(products)

    def _closed(self, plane: Tensor) -> Tensor:  # [C, moments, points] -> the same, or one moment more
        """A plane of time with its beginning once more at its end, if the clip loops."""
        return torch.cat([plane, plane[:, :1]], dim=1) if self.loop else plane
