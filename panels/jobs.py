# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs: a list, and the selected one in detail with what can be done with it."""

import bpy

from ..blender_addon import settings
from ..blender_addon.job_board import GONE, REFUSED, WAITING, time_left_text
from .layout import SidebarPanel, draw_sentence, icon_scale

STATES = {  # text, icon
    WAITING: ("Waiting", "SORTTIME"),
    REFUSED: ("Refused", "ERROR"),
    "queued": ("Queued", "SORTTIME"),
    "running": ("Running", "PLAY"),
    "cancelling": ("Cancelling", "SORTTIME"),
    "succeeded": ("Done", "CHECKMARK"),
    "failed": ("Failed", "ERROR"),
    "cancelled": ("Cancelled", "X"),
    GONE: ("Gone", "QUESTION"),
}
UNKNOWN = ("", "BLANK1")
PAUSED = ("Paused", "PAUSE")  # the backend was stopped while it worked on the job
MAX_ROWS = 5
FRAMES_TEXT = "Frames"  # of a candidate that is done: there is nothing to import yet
PREVIEW_SCALE = 7.0
COLUMNS = 2  # of candidates
ALIKE = (
    "These move alike, as the model knows a motion that fits. For others, change the prompt, or switch off Known "
    "Motions under Advanced"
)


class KINESPLAT_UL_jobs(bpy.types.UIList):
    def draw_item(self, context, layout, data, item, icon, active_data, active_property, index=0, flt_flag=0):
        text, state_icon = STATES.get(item.state, UNKNOWN)
        if item.state == "running" and is_cut_off(context):
            text, state_icon = PAUSED
        elif item.state == "running":
            text = f"{100 * item.fraction:.0f} %"
        elif item.state == "succeeded" and item.shows_frames:
            text = FRAMES_TEXT
        line = layout.row()
        line.label(text=item.name, icon=state_icon, translate=False)
        row = line.row()
        row.alignment = "RIGHT"
        row.label(text=text)


class KINESPLAT_PT_jobs(SidebarPanel, bpy.types.Panel):
    bl_label = "Jobs"

    def draw(self, context):
        layout = self.layout
        status = context.window_manager.kinesplat
        if not status.jobs:
            row = layout.row()
            row.active = False
            row.label(text="Nothing generated yet")
            return
        rows = min(max(len(status.jobs), 2), MAX_ROWS)
        layout.template_list("KINESPLAT_UL_jobs", "", status, "jobs", status, "active_job", rows=rows)
        job = settings.active_job(context)
        if job is not None and job.shows_frames:
            draw_candidates(layout, context, [other for other in status.jobs if other.group == job.group])
        elif job is not None:
            draw_job(layout, context, job)


def is_cut_off(context: bpy.types.Context) -> bool:
    """Whether no backend works on anything now."""
    return context.window_manager.kinesplat.backend_state in ("stopped", "problem")


def draw_job(layout: bpy.types.UILayout, context: bpy.types.Context, job: settings.KINESPLAT_PG_job) -> None:
    """The selected job: picture, progress, what went wrong, and the buttons that make sense now."""
    if job.preview_icon:
        layout.template_icon(job.preview_icon, scale=PREVIEW_SCALE)
    draw_progress(layout, context, job)
    draw_errors(layout, context, job)
    buttons = layout.row(align=True)

    def button(operator: str, text: str, icon: str) -> None:
        buttons.operator(operator, text=text, icon=icon).uid = job.uid

    if job.has_result and not job.is_fetching:
        buttons.scale_y = 1.3
        button("kinesplat.import_result", "Import", "IMPORT")
    if job.state in ("queued", "running"):
        button("kinesplat.cancel_job", "Cancel", "X")
    if job.state in ("failed", "cancelled", REFUSED):
        button("kinesplat.retry_job", "Retry", "FILE_REFRESH")
    if job.state == "failed":
        button("kinesplat.show_log", "Show Log", "TEXT")
    if job.state not in ("queued", "running", "cancelling"):
        button("kinesplat.remove_job", "Remove", "TRASH")
    for warning in job.warnings.splitlines():  # below, as long ones would push the buttons out of sight
        draw_sentence(layout, context, warning, icon="INFO")


def draw_candidates(
    layout: bpy.types.UILayout, context: bpy.types.Context, jobs: list[settings.KINESPLAT_PG_job]
) -> None:
    """Candidates side by side, each with its frames playing, and what can be done with it."""
    status = context.window_manager.kinesplat
    if any(job.caption for job in jobs):
        row = layout.row(align=True)
        row.label(text="Choose what to build")
        row.prop(status, "is_playing", text="", icon="PAUSE" if status.is_playing else "PLAY", toggle=True)
    columns = min(len(jobs), COLUMNS)
    grid = layout.grid_flow(row_major=True, columns=columns, even_columns=True)
    for job in jobs:
        draw_candidate(grid.box().column(), context, job, icon_scale(context, columns))
    if is_cut_off(context) and any(job.is_live for job in jobs):
        draw_sentence(layout, context, "Goes on once the backend runs: see the top of this tab", icon="SORTTIME")
    if status.candidates_alike:
        draw_sentence(layout, context, ALIKE, icon="INFO")
    for job in jobs:  # below, where sentences have room
        if job.message:
            draw_sentence(layout, context, f"{candidate_name(job)}: {job.message}", icon="ERROR")
    for hint in dict.fromkeys(job.hint for job in jobs if job.hint):
        draw_sentence(layout, context, hint, icon="INFO")
    for warning in dict.fromkeys(line for job in jobs for line in job.warnings.splitlines()):  # mostly the same ones
        draw_sentence(layout, context, warning, icon="INFO")


