# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a constructed clip is: on the pictures it was made from, and on views that nobody showed.

Unseen views say what a construction is worth, and only beside the same clip frozen at time 0: subjects fill a small
part of the picture, so that even a clip that never moves reaches more than 20 dB.
"""

import numpy as np
from torch import Tensor

from backend.evaluation.metrics import alpha_iou, foreground_psnr, over_white, psnr, ssim, track_error
from backend.splatting.observations import Observations
from backend.splatting.render import render_clip
from blender_addon.contract.clip import Clip


def evaluate_construction(
    clip: Clip,
    moving: Observations,
    truth: Observations | None = None,
    tracks: np.ndarray | None = None,
) -> dict[str, float]:
    """Means over views of PSNR, SSIM and overlap of outlines; over white, in sRGB-coded colour.

    Args:
        clip: what was constructed.
        moving: the pictures that it was constructed from (`..._shown`).
        truth: pictures from other cameras at times of the clip (`..._unseen`, and `..._unseen_frozen` for the clip
            frozen at time 0).
        tracks: true places of points on the subject at the clip's frames [T, M, 3] (`track_error`, see there).
    """
    result = _likeness(render_clip(clip, moving.cameras), moving.images, "shown")
    if truth is not None:
        result |= _likeness(render_clip(clip, truth.cameras), truth.images, "unseen")
        result |= _likeness(render_clip(clip, truth.cameras, frozen=True), truth.images, "unseen_frozen")
    if tracks is not None:
        result["track_error"] = track_error(clip.frames().means, tracks)
    return result


def _likeness(drawn: Tensor, images: Tensor, label: str) -> dict[str, float]:
    drawn_on_white, images_on_white = over_white(drawn), over_white(images)
    values = {
        "psnr": psnr(drawn_on_white, images_on_white),
        "psnr_foreground": foreground_psnr(drawn, images),
        "ssim": ssim(drawn_on_white, images_on_white),
        "iou": alpha_iou(drawn[..., 3], images[..., 3]),
    }
    return {f"{name}_{label}": float(value.mean()) for name, value in values.items()}
