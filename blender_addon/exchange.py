# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians of the scene as files: clips that can be imported again, and PLY files for other programs.

Both hold the Gaussians as edited: without the points that were deleted, and with those that were moved where they are.
Other modifiers, and the inputs Splat Size and Opacity, belong to the scene and stay there.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from . import applied_transform, point_cloud, retime, splat_object, stage
from .contract.clip import Clip, Gaussians, clip_of_moments, write_clip
from .contract.placement import UP_AXES, placed, placed_sh
from .contract.spherical_harmonics import SHARED_DEGREE, converted
from .contract.splat_files.ply_writer import existing_sequence, header_comments, write_ply, write_ply_sequence


@dataclass(frozen=True)
class Shown:
    """What an object shows at one frame of the scene."""

    scene_frame: int
    frame: float  # stored frame, fractional between two
    matrix: np.ndarray  # [4, 4] from the object's space to the world


def export_clip(
    context: bpy.types.Context,
    splats: bpy.types.Object,
    path: str | os.PathLike,
    *,
    frames: str = "STORED",
    use_transform: bool = True,
) -> str:
    """Write Gaussians as a clip, which *File > Import* reads again, and return a sentence about it.

    Args:
        context: of the scene whose frames count.
        splats: the object.
        path: of the clip; a file that is there already is replaced.
        frames: "STORED", or "SCENE" for what the scene's frame range plays: timing becomes part of the clip.
        use_transform: an import stands where the object stands now; else where the clip stood that it came from.

    Raises:
        ValueError: the object holds no Gaussians any more, or too many frames, or scale or rotation was applied to it;
            nothing was written.
        OSError: the file cannot be written; what was there before is still there.
    """
    applied_transform.refuse(splats)
    clip = point_cloud.clip_of_object(splats)
    if frames == "SCENE":
        scene = context.scene
        moments = [clip.frame(shown.frame) for shown in played(context, splats)]
        clip = replace(clip_of_moments(clip, moments), fps=retime.scene_fps(scene) / scene.frame_step)
    if use_transform:
        clip = replace(clip, to_object=_matrix(context, splats))
    if made_of := splats.get(splat_object.MADE_OF):
        clip = replace(clip, provenance={**clip.provenance, "made_of": made_of})
    write_clip(path, clip)
    return f"Exported {splats.name}: {clip.count:,} Gaussians, {clip.frame_count} frames"


def export_ply(
    context: bpy.types.Context,
    splats: bpy.types.Object,
    path: str | os.PathLike,
    *,
    frames: str = "STORED",
    use_transform: bool = True,
    up_axis: str = "Z",
    replace_existing: bool = False,
    on_frame: Callable[[int, int], None] = lambda done, count: None,
) -> str:
    """Write Gaussians as PLY files of 3D Gaussian Splatting, colors in sRGB, and return a sentence about it.

    Args:
        context: of the scene whose frames count.
        splats: the object.
        path: `name.ply`. A sequence is written beside it as `name_0001.ply` and so on: stored frames are counted from
            1, scene frames have their own numbers.
        frames: "STORED", each once; "SCENE", what the scene's range plays; "CURRENT", what is shown now, as `path`.
            A sequence holds all Gaussians in each file, as frames of one clip do; those that are not there then are
            transparent. The current frame holds those alone that are there.
        use_transform: positions, rotations and sizes as in the world; of stored frames, where the object stands now.
        up_axis: one of UP_AXES.
        replace_existing: whether a sequence of the same name may be replaced.
        on_frame: is told how many frames are done of how many.

    Raises:
        ValueError: the object holds no Gaussians any more, or is flat, or shows nothing now, or scale or rotation was
            applied to it, or there is such a sequence already; nothing was written.
        OSError: the files cannot be written; what was there before is still there.
    """
    path = Path(path)
    applied_transform.refuse(splats)
    clip = point_cloud.clip_of_object(splats)
    if frames != "CURRENT" and not replace_existing and (former := existing_sequence(path)):
        more = f" and {len(former) - 1} more" if len(former) > 1 else ""
        raise ValueError(f"{former[0].name}{more} would be replaced. Choose another name, or tick Replace Existing.")
    shots = _shots(context, splats, clip, frames)
    sh = converted(clip.sh[:, : (SHARED_DEGREE + 1) ** 2], clip.color_space, "srgb")

    def moments() -> Iterator[tuple[int, Gaussians, np.ndarray]]:
        for done, shown in enumerate(shots):
            on_frame(done, len(shots))
            matrix = UP_AXES[up_axis] @ (shown.matrix if use_transform else np.eye(4))
            yield shown.scene_frame, placed(clip.frame(shown.frame), matrix), placed_sh(sh, matrix)

    fps = clip.fps if frames == "STORED" else retime.scene_fps(context.scene) / context.scene.frame_step
    comments = header_comments("Kinesplat", color_space="srgb", up_axis=up_axis, fps=fps)
    count = clip.count
    if frames == "CURRENT":
        ((_, moment, colors),) = moments()
        there = moment.there
        if not there.any():
            raise ValueError(f"{splats.name} shows nothing at this frame. Go to one at which something is there.")
        write_ply(path, moment.picked(there), colors[there], comments)
        count, what = int(there.sum()), path.name
    else:
        files = write_ply_sequence(path, moments(), comments)
        what = f"{files[0].name} to {files[-1].name}" if len(files) > 1 else files[0].name
    return ". ".join([f"Exported {count:,} Gaussians as {what}", *_notes(clip)])


def played(context: bpy.types.Context, splats: bpy.types.Object) -> list[Shown]:
    """What an object shows at each frame of the scene's range, whatever times and moves it.

    The scene is led through its frames, as F-curves, the NLA, drivers and parents all have a say, and then back.

    Raises:
        ValueError: nothing plays the object any more, or Blender renders.
    """
    if stage.is_rendering():
        raise ValueError("Blender is rendering: try again when the render has ended.")
    scene = context.scene
    now, subframe = scene.frame_current, scene.frame_subframe
    try:
        seen = []
        for scene_frame in range(scene.frame_start, scene.frame_end + 1, scene.frame_step):
            scene.frame_set(scene_frame)
            seen.append(_shown(context, splats, scene_frame))
        return seen
    finally:
        scene.frame_set(now, subframe=subframe)


def _shots(context: bpy.types.Context, splats: bpy.types.Object, clip: Clip, frames: str) -> list[Shown]:
    if frames == "SCENE":
        return played(context, splats)
    if frames == "CURRENT":
        return [_shown(context, splats, 0)]
    matrix = _matrix(context, splats)
    return [Shown(frame + 1, frame, matrix) for frame in range(clip.frame_count)]


def _shown(context: bpy.types.Context, splats: bpy.types.Object, scene_frame: int) -> Shown:
    return Shown(scene_frame, splat_object.shown_frame(splats), _matrix(context, splats))


def _matrix(context: bpy.types.Context, splats: bpy.types.Object) -> np.ndarray:
    return np.array(splats.evaluated_get(context.evaluated_depsgraph_get()).matrix_world, np.float64)


def _notes(clip: Clip) -> list[str]:
    """What the files will not show as the scene does."""
    said = []
    if clip.sh_degree > SHARED_DEGREE:
        said.append(f"Spherical harmonics above degree {SHARED_DEGREE} are left out")
    if clip.color_space != "srgb":
        said.append("Linear colors were converted to sRGB, so soft edges come out a little different")
    return said
