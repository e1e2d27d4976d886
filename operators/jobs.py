# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be done with a job: cancel, retry, remove, import its result, read its log, look at its frames, build one.

Each takes the job's `uid`; without one it takes the job that is selected in the list.
"""

import bpy
from bpy.props import BoolProperty, StringProperty

from ..blender_addon import film, job_tracker, log_text, result_import, settings
from ..blender_addon.client import BackendError
from ..blender_addon.contract.arrays import BadFileError
from ..blender_addon.contract.frames import read_frames
from ..blender_addon.contract.requests import TERMINAL_STATES
from ..blender_addon.job_board import GONE, REFUSED, WAITING, Row
from .progress import shown_progress

JOB_GONE = "This job is no longer in the list"
COMMAND_TIMEOUT = 30.0  # seconds that background mode waits for the backend's answer


class JobOperator:
    """What the operators on a job have in common."""

    bl_options = {"REGISTER"}

    uid: StringProperty(name="Job", description="The job, by its uid", options={"HIDDEN", "SKIP_SAVE"})

    @classmethod
    def poll(cls, context):
        if not context.window_manager.kinesplat.jobs:
            cls.poll_message_set("There are no jobs yet: generate something first")
            return False
        return True

    def row(self, context) -> Row | None:
        """The job's row; where it is missing, that is reported."""
        job = settings.active_job(context)
        tracker = job_tracker.tracker()
        tracker.notice = job_tracker.NOTHING  # of what the user did before
        row = tracker.board.find(self.uid or (job.uid if job else ""))
        if row is None:
            self.report({"ERROR"}, JOB_GONE)
        return row

    def needs_backend(self) -> bool:
        """Report where the backend is not there to be asked."""
        tracker = job_tracker.tracker()
        if bpy.app.background:
            job_tracker.pump()  # the connection may have come meanwhile
        if tracker.board.backend.state == "running":
            return False
        self.report({"ERROR"}, "The backend is not running: start it first")
        return True

    def has_result_here(self, row: Row) -> bool:
        """Whether the result is on this computer; if not, fetch it, and report what hinders or what comes next."""
        if row.result is not None:
            return True
        if row.state != "succeeded":
            self.report({"ERROR"}, f"{row.name} has no result yet")
            return False
        if self.needs_backend():
            return False
        job_tracker.tracker().fetch(row)
        if not bpy.app.background:
            self.report({"INFO"}, f"{row.name} is being fetched and appears in a moment")
            return False
        try:
            job_tracker.wait(lambda: row.result is not None or row.fetching is None)
        except BackendError as error:
            self.report({"ERROR"}, f"{error} {error.hint}".strip())
            return False
        if row.result is None:
            self.report({"ERROR"}, f"{row.message} {row.hint}".strip())
        return row.result is not None


class KINESPLAT_OT_cancel_job(JobOperator, bpy.types.Operator):
    bl_idname = "kinesplat.cancel_job"
    bl_label = "Cancel Job"
    bl_description = "End this job. What is done so far is kept for a retry"

    def execute(self, context):
        row = self.row(context)
        if row is None:
            return {"CANCELLED"}
        if row.state not in ("queued", "running"):
            self.report({"WARNING"}, f"{row.name} is not being worked on")
            return {"CANCELLED"}
        if self.needs_backend():
            return {"CANCELLED"}
        tracker = job_tracker.tracker()
        tracker.http.cancel(row.job_id)
        row.state = "cancelling"
        return _settle(self, lambda: row.state in TERMINAL_STATES or row.state == GONE)


class KINESPLAT_OT_retry_job(JobOperator, bpy.types.Operator):
    bl_idname = "kinesplat.retry_job"
    bl_label = "Retry Job"
    bl_description = "Queue this job again. Stages that are done are not repeated"

    def execute(self, context):
        row = self.row(context)
        if row is None:
            return {"CANCELLED"}
        if row.state not in ("failed", "cancelled", REFUSED, WAITING):
            self.report({"WARNING"}, f"{row.name} has neither failed nor been cancelled")
            return {"CANCELLED"}
        if self.needs_backend():
            return {"CANCELLED"}
        tracker = job_tracker.tracker()
        row.message = row.hint = ""
        if row.job_id:
            row.state, row.fraction, row.stage = "queued", 0.0, ""
            tracker.http.retry(row.job_id)
        else:
            row.state = WAITING
            tracker.http.submit(row.uid)
        tracker.mirror()
        return {"FINISHED"}


