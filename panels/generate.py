# SPDX-License-Identifier: GPL-3.0-or-later
"""What to turn into Gaussians, and how."""

import bpy

from ..blender_addon import settings
from .layout import SidebarPanel


class KINESPLAT_PT_generate(SidebarPanel, bpy.types.Panel):
    bl_label = "Generate"

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        options = context.scene.kinesplat
        status = context.window_manager.kinesplat

        column = layout.column()
        column.active = not status.capture_active
        column.row().prop(options, "kind", expand=True)
        if options.kind == "OBJECT":
            draw_object(column, context)
        elif options.kind == "IMAGE":
            column.template_ID(options, "image", open="image.open")
        if settings.invents_motion(context):
            draw_invention(column, options)
        column.prop(options, "preset")

        if status.capture_active:
            layout.progress(factor=status.capture_fraction, text=status.capture_text, translate=False)
            layout.operator("kinesplat.cancel_capture", text="Cancel", icon="X")
        else:
            row = layout.row()
            row.scale_y = 1.6
            row.operator("kinesplat.generate", icon="OUTLINER_OB_POINTCLOUD")


def draw_object(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Which object, and where its motion comes from."""
    options = context.scene.kinesplat
    source = settings.source_object(context)
    layout.prop(options, "source", placeholder=source.name if source else "")
    layout.prop(options, "motion_source")
    if settings.invents_motion(context):
        return
    layout.prop(options, "frames")
    layout.prop(options, "use_scene_range")
    if options.use_scene_range:
        first, last = settings.frame_range(context.scene)
        row = layout.row()
        row.active = False
        row.label(text=f"Frames {first} to {last}", icon="BLANK1", translate=False)
    else:
        pair = layout.column(align=True)
        pair.prop(options, "frame_start")
        pair.prop(options, "frame_end")


def draw_invention(layout: bpy.types.UILayout, options: settings.KINESPLAT_PG_scene) -> None:
    """What the invented motion is to be like."""
    row = layout.row()  # as wide as the panel: prompts are long
    row.use_property_split = False
    row.prop(options, "prompt", text="", icon="TEXT", placeholder="Prompt, such as: a fox runs")
    layout.prop(options, "motion", slider=True)
    layout.prop(options, "seed")
    layout.prop(options, "preview_frames")
    if options.preview_frames:
        layout.prop(options, "candidates")


class KINESPLAT_PT_invention(SidebarPanel, bpy.types.Panel):
    bl_label = "Advanced"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context):
        return settings.invents_motion(context)

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        options = context.scene.kinesplat
        layout.prop(options, "guidance_motion")
        layout.prop(options, "guidance_static")
        layout.prop(options, "steps")


class KINESPLAT_PT_construction(SidebarPanel, bpy.types.Panel):
    bl_label = "Result"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        options = context.scene.kinesplat
        layout.prop(options, "gaussians")
        layout.prop(options, "sh_degree")
        layout.prop(options, "color_space")
        layout.prop(options, "motion_model")
        if not settings.invents_motion(context):
            layout.prop(options, "seed")


class KINESPLAT_PT_capture(SidebarPanel, bpy.types.Panel):
    bl_label = "Capture"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context):
        return context.scene.kinesplat.kind == "OBJECT"

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        options = context.scene.kinesplat
        layout.prop(options, "resolution")
        layout.prop(options, "elevation")
        if not settings.invents_motion(context):
            layout.prop(options, "capture_static")
        column = layout.column()
        column.prop(options, "engine")
        column.prop(options, "samples")


CLASSES = (KINESPLAT_PT_generate, KINESPLAT_PT_invention, KINESPLAT_PT_construction, KINESPLAT_PT_capture)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
