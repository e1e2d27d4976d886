# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of a PLY file: which tables follow, and the comments. Needs numpy alone."""

from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np

from ..arrays import BadFileError

MAX_HEADER_BYTES = 1 << 16
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}


class Element(NamedTuple):
    """A table: its rows have the fields of `dtype`, which is empty where they are lists or of unknown types."""

    name: str
    count: int
    dtype: np.dtype


class Header(NamedTuple):
    """What a header says; the rows of the elements follow it in this order."""

    elements: list[Element]
    comments: list[str]
    is_text: bool


def read_header(file: BinaryIO, name: str) -> Header:
    """The header at the beginning of `file`, which is left where the rows begin.

    Raises:
        BadFileError: there is none, or it cannot be read.
    """
    lines = []
    while not lines or lines[-1] != "end_header":
        line = file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES or (not lines and line.strip() != b"ply"):
            raise BadFileError(f"{name} is no PLY file, or damaged.")
        lines.append(line.decode("utf-8", "replace").strip())
    words = [line.split() for line in lines if line]
    order = ">" if ["format", "binary_big_endian", "1.0"] in words else "<"
    starts = [index for index, line in enumerate(words) if line[0] == "element"]
    try:
        elements = [_element(words[start:end], order) for start, end in pairwise([*starts, len(words)])]
    except ValueError as error:
        raise BadFileError(f"{name} is no PLY file of 3D Gaussian Splatting.") from error
    comments = [line.removeprefix("comment").strip() for line in lines if line.startswith("comment")]
    return Header(elements, comments, ["format", "ascii", "1.0"] in words)


def _element(words: list[list[str]], order: str) -> Element:
    (_, name, count), *others = words
    try:
        fields = [line[1:] for line in others if line[0] == "property"]
        dtype = np.dtype([(field, order + _TYPES[kind]) for kind, field in fields])
    except (KeyError, ValueError):
        dtype = np.dtype([])
    return Element(name, int(count), dtype)
