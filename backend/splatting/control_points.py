# SPDX-License-Identifier: GPL-3.0-or-later
"""Control points of the motion: spread over the subject, tied to Gaussians along its surface.

Distances are geodesic (along the graph of nearest neighbours), so that a leg does not pull at the leg beside it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree
from torch import Tensor

from backend.compiled import kernel
from blender_addon.contract.clip import BASES_PER_GAUSSIAN

GRAPH_NEIGHBOURS = 8
EDGE_NEIGHBOURS = 8  # control points that rigidity ties to each control point
GRAPH_POINTS = 8_000  # of more Gaussians than these, some stand for all in the graph
CHUNK = 20_000  # Gaussians at a time
LONGEST_EDGE = 6.0  # times the median distance of neighbours; longer ones would bridge gaps


@dataclass(frozen=True)
class ControlPoints:
    """B control points, the N Gaussians that follow them, and which of them are neighbours. Float32 and int32."""

    points: Tensor  # [B, 3] clip space, at time 0
    index: Tensor  # [N, k] control points of each Gaussian, nearest first; k = 4 for clips
    weights: Tensor  # [N, k] sum 1
    edges: Tensor  # [E, 2] pairs i, j of neighbours
    edge_weights: Tensor  # [E] mean 1
    mean_square_edge: float  # mean squared length of the edges

    def to(self, device: torch.device) -> "ControlPoints":
        """The same on another device."""
        names = ("points", "index", "weights", "edges", "edge_weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def make_control_points(means: np.ndarray, count: int, each: int = BASES_PER_GAUSSIAN) -> ControlPoints:
    """Spread `count` control points over Gaussians at `means` [N, 3] float32, tie each Gaussian to its `each` nearest.

    With fewer Gaussians than `count`, each of them is a control point; there are never fewer than four of those.
    """
    count = max(min(count, len(means)), BASES_PER_GAUSSIAN)
    each = min(each, count)
    graph = means
    if len(means) > GRAPH_POINTS:
        graph = means[np.random.default_rng(0).permutation(len(means))[:GRAPH_POINTS]]
    chosen = farthest_points(graph, count)
    distances = geodesic_distances(graph, chosen)  # [B, G]
    between = distances[:, chosen]  # [B, B]
    np.fill_diagonal(between, 0)
    near = np.sort(between, axis=1)
    spacing = max(float(near[:, 1:4].mean()), 1e-6)

    index, weights = [], []
    for start in range(0, len(means), CHUNK):
        to_these = distances if graph is means else _reach(graph, distances, means[start : start + CHUNK])
        nearest = np.argpartition(to_these, each - 1, axis=0)[:each]  # [k, n]
        squared = np.square(np.take_along_axis(to_these, nearest, axis=0))
        order = np.argsort(squared, axis=0, kind="stable")
        nearest, squared = np.take_along_axis(nearest, order, axis=0), np.take_along_axis(squared, order, axis=0)
        weight = np.exp(-(squared - squared[:1]) / (2 * (0.7 * spacing) ** 2)) + 1e-9
        index.append(nearest.T)
        weights.append((weight / weight.sum(axis=0)).T)

    neighbours = min(EDGE_NEIGHBOURS, count - 1)
    partners = np.argsort(between, axis=1, kind="stable")[:, 1 : neighbours + 1]
    edges = np.stack([np.repeat(np.arange(count), neighbours), partners.reshape(-1)], axis=1)
    edge_weights = np.exp(-np.square(between[edges[:, 0], edges[:, 1]]) / (2 * (1.5 * spacing) ** 2))
    lengths = graph[chosen[edges[:, 1]]] - graph[chosen[edges[:, 0]]]
    return ControlPoints(
        points=_tensor(graph[chosen], np.float32),
        index=_tensor(np.concatenate(index), np.int32),
        weights=_tensor(np.concatenate(weights), np.float32),
        edges=_tensor(edges, np.int32),
        edge_weights=_tensor(edge_weights / edge_weights.mean(), np.float32),
        mean_square_edge=float(np.square(lengths).sum(axis=1).mean()),
    )


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype))


def _reach(graph: np.ndarray, distances: np.ndarray, points: np.ndarray) -> np.ndarray:  # [G, 3], [B, G], [n, 3]
    """Distances [B, n] to points beside the graph: through the nearest of three points on it."""
    steps, neighbours = cKDTree(graph).query(points, 3)
    return np.min([distances[:, neighbours[:, k]] + steps[:, k] for k in range(3)], axis=0)


def geodesic_distances(points: np.ndarray, sources: np.ndarray) -> np.ndarray:  # [N, 3], [B] -> [B, N]
    """Distances along the neighbour graph of `points` from those at `sources`.

    Between parts that the graph does not join, three times the straight distance and a little more, so that loose
    parts still have somebody to follow.
    """
    neighbours = min(GRAPH_NEIGHBOURS, len(points) - 1)
    distances, partners = cKDTree(points).query(points, neighbours + 1)
    distances, partners = distances[:, 1:], partners[:, 1:]
    kept = distances < LONGEST_EDGE * max(float(np.median(distances[:, : neighbours // 2 + 1])), 1e-9)
    rows = np.repeat(np.arange(len(points))[:, None], neighbours, axis=1)
    # Points at the same place: an edge of length 0 would count as no edge.
    lengths = np.maximum(distances[kept], 1e-9)
    graph = csr_matrix((lengths, (rows[kept], partners[kept])), shape=(len(points), len(points)))
    along = dijkstra(graph.maximum(graph.T), directed=False, indices=sources)
    straight = np.linalg.norm(points[sources][:, None] - points[None], axis=-1)
    return np.where(np.isfinite(along), along, 3 * straight + 0.1)


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:  # [M, 3] -> [count] int64
    """Indices of `count` points, each as far as can be from those before it; the first is farthest from the centre."""
    return _farthest_points(np.ascontiguousarray(points, np.float32), count)


@kernel("int64[::1](float32[:,::1], int64)")
def _farthest_points(points, count):
    total = points.shape[0]
    chosen = np.empty(count, np.int64)
    centre = np.zeros(3, np.float64)
    for i in range(total):
        for c in range(3):
            centre[c] += points[i, c] / total
    best, farthest = 0, -1.0
    for i in range(total):
        d = (points[i, 0] - centre[0]) ** 2 + (points[i, 1] - centre[1]) ** 2 + (points[i, 2] - centre[2]) ** 2
        if d > farthest:
            best, farthest = i, d
    nearest = np.full(total, np.float32(1e30))
    for k in range(count):
        chosen[k] = best
        x, y, z = points[best, 0], points[best, 1], points[best, 2]
        best, farthest_now = 0, np.float32(-1)
        for i in range(total):
            dx, dy, dz = points[i, 0] - x, points[i, 1] - y, points[i, 2] - z
            d = min(nearest[i], dx * dx + dy * dy + dz * dz)
            nearest[i] = d
            if d > farthest_now:
                best, farthest_now = i, d
    return chosen
