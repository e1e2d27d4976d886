# SPDX-License-Identifier: GPL-3.0-or-later
"""The selected Gaussians as an asset."""

import bpy

from .layout import draw_sentence
from .splats import SplatPanel


class KINESPLAT_PT_asset(SplatPanel, bpy.types.Panel):
    bl_label = "Asset"
    bl_parent_id = "KINESPLAT_PT_splats"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        splats = context.active_object
        asset = splats.asset_data
        text, icon = ("Mark as Asset", "ASSET_MANAGER") if asset is None else ("Update Preview", "FILE_REFRESH")
        layout.operator("kinesplat.mark_asset", text=text, icon=icon)
        layout.operator_menu_enum("kinesplat.save_asset", "library", text="Save to Library", icon="FILE_NEW")
        if asset is not None:
            tags = ", ".join(tag.name for tag in asset.tags)
            draw_sentence(
                layout, context, f"An asset. Tags: {tags}" if tags else "An asset without tags", icon="CHECKMARK"
            )


CLASSES = (KINESPLAT_PT_asset,)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
