# SPDX-License-Identifier: GPL-3.0-or-later
"""`.splat`, the format of antimatter15's viewer: rows of 32 bytes without a header. Needs numpy alone."""

import os
from pathlib import Path

import numpy as np

from ..arrays import BadFileError
from ..clip import Gaussians
from .splats import DOWN, Splats, check_count, constant_sh

ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])


def read(path: Path) -> Splats:
    """The Gaussians of a file; it has no harmonics after the constant one.

    Raises:
        BadFileError: it is no such file, or damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size % ROW.itemsize:
            raise BadFileError(f"{path.name} is no .splat file, or damaged: its {size:,} bytes are no whole Gaussians.")
        check_count(size // ROW.itemsize, path.name)
        table = np.frombuffer(file.read(size), ROW)
    colors = table["color"] / np.float32(255)
    quats = (table["quat"].astype(np.float32) - 128) / 128  # w, x, y, z
    moment = Gaussians(table["mean"].astype(np.float32), quats, np.abs(table["scale"].astype(np.float32)), colors[:, 3])
    return Splats(moment, constant_sh(colors[:, :3]), DOWN)
