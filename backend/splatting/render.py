# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of Gaussians and of clips, through the rasteriser that this computer has."""

import numpy as np
import torch
from torch import Tensor

from backend.splatting.color import encoded
from backend.splatting.gaussians import SH_DC
from backend.splatting.rasterize import rasterize
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import Cameras

EPS2D = 0.02  # pixel^2: the Gaussians of clips carry the blur of a pixel themselves (`GaussianParameters.blur`)


def render(
    means: Tensor,  # [T, N, 3]
    quats: Tensor,  # [T, N, 4] wxyz
    scales: Tensor,  # [N, 3] or [T, N, 3]
    opacities: Tensor,  # [N] or [T, N]
    colors: Tensor,  # [N, 3] or [T, N, 3]
    viewmats: Tensor,  # [T, 4, 4]
    Ks: Tensor,  # noqa: N803 - [T, 3, 3]
    width: int,
    height: int,
) -> Tensor:  # [T, H, W, 4]
    """One picture for each of T moments, colour multiplied by alpha."""
    moments = len(means)
    color, alpha, _ = rasterize(
        means,
        quats,
        scales.expand(moments, -1, -1),
        opacities.expand(moments, -1),
        colors.expand(moments, -1, -1),
        viewmats[:, None],
        Ks[:, None],
        width,
        height,
        eps2d=EPS2D,
    )
    return torch.cat([color, alpha], dim=-1)[:, 0]


@torch.no_grad()
def render_clip(clip: Clip, cameras: Cameras, frozen: bool = False) -> Tensor:  # [V, H, W, 4]
    """The clip from each camera at that camera's time (0 is the first frame, 1 the last).

    Colour is multiplied by alpha and sRGB-coded, like the pictures that clips are constructed from: a clip of linear
    light is drawn in that and converted.
    `frozen` shows the first frame at all times. View-dependent colour is left out.
    """
    colors = torch.from_numpy((0.5 + SH_DC * clip.sh[:, 0]).clip(0, 1).astype(np.float32))
    viewmats = torch.from_numpy(cameras.viewmats()).float()
    intrinsics = torch.from_numpy(cameras.Ks).float()
    pictures = torch.empty(len(cameras.times), cameras.height, cameras.width, 4)
    for time in np.unique(cameras.times):
        moment = clip.frame(0.0 if frozen else time * (clip.frame_count - 1))
        gaussians = [torch.from_numpy(np.ascontiguousarray(array)) for array in vars(moment).values()]
        for view in np.flatnonzero(cameras.times == time):
            at = slice(view, view + 1)
            pictures[at] = render(
                gaussians[0][None],
                gaussians[1][None],
                *gaussians[2:],
                colors,
                viewmats[at],
                intrinsics[at],
                cameras.width,
                cameras.height,
            )
    return encoded(pictures, clip.color_space)
