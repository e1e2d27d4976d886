# SPDX-License-Identifier: GPL-3.0-or-later
"""The functions of `motion_kernels` in torch, for tensors on a GPU; autograd differentiates them.

The blend of matrices is one matrix product with a dense table of weights: on a GPU that is faster than gathering four
poses per Gaussian, and its gradient needs no scattered additions.
"""

import torch
from torch import Tensor


def poses(offsets: Tensor, points: Tensor) -> Tensor:  # [T, B, 6], [B, 3] -> [T, B, 16]
    """Six numbers per control point -> pose about that point; see `motion_kernels.poses_forward`."""
    shift, rho = offsets[..., :3], offsets[..., 3:]
    w = 1 / (1 + (rho / 2).square().sum(dim=-1, keepdim=True)).sqrt()
    w, x, y, z = torch.cat([w, rho / 2 * w], dim=-1).unbind(-1)
    rows = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    )
    turned = _turn(rows, points)
    return torch.cat([rows, points + shift - turned, torch.stack([w, x, y, z], dim=-1)], dim=-1)


def blend(
    poses: Tensor,  # [T, B, 16]
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    index: Tensor,  # [N, k] int64
    weights: Tensor,  # [N, k]
) -> tuple[Tensor, Tensor]:  # [T, N, 3], [T, N, 4]
    """Gaussians moved by the weighted mean of their poses; see `motion_kernels.blend_forward`."""
    moments, bases = poses.shape[:2]
    table = poses.new_zeros(len(means), bases).scatter_add(1, index, weights)  # [N, B]
    matrices = table @ poses[..., :12]  # [T, N, 12]
    moved = _turn(matrices[..., :9], means) + matrices[..., 9:]

    own = poses[..., 12:]
    with torch.no_grad():  # a quaternion and its negative are one rotation: all on the side of the nearest pose's
        between = own @ own.mT  # [T, B, B]
        same_side = between[:, index[:, :1], index] >= 0  # [T, N, k]
    signed = torch.where(same_side, weights, -weights)
    four = own.index_select(1, index.reshape(-1)).view(moments, *index.shape, 4)
    return moved, multiply((signed[..., None] * four).sum(dim=2), quats)


def rigidity(
    poses: Tensor,  # [T, B, 16]
    points: Tensor,  # [B, 3]
    edges: Tensor,  # [E, 2] int64
    edge_weights: Tensor,  # [E]
    weight_length: float,
    weight_turn: float,
) -> Tensor:
    """As-rigid-as-possible energy between neighbouring control points; see `motion_kernels.rigidity`."""
    i, j = edges.unbind(1)
    rows, quats = poses[..., :9], poses[..., 12:]
    moved = _turn(rows, points) + poses[..., 9:12]
    stretch = moved[:, j] - moved[:, i] - _turn(rows[:, i], points[j] - points[i])
    turn = quats[:, i] - quats[:, j]
    energy = weight_length * stretch.square().sum(dim=-1) + weight_turn * turn.square().sum(dim=-1)
    return (edge_weights * energy).sum()


def _turn(rows: Tensor, points: Tensor) -> Tensor:  # [..., 9], [..., 3] -> [..., 3]
    """Rotation matrices, row by row, times points: three products and sums, which beats tiny matrix products."""
    return (rows.unflatten(-1, (3, 3)) * points[..., None, :]).sum(dim=-1)


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:  # [..., 4] wxyz, unit, [..., 3] -> [..., 3]
    """Vectors turned by quaternions."""
    axis = quats[..., 1:]
    cross = 2 * torch.linalg.cross(axis, vectors)
    return vectors + quats[..., :1] * cross + torch.linalg.cross(axis, cross)


def multiply(a: Tensor, b: Tensor) -> Tensor:  # [..., 4], [..., 4] wxyz -> [..., 4]
    """The product of quaternions."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
