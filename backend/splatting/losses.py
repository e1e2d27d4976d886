# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fit is judged by: pictures, slowness of the motion, rigidity of the subject."""

import numpy as np
import torch
from torch import Tensor

from backend.compiled import kernel
from backend.splatting import motion_kernels, motion_torch
from backend.splatting.control_points import ControlPoints
from backend.splatting.motion import TimeBasis, six_weights

ALPHA_WEIGHT = 0.5
INSIDE_ALPHA = 0.9  # of pixels that show the subject alone
DEPTH_STEP = 3.0  # pixels
EDGE_SHARPNESS = 10.0  # of colours, 0..1
ROTATION_WEIGHT = 0.3  # of rotations beside translations in the spectral prior
RIGIDITY_LENGTH = 0.1  # of stretching, relative to the squared mean edge, beside turning


def image_loss(
    rendered: Tensor,  # [T, H, W, 4] premultiplied
    target: Tensor,  # [T, H, W, 4]
    coverage: float,
    colored: Tensor | None = None,  # [T] bool
) -> Tensor:
    """Mean absolute error of colours over white and over black, and of alpha; not `colored` pictures tell alpha alone.

    Over one background alone, half-transparent Gaussians of its colour would go unnoticed, and show on any other.
    Black and white together also stand for all others: the error over a background is linear in its colour, so that
    its absolute value is nowhere larger than at these two ends. Random backgrounds draw from between, and add noise.
    Divided by `coverage`, the share of the picture that the subject fills, so that the priors weigh alike for small
    and for large subjects.
    """
    if rendered.is_cpu:
        return _ImageLoss.apply(rendered, target, coverage, colored)
    error = rendered - target
    over_black, alpha = error[..., :3], error[..., 3:]
    over_white = over_black - alpha  # colour + (1 - alpha) on both sides
    colors = over_white.abs() + over_black.abs()
    colors = 0.5 * (colors if colored is None else colors * colored[:, None, None, None]).mean()
    return (colors + ALPHA_WEIGHT * alpha.abs().mean()) / coverage


@kernel(
    "float64(float32[:,:,:,::1], float32[:,:,:,::1], boolean[::1], float32, float32, float32[:,:,:,::1])",
)
def _image_error(rendered, target, colored, color_weight, alpha_weight, gradient):
    """Weighted sum of `image_loss`, and its gradient: in torch that takes a dozen passes over the pictures."""
    total = 0.0
    for t in range(rendered.shape[0]):
        weight = color_weight if colored[t] else np.float32(0)
        for y in range(rendered.shape[1]):
            for x in range(rendered.shape[2]):
                alpha = rendered[t, y, x, 3] - target[t, y, x, 3]
                error, slope = alpha_weight * abs(alpha), alpha_weight * np.sign(alpha)
                for channel in range(3):
                    over_black = rendered[t, y, x, channel] - target[t, y, x, channel]
                    over_white = over_black - alpha
                    error += weight * (abs(over_black) + abs(over_white))
                    gradient[t, y, x, channel] = weight * (np.sign(over_black) + np.sign(over_white))
                    slope -= weight * np.sign(over_white)
                gradient[t, y, x, 3] = slope
                total += error
    return total


class _ImageLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rendered: Tensor, target: Tensor, coverage: float, colored: Tensor | None) -> Tensor:
        pictures = [np.ascontiguousarray(tensor.detach().numpy()) for tensor in (rendered, target)]
        told = np.ones(len(rendered), bool) if colored is None else colored.numpy()
        pixels = rendered[..., 0].numel() * coverage
        weights = np.float32(0.5 / (3 * pixels)), np.float32(ALPHA_WEIGHT / pixels)
        gradient = np.empty_like(pictures[0])
        total = _image_error(*pictures, told, *weights, gradient)
        ctx.gradient = torch.from_numpy(gradient)
        return torch.tensor(total, dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.gradient, None, None, None


def depth_smoothness(depth: Tensor, target: Tensor, pixel: float) -> Tensor:  # [T, H, W], [T, H, W, 4]
    """Mean step of the depth from pixel to pixel within the outlines, in pixels, less where the picture has edges.

    `depth` is not multiplied by alpha; `pixel` is how large a pixel is at the subject. Edge-aware as in Godard et al.
    2017, "Unsupervised Monocular Depth Estimation with Left-Right Consistency", Eq. 3; steps beyond `DEPTH_STEP`
    pixels, from one surface to another behind it, cost no more than that.
    """
    total = depth.new_zeros(())
    for axis in (1, 2):
        count = depth.shape[axis] - 1
        inside = (target[..., 3] > INSIDE_ALPHA).float()
        inside = inside.narrow(axis, 0, count) * inside.narrow(axis, 1, count)
        edges = target[..., :3].diff(dim=axis).abs().mean(dim=-1)
        steps = (depth.diff(dim=axis).abs() / pixel).clamp(max=DEPTH_STEP)
        total = total + (steps * torch.exp(-EDGE_SHARPNESS * edges) * inside).sum() / inside.sum().clamp(min=1)
    return total


def spectral_prior(effective: Tensor, basis: TimeBasis, free_cycle: bool = True) -> Tensor:  # [B, 6, J]
    """Sum of squared coefficients times (frequency^4 - 1), where that is above 0: what fast terms of the motion cost.

    Without it one view per time says so little about the motion that unseen views come out worse than frozen ones.
    Terms of up to one cycle are free: movement along the line of sight hardly changes a picture, so that any price on
    the slow swing itself makes limbs shrink rather than reach into depth. Without `free_cycle` they cost 1, like the
    others frequency^4; for what only mends a motion that something else explains.
    """
    energy = (effective * six_weights(ROTATION_WEIGHT, effective.device)).square().sum(dim=1)  # [B, J]
    price = (basis.frequencies_on(effective.device) ** 4 - int(free_cycle)).clamp(min=0)
    return (energy * price).sum(dim=1).mean()


class _Rigidity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, poses: Tensor, control: ControlPoints, weight_length: float, weight_turn: float) -> Tensor:
        array = np.ascontiguousarray(poses.detach().numpy())
        grad = np.zeros_like(array)
        energy = motion_kernels.rigidity(
            array,
            control.points.numpy(),
            control.edges.numpy(),
            control.edge_weights.numpy(),
            np.float32(weight_length),
            np.float32(weight_turn),
            grad,
        )
        ctx.grad = torch.from_numpy(grad)
        return torch.tensor(energy, dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.grad, None, None, None


def rigidity(poses: Tensor, control: ControlPoints, length: float, turn: float) -> Tensor:  # [T, B, 16]
    """As-rigid-as-possible energy (Sorkine and Alexa 2007) between neighbouring control points, mean over edges.

    `length` weighs stretching relative to the edges' own length, `turn` the difference of neighbours' rotations.
    """
    terms = len(poses) * len(control.edges)
    weights = length * RIGIDITY_LENGTH / control.mean_square_edge / terms, turn / terms
    if poses.is_cpu:
        return _Rigidity.apply(poses, control, *weights)
    return motion_torch.rigidity(poses, control.points, control.edges.long(), control.edge_weights, *weights)
