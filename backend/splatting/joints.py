# SPDX-License-Identifier: GPL-3.0-or-later
"""Joints: a tree of control points in which turning one carries along all that hang on it.

Limbs and wings swing as wholes and do not stretch. A single turn of a joint says so with three numbers, where the
control points of the limb would each have to find their way into depth, which pictures from one side hardly show.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from backend.splatting.control_points import ControlPoints

LOOSE = 3.0  # times the straight distance, and a little more: what a bridge between loose parts is taken to measure


@dataclass(frozen=True)
class Joints:
    """How B control points hang together."""

    parents: Tensor  # [B] int64; the root is its own
    bones: Tensor  # [B, 3] from the parent, at time 0
    path: Tensor  # [B, B] 1 where the column's point is on the way from the root to the row's, or is that one


def make_joints(control: ControlPoints) -> Joints:
    """The shortest ways along the surface from the point in the middle, which is the root."""
    points, edges = control.points.cpu().numpy(), control.edges.cpu().numpy()
    count = len(points)
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1) + 1e-6
    graph = csr_matrix((lengths, (edges[:, 0], edges[:, 1])), shape=(count, count))
    graph = graph.maximum(graph.T)
    apart = ~np.isfinite(dijkstra(graph, directed=False))
    if apart.any():
        bridges = LOOSE * np.linalg.norm(points[:, None] - points[None], axis=-1) + 0.1
        graph = csr_matrix(np.where(apart, bridges, graph.toarray()))
    root = int(dijkstra(graph, directed=False).max(axis=1).argmin())
    distances, before = dijkstra(graph, directed=False, indices=root, return_predecessors=True)
    before[root] = root
    path = np.eye(count, dtype=np.float32)
    for point in np.argsort(distances, kind="stable")[1:]:
        path[point] += path[before[point]]
    parents = torch.from_numpy(before.astype(np.int64))
    bones = torch.from_numpy(points - points[before])
    device = control.points.device
    return Joints(parents.to(device), bones.to(device), torch.from_numpy(path).to(device))


def carried(joints: Joints, turns: Tensor) -> Tensor:  # [T, B, 3] -> [T, B, 6]
    """What turns of the joints do to the control points: translation (clip space) and rotation rho of each.

    A point's rotation is q = normalize(1, rho / 2), rho the sum of all turns on the way to it. Bones keep their length.
    """
    rho = joints.path @ turns
    quats = torch.nn.functional.normalize(torch.cat([torch.ones_like(rho[..., :1]), rho / 2], dim=-1), dim=-1)
    w, axis = quats[:, joints.parents, :1], quats[:, joints.parents, 1:]
    bones = joints.bones.expand_as(axis)
    across = torch.linalg.cross(axis, bones)
    bent = 2 * (w * across + torch.linalg.cross(axis, across))  # what the parent's rotation changes of a bone
    return torch.cat([joints.path @ bent, rho], dim=-1)