class KINESPLAT_OT_remove_job(JobOperator, bpy.types.Operator):
    bl_idname = "kinesplat.remove_job"
    bl_label = "Remove Job"
    bl_description = "Remove this job and its result from the list and from the backend. Imported objects stay"

    def invoke(self, context, event):
        row = self.row(context)
        if row is None:
            return {"CANCELLED"}
        record = job_tracker.tracker().board.record(row.uid)
        if not row.has_result or (record and record.imported):
            return self.execute(context)
        return context.window_manager.invoke_confirm(
            self,
            event,
            title="Remove this job?",
            message="Its result has not been used yet and will be gone.",
            confirm_text="Remove",
        )

    def execute(self, context):
        row = self.row(context)
        if row is None:
            return {"CANCELLED"}
        if row.job_id and row.state in ("queued", "running", "cancelling"):
            self.report({"WARNING"}, f"{row.name} is still being worked on: cancel it first")
            return {"CANCELLED"}
        if row.job_id and row.state != GONE and self.needs_backend():
            return {"CANCELLED"}
        tracker = job_tracker.tracker()
        if row.job_id and row.state != GONE:
            tracker.http.remove(row.job_id)
        tracker.board.remove(row.uid)
        tracker.mirror()
        return {"FINISHED"}


class KINESPLAT_OT_show_log(JobOperator, bpy.types.Operator):
    bl_idname = "kinesplat.show_log"
    bl_label = "Show Log"
    bl_description = "Open the log of this job in a text editor: what was done, and what went wrong in full"

    def execute(self, context):
        row = self.row(context)
        if row is None:
            return {"CANCELLED"}
        if not row.job_id:
            self.report({"WARNING"}, f"{row.name} has no log: the backend has not begun with it")
            return {"CANCELLED"}
        if self.needs_backend():
            return {"CANCELLED"}
        text = log_text.begin(row)
        log_text.show(text)
        job_tracker.tracker().http.fetch_log(row.job_id, row.uid)
        return _settle(self, lambda: log_text.is_filled(row.uid))


