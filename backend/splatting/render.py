# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of Gaussians and of clips, through the rasteriser that this computer has."""

import numpy as np
import torch
from torch import Tensor

from backend.splatting.color import encoded
from backend.splatting.rasterize import rasterize
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import Cameras

EPS2D = 0.02  # pixel^2: the Gaussians of clips carry the blur of a pixel themselves (`GaussianParameters.blur`)


def render(
    means: Tensor,  # [T, N, 3]
    quats: Tensor,  # [T, N, 4] wxyz
    scales: Tensor,  # [N, 3] or [T, N, 3]
    opacities: Tensor,  # [N] or [T, N]
    colors: Tensor,  # [N, D] or [T, N, D]; with sh_degree [N, K, 3] or [T, N, K, 3]
    viewmats: Tensor,  # [T, 4, 4]
    Ks: Tensor,  # noqa: N803 - [T, 3, 3]
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    depth: bool = False,
) -> Tensor:  # [T, H, W, 4 or more]
    """One picture for each of T moments: RGB, alpha, then further channels, all but alpha itself multiplied by alpha.

    Further channels are those of `colors` beyond three and, if `depth` is asked for, last the depth along the camera's
    axis. Differentiable in the Gaussians.

    Args:
        means: clip space.
        quats: of any length above 0.
        scales: linear standard deviations, clip space.
        opacities: 0..1.
        colors: RGB, and whatever else is to be drawn with it; or coefficients of spherical harmonics.
        viewmats: world to camera, OpenCV axes.
        Ks: intrinsics, pixels.
        width: pixels.
        height: pixels.
        sh_degree: of `colors`, 0 to 4; None where they are no coefficients.
        depth: whether to draw the depth, too.
    """
    pictures, alphas, _ = rasterize(
        means,
        quats,
        scales,
        opacities,
        colors,
        viewmats[:, None],
        Ks[:, None],
        width,
        height,
        eps2d=EPS2D,
        sh_degree=sh_degree,
        render_mode="RGB+D" if depth else "RGB",
    )
    return torch.cat([pictures[..., :3], alphas, pictures[..., 3:]], dim=-1)[:, 0]


@torch.no_grad()
def render_clip(clip: Clip, cameras: Cameras, frozen: bool = False) -> Tensor:  # [V, H, W, 4]
    """The clip from each camera at that camera's time (0 is the first frame, 1 the last).

    Colour is multiplied by alpha and sRGB-coded, like the pictures that clips are constructed from: a clip of linear
    light is drawn in that and converted.
    `frozen` shows the first frame at all times.
    """
    viewmats = torch.from_numpy(cameras.viewmats()).float()
    intrinsics = torch.from_numpy(cameras.Ks).float()
    pictures = torch.empty(len(cameras.times), cameras.height, cameras.width, 4)
    for time in np.unique(cameras.times):
        moment = clip.frame(0.0 if frozen else time * (clip.frame_count - 1))
        arrays = (moment.means, moment.quats, moment.scales, moment.opacities, clip.sh)
        views = torch.from_numpy(np.flatnonzero(cameras.times == time))
        colors, alphas, _ = rasterize(
            *(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays),
            viewmats[views],
            intrinsics[views],
            cameras.width,
            cameras.height,
            eps2d=EPS2D,
            sh_degree=clip.sh_degree,
        )
        pictures[views] = torch.cat([colors, alphas], dim=-1)
    return encoded(pictures, clip.color_space)
