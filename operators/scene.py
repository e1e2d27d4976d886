# SPDX-License-Identifier: GPL-3.0-or-later
"""How Gaussians are drawn, and what they render wrongly without: settings of the scene, a transform of their own."""

import bpy
from bpy.props import EnumProperty

from ..blender_addon import applied_transform, joined, scene_settings, splat_object
from .retime import SplatOperator

DRAW_MODES = (
    ("POINTS", "Points", "Colored points: fast, for blocking and scrubbing"),
    ("QUADS", "Splats", "True Gaussians, turned towards the scene's camera: from elsewhere they stand edge-on"),
    ("NATIVE", "Native", "True Gaussians drawn by Blender itself (5.3 and newer)"),
)


class KINESPLAT_OT_set_draw_mode(SplatOperator, bpy.types.Operator):
    bl_idname = "kinesplat.set_draw_mode"
    bl_label = "Set Viewport Drawing"
    bl_description = "Choose how the viewport draws the selected Gaussians. Renders always show true Gaussians"

    mode: EnumProperty(
        name="Draw As", description="What the viewport shows of each Gaussian", items=DRAW_MODES, default="QUADS"
    )

    @classmethod
    def description(cls, context, properties):
        return next(text for key, _, text in DRAW_MODES if key == properties.mode)

    def change(self, context, splats):
        splat_object.set_draw_mode(splats, viewport=self.mode)

    def execute(self, context):
        done = super().execute(context)
        shading = getattr(context.space_data, "shading", None)
        if "FINISHED" in done and self.mode == "QUADS" and shading is not None and shading.type == "SOLID":
            self.report({"INFO"}, "Solid shading draws whole quads: look at Splats in Material Preview")
        return done


class KINESPLAT_OT_fix_scene_settings(bpy.types.Operator):
    bl_idname = "kinesplat.fix_scene_settings"
    bl_label = "Fix Render Settings"
    bl_description = "Set what Gaussians need for rendering in this scene, and leave everything else as it is"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        if not scene_settings.needs_settings(context.scene):
            cls.poll_message_set("This scene has all the render settings that Gaussians need")
            return False
        return True

    def execute(self, context):
        changed = scene_settings.ensure_scene_settings(context.scene)
        self.report({"INFO"}, ". ".join(changed))
        return {"FINISHED"}


class MendOperator(SplatOperator):
    """Those that mend, in Object Mode, what was done to the selected Gaussians."""

    nothing = ""  # why there is nothing to mend

    @classmethod
    def poll(cls, context):
        if context.mode != "OBJECT":
            cls.poll_message_set("Switch to Object Mode")
            return False
        if not cls.takes(context.active_object):
            cls.poll_message_set(cls.nothing)
            return False
        return True

    def change(self, context, splats):
        if self.takes(splats):  # of objects that share their points, the first has mended all
            self.mend(splats)


class KINESPLAT_OT_give_back_transform(MendOperator, bpy.types.Operator):
    bl_idname = "kinesplat.give_back_transform"
    bl_label = "Give Back to Object"
    bl_description = (
        "Give the scale and rotation that were applied to the selected Gaussians back to the object, "
        "so that their sizes and their motion fit again"
    )
    takes = staticmethod(applied_transform.find_applied)
    mend = staticmethod(applied_transform.give_back)
    nothing = "No scale or rotation was applied to the active object"


class KINESPLAT_OT_fit_joined(MendOperator, bpy.types.Operator):
    bl_idname = "kinesplat.fit_joined"
    bl_label = "Fit Joined Frames"
    bl_description = (
        "Let the stored frames of Gaussians that were joined go along with their scale and rotation, "
        "and play for as long as those that they were joined to"
    )
    takes = staticmethod(joined.misfits)
    mend = staticmethod(joined.settle)
    nothing = "Nothing was joined into the active Gaussians that does not fit"


CLASSES = (
    KINESPLAT_OT_set_draw_mode,
    KINESPLAT_OT_fix_scene_settings,
    KINESPLAT_OT_give_back_transform,
    KINESPLAT_OT_fit_joined,
)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
