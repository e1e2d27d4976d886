# SPDX-License-Identifier: GPL-3.0-or-later
"""3D-to-4D motion magnitude (Diffusion4D, Eq. 1) and its reconstruction loss (Eq. 2).

The paper does not state the normalisation of m. Here it is 255 times the mean square over frames, pixels and RGB, of
images in 0..1 on white: the two public sample assets then measure 8.2 and 4.6, beside the paper's examples 5 and 15.
"""

import numpy as np
from torch import Tensor, nn

from backend.pictures import premultiplied

SCALE = 255.0


def motion_magnitude(moving: Tensor, static: Tensor) -> Tensor:
    """m of Eq. 1 on pictures.

    moving, static: [..., T, H, W, 4] premultiplied RGBA in 0..1, seen by the same cameras -> [...].
    """
    difference = moving - static
    on_white = difference[..., :3] - difference[..., 3:]
    return SCALE * on_white.square().mean((-4, -3, -2, -1))


def magnitude_of(moving: np.ndarray, static: np.ndarray) -> float:
    """m of two orbits [T, H, W, 4] uint8 with straight alpha."""
    return float(motion_magnitude(premultiplied(moving), premultiplied(static)))


def frames_magnitude(moving: Tensor, static: Tensor) -> Tensor:  # [B, T, 4, H, W] premultiplied -> [B]
    """m of pictures as networks have them."""
    return motion_magnitude(moving.permute(0, 1, 3, 4, 2), static.permute(0, 1, 3, 4, 2))


def latent_magnitude(latents: Tensor, static_latents: Tensor | None = None) -> Tensor:
    """m of Eq. 2 on latents [B, T, C, h, w] -> [B]: mean square difference to the static orbit's latents.

    Latents that are residuals to the static orbit already need no `static_latents`.
    """
    residual = latents if static_latents is None else latents - static_latents
    return residual.square().mean((1, 2, 3, 4))


def reconstruction_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L_mr of Eq. 2 of each sample, from magnitudes [B] of the predicted and the true clean latents.

    weight [B]: less where there is more noise. Where it hides the motion, the best estimate is an average and must have
    a small magnitude; an unweighted loss would fight the denoising loss there.
    """
    return weight * (predicted - target).square()


class MagnitudeEmbedding(nn.Module):
    """Two-layer embedding of m, to be added to the time embedding (paper, section 3.3).

    The last layer starts at zero: a network that gains it begins as what it was.
    """

    def __init__(self, width: int, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = scale
        self.inner = nn.Linear(1, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, magnitude: Tensor) -> Tensor:  # [B] -> [B, width]
        """Embed m."""
        return self.outer(nn.functional.silu(self.inner(magnitude[:, None] / self.scale)))
