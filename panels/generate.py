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
        source = settings.source_object(context)

        column = layout.column()
        column.active = not status.capture_active
        column.prop(options, "source", placeholder=source.name if source else "")
        column.prop(options, "preset")
        column.prop(options, "frames")
        column.prop(options, "use_scene_range")
        if options.use_scene_range:
            first, last = settings.frame_range(context.scene)
            row = column.row()
            row.active = False
            row.label(text=f"Frames {first} to {last}", icon="BLANK1", translate=False)
        else:
            pair = column.column(align=True)
            pair.prop(options, "frame_start")
            pair.prop(options, "frame_end")

        if status.capture_active:
            layout.progress(factor=status.capture_fraction, text=status.capture_text, translate=False)
            layout.operator("kinesplat.cancel_capture", text="Cancel", icon="X")
        else:
            row = layout.row()
            row.scale_y = 1.6
            row.operator("kinesplat.generate", icon="OUTLINER_OB_POINTCLOUD")


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
        layout.prop(options, "seed")


class KINESPLAT_PT_capture(SidebarPanel, bpy.types.Panel):
    bl_label = "Capture"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        options = context.scene.kinesplat
        layout.prop(options, "resolution")
        layout.prop(options, "elevation")
        layout.prop(options, "capture_static")
        column = layout.column()
        column.prop(options, "engine")
        column.prop(options, "samples")


CLASSES = (KINESPLAT_PT_generate, KINESPLAT_PT_construction, KINESPLAT_PT_capture)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
