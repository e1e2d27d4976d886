# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples of the subject's surface, sent along with its orbits: where it is, and what becomes of it over time."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .arrays import BadFileError, demands, read_arrays, write_arrays
from .orbit import MAX_VIEWS

MAX_SURFACE_SAMPLES = 1_000_000
PIECE = "piece_"  # begins the names of the arrays of pieces in a file


@dataclass(frozen=True)
class SurfacePieces:
    """A surface whose faces come, go, grow or are made anew, in pieces that keep their faces for a time.

    A piece is there at some successive ones of T even times from 0 to 1, with the same points at all of these.
    """

    spans: np.ndarray  # [P, 4] int32: whose piece it is, the first of its times, how many times L, how many points n
    points: np.ndarray  # [K, 3] float32, clip space; piece after piece, each [L, n]
    normals: np.ndarray  # [K, 3] float32, unit, outward
    sizes: np.ndarray  # [K] float32, 0..1: length of the surface round a point, beside the greatest that it has
    times: np.ndarray  # [] int32: T

    def piece(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [L, n, 3], [L, n, 3], [L, n]
        """Points, normals and sizes of one piece."""
        _, _, times, count = self.spans[index]
        end = int((self.spans[: index + 1, 2].astype(np.int64) * self.spans[: index + 1, 3]).sum())
        part = slice(end - int(times) * int(count), end)
        arrays = self.points[part], self.normals[part], self.sizes[part]
        return tuple(array.reshape(times, count, *array.shape[1:]) for array in arrays)

    def at(self, time: int) -> tuple[np.ndarray, np.ndarray]:  # [M, 3] x 2
        """The points that are there at one of the times, with their normals."""
        found = []
        for index, (_, first, times, _) in enumerate(self.spans):
            if first <= time < first + times:
                points, normals, sizes = (array[time - first] for array in self.piece(index))
                found.append((points[sizes > 0], normals[sizes > 0]))
        nothing = np.zeros((0, 3), np.float32)
        points, normals = zip((nothing, nothing), *found, strict=True)
        return np.concatenate(points), np.concatenate(normals)


@dataclass(frozen=True)
class SurfaceSamples:
    """Points on the subject's surface at the time of its static orbit and, where it is known, how they move."""

    points: np.ndarray  # [M, 3] float32, clip space
    normals: np.ndarray  # [M, 3] float32, unit, outward
    movement: np.ndarray | None = None  # [T, M, 3] float32, of the points from there, at T even times from 0 to 1
    pieces: SurfacePieces | None = None  # instead of the movement, where there are not the same faces at all times

    def standing(self) -> "SurfaceSamples":
        """The same without their movement."""
        return SurfaceSamples(self.points, self.normals)


def even_samples(areas: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [count] and barycentric weights [count, 3] of points, evenly by the triangles' `areas` [F]."""
    # One sample from each of `count` equal shares of the area: more even than independent draws.
    shares = (np.arange(count) + random.random(count)) / count * areas.sum()
    chosen = np.minimum(np.searchsorted(np.cumsum(areas), shares, side="right"), np.flatnonzero(areas)[-1])
    u, v = np.sqrt(random.random(count)), random.random(count)
    return chosen, np.stack([1 - u, u * (1 - v), u * v], axis=1)  # uniform over a triangle


def write_surface_samples(path: str | os.PathLike, samples: SurfaceSamples) -> None:
    """Write surface samples as `.npz` with `points`, `normals` and, where it is known, `movement` or `piece_*`."""
    check_surface_samples(samples)
    write_arrays(path, _surface_arrays(samples))


def read_surface_samples(path: str | os.PathLike) -> SurfaceSamples:
    """Surface samples from a file, checked. Raises BadFileError with one sentence."""
    label = os.path.basename(path)
    arrays = read_arrays(path)
    pieces = {name.removeprefix(PIECE): arrays.pop(name) for name in list(arrays) if name.startswith(PIECE)}
    wanted = {field.name for field in fields(SurfacePieces)}
    if set(arrays) - {"movement"} != {"points", "normals"} or (pieces and (set(pieces) != wanted or len(arrays) > 2)):
        raise BadFileError(f"{label} does not hold surface samples.")
    samples = SurfaceSamples(**arrays, pieces=SurfacePieces(**pieces) if pieces else None)
    check_surface_samples(samples, label)
    return samples


def check_surface_samples(samples: SurfaceSamples, label: str = "The surface") -> None:
    """Raises BadFileError where `samples` are not finite points with unit normals, and their movement or pieces."""
    demand = demands(f"{label} is not usable")
    shapes = {"movement": "[T, M, 3]", f"{PIECE}sizes": "[K]"}
    for name, array in _surface_arrays(samples).items():
        if name in (f"{PIECE}spans", f"{PIECE}times"):
            continue
        shape = shapes.get(name, "[M, 3]")
        fits = array.ndim == shape.count(",") + 1 and (array.shape[-1] == 3 or shape == "[K]")
        demand(array.dtype == np.float32 and fits, f"{name} must be float32 {shape}")
        demand(np.isfinite(array).all(), f"{name} holds numbers that are not finite")
        if name.endswith("normals"):
            unit = np.allclose(np.linalg.norm(array, axis=-1), 1, atol=1e-2)
            demand(unit, "normals must have length 1")
    demand(len(samples.points) == len(samples.normals), "there must be one normal for each point")
    demand(1 <= len(samples.points) <= MAX_SURFACE_SAMPLES, f"1 to {MAX_SURFACE_SAMPLES} points are allowed")
    if samples.movement is not None:
        fits = samples.movement.shape[1] == len(samples.points) and 2 <= len(samples.movement) <= MAX_VIEWS
        demand(fits, "there must be a movement of each point, at two times or more")
    if samples.pieces is not None:
        _check_pieces(samples.pieces, demand)


def _check_pieces(pieces: SurfacePieces, demand: Callable[[Any, str], None]) -> None:
    spans, times = pieces.spans, pieces.times
    demand(times.dtype == np.int32 and times.shape == () and 2 <= times <= MAX_VIEWS, "pieces need two times or more")
    demand(spans.dtype == np.int32 and spans.ndim == 2 and spans.shape[1] == 4, "piece_spans must be int32 [P, 4]")
    _, first, lengths, counts = spans.astype(np.int64).T
    within = (first >= 0) & (lengths >= 1) & (counts >= 1) & (first + lengths <= times)
    demand(within.all(), "a piece lies outside the times, or has no points")
    total = int((lengths * counts).sum())
    shapes = {len(pieces.points), len(pieces.normals), len(pieces.sizes), total}
    demand(len(shapes) == 1, "the pieces' points, normals and sizes must be as many as their spans say")
    demand(counts.max(initial=0) <= MAX_SURFACE_SAMPLES, f"a piece may have {MAX_SURFACE_SAMPLES} points")
    demand(((pieces.sizes >= 0) & (pieces.sizes <= 1)).all(), "piece_sizes must lie between 0 and 1")


def _surface_arrays(samples: SurfaceSamples) -> dict[str, np.ndarray]:
    arrays = {name: getattr(samples, name) for name in ("points", "normals", "movement")}
    arrays |= {PIECE + name: array for name, array in vars(samples.pieces).items()} if samples.pieces else {}
    return {name: array for name, array in arrays.items() if array is not None}
