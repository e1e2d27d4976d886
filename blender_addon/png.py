# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures as arrays and as PNG files, without Blender's color management in between."""

import os
import struct
import zlib

import numpy as np

from .contract.arrays import atomic_file

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {3: 2, 4: 6}  # channels -> PNG's number


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write `pixels`, [H, W, 3 or 4] uint8 sRGB with straight alpha, first row on top. Raises OSError."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOR_TYPES[channels], 0, 0, 0)
    with atomic_file(path) as file:
        file.write(SIGNATURE)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def shrunk(pixels: np.ndarray, largest: int) -> np.ndarray:
    """A picture of at most `largest` pixels a side, by averaging blocks of pixels. [H, W, C] float, alpha times color.

    Where the blocks do not fit, up to a block's width is lost on the right and below.
    """
    height, width, channels = pixels.shape
    block = -(-max(height, width) // largest)
    if block == 1:
        return pixels
    rows, columns = max(height // block, 1), max(width // block, 1)
    cut = pixels[: rows * block, : columns * block]
    return cut.reshape(rows, -1, columns, cut.shape[1] // columns, channels).mean(axis=(1, 3))
