# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary glTF files with KHR_gaussian_splatting, as Khronos ratified it in 2026. Needs numpy alone."""

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import rotations
from ..arrays import BadFileError
from ..clip import Gaussians
from ..placement import placed, placed_sh
from ..spherical_harmonics import MAX_DEGREE, converted
from .splats import Splats, check_count, described, ends_early

MAGIC = b"glTF"
EXTENSION = "KHR_gaussian_splatting"
UP_AXIS = "Y"
MAX_JSON_BYTES = 16 << 20
_COLOR_SPACES = {"srgb_rec709_display": "srgb", "lin_rec709_display": "linear"}
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def read(path: Path) -> Splats:
    """The Gaussians of a file: of all its splat primitives, where its scene places them.

    Raises:
        BadFileError: one sentence about what is wrong with the file.
        OSError: it cannot be read.
    """
    with described(path.name), open(path, "rb") as file:
        document, body = _read_chunks(file, path.name)
        found = [
            (primitive, matrix)
            for mesh, matrix in _placed_meshes(document)
            for primitive in document["meshes"][mesh]["primitives"]
            if EXTENSION in primitive.get("extensions", {})
        ]
        if not found:
            raise BadFileError(
                f"{path.name} holds no Gaussians. Where it holds meshes, Blender's own glTF import opens it."
            )
        check_count(sum(_count(document, primitive) for primitive, _ in found), path.name)
        parts = [_read_primitive(file, document, body, *each, path.name) for each in found]
    color_space = parts[0].color_space
    most = max(part.sh.shape[1] for part in parts)
    moments = [vars(part.moment) for part in parts]
    moment = Gaussians(**{name: np.concatenate([each[name] for each in moments]) for name in moments[0]})
    sh = [
        np.pad(converted(part.sh, part.color_space, color_space), ((0, 0), (0, most - part.sh.shape[1]), (0, 0)))
        for part in parts
    ]
    return Splats(moment, np.concatenate(sh), UP_AXIS, color_space)


def _read_chunks(file: BinaryIO, name: str) -> tuple[dict, tuple[int, int]]:
    """The document, and where its buffer begins and ends in the file."""
    size = os.fstat(file.fileno()).st_size
    magic, version, _, length, kind = struct.unpack("<4sIII4s", file.read(20).ljust(20, b"\0"))
    if magic != MAGIC or version != 2 or kind != b"JSON" or length > min(size, MAX_JSON_BYTES):
        raise BadFileError(f"{name} is no binary glTF file of version 2, or damaged.")
    document = json.loads(file.read(length))
    length, kind = struct.unpack("<I4s", file.read(8).ljust(8, b"\0"))
    start = file.tell()
    if kind != b"BIN\0" or "uri" in document["buffers"][0]:
        raise BadFileError(f"{name} keeps its Gaussians in another file. Save it as one file.")
    return document, (start, min(start + length, size))


def _placed_meshes(document: dict) -> Iterator[tuple[int, np.ndarray]]:
    """The meshes of the scene, each with the matrix [4, 4] that places it."""
    nodes = document["nodes"]
    families = [(document["scenes"][document.get("scene", 0)]["nodes"], np.eye(4))]  # children, and what places them
    found = 0
    for children, placing in families:  # more come while it goes on
        found += len(children)
        if found > len(nodes):
            raise ValueError("A node is in two places, or in a circle.")
        for node in (nodes[index] for index in children):
            matrix = placing @ _matrix(node)
            families.append((node.get("children", []), matrix))
            if "mesh" in node:
                yield node["mesh"], matrix


def _matrix(node: dict) -> np.ndarray:  # [4, 4]
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    matrix[:3, :3] = rotations.to_matrix(np.array([w, x, y, z], np.float64)) * node.get("scale", (1, 1, 1))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _count(document: dict, primitive: dict) -> int:
    return int(document["accessors"][primitive["attributes"]["POSITION"]]["count"])


def _read_primitive(
    file: BinaryIO, document: dict, body: tuple[int, int], primitive: dict, matrix: np.ndarray, name: str
) -> Splats:
    said = primitive["extensions"][EXTENSION]
    if packed := [key for key in said.get("extensions", {}) if "compression" in key]:
        raise BadFileError(
            f"{name} is compressed with {packed[0]}, which cannot be read. Save it uncompressed, or as SPZ."
        )
    if said["colorSpace"] not in _COLOR_SPACES:
        raise BadFileError(f"{name} has colors in {said['colorSpace']}, which cannot be read.")
    attributes = primitive["attributes"]

    def values(attribute: str, kind: str) -> np.ndarray:  # [N, components]
        accessor = document["accessors"][attributes[attribute]]
        if (accessor["count"], accessor["type"]) != (_count(document, primitive), kind):
            raise ValueError(f"{attribute} does not fit the others.")
        return _values(file, document, body, accessor, name)

    harmonics = [
        f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}"
        for degree in range(MAX_DEGREE + 1)
        for index in range(2 * degree + 1)
        if f"{EXTENSION}:SH_DEGREE_{degree}_COEF_0" in attributes
    ]
    sh = np.stack([values(attribute, "VEC3") for attribute in harmonics], axis=1)
    if math.isqrt(sh.shape[1]) ** 2 != sh.shape[1]:
        raise ValueError("A degree of the harmonics is missing.")
    quats = np.roll(values(f"{EXTENSION}:ROTATION", "VEC4"), 1, axis=-1)  # x, y, z, w in the file
    scales = values(f"{EXTENSION}:SCALE", "VEC3")
    if (scales < 0).any():  # logarithms, as in drafts of the extension
        scales = np.exp(scales)
    moment = Gaussians(
        means=values("POSITION", "VEC3"),
        quats=quats,
        scales=scales,
        opacities=values(f"{EXTENSION}:OPACITY", "SCALAR")[:, 0],
    )
    if not np.array_equal(matrix, np.eye(4)):
        moment, sh = placed(moment, matrix), placed_sh(sh, matrix)
    return Splats(moment, sh, UP_AXIS, _COLOR_SPACES[said["colorSpace"]])


def _values(file: BinaryIO, document: dict, body: tuple[int, int], accessor: dict[str, Any], name: str) -> np.ndarray:
    """What an accessor describes, [N, components] float32."""
    view = document["bufferViews"][accessor["bufferView"]]
    dtype, width, count = np.dtype(_COMPONENTS[accessor["componentType"]]), _WIDTHS[accessor["type"]], accessor["count"]
    stride = view.get("byteStride", width * dtype.itemsize)
    start = accessor.get("byteOffset", 0)
    size = stride * (count - 1) + width * dtype.itemsize
    if "sparse" in accessor or stride < width * dtype.itemsize or start < 0 or start + size > view["byteLength"]:
        raise ValueError("The accessor does not fit its view.")
    at = body[0] + view.get("byteOffset", 0) + start
    if at < body[0] or at + size > body[1]:
        raise ends_early(name, count)
    file.seek(at)
    table = np.ndarray((count, width), dtype, file.read(size), strides=(stride, dtype.itemsize))
    values = table.astype(np.float32)
    if accessor.get("normalized"):
        values = np.maximum(values / np.iinfo(dtype).max, -1)
    return values
