# SPDX-License-Identifier: GPL-3.0-or-later
"""Editors to show something in."""

import bpy


def spaces(kind: str) -> list[bpy.types.Space]:
    """What the editors of this kind show, in all windows."""
    windows = bpy.data.window_managers[0].windows
    return [area.spaces.active for window in windows for area in window.screen.areas if area.type == kind]


def open_editor(kind: str) -> bpy.types.Space:
    """An editor of this kind: one that is to be seen already, or else in a new window. Not in background mode."""
    if found := spaces(kind):
        return found[0]
    bpy.ops.wm.window_new()
    area = max(bpy.data.window_managers[0].windows[-1].screen.areas, key=lambda area: area.width * area.height)
    area.type = kind
    return area.spaces.active
