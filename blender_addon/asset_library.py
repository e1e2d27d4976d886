# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians as assets: marked in this file, or saved into an asset library as a file of their own.

What is saved is a copy that stands for itself: at the origin, on the ground, unrotated, beginning at scene frame 1,
with a small scene round it for those who open the file. The open file is as it was afterwards.
"""

import contextlib
import itertools
import math
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from . import (
    asset_catalog,
    asset_preview,
    job_tracker,
    node_groups,
    point_cloud,
    retime,
    scene_settings,
    splat_object,
    versions,
)
from .contract.clip import Clip
from .subject import dependencies

FIRST_FRAME = 1.0  # at which a saved asset begins to move
MAX_NAME_BYTES = 63  # of a data-block or a tag
NO_CATALOG = "00000000-0000-0000-0000-000000000000"
PLACING = ("location", "rotation_", "scale", "delta_")  # beginnings of the RNA paths that place an object
KINDS = {  # what a clip is, by the pipeline that made it
    "orbit": "Gaussians of an animated object",
    "diffusion4d": "Gaussians with an invented motion",
    "4diffusion": "Gaussians of a video",
}
NO_TAGS = {
    *("a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "it", "its", "of", "on", "or", "over"),
    *("that", "the", "their", "then", "to", "up", "while", "with"),
}
TAKEN_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}


class AssetError(ValueError):
    """Gaussians cannot become an asset or be saved as one. The message says why and what to do."""


@dataclass(frozen=True)
class About:
    """What an asset says about itself."""

    description: str
    tags: tuple[str, ...]
    license: str


@dataclass(frozen=True)
class Saved:
    """An asset that was written."""

    name: str
    path: Path
    note: str  # what went wrong beside it, or nothing


# --- in this file ----------------------------------------------------------------------------------------------------


def mark(splats: bpy.types.Object, author: str = "") -> str:
    """Make Gaussians an asset of this file, or draw a new preview of those that are one; a note, or nothing.

    Name, tags and texts of an asset that is one already are left as they are.

    Raises:
        AssetError: the object is linked or overridden.
        ValueError: it has no Gaussians left, or nothing plays them.
    """
    if not is_own(splats):
        raise AssetError(f"{splats.name} belongs to another file. Mark it as an asset there.")
    clip = _checked_clip(splats)
    note = ""
    if splats.asset_data is None:
        splats.asset_mark()
        describe(splats, splats.asset_data, author)
        library = library_of(bpy.data.filepath)
        note = _join_catalog(splats.asset_data, library) if library else ""
    asset_preview.set_preview(splats, clip)
    return note


def _checked_clip(splats: bpy.types.Object) -> Clip:
    """The Gaussians of an object. Raises ValueError where there are none left, or nothing plays them."""
    if splat_object.playback_modifier(splats) is None:
        raise AssetError(f"{splats.name} has lost the modifier that plays its Gaussians.")
    return point_cloud.clip_of_object(splats)


def is_own(splats: bpy.types.Object) -> bool:
    """Whether the object belongs to this file and no other, so that Blender lets it be an asset."""
    return splats.library is None and splats.override_library is None


def describe(splats: bpy.types.Object, asset: bpy.types.AssetMetaData, author: str = "") -> None:
    """Fill in the metadata of an asset that is made of Gaussians."""
    about = about_splats(splats)
    asset.description, asset.license, asset.author = about.description, about.license, author
    for tag in about.tags:
        asset.tags.new(tag, skip_if_exists=True)
    asset.catalog_id = asset_catalog.UUID


def about_splats(splats: bpy.types.Object) -> About:
    """What is known about Gaussians: from their provenance, which may hold anything, their mesh and their timing."""
    provenance = _dict(splat_object.description(splats).get("provenance"))
    settings = _dict(provenance.get("settings"))
    models = [
        model for model in _list(provenance.get("models")) if isinstance(model, dict) and _text(model.get("name"))
    ]
    prompt, moves_as = _text(settings.get("prompt")), _text(provenance.get("moves_as"))
    frames, fps = splat_object.frame_count(splats.data), splat_object.clip_fps(splats)
    timing = retime.timing(splats)
    loops = provenance.get("loop") is True or (timing is not None and timing.repeat != "HOLD")

    facts = [KINDS.get(_text(provenance.get("pipeline")), "Gaussians that move over time")]
    facts += [f"Prompt: {prompt}"] if prompt else []
    facts += [f"Moves as: {moves_as}"] if moves_as else []
    facts += [f"Model: {', '.join(_text(model['name']) for model in models)}"] if models else []
    seed = settings.get("seed")
    facts += [f"Seed: {seed}"] if isinstance(seed, int) else []
    facts += [f"{len(splats.data.vertices):,} Gaussians, {frames} frames at {fps:.4g} fps{', a loop' if loops else ''}"]

    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", prompt.lower())
    tags = [word for word in words if word not in NO_TAGS]
    tags += [moves_as] if moves_as else []
    tags += ["gaussians", *["animated"] * (frames > 1), *["loop"] * loops]
    licences = [f"{_text(model['name'])}: {licence}" for model in models if (licence := _text(model.get("licence")))]
    return About(
        description=". ".join(facts),
        tags=tuple(dict.fromkeys(_cut(tag, MAX_NAME_BYTES) for tag in tags)),
        license="; ".join(dict.fromkeys(licences)),
    )


# --- libraries -------------------------------------------------------------------------------------------------------


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
    """Make a folder one of the user's asset libraries, if it does not lie in one; its name, or nothing."""
    if library_of(folder) is not None:
        return ""
    library = bpy.context.preferences.filepaths.asset_libraries.new(name=folder.name, directory=str(folder))
    return library.name


