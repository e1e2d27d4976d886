# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of a subject from all around, its surface, and the clip space in which both are expressed.

Clip space stands parallel to Blender's world: the subject's bounding box over the whole frame range is centred on the
origin, its longest side is 1. So the orbit goes round the object as it stands in the scene, and nothing leaves it.
Where the subject travels, so that it would be small in that box, clip space goes along with it (`ClipSpace.travel`).

Work on frames comes as generators that yield `CaptureProgress`. Between two steps the file holds nothing of ours, so
the user may edit, undo, save or open another file meanwhile, and cancelling is closing the generator:

    space = measure(context, obj, (1, 24))
    steps = render_orbit_steps(space, Orbit(), folder, moving=True)
    for progress in steps: ...                       # or let a timer call next(steps)

The functions without `_steps` do the same in one go, for scripts and background mode.
"""

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from .contract.orbit import Cameras, Orbit, frame_name, further_orbits, joined_cameras, orbit_cameras, write_orbit_json
from .contract.surface import SurfaceSamples, write_surface_samples
from .stage import DEFAULT_SAMPLES, ENGINES, Geometry, Stage, automatic_engine, is_rendering, open_stage
from .subject import CaptureError, Subject, SubjectError, find_subject, simulation
from .surface_pieces import even_samples, nearest_there, sample_pieces

MOTION_THRESHOLD = 1e-4  # of the longest side: less is rounding, not motion
STEP_SECONDS = 0.1  # a step goes on with the next frame until so much time has passed
GROWN, GROWN_SHARE = 9.0, 0.05  # times its least area to which a face grows; the part of the surface that does
FOLLOW_GAIN = 1.25  # clip space goes along with what travels where the subject is as much larger in the pictures then
MARGIN = 0.03  # of the picture, left free on each side
MAX_OUTLINE_POINTS = 50_000  # per moment
DEFAULT_SURFACE_SAMPLES = 20_000


class CaptureCancelled(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The caller's `is_cancelled` said yes. Nothing is left behind."""


@dataclass(frozen=True)
class CaptureProgress:
    """Where a capture stands."""

    stage: str  # "waiting" (Blender renders something else), "measure", "moving", "static", "surface" or "views"
    done: int
    total: int


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


@dataclass(frozen=True)
class Capture:
    """All that a request of kind `orbit` or `object` needs, on disk."""

    space: ClipSpace
    moving: Cameras | None  # frames in <folder>/moving; None where only the first moment was captured
    static: Cameras | None  # frames in <folder>/static
    surface: Path | None
    fps: float  # at which the moving orbit plays as fast as the scene


