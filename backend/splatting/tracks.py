# SPDX-License-Identifier: GPL-3.0-or-later
"""Where bits of a surface are at all times, where its faces come, go, grow or are made anew.

As long as a part of the subject keeps its faces, its points are the same ones and are followed exactly. Where it gets
others, what was there stays where it is as far as the new surface runs there, is drawn onto it where it runs near by,
and ends where it does not; what the new surface has beside that begins there.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from blender_addon.contract import rotations
from blender_addon.contract.surface import SurfacePieces

REACH = 0.04  # clip space: how far a new surface may lie from what is drawn onto it
SAME_SIDE = 0.3  # least cosine between the normals of both
APART, COVERED = 0.5, 0.7  # of the usual distance of neighbours: nearer ones are one too many; farther off is a gap
RANDOM_SPACING = 0.73  # mean distance to the three nearest ones of points drawn by chance, one to a unit of area
LEAST_SIZE = 0.02
MOST = 2.5  # times as many tracks as were asked for; what has lived least is left out
NEIGHBOURS = 5  # the last of these tells how the surface turns about its normal


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


@dataclass
class _Growing:
    """What is known so far, piece by piece."""

    count: int = 0
    rows: list[tuple] = field(default_factory=list)  # first time, ids [n], means, quats, sizes [L, n, ...]
    ends: dict[int, tuple] = field(default_factory=dict)  # by part: time after its piece, ids, means, quats


def make_tracks(pieces: SurfacePieces, count: int, still: int, seed: int) -> Tracks:
    """About `count` tracks where the surface is largest.

    still: the time at which pictures show it from all sides.
    """
    rng = np.random.default_rng(seed)
    dense = pieces.at(still)[0]
    share = count / len(dense)
    spacing = _spacing(dense) / share**0.5
    growing = _Growing()
    for index in np.argsort(pieces.spans[:, 1], kind="stable"):
        _grow(growing, pieces, int(index), share, spacing, rng)
    return _assembled(growing, int(pieces.times), still, count, RANDOM_SPACING * spacing)


def _spacing(points: np.ndarray) -> float:
    """The side of a square of the surface that holds one of the points."""
    near = cKDTree(points).query(points, min(4, len(points)))[0][:, 1:]
    return max(float(np.median(near.mean(axis=1))) / RANDOM_SPACING, 1e-4) if near.size else 1.0


def _grow(
    growing: _Growing, pieces: SurfacePieces, index: int, share: float, spacing: float, rng: np.random.Generator
) -> None:
    part, first, length, _ = (int(number) for number in pieces.spans[index])
    points, normals, sizes = pieces.piece(index)
    ids, near, offsets, quats = _gone_on(growing.ends.get(part), first, points[0], normals[0], sizes[0], spacing)
    born, apart = _born(points[0], sizes, len(ids) > 0, points[0][near] + offsets, share, spacing, rng)
    offsets = np.concatenate([offsets / np.maximum(sizes[0, near, None], LEAST_SIZE), _along(apart, normals[0][born])])
    ids = np.concatenate([ids, growing.count + np.arange(len(born))])
    growing.count += len(born)
    near = np.concatenate([near, born])
    quats = np.concatenate([quats, _upright(normals[0][born])])
    turns = _turns(points, normals)[:, near]
    there = sizes[:, near]
    means = points[:, near] + there[..., None] * _rotated(turns, offsets)  # offsets are those of the full size
    quats = rotations.multiply(turns, quats)
    growing.rows.append((first, ids, means, quats, there))
    alive = there[-1] > 0
    growing.ends[part] = first + length, ids[alive], means[-1, alive], quats[-1, alive]


def _gone_on(
    end: tuple | None, first: int, points: np.ndarray, normals: np.ndarray, sizes: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What was there on the former faces and goes on: ids, point of the new ones that each follows, offset, quats."""
    real = np.flatnonzero(sizes > 0)
    if end is None or end[0] != first or not len(end[1]) or not len(real):
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 4))
    _, ids, means, quats = end
    up = rotations.to_matrix(quats)[..., 2]
    distances, found = cKDTree(points[real]).query(means, min(4, len(real)))
    distances, found = distances.reshape(len(means), -1), real[found.reshape(len(means), -1)]
    agree = np.einsum("nkc,nc->nk", normals[found], up) > SAME_SIDE
    best = agree.argmax(axis=1), np.arange(len(means))
    near = found[best[1], best[0]]
    off = _along(means - points[near], normals[near])
    goes_on = agree.any(axis=1) & (distances[best[1], best[0]] < max(REACH, spacing))
    goes_on &= np.linalg.norm(off, axis=1) < spacing
    goes_on[goes_on] = _first_in_cells(points[near[goes_on]] + off[goes_on], APART * spacing)
    near, up = near[goes_on], up[goes_on]
    return ids[goes_on], near, off[goes_on], rotations.multiply(_between(up, normals[near]), quats[goes_on])


