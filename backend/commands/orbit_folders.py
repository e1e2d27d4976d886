# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures with their cameras as folders, or as a contact sheet; without torch, which takes its time to import."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from backend.evaluation.sheets import SheetRow, on_white, sheet
from backend.progress import UserError
from blender_addon.contract.arrays import TEMPORARY, atomic_file, atomic_files
from blender_addon.contract.frames import GeneratedFrames
from blender_addon.contract.orbit import ORBIT_JSON, Cameras, frame_name, write_orbit_json

MADE_BY = "kinesplat generate"  # stands in `orbit.json` of folders that may be written anew


def write_generated(frames: GeneratedFrames, out: Path) -> None:
    """The frames as a contact sheet where `out` is a .png, else as the orbit folders `out`/moving and `out`/static."""
    if out.suffix.lower() == ".png":
        title = f"{frames.prompt or 'no text'}, motion {frames.motion:g} asked, {frames.motion_measured:.2f} measured"
        rows = [SheetRow(label, on_white(getattr(frames, label))) for label in ("static", "moving")]
        write_picture(sheet(f"{title}, seed {frames.seed}", rows), out)
        return
    write_orbit(out / "moving", frames.moving, frames.cameras)
    write_orbit(out / "static", *frames.still())


def write_picture(picture: Image.Image, out: Path) -> None:
    """A PNG file, whole or not at all. Raises OSError."""
    with atomic_file(out) as file:
        picture.save(file, "PNG")


def write_orbit(folder: Path, pictures: np.ndarray, cameras: Cameras) -> None:
    """Pictures [V, H, W, 4] uint8 and cameras as an orbit folder; one that this function has written before goes.

    Raises:
        UserError: the folder holds anything else.
    """
    own = _own_files(folder)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    left = {name for name in there if name.startswith(TEMPORARY)}  # by one that was killed
    if not there - left <= own:
        hint = "Name another folder; the same command goes on from there."
        raise UserError("folder_taken", f"{folder} holds files that do not come from here and would be lost.", hint)
    with atomic_files(folder) as new:
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(new / frame_name(index))
        write_orbit_json(new, cameras, made_by=MADE_BY)
        written = {path.name for path in new.iterdir()}
    for name in own - written:
        (folder / name).unlink(missing_ok=True)


def _own_files(folder: Path) -> set[str]:
    """Names of the files that `write_orbit` has put into a folder, by what `orbit.json` says there."""
    try:
        said = json.loads((folder / ORBIT_JSON).read_text("utf-8"))
        count = len(said["times"]) if said["made_by"] == MADE_BY else 0
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {ORBIT_JSON, *map(frame_name, range(count))} if count else set()
