# SPDX-License-Identifier: GPL-3.0-or-later
"""The motion of Gaussians that are told where they are, one by one, also those that are not there all the time.

Used where the subject's surface has not the same faces at all times (`tracks`). Each Gaussian belongs to one track and
is described as it is at the track's own time; what the pictures change in it goes along, turns and grows with it.
"""

import numpy as np
import torch
from torch import Tensor

from backend.splatting.gaussians import GaussianParameters, Moved
from backend.splatting.known import KnownMotion
from backend.splatting.motion_torch import multiply, rotate
from backend.splatting.tracks import Tracks
from blender_addon.contract.clip import FrameMotion
from blender_addon.contract.rotations import make_continuous


class PlacedMotion(KnownMotion):
    """Gaussians along `tracks`, one on each."""

    def __init__(self, tracks: Tracks, device: torch.device) -> None:
        self.device = device
        places, quats = (torch.from_numpy(array) for array in tracks.at_home())
        home_sizes = tracks.sizes[tracks.homes, np.arange(len(tracks.homes))]
        turns = multiply(torch.from_numpy(tracks.quats), quats * quats.new_tensor([1.0, -1.0, -1.0, -1.0]))
        poses = torch.from_numpy(tracks.means), turns, torch.from_numpy(tracks.sizes / home_sizes)
        self._poses = tuple(tensor.float().to(device) for tensor in poses)
        self._there = torch.from_numpy(tracks.there).float().to(device)
        self._places = places.to(device)

    def moved(self, times: Tensor, gaussians: GaussianParameters, chosen: Tensor | slice = slice(None)) -> Moved:
        """The Gaussians at `times` [T], or those `chosen` of them. Differentiable in the Gaussians."""
        steps = times * (len(self._there) - 1)
        before = steps.floor().long().clamp(0, len(self._there) - 2)
        share = (steps - before)[:, None]

        def between(values: Tensor, share: Tensor) -> Tensor:
            first, second = values[before][:, chosen], values[before + 1][:, chosen]
            return first + share * (second - first)

        means, turns, sizes = self._poses
        places, growth = between(means, share[..., None]), between(sizes.log(), share).exp()[..., None]
        turned = torch.nn.functional.normalize(between(turns, share[..., None]), dim=-1)
        offsets = (gaussians.means - self._places[chosen]).expand(len(times), -1, -1)
        return Moved(
            means=places + growth * rotate(turned, offsets),
            quats=multiply(turned, gaussians.quats),
            scales=growth * gaussians.scales,
            presence=between(self._there, share),
        )

    def to_clip(self, frame_times: Tensor, gaussians: GaussianParameters) -> FrameMotion:
        """The motion at the frames as a clip keeps it."""
        moved = self.moved(frame_times, gaussians)
        means, quats, scales, presence = (tensor.cpu().numpy() for tensor in moved)
        always = bool((presence == 1).all())
        return FrameMotion(
            frame_means=means,
            frame_quats=make_continuous(quats / np.linalg.norm(quats, axis=-1, keepdims=True)).astype(np.float32),
            frame_scales=None if (self._poses[2] == 1).all() else scales,
            frame_opacities=None if always else (presence * gaussians.opacities.cpu().numpy()).astype(np.float32),
        )
