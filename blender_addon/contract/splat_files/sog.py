# SPDX-License-Identifier: GPL-3.0-or-later
"""`.sog` of PlayCanvas, version 2: an archive with `meta.json` and a lossless WebP picture for each property.

Needs numpy alone, and somebody who decodes WebP: Blender does, and Pillow.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..arrays import BadFileError
from ..clip import Gaussians
from .splats import DOWN, Splats, antialiased, check_count, described, smallest_three

MAGIC = b"PK\3\4"
VERSION = 2
MAX_META_BYTES = 1 << 20
_ROW = 64  # sets of harmonics in a row of their picture
_LARGEST = 252  # of the fourth channel of a rotation: the first component is the one left out


def read(path: Path, decode_webp: Callable[[bytes], np.ndarray]) -> Splats:
    """The Gaussians of a file.

    Args:
        path: of the file.
        decode_webp: makes [height, width, 4] uint8 of a WebP picture, row by row from above; raises ValueError.

    Raises:
        BadFileError: one sentence about what is wrong with the file.
        OSError: it cannot be read.
    """
    try:
        with described(path.name), zipfile.ZipFile(path) as archive:
            if "meta.json" not in archive.namelist():
                raise BadFileError(
                    f"{path.name} is no SOG file. Kinesplat's own clips (.npz) have an import of their own."
                )
            if archive.getinfo("meta.json").file_size > MAX_META_BYTES:
                raise BadFileError(f"{path.name} is damaged: its description is too long.")
            meta = json.loads(archive.read("meta.json"))
            if meta.get("version") != VERSION:
                raise BadFileError(f"{path.name} is a SOG file of another version than {VERSION}. Save it as PLY.")
            check_count(meta["count"], path.name)

            def picture(part: str, index: int = 0, most: int = 2 * meta["count"] + 4096) -> np.ndarray:  # [pixels, 4]
                entry = archive.getinfo(meta[part]["files"][index])
                if entry.file_size > 5 * most:
                    raise ValueError("A picture is larger than its pixels.")
                data = archive.read(entry)
                width, height = _picture_size(data)
                if width * height > most:
                    raise ValueError("A picture has more pixels than there are Gaussians.")
                return decode_webp(data).reshape(-1, 4)

            moment, sh = _gaussians(meta, picture)
            if "shN" in meta:
                sh = np.concatenate([sh, _harmonics(meta, picture)], axis=1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadFileError(f"{path.name} is damaged: it cannot be unpacked.") from error
    notes = (antialiased(path.name),) if meta.get("antialias") or meta.get("model") == "antialiased" else ()
    return Splats(moment, sh, DOWN, notes=notes)


def _gaussians(meta: dict, picture: Callable[..., np.ndarray]) -> tuple[Gaussians, np.ndarray]:
    """The Gaussians, and their constant harmonics [N, 1, 3]."""
    count = meta["count"]
    low, high = (picture("means", index)[:count, :3].astype(np.float32) for index in range(2))
    least, most = (np.array(meta["means"][end], np.float32).reshape(3) for end in ("mins", "maxs"))
    logs = least + (most - least) * ((low + 256 * high) / 65535)
    means = np.sign(logs) * np.expm1(np.abs(logs))
    scales = np.exp(_codebook(meta, "scales"))[picture("scales")[:count, :3]]
    rotations = picture("quats")[:count]
    quats = smallest_three(rotations[:, :3] / np.float32(255), rotations[:, 3].astype(np.int32) - _LARGEST)
    colors = picture("sh0")[:count]
    opacities = colors[:, 3] / np.float32(255)
    if not len(means) == len(scales) == len(quats) == len(opacities) == count:
        raise ValueError("A picture is too small.")
    return Gaussians(means, quats, scales, opacities), _codebook(meta, "sh0")[colors[:, :3]][:, None]


def _harmonics(meta: dict, picture: Callable[..., np.ndarray]) -> np.ndarray:  # [N, K - 1, 3]
    """Those after the constant one: each Gaussian has one of a few sets of them."""
    sets, count = meta["shN"]["count"], meta["count"]
    values = (meta["shN"]["bands"] + 1) ** 2 - 1
    palette = picture("shN", 0, (sets + _ROW) * values)[:, :3]
    palette = _codebook(meta, "shN")[palette].reshape(-1, values, 3)
    labels = picture("shN", 1)[:count].astype(np.int32)
    return palette[labels[:, 0] + 256 * labels[:, 1]]


def _codebook(meta: dict, part: str) -> np.ndarray:  # [256]
    return np.array(meta[part]["codebook"], np.float32).reshape(256)


def _picture_size(data: bytes) -> tuple[int, int]:
    """Width and height that a lossless WebP picture claims."""
    _, _, webp, kind, _ = struct.unpack("<4sI4s4sI", data[:20])
    if webp != b"WEBP" or kind not in (b"VP8L", b"VP8X"):
        raise ValueError("A picture is no lossless WebP.")
    if kind == b"VP8L":  # one byte, then 14 bits each
        (bits,) = struct.unpack("<I", data[21:25])
        return 1 + (bits & 16383), 1 + (bits >> 14 & 16383)
    low, high = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    return 1 + low, 1 + high
