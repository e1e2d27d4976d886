# SPDX-License-Identifier: GPL-3.0-or-later
"""What all splat files come to, and what several of their formats have in common. Needs numpy alone."""

import contextlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..arrays import BadFileError
from ..clip import MAX_GAUSSIANS, Gaussians
from ..spherical_harmonics import C0

DOWN = "Y_DOWN"  # the axes of files that come from training: cameras of photogrammetry look with Y down


@dataclass(frozen=True)
class Splats:
    """The Gaussians of one file, as they lie in it: they need not be finite, nor their rotations of unit length."""

    moment: Gaussians  # [N, ...], float32
    sh: np.ndarray  # [N, K, 3] float32, without degrees that are 0 throughout
    up_axis: str  # one of UP_AXES: what the file says, or what its format usually has
    color_space: str = "srgb"
    fps: float | None = None  # where the file says it
    notes: tuple[str, ...] = ()  # sentences about what is not in `moment` and `sh` as in the file


def check_count(count: int, name: str) -> None:
    """Hold the number of Gaussians that a file claims against what can be held.

    Raises:
        BadFileError: none, or too many.
    """
    if not 1 <= count <= MAX_GAUSSIANS:
        raise BadFileError(f"{name} holds {count:,} Gaussians, and 1 to {MAX_GAUSSIANS:,} can be imported.")


def ends_early(name: str, count: int) -> BadFileError:
    """The error for a file that ends too early."""
    return BadFileError(f"{name} is damaged: it ends before its {count:,} Gaussians do.")


@contextlib.contextmanager
def described(name: str) -> Iterator[None]:
    """Where a file's own description is followed, which may say anything.

    Raises:
        BadFileError: what it says leads nowhere.
    """
    try:
        yield
    except BadFileError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error) as error:
        raise BadFileError(f"{name} is damaged: what it says about its Gaussians cannot be right.") from error


def antialiased(name: str) -> str:
    """The sentence about a file whose Gaussians were fitted for drawing with antialiasing."""
    return f"{name} is made for antialiased drawing: what is small in the picture looks a little thicker here"


def constant_sh(colors: np.ndarray) -> np.ndarray:  # [N, 3], 0 to 1 -> [N, 1, 3] float32
    """Harmonics of degree 0 that show these colors."""
    return ((colors - 0.5) / C0).astype(np.float32)[:, None]


def with_largest(others: np.ndarray, largest: np.ndarray) -> np.ndarray:  # [N, 3], [N] -> [N, 4] float32
    """Unit quaternions whose component number `largest` was left out, as it follows from the others, in their order."""
    others = others.astype(np.float32)
    left = np.sqrt(np.maximum(1 - np.einsum("ni,ni->n", others, others), 0))
    quats = np.empty((len(others), 4), np.float32)
    for index in range(4):
        before, after = others[:, min(index, 2)], others[:, max(index - 1, 0)]
        quats[:, index] = np.where(largest == index, left, np.where(largest > index, before, after))
    return quats


def smallest_three(shares: np.ndarray, largest: np.ndarray) -> np.ndarray:  # [N, 3], 0 to 1, [N] -> [N, 4] float32
    """The same of components that are coded as shares of what the smaller three can be: -0.7 to 0.7."""
    return with_largest((shares - np.float32(0.5)) * np.float32(math.sqrt(2)), largest)
