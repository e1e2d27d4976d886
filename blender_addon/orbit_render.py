# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of a subject from all around, with its surface: what a request is made of."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from .capture_progress import CaptureProgress, in_steps
from .clip_space import ClipSpace
from .contract.orbit import Cameras, Orbit, frame_name, further_orbits, joined_cameras, orbit_cameras, write_orbit_json
from .contract.surface import write_surface_samples
from .stage import DEFAULT_SAMPLES, ENGINES, Stage, automatic_engine
from .subject import CaptureError
from .surface_samples import sample_surface_steps

MARGIN = 0.03  # of the picture, left free on each side


@dataclass(frozen=True)
class Capture:
    """All that a request of kind `orbit` or `object` needs, on disk."""

    space: ClipSpace
    moving: Cameras | None  # frames in <folder>/moving; None where only the first moment was captured
    static: Cameras | None  # frames in <folder>/static
    surface: Path | None
    fps: float  # at which the moving orbit plays as fast as the scene


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
        yield from in_steps(space.subject, size, engine, samples, len(cameras.times), render, stage)
        write_orbit_json(folder, cameras)
    except BaseException as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise CaptureError(f"The pictures cannot be written to {folder}: {error.strerror}.") from error
        raise
    return cameras


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
    `_cameras_of_changes`. The distance is that of `orbit`, enlarged where the subject would not fit; the cameras that
    are returned and written say what was used. Arguments and errors as for `render_views_steps`; `resolution` is the
    side in pixels.
    """
    orbits = [orbit] if moving else [orbit, *further_orbits(orbit)]
    orbits = [replace(one, distance=fitting_distance(space.outline, one)) for one in orbits]
    parts = [orbit_cameras(one, resolution, resolution, moving=moving) for one in orbits]
    cameras = _cameras_of_changes(space, parts) if changing else joined_cameras(parts)
    stage = "moving" if moving else "static"
    return (yield from render_views_steps(space, cameras, folder, engine=engine, samples=samples, stage=stage))


# --- everything ------------------------------------------------------------------------------------------------------


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
    """Capture a moving object: moving orbit, static orbit, and points on its surface with their movement.

    `folder` gets `moving/`, `static/` (orbit folders) and `surface.npz`.

    Raises:
        CaptureError: it does not move, or something failed on the way.
    """
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

    `fps` is what the motion that somebody invents for it will play at. Errors and files as for `capture_motion_steps`.
    """
    settings = {"resolution": resolution, "samples": samples, "engine": engine}
    cameras = yield from render_orbit_steps(space, orbit, folder / "static", moving=False, **settings)
    surface = yield from _write_surface_steps(space, folder, times=1)
    return Capture(space, None, cameras, surface, fps)


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
