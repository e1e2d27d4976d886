# SPDX-License-Identifier: GPL-3.0-or-later
"""Clip space: where a subject lies over a frame range, and how far it reaches.

It stands parallel to Blender's world: the subject's bounding box over the whole frame range is centred on the origin,
its longest side is 1. So the orbit goes round the object as it stands in the scene, and nothing leaves it. Where the
subject travels, so that it would be small in that box, clip space goes along with it (`ClipSpace.travel`).
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import bpy
import numpy as np

from .capture_progress import CaptureProgress, in_steps
from .stage import Geometry, Stage
from .subject import CaptureError, Subject, SubjectError, find_subject, simulation
from .surface_pieces import nearest_there

MOTION_THRESHOLD = 1e-4  # of the longest side: less is rounding, not motion
GROWN, GROWN_SHARE = 9.0, 0.05  # times its least area to which a face grows; the part of the surface that does
FOLLOW_GAIN = 1.25  # clip space goes along with what travels where the subject is as much larger in the pictures then
MOVED = 0.02  # of the longest side: a box that is so far from where it was measured is that of something else
MAX_OUTLINE_POINTS = 50_000  # per moment


@dataclass(frozen=True)
class ClipSpace:
    """A subject measured over a frame range: where its clip space lies and how far it reaches."""

    subject: Subject
    frame_range: tuple[float, float]
    to_world: np.ndarray  # [4, 4] clip space -> world at the first frame: uniform scale and translation
    to_object: np.ndarray  # [4, 4] clip space -> the source object's local space at the first frame
    outline: np.ndarray  # [M, 3] points of the surface over all times, clip space, enough to frame it by
    motion: float  # largest way of a surface point from its first place; longest sides; inf where `changes`
    changes: bool  # whether faces come, go, grow or are made anew
    areas: np.ndarray  # [T] of the surface at even times of the range, in the world's units
    travel: np.ndarray  # [T, 3] way of clip space from its first place, at the same times, world; all 0 where it stays
    boxes: np.ndarray  # [T, 2, 3] least and largest coordinates at the same times, world; nan where nothing is there

    @property
    def scale(self) -> float:
        """Length of one unit of clip space in the world."""
        return float(self.to_world[0, 0])

    @property
    def moves(self) -> bool:
        """Whether the surface moves at all within the frame range."""
        return self.motion > MOTION_THRESHOLD

    @property
    def fullest(self) -> float:
        """Time 0..1 at which the surface is largest."""
        return float(self.areas.argmax()) / max(len(self.areas) - 1, 1)

    @property
    def travels(self) -> bool:
        """Whether clip space goes along with the subject."""
        return bool(self.travel.any())

    def way_at(self, moment: float) -> np.ndarray:  # [3]
        """How far clip space has gone by a time 0..1 of the clip, in the world; between measured times straight on."""
        times = np.linspace(0, 1, len(self.travel))
        return np.array([np.interp(moment, times, along) for along in self.travel.T])

    def frame_at(self, moment: float) -> float:
        """The scene's frame, perhaps fractional, at a time 0..1 of the clip."""
        start, end = self.frame_range
        return start + moment * (end - start)

    def check_place(self, geometry: Geometry, index: int, times: int) -> None:
        """Whether the subject is still where it was measured, at one of even times of the range.

        Else its pictures show it in several places, and nothing good comes of them.

        Raises:
            CaptureError: somebody has moved it since.
        """
        if index > 0 and times != len(self.boxes):
            return  # other moments than those that were measured
        away = np.abs(_box(geometry.vertices) - self.boxes[index])
        if np.nanmax(away, initial=0) > MOVED * self.scale:
            raise CaptureError(
                f"{self.subject.name} was moved or changed while it was being captured. "
                "Generate again, and leave it alone until the capture has ended."
            )


def measure_steps(
    context: bpy.types.Context, obj: bpy.types.Object | None, frame_range: tuple[float, float], *, frames: int = 24
) -> Generator[CaptureProgress, None, ClipSpace]:
    """Find the clip space of `obj` with its children, seen at `frames` equally spaced times of the frame range.

    Raises:
        SubjectError: the object cannot be captured, or nothing moves although it simulates.
        CaptureError: it has no faces or no size in that range, or vanishes from the scene meanwhile.
    """
    start, end = frame_range
    if end < start:
        raise CaptureError(f"The frame range ends at {end:g}, before it starts at {start:g}.")
    subject = find_subject(context, obj)
    moments = np.linspace(start, end, frames if end > start else 1)
    seen = _Seen()

    def look(stage: Stage, index: int) -> None:
        geometry = stage.geometry(moments[index], with_triangles=True)
        if not np.isfinite(geometry.vertices).all():
            raise CaptureError(f"{subject.name} has vertices at infinity at frame {moments[index]:g}.")
        seen.add(geometry)

    yield from in_steps(subject, (64, 64), None, 1, len(moments), look, "measure")
    space = _clip_space(subject, frame_range, seen)
    if end > start and not space.moves and (simulated := simulation(subject.objects())):
        raise SubjectError(
            f"{simulated} does not move in renders, although its nodes simulate. Bake them in Physics > Simulation "
            "Nodes, or play all frames once, and try again; or set Motion to Invented."
        )
    return space


