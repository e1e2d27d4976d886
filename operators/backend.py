# SPDX-License-Identifier: GPL-3.0-or-later
"""Start and stop the backend, and help where that does not work."""

import bpy

from ..blender_addon import job_tracker, local_backend, preferences
from ..blender_addon.client import BackendError

START_TIMEOUT = local_backend.START_SECONDS + 10


class KINESPLAT_OT_start_backend(bpy.types.Operator):
    bl_idname = "kinesplat.start_backend"
    bl_label = "Start Backend"
    bl_description = "Start the backend on this computer. It is a process of its own and goes on when Blender is closed"
    bl_options = {"REGISTER"}

    @classmethod
    def poll(cls, context):
        if preferences.get().backend == "REMOTE":
            cls.poll_message_set("The backend is on another computer: start it there")
            return False
        state = context.window_manager.kinesplat.backend_state
        if state in ("running", "starting", "stopping"):
            cls.poll_message_set(f"The backend is {state} already")
            return False
        return True

    def execute(self, context):
        tracker = job_tracker.tracker()
        try:
            tracker.start_backend()
            if bpy.app.background:
                job_tracker.wait(lambda: tracker.board.backend.state in ("running", "problem"), START_TIMEOUT)
        except BackendError as error:
            self.report({"ERROR"}, f"{error} {error.hint}".strip())
            return {"CANCELLED"}
        backend = tracker.board.backend
        if bpy.app.background and backend.state != "running":
            self.report({"ERROR"}, f"{backend.sentence} {backend.hint}".strip())
            return {"CANCELLED"}
        return {"FINISHED"}


class KINESPLAT_OT_stop_backend(bpy.types.Operator):
    bl_idname = "kinesplat.stop_backend"
    bl_label = "Stop Backend"
    bl_description = "Stop the backend on this computer. Jobs are kept, and a running one goes on at the next start"
    bl_options = {"REGISTER"}

    @classmethod
    def poll(cls, context):
        if preferences.get().backend == "REMOTE":
            cls.poll_message_set("The backend is on another computer: stop it there")
            return False
        status = context.window_manager.kinesplat
        if status.backend_state != "running" and status.backend_code != "wrong_version":
            cls.poll_message_set("The backend is not running")
            return False
        return True

    def execute(self, context):
        tracker = job_tracker.tracker()
        tracker.notice = job_tracker.NOTHING
        tracker.http.stop_backend()
        if bpy.app.background:
            try:
                job_tracker.wait(lambda: tracker.board.backend.state == "stopped", local_backend.STOP_SECONDS + 10)
            except BackendError as error:
                self.report({"ERROR"}, f"{error} {error.hint}".strip())
                return {"CANCELLED"}
        return {"FINISHED"}


class KINESPLAT_OT_connect(bpy.types.Operator):
    bl_idname = "kinesplat.connect"
    bl_label = "Connect Again"
    bl_description = "Look for the backend now, and send what waits for it"
    bl_options = {"REGISTER"}

    def execute(self, context):
        tracker = job_tracker.tracker()
        tracker.reconnect()
        if bpy.app.background:
            job_tracker.pump(1.0)
        return {"FINISHED"}


class KINESPLAT_OT_open_preferences(bpy.types.Operator):
    bl_idname = "kinesplat.open_preferences"
    bl_label = "Kinesplat Preferences"
    bl_description = "Show where the backend is looked for"
    bl_options = {"INTERNAL"}

    @classmethod
    def poll(cls, context):
        if bpy.app.background:
            cls.poll_message_set("There is no window to show the preferences in")
            return False
        return True

    def execute(self, context):
        return bpy.ops.preferences.addon_show(module=preferences.package())


class KINESPLAT_OT_copy_setup_command(bpy.types.Operator):
    bl_idname = "kinesplat.copy_setup_command"
    bl_label = "Copy Setup Command"
    bl_description = "Copy the command that sets up the backend, to be pasted into a terminal"
    bl_options = {"INTERNAL"}

    def execute(self, context):
        folder = preferences.setup_folder()
        if folder is None:
            self.report({"ERROR"}, "There is no backend to set up: choose its folder first, or start it")
            return {"CANCELLED"}
        context.window_manager.clipboard = f'cd "{folder}" && {local_backend.SETUP_COMMAND}'
        self.report({"INFO"}, "Copied: paste it into a terminal")
        return {"FINISHED"}


CLASSES = (
    KINESPLAT_OT_start_backend,
    KINESPLAT_OT_stop_backend,
    KINESPLAT_OT_connect,
    KINESPLAT_OT_open_preferences,
    KINESPLAT_OT_copy_setup_command,
)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
