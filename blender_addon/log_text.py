# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a job as a text in Blender. It opens at once and is filled when the backend has answered."""

import bpy

from .editors import open_editor, spaces
from .http_events import LogFetched
from .job_board import Row

JOB_KEY = "kinesplat_job"  # custom property of the text: the job's uid
PENDING = "The log is being fetched ...\n"
NOTHING = "This job has written nothing down.\n"


def begin(row: Row) -> bpy.types.Text:
    """The text of a job's log, which says that it is being fetched. It is not saved with the file."""
    text = find(row.uid) or bpy.data.texts.new(f"Log of {row.name}")
    text[JOB_KEY] = row.uid
    text.is_runtime_data = True  # a log names folders of the backend's computer
    text.from_string(PENDING)
    return text


def find(uid: str) -> bpy.types.Text | None:
    """The text of a job's log in this file."""
    return next((text for text in bpy.data.texts if text.get(JOB_KEY) == uid), None)


def is_filled(uid: str) -> bool:
    """Whether what was asked for is here, or why not, or nobody waits for it any more."""
    text = find(uid)
    return text is None or text.as_string() != PENDING


def fill(fetched: LogFetched) -> None:
    """Write into the text what has come, if the text is still there."""
    text = find(fetched.uid)
    if text is None:
        return  # removed meanwhile, or another file was opened
    error = fetched.error
    text.from_string(f"{error} {error.hint}".strip() + "\n" if error else fetched.text or NOTHING)
    for space in spaces("TEXT_EDITOR"):
        if space.text == text:
            space.top, space.text = 0, text  # scrolls as far as shows the cursor: the end, where the last attempt is


def show(text: bpy.types.Text) -> None:
    """Show it in a text editor, in a new window if none is open; nothing in background mode."""
    if bpy.app.background:
        return
    open_editor("TEXT_EDITOR").text = text
