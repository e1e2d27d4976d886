# SPDX-License-Identifier: GPL-3.0-or-later
"""The selected Gaussians: how they are drawn, when they play, and what the scene lacks to render them.

Also the timing of meshes that took over their motion.
"""

import bpy

from ..blender_addon import (
    applied_transform,
    joined,
    mesh_motion,
    node_groups,
    origin,
    retime,
    scene_settings,
    splat_object,
)
from .layout import SidebarPanel, draw_sentence

MODE_TEXTS = {"POINTS": "Points", "QUADS": "Splats", "NATIVE": "Native"}
REPEAT_TEXTS = {"HOLD": "Hold", "LOOP": "Loop", "PING_PONG": "Ping-Pong"}


class SplatPanel(SidebarPanel):
    """Shown while Gaussians are active."""

    @classmethod
    def poll(cls, context):
        return splat_object.is_splat_object(context.active_object)


class KINESPLAT_PT_splats(SplatPanel, bpy.types.Panel):
    bl_label = "Gaussians"

    def draw(self, context):
        layout = self.layout
        splats = context.active_object
        if splats.library is not None:
            draw_linked(layout, context)
        else:
            draw_modes(layout, splats)
            draw_applied(layout, context)
            draw_joined(layout, context)
        for warning in scene_settings.scene_warnings(context.scene):
            draw_sentence(layout, context, warning, icon="ERROR")
        if bpy.ops.kinesplat.fix_scene_settings.poll():
            layout.operator("kinesplat.fix_scene_settings", icon="CHECKMARK")
        layout.operator("kinesplat.move_mesh", icon="MOD_MESHDEFORM")
        chosen = any(mesh_motion.may_move(obj) for obj in context.selected_objects)
        if not chosen and not origin.may_know_source(splats, context.scene):
            draw_sentence(
                layout, context, "Select a mesh first and the Gaussians last, and it moves as they do", "INFO"
            )


class KINESPLAT_PT_timing(SplatPanel, bpy.types.Panel):
    bl_label = "Timing"
    bl_parent_id = "KINESPLAT_PT_splats"

    def draw(self, context):
        draw_timing(self.layout, context)


class KINESPLAT_PT_instance(SidebarPanel, bpy.types.Panel):
    """Shown while an instance of a collection with Gaussians is active."""

    bl_label = "Instanced Gaussians"

    @classmethod
    def poll(cls, context):
        return splat_object.instances_quads(context.active_object)

    def draw(self, context):
        sentence = (
            "Renders turn Gaussians to where the camera is as seen from the original: an instance that stands "
            "elsewhere falls apart. Link or append the object itself, not its collection"
        )
        draw_sentence(self.layout, context, sentence, icon="ERROR")


class KINESPLAT_PT_moving_mesh(SidebarPanel, bpy.types.Panel):
    """Shown while a mesh is active that took over the motion of Gaussians."""

    bl_label = "Moving Mesh"

    @classmethod
    def poll(cls, context):
        active = context.active_object
        return splat_object.plays(active) and not splat_object.is_splat_object(active)

    def draw(self, context):
        if context.active_object.library is not None:
            draw_linked(self.layout, context)
        else:
            draw_applied(self.layout, context)
        draw_timing(self.layout, context)


def draw_timing(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """How the active object plays, and what changes it."""
    if splat_object.is_still(context.active_object):
        draw_sentence(layout, context, "One frame alone: it stands still", icon="INFO")
        return
    timing = retime.timing(context.active_object)
    if timing is None:
        draw_sentence(
            layout,
            context,
            "The input Frame of the modifier has no keys, so nothing moves: hover over it and press I at two frames",
            icon="INFO",
        )
        return
    if retime.lies_in_nla(context.active_object):
        draw_sentence(layout, context, "The timing lies in the NLA: change the strip there, or enter Tweak Mode", "NLA")
        return
    if context.active_object.library is None:
        draw_retiming(layout, timing)
    row = layout.row()
    row.active = False
    row.label(text=f"Keyed from frame {round(timing.first, 2):g} to {round(timing.last, 2):g}", translate=False)
    if retime.is_over(timing, context.scene):
        draw_sentence(layout, context, "It stands still within the scene's frame range", icon="INFO")
    if retime.is_shared(context.active_object):
        draw_sentence(layout, context, "Others have the same keys, and are retimed along", icon="LINKED")
        layout.operator("kinesplat.retime_part", icon="UNLINKED")


def draw_retiming(layout: bpy.types.UILayout, timing: retime.Timing) -> None:
    """The buttons that change how an object plays."""
    row = layout.row(align=True)
    for repeat, text in REPEAT_TEXTS.items():
        row.operator("kinesplat.retime_repeat", text=text, depress=timing.repeat == repeat).repeat = repeat
    row = layout.row(align=True)
    row.operator("kinesplat.retime_reverse", text="Reverse", icon="ARROW_LEFTRIGHT")
    row.operator("kinesplat.retime_fit", text="Fit to Range", icon="FULLSCREEN_ENTER")
    row = layout.row(align=True)
    row.operator("kinesplat.retime_start", text="Start Here", icon="TRIA_RIGHT_BAR")
    row.operator("kinesplat.retime_speed", text=f"Speed {timing.speed:.2f}", icon="TIME")


def draw_linked(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Why what is linked cannot be changed, and the button that mends it."""
    library = bpy.path.basename(context.active_object.library.filepath)
    sentence = f"Linked from {library}. To retime it here, or to draw it in another way, override it"
    draw_sentence(layout, context, sentence, icon="LINKED")
    layout.operator("object.make_override_library", icon="LIBRARY_DATA_OVERRIDE")


def draw_applied(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What is wrong where scale or rotation were applied to the active object, and the button that mends it."""
    if applied_transform.find_applied(context.active_object) is not None:
        sentence = "Scale or rotation was applied, which the stored frames know nothing of: sizes and motion do not fit"
        draw_sentence(layout, context, sentence, icon="ERROR")
        layout.operator("kinesplat.give_back_transform", icon="LOOP_BACK")


def draw_joined(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What is wrong where Gaussians were joined that do not fit the frames of the active ones, and what mends it."""
    if joined.misfits(context.active_object):
        sentence = "Some were joined with another scale, rotation or number of frames: their motion does not fit"
        draw_sentence(layout, context, sentence, icon="ERROR")
        layout.operator("kinesplat.fit_joined", icon="MOD_ARRAY")


def draw_modes(layout: bpy.types.UILayout, splats: bpy.types.Object) -> None:
    """One button per way of drawing that this Blender has."""
    current = splat_object.draw_mode(splats)
    row = layout.row(align=True)
    for mode in node_groups.draw_modes():
        row.operator("kinesplat.set_draw_mode", text=MODE_TEXTS[mode], depress=mode == current).mode = mode


CLASSES = (KINESPLAT_PT_splats, KINESPLAT_PT_timing, KINESPLAT_PT_instance, KINESPLAT_PT_moving_mesh)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
