# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip file becomes an object in the open scene, at its place, selected, with the render settings that it needs."""

import os
from collections.abc import Callable, Sequence

import bpy
import numpy as np
from mathutils import Matrix, Vector

from . import capture, placing, point_cloud, retime, scene_settings, splat_object
from .contract.clip import Clip, read_clip
from .contract.splat_clip import read_splat_clip
from .job_records import JobRecord
from .webp import decode_webp


def import_result(
    context: bpy.types.Context,
    path: str | os.PathLike,
    record: JobRecord | None = None,
    *,
    name: str | None = None,
    fit_scene: bool = False,
    hide_source: bool = False,
    show_colors: bool = False,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[bpy.types.Object, str]:
    """Import the clip in `path` and return the new object and a sentence about it.

    With a `record` the object stands where the source object stood when it was captured, begins at the same frame, and
    lies in the same collection. If its motion was invented, and keys, constraints or a parent move the source object,
    it goes along with that. What was made of a text, an image or a video stands on the 3D cursor.

    Args:
        context: of the scene that gets the object.
        path: of the clip.
        record: of the job that made it.
        name: of the new object; by default that of the job, or of the clip.
        fit_scene: give the scene the clip's frame rate and a frame range that shows the clip once.
        hide_source: hide the source object with its children, inside of which the Gaussians would not be seen.
        show_colors: switch solid viewports to material preview, as solid shading draws all Gaussians grey.
        on_progress: is told the share of the work that is done, 0 to 1.

    Raises:
        BadFileError: the file is not a usable clip; nothing was added.
        OSError: it cannot be read.
    """
    return _add(context, read_clip(path), record, name, fit_scene, hide_source, show_colors, on_progress)


def import_splat_files(
    context: bpy.types.Context,
    paths: Sequence[str | os.PathLike],
    *,
    up_axis: str | None = None,
    fit_scene: bool = False,
    show_colors: bool = False,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[bpy.types.Object, str, list[str]]:
    """Import splat files of other programs, of whichever format, as one object, each a frame.

    Returns it, a sentence about it, and others about what is not in it as in the files.

    Args:
        context: of the scene that gets the object; frames have its rate where the files do not say theirs.
        paths: in the order of time: one of the lists of `splat_clip.sequences`.
        up_axis: of the files, one of UP_AXES; by default what they say, or what their format usually has.
        fit_scene: see `import_result`, as for the rest.
        show_colors: see there.
        on_progress: see there.

    Raises:
        BadFileError: they are no such files, or not frames of one clip; nothing was added.
        OSError: one cannot be read.
    """
    clip, notes = read_splat_clip(paths, fps=retime.scene_fps(context.scene), decode_webp=decode_webp, up_axis=up_axis)
    return *_add(context, clip, None, None, fit_scene, False, show_colors, on_progress), notes


def _add(
    context: bpy.types.Context,
    clip: Clip,
    record: JobRecord | None,
    name: str | None,
    fit_scene: bool,
    hide_source: bool,
    show_colors: bool,
    on_progress: Callable[[float], None],
) -> tuple[bpy.types.Object, str]:
    scene = context.scene
    source = capture.find_source(record) if record else None
    changed = []
    if fit_scene:
        scene_settings.apply_frame_range(scene, clip, record.frame_start if record else None)
        changed.append(f"The scene plays frames {scene.frame_start} to {scene.frame_end}")
    splats = point_cloud.import_clip(
        clip,
        scene,
        name=name or (f"{record.name} Gaussians" if record else None),
        collection=placing.collection_beside(context, source),
        start=record.frame_start if record else None,
        on_progress=on_progress,
    )
    made_of = record.subject_uuid if record else clip.provenance.get("made_of")
    if isinstance(made_of, str) and made_of:
        splats[splat_object.MADE_OF] = made_of
    if record and record.kind in ("text", "image", "video"):
        _stand_on_cursor(splats, clip, scene)
    elif record and record.kind == "object" and source in list(scene.objects) and placing.travels(source):
        splats.parent = source  # what was invented is not in its keys: it goes on to travel as it does
        changed.append(f"It goes along with {source.name}")
    elif record and record.matrix_world:
        splats.matrix_world = Matrix(record.matrix_world) @ splats.matrix_world
    placing.select_alone(context, [splats])
    changed += scene_settings.ensure_scene_settings(scene)
    if hide_source and source is not None and placing.hide(context, [source]):
        changed.append(f"{source.name} is hidden")
    if show_colors and placing.show_colors(context):
        changed.append("The viewport shows materials")
    return splats, _sentence(clip, splats, changed)


def _stand_on_cursor(splats: bpy.types.Object, clip: Clip, scene: bpy.types.Scene) -> None:
    """Put the foot of the first frame onto the 3D cursor."""
    low = float(np.percentile(clip.frame(0).means[:, 2], 1))  # a stray Gaussian is no foot
    foot = splats.matrix_world @ Vector((0.0, 0.0, low))
    splats.matrix_world = Matrix.Translation(scene.cursor.location - foot) @ splats.matrix_world


def _sentence(clip: Clip, splats: bpy.types.Object, changed: list[str]) -> str:
    frames = "1 frame" if clip.frame_count == 1 else f"{clip.frame_count} frames"
    text = f"Imported {splats.name}: {clip.count:,} Gaussians, {frames}"
    return ". ".join([text, *changed])