@dataclass
class _Seen:
    """What all moments up to now have shown."""

    first: Geometry | None = None
    outlines: list[np.ndarray] = field(default_factory=list)  # [M, 3] of each moment, world
    areas: list[float] = field(default_factory=list)
    centres: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    farthest: float = 0.0  # way of a vertex from its first place; inf where there are other faces
    largest: np.ndarray = field(default_factory=lambda: np.zeros(0))  # area of each face, as long as they are the same
    least: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, geometry: Geometry) -> None:
        area = geometry.areas()
        self.areas.append(float(area.sum()))
        self.centres.append(_centre(geometry, area))
        vertices = geometry.vertices.astype(np.float64)
        self.boxes.append(_box(vertices))
        self.outlines.append(_thinned(vertices))
        if self.first is None:
            self.first, self.largest, self.least = geometry, area, area
        elif geometry.faces != self.first.faces:
            self.farthest = np.inf
        elif len(vertices):
            way = float(np.linalg.norm(vertices - self.first.vertices, axis=1).max())
            self.farthest = max(self.farthest, way)
            self.largest, self.least = np.maximum(self.largest, area), np.minimum(self.least, area)

    def changes(self) -> bool:
        """Whether faces come, go, grow or are made anew."""
        grown = self.largest[self.largest > GROWN * self.least].sum()
        return bool(np.isinf(self.farthest) or grown > GROWN_SHARE * max(self.areas))


def _clip_space(subject: Subject, frame_range: tuple[float, float], seen: _Seen) -> ClipSpace:
    start, end = frame_range
    when = f"from frame {start:g} to {end:g}" if end > start else f"at frame {start:g}"
    points, travel = _followed(seen)
    if not len(points):
        raise CaptureError(
            f"{subject.name} has no faces {when}. Only surfaces can be captured: choose a frame at which it has some."
        )
    low, high = points.min(axis=0), points.max(axis=0)
    side = float((high - low).max())
    if side <= 1e-9 * max(1.0, float(np.abs(points).max())):
        raise CaptureError(
            f"{subject.name} has no size {when}: all of its surface lies in one point. "
            "Choose a frame at which it has one."
        )
    changes = seen.changes()
    matrix_world = seen.first.matrix_world
    if np.linalg.cond(matrix_world[:3, :3]) > 1e9:
        if not changes:
            raise SubjectError(f"{subject.name} has a scale of 0 at frame {start:g}. Give it a size and try again.")
        matrix_world = np.eye(4)  # of something that pops up, the place alone
        matrix_world[:3, 3] = seen.first.matrix_world[:3, 3]
    to_world = np.diag([side, side, side, 1.0])
    to_world[:3, 3] = (low + high) / 2
    return ClipSpace(
        subject=subject,
        frame_range=frame_range,
        to_world=to_world,
        to_object=np.linalg.inv(matrix_world) @ to_world,
        outline=(points - to_world[:3, 3]) / side,
        motion=np.inf if changes else seen.farthest / side,
        changes=changes,
        areas=np.array(seen.areas),
        travel=travel,
        boxes=np.stack(seen.boxes),
    )


def _followed(seen: _Seen) -> tuple[np.ndarray, np.ndarray]:  # [M, 3], [T, 3]
    """Points of all moments as clip space sees them, and its way: with the subject where that makes it larger."""
    points, travel = np.concatenate(seen.outlines), _travel(np.stack(seen.centres))
    followed = points - np.repeat(travel, [len(outline) for outline in seen.outlines], axis=0)
    if len(points) and FOLLOW_GAIN * np.ptp(followed, axis=0).max() <= np.ptp(points, axis=0).max():
        return followed, travel
    return points, np.zeros_like(travel)


def _thinned(vertices: np.ndarray) -> np.ndarray:  # [V, 3] -> [M, 3]
    """The vertices, or where there are very many, the outermost ones: of those in a row keep the two at its ends."""
    if len(vertices) <= MAX_OUTLINE_POINTS:
        return vertices
    low = vertices.min(axis=0)
    side = max(float((vertices.max(axis=0) - low).max()), 1e-30)
    kept = np.zeros(len(vertices), bool)
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        cell = ((vertices[:, others] - low[others]) * (100 / side)).astype(np.int64)
        row = cell[:, 0] * 101 + cell[:, 1]
        order = np.lexsort((vertices[:, axis], row))
        starts = np.flatnonzero(np.diff(row[order], prepend=-1))
        kept[order[starts]] = True
        kept[order[np.append(starts[1:], len(order)) - 1]] = True
    return vertices[kept]


def _box(vertices: np.ndarray) -> np.ndarray:  # [V, 3] -> [2, 3]; nan where there are none
    if not len(vertices):
        return np.full((2, 3), np.nan)
    return np.stack([vertices.min(axis=0), vertices.max(axis=0)]).astype(np.float64)


def _centre(geometry: Geometry, areas: np.ndarray) -> np.ndarray:  # [3] of the surface; nan where there is none
    corners = geometry.vertices[geometry.triangles].astype(np.float64)
    return areas @ corners.mean(axis=1) / areas.sum() if areas.any() else np.full(3, np.nan)


def _travel(centres: np.ndarray) -> np.ndarray:  # [T, 3] -> [T, 3]
    """The way of the surface's middle from its first place; it waits while there is no surface, as its pieces do."""
    there = np.isfinite(centres).all(axis=1)
    if not there.any():
        return np.zeros_like(centres)
    way = centres[nearest_there(there)]
    return way - way[0]
