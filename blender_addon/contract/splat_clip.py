# SPDX-License-Identifier: GPL-3.0-or-later
"""Splat files of other programs, of whichever format, as a clip. Needs numpy alone.

One file is a clip of one frame; several, whose Gaussians are the same ones in the same order, are its frames. Numbers
that are missing among them are frames as well, interpolated, so that the others keep their time.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from . import rotations
from .arrays import BadFileError
from .clip import MAX_FRAMES, Clip, FrameMotion, Gaussians, clip_of_moments
from .placement import UP_AXES
from .splat_files.opening import read_splats
from .splat_files.splats import Splats

_FARTHEST = 1e15  # of places and scales: beyond that they are damage, and no longer reckoned with in float32
_SMALLEST = 1e-20  # of scales: nothing, and yet above 0
_ALIKE = 0.02  # of harmonics: their colors differ by less than 2 of 255, as roundings of files do
_ENDING = re.compile(r"(\.compressed\.ply|\.[^.]*)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)[_.\- ]?(\d+)")


def sequences(paths: Iterable[str | os.PathLike]) -> list[list[Path]]:
    """Files sorted into clips: those of a folder whose names differ in their last number alone, in its order.

    What the names end in, such as `.ply`, tells files of different formats apart.
    """
    found: dict[Path | tuple, list[Path]] = {}
    for path in sorted(map(Path, paths), key=lambda path: (_stem_and_number(path), path.name)):
        stem, number = _stem_and_number(path)
        found.setdefault((path.parent, stem, path.suffix.lower()) if number >= 0 else path, []).append(path)
    return list(found.values())


def read_splat_clip(
    paths: Sequence[str | os.PathLike],
    *,
    fps: float,
    decode_webp: Callable[[bytes], np.ndarray],
    up_axis: str | None = None,
) -> tuple[Clip, list[str]]:
    """The clip that splat files hold, one frame each, and sentences about what is not in it as in them.

    Its `to_object` leads to the space of the files, turned to Blender's axes.

    Args:
        paths: one or more files, in the order of time: one of the lists of `sequences`.
        fps: frames per second where the files do not say it.
        decode_webp: as `splat_files.sog.read` takes it.
        up_axis: one of UP_AXES; by default what the files say, or what their format usually has.

    Raises:
        BadFileError: one sentence about what is wrong with a file, or why they are not one clip.
        OSError: one cannot be read.
    """
    paths = [Path(path) for path in paths]
    if len(paths) > MAX_FRAMES:
        raise BadFileError(f"{len(paths):,} files are too many: a clip has at most {MAX_FRAMES:,} frames.")
    times, gap = _times(paths)
    moments, first, notes = _read_frames(paths, decode_webp)
    moments, sh, left_out = _usable(moments, first.sh)
    if not len(sh):
        raise BadFileError(f"{paths[0].name} holds no Gaussians that can be drawn.")
    if left_out:
        notes.append(f"{left_out:,} Gaussians without a place, a rotation, a size or a color are left out")
    low, high = moments.means.min(axis=(0, 1)), moments.means.max(axis=(0, 1))
    size = float((high - low).max()) or 1.0
    to_file = np.diag([size, size, size, 1.0])  # from clip space
    to_file[:3, 3] = (low.astype(np.float64) + high) / 2
    means = ((moments.means - to_file[:3, 3]) / size).astype(np.float32)
    quats = rotations.normalize(rotations.make_continuous(moments.quats.astype(np.float64))).astype(np.float32)
    scales = np.maximum(moments.scales / np.float32(size), np.float32(_SMALLEST))
    opacities = np.clip(moments.opacities, 0, 1)
    clip = Clip(
        means=means[0],
        quats=quats[0],
        scales=scales[0],
        opacities=opacities[0],
        sh=sh,
        motion=FrameMotion(
            means,
            quats,
            None if np.allclose(scales, scales[:1], rtol=1e-4, atol=0) else scales,
            None if np.allclose(opacities, opacities[:1], atol=1e-5) else opacities,
        ),
        name=(_stem_and_number(paths[0])[0] if len(paths) > 1 else _name(paths[0]))[:200] or "Gaussians",
        fps=first.fps or fps,
        color_space=first.color_space,
        to_object=np.linalg.inv(UP_AXES[up_axis or first.up_axis]) @ to_file,
        provenance={"imported_from": paths[0].name},
    )
    if len(times) > len(paths):
        clip = clip_of_moments(clip, [clip.frame(time) for time in times])
    return clip, [gap, *notes] if gap else notes


def _times(paths: list[Path]) -> tuple[list[float], str]:
    """Of each frame of the clip, where it lies among the files, and a sentence where numbers do not follow each other.

    Numbers may go by another step than 1, as of every fifth frame: the largest that leads to all of them.
    """
    numbers = [_stem_and_number(path)[1] for path in paths]
    for (path, number), (other, following) in pairwise(zip(paths, numbers, strict=True)):
        if number == following >= 0:
            raise BadFileError(f"{path.name} and {other.name} have the same number: choose one of them.")
    step = math.gcd(*(following - number for number, following in pairwise(numbers))) or 1
    count = (numbers[-1] - numbers[0]) // step + 1
    if count <= len(paths):
        return list(range(len(paths))), ""
    if count > MAX_FRAMES:  # of seconds, or of files from several places
        return list(range(len(paths))), "Numbers lie too far apart to be those of frames: the files follow each other"
    wanted = range(numbers[0], numbers[-1] + 1, step)
    first = min(set(wanted).difference(numbers))
    said = f"{count - len(paths):,} numbers are missing, the first of them {first}: their frames are interpolated"
    if count - len(paths) == 1:
        said = f"Number {first} is missing: its frame is interpolated"
    return np.interp(wanted, numbers, range(len(paths))).tolist(), said


def _read_frames(paths: list[Path], decode_webp: Callable[[bytes], np.ndarray]) -> tuple[Gaussians, Splats, list[str]]:
    """Gaussians along a leading axis of frames, the first file with what counts for all, and what is not kept."""
    first = read_splats(paths[0], decode_webp)
    moments, changing = [first.moment], False
    for path in paths[1:]:
        other = read_splats(path, decode_webp)
        if len(other.sh) != len(first.sh):
            raise BadFileError(
                f"{path.name} holds {len(other.sh):,} Gaussians, and {paths[0].name} {len(first.sh):,}: "
                "frames of one clip must hold the same ones. Import the files one by one."
            )
        if other.sh.shape != first.sh.shape or not np.allclose(other.sh, first.sh, atol=_ALIKE, equal_nan=True):
            changing = True
            if _shuffled(other.sh[:, 0], first.sh[:, 0]):
                raise BadFileError(
                    f"{path.name} holds its Gaussians in another order than {paths[0].name}, as programs write them "
                    "that sort each file by itself. Import the files one by one, or write them as plain PLY."
                )
        moments.append(other.moment)
    names = ("means", "quats", "scales", "opacities")
    stacked = Gaussians(*(np.stack([getattr(moment, name) for moment in moments]) for name in names))
    notes = [f"Colors change over time: those of {paths[0].name} are kept"] if changing else []
    return stacked, first, [*notes, *first.notes]


def _shuffled(colors: np.ndarray, others: np.ndarray) -> bool:  # [N, 3] x 2
    """Whether two files have the same colors, but not of the same Gaussians."""
    apart = np.abs(colors - others).mean()
    apart_at_best = np.abs(np.sort(colors, axis=0) - np.sort(others, axis=0)).mean()
    return bool(apart > 0.25 * others.std(axis=0).mean() and apart > 10 * apart_at_best)


def _usable(moments: Gaussians, sh: np.ndarray) -> tuple[Gaussians, np.ndarray, int]:
    """Without Gaussians that are at any time no numbers, too far or without a rotation; and how many these are."""
    usable = moments.quats.any(axis=-1).all(axis=0) & np.isfinite(sh).all(axis=(1, 2))
    for values, most in ((moments.means, _FARTHEST), (moments.scales, _FARTHEST), (moments.quats, np.inf)):
        usable &= (np.isfinite(values) & (np.abs(values) <= most)).all(axis=(0, 2))
    usable &= np.isfinite(moments.opacities).all(axis=0)
    kept = Gaussians(*(values[:, usable] for values in vars(moments).values()))
    return kept, sh[usable], int(np.count_nonzero(~usable))


def _stem_and_number(path: Path) -> tuple[str, int]:
    """What of a name comes before its last number, and that number: -1 where there is none."""
    match = _NUMBERED.fullmatch(_name(path))
    return (match[1], int(match[2])) if match else (_name(path), -1)


def _name(path: Path) -> str:
    """The name of a file without what says its format."""
    return _ENDING.sub("", path.name)
