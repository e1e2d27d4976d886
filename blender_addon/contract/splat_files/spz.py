# SPDX-License-Identifier: GPL-3.0-or-later
"""`.spz`, Niantic's format of phones and web tools, versions 1 to 4.

Needs numpy alone; version 4 also a reader of Zstandard: Python 3.14 has one, Blender brings `zstandard`.
"""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ..arrays import BadFileError
from ..clip import Gaussians
from ..spherical_harmonics import MAX_DEGREE
from .splats import Splats, antialiased, check_count, ends_early, with_largest

MAGIC = b"NGSP"  # of what is packed; versions up to 3 are packed with gzip as a whole
PACKED_MAGIC = b"\x1f\x8b\x08"  # of gzip
UP_AXIS = "Y"  # its axes point right, up and back
NEWEST = 4
MAX_EXTENSIONS = 1 << 20  # bytes behind the Gaussians, which are for other programs
_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, Gaussians, degree, fractional bits, flags, streams (version 4)
_ANTIALIASED = 1
_COLOR = 0.15  # what a harmonic of 1 adds to a color in the file


class _Header(NamedTuple):
    version: int
    count: int
    degree: int
    fractional_bits: int
    antialiased: bool
    streams: int

    def sections(self) -> dict[str, int]:
        """Bytes of each part, in the order of the file."""
        harmonics = (self.degree + 1) ** 2 - 1
        widths = {"means": 6 if self.version == 1 else 9, "opacities": 1, "colors": 3, "scales": 3}
        widths |= {"quats": 4 if self.version >= 3 else 3, "sh": 3 * harmonics}
        return {name: width * self.count for name, width in widths.items() if width}


def read(path: Path) -> Splats:
    """The Gaussians of a file.

    Raises:
        BadFileError: one sentence about what is wrong with the file, or what reading it takes.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(len(MAGIC)) != MAGIC
            file.seek(0)
            with gzip.open(file) if packed else file as unpacked:
                header = _read_header(unpacked, path.name)
                parts = (_read_streams if header.version == 4 else _read_parts)(unpacked, header, path.name)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadFileError(f"{path.name} is damaged: it cannot be unpacked.") from error
    except EOFError as error:
        raise BadFileError(f"{path.name} is damaged: it ends too early.") from error
    notes = (antialiased(path.name),) if header.antialiased else ()
    return Splats(_gaussians(header, parts), _sh(header, parts), UP_AXIS, notes=notes)


def _read_header(file: BinaryIO, name: str) -> _Header:
    data = file.read(_HEADER.size)
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise BadFileError(f"{name} is no SPZ file, or damaged.")
    _, version, count, degree, bits, flags, streams = _HEADER.unpack(data)
    if not 1 <= version <= NEWEST:
        raise BadFileError(
            f"{name} is an SPZ file of version {version}, and 1 to {NEWEST} can be read. Save it as PLY, or as an "
            "older version."
        )
    check_count(count, name)
    if degree > MAX_DEGREE or bits > 24:
        raise BadFileError(f"{name} is damaged: its header cannot be right.")
    return _Header(version, count, degree, bits, bool(flags & _ANTIALIASED), streams)


def _read_parts(file: BinaryIO, header: _Header, name: str) -> dict[str, np.ndarray]:
    """The bytes of each part, [N, width]. No more is unpacked than the Gaussians need."""
    parts = {}
    for part, size in header.sections().items():
        data = file.read(size)
        if len(data) < size:
            raise ends_early(name, header.count)
        parts[part] = np.frombuffer(data, np.uint8).reshape(header.count, -1)
    file.read(MAX_EXTENSIONS)  # to its end, where gzip compares a checksum
    return parts


def _read_streams(file: BinaryIO, header: _Header, name: str) -> dict[str, np.ndarray]:
    """The same of version 4: behind a table of their sizes each part is packed by itself."""
    sections = header.sections()
    (table_at,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
    file.seek(0, os.SEEK_END)
    end = file.tell()
    file.seek(table_at)
    table = file.read(16 * len(sections))
    if len(table) < 16 * len(sections):
        raise ends_early(name, header.count)
    sizes = np.frombuffer(table, "<u8")  # packed and unpacked, in turn
    if header.streams != len(sections) or sizes[1::2].tolist() != list(sections.values()):
        raise BadFileError(f"{name} is damaged: its parts do not fit its {header.count:,} Gaussians.")
    parts = {}
    for (part, size), packed in zip(sections.items(), sizes[::2].tolist(), strict=True):
        if packed > end - file.tell():
            raise ends_early(name, header.count)
        data = _zstandard(file.read(packed), size, name)
        parts[part] = np.frombuffer(data, np.uint8).reshape(header.count, -1)
    return parts


def _zstandard(packed: bytes, size: int, name: str) -> bytes:
    """`size` unpacked bytes; never more, whatever the packed ones claim."""
    try:
        from compression.zstd import ZstdError
        from compression.zstd import open as unpacked
    except ImportError:
        try:
            from zstandard import ZstdError
            from zstandard import open as unpacked
        except ImportError as error:
            raise BadFileError(
                f"{name} is an SPZ file of version {NEWEST}, which needs the Python package zstandard. Run: pip "
                "install zstandard. Or save it as PLY, or as version 3."
            ) from error
    try:
        with unpacked(io.BytesIO(packed)) as file:
            data = file.read(size)
    except (ZstdError, EOFError) as error:
        raise BadFileError(f"{name} is damaged: it cannot be unpacked.") from error
    if len(data) < size:
        raise BadFileError(f"{name} is damaged: it ends too early.")
    return data


def _gaussians(header: _Header, parts: dict[str, np.ndarray]) -> Gaussians:
    if header.version == 1:
        means = parts["means"].view("<f2").astype(np.float32)
    else:
        low, middle, high = (parts["means"][:, byte::3].astype(np.int32) for byte in range(3))
        means = (low | middle << 8 | (high ^ 128) - 128 << 16) * np.float32(0.5**header.fractional_bits)
    scales = np.exp(np.arange(256, dtype=np.float32) / 16 - 10)[parts["scales"]]
    opacities = parts["opacities"][:, 0] / np.float32(255)
    return Gaussians(means.astype(np.float32), _quats(header, parts["quats"]), scales, opacities)


def _quats(header: _Header, codes: np.ndarray) -> np.ndarray:  # [N, 3 or 4] -> [N, 4]
    if header.version < 3:  # x, y, z; w is at least 0
        others, largest = codes / np.float32(127.5) - 1, 3
    else:  # of x, y, z, w the three smaller ones: ten bits each, of which one is the sign
        packed = codes.view("<u4")
        fields = packed >> np.array([20, 10, 0], np.uint32) & 1023
        lengths = (fields & 511).astype(np.float32) * np.float32(math.sqrt(0.5) / 511)
        others, largest = np.where(fields & 512, -lengths, lengths), packed[:, 0] >> 30
    return np.roll(with_largest(others, largest), 1, axis=-1)


def _sh(header: _Header, parts: dict[str, np.ndarray]) -> np.ndarray:
    sh = (parts["colors"] / np.float32(255) - np.float32(0.5))[:, None] / np.float32(_COLOR)
    if not header.degree or (parts["sh"] == 128).all():
        return sh
    further = (np.arange(256, dtype=np.float32) / 128 - 1)[parts["sh"]]
    return np.concatenate([sh, further.reshape(header.count, -1, 3)], axis=1)
