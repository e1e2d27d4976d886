# SPDX-License-Identifier: GPL-3.0-or-later
"""Where bits of a surface are at all times, where its faces come, go, grow or are made anew.

As long as a part of the subject keeps its faces, its points are the same ones and are followed exactly. Where it gets
others, what was there stays where it is as far as the new surface runs there, is drawn onto it where it runs near by,
and ends where it does not; what the new surface has beside that begins there.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from backend.splatting.spread import neighbour_distances, spread
from blender_addon.contract import rotations
from blender_addon.contract.surface import SurfacePieces

STAYS, MOST_STAY = 0.25, 0.5  # spacings from where a surface was, that count as none; share of it from which it stays
DRAWN, DRAWN_AFAR = 0.5, 1.5  # spacings by which what stays is drawn onto the new faces, and what was moved along
SAME_SIDE = 0.3  # least cosine between the normals of both
APART, COVERED = 0.35, 0.85  # spacings: nearer neighbours are one too many; farther off is a gap
RANDOM_SPACING = 0.73  # mean distance to the three nearest ones of points drawn by chance, one to a unit of area
LEAST_SIZE = 0.02
MOST = 3  # times as many tracks as were asked for; where there would be more they stand farther apart
PARTNER = 5  # the neighbour, by distance, that tells how the surface turns about its normal
MATCHED = 600  # points of the former surface and of the new one that are matched, where a whole surface has moved
FLOW = 6  # of these, the nearest ones along which the others move


@dataclass(frozen=True)
class Tracks:
    """S small discs of a surface at T even times from 0 to 1. Float32, clip space."""

    means: np.ndarray  # [T, S, 3]
    quats: np.ndarray  # [T, S, 4] wxyz, unit; they turn +Z into the outward normal
    sizes: np.ndarray  # [T, S] above 0, at most 1: how long the surface is there, beside the greatest length
    there: np.ndarray  # [T, S] bool
    homes: np.ndarray  # [S] int64: the time at which each is to be described
    spacing: float  # of neighbours, where the size is 1

    def at_home(self) -> tuple[np.ndarray, np.ndarray]:  # [S, 3], [S, 4]
        """Where each of them is at its own time."""
        each = self.homes, np.arange(len(self.homes))
        return self.means[each], self.quats[each]

    def normals(self) -> np.ndarray:  # [T, S, 3]
        """Outward normals."""
        return rotations.to_matrix(self.quats)[..., 2]


class _End(NamedTuple):
    """What was there when a piece ended."""

    time: int  # after its last one
    ids: np.ndarray  # [n]
    means: np.ndarray  # [n, 3]
    quats: np.ndarray  # [n, 4]


@dataclass
class _Growing:
    """What is known so far, piece by piece."""

    share: float  # of the points that begin a track
    spacing: float  # the side of a square of the surface with one track
    rng: np.random.Generator
    count: int = 0
    rows: list[tuple] = field(default_factory=list)  # first time, ids [n], means, quats, sizes [L, n, ...]
    ends: dict[int, _End] = field(default_factory=dict)  # by part


def make_tracks(pieces: SurfacePieces, count: int, still: int, seed: int) -> Tracks:
    """About `count` tracks where the surface is largest, and at most `MOST` times as many in all.

    still: the time at which pictures show it from all sides.
    """
    dense = pieces.at(still)[0]
    apart = max(float(np.median(neighbour_distances(dense))) / RANDOM_SPACING, 1e-4)
    share = count / len(dense)
    while True:
        growing = _Growing(share, apart / share**0.5, np.random.default_rng(seed))
        for index in np.argsort(pieces.spans[:, 1], kind="stable"):
            _grow(growing, pieces, int(index))
        if growing.count <= MOST * count:
            return _assembled(growing, int(pieces.times), still)
        share *= 0.9 * MOST * count / growing.count


def _grow(growing: _Growing, pieces: SurfacePieces, index: int) -> None:
    part, first, length, _ = (int(number) for number in pieces.spans[index])
    points, normals, sizes = pieces.piece(index)
    end = growing.ends.get(part)
    end = end if end is not None and end.time == first and len(end.ids) and sizes[0].any() else None
    nothing = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 4))
    ids, near, offsets, quats = _gone_on(growing, end, points[0], normals[0], sizes[0]) if end else nothing
    born, apart = _born(growing, points, sizes, normals, points[0, near] + offsets if end else None)
    if not len(near) + len(born):
        return
    offsets = np.concatenate([offsets / np.maximum(sizes[0, near, None], LEAST_SIZE), apart])
    ids = np.concatenate([ids, growing.count + np.arange(len(born))])
    growing.count += len(born)
    near = np.concatenate([near, born])
    quats = np.concatenate([quats, _upright(normals[0, born])])
    turns = _turns(points, normals, near)
    there = sizes[:, near]
    means = points[:, near] + there[..., None] * _rotated(turns, offsets)  # offsets are those of the full size
    quats = rotations.multiply(turns, quats)
    growing.rows.append((first, ids, means, quats, there))
    alive = there[-1] > 0
    growing.ends[part] = _End(first + length, ids[alive], means[-1, alive], quats[-1, alive])


def _gone_on(
    growing: _Growing, end: _End, points: np.ndarray, normals: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What was there on the former faces and goes on: ids, point of the new ones that each follows, offset, quats."""
    _, ids, means, quats = end
    spacing, up = growing.spacing, rotations.to_matrix(quats)[..., 2]
    real = np.flatnonzero(sizes > 0)
    points, normals = points[real], normals[real]
    near, height = _onto(means, up, points, normals)
    drawn = DRAWN
    if (np.abs(height) < STAYS * spacing).mean() < MOST_STAY:
        drawn = DRAWN_AFAR
        means = means + _flow(means, points, growing.rng)
        near, height = _onto(means, up, points, normals)
    off = _along(means - points[near], normals[near])
    goes_on = (np.abs(height) < drawn * spacing) & (np.linalg.norm(off, axis=1) < DRAWN_AFAR * spacing)
    goes_on &= (normals[near] * up).sum(axis=1) > SAME_SIDE
    goes_on[goes_on] = _first_in_cells(points[near[goes_on]] + off[goes_on], APART * spacing)
    near, up = near[goes_on], up[goes_on]
    return ids[goes_on], real[near], off[goes_on], rotations.multiply(_between(up, normals[near]), quats[goes_on])


