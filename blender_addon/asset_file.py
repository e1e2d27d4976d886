# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians that stand for themselves in a .blend file of their own, made from those of the open file.

The open file is as it was afterwards: what is written are copies that are there for a moment.
"""

import contextlib
import itertools
import math
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy
import numpy as np

from . import node_groups, retime, splat_object, versions
from .asset_description import cut
from .contract.clip import Clip
from .placing import PLACING
from .subject import dependencies

FIRST_FRAME = 1  # at which a saved asset begins to move
MAX_NAME_BYTES = 63  # of a data-block
TAKEN_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}

Keep = Callable[[bpy.types.bpy_prop_collection, bpy.types.ID], bpy.types.ID]


class AssetError(ValueError):
    """Gaussians cannot become an asset or be saved as one. The message says why and what to do."""


@contextlib.contextmanager
def temporary() -> Iterator[Keep]:
    """A function that takes data-blocks with their collections, and hands them back; the block's end removes them."""
    with contextlib.ExitStack() as stack:

        def keep(collection: bpy.types.bpy_prop_collection, block: bpy.types.ID) -> bpy.types.ID:
            stack.callback(collection.remove, block)
            return block

        yield keep


def standing_alone(splats: bpy.types.Object, clip: Clip, keep: Keep) -> bpy.types.Object:
    """A copy at the origin, on the ground, unrotated, without parent and constraints, that begins at FIRST_FRAME.

    Args:
        splats: an object that holds and plays Gaussians, in any mode.
        clip: what it holds, as `clip_of_object` has just read it.
        keep: see `temporary`.

    Raises:
        AssetError: it needs data of another file, or another object.
    """
    # In Edit Mode a mesh of its own, which `clip_of_object` has brought up to date; it goes away after its object.
    mesh = keep(bpy.data.meshes, splats.data.copy()) if splats.mode == "EDIT" else splats.data
    copy = keep(bpy.data.objects, splats.copy())
    copy.data = mesh
    in_world = splats.matrix_world.to_3x3()
    lengths = [axis.length for axis in in_world.col]
    copy.parent = None
    copy.constraints.clear()
    copy.rotation_mode = "XYZ"
    copy.rotation_euler = copy.delta_rotation_euler = copy.delta_location = (0, 0, 0)
    copy.delta_scale = (1, 1, 1)
    copy.scale = [math.copysign(length, own) for length, own in zip(lengths, splats.scale, strict=True)]
    if np.prod(copy.scale) * in_world.determinant() < 0:  # a parent mirrors it
        copy.scale.x *= -1
    copy.location = (0, 0, -np.percentile(clip.frame(0).means[:, 2] * copy.scale.z, 1))  # a stray Gaussian is no foot
    copy.hide_render = copy.hide_viewport = copy.hide_select = False
    _begin_at_first_frame(copy, keep)
    _refuse_others(splats, copy)
    return copy


def _begin_at_first_frame(copy: bpy.types.Object, keep: Keep) -> None:
    """Move keys and strips so that the motion begins there; what moves the object as a whole goes away."""
    animation = copy.animation_data
    if animation is None:
        return
    for driver in [driver for driver in animation.drivers if driver.data_path.startswith(PLACING)]:
        animation.drivers.remove(driver)
    if animation.action is not None:
        animation.action = keep(bpy.data.actions, animation.action.copy())
        for fcurves in versions.fcurve_collections(copy, in_nla=False):
            for fcurve in [fcurve for fcurve in fcurves if fcurve.data_path.startswith(PLACING)]:
                fcurves.remove(fcurve)
    path = versions.modifier_input_path(splat_object.playback_modifier(copy), node_groups.FRAME)
    played = versions.find_fcurve(copy, path, in_nla=False)
    strips = [strip for track in animation.nla_tracks for strip in track.strips]
    starts = [key.co.x for key in played.keyframe_points] if played else [strip.frame_start for strip in strips]
    offset = FIRST_FRAME - min(starts, default=FIRST_FRAME)
    for fcurves in versions.fcurve_collections(copy, in_nla=False):
        for fcurve in fcurves:
            retime.move_keys(fcurve, lambda frame: frame + offset)
    for strip in sorted(strips, key=lambda strip: strip.frame_start, reverse=offset > 0):  # none runs into the next
        strip.frame_start_ui += offset


def _refuse_others(splats: bpy.types.Object, copy: bpy.types.Object) -> None:
    """Raise AssetError where the copy needs data of another file, or another object of this one."""
    for block in dependencies([copy]):
        if block.library is not None:
            file = bpy.path.basename(block.library.filepath)
            raise AssetError(
                f"{splats.name} uses {block.name} of the file {file}. "
                "Save it from there, or make it local first: Object > Relations > Make Local > All."
            )
        if block != copy and isinstance(block, bpy.types.Object | bpy.types.Collection | bpy.types.Scene):
            raise AssetError(
                f"{splats.name} needs {block.name} for a modifier, a driver or a property, and an asset stands alone. "
                "Apply or remove what uses it, and save again."
            )


def write(copy: bpy.types.Object, folder: Path, name: str) -> tuple[str, Path]:
    """Write a copy with all that it needs into a new file, in which it has the file's name; that name and the file.

    The file has no scene, as those of Blender's own assets have none: Blender 5.2.2 crashes when it is to write one.

    Raises:
        AssetError: the folder cannot be written.
    """
    for free_name, path in _free_names(folder, name):
        with _named(copy, free_name):
            if _write(path, copy):
                return free_name, path
    raise AssertionError("some name is always free")


def _free_names(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Names for an asset, each with a file that is not there yet: Fox, Fox 2, Fox 3."""
    for number in itertools.count(1):
        suffix = f" {number}" if number > 1 else ""
        numbered = cut(name, MAX_NAME_BYTES - len(suffix)) + suffix
        path = folder / f"{_file_stem(numbered)}.blend"
        if not path.exists():
            yield numbered, path


def _file_stem(name: str) -> str:
    """A name as file systems take it."""
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", unicodedata.normalize("NFC", name)).strip(" .")
    return f"_{stem}" if not stem or stem.split(".")[0].lower() in TAKEN_NAMES else stem


@contextlib.contextmanager
def _named(copy: bpy.types.Object, name: str) -> Iterator[None]:
    """Let the copy have a name which another object, mostly the one that it is a copy of, gets back at the end."""
    holder = bpy.data.objects.get((name, None))
    copy.rename(name, mode="ALWAYS")
    try:
        yield
    finally:
        if holder is not None:
            holder.rename(name, mode="ALWAYS")


def _write(path: Path, copy: bpy.types.Object) -> bool:
    """Write the copy into a new file, whole or not at all; False where a file of that name has appeared."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # in the same folder, so that relative paths fit
    try:
        bpy.data.libraries.write(str(part), {copy}, path_remap="RELATIVE", fake_user=True, compress=True)
        try:
            open(path, "xb").close()  # takes the name, unless somebody else has been quicker
        except FileExistsError:
            return False
        try:
            os.replace(part, path)
        except OSError:
            path.unlink()
            raise
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().rsplit(": ", 1)[-1]
        raise AssetError(f"{path.name} cannot be written to {path.parent}: {reason}. Choose another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return True
