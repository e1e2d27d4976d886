# SPDX-License-Identifier: GPL-3.0-or-later
"""PLY files of 3D Gaussian Splatting, of whichever program, as a clip. Needs numpy alone.

One file is a clip of one frame; several, whose Gaussians are the same ones in the same order, are its frames. Numbers
that are missing among them are frames as well, interpolated, so that the others keep their time.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import rotations
from .arrays import BadFileError
from .clip import COLOR_SPACES, MAX_FRAMES, MAX_GAUSSIANS, Clip, FrameMotion, Gaussians, clip_of_moments
from .placement import UP_AXES
from .spherical_harmonics import MAX_DEGREE

MAX_HEADER_BYTES = 1 << 16
USUAL_UP_AXIS = "Y_DOWN"  # of files that say nothing: cameras of photogrammetry look with Y down
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
_NEEDED = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_HARMONICS = [3 * ((degree + 1) ** 2 - 1) for degree in range(1, MAX_DEGREE + 1)]  # values after the constant ones
_FARTHEST = 1e15  # of places and scales: beyond that they are damage, and no longer reckoned with in float32
_SMALLEST = 1e-20  # of scales: nothing, and yet above 0
_NUMBERED = re.compile(r"(.*?)[_.\- ]?(\d+)\.ply", re.IGNORECASE)


def sequences(paths: Iterable[str | os.PathLike]) -> list[list[Path]]:
    """Files sorted into clips: those of a folder whose names differ in their last number alone, in its order."""
    found: dict[tuple, list[Path]] = {}
    for path in sorted(map(Path, paths), key=lambda path: (_stem_and_number(path), path.name)):
        stem, number = _stem_and_number(path)
        found.setdefault((path.parent, stem, number >= 0), []).append(path)
    return list(found.values())


def read_ply_clip(
    paths: Sequence[str | os.PathLike], *, fps: float, up_axis: str | None = None
) -> tuple[Clip, list[str]]:
    """The clip that PLY files hold, one frame each, and sentences about what is not in it as in them.

    Its `to_object` leads to the space of the files, turned to Blender's axes.

    Args:
        paths: one or more files, in the order of time: one of the lists of `sequences`.
        fps: frames per second where the files do not say it.
        up_axis: one of UP_AXES; by default what the files say, or USUAL_UP_AXIS.

    Raises:
        BadFileError: one sentence about what is wrong with a file, or why they are not one clip.
        OSError: one cannot be read.
    """
    paths = [Path(path) for path in paths]
    if len(paths) > MAX_FRAMES:
        raise BadFileError(f"{len(paths):,} files are too many: a clip has at most {MAX_FRAMES:,} frames.")
    times, gap = _times(paths)
    moments, sh, comments, notes = _read_frames(paths)
    moments, sh, left_out = _usable(moments, sh)
    if not len(sh):
        raise BadFileError(f"{paths[0].name} holds no Gaussians that can be drawn.")
    if left_out:
        notes.append(f"{left_out:,} Gaussians without a place, a size or a color are left out")
    low, high = moments.means.min(axis=(0, 1)), moments.means.max(axis=(0, 1))
    size = float((high - low).max()) or 1.0
    to_file = np.diag([size, size, size, 1.0])  # from clip space
    to_file[:3, 3] = (low.astype(np.float64) + high) / 2
    means = ((moments.means - to_file[:3, 3]) / size).astype(np.float32)
    quats = rotations.normalize(rotations.make_continuous(moments.quats.astype(np.float64))).astype(np.float32)
    scales = np.maximum(moments.scales / np.float32(size), np.float32(_SMALLEST))
    opacities = moments.opacities
    said = _said(comments)
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
        name=(_stem_and_number(paths[0])[0] if len(paths) > 1 else paths[0].stem)[:200] or "Gaussians",
        fps=said.get("fps", fps),
        color_space=said.get("color_space", "srgb"),
        to_object=np.linalg.inv(UP_AXES[up_axis or said.get("up_axis", USUAL_UP_AXIS)]) @ to_file,
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


def _read_frames(paths: list[Path]) -> tuple[Gaussians, np.ndarray, list[str], list[str]]:
    """Gaussians along a leading axis of frames, and of the first file harmonics and comments; what is not kept."""
    first, sh, comments = read_ply(paths[0])
    moments, notes = [first], []
    for path in paths[1:]:
        moment, colors, _ = read_ply(path)
        if len(moment.means) != len(first.means):
            raise BadFileError(
                f"{path.name} holds {len(moment.means):,} Gaussians, and {paths[0].name} {len(first.means):,}: "
                "frames of one clip must hold the same ones. Import the files one by one."
            )
        if not notes and not (colors.shape == sh.shape and np.allclose(colors, sh, atol=1e-3, equal_nan=True)):
            notes = [f"Colors change over time: those of {paths[0].name} are kept"]
        moments.append(moment)
    names = ("means", "quats", "scales", "opacities")
    return Gaussians(*(np.stack([getattr(moment, name) for moment in moments]) for name in names)), sh, comments, notes


def _usable(moments: Gaussians, sh: np.ndarray) -> tuple[Gaussians, np.ndarray, int]:
    """Without Gaussians that are at any time no numbers, too far or without a rotation; and how many these are."""
    usable = moments.quats.any(axis=-1).all(axis=0) & np.isfinite(sh).all(axis=(1, 2))
    for values, most in ((moments.means, _FARTHEST), (moments.scales, _FARTHEST), (moments.quats, np.inf)):
        usable &= (np.isfinite(values) & (np.abs(values) <= most)).all(axis=(0, 2))
    usable &= np.isfinite(moments.opacities).all(axis=0)
    kept = Gaussians(*(values[:, usable] for values in vars(moments).values()))
    return kept, sh[usable], int(np.count_nonzero(~usable))


def read_ply(path: str | os.PathLike) -> tuple[Gaussians, np.ndarray, list[str]]:
    """The Gaussians of a file, their harmonics [N, K, 3], and the comments of its header.

    Numbers are as they lie in the file: they need not be finite, and rotations not of unit length. Harmonics after the
    constant one that are all 0 are left out.

    Raises:
        BadFileError: one sentence about what is wrong with the file.
        OSError: it cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        count, dtype, comments = _read_header(file, path.name)
        if os.fstat(file.fileno()).st_size - file.tell() < count * dtype.itemsize:
            raise BadFileError(f"{path.name} is damaged: it ends before its {count:,} Gaussians do.")
        table = np.frombuffer(file.read(count * dtype.itemsize), dtype)

    def columns(*names: str) -> np.ndarray:  # [N, names]
        return np.stack([table[name].astype(np.float32) for name in names], axis=-1)

    sh = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    further = [name for name in dtype.names if name.startswith("f_rest_")]
    if further:
        if len(further) not in _HARMONICS or set(further) != {f"f_rest_{index}" for index in range(len(further))}:
            raise BadFileError(f"{path.name} has {len(further)} values f_rest_*, which make no spherical harmonics.")
        rest = columns(*(f"f_rest_{index}" for index in range(len(further))))
        if rest.any():
            sh = np.concatenate([sh, rest.reshape(count, 3, -1).transpose(0, 2, 1)], axis=1)
    with np.errstate(over="ignore"):
        scales = np.exp(columns("scale_0", "scale_1", "scale_2"))
        opacities = 1 / (1 + np.exp(-columns("opacity")[:, 0]))
    moment = Gaussians(columns("x", "y", "z"), columns("rot_0", "rot_1", "rot_2", "rot_3"), scales, opacities)
    return moment, sh, comments


