# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA engine: gsplat behind the same signature."""

from torch import Tensor

from backend.splatting.rasterize.arguments import Options, Scene
from backend.splatting.rasterize.gsplat_kernels import load_kernels


def rasterize_cuda(scene: Scene, options: Options) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Pictures [B, C, H, W, X], alphas [B, C, H, W, 1] and gsplat's own notes, with gradients to the scene's Gaussians.

    Depth is accumulated only; what is expected is left to the caller, as is the background.

    Raises:
        UserError: gsplat cannot be used on this computer.
    """
    load_kernels()  # at once, except for the first time
    from gsplat.rendering import rasterization

    size = scene.viewmats.shape[0]
    gaussians = {
        name: (tensor := getattr(scene, name)).expand(size, *tensor.shape[1:]).contiguous()
        for name in ("means", "quats", "scales", "opacities", "colors")
    }
    return rasterization(
        **gaussians,
        viewmats=scene.viewmats.contiguous(),
        Ks=scene.Ks.contiguous(),
        width=options.width,
        height=options.height,
        near_plane=options.near_plane,
        eps2d=options.eps2d,
        sh_degree=options.sh_degree,
        packed=False,  # faster for one object, and the only mode whose notes have one row per Gaussian
        render_mode=options.render_mode.replace("ED", "D"),
        rasterize_mode=options.rasterize_mode,
    )
