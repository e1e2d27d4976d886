# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user sees of a fit while it runs: one of the given pictures beside how it is drawn now."""

import numpy as np
import torch
from torch import Tensor

from backend.splatting.color import encoded
from backend.splatting.fit import Fit
from backend.splatting.scene import Pictures, Scene

PREVIEW_STEPS = 5  # steps of the fit from one previewed view to the next
PREVIEW_MARGIN = 3  # pixels round the subject in previews
PREVIEW_ALPHA = 0.02  # of the largest, from which on a pixel shows the subject
PREVIEW_GREY = 0.22  # background of previews, sRGB-coded


@torch.no_grad()
def preview_shape(fit: Fit, scene: Scene) -> np.ndarray:  # [h, w, 3] uint8
    """A picture of time 0 beside how it is drawn now."""
    pictures, gaussians = scene.reference[1], fit.gaussians
    view = [fit.step // PREVIEW_STEPS % len(pictures.images)]
    drawn = pictures.render(view, fit.in_reference(scene, view), gaussians)
    return _side_by_side(pictures, view[0], drawn[0], scene.config.color_space)


@torch.no_grad()
def preview_motion(fit: Fit, scene: Scene) -> np.ndarray:  # [h, w, 3] uint8
    """A moving picture beside how it is drawn now."""
    pictures, gaussians = scene.moving[1], fit.gaussians
    view = [fit.step // PREVIEW_STEPS % len(pictures.images)]
    moved = fit.motion.moved(scene.times[view], gaussians)
    drawn = pictures.render(view, moved, gaussians)
    return _side_by_side(pictures, view[0], drawn[0], scene.config.color_space)


def _side_by_side(pictures: Pictures, view: int, drawn: Tensor, color_space: str) -> np.ndarray:  # [h, w, 3] uint8
    """One of the pictures and what is drawn of it, cut to where the subject is in any of them.

    Tall subjects stand beside each other, wide ones lie above each other.
    """
    alpha = pictures.images[..., 3].amax(dim=0)
    seen = alpha > PREVIEW_ALPHA * alpha.max()
    lines = [torch.nonzero(seen.any(dim=axis)).flatten() for axis in (1, 0)]  # rows, columns
    part = tuple(slice(max(int(line[0]) - PREVIEW_MARGIN, 0), int(line[-1]) + 1 + PREVIEW_MARGIN) for line in lines)
    cut = [picture[part] for picture in (pictures.images[view], drawn)]
    height, width = cut[0].shape[:2]
    both = encoded(torch.cat(cut, dim=0 if width > height else 1), color_space)
    on_grey = both[..., :3] + PREVIEW_GREY * (1 - both[..., 3:])
    return (on_grey.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
