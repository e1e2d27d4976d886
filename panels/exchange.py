# SPDX-License-Identifier: GPL-3.0-or-later
"""Below the selected Gaussians: what takes them elsewhere."""

import bpy

from .splats import SplatPanel


class KINESPLAT_PT_export(SplatPanel, bpy.types.Panel):
    bl_label = "Export"
    bl_parent_id = "KINESPLAT_PT_splats"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        column = self.layout.column(align=True)
        column.operator("kinesplat.export_clip_file", text="Clip", icon="EXPORT")
        column.operator("kinesplat.export_ply_sequence", text="PLY Sequence", icon="POINTCLOUD_DATA")


CLASSES = (KINESPLAT_PT_export,)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
