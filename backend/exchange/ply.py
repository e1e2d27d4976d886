# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip as PLY files of 3D Gaussian Splatting: one moment, or a numbered sequence that players show as a flipbook."""

from collections.abc import Callable
from pathlib import Path

from backend import __version__
from backend.exchange.moments import Shot
from blender_addon.contract.placement import placed, placed_sh
from blender_addon.contract.splat_files import ply_writer

FIRST_NUMBER = 1  # of the file of frame 0


def write_moment(path: Path, shot: Shot, up_axis: str) -> None:
    """Write the only frame of `shot` to `path` in one step; `up_axis` (one of UP_AXES) is what the header tells.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    (moment,) = shot.moments()
    ply_writer.write_ply(path, placed(moment, shot.matrix), placed_sh(shot.sh(), shot.matrix), comments(shot, up_axis))


def write_sequence(path: Path, shot: Shot, up_axis: str, on_frame: Callable[[int, int], None]) -> list[Path]:
    """Write `name_0001.ply` and so on beside `path`, which is `name.ply`, and return the files; all of them or none.

    The number of a file is that of its stored frame, counted from 1. `on_frame` is told how many are done of how many.

    Raises:
        OSError: they cannot be written; a former sequence is still there.
    """
    sh = placed_sh(shot.sh(), shot.matrix)

    def frames():
        for done, (frame, moment) in enumerate(zip(shot.frames, shot.moments(), strict=True)):
            on_frame(done, len(shot.frames))
            yield FIRST_NUMBER + int(frame), placed(moment, shot.matrix), sh

    return ply_writer.write_ply_sequence(path, frames(), comments(shot, up_axis))


def comments(shot: Shot, up_axis: str) -> list[str]:
    """What the header tells."""
    return ply_writer.header_comments(
        f"Kinesplat {__version__}", color_space=shot.color_space, up_axis=up_axis, fps=shot.clip.fps
    )
