# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's state, with the button that changes it."""

import bpy

from ..blender_addon import preferences
from .layout import SidebarPanel, draw_sentence, is_narrow

STATES = {  # text, short enough for a header with a button; the same for a narrow one; icon
    "running": ("Backend Running", "Running", "CHECKMARK"),
    "starting": ("Backend Starting", "Starting", "SORTTIME"),
    "stopping": ("Backend Stopping", "Stopping", "SORTTIME"),
    "stopped": ("Backend Off", "Off", "RADIOBUT_OFF"),
    "problem": ("No Backend", "None", "ERROR"),
}
FIXED_IN_PREFERENCES = ("not_installed", "not_allowed", "bad_address", "not_kinesplat", "wrong_token", "wrong_version")


class KINESPLAT_PT_backend(SidebarPanel, bpy.types.Panel):
    bl_label = ""  # the header says the state and holds the button, so that the panel is one row while all is well

    def draw_header(self, context):
        state = context.window_manager.kinesplat.backend_state
        text, short, icon = STATES.get(state, STATES["stopped"])
        self.layout.alert = state == "problem"
        self.layout.label(text=short if is_narrow(context) else text, icon=icon)

    def draw_header_preset(self, context):
        status = context.window_manager.kinesplat
        row = self.layout.row()
        if preferences.get().backend != "LOCAL":
            row.operator("kinesplat.connect", text="Connect")
        elif status.backend_state in ("running", "stopping") or status.backend_code == "wrong_version":
            row.operator("kinesplat.stop_backend", text="Stop")
        else:
            row.operator("kinesplat.start_backend", text="Start")
        row.operator("kinesplat.open_preferences", text="", icon="PREFERENCES", emboss=False)

    def draw(self, context):
        layout = self.layout
        status = context.window_manager.kinesplat
        if (
            status.backend_state in ("problem", "stopped")
            and status.backend_message
            and status.backend_code != "not_running"
        ):
            draw_sentence(layout, context, status.backend_message)
            if status.backend_hint:
                draw_sentence(layout, context, status.backend_hint, icon="INFO")
        if status.notice and status.notice != status.backend_message:
            draw_sentence(layout, context, status.notice, icon="ERROR")
            if status.notice_hint:
                draw_sentence(layout, context, status.notice_hint, icon="INFO")
        if status.backend_code in FIXED_IN_PREFERENCES or status.notice_code in FIXED_IN_PREFERENCES:
            layout.operator("kinesplat.open_preferences", text="Open Preferences", icon="PREFERENCES")


CLASSES = (KINESPLAT_PT_backend,)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
