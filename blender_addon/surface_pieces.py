# SPDX-License-Identifier: GPL-3.0-or-later
"""Which points of a changing surface are the same ones from one moment to the next."""

import numpy as np

from .contract.surface import SurfacePieces, even_samples
from .stage import Geometry, Part


def sample_pieces(moments: list[Geometry], count: int, seed: int) -> SurfacePieces:
    """Points on a surface at T moments, as evenly as `count` on the fullest one, in world space.

    A part of the subject is one piece as long as its faces are the same, hidden for a time or not; where they are not,
    another one begins. While it is hidden it waits first where it was, then where it comes back. Each triangle
    has as many points as when it is largest, so that what grows from nothing is as dense in the end.
    """
    areas = [geometry.areas() for geometry in moments]
    density = count / max(area.sum() for area in areas)
    random = np.random.default_rng(seed)
    spans, tracks = [], []
    for number, first, parts in _pieces(moments):
        seen, area = [], []
        waits = nearest_there([part is not None for part in parts])
        for moment, (part, there) in enumerate(zip(parts, waits, strict=True), first):
            seen.append((moments[first + there], parts[there].triangles))
            area.append(areas[moment][part.triangles] if part else np.zeros_like(area[-1]))
        area = np.stack(area)
        largest = area.max(axis=0)
        if not largest.any():
            continue
        chosen, weights = even_samples(largest, max(round(density * largest.sum()), 1), random)
        corners = np.stack([there.vertices[there.triangles[triangles][chosen]] for there, triangles in seen])
        normals = np.stack([there.normals[triangles][chosen] for there, triangles in seen])
        when_largest = normals[area[:, chosen].argmax(axis=0), np.arange(len(chosen))]
        normals = np.where(normals.any(axis=-1, keepdims=True), normals, when_largest)
        points = np.einsum("nc,tncd->tnd", weights, corners)
        tracks.append((points, normals, np.sqrt(area[:, chosen] / largest[chosen])))
        spans.append([number, first, *points.shape[:2]])
    points, normals, sizes = (
        np.concatenate([array.reshape(-1, *array.shape[2:]) for array in kind]).astype(np.float32)
        for kind in zip(*tracks, strict=True)
    )
    return SurfacePieces(np.array(spans, np.int32), points, normals, sizes, np.array(len(moments), np.int32))


def nearest_there(there: list[bool] | np.ndarray) -> np.ndarray:  # [L] -> [L]
    """The nearest moment to each at which something is there; of two the former one."""
    filled = np.flatnonzero(there)
    return filled[np.abs(filled - np.arange(len(there))[:, None]).argmin(axis=1)]


def _pieces(moments: list[Geometry]) -> list[tuple[int, int, list[Part | None]]]:
    """Of each piece: whose it is, its first moment, and where it lies in each of its moments, None while hidden."""
    numbers: dict[tuple, int] = {}
    latest: dict[tuple, tuple[int, list[Part | None]]] = {}  # first moment and parts of the last piece
    pieces = []
    for moment, geometry in enumerate(moments):
        for part in geometry.parts:
            first, piece = latest.get(part.name, (moment, []))
            if not piece or piece[-1].faces != part.faces:
                first, piece = latest[part.name] = moment, []
                pieces.append((numbers.setdefault(part.name, len(numbers)), first, piece))
            piece += [None] * (moment - first - len(piece))
            piece.append(part)
    return pieces
