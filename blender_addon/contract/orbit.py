# SPDX-License-Identifier: GPL-3.0-or-later
"""Orbits: cameras round a subject at the origin of clip space.

A camera is a camera-to-world matrix 4x4 with OpenGL axes (x right, y up, z backward) and intrinsics K 3x3 in pixels,
y down, pixel centres at .5. Cameras always travel as matrices with the frames; nobody derives them from a frame's
number.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .arrays import BadFileError, atomic_file, demands

FORMAT = "kinesplat-orbit"
VERSION = 1
ORBIT_JSON = "orbit.json"
MAX_VIEWS = 4_096
FURTHER = (3, 60.0, 45.0), (3, 0.0, -45.0), (1, 0.0, 90.0), (1, 0.0, -90.0)  # views, first azimuth, elevation
FURTHER_VIEWS = sum(views for views, *_ in FURTHER)


@dataclass(frozen=True)
class Orbit:
    """One circle round the origin. Angles in degrees, lengths in clip space.

    The first camera stands at -Y (Blender's front) when `azimuth_start` is 0; azimuth grows counter-clockwise seen
    from above, elevation towards +Z. `closed` steps by 360 / (frames - 1), so that the last view equals the first
    (Diffusion4D's public data); open orbits step by 360 / frames.
    """

    frames: int = 24
    azimuth_start: float = 0.0
    elevation: float = 0.0
    distance: float = 2.0
    fov: float = 39.6  # horizontal field of view
    closed: bool = True

    def azimuths(self) -> np.ndarray:  # [T] float64, degrees
        """Azimuth of each camera; they grow past 360 rather than wrap."""
        steps = max(self.frames - 1, 1) if self.closed else self.frames
        return self.azimuth_start + 360.0 * np.arange(self.frames) / steps

    def times(self) -> np.ndarray:  # [T] float64, 0..1
        """Time of each frame of a moving orbit. (A static orbit is all at time 0.)"""
        return np.arange(self.frames) / max(self.frames - 1, 1)

    def camera_to_world(self) -> np.ndarray:  # [T, 4, 4] float64
        """The cameras, each looking at the origin with +Z up."""
        return np.stack([orbit_camera(azimuth, self.elevation, self.distance) for azimuth in self.azimuths()])


@dataclass(frozen=True)
class Cameras:
    """The cameras and times of V pictures of one size."""

    camera_to_world: np.ndarray  # [V, 4, 4] float64, OpenGL axes, clip space
    Ks: np.ndarray  # [V, 3, 3] float64, pixels
    times: np.ndarray  # [V] float64, 0..1
    width: int
    height: int

    def picked(self, views: np.ndarray | list[int] | slice) -> "Cameras":  # indices or bool
        """Some of them."""
        return Cameras(self.camera_to_world[views], self.Ks[views], self.times[views], self.width, self.height)

    def viewmats(self) -> np.ndarray:  # [V, 4, 4] float64
        """World-to-camera with OpenCV axes (x right, y down, z forward), as splatting wants them."""
        return np.linalg.inv(self.camera_to_world @ np.diag([1.0, -1.0, -1.0, 1.0]))

    def to_json(self) -> dict:
        """Plain lists and numbers, as in `orbit.json` and in requests."""
        return {
            "camera_to_world": self.camera_to_world.tolist(),
            "Ks": self.Ks.tolist(),
            "times": self.times.tolist(),
            "width": self.width,
            "height": self.height,
        }

    @classmethod
    def from_json(cls, data: dict, label: str = "The orbit") -> "Cameras":
        """Cameras out of plain lists, checked.

        Raises:
            BadFileError: one sentence about what is wrong.
        """

        def numbers(name: str) -> np.ndarray:
            try:
                return np.array(data[name], np.float64)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                problem = f"{name} must be there, numbers alone in lists of one length"
                raise BadFileError(f"{label} has no usable cameras: {problem}.") from error

        arrays = [numbers(name) for name in ("camera_to_world", "Ks", "times")]
        cameras = cls(*arrays, data.get("width"), data.get("height"))
        cameras.check(label)
        return cameras

    def check(self, label: str = "The orbit") -> None:
        """Raises BadFileError where shapes, numbers or sizes are not those of usable cameras."""
        demand = demands(f"{label} has no usable cameras")
        views = len(self.camera_to_world) if self.camera_to_world.ndim else 0
        demand(1 <= views <= MAX_VIEWS, f"it has {views} views, and 1 to {MAX_VIEWS} are allowed")
        demand(self.camera_to_world.shape == (views, 4, 4), "camera_to_world is not a list of 4x4 matrices")
        demand(self.Ks.shape == (views, 3, 3), "Ks is not a list of 3x3 matrices, one per view")
        demand(self.times.shape == (views,), "times is not a list of numbers, one per view")
        for name in ("camera_to_world", "Ks", "times"):
            demand(np.isfinite(getattr(self, name)).all(), f"{name} holds numbers that are not finite")
        for size in (self.width, self.height):
            demand(type(size) is int and 1 <= size <= 8192, "width and height must be whole numbers up to 8192")
        rotation = self.camera_to_world[:, :3, :3]
        rigid = np.allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3), atol=1e-3)
        demand(rigid, "camera_to_world is not made of rotation and translation")
        demand((np.linalg.det(rotation) > 0).all(), "camera_to_world mirrors (one axis points the wrong way)")
        demand(np.allclose(self.camera_to_world[:, 3], [0, 0, 0, 1]), "the last row must be 0 0 0 1")
        demand((self.Ks[:, [0, 1], [0, 1]] > 0).all(), "focal lengths must be above 0")
        others = self.Ks[:, [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]]
        demand(np.array_equal(others, np.tile([0, 0, 0, 0, 1], (views, 1))), "Ks must be fx 0 cx, 0 fy cy, 0 0 1")
        demand(((self.times >= 0) & (self.times <= 1)).all(), "times must lie between 0 and 1")


def orbit_camera(azimuth: float, elevation: float, distance: float) -> np.ndarray:  # [4, 4] float64
    """Camera-to-world matrix of a camera that looks at the origin. Degrees; azimuth 0 stands at -Y."""
    azimuth, elevation = np.radians(azimuth), np.radians(elevation)
    backward = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
    matrix[:3, 3] = distance * backward
    return matrix


def intrinsics(fov: float, width: int, height: int) -> np.ndarray:  # [3, 3] float64
    """Pinhole intrinsics of a horizontal field of view in degrees, with square pixels and the axis in the middle."""
    focal = 0.5 * width / np.tan(np.radians(fov) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def orbit_cameras(orbit: Orbit, width: int, height: int, *, moving: bool) -> Cameras:
    """The cameras of a moving orbit (frame i at time i / (T - 1)) or of a static one (all at time 0)."""
    return Cameras(
        camera_to_world=orbit.camera_to_world(),
        Ks=np.repeat(intrinsics(orbit.fov, width, height)[None], orbit.frames, axis=0),
        times=orbit.times() if moving else np.zeros(orbit.frames),
        width=width,
        height=height,
    )


def further_orbits(orbit: Orbit) -> list[Orbit]:
    """From where a subject is seen besides its static orbit: from above, from below, and between.

    To cameras that stand at its height it does not show its back, and of a wing that is held flat only the edge.
    """
    return [
        replace(orbit, frames=frames, azimuth_start=azimuth, elevation=elevation, closed=False)
        for frames, azimuth, elevation in FURTHER
    ]


def further_cameras(orbit: Orbit, width: int, height: int) -> Cameras:
    """The cameras of `further_orbits`, all at time 0."""
    return joined_cameras([orbit_cameras(one, width, height, moving=False) for one in further_orbits(orbit)])


def joined_cameras(parts: list[Cameras]) -> Cameras:
    """Sets of cameras of one picture size as one set."""
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("camera_to_world", "Ks", "times")]
    return Cameras(*arrays, parts[0].width, parts[0].height)


def frame_name(index: int) -> str:
    """Name of a frame's picture in an orbit folder."""
    return f"frame_{index:03d}.png"


def write_orbit_json(folder: str | os.PathLike, cameras: Cameras, **told: str) -> None:
    """Write `orbit.json` beside the frames (`frame_000.png` ..., RGBA, straight alpha, sRGB).

    told: what else is to stand there, for who reads the file as JSON.
    """
    data = {"format": FORMAT, "version": VERSION, **told, **cameras.to_json()}
    with atomic_file(Path(folder) / ORBIT_JSON) as file:
        file.write(json.dumps(data, indent=1).encode())


def read_orbit_json(folder: str | os.PathLike) -> Cameras:
    """The cameras of an orbit folder.

    Raises:
        BadFileError: `orbit.json` is missing or wrong.
    """
    path = Path(folder) / ORBIT_JSON
    label = f"{path.parent.name}/{ORBIT_JSON}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadFileError(f"{label} is missing: this is not an orbit folder.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadFileError(f"{label} cannot be read.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise BadFileError(f"{label} is not an orbit description of this version.")
    return Cameras.from_json(data, label)
