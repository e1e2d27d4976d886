# SPDX-License-Identifier: GPL-3.0-or-later
"""Differentiable rasterization of 3D Gaussians: one signature, on the CPU by our kernels, on CUDA by gsplat.

    colors, alphas, meta = rasterize(means, quats, scales, opacities, colors, viewmats, Ks, width, height)

`warm_up` compiles the CPU kernels ahead of time, `set_threads` says how many cores they use.
"""

from collections.abc import Callable

from torch import Tensor

from backend.splatting.rasterize.arguments import checked_backgrounds, checked_scene
from backend.splatting.rasterize.threads import get_threads, set_threads

__all__ = ["get_threads", "rasterize", "set_threads", "warm_up"]


def rasterize(
    means: Tensor,  # [..., N, 3]
    quats: Tensor,  # [..., N, 4] wxyz
    scales: Tensor,  # [..., N, 3]
    opacities: Tensor,  # [..., N]
    colors: Tensor,  # [..., N, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
    Ks: Tensor,  # noqa: N803 - [..., C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,  # broadcasts to [..., C, 3]
) -> tuple[Tensor, Tensor, dict]:
    """Draw Gaussians as seen by cameras; differentiable in means, quats, scales, opacities, colors and backgrounds.

    The contract is that of `gsplat.rasterization` (classic mode, pinhole, N Gaussians, C cameras each). Leading
    dimensions, usually time, broadcast: with means [T, N, 3], colors [N, 3] and viewmats [T, 1, 4, 4], T clouds of the
    same colors are each seen by their own camera, in one call. All tensors are float32 and on one device.

    Args:
        means: positions in world units.
        quats: orientations, of any length above 0; normalized inside.
        scales: standard deviations along the Gaussian's own axes, world units, linear.
        opacities: 0..1, linear.
        colors: of any range; the pictures are in the same color space.
        viewmats: world to camera, OpenCV axes (x right, y down, z forward).
        Ks: intrinsics in pixels; the first pixel's center is at (0.5, 0.5); no skew.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        near_plane: Gaussians whose center is nearer than this are not drawn.
        eps2d: added to the diagonal of the 2D covariance, so that nothing is thinner than about a pixel (pixels^2).
        backgrounds: what shows through where alpha is below 1; nothing by default.

    Returns:
        colors [..., C, H, W, 3], premultiplied by alpha (plus background if given); alphas [..., C, H, W, 1]; and notes
        without gradients: means2d [..., C, N, 2], conics [..., C, N, 3], depths [..., C, N], radii [..., C, N, 2].

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
    scene = checked_scene(tensors, width, height, near_plane, eps2d)
    cameras = scene.viewmats.shape[1]
    if means.is_cuda:
        from backend.splatting.rasterize.cuda import rasterize_cuda

        pictures, alphas, notes = rasterize_cuda(scene, width, height, near_plane, eps2d)
        meta = {name: notes[name].detach() for name in ("means2d", "conics", "depths", "radii")}
        meta = {name: note.reshape(*scene.batch, cameras, *note.shape[2:]) for name, note in meta.items()}
    else:
        from backend.splatting.rasterize.cpu import describe, rasterize_cpu

        pictures, alphas, splats = rasterize_cpu(scene, width, height, near_plane, eps2d)
        meta = describe(splats.view(*scene.batch, cameras, *splats.shape[1:]))
    shape = (*scene.batch, cameras, height, width)
    pictures, alphas = pictures.reshape(*shape, 3), alphas.reshape(*shape, 1)
    if backgrounds is not None:
        behind = checked_backgrounds(backgrounds, scene).reshape(*scene.batch, cameras, 1, 1, 3)
        pictures = pictures + (1 - alphas) * behind
    return pictures, alphas, meta


def warm_up(on_message: Callable[[str], None] | None = None) -> None:
    """Compile the CPU kernels unless this computer has them already (about 15 s, once); `on_message` hears of it."""
    from backend.splatting import control_points, motion_kernels  # noqa: F401 - these register all kernels
    from backend.splatting.rasterize import cpu  # noqa: F401
    from backend.splatting.rasterize.compiled import compile_all

    compile_all(on_message)
