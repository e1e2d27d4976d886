# SPDX-License-Identifier: GPL-3.0-or-later
"""Which format a splat file is in, by its first bytes. Needs numpy alone."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..arrays import BadFileError
from . import antimatter, glb, ply_reader, sog, spz
from .splats import Splats

SUFFIXES = (".ply", ".spz", ".splat", ".sog", ".glb")
# Long enough that no Gaussian, with which a .splat file begins, looks like them.
_READERS = {b"ply": ply_reader.read, spz.PACKED_MAGIC: spz.read, spz.MAGIC: spz.read, glb.MAGIC: glb.read}


def read_splats(path: str | os.PathLike, decode_webp: Callable[[bytes], np.ndarray]) -> Splats:
    """The Gaussians of a file of whichever format; `decode_webp` as `sog.read` takes it.

    Raises:
        BadFileError: one sentence about what is wrong with the file, or that it is none of these.
        OSError: it cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(4)
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is counted later
        for magic, read in _READERS.items():
            if start.startswith(magic):
                return read(path)
        if start == sog.MAGIC:
            return sog.read(path, decode_webp)
        if path.suffix.lower() == ".splat":  # has no first bytes of its own
            return antimatter.read(path)
    raise BadFileError(f"{path.name} is no splat file, or damaged: {', '.join(SUFFIXES)} can be read.")
