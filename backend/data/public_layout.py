# SPDX-License-Identifier: GPL-3.0-or-later
"""Reader of the layout in which Diffusion4D's renderer writes an asset, and in which its public dataset came out.

    multi_frame0.png ...         moving orbit            multi0.json ...   its cameras
    multi_static_frame0.png ...  static orbit            static0.json ...  its cameras
    front_frame0.png ...         front video             front.json        its camera

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
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics, orbit_cameras

MAX_FRAMES = 1_000


@dataclass(frozen=True)
class PublicSample:
    """One asset. Videos are [T, H, W, 4] uint8, sRGB, straight alpha; cameras are those of the moving orbit."""

    moving: np.ndarray
    static: np.ndarray | None
    front: np.ndarray | None
    cameras: Cameras


def read_public_sample(folder: Path) -> PublicSample:
    """One asset's folder.

    Raises:
        BadFileError: no moving orbit, pictures of several sizes, or a file is damaged.
    """
    moving = _read_video(folder, "multi_frame")
    if moving is None:
        raise BadFileError(f"{folder} holds no multi_frame0.png: it is not in the layout of Diffusion4D's dataset.")
    static, front = (_read_video(folder, name) for name in ("multi_static_frame", "front_frame"))
    if static is not None and static.shape != moving.shape:
        raise BadFileError(f"The static orbit in {folder} has other frames than the moving one.")
    return PublicSample(moving, static, front, _read_cameras(folder, moving))


def _read_video(folder: Path, name: str) -> np.ndarray | None:  # [T, H, W, 4] uint8
    numbers = sorted(
        int(match[1]) for path in folder.glob(f"{name}*.png") if (match := re.fullmatch(rf"{name}(\d+)", path.stem))
    )[:MAX_FRAMES]
    if not numbers:
        return None
    if numbers != list(range(len(numbers))):
        raise BadFileError(f"Frames of {name} are missing in {folder}.")
    try:
        frames = [np.asarray(Image.open(folder / f"{name}{k}.png").convert("RGBA")) for k in numbers]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadFileError(f"A picture of {name} in {folder} cannot be read: {error}.") from error
    if len({frame.shape for frame in frames}) > 1:
        raise BadFileError(f"The pictures of {name} in {folder} have several sizes.")
    return np.stack(frames)


def _read_cameras(folder: Path, moving: np.ndarray) -> Cameras:
    frames, height, width = moving.shape[:3]
    times = Orbit(frames).times()
    files = [folder / f"multi{k}.json" for k in range(frames)]
    if not any(file.exists() for file in files):
        return orbit_cameras(Orbit(frames), width, height, moving=True)
    matrices, intrinsic = [], []
    for file in files:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            matrices.append(np.array(data["matrix_world"], np.float64))
            intrinsic.append(intrinsics(np.degrees(float(data["x_fov"])), width, height))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadFileError(f"{file} does not describe a camera: {error}.") from error
    if any(matrix.shape != (4, 4) for matrix in matrices):
        raise BadFileError(f"The cameras in {folder} are not matrices of 4x4 numbers.")
    cameras = Cameras(np.stack(matrices), np.stack(intrinsic), times, width, height)
    cameras.check(str(folder))
    return cameras