class KINESPLAT_OT_import_result(JobOperator, bpy.types.Operator):
    bl_idname = "kinesplat.import_result"
    bl_label = "Import Result"
    bl_description = "Add the result to the scene as keyframed Gaussians, where its source object stands"
    bl_options = {"REGISTER", "UNDO"}

    fit_scene: BoolProperty(
        name="Fit Scene",
        description="Give the scene the clip's frame rate and a frame range that shows it once",
        default=False,
    )
    hide_source: BoolProperty(
        name="Hide Source",
        description="Hide the source object, inside of which the Gaussians would not be seen",
        default=True,
    )
    show_colors: BoolProperty(
        name="Show Colors",
        description="Switch solid viewports to material preview: solid shading draws all Gaussians gray",
        default=True,
    )

    @classmethod
    def poll(cls, context):
        if context.mode != "OBJECT":
            cls.poll_message_set("Switch to Object Mode to import")
            return False
        return super().poll(context)

    def execute(self, context):
        row = self.row(context)
        if row is None:
            return {"CANCELLED"}
        if row.result_kind == "frames":
            self.report(
                {"ERROR"}, f"{row.name} holds frames to choose from: build it first, then import what comes out"
            )
            return {"CANCELLED"}
        if not self.has_result_here(row):
            row.import_into = context.scene.name if row.fetching is not None else ""
            return {"CANCELLED"}  # nothing to undo yet
        tracker = job_tracker.tracker()
        if reason := tracker.import_waits_for(row):
            row.import_into = context.scene.name
            self.report({"INFO"}, f"{row.name} appears when {reason}")
            return {"CANCELLED"}
        row.import_into = ""  # not once more after the end of Edit Mode
        try:
            with shown_progress(context) as on_progress:
                _, said = result_import.import_result(
                    context,
                    row.result,
                    tracker.board.record(row.uid),
                    fit_scene=self.fit_scene,
                    hide_source=self.hide_source,
                    show_colors=self.show_colors,
                    on_progress=on_progress,
                )
        except FileNotFoundError:
            row.result = None
            self.report({"ERROR"}, f"The fetched result of {row.name} is gone: import it again to fetch it anew")
            return {"CANCELLED"}
        except (BadFileError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        tracker.board.count_import(row.uid)
        self.report({"INFO"}, said)
        return {"FINISHED"}


class FramesOperator(JobOperator):
    """What the operators on generated frames have in common."""

    def frames_row(self, context) -> Row | None:
        """The job's row with its frames on this computer; what hinders is reported."""
        row = self.row(context)
        if row is None:
            return None
        if row.result_kind != "frames":
            self.report({"ERROR"}, f"{row.name} holds no frames to choose from")
            return None
        return row if self.has_result_here(row) else None


class KINESPLAT_OT_build_job(FramesOperator, bpy.types.Operator):
    bl_idname = "kinesplat.build_job"
    bl_label = "Build This One"
    bl_description = "Have the backend make moving Gaussians of these frames, in the quality that is set above"

    wait: BoolProperty(
        name="Wait",
        description="Return only when the job has ended. For scripts",
        default=False,
        options={"HIDDEN", "SKIP_SAVE"},
    )

    def execute(self, context):
        row = self.frames_row(context)
        if row is None:
            return {"CANCELLED"}
        tracker = job_tracker.tracker()
        record = tracker.board.record(row.uid)
        if record is None or not record.request:
            self.report({"ERROR"}, f"{row.name} was asked for by another Blender: build it there")
            return {"CANCELLED"}
        if self.needs_backend():
            return {"CANCELLED"}
        options = context.scene.kinesplat
        try:
            new = tracker.build(row, options.preset, options.gaussians)
            tracker.mirror(select=new.uid)
            if self.wait:
                new = job_tracker.wait_for_job(new.uid)
        except OSError as error:
            self.report({"ERROR"}, f"The frames of {row.name} cannot be used: {error.strerror or error}")
            return {"CANCELLED"}
        except BackendError as error:
            self.report({"ERROR"}, f"{error} {error.hint}".strip())
            return {"CANCELLED"}
        if self.wait and new.state != "succeeded":
            self.report({"ERROR"}, f"{new.message or 'The job was cancelled.'} {new.hint}".strip())
            return {"CANCELLED"}
        tracker.mirror()
        return {"FINISHED"}


class KINESPLAT_OT_open_frames(FramesOperator, bpy.types.Operator):
    bl_idname = "kinesplat.open_frames"
    bl_label = "Open as Image Sequence"
    bl_description = "Write these frames as PNG pictures and open them as an image sequence in an image editor"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        row = self.frames_row(context)
        if row is None:
            return {"CANCELLED"}
        try:
            frames = read_frames(row.result)
            paths = film.write_sequence(frames, row.result.with_suffix(""))
        except BadFileError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        except OSError as error:
            self.report({"ERROR"}, f"The frames of {row.name} cannot be written: {error.strerror or error}")
            return {"CANCELLED"}
        image = film.load_sequence(paths, row.name)
        film.show_sequence(context, image, len(paths))
        self.report({"INFO"}, f"{image.name} holds {len(paths)} pictures, in {paths[0].parent}")
        return {"FINISHED"}


def _settle(operator: bpy.types.Operator, is_done) -> set[str]:
    """In a window the timer shows what comes of it; background mode waits for that."""
    tracker = job_tracker.tracker()
    if bpy.app.background:
        try:
            job_tracker.wait(is_done, COMMAND_TIMEOUT)
        except BackendError as error:
            operator.report({"ERROR"}, f"{error} {error.hint}".strip())
            return {"CANCELLED"}
    tracker.mirror()
    return {"FINISHED"}


CLASSES = (
    KINESPLAT_OT_cancel_job,
    KINESPLAT_OT_retry_job,
    KINESPLAT_OT_remove_job,
    KINESPLAT_OT_show_log,
    KINESPLAT_OT_import_result,
    KINESPLAT_OT_build_job,
    KINESPLAT_OT_open_frames,
)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
