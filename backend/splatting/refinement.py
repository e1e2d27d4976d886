# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip as an optimiser sees it, to be refined by any loss of its pictures: shape, looks, and poses frame by frame.

`construct` knows what pictures are to look like. Where there are no pictures but something that judges renders (score
distillation), its result is taken up here and goes on being changed.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from backend.splatting.control_points import ControlPoints
from backend.splatting.fit import BETAS, SHAPE_RATES
from backend.splatting.gaussians import SH_DC, GaussianParameters
from backend.splatting.losses import rigidity
from backend.splatting.motion import ROTATION_GAIN, blend, poses_of, to_basis_motion
from backend.splatting.render import render
from blender_addon.contract.clip import BasisMotion, Clip
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.rotations import to_matrix

SHAPE_SHARE = 0.25  # of the rates that the first fit began with
MOTION_RATE = 5e-4  # Adam's step for poses, clip space
NEIGHBOURS = 8  # that rigidity ties to each basis
RIGID_LENGTH, RIGID_TURN = 5.0, 0.05  # as in `ConstructConfig`
BLUR_SHARE = 0.9  # of the smallest Gaussian, below which none gets


class RefinableClip:
    """Leaf tensors that begin as a clip in sRGB whose motion is by bases, and can become a clip again."""

    def __init__(self, clip: Clip, device: torch.device | str = "cpu") -> None:
        """Raises ValueError for a clip of another kind."""
        if not isinstance(clip.motion, BasisMotion) or clip.color_space != "srgb":
            raise ValueError("only clips in sRGB that move by bases can be refined")
        self._clip = clip
        self.device = torch.device(device)
        self.control = _control_of(clip).to(self.device)
        self.gaussians = _gaussians_of(clip).to(self.device).require_grad()
        offsets = _offsets_of(clip.motion, self.control.points.cpu().numpy()).to(self.device)
        self.shifts = offsets[..., :3].clone().requires_grad_()  # [T, B, 3]
        self.turns = (offsets[..., 3:] / ROTATION_GAIN).requires_grad_()  # [T, B, 3]

    def parameters(self) -> dict[str, Tensor]:
        """All leaf tensors by name."""
        return {**self.gaussians.tensors(), "shifts": self.shifts, "turns": self.turns}

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam for all of it, with rates for a start that is nearly right."""
        rates = {name: SHAPE_SHARE * rate for name, rate in SHAPE_RATES.items()}
        rates |= {"shifts": MOTION_RATE, "turns": MOTION_RATE}
        groups = [
            {"params": [tensor], "lr": rates[name]} for name, tensor in self.parameters().items() if tensor.numel()
        ]
        return torch.optim.Adam(groups, betas=BETAS)

    def render(self, cameras: Cameras) -> Tensor:  # [V, H, W, 4]
        """What the cameras see at their times: colour times alpha, alpha; differentiable in the parameters."""
        gaussians = self.gaussians
        times, view = np.unique(cameras.times, return_inverse=True)
        view = torch.from_numpy(view).to(self.device)
        poses = self._poses(torch.from_numpy(times).float().to(self.device))
        means, quats = blend(poses, gaussians.means, gaussians.quats, self.control.index, self.control.weights)
        harmonic = gaussians.sh_degree > 0
        return render(
            means[view],
            quats[view],
            gaussians.scales,
            gaussians.opacities,
            gaussians.sh if harmonic else gaussians.colors,
            torch.from_numpy(cameras.viewmats()).float().to(self.device),
            torch.from_numpy(cameras.Ks).float().to(self.device),
            cameras.width,
            cameras.height,
            sh_degree=gaussians.sh_degree if harmonic else None,
        )

    def rigidity(self, times: np.ndarray) -> Tensor:
        """How far neighbouring bases stretch and turn against each other at times [T] 0..1."""
        poses = self._poses(torch.from_numpy(np.unique(times)).float().to(self.device))
        return rigidity(poses, self.control, RIGID_LENGTH, RIGID_TURN)

    def jerkiness(self) -> Tensor:
        """Mean squared bend of the bases' ways from frame to frame, in units of the edges between them."""
        if len(self.shifts) < 3:
            return self.shifts.new_zeros(())
        bends = self.shifts.diff(n=2, dim=0).square().sum(dim=-1) / self.control.mean_square_edge
        return (bends + (ROTATION_GAIN * self.turns).diff(n=2, dim=0).square().sum(dim=-1)).mean()

    @torch.no_grad()
    def to_clip(self) -> Clip:
        """As it is now; name, provenance and the like as they were."""
        gaussians = self.gaussians
        quats = torch.nn.functional.normalize(gaussians.quats, dim=-1)
        arrays = {"means": gaussians.means, "quats": quats, "scales": gaussians.scales}
        arrays |= {"opacities": gaussians.opacities, "sh": gaussians.sh}
        motion = to_basis_motion(poses_of(self._offsets(), self.control), self.control)
        numbers = {name: tensor.cpu().numpy().astype(np.float32).copy() for name, tensor in arrays.items()}
        return replace(self._clip, **numbers, motion=motion)

    def _offsets(self) -> Tensor:  # [T, B, 6]
        return torch.cat([self.shifts, ROTATION_GAIN * self.turns], dim=-1)

    def _poses(self, times: Tensor) -> Tensor:  # [T'] 0..1 -> [T', B, 16]
        """Between frames the six numbers are interpolated."""
        offsets = self._offsets()
        at = times * (len(offsets) - 1)
        before = at.round().long().clamp(0, len(offsets) - 1)
        exact = (at - before).abs() < 1e-4
        before = torch.where(exact, before, at.floor().long())
        after = torch.where(exact, before, before + 1)
        share = torch.where(exact, 0.0, at - before)[:, None, None]
        return poses_of((1 - share) * offsets[before] + share * offsets[after], self.control)


