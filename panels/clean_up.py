# SPDX-License-Identifier: GPL-3.0-or-later
"""Cleaning up of the active Gaussians: buttons that remove in Object Mode and select in Edit Mode."""

import bpy

from .splats import SplatPanel


class KINESPLAT_PT_clean_up(SplatPanel, bpy.types.Panel):
    bl_label = "Clean Up"
    bl_parent_id = "KINESPLAT_PT_splats"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        editing = context.mode == "EDIT_MESH"
        verb = "Select" if editing else "Remove"
        column = layout.column(align=True)
        column.operator("kinesplat.remove_floaters", text=f"{verb} Floaters", icon="OUTLINER_OB_POINTCLOUD")
        row = column.row(align=True)
        row.operator("kinesplat.remove_faint", text=f"{verb} Faint")
        row.operator("kinesplat.remove_oversized", text=f"{verb} Oversized")
        crop = "Select Outside Object" if editing else "Crop to Object"
        layout.operator("kinesplat.crop_to_object", text=crop, icon="MOD_BOOLEAN")
        layout.operator("kinesplat.reduce_density", icon="MOD_DECIM")
        if not editing:
            row = layout.row()
            row.active = False
            row.label(text=f"{len(context.active_object.data.vertices):,} Gaussians", translate=False)


CLASSES = (KINESPLAT_PT_clean_up,)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