def _born(
    points: np.ndarray,
    sizes: np.ndarray,
    is_later: bool,
    others: np.ndarray,
    share: float,
    spacing: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Points at which new tracks begin, where there are no others near by, and how far beside them."""
    wanted = np.arange(len(points)) if share > 1 else rng.permutation(len(points))[: max(round(share * len(points)), 1)]
    wanted = np.sort(np.repeat(wanted, max(round(share), 1)))
    apart = rng.normal(size=(len(wanted), 3)) * (0.5 * spacing if share >= 1.5 else 0.0)
    if is_later:
        free = cKDTree(others).query(points[wanted])[0] > COVERED * spacing
        wanted, apart = wanted[free], apart[free]
    kept = sizes[:, wanted].any(axis=0)
    return wanted[kept], apart[kept]


def _turns(points: np.ndarray, normals: np.ndarray) -> np.ndarray:  # [L, n, 3] x 2 -> [L, n, 4]
    """How the surface round each point has turned since the first moment."""
    length, count = points.shape[:2]
    if length == 1:
        return np.tile([1.0, 0.0, 0.0, 0.0], (1, count, 1))
    widest = int(points.std(axis=1).sum(axis=1).argmax())
    neighbours = min(NEIGHBOURS + 1, count)
    partner = cKDTree(points[widest]).query(points[widest], neighbours)[1].reshape(count, -1)[:, -1]
    frames = np.empty((length, count, 3, 3))
    tangent = np.tile([1.0, 0.0, 0.0], (count, 1))
    for moment, (place, normal) in enumerate(zip(points, normals, strict=True)):
        ahead = _along(place[partner] - place, normal)
        clear = np.linalg.norm(ahead, axis=1) > 1e-6
        tangent = np.where(clear[:, None], ahead, _along(tangent, normal))
        short = np.linalg.norm(tangent, axis=1) < 1e-6
        tangent[short] = _along(np.roll(normal[short], 1, axis=1) + np.array([0.0, 0.0, 1e-3]), normal[short])
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
        frames[moment] = np.stack([tangent, np.cross(normal, tangent), normal], axis=-1)
    return rotations.from_matrix(np.einsum("tnij,nkj->tnik", frames, frames[0]))


def _assembled(growing: _Growing, times: int, still: int, count: int, spacing: float) -> Tracks:
    """All rows as arrays. Before and after its life a track is where it was at its beginning or end."""
    total = growing.count
    means, quats = np.zeros((times, total, 3), np.float32), np.zeros((times, total, 4), np.float32)
    sizes, lives = np.zeros((times, total), np.float32), np.zeros((times, total), bool)
    for first, ids, some_means, some_quats, some_sizes in growing.rows:
        part = np.ix_(range(first, first + len(some_means)), ids)
        means[part], quats[part], sizes[part], lives[part] = some_means, some_quats, some_sizes, True
    kept = np.argsort(-np.square(sizes).sum(axis=0), kind="stable")[: round(MOST * count)]
    kept = np.sort(kept)
    means, quats, sizes, lives = (array[:, kept] for array in (means, quats, sizes, lives))
    first, last = lives.argmax(axis=0), times - 1 - lives[::-1].argmax(axis=0)
    held = np.arange(times)[:, None].clip(first, last), np.arange(len(kept))
    away = np.abs(np.arange(times) - still)[:, None] / times
    return Tracks(
        means=means[held],
        quats=rotations.make_continuous(rotations.normalize(quats[held])).astype(np.float32),
        sizes=np.maximum(sizes[held], LEAST_SIZE),
        there=sizes > 0,
        homes=np.where(sizes > 0, sizes - 1e-2 * away, -1).argmax(axis=0),
        spacing=spacing,
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
