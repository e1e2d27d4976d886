# SPDX-License-Identifier: GPL-3.0-or-later
"""Retiming of the selected Gaussians, and of meshes that move as they do.

All of it changes one F-curve, which the Graph Editor shows as well.
"""

from collections.abc import Callable

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty

from ..blender_addon import retime, splat_object

REPEATS = (
    ("HOLD", "Hold", "Play once: hold the first frame before, and the last frame after"),
    ("LOOP", "Loop", "Repeat the motion without end"),
    ("PING_PONG", "Ping-Pong", "Run the motion forth and back without end"),
)


class SplatOperator:
    """What the operators on the selected Gaussians have in common: `change` is called for each object."""

    bl_options = {"REGISTER", "UNDO"}
    takes = staticmethod(splat_object.is_splat_object)

    @classmethod
    def poll(cls, context):
        if not cls.takes(context.active_object):
            cls.poll_message_set("Select Gaussians that were imported with Kinesplat")
            return False
        return True

    def chosen(self, context) -> list[bpy.types.Object]:
        """What is to be changed."""
        return chosen_objects(context, self.takes)

    def change(self, context, splats) -> None:
        """Change one object. Raises RetimeError with a sentence."""
        raise NotImplementedError

    def execute(self, context):
        changed = 0
        for splats in self.chosen(context):
            try:
                self.change(context, splats)
                changed += 1
            except (retime.RetimeError, ValueError, RuntimeError) as error:
                self.report({"ERROR"}, str(error))
        return {"FINISHED"} if changed else {"CANCELLED"}


def chosen_objects(context: bpy.types.Context, takes: Callable) -> list[bpy.types.Object]:
    """The active object and all other selected ones that `takes` says yes to."""
    chosen = [context.active_object, *context.selected_objects]
    return [obj for obj in dict.fromkeys(chosen) if takes(obj)]


class RetimeOperator(SplatOperator):
    """Those of them that also change the timing of moving meshes."""

    takes = staticmethod(splat_object.plays)

    def chosen(self, context):
        """Of those that share their timing, one: else it would be reversed twice."""
        return list({retime.timing_key(obj): obj for obj in reversed(super().chosen(context))}.values())[::-1]


class KINESPLAT_OT_retime_repeat(RetimeOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retime_repeat"
    bl_label = "Repeat Motion"
    bl_description = "Choose what the selected Gaussians do before their first key and after their last"

    repeat: EnumProperty(
        name="Repeat",
        description="What is played before the first key and after the last",
        items=REPEATS,
        default="LOOP",
    )

    @classmethod
    def description(cls, context, properties):
        return next(text for key, _, text in REPEATS if key == properties.repeat)

    def change(self, context, splats):
        retime.set_repeat(splats, self.repeat)


class KINESPLAT_OT_retime_reverse(RetimeOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retime_reverse"
    bl_label = "Reverse Motion"
    bl_description = "Play the motion from its end to its beginning"

    def change(self, context, splats):
        retime.reverse(splats)


class KINESPLAT_OT_retime_fit(RetimeOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retime_fit"
    bl_label = "Fit Motion to Range"
    bl_description = "Stretch or squeeze the motion to a frame range, by default the scene's"

    use_scene_range: BoolProperty(
        name="Scene Frame Range",
        description="Fit to the scene's start and end frame, rather than to frames of your own",
        default=True,
        options={"SKIP_SAVE"},
    )
    frame_start: IntProperty(
        name="Start", description="Frame at which the motion begins", default=1, options={"SKIP_SAVE"}
    )
    frame_end: IntProperty(name="End", description="Frame at which it ends", default=250, options={"SKIP_SAVE"})

    def change(self, context, splats):
        scene = context.scene
        if self.use_scene_range:
            self.frame_start, self.frame_end = scene.frame_start, scene.frame_end
        retime.fit(splats, self.frame_start, self.frame_end)

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.prop(self, "use_scene_range")
        column = layout.column(align=True)
        column.active = not self.use_scene_range
        column.prop(self, "frame_start")
        column.prop(self, "frame_end")


class KINESPLAT_OT_retime_start(RetimeOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retime_start"
    bl_label = "Start Motion Here"
    bl_description = "Let the motion begin at the current frame, as fast as it is"

    frame: IntProperty(
        name="Frame",
        description="Frame at which the motion begins, by default the current one",
        default=1,
        options={"SKIP_SAVE"},
    )

    def change(self, context, splats):
        if not self.properties.is_property_set("frame"):
            self.frame = context.scene.frame_current
        retime.start_at(splats, self.frame)


class KINESPLAT_OT_retime_speed(RetimeOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retime_speed"
    bl_label = "Set Motion Speed"
    bl_description = "Play faster or slower from the first key on. 1 is the speed at which the motion was captured"

    factor: FloatProperty(
        name="Speed",
        description="1 is the speed at which the motion was captured, 2 is twice as fast",
        default=1.0,
        min=0.01,
        soft_min=0.1,
        soft_max=4.0,
        max=100.0,
    )

    def invoke(self, context, event):
        now = retime.timing(context.active_object)
        if now is not None and not self.properties.is_property_set("factor"):
            self.factor = now.speed
        return context.window_manager.invoke_props_dialog(self)

    def change(self, context, splats):
        retime.set_speed(splats, self.factor)


class KINESPLAT_OT_retime_part(SplatOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retime_part"
    bl_label = "Own Timing"
    bl_description = (
        "Give each of the selected objects keys of its own. Linked duplicates, and assets that were appended more "
        "than once, share theirs, so that retiming one retimes all"
    )
    takes = staticmethod(splat_object.plays)

    @classmethod
    def poll(cls, context):
        if not super().poll(context):
            return False
        if not any(retime.is_shared(obj) for obj in chosen_objects(context, cls.takes)):
            cls.poll_message_set("Nothing else has the same keys")
            return False
        return True

    def change(self, context, splats):
        retime.part(splats)


CLASSES = (
    KINESPLAT_OT_retime_repeat,
    KINESPLAT_OT_retime_reverse,
    KINESPLAT_OT_retime_fit,
    KINESPLAT_OT_retime_start,
    KINESPLAT_OT_retime_speed,
    KINESPLAT_OT_retime_part,
)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