def refresh_browsers(context: bpy.types.Context) -> None:
    """Let the Asset Browsers that are open read their libraries again."""
    windows = context.window_manager.windows
    browsers = [(window, area) for window in windows for area in window.screen.areas if area.ui_type == "ASSETS"]
    if not browsers:
        return
    with job_tracker.tracker().http.held(job_tracker.HOLD_SECONDS) as is_held:
        for window, area in browsers if is_held else ():
            region = next(region for region in area.regions if region.type == "WINDOW")
            with context.temp_override(window=window, area=area, region=region):
                if bpy.ops.asset.library_refresh.poll():
                    bpy.ops.asset.library_refresh()


# --- a file of its own -----------------------------------------------------------------------------------------------


def save(splats: bpy.types.Object, scene: bpy.types.Scene, folder: Path, author: str = "") -> Saved:
    """Write Gaussians as an asset into a .blend file of their own; no file is overwritten.

    Metadata and preview are those that the object has as an asset, else those that `mark` would give it.

    Args:
        splats: what to save, in any mode.
        scene: gives the frame rate.
        folder: gets the file, which has the object's name, followed by a number where that is taken.
        author: of what is no asset yet.

    Raises:
        AssetError: data of another file or object is needed, or the folder cannot be written.
        ValueError: there are no Gaussians left, or nothing plays them.
    """
    _make_sure_of(folder)
    clip = _checked_clip(splats)
    with _temporary() as keep:
        copy = _standing_alone(splats, clip, keep)
        _refuse_others(splats, copy)
        note = _describe_copy(splats, copy, clip, library_of(folder) or folder, author)
        blocks = {copy, _scene_round(copy, splats.name, clip, scene, keep)}
        for name, path in _free_names(folder, splats.name):
            with _named(copy, name):
                if _write(path, blocks):
                    return Saved(name, path, note)
    raise AssertionError("some name is always free")


def _make_sure_of(folder: Path) -> None:
    """Refuse a folder that is not there, unless it is a library's, which Blender names before anybody has made it."""
    try:
        if library_of(folder) is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"The folder {folder} cannot be made: {error.strerror}. Choose another one.") from error
    if not folder.is_dir():
        raise AssetError(f"There is no folder {folder}. Choose another one.")


def _standing_alone(splats: bpy.types.Object, clip: Clip, keep: "Keep") -> bpy.types.Object:
    """A copy at the origin, on the ground, unrotated, beginning at FIRST_FRAME, without parent and constraints."""
    # In Edit Mode a mesh of its own, which `clip_of_object` has brought up to date; it goes away after its object.
    mesh = keep(bpy.data.meshes, splats.data.copy()) if splats.mode == "EDIT" else splats.data
    copy = keep(bpy.data.objects, splats.copy())
    copy.data = mesh
    lengths = [axis.length for axis in splats.matrix_world.to_3x3().col]
    copy.parent = None
    copy.constraints.clear()
    copy.rotation_mode = "XYZ"
    copy.rotation_euler = copy.delta_rotation_euler = copy.delta_location = (0, 0, 0)
    copy.delta_scale = (1, 1, 1)
    copy.scale = [math.copysign(length, own) for length, own in zip(lengths, splats.scale, strict=True)]
    copy.location = (0, 0, -np.percentile(clip.frame(0).means[:, 2] * copy.scale.z, 1))  # a stray Gaussian is no foot
    copy.hide_render = copy.hide_viewport = copy.hide_select = False
    _begin_at(copy, FIRST_FRAME, keep)
    return copy


def _begin_at(copy: bpy.types.Object, first: float, keep: "Keep") -> None:
    """Move keys and strips so that the motion begins at a scene frame; what moves the object as a whole goes away."""
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
    offset = first - min(starts, default=first)
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


