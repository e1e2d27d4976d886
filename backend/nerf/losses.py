# SPDX-License-Identifier: GPL-3.0-or-later
"""What 4Diffusion's optimisation asks of the field beside score distillation: the anchor video and three priors.

    total = sds + anchor + orient * orientation + sparse * sparsity + opaque * opaqueness

Where paper and code differ (the paper swaps the names of sparsity and opaqueness, the code adds the anchor terms twice
at half weight), formulas and effective weights are the code's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.nerf.rendering import Rendered
from backend.pictures import dssim

ITERATIONS = 35_000  # of 4Diffusion; other numbers scale the schedule
ORIENT_RAMP, OPAQUE_START = 5_000 / ITERATIONS, 10_000 / ITERATIONS  # shares of the iterations
LPIPS_WEIGHT, DSSIM_WEIGHT = 200.0, 100.0
L1_WEIGHT = 200.0  # in place of LPIPS
WITHOUT_LPIPS = "No LPIPS weights were given: the anchor video was followed by D-SSIM and L1 alone."
SURE = 1e-3  # opacities closer to 0 or 1 count as sure


@dataclass(frozen=True)
class Weights:
    """Of the priors."""

    orient: float
    sparse: float
    opaque: float


def weights_at(iteration: int, iterations: int = ITERATIONS) -> Weights:
    """Orientation from 10 to 1000 in the first seventh, opaqueness after two sevenths, sparsity always."""
    done = iteration / iterations
    return Weights(
        orient=10 + 990 * min(done / ORIENT_RAMP, 1.0), sparse=100.0, opaque=100.0 if done >= OPAQUE_START else 0.0
    )


def orientation(rendered: Rendered) -> Tensor:
    """Mean over rays that hit something of sum_i w_i max(0, n_i . d)^2 (Verbin et al., "Ref-NeRF", 2022, Eq. 11).

    What is seen should face the camera. Weights carry no gradient: it is the normals that are to turn. 4Diffusion
    renders normals for one frame of each step only.

    Raises:
        ValueError: rendered without normals.
    """
    if rendered.facing_away is None:
        raise ValueError("orientation needs normals: render with with_normals=True")
    return rendered.facing_away.sum() / (rendered.opacity > 0).sum().clamp(min=1)


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(opacity^2 + 0.01): rather nothing than a haze."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaqueness(opacity: Tensor) -> Tensor:
    """Binary cross-entropy of opacity with itself, its entropy: rather 0 or 1 than between."""
    sure = opacity.clamp(SURE, 1 - SURE)
    return torch.nn.functional.binary_cross_entropy(sure, sure)


def anchor(
    rendered: Tensor,  # [B, H, W, 3] 0..1
    target: Tensor,  # [B, H, W, 3] 0..1
    lpips: Callable[[Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """200 LPIPS + 100 D-SSIM between renders and frames of the anchor video.

    Both over the same background, see `over_background`; 11 pixels wide at least.

    Args:
        rendered: with a gradient.
        target: frames of the video.
        lpips: from two sets of pictures to [B], differentiable in the first; None: L1 stands in for it, and the result
            is to say `WITHOUT_LPIPS`.
    """
    difference = dssim(rendered, target).mean()
    if lpips is None:
        return L1_WEIGHT * (rendered - target).abs().mean() + DSSIM_WEIGHT * difference
    return LPIPS_WEIGHT * lpips(rendered, target).mean() + DSSIM_WEIGHT * difference


def over_background(frames: Tensor, background: Tensor) -> Tensor:  # [B, H, W, 4], [B, H, W, 3] -> [B, H, W, 3]
    """Frames with straight alpha over the background of the renders that they are compared with."""
    colors, alpha = frames[..., :3], frames[..., 3:]
    return colors * alpha + background * (1 - alpha)