def draw_candidate(
    layout: bpy.types.UILayout, context: bpy.types.Context, job: settings.KINESPLAT_PG_job, scale: float
) -> None:
    """One of the candidates, with its picture so large."""
    if job.preview_icon:
        layout.template_icon(job.preview_icon, scale=scale)
    lines = job.caption.splitlines() or [candidate_name(job)]
    row = layout.row(align=True)
    row.label(text=lines[0], translate=False)
    if job.has_result and not job.is_fetching:
        row.operator("kinesplat.open_frames", text="", icon="IMAGE_DATA").uid = job.uid
    if job.state in ("queued", "running"):
        row.operator("kinesplat.cancel_job", text="", icon="X").uid = job.uid
    if job.state in ("failed", "cancelled", REFUSED):
        row.operator("kinesplat.retry_job", text="", icon="FILE_REFRESH").uid = job.uid
    if job.state == "failed":
        row.operator("kinesplat.show_log", text="", icon="TEXT").uid = job.uid
    if job.state not in ("queued", "running", "cancelling"):
        row.operator("kinesplat.remove_job", text="", icon="TRASH").uid = job.uid
    for line in lines[1:]:
        layout.label(text=line, translate=False)
    draw_short_progress(layout, context, job)
    if job.has_result and not job.is_fetching:
        row = layout.row()
        row.scale_y = 1.3
        row.operator("kinesplat.build_job", text="Build This One").uid = job.uid


def candidate_name(job: settings.KINESPLAT_PG_job) -> str:
    """`Seed 5`, of a job that is called *a fox runs, Seed 5*."""
    return job.name.rpartition(", ")[2]


def draw_short_progress(layout: bpy.types.UILayout, context: bpy.types.Context, job: settings.KINESPLAT_PG_job) -> None:
    """A bar or a word, as there is no room for more beside another candidate."""
    if job.is_fetching:
        layout.progress(factor=job.fraction, text="Fetching")
    elif job.state == "running" and is_cut_off(context):
        layout.progress(factor=job.fraction, text=PAUSED[0])
    elif job.state == "running":
        layout.progress(factor=job.fraction, text=f"{100 * job.fraction:.0f} %", translate=False)
        row = layout.row()
        row.active = False
        row.label(text=time_left_text(job.seconds_left), translate=False)
    elif job.state != "succeeded":
        row = layout.row()
        row.active = False
        row.label(text=STATES.get(job.state, UNKNOWN)[0])


def draw_errors(layout: bpy.types.UILayout, context: bpy.types.Context, job: settings.KINESPLAT_PG_job) -> None:
    """What went wrong with a job, and what to do about it."""
    if job.message:
        draw_sentence(layout, context, job.message, icon="ERROR")
    if job.hint:
        draw_sentence(layout, context, job.hint, icon="INFO")


def draw_progress(layout: bpy.types.UILayout, context: bpy.types.Context, job: settings.KINESPLAT_PG_job) -> None:
    """A bar while something moves; nothing where a picture of a finished job says it all."""
    if job.is_fetching:
        layout.progress(factor=job.fraction, text="Fetching the Result")
    elif job.state in ("running", "cancelling"):
        text = "Cancelling" if job.state == "cancelling" else job.stage or "Running"
        layout.progress(factor=job.fraction, text=text, translate=False)
        left = time_left_text(job.seconds_left) if job.state == "running" else ""
        row = layout.row()
        row.active = False
        row.label(text=f"{100 * job.fraction:.0f} %", translate=False)
        right = row.row()
        right.alignment = "RIGHT"
        right.label(text=left, translate=False)
        if job.detail and job.state == "running":
            column = layout.column()
            column.active = False
            draw_sentence(column, context, job.detail, icon="NONE")
    elif job.state == WAITING and job.stage:
        layout.progress(factor=job.fraction, text="Sending to the Backend")
    elif job.state == WAITING:
        runs = context.window_manager.kinesplat.backend_state == "running"
        text = "Is sent in a moment" if runs else "Waits until the backend runs: see the top of this tab"
        draw_sentence(layout, context, text, icon="SORTTIME")
    elif job.state == "queued" and job.ahead:
        text = "1 job comes first" if job.ahead == 1 else f"{job.ahead} jobs come first"
        layout.label(text=text, icon="SORTTIME", translate=False)


CLASSES = (KINESPLAT_UL_jobs, KINESPLAT_PT_jobs)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
