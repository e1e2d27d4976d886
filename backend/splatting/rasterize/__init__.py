# SPDX-License-Identifier: GPL-3.0-or-later
"""Differentiable rasterization of 3D Gaussians: one signature, on the CPU by our kernels, on CUDA by gsplat.

    colors, alphas, meta = rasterize(means, quats, scales, opacities, colors, viewmats, Ks, width, height)

`warm_up` compiles the CPU kernels ahead of time, `set_threads` says how many cores they use.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from backend.splatting.rasterize.arguments import Options, checked_backgrounds, checked_scene
from backend.splatting.rasterize.threads import get_threads, set_threads

__all__ = ["get_threads", "rasterize", "set_threads", "warm_up"]

TINY_ALPHA = 1e-10  # below, the expected depth is 0


def rasterize(
    means: Tensor,  # [..., N, 3]
    quats: Tensor,  # [..., N, 4] wxyz
    scales: Tensor,  # [..., N, 3]
    opacities: Tensor,  # [..., N]
    colors: Tensor,  # [..., N, D]; with sh_degree [..., N, K, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
    Ks: Tensor,  # noqa: N803 - [..., C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,  # broadcasts to [..., C, D]
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
) -> tuple[Tensor, Tensor, dict]:
    """Draw Gaussians as seen by cameras; differentiable in means, quats, scales, opacities, colors and backgrounds.

    The contract is that of `gsplat.rasterization` (pinhole, N Gaussians, C cameras each). Leading dimensions, usually
    time, broadcast: with means [T, N, 3], colors [N, 3] and viewmats [T, 1, 4, 4], T clouds of the same colors are each
    seen by their own camera, in one call. All tensors are float32 and on one device.

    Args:
        means: positions in world units.
        quats: orientations, of any length above 0; normalized inside.
        scales: standard deviations along the Gaussian's own axes, world units, linear.
        opacities: 0..1, linear.
        colors: D channels of any range and meaning, drawn as they are: RGB, features, tracks. Or, with `sh_degree`,
            RGB as K coefficients of spherical harmonics.
        viewmats: world to camera, OpenCV axes (x right, y down, z forward).
        Ks: intrinsics in pixels; the first pixel's center is at (0.5, 0.5); no skew.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        near_plane: Gaussians whose center is nearer than this are not drawn.
        eps2d: added to the diagonal of the 2D covariance, so that nothing is thinner than about a pixel (pixels^2).
        sh_degree: 0 to 4, of the harmonics in use; the others of the K have no say. The color of a Gaussian is
            max(0, 0.5 + sum of the harmonics in the direction from the camera's center to its mean).
        backgrounds: what shows through where alpha is below 1; nothing by default. Depth has none.
        render_mode: what is drawn: "RGB" the colors; "D" depth along the camera's axis, accumulated like a color;
            "ED" the expected depth, which is that divided by alpha; "RGB+D" and "RGB+ED" colors, then depth.
        rasterize_mode: "classic", or "antialiased": opacities are multiplied by sqrt(det(S) / det(S + eps2d I)), S the
            2D covariance, so that `eps2d` makes nothing brighter (Yu et al., "Mip-Splatting", 2024, equation 9).

    Returns:
        pictures [..., C, H, W, X], premultiplied by alpha (plus background if given), X being D (3 with `sh_degree`), 1
        or one more than D; alphas [..., C, H, W, 1]; and notes without gradients: means2d [..., C, N, 2], conics
        [..., C, N, 3], depths [..., C, N], radii [..., C, N, 2].

    The results do not depend on the number of threads, and are the same each time, to the last bit (CPU). Gaussians
    whose projection is not finite are not drawn. Any Python thread may call this at any time.

    Raises:
        ValueError: a shape, dtype, device or number does not fit; says which.
        UserError: CUDA tensors, and gsplat cannot be used on this computer.
    """
    tensors = {
        "means": means,
        "quats": quats,
        "scales": scales,
        "opacities": opacities,
        "colors": colors,
        "viewmats": viewmats,
        "Ks": Ks,
    }
    options = Options(width, height, near_plane, eps2d, sh_degree, render_mode, rasterize_mode)
    scene = checked_scene(tensors, options)
    cameras = scene.viewmats.shape[1]
    if means.is_cuda:
        from backend.splatting.rasterize.cuda import rasterize_cuda

        pictures, alphas, notes = rasterize_cuda(scene, options)
        meta = {name: notes[name].detach() for name in ("means2d", "conics", "depths", "radii")}
        meta = {name: note.reshape(*scene.batch, cameras, *note.shape[2:]) for name, note in meta.items()}
    else:
        from backend.splatting.rasterize.cpu import describe, rasterize_cpu

        pictures, alphas, splats = rasterize_cpu(scene, options)
        meta = describe(splats.view(*scene.batch, cameras, *splats.shape[1:]))
    shape = (*scene.batch, cameras, height, width)
    pictures, alphas = pictures.reshape(*shape, pictures.shape[-1]), alphas.reshape(*shape, 1)
    if backgrounds is not None and options.draws_colors:
        channels = pictures.shape[-1] - options.draws_depth
        behind = checked_backgrounds(backgrounds, scene, channels).reshape(*scene.batch, cameras, 1, 1, channels)
        pictures = pictures + (1 - alphas) * torch.nn.functional.pad(behind, (0, int(options.draws_depth)))
    if render_mode.endswith("ED"):
        depth = pictures[..., -1:] / alphas.clamp_min(TINY_ALPHA)
        pictures = torch.cat([pictures[..., :-1], depth], dim=-1)
    return pictures, alphas, meta


def warm_up(on_message: Callable[[str], None] | None = None) -> None:
    """Compile all CPU kernels of what is imported unless this computer has them already (once, up to a minute).

    `on_message` hears a sentence per kernel. Splatting's own are always among them.
    """
    from backend.compiled import compile_all
    from backend.splatting import control_points, losses, motion_kernels  # noqa: F401 - these register all kernels
    from backend.splatting.rasterize import cpu  # noqa: F401

    compile_all(on_message)
