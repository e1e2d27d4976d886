# SPDX-License-Identifier: GPL-3.0-or-later
"""Motion of Gaussians: rigid poses of control points, each a short series in time, blended per Gaussian.

A control point's pose at time t is six numbers, translation and rotation, and each is sum_j A_j phi_j(t) over basis
functions phi that are exactly 0 at time 0. A Gaussian follows the blend of its nearest control points.

On the CPU the Numba kernels of `motion_kernels` do the work, elsewhere `motion_torch`: the tensors' device decides.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.splatting import motion_kernels, motion_torch
from backend.splatting.control_points import ControlPoints
from blender_addon.contract.clip import BasisMotion

ROTATION_GAIN = 3.0  # one step of the optimiser turns three times as far (rad) as it shifts (clip space)


@dataclass(frozen=True)
class TimeBasis:
    """Functions of time that vanish at time 0, ordered by frequency: cosine and sine of whole cycles.

    Without `loop` a drift comes before them, which lets the motion end anywhere; it counts as half a cycle. (Cosines of
    half cycles instead were 0.1 to 1 dB worse on unseen views.)
    """

    loop: bool
    harmonics: int  # whole cycles of the fastest function

    @property
    def frequencies(self) -> Tensor:  # [J] float32, cycles per clip
        """How fast each function is."""
        cycles = torch.arange(1, self.harmonics + 1).repeat_interleave(2).float()
        return cycles if self.loop else torch.cat([torch.tensor([0.5]), cycles])

    @functools.lru_cache(8)  # noqa: B019 - a few small tensors
    def frequencies_on(self, device: torch.device) -> Tensor:  # [J]
        """The same on a device, sent there once."""
        return self.frequencies.to(device)

    def __call__(self, times: Tensor) -> Tensor:  # [T] 0..1 -> [J, T]
        """The functions at `times`."""
        angle = 2 * torch.pi * self.frequencies_on(times.device)[:, None] * times
        first = 0 if self.loop else 1  # of the cycles
        # Through the sine of half the angle, as cos - 1 would lose digits near time 0.
        values = -2 * torch.sin(angle / 2).square()
        values[first + 1 :: 2] = torch.sin(angle[first + 1 :: 2])
        values[:first] = 2 * times
        return values


class _Poses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, offsets: Tensor, points: np.ndarray) -> Tensor:
        poses = np.empty((*offsets.shape[:2], motion_kernels.POSE_SIZE), np.float32)
        motion_kernels.poses_forward(_array(offsets), points, poses)
        ctx.saved = poses, points
        return torch.from_numpy(poses)

    @staticmethod
    def backward(ctx, grad: Tensor):
        poses, points = ctx.saved
        grad_offsets = np.empty((*poses.shape[:2], 6), np.float32)
        motion_kernels.poses_backward(poses, points, _array(grad), grad_offsets)
        return torch.from_numpy(grad_offsets), None


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, poses: Tensor, means: Tensor, quats: Tensor, weights: Tensor, index: np.ndarray):
        inputs = _array(poses), index, _array(weights), _array(means), _array(quats)
        moved_means = np.empty((len(poses), len(means), 3), np.float32)
        moved_quats = np.empty((len(poses), len(means), 4), np.float32)
        motion_kernels.blend_forward(*inputs, moved_means, moved_quats)
        ctx.saved = inputs
        return torch.from_numpy(moved_means), torch.from_numpy(moved_quats)

    @staticmethod
    def backward(ctx, grad_means: Tensor, grad_quats: Tensor):
        poses, _, weights, means, quats = ctx.saved
        wanted = ctx.needs_input_grad[3]
        grad_weights = np.zeros((len(weights) if wanted else 0, weights.shape[1]), np.float32)
        grads = np.zeros_like(poses), np.zeros_like(means), np.zeros_like(quats), grad_weights
        motion_kernels.blend_backward(*ctx.saved, _array(grad_means), _array(grad_quats), *grads)
        tensors = [torch.from_numpy(grad) for grad in grads]
        return *tensors[:3], tensors[3] if wanted else None, None


def no_motion(bases: int, basis: TimeBasis) -> Tensor:  # [B, 6, J]
    """Coefficients of control points that keep still."""
    return torch.zeros(bases, 6, len(basis.frequencies))


@functools.lru_cache(8)
def six_weights(rotation: float, device: torch.device) -> Tensor:  # [6, 1]
    """1 for the three numbers of a translation, `rotation` for those of a rotation; sent to the device once."""
    return torch.tensor([1.0] * 3 + [rotation] * 3)[:, None].to(device)


def effective_coefficients(coefficients: Tensor, basis: TimeBasis) -> Tensor:  # [B, 6, J] -> [B, 6, J]
    """What the optimiser's coefficients stand for: translation in clip space, rotation as rho.

    They are kept times frequency, so that under Adam slow functions move first, and rotations divided by their gain.
    """
    device = coefficients.device
    return coefficients * six_weights(ROTATION_GAIN, device) / basis.frequencies_on(device)


def offsets_at(effective: Tensor, basis: TimeBasis, times: Tensor) -> Tensor:  # [..., J], [T] -> [T, ...]
    """Series in time at `times`; differentiable in the coefficients."""
    return (effective @ basis(times)).movedim(-1, 0)


def poses_of(offsets: Tensor, control: ControlPoints) -> Tensor:  # [T, B, 6] -> [T, B, 16]
    """Poses of control points that are shifted by offsets[..., :3] and turned about themselves by rho offsets[..., 3:].

    A pose is a rotation matrix (9, row by row), a translation (3) and the same rotation as quaternion wxyz (4).
    Differentiable in the offsets.
    """
    if offsets.is_cpu:
        return _Poses.apply(offsets, control.points.numpy())
    return motion_torch.poses(offsets, control.points)


def refined(weights: Tensor, offsets: Tensor) -> Tensor:  # [N, k], [N, k] -> [N, k]
    """Weights with `offsets` to their logarithms, sum 1 again."""
    changed = weights * offsets.exp()
    return changed / changed.sum(dim=-1, keepdim=True)


def blend(
    poses: Tensor,  # [T, B, 16]
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4] wxyz
    index: Tensor,  # [N, k] int32
    weights: Tensor,  # [N, k] float32
) -> tuple[Tensor, Tensor]:  # [T, N, 3], [T, N, 4]
    """Gaussians moved by the weighted mean of their poses (linear blend skinning).

    The quaternions come out with lengths a little below 1; the rasteriser normalises. Differentiable in poses, means,
    quats and weights. The same rule as `blender_addon.contract.clip.BasisMotion`.
    """
    if poses.is_cpu:
        return _Blend.apply(poses, means, quats, weights, _array(index))
    return motion_torch.blend(poses, means, quats, index.long(), weights)


def to_basis_motion(poses: Tensor, control: ControlPoints) -> BasisMotion:  # [T, B, 16]
    """Poses at the frames as a clip keeps them."""
    poses = poses.detach().cpu().numpy()
    return BasisMotion(
        basis_quats=np.ascontiguousarray(poses[..., 12:]),
        basis_translations=np.ascontiguousarray(poses[..., 9:12]),
        basis_index=control.index.cpu().numpy(),
        basis_weights=control.weights.detach().cpu().numpy(),
    )


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())
