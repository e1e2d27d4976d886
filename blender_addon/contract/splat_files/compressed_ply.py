# SPDX-License-Identifier: GPL-3.0-or-later
"""The compressed PLY of SuperSplat: 16 bytes a Gaussian, within the bounds of chunks of 256. Needs numpy alone."""

import math

import numpy as np

from ..arrays import BadFileError
from ..clip import Gaussians
from .ply_header import Element
from .splats import constant_sh, smallest_three

CHUNKS = "chunk"  # the element with the bounds
CHUNK = 256  # Gaussians that share them
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_BOUNDS = {f"{end}_{name}" for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z") for end in ("min", "max")}
_COLOR_BOUNDS = {f"{end}_{name}" for name in "rgb" for end in ("min", "max")}  # younger files have them
_NO_HARMONIC = 128  # how writers code a coefficient of 0; readers make 1/64 of it


def checked(elements: list[Element], name: str) -> list[Element]:
    """The chunks, the Gaussians and, where there are some, their harmonics.

    Raises:
        BadFileError: the file is none of this format, or damaged.
    """
    chunks, vertices, *others = [*elements, Element("", 0, np.dtype([]))]
    fields = vertices.dtype.fields or {}
    packed = all(fields.get(field, (None,))[0] in ("<u4", ">u4") for field in _PACKED)
    if not packed or not set(chunks.dtype.names) >= _BOUNDS:
        raise BadFileError(f"{name} is no compressed PLY file of 3D Gaussian Splatting.")
    harmonics = [element for element in others[:1] if element.name == "sh" and element.dtype.names]
    if chunks.count != math.ceil(vertices.count / CHUNK) or any(part.count != vertices.count for part in harmonics):
        raise BadFileError(f"{name} is damaged: its tables do not fit each other.")
    return [chunks, vertices, *harmonics]


def unpacked(chunks: np.ndarray, vertices: np.ndarray) -> tuple[Gaussians, np.ndarray]:
    """The Gaussians, and their constant harmonics [N, 1, 3]; of the rows of both elements."""
    chunk = np.arange(len(vertices)) // CHUNK

    def within(shares: np.ndarray, *names: str) -> np.ndarray:  # [N, names] of 0 to 1 -> between the bounds
        low, high = (
            np.stack([chunks[f"{end}_{name}"] for name in names], axis=-1).astype(np.float32) for end in ("min", "max")
        )
        return low[chunk] * (1 - shares) + high[chunk] * shares

    colors = _shares(vertices["packed_color"], (24, 8), (16, 8), (8, 8))
    if set(chunks.dtype.names) >= _COLOR_BOUNDS:
        colors = within(colors, "r", "g", "b")
    thirds = (21, 11), (11, 10), (0, 11)
    rotations = vertices["packed_rotation"]
    moment = Gaussians(
        means=within(_shares(vertices["packed_position"], *thirds), "x", "y", "z"),
        quats=smallest_three(_shares(rotations, (20, 10), (10, 10), (0, 10)), rotations >> 30),
        scales=np.exp(within(_shares(vertices["packed_scale"], *thirds), "scale_x", "scale_y", "scale_z")),
        opacities=_shares(vertices["packed_color"], (0, 8))[:, 0],
    )
    return moment, constant_sh(colors)


def harmonics(codes: np.ndarray) -> np.ndarray | None:  # [N, values] uint8 -> the same, float32
    """Coefficients of degree 1 and more; None where all of them are 0."""
    if (codes == _NO_HARMONIC).all():
        return None
    values = (np.arange(256, dtype=np.float32) + 0.5) / 256
    values[[0, 255]] = 0, 1
    return (values * 8 - 4)[codes]


def _shares(packed: np.ndarray, *places: tuple[int, int]) -> np.ndarray:  # [N] uint32 -> [N, places] float32
    """What the bits at each (shift, count) are of the largest number that they can hold."""
    parts = [((packed >> shift) & ((1 << bits) - 1)).astype(np.float32) / ((1 << bits) - 1) for shift, bits in places]
    return np.stack(parts, axis=-1)