# --- measuring -------------------------------------------------------------------------------------------------------


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
    outlines: list[np.ndarray] = []
    areas: list[float] = []
    centres: list[np.ndarray] = []
    largest = least = np.zeros(0)  # area of each face, as long as they are the same ones
    first: Geometry | None = None
    farthest = 0.0

    def look(stage: Stage, index: int) -> None:
        nonlocal first, farthest, largest, least
        geometry = stage.geometry(moments[index], with_triangles=True)
        area = geometry.areas()
        areas.append(float(area.sum()))
        centres.append(_centre(geometry, area))
        vertices = geometry.vertices.astype(np.float64)
        if first is None:
            first, largest, least = geometry, area, area
        if not np.isfinite(vertices).all():
            raise CaptureError(f"{subject.name} has vertices at infinity at frame {moments[index]:g}.")
        outlines.append(_thinned(vertices))
        if geometry.faces != first.faces:
            farthest = np.inf
        elif len(vertices):
            farthest = max(farthest, float(np.linalg.norm(vertices - first.vertices, axis=1).max()))
            largest, least = np.maximum(largest, area), np.minimum(least, area)

    yield from _in_steps(subject, (64, 64), None, 1, len(moments), look, "measure")
    points = np.concatenate(outlines)
    when = f"from frame {start:g} to {end:g}" if end > start else f"at frame {start:g}"
    if not len(points):
        raise CaptureError(
            f"{subject.name} has no faces {when}. Only surfaces can be captured: choose a frame at which it has some."
        )
    travel = _travel(np.stack(centres))
    followed = points - np.repeat(travel, [len(outline) for outline in outlines], axis=0)
    if FOLLOW_GAIN * np.ptp(followed, axis=0).max() <= np.ptp(points, axis=0).max():
        points = followed
    else:
        travel = np.zeros_like(travel)
    low, high = points.min(axis=0), points.max(axis=0)
    side = float((high - low).max())
    if side <= 1e-9 * max(1.0, float(np.abs(points).max())):
        raise CaptureError(
            f"{subject.name} has no size {when}: all of its surface lies in one point. "
            "Choose a frame at which it has one."
        )
    grown = largest[largest > GROWN * least].sum()
    changes = not np.isfinite(farthest) or grown > GROWN_SHARE * max(areas)
    matrix_world = first.matrix_world
    if np.linalg.cond(matrix_world[:3, :3]) > 1e9:
        if not changes:
            raise SubjectError(f"{subject.name} has a scale of 0 at frame {start:g}. Give it a size and try again.")
        matrix_world = np.eye(4)  # of something that pops up, the place alone
        matrix_world[:3, 3] = first.matrix_world[:3, 3]
    to_world = np.diag([side, side, side, 1.0])
    to_world[:3, 3] = (low + high) / 2
    space = ClipSpace(
        subject=subject,
        frame_range=(start, end),
        to_world=to_world,
        to_object=np.linalg.inv(matrix_world) @ to_world,
        outline=(points - to_world[:3, 3]) / side,
        motion=np.inf if changes else farthest / side,
        changes=changes,
        areas=np.array(areas),
        travel=travel,
    )
    if end > start and not space.moves and (simulated := simulation(subject.objects())):
        raise SubjectError(
            f"{simulated} does not move in renders, although its nodes simulate. Bake them in Physics > Simulation "
            "Nodes, or play all frames once, and try again; or set Motion to Invented."
        )
    return space


def measure(
    context: bpy.types.Context, obj: bpy.types.Object | None, frame_range: tuple[float, float], *, frames: int = 24
) -> ClipSpace:
    """As `measure_steps`, in one go."""
    return _exhaust(measure_steps(context, obj, frame_range, frames=frames))


def fitting_distance(outline: np.ndarray, orbit: Orbit) -> float:
    """The orbit's distance, enlarged just as far as needed for every point to stay in the picture at every azimuth.

    Args:
        outline: [M, 3] points in clip space.
        orbit: its elevation, field of view and wished distance; pictures are taken as square.
    """
    elevation = np.radians(orbit.elevation)
    sine, cosine = np.sin(elevation), np.cos(elevation)
    cotangent = 1 / (np.tan(np.radians(orbit.fov) / 2) * (1 - 2 * MARGIN))
    radius, height = np.hypot(outline[:, 0], outline[:, 1]), outline[:, 2]
    # A point stays in the picture where its offset from the axis <= depth * tan(fov / 2), depth = distance - (how far
    # it stands towards the camera). Turning the camera moves the point on a circle; the largest distance over that
    # circle is that of a sine and a cosine added, hence the root.
    sideways = height * sine + radius * np.hypot(cosine, cotangent)
    upwards = height * (sine + cosine * cotangent) + radius * abs(cosine - sine * cotangent)
    downwards = height * (sine - cosine * cotangent) + radius * abs(cosine + sine * cotangent)
    return float(max(orbit.distance, sideways.max(), upwards.max(), downwards.max()))


# --- pictures --------------------------------------------------------------------------------------------------------


def render_views_steps(
    space: ClipSpace,
    cameras: Cameras,
    folder: Path,
    *,
    engine: str | None = None,
    samples: int = DEFAULT_SAMPLES,
    stage: str = "views",
) -> Generator[CaptureProgress, None, Cameras]:
    """Render the subject from any cameras at any times into an orbit folder.

    Args:
        space: the measured subject.
        cameras: in clip space; pixels must be square.
        folder: gets `frame_000.png` ... and, last, `orbit.json`. What was written is removed on error and on cancel.
        engine: "CYCLES" or "EEVEE"; by itself EEVEE in a window and Cycles on the CPU in background.
        samples: per pixel.
        stage: name of this work in the progress.

    Raises:
        CaptureError: the object is gone, or a picture could not be rendered or written.
    """
    if engine not in (None, *ENGINES):
        raise ValueError(f"engine must be one of {ENGINES}, not {engine!r}")
    cameras.check()
    if not np.allclose(cameras.Ks[:, 0, 0], cameras.Ks[:, 1, 1]):
        raise ValueError("Blender's camera has square pixels: both focal lengths must be equal")
    written: list[Path] = []

    def render(stage: Stage, index: int) -> None:
        path = folder / frame_name(index)
        written.append(path)
        stage.picture(
            frame=space.frame_at(float(cameras.times[index])),
            camera_to_world=_in_world(space, cameras.camera_to_world[index], float(cameras.times[index])),
            K=cameras.Ks[index],
            clip=_clip_range(space, cameras.camera_to_world[index]),
            seed=index,
            path=path,
        )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        size = (cameras.width, cameras.height)
        engine = engine or automatic_engine()
        yield from _in_steps(space.subject, size, engine, samples, len(cameras.times), render, stage)
        write_orbit_json(folder, cameras)
    except BaseException as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise CaptureError(f"The pictures cannot be written to {folder}: {error.strerror}.") from error
        raise
    return cameras


