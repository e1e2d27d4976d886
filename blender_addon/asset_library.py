# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians as assets: marked in this file, or saved into an asset library as a file of their own."""

import os
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from . import (
    applied_transform,
    asset_catalog,
    asset_file,
    asset_preview,
    job_tracker,
    point_cloud,
    splat_object,
    versions,
)
from .asset_description import about_splats
from .asset_file import AssetError
from .contract.clip import Clip

REFRESH_SECONDS = 0.2
NO_CATALOG = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Saved:
    """An asset that was written."""

    name: str
    path: Path
    note: str  # what went wrong beside it, or nothing


def mark(splats: bpy.types.Object, author: str = "") -> str:
    """Make Gaussians an asset of this file, or draw a new preview of those that are one; a note, or nothing.

    Name, tags and texts of an asset that is one already are left as they are.

    Raises:
        AssetError: the object is linked or overridden, or nothing plays it.
        ValueError: it has no Gaussians left.
    """
    if not is_own(splats):
        raise AssetError(f"{splats.name} belongs to another file. Mark it as an asset there.")
    clip = _playable_clip(splats)
    note = ""
    if splats.asset_data is None:
        splats.asset_mark()
        _describe(splats, splats.asset_data, author)
        note = _join_catalog(splats.asset_data, library_of(bpy.data.filepath))
    asset_preview.set_preview(splats, clip)
    return note


def is_own(splats: bpy.types.Object) -> bool:
    """Whether the object belongs to this file and no other, so that Blender lets it be an asset."""
    return splats.library is None and splats.override_library is None


def save(splats: bpy.types.Object, folder: Path, author: str = "") -> Saved:
    """Write Gaussians as an asset into a .blend file of their own; no file is overwritten.

    The asset stands at the origin, on the ground, unrotated, and begins to move at scene frame 1. Its metadata and
    preview are those that the object has as an asset, else those that `mark` would give it.

    Args:
        splats: what to save, in any mode.
        folder: gets the file, which has the object's name, followed by a number where that is taken.
        author: of what is no asset yet.

    Raises:
        AssetError: data of another file or object is needed, nothing plays the Gaussians, or the folder cannot be
            written.
        ValueError: there are no Gaussians left.
    """
    _make_sure_of(folder)
    clip = _playable_clip(splats)
    with asset_file.temporary() as keep:
        copy = asset_file.standing_alone(splats, clip, keep)
        copy.asset_mark()
        if splats.asset_data is None:
            _describe(splats, copy.asset_data, author)
        else:
            _copy_metadata(splats.asset_data, copy.asset_data)
        if splats.asset_data is None or splats.preview is None or not any(splats.preview.image_size):
            asset_preview.set_preview(copy, clip)  # else the copy has that of the object
        # For the box that Blender draws while the asset is dragged; as 32-bit floats, which it takes for granted.
        size = np.ptp(clip.frame(0).means * np.abs(copy.scale), axis=0)
        copy.asset_data["dimensions"] = size.astype(np.float32)
        note = _join_catalog(copy.asset_data, _catalogs_of(folder))
        name, path = asset_file.write(copy, folder, splats.name)
    return Saved(name, path, note)


def libraries() -> list[tuple[str, Path]]:
    """Name and folder of the user's asset libraries on this computer."""
    found = []
    for library in bpy.context.preferences.filepaths.asset_libraries:
        if library.path and not versions.is_remote_library(library):
            found.append((library.name, Path(bpy.path.abspath(library.path))))
    return found


def library_of(path: str | os.PathLike) -> Path | None:
    """The folder of the asset library in which a file or folder lies, if it lies in one; the innermost."""
    if not path:
        return None
    place = Path(os.path.abspath(path))
    around = [folder for _, folder in libraries() if place.is_relative_to(os.path.abspath(folder))]
    return max(around, key=lambda folder: len(folder.parts), default=None)


def add_library(folder: Path) -> str:
    """Make a folder one of the user's asset libraries; its name, or nothing where it lies in one already.

    Raises:
        AssetError: there is no such folder.
    """
    if library_of(folder) is not None:
        return ""
    _make_sure_of(folder)
    known = bpy.context.preferences.filepaths.asset_libraries
    return known.new(name=folder.name or str(folder), directory=str(folder)).name


def refresh_browsers() -> None:
    """Let the Asset Browsers that are open read their libraries again, as soon as the running operator has ended.

    Before that, Blender forgets it again.
    """
    if _browsers() and not bpy.app.timers.is_registered(_refresh):
        bpy.app.timers.register(_refresh, first_interval=REFRESH_SECONDS)


def forget_refresh() -> None:
    """Call off what `refresh_browsers` has asked for, if it is yet to come."""
    if bpy.app.timers.is_registered(_refresh):
        bpy.app.timers.unregister(_refresh)


def _refresh() -> float | None:  # seconds until it is to be tried again
    with job_tracker.tracker().http.held(job_tracker.HOLD_SECONDS) as is_held:
        if not is_held:
            return REFRESH_SECONDS
        for window, area in _browsers():
            region = next(region for region in area.regions if region.type == "WINDOW")
            with bpy.context.temp_override(window=window, area=area, region=region):
                if bpy.ops.asset.library_refresh.poll():
                    bpy.ops.asset.library_refresh()
    return None


def _browsers() -> list[tuple[bpy.types.Window, bpy.types.Area]]:
    windows = bpy.context.window_manager.windows
    return [(window, area) for window in windows for area in window.screen.areas if area.ui_type == "ASSETS"]


def _playable_clip(splats: bpy.types.Object) -> Clip:
    if splat_object.playback_modifier(splats) is None:
        raise AssetError(
            f"{splats.name} has lost the modifier that plays its Gaussians. Undo that, or import it again."
        )
    applied_transform.refuse(splats)
    return point_cloud.clip_of_object(splats)


def _make_sure_of(folder: Path) -> None:
    """Refuse a folder that is not there, unless it is a library, which Blender names before anybody has made it."""
    try:
        if any(folder == library for _, library in libraries()):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"The folder {folder} cannot be made: {error.strerror}. Choose another one.") from error
    if not folder.is_dir():
        raise AssetError(f"There is no folder {folder}. Choose another one.")


def _describe(splats: bpy.types.Object, asset: bpy.types.AssetMetaData, author: str) -> None:
    about = about_splats(splats)
    asset.description, asset.license, asset.author = about.description, about.license, author
    for tag in about.tags:
        asset.tags.new(tag, skip_if_exists=True)
    asset.catalog_id = asset_catalog.UUID


def _copy_metadata(source: bpy.types.AssetMetaData, target: bpy.types.AssetMetaData) -> None:
    for name in ("author", "description", "copyright", "license", "catalog_id"):
        setattr(target, name, getattr(source, name))
    for tag in source.tags:
        target.tags.new(tag.name, skip_if_exists=True)


def _catalogs_of(folder: Path) -> Path | None:
    """The folder whose catalog file an asset in `folder` belongs to, if that is in a library, known or not."""
    return library_of(folder) or (folder if (folder / asset_catalog.FILE_NAME).exists() else None)


def _join_catalog(asset: bpy.types.AssetMetaData, library: Path | None) -> str:  # a note, or nothing
    if library is None or asset.catalog_id not in (asset_catalog.UUID, NO_CATALOG):
        return ""
    try:
        asset.catalog_id = asset_catalog.ensure(library)
    except OSError as error:
        return f"The catalog {asset_catalog.NAME} could not be added to {library}: {error.strerror}"
    return ""
