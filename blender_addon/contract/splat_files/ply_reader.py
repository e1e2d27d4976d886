# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading PLY files of 3D Gaussian Splatting, plain or as SuperSplat compresses them. Needs numpy alone."""

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..arrays import BadFileError
from ..clip import COLOR_SPACES, Gaussians
from ..placement import UP_AXES
from ..spherical_harmonics import MAX_DEGREE
from . import compressed_ply
from .ply_header import Element, Header, read_header
from .splats import DOWN, Splats, check_count, ends_early

_NEEDED = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_HARMONICS = [3 * ((degree + 1) ** 2 - 1) for degree in range(1, MAX_DEGREE + 1)]  # values after the constant ones


def read(path: Path) -> Splats:
    """The Gaussians of a file. Harmonics after the constant one that are all 0 are left out.

    Raises:
        BadFileError: one sentence about what is wrong with the file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        header = read_header(file, path.name)
        compressed = bool(header.elements) and header.elements[0].name == compressed_ply.CHUNKS
        elements = compressed_ply.checked(header.elements, path.name) if compressed else _checked(header, path.name)
        gaussians = elements[compressed]
        if header.is_text:
            raise BadFileError(f"{path.name} is a text PLY file. Save it as a binary one.")
        check_count(gaussians.count, path.name)
        further = _further(elements[-1].dtype, path.name)
        if os.fstat(file.fileno()).st_size - file.tell() < sum(map(_size, elements)):
            raise ends_early(path.name, gaussians.count)
        tables = [_table(file, element) for element in elements]
    if compressed:
        moment, sh = compressed_ply.unpacked(*tables[:2])
        rest = compressed_ply.harmonics(_columns(tables[-1], further)) if further else None
    else:
        moment, sh = _plain(tables[0])
        rest = _columns(tables[0], further).astype(np.float32) if further else None
    if rest is not None and rest.any():
        sh = np.concatenate([sh, rest.reshape(len(sh), 3, -1).transpose(0, 2, 1)], axis=1)
    said = _said(header.comments)
    return Splats(moment, sh, said.get("up_axis", DOWN), said.get("color_space", "srgb"), said.get("fps"))


def _checked(header: Header, name: str) -> list[Element]:
    """The element that holds the Gaussians of a plain file. Raises BadFileError."""
    if not header.elements or not header.elements[0].dtype.names:  # among them faces, which are lists
        raise BadFileError(f"{name} is no PLY file of 3D Gaussian Splatting.")
    first = header.elements[0]
    if first.name != "vertex" or not set(_NEEDED) <= set(first.dtype.names):
        raise BadFileError(
            f"{name} holds no Gaussians. Where it holds a mesh or points, Blender's own Stanford PLY import opens it."
        )
    return [first]


def _further(dtype: np.dtype, name: str) -> list[str]:
    """The fields of the harmonics after the constant one: all of red, then green, then blue. Raises BadFileError."""
    count = sum(field.startswith("f_rest_") for field in dtype.names)
    names = [f"f_rest_{index}" for index in range(count)]
    if count and (count not in _HARMONICS or not set(names) <= set(dtype.names)):
        raise BadFileError(f"{name} has {count} values f_rest_*, which make no spherical harmonics.")
    return names


def _size(element: Element) -> int:
    return element.count * element.dtype.itemsize


def _table(file: BinaryIO, element: Element) -> np.ndarray:
    return np.frombuffer(file.read(_size(element)), element.dtype)


def _columns(table: np.ndarray, names: list[str]) -> np.ndarray:  # [N, names]
    return np.stack([table[name] for name in names], axis=-1)


def _plain(table: np.ndarray) -> tuple[Gaussians, np.ndarray]:
    """The Gaussians, and their constant harmonics [N, 1, 3]."""

    def columns(*names: str) -> np.ndarray:
        return _columns(table, names).astype(np.float32)

    scales = np.exp(columns("scale_0", "scale_1", "scale_2"))
    opacities = 1 / (1 + np.exp(-columns("opacity")[:, 0]))
    moment = Gaussians(columns("x", "y", "z"), columns("rot_0", "rot_1", "rot_2", "rot_3"), scales, opacities)
    return moment, columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]


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
