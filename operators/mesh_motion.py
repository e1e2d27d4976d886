# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the motion of Gaussians to the mesh that they were made of."""

import bpy
from bpy.props import BoolProperty

from ..blender_addon import mesh_motion, placing, splat_object
from .progress import shown_progress


class KINESPLAT_OT_move_mesh(bpy.types.Operator):
    bl_idname = "kinesplat.move_mesh"
    bl_label = "Give Motion to Mesh"
    bl_description = (
        "Make a copy of the mesh from which the Gaussians were made, or of the other selected objects, that moves as "
        "the Gaussians do, with its own materials"
    )
    bl_options = {"REGISTER", "UNDO"}

    shape_keys: BoolProperty(
        name="As Shape Keys",
        description="Keep the motion as keyed shape keys, which glTF and FBX take along, instead of a modifier that "
        "is retimed with the Gaussians",
        default=False,
    )
    hide_gaussians: BoolProperty(
        name="Hide Gaussians", description="Hide the Gaussians, which lie in the same place", default=True
    )
    hide_source: BoolProperty(
        name="Hide Original", description="Hide the objects that were copied, with their children", default=True
    )

    @classmethod
    def poll(cls, context):
        if not splat_object.is_splat_object(context.active_object):
            cls.poll_message_set("Select the Gaussians last, so that they are active")
            return False
        if context.mode != "OBJECT":
            cls.poll_message_set("Switch to Object Mode")
            return False
        return True

    def execute(self, context):
        splats = context.active_object
        chosen = [obj for obj in context.selected_objects if mesh_motion.may_move(obj)]
        objects = chosen or mesh_motion.source_objects(splats, context)
        try:
            with shown_progress(context) as on_progress:
                copies = mesh_motion.moving_copies(
                    splats, objects, context, shape_keys=self.shape_keys, on_progress=on_progress
                )
        except ValueError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        hidden = [*([splats] if self.hide_gaussians else []), *(objects if self.hide_source else [])]
        placing.hide(context, hidden, spared=[*copies, *([] if self.hide_gaussians else [splats])])
        placing.select_alone(context, copies)
        names = ", ".join(copy.name for copy in copies)
        hid = ", ".join(obj.name for obj in hidden)
        self.report({"INFO"}, f"Made {names}" + (f". Hidden: {hid}" if hid else ""))
        return {"FINISHED"}


CLASSES = (KINESPLAT_OT_move_mesh,)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
