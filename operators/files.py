# SPDX-License-Identifier: GPL-3.0-or-later
"""Import of clips and of splat files from disk: by the file browser, by drag and drop, or from a script."""

import math
import os

import bpy
from bpy.props import BoolProperty, CollectionProperty, EnumProperty, StringProperty

from ..blender_addon import result_import, retime, stage
from ..blender_addon.contract.arrays import BadFileError
from ..blender_addon.contract.splat_clip import sequences
from ..blender_addon.contract.splat_files.opening import SUFFIXES
from .exchange import UP_AXES
from .progress import shown_progress


class SplatImport:
    """What both imports have in common: `sequences` sorts the chosen files, `add` makes an object of each group."""

    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(
        name="File",
        description="Clip file to import",
        subtype="FILE_PATH",
        options={"SKIP_SAVE", "PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    # Set by the file browser and by dropping, which may bring several files of one folder.
    directory: StringProperty(subtype="DIR_PATH", options={"HIDDEN", "SKIP_SAVE", "PATH_SUPPORTS_BLEND_RELATIVE"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"HIDDEN", "SKIP_SAVE"})
    fit_scene: BoolProperty(
        name="Fit Scene",
        description="Give the scene the clip's frame rate and a frame range that shows it once",
        default=False,
    )

    @classmethod
    def poll(cls, context):
        if context.mode != "OBJECT":
            cls.poll_message_set("Switch to Object Mode to import")
            return False
        if stage.is_rendering():
            cls.poll_message_set("Blender is rendering: import when the render has ended")
            return False
        return True

    def invoke(self, context, event):
        if self.filepath:  # dropped
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def sequences(self, paths: list[str]) -> list[list[str | os.PathLike]]:
        """The files of each object."""
        return [[path] for path in paths]

    def add(self, context, paths: list, **options) -> tuple[bpy.types.Object, str, list[str]]:
        """Import files as one object, tell it in a sentence, and warn in others. Raises BadFileError or OSError."""
        raise NotImplementedError

    def execute(self, context):
        names = [file.name for file in self.files if file.name]
        paths = [os.path.join(self.directory, name) for name in names] if self.directory else []
        if not paths and not self.filepath:
            self.report({"ERROR"}, "No file was chosen")
            return {"CANCELLED"}
        imported = []
        for sequence in self.sequences([bpy.path.abspath(path) for path in paths or [self.filepath]]):
            splats = self.add_reported(context, sequence, fit_scene=self.fit_scene and not imported)
            imported += [splats] if splats else []
        if self.fit_scene and imported:  # the first has set rate and start
            ends = [timing.last for timing in map(retime.timing, imported) if timing]
            context.scene.frame_end = max(context.scene.frame_end, *(math.ceil(end - 1e-3) for end in ends))
        for splats in imported:
            if splats.name in context.view_layer.objects:
                splats.select_set(True)
        return {"FINISHED"} if imported else {"CANCELLED"}

    def add_reported(self, context, paths: list, *, fit_scene: bool) -> bpy.types.Object | None:
        """Import one object, and report what comes of it."""
        path = paths[0]
        try:
            with shown_progress(context) as on_progress:
                splats, said, warnings = self.add(
                    context, paths, fit_scene=fit_scene, show_colors=True, on_progress=on_progress
                )
        except FileNotFoundError as error:
            self.report({"ERROR"}, f"There is no file {error.filename}")
        except BadFileError as error:
            self.report({"ERROR"}, str(error))
        except OSError as error:
            self.report({"ERROR"}, f"{error.filename or path} cannot be read: {error.strerror or error}")
        else:
            self.report({"INFO"}, said)
            for warning in warnings:
                self.report({"WARNING"}, warning)
            return splats
        return None


class KINESPLAT_OT_import_clip_file(SplatImport, bpy.types.Operator):
    bl_idname = "kinesplat.import_clip_file"
    bl_label = "Import Clip"
    bl_description = "Add Kinesplat clips (.npz) to the scene as keyframed Gaussians"

    filter_glob: StringProperty(default="*.npz", options={"HIDDEN"})

    def add(self, context, paths, **options):
        name = os.path.splitext(os.path.basename(paths[0]))[0]  # as Blender's own importers call what they make
        return *result_import.import_result(context, paths[0], name=name, **options), []


class KINESPLAT_OT_import_splat_files(SplatImport, bpy.types.Operator):
    bl_idname = "kinesplat.import_ply_files"  # scripts know it by what it could first
    bl_label = "Import Gaussian Splats"
    bl_description = (
        "Add splat files of other programs (.ply, .spz, .splat, .sog, .glb) to the scene. Files that are numbered "
        "alike, chosen together, become the frames of one object"
    )

    filter_glob: StringProperty(default=";".join(f"*{suffix}" for suffix in SUFFIXES), options={"HIDDEN"})
    up_axis: EnumProperty(
        name="Up Axis",
        description="Which axis points up in the files",
        items=(
            (
                "AUTO",
                "Automatic",
                "As the file or its format says: Y up in .spz and .glb, Y down in others that say nothing",
            ),
            *UP_AXES,
        ),
        default="AUTO",
    )

    def sequences(self, paths):
        return sequences(paths)

    def add(self, context, paths, **options):
        up_axis = None if self.up_axis == "AUTO" else self.up_axis
        return result_import.import_splat_files(context, paths, up_axis=up_axis, **options)


class SplatDrop:
    """Where files may be dropped."""

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type in {"VIEW_3D", "OUTLINER"}


class KINESPLAT_FH_clip(SplatDrop, bpy.types.FileHandler):
    bl_idname = "KINESPLAT_FH_clip"
    bl_label = "Kinesplat Clip"
    bl_import_operator = "kinesplat.import_clip_file"
    bl_file_extensions = ".npz"


class KINESPLAT_FH_splats(SplatDrop, bpy.types.FileHandler):
    bl_idname = "KINESPLAT_FH_splats"
    bl_label = "Gaussian Splats"
    bl_import_operator = "kinesplat.import_ply_files"
    # Of .ply Blender asks which, as it has a handler of its own. A .glb that is dropped is most often a mesh.
    bl_file_extensions = ";".join(suffix for suffix in SUFFIXES if suffix != ".glb")


def _menu_entries(self, context) -> None:
    self.layout.operator(KINESPLAT_OT_import_clip_file.bl_idname, text="Kinesplat Clip (.npz)")
    self.layout.operator(KINESPLAT_OT_import_splat_files.bl_idname, text=f"Gaussian Splats ({', '.join(SUFFIXES)})")


CLASSES = (KINESPLAT_OT_import_clip_file, KINESPLAT_OT_import_splat_files, KINESPLAT_FH_clip, KINESPLAT_FH_splats)


def register() -> None:
    """Also adds both to File > Import."""
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.TOPBAR_MT_file_import.append(_menu_entries)


def unregister() -> None:
    """Take all of it back."""
    bpy.types.TOPBAR_MT_file_import.remove(_menu_entries)
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
