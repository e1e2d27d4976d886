# SPDX-License-Identifier: GPL-3.0-or-later
"""Import of clip files from disk: by the file browser, by drag and drop, or from a script."""

import math
import os

import bpy
from bpy.props import BoolProperty, CollectionProperty, StringProperty

from ..blender_addon import result_import, retime, stage
from ..blender_addon.contract.arrays import BadFileError
from .progress import shown_progress


class KINESPLAT_OT_import_clip_file(bpy.types.Operator):
    bl_idname = "kinesplat.import_clip_file"
    bl_label = "Import Clip"
    bl_description = "Add Kinesplat clips (.npz) to the scene as keyframed Gaussians"
    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(name="File", subtype="FILE_PATH", options={"SKIP_SAVE"})
    # Set by the file browser and by dropping, which may bring several files of one folder.
    directory: StringProperty(subtype="DIR_PATH", options={"HIDDEN", "SKIP_SAVE"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"HIDDEN", "SKIP_SAVE"})
    filter_glob: StringProperty(default="*.npz", options={"HIDDEN"})
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

    def execute(self, context):
        names = [file.name for file in self.files if file.name]
        paths = [os.path.join(self.directory, name) for name in names] if self.directory else []
        imported = []
        for path in paths or [self.filepath]:
            splats = self.import_file(context, bpy.path.abspath(path), fit_scene=self.fit_scene and not imported)
            imported += [splats] if splats else []
        if self.fit_scene and imported:  # the first has set rate and start
            ends = [timing.last for timing in map(retime.timing, imported) if timing]
            context.scene.frame_end = max(context.scene.frame_end, *(math.ceil(end - 1e-3) for end in ends))
        for splats in imported:
            if splats.name in context.view_layer.objects:
                splats.select_set(True)
        return {"FINISHED"} if imported else {"CANCELLED"}

    def import_file(self, context, path: str, *, fit_scene: bool) -> bpy.types.Object | None:
        """Import one clip, and report what comes of it."""
        try:
            with shown_progress(context) as on_progress:
                splats, said = result_import.import_result(
                    context, path, fit_scene=fit_scene, show_colors=True, on_progress=on_progress
                )
        except FileNotFoundError:
            self.report({"ERROR"}, f"There is no file {path}" if path else "No file was chosen")
        except BadFileError as error:
            self.report({"ERROR"}, str(error))
        except OSError as error:
            self.report({"ERROR"}, f"{path} cannot be read: {error.strerror or error}")
        else:
            self.report({"INFO"}, said)
            return splats
        return None


class KINESPLAT_FH_clip(bpy.types.FileHandler):
    bl_idname = "KINESPLAT_FH_clip"
    bl_label = "Kinesplat Clip"
    bl_import_operator = "kinesplat.import_clip_file"
    bl_file_extensions = ".npz"

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type in {"VIEW_3D", "OUTLINER"}


def _menu_entry(self, context) -> None:
    self.layout.operator(KINESPLAT_OT_import_clip_file.bl_idname, text="Kinesplat Clip (.npz)")


CLASSES = (KINESPLAT_OT_import_clip_file, KINESPLAT_FH_clip)


def register() -> None:
    """Also adds File > Import > Kinesplat Clip."""
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.TOPBAR_MT_file_import.append(_menu_entry)


def unregister() -> None:
    """Take all of it back."""
    bpy.types.TOPBAR_MT_file_import.remove(_menu_entry)
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