def _onto(
    means: np.ndarray, up: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # [N], [N]
    """The nearest of points that face the same way, and how high over it."""
    found = cKDTree(points).query(means, min(4, len(points)))[1].reshape(len(means), -1)
    first = (np.einsum("nkc,nc->nk", normals[found], up) > SAME_SIDE).argmax(axis=1)
    near = found[np.arange(len(means)), first]
    return near, ((means - points[near]) * normals[near]).sum(axis=1)


def _flow(means: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # [N, 3]
    """How a surface has moved that has got other faces: as little as brings all of it onto the new one."""
    before, after = (some[rng.permutation(len(some))[:MATCHED]] for some in (means, points))
    rows, columns = linear_sum_assignment(np.square(before[:, None] - after).sum(axis=-1))
    before, ways = before[rows], after[columns] - before[rows]
    near = cKDTree(before).query(means, min(FLOW, len(before)))[1].reshape(len(means), -1)
    return ways[near].mean(axis=1)


def _born(
    growing: _Growing, points: np.ndarray, sizes: np.ndarray, normals: np.ndarray, others: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Points [L, n, 3] of a piece at which tracks begin, where no others are near, and how far beside these."""
    largest = sizes.argmax(axis=0), np.arange(sizes.shape[1])
    share = growing.share * sizes.shape[1]
    count = max(round(share), int(growing.rng.random() < share))  # of many small pieces only some get one
    born, apart = spread(points[largest], normals[largest], count, growing.rng)
    if others is not None and len(others):
        free = cKDTree(others).query(points[0, born])[0] > COVERED * growing.spacing
        born, apart = born[free], apart[free]
    return born, apart


def _turns(points: np.ndarray, normals: np.ndarray, chosen: np.ndarray) -> np.ndarray:  # [L, n, 3] x 2 -> [L, m, 4]
    """How the surface round each of the chosen points [m] has turned since the first moment."""
    length, count = len(points), len(chosen)
    if length == 1:
        return np.tile([1.0, 0.0, 0.0, 0.0], (1, count, 1))
    widest = points[points.std(axis=1).sum(axis=1).argmax()]
    neighbours = cKDTree(widest).query(widest[chosen], min(PARTNER + 1, len(widest)))[1]
    partner, normals = neighbours.reshape(count, -1)[:, -1], normals[:, chosen]
    ahead = _along(points[:, partner] - points[:, chosen], normals)
    clear = np.linalg.norm(ahead, axis=-1) > 1e-6
    if not clear.all():  # where all lies in one point, as it was before or will be, or anywhere
        known = np.where(clear, np.arange(length)[:, None], -1)
        known = np.maximum.accumulate(known)
        known = np.where(known < 0, clear.argmax(axis=0), known)
        ahead = _along(ahead[known, np.arange(count)], normals)
        short = np.linalg.norm(ahead, axis=-1) < 1e-6
        ahead[short] = _along(np.roll(normals[short], 1, axis=-1) + np.array([0.0, 0.0, 1e-3]), normals[short])
    tangents = ahead / np.maximum(np.linalg.norm(ahead, axis=-1, keepdims=True), 1e-9)
    frames = np.stack([tangents, np.cross(normals, tangents), normals], axis=-1)
    return rotations.from_matrix(np.einsum("tnij,nkj->tnik", frames, frames[0]))


def _assembled(growing: _Growing, times: int, still: int) -> Tracks:
    """All rows as arrays. Before and after its life a track is where it was at its beginning or end."""
    total = growing.count
    means, quats = np.zeros((times, total, 3), np.float32), np.zeros((times, total, 4), np.float32)
    sizes, lives = np.zeros((times, total), np.float32), np.zeros((times, total), bool)
    for first, ids, some_means, some_quats, some_sizes in growing.rows:
        part = np.ix_(range(first, first + len(some_means)), ids)
        means[part], quats[part], sizes[part], lives[part] = some_means, some_quats, some_sizes, True
    first, last = lives.argmax(axis=0), times - 1 - lives[::-1].argmax(axis=0)
    held = np.arange(times)[:, None].clip(first, last), np.arange(total)
    there = sizes > 0
    latest = np.maximum.accumulate(np.where(there, np.arange(times)[:, None], -1))
    sized = np.where(latest < 0, there.argmax(axis=0), latest), np.arange(total)  # what is hidden does not shrink
    away = np.abs(np.arange(times) - still)[:, None] / times
    return Tracks(
        means=means[held],
        quats=rotations.make_continuous(rotations.normalize(quats[held])).astype(np.float32),
        sizes=np.maximum(sizes[sized], LEAST_SIZE),
        there=there,
        homes=np.where(there, sizes - 1e-2 * away, -1).argmax(axis=0),
        spacing=RANDOM_SPACING * growing.spacing,
    )


def _first_in_cells(points: np.ndarray, size: float) -> np.ndarray:  # [N, 3] -> [N] bool
    """Of points that share a cell of a grid the first one."""
    cells = np.floor(points / size).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    kept = np.zeros(len(points), bool)
    kept[first] = True
    return kept


def _along(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:  # [N, 3] x 2 -> [N, 3]
    """The part of vectors that lies in the surface."""
    return vectors - (vectors * normals).sum(axis=-1, keepdims=True) * normals


def _upright(normals: np.ndarray) -> np.ndarray:  # [N, 3] -> [N, 4]
    """The rotations that turn +Z into normals."""
    return _between(np.broadcast_to(np.array([0.0, 0.0, 1.0]), normals.shape), normals)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [N, 3] x 2 -> [N, 4]
    """The shortest rotations from one direction to another."""
    quats = np.concatenate([1 + (a * b).sum(axis=-1, keepdims=True), np.cross(a, b)], axis=-1)
    opposite = quats[:, 0] < 1e-6
    some = np.where(np.abs(a[opposite, :1]) < 0.7, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    quats[opposite, 1:] = np.cross(a[opposite], some)  # half a turn about any axis across it
    return rotations.normalize(quats)


def _rotated(quats: np.ndarray, vectors: np.ndarray) -> np.ndarray:  # [..., 4], [..., 3] -> [..., 3]
    return np.einsum("...ij,...j->...i", rotations.to_matrix(quats), np.broadcast_to(vectors, (*quats.shape[:-1], 3)))
