# SPDX-License-Identifier: GPL-3.0-or-later
"""One moment of a clip as a binary glTF file with KHR_gaussian_splatting, as Khronos ratified it in 2026.

Splats have no time in glTF. Against the drafts, sizes are linear here, not logarithms.
"""

import errno
import json
import struct
from pathlib import Path

import numpy as np

from backend import __version__
from backend.exchange.moments import Shot
from blender_addon.contract.arrays import atomic_files
from blender_addon.contract.clip import Gaussians
from blender_addon.contract.color import srgb_to_linear
from blender_addon.contract.placement import UP_AXES, placed, placed_sh
from blender_addon.contract.spherical_harmonics import C0

EXTENSION = "KHR_gaussian_splatting"
COLOR_SPACES = {"srgb": "srgb_rec709_display", "linear": "lin_rec709_display"}
POINTS = 0
COMPONENT_TYPES = {"float32": 5126, "uint16": 5123}
ARRAY_BUFFER = 34962
MAX_BYTES = 2**32 - 1  # of a binary glTF file


def write_glb(path: Path, shot: Shot) -> None:
    """Write the only frame of `shot` to `path` in one step, turned to glTF's axes (Y up, the front towards +Z).

    Positions, rotations, sizes and colors themselves are turned, not the node: many viewers do not turn harmonics.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    matrix = UP_AXES["Y"] @ shot.matrix
    (moment,) = shot.moments()
    attributes = splat_attributes(placed(moment, matrix), placed_sh(shot.sh(), matrix), shot.color_space)
    document = _document(path.stem, attributes, shot)
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = document["buffers"][0]["byteLength"]
    whole = 12 + 8 + len(text) + 8 + body
    if whole > MAX_BYTES:
        raise OSError(errno.EFBIG, "Too many Gaussians for one binary glTF file", str(path))
    with atomic_files(path.parent) as folder, open(folder / path.name, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, whole))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", body, b"BIN\0"))
        for values in attributes.values():
            file.write(values.data)


def splat_attributes(moment: Gaussians, sh: np.ndarray, color_space: str) -> dict[str, np.ndarray]:
    """The attributes of the primitive by name, [N, 1, 3 or 4] each. Every row fills whole words of four bytes.

    `COLOR_0` is what programs draw that know no splats: colored points, in linear light as glTF demands.
    """
    base = np.clip(0.5 + C0 * sh[:, 0], 0, 1)
    light = srgb_to_linear(base) if color_space == "srgb" else base
    fallback = np.concatenate([light, moment.opacities[:, None]], axis=-1)
    attributes = {
        "POSITION": moment.means,
        f"{EXTENSION}:ROTATION": np.roll(moment.quats, -1, axis=-1),  # x, y, z, w
        f"{EXTENSION}:SCALE": moment.scales,
        f"{EXTENSION}:OPACITY": moment.opacities[:, None],
        **{
            f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}": sh[:, degree**2 + index]
            for degree in range(round(sh.shape[1] ** 0.5))
            for index in range(2 * degree + 1)
        },
    }
    attributes = {name: np.ascontiguousarray(values, "<f4") for name, values in attributes.items()}
    return attributes | {"COLOR_0": np.ascontiguousarray(np.round(fallback * 65535), "<u2")}


def _document(name: str, attributes: dict[str, np.ndarray], shot: Shot) -> dict:
    views, accessors, offset = [], [], 0
    for index, (attribute, values) in enumerate(attributes.items()):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": values.nbytes, "target": ARRAY_BUFFER})
        accessor = {
            "bufferView": index,
            "componentType": COMPONENT_TYPES[values.dtype.name],
            "count": len(values),
            "type": {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[values.shape[1]],
        }
        if values.dtype == np.uint16:
            accessor["normalized"] = True
        if attribute == "POSITION":
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        accessors.append(accessor)
        offset += values.nbytes
    primitive = {
        "mode": POINTS,
        "attributes": {attribute: index for index, attribute in enumerate(attributes)},
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": COLOR_SPACES[shot.color_space]}},
    }
    return {
        "asset": {
            "version": "2.0",
            "generator": f"Kinesplat {__version__}",
            "extras": {"kinesplat": shot.made_of},
        },
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
