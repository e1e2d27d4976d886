# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures with cameras and times: what a clip is constructed from."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.splatting.color import decoded
from backend.splatting.orbit_folders import UNREADABLE, find_orbit, find_orbits
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import Cameras, joined_cameras

MAX_PIXELS = 50_000_000  # of one picture; more is refused before it is decoded


@dataclass(frozen=True)
class Observations:
    """V pictures of the subject, with where and when each was taken."""

    images: Tensor  # [V, H, W, 4] float32 0..1, sRGB-coded, colour multiplied by alpha
    cameras: Cameras

    @property
    def viewmats(self) -> Tensor:  # [V, 4, 4] float32, world to camera, OpenCV axes
        """The cameras as splatting wants them."""
        return torch.from_numpy(self.cameras.viewmats()).float()

    @property
    def Ks(self) -> Tensor:  # noqa: N802 - [V, 3, 3] float32, pixels
        """Intrinsics in pixels of `images`."""
        return torch.from_numpy(self.cameras.Ks).float()

    @property
    def times(self) -> Tensor:  # [V] float32, 0..1
        """When each picture was taken."""
        return torch.from_numpy(self.cameras.times).float()

    def subset(self, views: np.ndarray) -> "Observations":  # [V] bool, or indices
        """Some of the views."""
        return Observations(self.images[torch.from_numpy(views)], self.cameras.picked(views))

    def in_color_space(self, color_space: str) -> "Observations":
        """The same with pictures as a fit in that space compares them: "srgb" or "linear"."""
        return replace(self, images=decoded(self.images, color_space))


def joined(parts: list[Observations]) -> Observations:
    """Observations of one picture size as one."""
    return Observations(torch.cat([part.images for part in parts]), joined_cameras([part.cameras for part in parts]))


def read_observations(frames: list[Path], cameras: Cameras) -> Observations:
    """The pictures (PNG, RGBA with straight alpha) of a set of cameras.

    Raises:
        BadFileError: a picture is missing, damaged, of another size, or their number is not that of the cameras.
    """
    if len(frames) != len(cameras.times):
        raise BadFileError(f"The orbit has {len(frames)} pictures but {len(cameras.times)} cameras.")
    images = np.stack([_read_rgba(path, cameras.width, cameras.height) for path in frames])
    images[..., :3] *= images[..., 3:]
    return Observations(torch.from_numpy(images), cameras)


def read_orbit_folder(folder: Path) -> Observations:
    """The observations in an orbit folder, in either layout of `orbit_folders`; of a moving orbit, where it holds two.

    Raises:
        BadFileError: one sentence about what is wrong with the folder.
    """
    found = find_orbit(folder)
    return read_observations(found.frames, found.cameras)


def read_orbit_folders(moving: Path, static: Path | None = None) -> tuple[Observations, Observations | None]:
    """The observations of a moving orbit and of its static one, as `orbit_folders.find_orbits` finds them.

    Raises:
        BadFileError: one sentence about what is wrong with a folder.
    """
    found = [orbit and read_observations(orbit.frames, orbit.cameras) for orbit in find_orbits(moving, static)]
    return found[0], found[1]


def _read_rgba(path: Path, width: int, height: int) -> np.ndarray:  # [H, W, 4] float32
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadFileError(f"{path.name} is too large: {image.width} x {image.height} pixels.")
            if image.size != (width, height):
                raise BadFileError(f"{path.name} has {image.width} x {image.height} pixels, not {width} x {height}.")
            return np.asarray(image.convert("RGBA"), np.float32) / 255
    except BadFileError:
        raise
    except FileNotFoundError as error:
        raise BadFileError(f"The picture {path.name} is missing.") from error
    except UNREADABLE as error:
        raise BadFileError(f"The picture {path.name} cannot be read: it is not a usable PNG.") from error
