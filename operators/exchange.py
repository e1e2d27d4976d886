# SPDX-License-Identifier: GPL-3.0-or-later
"""Export of the active Gaussians: as a clip, and as PLY files for other programs."""

import os
from collections.abc import Callable

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty
from bpy_extras.io_utils import ExportHelper

from ..blender_addon import exchange, splat_object
from .progress import shown_progress

STORED = ("STORED", "Stored Frames", "Each frame that the Gaussians store, once, whatever their timing is")
SCENE = ("SCENE", "Scene Frames", "What the scene's frame range plays, with its timing")
CURRENT = ("CURRENT", "Current Frame", "What is shown now, as a single file")
FRAMES_TEXT = "Which moments are written"
UP_AXES = (
    ("Z", "Z Up", "As in Blender"),
    ("Y", "Y Up", "As in Houdini, Maya and Unity"),
    ("Y_DOWN", "Y Down", "For viewers that turn PLY files over when they open them, such as SuperSplat"),
)


class SplatExport(ExportHelper):
    """What both exports have in common: `write` is called with the path."""

    bl_options = {"PRESET"}

    filepath: StringProperty(
        name="File Path",
        description="File to write",
        maxlen=1024,
        subtype="FILE_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},  # Blender's own lacks this
    )

    @classmethod
    def poll(cls, context):
        if not splat_object.is_splat_object(context.active_object):
            cls.poll_message_set("Select Gaussians that were imported with Kinesplat")
            return False
        return True

    def invoke(self, context, event):
        if not self.filepath:
            name = bpy.path.clean_name(context.active_object.name) + self.filename_ext
            self.filepath = os.path.join(os.path.dirname(bpy.data.filepath), name)
        return super().invoke(context, event)

    def write(self, context, splats, path: str, on_progress: Callable[[float], None]) -> str:
        """Write the files and tell it in a sentence. Raises ValueError or OSError."""
        raise NotImplementedError

    def execute(self, context):
        if not os.path.basename(self.filepath):
            self.report({"ERROR"}, "No file was chosen")
            return {"CANCELLED"}
        path = bpy.path.ensure_ext(bpy.path.abspath(self.filepath), self.filename_ext)
        try:
            with shown_progress(context) as on_progress:
                said = self.write(context, context.active_object, path, on_progress)
        except ValueError as error:
            self.report({"ERROR"}, str(error))
        except OSError as error:
            self.report({"ERROR"}, f"{path} cannot be written: {error.strerror or error}")
        else:
            others = [obj for obj in context.selected_objects if obj != context.active_object]
            if any(map(splat_object.is_splat_object, others)):
                said += ". What else is selected is not in it: export it by itself"
            self.report({"INFO"}, said)
            return {"FINISHED"}
        return {"CANCELLED"}


class KINESPLAT_OT_export_clip_file(SplatExport, bpy.types.Operator):
    bl_idname = "kinesplat.export_clip_file"
    bl_label = "Export Clip"
    bl_description = "Save the active Gaussians as a Kinesplat clip, as edited, to be imported elsewhere"

    filename_ext = ".npz"
    filter_glob: StringProperty(default="*.npz", options={"HIDDEN"})
    frames: EnumProperty(name="Frames", description=FRAMES_TEXT, items=(STORED, SCENE), default="STORED")
    use_transform: BoolProperty(
        name="Apply Transform",
        description="Let an import stand where the object stands now, not where its clip once stood",
        default=True,
    )

    def write(self, context, splats, path, on_progress):
        return exchange.export_clip(context, splats, path, frames=self.frames, use_transform=self.use_transform)


class KINESPLAT_OT_export_ply_sequence(SplatExport, bpy.types.Operator):
    bl_idname = "kinesplat.export_ply_sequence"
    bl_label = "Export PLY Sequence"
    bl_description = "Save the active Gaussians as PLY files of 3D Gaussian Splatting, one for each frame"

    filename_ext = ".ply"
    filter_glob: StringProperty(default="*.ply", options={"HIDDEN"})
    frames: EnumProperty(name="Frames", description=FRAMES_TEXT, items=(STORED, SCENE, CURRENT), default="STORED")
    use_transform: BoolProperty(
        name="Apply Transform",
        description="Write positions, rotations and sizes as they are in the world",
        default=True,
    )
    up_axis: EnumProperty(
        name="Up Axis",
        description="Which axis points up in the program that reads the files. Few look at what the header says",
        items=UP_AXES,
        default="Z",
    )
    replace_existing: BoolProperty(
        name="Replace Existing",
        description="Replace a sequence of the same name. Frames of the former one that are not written again go",
        default=False,
        options={"SKIP_SAVE"},
    )

    def write(self, context, splats, path, on_progress):
        return exchange.export_ply(
            context,
            splats,
            path,
            frames=self.frames,
            use_transform=self.use_transform,
            up_axis=self.up_axis,
            replace_existing=self.replace_existing,
            on_frame=lambda done, count: on_progress(done / count),
        )


def _menu_entries(self, context) -> None:
    self.layout.operator(KINESPLAT_OT_export_clip_file.bl_idname, text="Kinesplat Clip (.npz)")
    self.layout.operator(KINESPLAT_OT_export_ply_sequence.bl_idname, text="Gaussian PLY Sequence (.ply)")


CLASSES = (KINESPLAT_OT_export_clip_file, KINESPLAT_OT_export_ply_sequence)


def register() -> None:
    """Also adds both to File > Export."""
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.TOPBAR_MT_file_export.append(_menu_entries)


def unregister() -> None:
    """Take all of it back."""
    bpy.types.TOPBAR_MT_file_export.remove(_menu_entries)
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
