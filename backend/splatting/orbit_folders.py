# SPDX-License-Identifier: GPL-3.0-or-later
"""Orbit folders: which pictures lie there, and where their cameras stand. No picture is decoded; without torch.

A folder holds `frame_000.png` ... and `orbit.json`, or an asset as Diffusion4D's renderer writes it, in which its
public dataset came out:

    multi_frame0.png ...         moving orbit            multi0.json ...   its cameras
    multi_static_frame0.png ...  static orbit            static0.json ...  its cameras

The part from Objaverse-XL has no static orbits, and the samples in the authors' repository have no cameras: those
are then the ones that the renderer uses by itself.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import (
    ORBIT_JSON,
    Cameras,
    Orbit,
    frame_name,
    intrinsics,
    orbit_cameras,
    read_orbit_json,
)

MOVING, STATIC = "multi_frame", "multi_static_frame"
# What Pillow raises for PNG files that are damaged, too large, or have more text in them than it unpacks.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, Image.DecompressionBombError)
CAMERA_NAMES = {MOVING: ("multi",), STATIC: ("static", "multi")}  # both orbits stand on the same circle


@dataclass(frozen=True)
class OrbitFiles:
    """The pictures of an orbit in order, with their cameras."""

    frames: list[Path]
    cameras: Cameras


def find_orbits(moving: Path, static: Path | None = None) -> tuple[OrbitFiles, OrbitFiles | None]:
    """A moving orbit and its static one, if there is one.

    static: its folder; by default what lies beside the moving orbit, in a folder of Diffusion4D's layout.

    Raises:
        BadFileError: one sentence about what is wrong with a folder.
    """
    found = find_orbit(moving)
    if static is None and not _is_ours(moving) and _numbered_pictures(moving, STATIC):
        static = moving
    return found, find_orbit(static, STATIC) if static else None


def find_orbit(folder: Path, kind: str = MOVING) -> OrbitFiles:
    """The orbit in a folder; of the two in Diffusion4D's layout that of `kind`: MOVING or STATIC.

    Raises:
        BadFileError: one sentence about what is wrong with the folder.
    """
    if _is_ours(folder):
        cameras = read_orbit_json(folder)
        return OrbitFiles([folder / frame_name(i) for i in range(len(cameras.times))], cameras)
    pictures = _numbered_pictures(folder, kind)
    if not pictures:
        raise BadFileError(
            f"{folder / ORBIT_JSON} is missing, and so is {kind}0.png: this is no folder of an orbit in either layout."
        )
    missing = next((number for number in range(len(pictures)) if number not in pictures), None)
    if missing is not None:
        raise BadFileError(f"The picture {folder / f'{kind}{missing}.png'} is missing.")
    frames = [path for _, path in sorted(pictures.items())]
    return OrbitFiles(frames, _cameras(folder, kind, len(frames), *_size(frames[0])))


def _is_ours(folder: Path) -> bool:
    return (folder / ORBIT_JSON).exists()


def _numbered_pictures(folder: Path, kind: str) -> dict[int, Path]:
    matches = ((re.fullmatch(rf"{kind}(\d+)", path.stem), path) for path in folder.glob(f"{kind}*.png"))
    return {int(match[1]): path for match, path in matches if match}


def _size(picture: Path) -> tuple[int, int]:  # width and height
    try:
        with Image.open(picture, formats=["PNG"]) as image:
            return image.size
    except UNREADABLE as error:
        raise BadFileError(f"The picture {picture} cannot be read: it is not a usable PNG.") from error


def _cameras(folder: Path, kind: str, count: int, width: int, height: int) -> Cameras:
    orbit = Orbit(count)  # the renderer's own
    cameras = orbit_cameras(orbit, width, height, moving=kind == MOVING)
    name = next((name for name in CAMERA_NAMES[kind] if any(folder.glob(f"{name}[0-9]*.json"))), None)
    if name:
        read = [_camera(folder / f"{name}{k}.json", width, height) for k in range(count)]
        matrices, Ks = (np.stack(arrays) for arrays in zip(*read, strict=True))  # noqa: N806 - as in Cameras
        cameras = Cameras(matrices, Ks, cameras.times, width, height)
    cameras.check(str(folder))
    return cameras


def _camera(file: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:  # [4, 4] to world, and K [3, 3]
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        matrix = np.array(data["matrix_world"], np.float64)
        K = intrinsics(np.degrees(float(data["x_fov"])), width, height)  # noqa: N806
    except FileNotFoundError as error:
        raise BadFileError(f"The camera {file} is missing.") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFileError(f"{file} does not describe a camera by matrix_world and x_fov.") from error
    if matrix.shape != (4, 4):
        raise BadFileError(f"{file} does not describe a camera: matrix_world is not a matrix of 4 x 4 numbers.")
    return matrix, K
