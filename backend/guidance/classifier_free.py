# SPDX-License-Identifier: GPL-3.0-or-later
"""Classifier-free guidance: plain (two branches) and 3D-aware (Diffusion4D, Eq. 3; three)."""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, static: Tensor, w1: float, w2: float) -> Tensor:
    """Eq. 3: c + w1 (c - u) + w2 (c - s). The paper has w1 = 7.0 and w2 = 0.5; kinesplat-small is set to 1 and 0.25.

    conditional: with all conditions; unconditional: without text and motion magnitude; static: of the model that does
    not move. Any one shape. The factors add up to 1, so noise, v and clean-latent predictions can all be guided.
    """
    return conditional + w1 * (conditional - unconditional) + w2 * (conditional - static)


def guide_plain(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + scale (c - u), which is Eq. 3 with w1 = scale - 1 and w2 = 0. Any one shape.

    VideoMV has scale 9.0 for texts and 6.0 for images, and tells the unconditional branch its negative prompt; 4DM has
    5.0.
    """
    return unconditional + scale * (conditional - unconditional)