def render_views(
    space: ClipSpace,
    cameras: Cameras,
    folder: Path,
    *,
    engine: str | None = None,
    samples: int = DEFAULT_SAMPLES,
    on_progress: Callable[[CaptureProgress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Cameras:
    """As `render_views_steps`, in one go. Raises CaptureCancelled where `is_cancelled` says so."""
    steps = render_views_steps(space, cameras, folder, engine=engine, samples=samples)
    return _exhaust(steps, on_progress, is_cancelled)


def render_orbit_steps(
    space: ClipSpace,
    orbit: Orbit,
    folder: Path,
    *,
    resolution: int = 128,
    moving: bool,
    changing: bool = False,
    samples: int = DEFAULT_SAMPLES,
    engine: str | None = None,
) -> Generator[CaptureProgress, None, Cameras]:
    """Render a moving orbit (frame i at time i / (T - 1)) or a static one (all at the first frame).

    After the static one come further views of that frame, from above and below (`further_orbits`). Those of a
    `changing` subject, as many, are of its fullest moment, but for some from above of others: see
    `_cameras_of_changes`. The distance is
    that of `orbit`, enlarged where the subject would not fit; the cameras that are returned and written say what was
    used. Arguments and errors as for `render_views_steps`; `resolution` is the side in pixels.
    """
    orbits = [orbit] if moving else [orbit, *further_orbits(orbit)]
    orbits = [replace(one, distance=fitting_distance(space.outline, one)) for one in orbits]
    parts = [orbit_cameras(one, resolution, resolution, moving=moving) for one in orbits]
    cameras = _cameras_of_changes(space, parts) if changing else joined_cameras(parts)
    stage = "moving" if moving else "static"
    return (yield from render_views_steps(space, cameras, folder, engine=engine, samples=samples, stage=stage))


def render_orbit(
    context: bpy.types.Context,
    obj: bpy.types.Object | None,
    orbit: Orbit,
    folder: Path,
    *,
    resolution: int = 128,
    moving: bool,
    frame_range: tuple[float, float],
    samples: int = DEFAULT_SAMPLES,
    engine: str | None = None,
    on_progress: Callable[[CaptureProgress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Cameras:
    """Measure `obj` and render its orbit in one go, as `measure_steps` and `render_orbit_steps` do.

    Raises CaptureCancelled where `is_cancelled` says so.
    """

    def steps() -> Generator[CaptureProgress, None, Cameras]:
        space = yield from measure_steps(context, obj, frame_range, frames=orbit.frames)
        return (
            yield from render_orbit_steps(
                space, orbit, folder, resolution=resolution, moving=moving, samples=samples, engine=engine
            )
        )

    return _exhaust(steps(), on_progress, is_cancelled)


# --- surface ---------------------------------------------------------------------------------------------------------


def sample_surface_steps(
    space: ClipSpace, count: int = DEFAULT_SURFACE_SAMPLES, *, times: int = 1, seed: int = 0
) -> Generator[CaptureProgress, None, SurfaceSamples]:
    """Points on the subject's surface at the first frame, evenly by area, with outward normals, in clip space.

    Where clip space goes along with the subject, the movement is that within it.

    With more than one of `times`, even ones of the frame range, the points' movement comes along. Where faces come, go,
    grow or are made anew, nobody can tell where a point has gone: then the points are those of the fullest moment, and
    the pieces of the surface come along.

    Raises:
        CaptureError: the subject is gone, or has no surface at the first frame.
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
        if index == 0:
            first = geometry
            chosen, weights = _sample_triangles(first, count, seed, space.subject.name)
        if geometry.faces == first.faces:
            corners = geometry.vertices[first.triangles[chosen]].astype(np.float64)
            origin = space.to_world[:3, 3] + space.way_at(moments[index])
            places.append((np.einsum("nc,ncd->nd", weights, corners) - origin) / space.scale)

    yield from _in_steps(space.subject, (64, 64), None, 1, times, look, "surface")
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
        way = space.way_at(moment).astype(np.float32)
        seen.append(replace(geometry, vertices=geometry.vertices - way))

    yield from _in_steps(space.subject, (64, 64), None, 1, times, look, "surface")
    pieces = sample_pieces(seen, count, seed)
    pieces = replace(pieces, points=((pieces.points - space.to_world[:3, 3]) / space.scale).astype(np.float32))
    return SurfaceSamples(*pieces.at(round(space.fullest * (times - 1))), pieces=pieces)


def sample_surface(
    space: ClipSpace, count: int = DEFAULT_SURFACE_SAMPLES, *, times: int = 1, seed: int = 0
) -> SurfaceSamples:
    """As `sample_surface_steps`, in one go."""
    return _exhaust(sample_surface_steps(space, count, times=times, seed=seed))


# --- everything ------------------------------------------------------------------------------------------------------


def capture_steps(
    context: bpy.types.Context,
    obj: bpy.types.Object | None,
    orbit: Orbit,
    folder: Path,
    *,
    frame_range: tuple[float, float],
    resolution: int = 128,
    static: bool = True,
    surface: bool = True,
    samples: int = DEFAULT_SAMPLES,
    engine: str | None = None,
) -> Generator[CaptureProgress, None, Capture]:
    """Capture a moving object: moving orbit, static orbit, and points on its surface with their movement.

    `folder` gets `moving/`, `static/` (orbit folders) and `surface.npz`.

    Raises:
        SubjectError: the object cannot be captured.
        CaptureError: it does not move, or something failed on the way.
    """
    space = yield from measure_steps(context, obj, frame_range, frames=orbit.frames)
    settings = {"resolution": resolution, "samples": samples, "engine": engine}
    return (yield from capture_motion_steps(space, orbit, folder, static=static, surface=surface, **settings))


def capture_motion_steps(
    space: ClipSpace,
    orbit: Orbit,
    folder: Path,
    *,
    resolution: int = 128,
    static: bool = True,
    surface: bool = True,
    samples: int = DEFAULT_SAMPLES,
    engine: str | None = None,
) -> Generator[CaptureProgress, None, Capture]:
    """As `capture_steps`, of a subject that is measured already."""
    start, end = space.frame_range
    if not space.moves:
        raise CaptureError(
            f"{space.subject.name} does not move between frame {start:g} and {end:g}. "
            "Animate it, choose a frame range in which it moves, or have its motion invented."
        )
    render = bpy.data.scenes[space.subject.scene].render
    fps = render.fps / render.fps_base
    settings = {"resolution": resolution, "samples": samples, "engine": engine}
    moving_cameras = yield from render_orbit_steps(space, orbit, folder / "moving", moving=True, **settings)
    static_cameras = None
    if static:
        still = {"moving": False, "changing": space.changes and surface}
        static_cameras = yield from render_orbit_steps(space, orbit, folder / "static", **still, **settings)
    surface_path = (yield from _write_surface_steps(space, folder, times=orbit.frames)) if surface else None
    return Capture(space, moving_cameras, static_cameras, surface_path, fps * (orbit.frames - 1) / (end - start))


def capture_still_steps(
    space: ClipSpace,
    orbit: Orbit,
    folder: Path,
    *,
    resolution: int,
    fps: float,
    samples: int = DEFAULT_SAMPLES,
    engine: str | None = None,
) -> Generator[CaptureProgress, None, Capture]:
    """Capture an object as it stands at the first frame: static orbit and surface samples.

    `fps` is what the motion that somebody invents for it will play at. Errors and files as for `capture_steps`.
    """
    settings = {"resolution": resolution, "samples": samples, "engine": engine}
    cameras = yield from render_orbit_steps(space, orbit, folder / "static", moving=False, **settings)
    surface = yield from _write_surface_steps(space, folder, times=1)
    return Capture(space, None, cameras, surface, fps)


def capture(
    *arguments,
    on_progress: Callable[[CaptureProgress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    **settings,
) -> Capture:
    """As `capture_steps`, in one go. Raises CaptureCancelled where `is_cancelled` says so."""
    return _exhaust(capture_steps(*arguments, **settings), on_progress, is_cancelled)


# --- inside ----------------------------------------------------------------------------------------------------------


def _cameras_of_changes(space: ClipSpace, parts: list[Cameras]) -> Cameras:
    """As many cameras as these (all round, above, and others), for a subject that does not look alike all the time.

    Every second one of those all round and all others show its fullest moment; what is covered by then is shown from
    above, at even times at which something is there.
    """
    around, above, *others = parts
    rest = len(around.times) - len(around.times[::2])
    filled = np.flatnonzero(space.areas) / max(len(space.areas) - 1, 1)
    moments = filled[np.linspace(0, len(filled) - 1, -(-rest // len(above.times))).round().astype(int)]
    fullest = joined_cameras([around.picked(slice(None, None, 2)), above, *others])
    fullest = replace(fullest, times=np.full(len(fullest.times), space.fullest))
    earlier = [replace(above, times=np.full(len(above.times), moment)) for moment in moments]
    return joined_cameras([fullest, joined_cameras(earlier).picked(slice(rest))]) if rest else fullest


def _write_surface_steps(space: ClipSpace, folder: Path, *, times: int) -> Generator[CaptureProgress, None, Path]:
    samples = yield from sample_surface_steps(space, times=times)
    path = folder / "surface.npz"
    try:
        write_surface_samples(path, samples)
    except OSError as error:
        raise CaptureError(f"The surface cannot be written to {folder}: {error.strerror}.") from error
    return path


def _in_steps(
    subject: Subject,
    size: tuple[int, int],
    engine: str | None,
    samples: int,
    count: int,
    work: Callable[[Stage, int], None],
    name: str,
) -> Generator[CaptureProgress, None, None]:
    """Call `work(stage, 0)` ... `work(stage, count - 1)`, several within one step where they are quick."""
    done = 0
    while done < count:
        if is_rendering():
            yield CaptureProgress("waiting", done, count)
            continue
        width, height = size
        deadline = time.monotonic() + STEP_SECONDS
        with open_stage(subject, width=width, height=height, engine=engine, samples=samples) as stage:
            while done < count:
                work(stage, done)
                done += 1
                if time.monotonic() > deadline:
                    break
        yield CaptureProgress(name, done, count)


def _exhaust(steps: Generator, on_progress=None, is_cancelled=None):
    """Run a generator to its end and return its value."""
    try:
        while True:
            progress = next(steps)
            if progress.stage == "waiting":
                raise CaptureError("Blender is rendering. Wait until the render has ended and try again.")
            if on_progress is not None:
                on_progress(progress)
            if is_cancelled is not None and is_cancelled():
                raise CaptureCancelled
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


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


def _in_world(space: ClipSpace, camera_to_world: np.ndarray, moment: float) -> np.ndarray:  # [4, 4] -> [4, 4]
    """A camera of clip space in Blender's world at a time 0..1; cameras turn and move, but do not scale."""
    camera = camera_to_world.copy()
    camera[:3, 3] = (space.to_world @ camera_to_world[:, 3])[:3] + space.way_at(moment)
    return camera


def _clip_range(space: ClipSpace, camera_to_world: np.ndarray) -> tuple[float, float]:
    """Nearest and farthest depth of the subject before a camera of clip space, in the world's lengths."""
    distance = float(np.linalg.norm(camera_to_world[:3, 3]))
    reach = 2 * float(np.linalg.norm(space.outline, axis=1).max())
    return max(distance - reach, distance / 100, 1e-3) * space.scale, (distance + reach) * space.scale


def _sample_triangles(geometry: Geometry, count: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [count] and barycentric weights [count, 3] of points, evenly by area."""
    areas = geometry.areas()
    if not areas.any():
        raise CaptureError(f"{name} has no surface at the first frame of the range.")
    return even_samples(areas, count, np.random.default_rng(seed))
