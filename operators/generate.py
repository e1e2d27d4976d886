# SPDX-License-Identifier: GPL-3.0-or-later
"""Generate: capture the source object and hand it to the backend as a job."""

import bpy
from bpy.props import BoolProperty

from ..blender_addon import job_tracker, settings, splat_object
from ..blender_addon.client import BackendError
from ..blender_addon.subject import CaptureError

FIRST_PATIENCE = 1.0  # seconds that the click may wait for the HTTP thread to stand still
CONNECT_TIMEOUT = 10.0  # seconds that background mode waits for a backend before it renders anything


class KINESPLAT_OT_generate(bpy.types.Operator):
    bl_idname = "kinesplat.generate"
    bl_label = "Generate"
    bl_description = (
        "Render the source object from all around while it moves, and have the backend make moving Gaussians of it. "
        "Blender stays usable meanwhile"
    )
    bl_options = {"REGISTER"}

    wait: BoolProperty(
        name="Wait",
        description="Return only when the job has ended. For scripts",
        default=False,
        options={"HIDDEN", "SKIP_SAVE"},
    )

    @classmethod
    def poll(cls, context):
        status = context.window_manager.kinesplat
        if status.capture_active:
            cls.poll_message_set("A capture is on its way: wait for its end, or cancel it")
            return False
        source = settings.source_object(context)
        if source is None:
            cls.poll_message_set("Select the object to turn into Gaussians, or choose it as the source")
            return False
        if splat_object.is_splat_object(source):
            cls.poll_message_set("The source holds Gaussians already: select the object to make them of")
            return False
        if source.name in context.view_layer.objects and not source.visible_get():
            cls.poll_message_set("The source object is hidden: show it in the viewport")
            return False
        first, last = settings.frame_range(context.scene)
        if last <= first:
            cls.poll_message_set("The frame range holds no motion: choose an end after the start")
            return False
        if not bpy.app.background and status.backend_state not in ("running", "starting"):
            cls.poll_message_set("The backend is not running: start it in the panel above")
            return False
        return True

    def execute(self, context):
        tracker = job_tracker.tracker()
        at_once = self.wait or bpy.app.background
        try:
            if at_once:
                job_tracker.wait(lambda: tracker.board.backend.state == "running", CONNECT_TIMEOUT)
            tracker.begin_capture(context)
            row = tracker.step_capture(FIRST_PATIENCE)  # finds out whether this object can be captured at all
            while at_once and row is None:
                row = tracker.step_capture()
            if at_once:
                tracker.mirror(select=row.uid)
            if self.wait:
                row = job_tracker.wait_for_job(row.uid)
        except CaptureError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        except BackendError as error:
            self.report({"ERROR"}, f"{error} {error.hint}".strip())
            return {"CANCELLED"}
        if self.wait and row.state != "succeeded":
            self.report({"ERROR"}, f"{row.message or 'The job was cancelled.'} {row.hint}".strip())
            return {"CANCELLED"}
        tracker.mirror()
        return {"FINISHED"}


class KINESPLAT_OT_cancel_capture(bpy.types.Operator):
    bl_idname = "kinesplat.cancel_capture"
    bl_label = "Cancel Capture"
    bl_description = "Stop rendering the source object. No job is made"
    bl_options = {"REGISTER"}

    @classmethod
    def poll(cls, context):
        if not context.window_manager.kinesplat.capture_active:
            cls.poll_message_set("No capture is on its way")
            return False
        return True

    def execute(self, context):
        tracker = job_tracker.tracker()
        tracker.cancel_capture()
        tracker.mirror()
        return {"FINISHED"}


CLASSES = (KINESPLAT_OT_generate, KINESPLAT_OT_cancel_capture)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
