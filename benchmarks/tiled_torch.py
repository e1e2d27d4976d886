# SPDX-License-Identifier: GPL-3.0-or-later
"""The rasterizer as one would write it in plain torch: per tile a dense compositor, gradients by autograd.

What our kernels are compared with. Same image formation, same tile lists, float32.
"""

import torch
from torch import Tensor

TILE = 16
MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE = 0.999, 1 / 255, 1e-4


def rasterize_tiled(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # noqa: N803 - [3, 3]
    width: int,
    height: int,
) -> Tensor:  # [H, W, 4], color multiplied by alpha, and alpha
    """Draw one cloud in one camera; differentiable."""
    means2d, conics, depths, variances = project(means, quats, scales, viewmat, K, width, height)
    with torch.no_grad():
        reach = torch.sqrt(2 * torch.log((255 * opacities).clamp_min(1)))[:, None]
        extents = torch.where((depths > 0.01)[:, None], reach * variances.sqrt(), -1.0)
    entries, counts = list_tiles(means2d, extents, depths, width, height)
    columns, rows = -(-width // TILE), -(-height // TILE)

    steps = torch.arange(TILE) + 0.5
    y, x = (axis.reshape(-1, 1) for axis in torch.meshgrid(steps, steps, indexing="ij"))
    packed = torch.cat([means2d, conics, opacities[:, None], colors], dim=1)
    pictures = []
    for tile, splats in enumerate(packed[entries].split(counts)):
        dx = x + TILE * (tile % columns) - splats[:, 0]  # [256, n]
        dy = y + TILE * (tile // columns) - splats[:, 1]
        sigma = 0.5 * (splats[:, 2] * dx * dx + splats[:, 4] * dy * dy) + splats[:, 3] * dx * dy
        alpha = (splats[:, 5] * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
        alpha = alpha * (alpha >= MIN_ALPHA)
        after = torch.cumprod(1 - alpha, dim=1)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
        weights = alpha * before * (after > MIN_TRANSMITTANCE)
        pictures.append(torch.cat([weights @ splats[:, 6:], weights.sum(dim=1, keepdim=True)], dim=1))
    grid = torch.stack(pictures).view(rows, columns, TILE, TILE, 4).transpose(1, 2)
    return grid.reshape(rows * TILE, columns * TILE, 4)[:height, :width]


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmat: Tensor,
    K: Tensor,  # noqa: N803
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means2d [N, 2], conics [N, 3], depths [N], variances along x and y [N, 2] (EWA, pinhole)."""
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    focal, center = torch.stack([K[0, 0], K[1, 1]]), K[:2, 2]
    size = torch.tensor([width, height], dtype=means.dtype)
    local = means @ rotation.T + translation
    depths = local[:, 2]
    slopes = local[:, :2] / depths[:, None]
    margin = 0.15 * size / focal
    clamped = torch.minimum(torch.maximum(slopes, -center / focal - margin), (size - center) / focal + margin)
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    axes = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).view(-1, 3, 3)
    spread = (rotation @ axes) * scales[:, None, :]  # [N, 3, 3]
    plane = (focal / depths[:, None])[..., None] * (spread[:, :2] - clamped[..., None] * spread[:, 2:])  # [N, 2, 3]
    xx, yy = ((plane * plane).sum(dim=-1) + 0.3).unbind(-1)
    xy = (plane[:, 0] * plane[:, 1]).sum(dim=-1)
    conics = torch.stack([yy, -xy, xx], dim=-1) / (xx * yy - xy * xy)[:, None]
    return focal * slopes + center, conics, depths.detach(), torch.stack([xx, yy], dim=-1).detach()


@torch.no_grad()
def list_tiles(means2d: Tensor, extents: Tensor, depths: Tensor, width: int, height: int) -> tuple[Tensor, list[int]]:
    """The splats of every tile, front to back: one list, and how many belong to each tile."""
    tiles = torch.tensor([-(-width // TILE), -(-height // TILE)])
    zero = torch.zeros_like(tiles)
    first = torch.minimum(torch.maximum(((means2d - extents) / TILE).floor().long(), zero), tiles)
    end = torch.minimum(torch.maximum(((means2d + extents) / TILE).floor().long() + 1, zero), tiles)
    spans = (end - first).clamp_min(0) * (extents >= 0)
    counts = spans.prod(dim=1)
    splats = torch.repeat_interleave(torch.arange(len(counts)), counts)
    within = torch.arange(len(splats)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    column = first[splats, 0] + within % spans[splats, 0]
    row = first[splats, 1] + within // spans[splats, 0]
    tile = row * tiles[0] + column
    rank = torch.empty_like(counts)
    rank[torch.argsort(depths)] = torch.arange(len(counts))
    order = torch.argsort(tile * len(counts) + rank[splats])
    return splats[order], torch.bincount(tile, minlength=int(tiles.prod())).tolist()
