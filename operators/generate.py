# SPDX-License-Identifier: GPL-3.0-or-later
"""Generate: capture what the panel names as the source and hand it to the backend as a job, or as several."""

import bpy
from bpy.props import BoolProperty, EnumProperty

from ..blender_addon import job_tracker, local_backend, origin, placing, readiness, settings, splat_object, subject
from ..blender_addon.client import BackendError
from ..blender_addon.subject import CaptureError

FIRST_PATIENCE = 1.0  # seconds that the click may wait for the HTTP thread to stand still
CONNECT_TIMEOUT = 10.0  # seconds that background mode waits for a backend before it renders anything


class KINESPLAT_OT_generate(bpy.types.Operator):
    bl_idname = "kinesplat.generate"
    bl_label = "Generate"
    bl_description = (
        "Have the backend make moving Gaussians of an object, a text, an image or a video; it is started if it is off. "
        "An object is rendered from all around first. Blender stays usable meanwhile"
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
        if problem := readiness.problem(context):
            cls.poll_message_set(problem)
            return False
        return True

    def execute(self, context):
        tracker = job_tracker.tracker()
        at_once = self.wait or bpy.app.background
        try:
            if readiness.starts_backend(context):
                tracker.start_backend()
            if at_once:
                is_starting = tracker.board.backend.state == "starting"
                patience = local_backend.START_SECONDS if is_starting else CONNECT_TIMEOUT
                job_tracker.wait(lambda: tracker.board.backend.state == "running", patience)
            tracker.begin_capture(context)
            row = tracker.step_capture(FIRST_PATIENCE)  # finds out whether this object can be captured at all
            while at_once and row is None:
                row = tracker.step_capture()
            if row is not None:  # of a text already in a window, too: there is nothing to render
                tracker.mirror(select=row.uid)
            if self.wait:
                uids = [other.uid for other in tracker.board.rows.values() if row.group and other.group == row.group]
                ended = [job_tracker.wait_for_job(uid) for uid in uids or [row.uid]]
                row = next((other for other in ended if other.state != "succeeded"), row)
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


_suggestions: list[tuple[str, str, str]] = []  # Blender keeps no references to the items of a search


def _suggested(self, context) -> list[tuple[str, str, str]]:
    prompts = job_tracker.tracker().board.backend.prompts
    if [item[0] for item in _suggestions] != list(prompts):
        _suggestions[:] = [(prompt, prompt, "") for prompt in prompts]
    return _suggestions


class KINESPLAT_OT_suggest_prompt(bpy.types.Operator):
    bl_idname = "kinesplat.suggest_prompt"
    bl_label = "What the Model Knows"
    bl_description = (
        "Search the motions that the model remembers, and take one as the prompt. Other subjects that are built alike "
        "can move so, too"
    )
    bl_options = {"REGISTER", "UNDO"}
    bl_property = "prompt"

    prompt: EnumProperty(
        name="Prompt", description="Subject and motion to take", items=_suggested, options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context):
        if not job_tracker.tracker().board.backend.prompts:
            cls.poll_message_set("The backend tells what its model knows: start it first")
            return False
        return True

    def invoke(self, context, event):
        context.window_manager.invoke_search_popup(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        context.scene.kinesplat.prompt = self.prompt
        return {"FINISHED"}


class KINESPLAT_OT_take_whole(bpy.types.Operator):
    bl_idname = "kinesplat.take_whole"
    bl_label = "Take the Whole"
    bl_description = (
        "Make Gaussians of all that the active object is a part of, such as a character with its eyes and clothes: "
        "selects the uppermost parent"
    )
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        source = settings.source_object(context)
        if source is None or subject.whole_of(source) is None:
            cls.poll_message_set("The object has no parent that brings more along")
            return False
        if context.mode != "OBJECT" and not context.scene.kinesplat.source:
            cls.poll_message_set("Switch to Object Mode")
            return False
        return True

    def execute(self, context):
        options = context.scene.kinesplat
        whole = subject.whole_of(settings.source_object(context))
        if options.source:
            options.source = whole
        else:
            placing.select_alone(context, [whole])
        return {"FINISHED"}


class KINESPLAT_OT_back_to_object(bpy.types.Operator):
    bl_idname = "kinesplat.back_to_object"
    bl_label = "Back to Object"
    bl_description = (
        "Show the object of which the active Gaussians were made, in their place, and make it the active one: "
        "to generate from it once more"
    )
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        splats = context.view_layer.objects.active
        if not splat_object.is_splat_object(splats) or context.mode != "OBJECT":
            cls.poll_message_set("Select Gaussians in Object Mode")
            return False
        return True

    def execute(self, context):
        splats = context.view_layer.objects.active
        source = origin.source_of(splats, context.scene)
        if source is None:
            self.report({"ERROR"}, f"The object of which {splats.name} was made is not in this scene")
            return {"CANCELLED"}
        if source.name not in context.view_layer.objects:
            self.report(
                {"ERROR"}, f"{source.name} is excluded from the view layer. Include its collection, then try again"
            )
            return {"CANCELLED"}
        origin.go_back(context, splats, source)
        if source.visible_get():
            said = f"{splats.name} is hidden. What is generated of {source.name} next is added beside it"
            self.report({"INFO"}, said)
        else:
            self.report(
                {"WARNING"}, f"{source.name} is active, but hidden with its collection or disabled in viewports"
            )
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


class KINESPLAT_OT_read_video(bpy.types.Operator):
    bl_idname = "kinesplat.read_video"
    bl_label = "Read Again"
    bl_description = "Read the chosen video again, after its file has changed"
    bl_options = {"REGISTER"}

    def execute(self, context):
        tracker = job_tracker.tracker()
        tracker.video.forget()
        tracker.mirror()
        return {"FINISHED"}


CLASSES = (
    KINESPLAT_OT_generate,
    KINESPLAT_OT_suggest_prompt,
    KINESPLAT_OT_take_whole,
    KINESPLAT_OT_back_to_object,
    KINESPLAT_OT_cancel_capture,
    KINESPLAT_OT_read_video,
)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
