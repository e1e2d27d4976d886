# SPDX-License-Identifier: GPL-3.0-or-later
"""Points on a subject's surface, and how they move or, where its faces change, which of them stay the same ones."""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from .capture_progress import CaptureProgress, in_steps
from .clip_space import ClipSpace
from .contract.surface import SurfaceSamples, even_samples
from .stage import Geometry, Stage
from .subject import CaptureError
from .surface_pieces import sample_pieces

DEFAULT_SURFACE_SAMPLES = 20_000


def sample_surface_steps(
    space: ClipSpace, count: int = DEFAULT_SURFACE_SAMPLES, *, times: int = 1, seed: int = 0
) -> Generator[CaptureProgress, None, SurfaceSamples]:
    """Points on the subject's surface at the first frame, evenly by area, with outward normals, in clip space.

    Where clip space goes along with the subject, the movement is that within it.

    With more than one of `times`, even ones of the frame range, the points' movement comes along. Where faces come, go,
    grow or are made anew, nobody can tell where a point has gone: then the points are those of the fullest moment, and
    the pieces of the surface come along.

    Raises:
        CaptureError: the subject is gone, is not where it was measured, or has no surface at the first frame.
    """
    if times > 1 and space.changes:
        return (yield from _sample_pieces_steps(space, count, times, seed))
    moments = np.linspace(0, 1, times)
    first: Geometry | None = None
    chosen, weights = np.zeros(0, int), np.zeros((0, 3))
    places: list[np.ndarray] = []  # [count, 3] of each moment

    def look(stage: Stage, index: int) -> None:
        nonlocal first, chosen, weights
        if len(places) < index:
            return  # the mesh was built anew
        geometry = stage.geometry(space.frame_at(moments[index]), with_triangles=index == 0)
        space.check_place(geometry, index, times)
        if index == 0:
            first = geometry
            chosen, weights = _sample_triangles(first, count, seed, space.subject.name)
        if geometry.faces == first.faces:
            corners = geometry.vertices[first.triangles[chosen]].astype(np.float64)
            origin = space.to_world[:3, 3] + space.way_at(moments[index])
            places.append((np.einsum("nc,ncd->nd", weights, corners) - origin) / space.scale)

    yield from in_steps(space.subject, (64, 64), None, 1, times, look, "surface")
    return SurfaceSamples(
        points=places[0].astype(np.float32),
        normals=first.normals[chosen],
        movement=(np.stack(places) - places[0]).astype(np.float32) if 1 < times == len(places) else None,
    )


def _sample_pieces_steps(
    space: ClipSpace, count: int, times: int, seed: int
) -> Generator[CaptureProgress, None, SurfaceSamples]:
    seen: list[Geometry] = []

    def look(stage: Stage, index: int) -> None:
        moment = index / (times - 1)
        geometry = stage.geometry(space.frame_at(moment), with_triangles=True)
        space.check_place(geometry, index, times)
        way = space.way_at(moment).astype(np.float32)
        seen.append(replace(geometry, vertices=geometry.vertices - way))

    yield from in_steps(space.subject, (64, 64), None, 1, times, look, "surface")
    pieces = sample_pieces(seen, count, seed)
    pieces = replace(pieces, points=((pieces.points - space.to_world[:3, 3]) / space.scale).astype(np.float32))
    return SurfaceSamples(*pieces.at(round(space.fullest * (times - 1))), pieces=pieces)


def _sample_triangles(geometry: Geometry, count: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [count] and barycentric weights [count, 3] of points, evenly by area."""
    areas = geometry.areas()
    if not areas.any():
        raise CaptureError(f"{name} has no surface at the first frame of the range.")
    return even_samples(areas, count, np.random.default_rng(seed))
