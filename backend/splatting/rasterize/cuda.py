# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA engine: gsplat behind the same signature."""

import functools
import threading
from collections.abc import Callable

from torch import Tensor

from backend.progress import UserError
from backend.splatting.rasterize.arguments import Scene

_lock = threading.Lock()  # the first import may compile for minutes; a second thread waits instead of doing the same


def rasterize_cuda(
    scene: Scene, width: int, height: int, near_plane: float, eps2d: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Colors [B, C, H, W, 3], alphas [B, C, H, W, 1] and gsplat's own notes, with gradients to the scene's Gaussians.

    Raises:
        UserError: gsplat cannot be used on this computer.
    """
    size = scene.viewmats.shape[0]
    gaussians = {
        name: (tensor := getattr(scene, name)).expand(size, *tensor.shape[1:]).contiguous()
        for name in ("means", "quats", "scales", "opacities", "colors")
    }
    with _lock:
        rasterization = _gsplat_rasterization()
    return rasterization(
        **gaussians,
        viewmats=scene.viewmats.contiguous(),
        Ks=scene.Ks.contiguous(),
        width=width,
        height=height,
        near_plane=near_plane,
        eps2d=eps2d,
        packed=False,  # faster for one object, and the only mode whose notes have one row per Gaussian
        rasterize_mode="classic",
    )


@functools.cache
def _gsplat_rasterization() -> Callable:
    """gsplat's function, once its CUDA part is known to be there."""
    hint = (
        "Install gsplat 1.5.3 with the CUDA toolkit (nvcc), a C++ compiler and ninja, as docs/user_guide.md describes, "
        "or choose the CPU as the device."
    )
    try:
        from gsplat.cuda._backend import _C
        from gsplat.rendering import rasterization
    except ImportError as error:
        raise UserError(
            "gsplat_missing", f"Splatting on the GPU needs gsplat, which is not installed ({error}).", hint
        ) from error
    except (RuntimeError, OSError) as error:  # the compiler of its kernels failed
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError("gsplat_broken", f"gsplat's CUDA kernels could not be compiled: {reason}.", hint) from error
    if _C is None:
        raise UserError(
            "gsplat_broken", "gsplat is installed, but it found no CUDA toolkit to compile its kernels.", hint
        )
    return rasterization
