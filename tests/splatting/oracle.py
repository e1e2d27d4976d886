# SPDX-License-Identifier: GPL-3.0-or-later
"""The slow truth: gsplat's own torch projection and a dense compositor, differentiated by autograd, in float64.

gsplat 1.5.3 (Apache-2.0) is a test dependency here; only its pure torch functions are used.
"""

import math

import torch
from torch import Tensor

MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE = 0.999, 1 / 255, 1e-4  # as in gsplat's CUDA sources


def rasterize_dense(
    means: Tensor,  # [N, 3] float64, and so on: one cloud
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # noqa: N803 - [3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [H, W, X] and alphas [H, W, 1] of one cloud in one camera, and how near each pixel is to a cut-off.

    The third result [H, W] is the smallest relative distance of any contribution in that pixel to one of the two
    cut-offs, where the picture is not continuous: below 1e-5 or so, float32 may fall on the other side.
    """
    from gsplat.cuda._torch_impl import (
        _fully_fused_projection,
        _quat_scale_to_covar_preci,
        _spherical_harmonics,
    )

    covars, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    _, means2d, depths, conics, compensations = _fully_fused_projection(
        means, covars, viewmat[None], K[None], width, height, eps2d, near_plane, calc_compensations=True
    )
    if rasterize_mode == "antialiased":
        opacities = opacities * compensations[0]
    if sh_degree is not None:
        directions = means - viewmat.inverse()[:3, 3]
        colors = (_spherical_harmonics(sh_degree, directions, colors) + 0.5).clamp_min(0)
    if render_mode in ("D", "ED"):
        colors = depths[0][:, None]
    elif render_mode != "RGB":
        colors = torch.cat([colors, depths[0][:, None]], dim=-1)
    in_front = torch.nonzero(depths[0] > near_plane)[:, 0]
    order = in_front[torch.argsort(depths[0][in_front], stable=True)]
    means2d, conics, opacities, colors = means2d[0, order], conics[0, order], opacities[order], colors[order]

    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dx = x.reshape(-1, 1).to(means2d) - means2d[:, 0]  # [P, N]
    dy = y.reshape(-1, 1).to(means2d) - means2d[:, 1]
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
    margin = (alpha / MIN_ALPHA - 1).abs()
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0)
    after = torch.cumprod(1 - alpha, dim=1)  # falls, so that all that follows the first stop is cut as well
    margin = torch.minimum(margin, (after / MIN_TRANSMITTANCE - 1).abs())
    alpha = torch.where(after > MIN_TRANSMITTANCE, alpha, 0)
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weights = alpha * before
    nearest = margin.amin(dim=1) if margin.shape[1] else torch.full((width * height,), math.inf)
    pictures, alphas = weights @ colors, weights.sum(dim=1, keepdim=True)
    if render_mode.endswith("ED"):
        pictures = torch.cat([pictures[:, :-1], pictures[:, -1:] / alphas.clamp_min(1e-10)], dim=-1)
    return (
        pictures.view(height, width, -1),
        alphas.view(height, width, 1),
        nearest.view(height, width),
    )


def bumpy_sphere(count: int, seed: int = 0) -> list[Tensor]:
    """Means, quats, scales, opacities, colors (float64): an uneven surface that fills most of the picture."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    direction = torch.nn.functional.normalize(normal(count, 3), dim=-1)
    radius = 0.75 + 0.12 * torch.sin(5 * direction[:, :1]) * torch.cos(4 * direction[:, 1:2])
    spacing = math.sqrt(4 * math.pi * 0.75**2 / count)
    scales = spacing * (0.35 + 0.9 * uniform(count, 3)) * torch.tensor([0.4, 1.0, 1.0], dtype=torch.float64)
    quats = normal(count, 4)
    return [
        direction * radius + 0.01 * normal(count, 3),
        quats,
        scales,
        0.08 + 0.9 * uniform(count),
        uniform(count, 3),
    ]


def camera(
    width: int, height: int, distance: float = 3.0, azimuth: float = 0.0, degrees: float = 35.0
) -> tuple[Tensor, Tensor]:
    """A view matrix [4, 4] that looks at the origin and intrinsics [3, 3] (float64)."""
    cos, sin = math.cos(azimuth), math.sin(azimuth)
    viewmat = torch.tensor(
        [[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, distance], [0, 0, 0, 1]], dtype=torch.float64
    )
    focal = 0.5 * width / math.tan(math.radians(degrees) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)  # noqa: N806
    return viewmat, K