def _gaussians_of(clip: Clip) -> GaussianParameters:
    scales = torch.from_numpy(clip.scales)
    blur = BLUR_SHARE * float(scales.min())
    return GaussianParameters(
        means=torch.from_numpy(clip.means),
        quats=torch.from_numpy(clip.quats),
        log_scales=(scales.square() - blur**2).log() / 2,
        opacity_logits=torch.from_numpy(clip.opacities).clamp(1e-3, 1 - 1e-3).logit(),
        color_logits=(0.5 + SH_DC * torch.from_numpy(clip.sh[:, 0])).clamp(1e-3, 1 - 1e-3).logit(),
        harmonics=torch.from_numpy(clip.sh[:, 1:]),
        weight_offsets=torch.zeros(clip.count, 0),
        blur=blur,
    )


def _control_of(clip: Clip) -> ControlPoints:
    """The bases as control points: in the middle of what each leads at frame 0."""
    motion = clip.motion
    count = motion.basis_quats.shape[1]
    index, weights = motion.basis_index.reshape(-1), motion.basis_weights.reshape(-1).astype(np.float64)
    led = np.bincount(index, weights, count)
    repeated = np.repeat(clip.means, motion.basis_index.shape[1], axis=0)
    sums = np.stack([np.bincount(index, weights * axis, count) for axis in repeated.T], axis=1)
    points = np.where(led[:, None] > 1e-9, sums / np.maximum(led, 1e-9)[:, None], clip.means.mean(axis=0))
    neighbours = min(NEIGHBOURS, count - 1)
    distances, partners = cKDTree(points).query(points, neighbours + 1)
    edges = np.stack([np.repeat(np.arange(count), neighbours), partners[:, 1:].reshape(-1)], axis=1)
    lengths = distances[:, 1:].reshape(-1)
    near = np.exp(-np.square(lengths / (1.5 * max(np.median(lengths), 1e-6))) / 2)
    return ControlPoints(
        points=torch.from_numpy(points.astype(np.float32)),
        index=torch.from_numpy(motion.basis_index.astype(np.int32)),
        weights=torch.from_numpy(motion.basis_weights.astype(np.float32)),
        edges=torch.from_numpy(edges.astype(np.int32)),
        edge_weights=torch.from_numpy((near / near.mean()).astype(np.float32)),
        mean_square_edge=max(float(np.square(lengths).mean()), 1e-9),
    )


def _offsets_of(motion: BasisMotion, points: np.ndarray) -> Tensor:  # [T, B, 6]
    """Inverse of `motion.poses_of`: the shift of each basis' point, and twice the tangent of half its turn."""
    quats = motion.basis_quats
    turned = np.einsum("tbij,bj->tbi", to_matrix(quats), points)
    shifts = motion.basis_translations + turned - points
    w = quats[..., :1]
    turns = 2 * quats[..., 1:] / np.where(np.abs(w) < 1e-3, np.copysign(1e-3, w), w)
    return torch.from_numpy(np.concatenate([shifts, turns], axis=-1).astype(np.float32))