def _read_header(file: BinaryIO, name: str) -> tuple[int, np.dtype, list[str]]:
    """Number and layout of the Gaussians that follow, and the comments."""
    lines = []
    while not lines or lines[-1] != "end_header":
        line = file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES or (not lines and line.strip() != b"ply"):
            raise BadFileError(f"{name} is no PLY file, or damaged.")
        lines.append(line.decode("utf-8", "replace").strip())
    words = [line.split() for line in lines if line]
    if any("packed_position" in line for line in words):
        raise BadFileError(f"{name} is a compressed PLY file. Save it uncompressed, as SuperSplat's PLY export does.")
    order = ">" if ["format", "binary_big_endian", "1.0"] in words else "<"
    elements = [index for index, line in enumerate(words) if line[0] == "element"]
    try:
        start, end = [*elements, len(words)][:2]
        _, element, count = words[start]
        properties = [line for line in words[start:end] if line[0] == "property"]
        dtype = np.dtype([(field, order + _TYPES[kind]) for _, kind, field in properties])
        count = int(count)
    except (IndexError, KeyError, ValueError) as error:  # among them lists, which Gaussians do not have
        raise BadFileError(f"{name} is no PLY file of 3D Gaussian Splatting.") from error
    if element != "vertex" or not set(_NEEDED) <= set(dtype.names):
        raise BadFileError(
            f"{name} holds no Gaussians. Where it holds a mesh or points, Blender's own Stanford PLY import opens it."
        )
    if ["format", "ascii", "1.0"] in words:
        raise BadFileError(f"{name} is a text PLY file. Save it as a binary one.")
    if not 1 <= count <= MAX_GAUSSIANS:
        raise BadFileError(f"{name} holds {count:,} Gaussians, and 1 to {MAX_GAUSSIANS:,} can be imported.")
    return count, dtype, [line.removeprefix("comment").strip() for line in lines if line.startswith("comment")]


def _said(comments: list[str]) -> dict:
    """What the comments of Kinesplat's own files say: `color_space`, `up_axis`, `fps`, as far as they do."""
    said = {}
    for comment in comments:
        if match := re.fullmatch(r"color space (\w+)", comment):
            said |= {"color_space": match[1]} if match[1] in COLOR_SPACES else {}
        elif match := re.fullmatch(r"up axis (\w+)", comment):
            said |= {"up_axis": match[1]} if match[1] in UP_AXES else {}
        elif match := re.fullmatch(r"(\d+(?:\.\d+)?) frames per second", comment):
            said |= {"fps": float(match[1])} if 0 < float(match[1]) <= 1000 else {}
    return said


def _stem_and_number(path: Path) -> tuple[str, int]:
    """What of a name comes before its last number, and that number: -1 where there is none."""
    match = _NUMBERED.fullmatch(path.name)
    return (match[1], int(match[2])) if match else (path.stem, -1)
