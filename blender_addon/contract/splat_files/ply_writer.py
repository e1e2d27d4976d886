# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing PLY files of 3D Gaussian Splatting: a moment each, several as a numbered sequence. Needs numpy alone.

The order is that of gsplat (and of Kerbl et al. 2023, without its normals, which are 0): position, constant color,
further harmonics (all of red, then green, then blue), logit of the opacity, logarithms of the scales, rotation as wxyz.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..arrays import atomic_files
from ..clip import Gaussians
from ..spherical_harmonics import SHARED_DEGREE

_MAX_LOGIT = 16.0  # an opacity of 1 - 1e-7: float32 has nothing finer


def logit(opacities: np.ndarray) -> np.ndarray:
    """Logits of opacities from 0 to 1, both included; finite."""
    with np.errstate(divide="ignore"):
        logits = np.log(opacities) - np.log1p(-opacities)
    return np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The reverse: opacities of what files and meshes keep. float32."""
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def header_comments(program: str, *, color_space: str, up_axis: str, fps: float) -> list[str]:
    """What headers tell people, and `splat_clip` when it reads them; `up_axis` is one of UP_AXES."""
    return [program, f"color space {color_space}", f"up axis {up_axis}", f"{fps:g} frames per second"]


def write_ply(path: str | os.PathLike, moment: Gaussians, sh: np.ndarray, comments: Iterable[str] = ()) -> None:
    """Write the Gaussians of one moment to `path` in one step; a file that is there already is replaced.

    Args:
        path: of the file.
        moment: N Gaussians, in whatever space the file is to have.
        sh: [N, K, 3] spherical harmonics in that space. Those above degree 3, which 3DGS does not have, are left out.
        comments: lines of the header, for people.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path)
    with atomic_files(path.parent) as folder, open(folder / path.name, "wb") as file:
        _write(file, moment, sh, comments)


def write_ply_sequence(
    path: str | os.PathLike,
    frames: Iterable[tuple[int, Gaussians, np.ndarray]],
    comments: Iterable[str] = (),
) -> list[Path]:
    """Write frames as `name_0001.ply` and so on beside `path`, which is `name.ply`; all of them or none.

    Args:
        path: says folder and name.
        frames: number (0 or more), Gaussians and harmonics of each, as `write_ply` takes them. One is held at a time.
        comments: lines of the headers, for people.

    Returns:
        The files. Those of a former sequence of this name are gone, also where it was longer.

    Raises:
        OSError: the files cannot be written; a former sequence is still there.
    """
    path = Path(path)
    comments = list(comments)
    names = []
    with atomic_files(path.parent) as folder:
        for number, moment, sh in frames:
            names.append(f"{path.stem}_{number:04}.ply")
            with open(folder / names[-1], "wb") as file:
                _write(file, moment, sh, comments)
    for former in existing_sequence(path):
        if former.name not in names:
            former.unlink()
    return [path.parent / name for name in names]


def existing_sequence(path: str | os.PathLike) -> list[Path]:
    """The files beside `path`, which is `name.ply`, that players would take for its sequence, in order."""
    path = Path(path)
    numbered = re.compile(re.escape(os.path.normcase(path.stem)) + r"_\d+\.ply")
    return sorted(file for file in path.parent.glob("*") if numbered.fullmatch(os.path.normcase(file.name)))


def _write(file: BinaryIO, moment: Gaussians, sh: np.ndarray, comments: Iterable[str]) -> None:
    count = len(moment.means)
    sh = sh[:, : (SHARED_DEGREE + 1) ** 2]
    columns = {
        "x y z": moment.means,
        "f_dc_0 f_dc_1 f_dc_2": sh[:, 0],
        " ".join(f"f_rest_{index}" for index in range(3 * (sh.shape[1] - 1))): sh[:, 1:].transpose(0, 2, 1),
        "opacity": logit(moment.opacities),
        "scale_0 scale_1 scale_2": np.log(moment.scales),
        "rot_0 rot_1 rot_2 rot_3": moment.quats,
    }
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {' '.join(comment.split())}" for comment in comments]
    header += [f"element vertex {count}"]
    header += [f"property float {name}" for names in columns for name in names.split()]
    file.write("\n".join([*header, "end_header", ""]).encode("ascii", "replace"))
    rows = np.concatenate([values.reshape(count, -1) for values in columns.values()], axis=1)
    file.write(np.ascontiguousarray(rows, "<f4").data)