def _describe_copy(
    splats: bpy.types.Object, copy: bpy.types.Object, clip: Clip, library: Path, author: str
) -> str:  # a note, or nothing
    copy.asset_mark()
    asset, known = copy.asset_data, splats.asset_data
    if known is None:
        describe(splats, asset, author)
    else:
        for name in ("author", "description", "copyright", "license", "catalog_id"):
            setattr(asset, name, getattr(known, name))
        for tag in known.tags:
            asset.tags.new(tag.name, skip_if_exists=True)
    if known is None or not any(splats.preview_ensure().image_size):  # else the copy has it
        asset_preview.set_preview(copy, clip)
    # For the box that Blender draws while the asset is dragged; as 32-bit floats, which it takes for granted.
    asset["dimensions"] = np.ptp(clip.frame(0).means * np.abs(copy.scale), axis=0).astype(np.float32)
    return _join_catalog(asset, library) if asset.catalog_id in (asset_catalog.UUID, NO_CATALOG) else ""


def _join_catalog(asset: bpy.types.AssetMetaData, library: Path) -> str:  # a note, or nothing
    try:
        asset.catalog_id = asset_catalog.ensure(library)
    except OSError as error:
        return f"The catalog {asset_catalog.NAME} could not be added to {library}: {error.strerror}"
    return ""


def _scene_round(
    copy: bpy.types.Object, name: str, clip: Clip, scene: bpy.types.Scene, keep: "Keep"
) -> bpy.types.Scene:
    """A scene for those who open the file: the asset, a camera before it, and the settings that it needs."""
    stage = keep(bpy.data.scenes, bpy.data.scenes.new(name))
    stage.collection.objects.link(copy)
    stage.render.fps, stage.render.fps_base = scene.render.fps, scene.render.fps_base
    stage.render.resolution_x = stage.render.resolution_y = 1080
    timing = retime.timing(copy)
    stage.frame_start = stage.frame_current = int(FIRST_FRAME)
    stage.frame_end = max(math.ceil(timing.last - 1e-3), stage.frame_start) if timing else stage.frame_start
    modifier = splat_object.playback_modifier(copy)
    is_raw = clip.color_space == "srgb" and not versions.modifier_input(modifier, node_groups.SCENE_LINEAR)
    with contextlib.suppress(TypeError):  # another color management may not have them
        stage.view_settings.view_transform = "Raw" if is_raw else "Standard"
    scene_settings.ensure_scene_settings(stage)
    first, scale = clip.frame(0), np.array(copy.scale)
    placed = replace(
        first, means=first.means * scale + np.array(copy.location), scales=first.scales * np.abs(scale).max()
    )
    matrix = asset_preview.camera_to_see(placed)
    camera = keep(
        bpy.data.objects, bpy.data.objects.new("Camera", keep(bpy.data.cameras, bpy.data.cameras.new("Camera")))
    )
    camera.matrix_world = Matrix(matrix.tolist())
    camera.data.angle = math.radians(asset_preview.FIELD_OF_VIEW)
    camera.data.clip_start = camera.location.length / 100
    camera.data.clip_end = camera.location.length * 100
    stage.collection.objects.link(camera)
    stage.camera = camera
    return stage


def _free_names(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Names for an asset, each with a file that is not there yet: Fox, Fox 2, Fox 3."""
    for number in itertools.count(1):
        suffix = f" {number}" if number > 1 else ""
        numbered = _cut(name, MAX_NAME_BYTES - len(suffix)) + suffix
        path = folder / f"{_file_stem(numbered)}.blend"
        if not path.exists():
            yield numbered, path


def _file_stem(name: str) -> str:
    """A name as file systems take it."""
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", unicodedata.normalize("NFC", name)).strip(" .")
    return f"{stem}_" if not stem or stem.split(".")[0].lower() in TAKEN_NAMES else stem


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


def _write(path: Path, blocks: set[bpy.types.ID]) -> bool:
    """Write data-blocks into a new file, whole or not at all; False where a file of that name has appeared."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # in the same folder, so that relative paths fit
    try:
        bpy.data.libraries.write(str(part), blocks, path_remap="RELATIVE", fake_user=True, compress=True)
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
        part.unlink(missing_ok=True)
    return True


Keep = Callable[[bpy.types.bpy_prop_collection, bpy.types.ID], bpy.types.ID]


@contextlib.contextmanager
def _temporary() -> Iterator[Keep]:
    """A function that takes data-blocks with their collections, and hands them back; the block's end removes them."""
    with contextlib.ExitStack() as stack:

        def keep(collection: bpy.types.bpy_prop_collection, block: bpy.types.ID) -> bpy.types.ID:
            stack.callback(collection.remove, block)
            return block

        yield keep


# --- provenance, which comes from files ------------------------------------------------------------------------------


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _cut(text: str, size: int) -> str:
    """As much of a text as fits into so many bytes."""
    return text.encode()[:size].decode("utf-8", "ignore")
