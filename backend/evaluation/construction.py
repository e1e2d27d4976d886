# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a constructed clip is: on the pictures it was made from, and on views that nobody showed.

Unseen views say what a construction is worth, and only beside the same clip frozen at time 0: subjects fill a small
part of the picture, so that even a clip that never moves reaches more than 20 dB.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from backend.evaluation.metrics import alpha_iou, foreground_psnr, psnr, track_error
from backend.pictures import over_white, ssim
from backend.splatting.observations import Observations
from backend.splatting.render import render_clip
from blender_addon.contract.clip import Clip

WORST = 0.1  # share of the views whose PSNR makes `psnr_..._worst`


def evaluate_construction(
    clip: Clip,
    moving: Observations,
    truth: Observations | None = None,
    tracks: np.ndarray | None = None,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Means over views of PSNR, SSIM, LPIPS or D-SSIM and overlap of outlines; over white, in sRGB-coded colour.

    Args:
        clip: what was constructed.
        moving: the pictures that it was constructed from (`..._shown`).
        truth: pictures from other cameras at times of the clip (`..._unseen`, and `..._unseen_frozen` for the clip
            frozen at time 0; `psnr_gain` is the difference).
        tracks: true places of points on the subject at the clip's frames [T, M, 3] (`track_error`, see there).
        lpips: of two sets of pictures, one number for each; without it there is `dssim` = (1 - SSIM) / 2 instead.
    """
    result = likeness(render_clip(clip, moving.cameras), moving.images, "shown", lpips)
    if truth is not None:
        result |= likeness(render_clip(clip, truth.cameras), truth.images, "unseen", lpips)
        result |= likeness(render_clip(clip, truth.cameras, frozen=True), truth.images, "unseen_frozen", lpips)
        result["psnr_gain"] = result["psnr_unseen"] - result["psnr_unseen_frozen"]
    if tracks is not None:
        result["track_error"] = track_error(clip.frames().means, tracks)
    return result


@torch.no_grad()
def likeness(
    drawn: Tensor, images: Tensor, label: str, lpips: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, float]:
    """How alike two sets of pictures [V, H, W, 4] are, colour multiplied by alpha: means over V, names end in `label`.

    `psnr_LABEL_worst` is the mean over the tenth of the views with the lowest PSNR.
    """
    drawn_on_white, images_on_white = over_white(drawn), over_white(images)
    views = psnr(drawn_on_white, images_on_white)
    similarity = ssim(drawn_on_white, images_on_white)
    values = {
        "psnr": views,
        "psnr_foreground": foreground_psnr(drawn, images),
        "ssim": similarity,
        "iou": alpha_iou(drawn[..., 3], images[..., 3]),
    }
    if lpips is None:
        values["dssim"] = (1 - similarity) / 2
    else:
        values["lpips"] = lpips(drawn_on_white, images_on_white)
    worst = views.sort().values[: max(round(WORST * len(views)), 1)].mean()
    means = {f"{name}_{label}": float(value.mean()) for name, value in values.items()}
    return means | {f"psnr_{label}_worst": float(worst)}


def psnr_by_frame(clip: Clip, truth: Observations) -> dict[str, float]:
    """Mean PSNR over the views of each frame of `truth`: where in time a construction goes wrong."""
    views = psnr(over_white(render_clip(clip, truth.cameras)), over_white(truth.images)).numpy()
    frames = (truth.cameras.times * (clip.frame_count - 1)).round().astype(int)
    return {str(frame): float(views[frames == frame].mean()) for frame in np.unique(frames)}
