# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated frames as something to look at: icons that the panel plays, and an image sequence on disk."""

import logging
from collections.abc import Container
from pathlib import Path

import bpy
import bpy.utils.previews
import numpy as np

from .contract.arrays import BadFileError
from .contract.frames import GeneratedFrames, read_frames
from .contract.orbit import frame_name
from .editors import open_editor
from .png import write_png

INTERVAL = 1 / 12  # seconds between two frames in the panel
BACKDROP = 0.82  # gray behind the subject: neither white nor black things vanish on it
ALIKE = 0.1  # films that differ by less, as a part of their motion, show the same one
COARSE = 4  # each so many pixels are enough to tell them apart

log = logging.getLogger(__name__)


class Films:
    """The frames of each candidate as icons, loaded when first looked at."""

    def __init__(self) -> None:
        self._icons = bpy.utils.previews.new()
        self._films: dict[str, list[int]] = {}  # uid -> icon ids, in order
        self._captions: dict[str, str] = {}
        self._looks: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # moving and static frames, coarse
        self._alike: dict[tuple[str, ...], bool] = {}  # what was compared

    def close(self) -> None:
        """Free the pictures."""
        bpy.utils.previews.remove(self._icons)

    def icon(self, uid: str, path: Path, frame: int) -> int:
        """Icon id of a frame, counted round and round; 0 where the file cannot be read."""
        if uid not in self._films:
            self._films[uid] = self._load(uid, path)
        icons = self._films[uid]
        return icons[frame % len(icons)] if icons else 0

    def caption(self, uid: str) -> str:
        """A few words about a film that was loaded."""
        return self._captions.get(uid, "")

    def move_alike(self, uids: tuple[str, ...]) -> bool:
        """Whether several films that were loaded all show the same motion of the same subject."""
        if len(uids) < 2 or not all(uid in self._looks for uid in uids):
            return False
        if uids not in self._alike:
            first, *others = (self._looks[uid] for uid in uids)
            self._alike[uids] = all(move_alike(first, other) for other in others)
        return self._alike[uids]

    def keep_only(self, uids: Container[str]) -> None:
        """Free the films of all other candidates."""
        for uid in [uid for uid in self._films if uid not in uids]:
            for index in range(len(self._films.pop(uid))):
                self._icons.pop(f"{uid} {index}")
            self._captions.pop(uid, None)
            self._looks.pop(uid, None)
        for compared in [compared for compared in self._alike if not all(uid in uids for uid in compared)]:
            del self._alike[compared]

    def _load(self, uid: str, path: Path) -> list[int]:
        try:
            frames = read_frames(path)
        except (BadFileError, OSError) as error:
            log.warning("Frames cannot be shown: %s", error)  # they were readable when they came
            return []
        self._captions[uid] = caption(frames)
        self._looks[uid] = coarse(frames.moving), coarse(frames.static)
        icons = []
        for index, picture in enumerate(on_backdrop(cropped(frames.moving))):
            preview = self._icons.new(f"{uid} {index}")
            preview.image_size = picture.shape[1], picture.shape[0]
            preview.image_pixels_float.foreach_set(np.ascontiguousarray(picture[::-1]).ravel())
            icons.append(preview.icon_id)
        return icons


def caption(frames: GeneratedFrames) -> str:
    """Two short lines, and a third where its motion is a known one: whose."""
    known = frames.provenance.get("moves_as", "")
    lines = f"Seed {frames.seed}", f"Motion {frames.motion_measured:.1f}", str(known).capitalize()
    return "\n".join(line for line in lines if line)


def coarse(views: np.ndarray) -> np.ndarray:  # [T, H, W, 4] uint8 -> [T, h, w, 4] float32
    """Each `COARSE`th pixel of each view."""
    return views[:, ::COARSE, ::COARSE].astype(np.float32)


def move_alike(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two films, each its moving and its static frames [T, H, W, 4], differ by little of what moves in them."""
    (moving, static), (another, _) = one, other
    return moving.shape == another.shape and bool(
        np.abs(moving - another).mean() < ALIKE * np.abs(moving - static).mean()
    )


def cropped(pictures: np.ndarray) -> np.ndarray:  # [T, S, S, 4] uint8 -> [T, s, s, 4]
    """The smallest square in the middle of all pictures that the subject never leaves."""
    half = pictures.shape[1] / 2
    _, rows, columns = np.nonzero(pictures[..., 3] > 8)
    reach = np.abs(np.concatenate([rows, columns]) + 0.5 - half).max(initial=0)
    edge = max(int(half - reach) - 1, 0) if reach else 0
    return pictures[:, edge : len(pictures[0]) - edge, edge : len(pictures[0]) - edge]


def on_backdrop(pictures: np.ndarray) -> np.ndarray:  # [..., 4] uint8, straight alpha -> [..., 4] float32, opaque
    """Pictures before a plain gray."""
    color, alpha = pictures[..., :3] / np.float32(255), pictures[..., 3:] / np.float32(255)
    mixed = color * alpha + np.float32(BACKDROP) * (1 - alpha)
    return np.concatenate([mixed, np.ones_like(alpha)], axis=-1)


def write_sequence(frames: GeneratedFrames, folder: Path) -> list[Path]:
    """The moving orbit as `frame_000.png` ... with transparency. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / frame_name(index) for index in range(len(frames.moving))]
    for path, picture in zip(paths, frames.moving, strict=True):
        write_png(path, picture)
    return paths


def load_sequence(paths: list[Path], name: str) -> bpy.types.Image:
    """An image sequence of these files in the open file; the same one again where it is there already."""
    image = bpy.data.images.load(str(paths[0]), check_existing=True)
    image.name, image.source = name, "SEQUENCE"
    return image


def show_sequence(context: bpy.types.Context, image: bpy.types.Image, count: int) -> bool:
    """Show an image sequence in an image editor, in a new window if none is open; False in background mode."""
    if bpy.app.background:
        return False
    space = open_editor("IMAGE_EDITOR")
    space.image = image
    user = space.image_user
    user.frame_duration, user.frame_start, user.frame_offset = count, context.scene.frame_start, -1
    user.use_cyclic = user.use_auto_refresh = True
    return True
