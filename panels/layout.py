# SPDX-License-Identifier: GPL-3.0-or-later
"""What all panels share: their place, and sentences that fit into a narrow sidebar."""

import textwrap

import bpy

CHARACTER_WIDTH = 6.6  # of Blender's default font, in pixels at scale 1; on the wide side, so that nothing is cut
NARROW = 260.0  # pixels at scale 1; below, two columns cut the names of settings
MARGIN = 70.0  # of a panel with an icon before the text
ICON_SIDE = 20.0  # pixels of an icon of scale 1
ICON_SCALES = (2.0, 7.0)  # of pictures, the smallest and the largest


class SidebarPanel:
    """Place of all panels."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Kinesplat"


def is_narrow(context: bpy.types.Context) -> bool:
    """Whether the sidebar is too narrow for names beside their settings."""
    region = context.region
    return bool(region) and region.width / context.preferences.system.ui_scale < NARROW


def lay_out_settings(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Names in a column of their own where there is room for it, else inside of their fields."""
    layout.use_property_split = not is_narrow(context)
    layout.use_property_decorate = False


def text_width(context: bpy.types.Context) -> float:
    """How wide a line beside an icon may be in the sidebar, in pixels at scale 1."""
    region = context.region
    return region.width / context.preferences.system.ui_scale - MARGIN if region else 220.0


def icon_scale(context: bpy.types.Context, columns: int) -> float:
    """How large pictures may be that stand side by side in the sidebar: without empty bands above and below."""
    smallest, largest = ICON_SCALES
    return min(max(text_width(context) / columns / ICON_SIDE, smallest), largest)


def draw_sentence(
    layout: bpy.types.UILayout,
    context: bpy.types.Context,
    text: str,
    icon: str = "BLANK1",
    *,
    alert: bool = False,
) -> None:
    """A sentence of any length, in as many lines as the sidebar's width asks for."""
    column = layout.column(align=True)
    column.alert = alert
    lines = textwrap.wrap(text, max(int(text_width(context) / CHARACTER_WIDTH), 16)) or [""]
    for index, line in enumerate(lines):
        row = column.row()
        row.scale_y = 0.8
        row.label(text=line, icon=icon if index == 0 or icon == "NONE" else "BLANK1", translate=False)
