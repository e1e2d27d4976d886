# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: a job fails, and its log is opened by a real click."""

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).parent))
from driver import RESULT, click, find_button, open_tab, picture, play, wait_until
from fox import install_extension, set_up


def shown_text():
    windows = bpy.context.window_manager.windows
    areas = [area for window in windows for area in window.screen.areas if area.type == "TEXT_EDITOR"]
    return areas[0].spaces.active.text if areas else None


def steps():
    install_extension()
    yield 0.5
    set_up()
    bpy.context.active_object.animation_data_clear()
    bpy.context.scene.kinesplat.prompt = "the fox stumbles"
    yield 0.5
    yield from open_tab("Kinesplat")
    wm = bpy.context.window_manager
    status, windows = wm.kinesplat, [len(wm.windows)]
    yield from wait_until(lambda: status.backend_state == "running", 60, "the backend is found")
    yield from click(*(yield from find_button("bpy.ops.kinesplat.generate(")))
    yield from wait_until(lambda: status.jobs and status.jobs[0].state == "failed", 120, "the job has failed")
    yield 1.0
    picture("1_failed")
    RESULT["hint"] = status.jobs[0].hint
    button = yield from find_button("bpy.ops.kinesplat.show_log(")
    for _ in range(2):
        yield from click(*button)
        yield from wait_until(lambda: shown_text() and "begins" in shown_text().as_string(), 20, "the log is there")
        yield 1.0
        picture(f"{1 + len(windows)}_log")
        windows.append(len(wm.windows))
    RESULT["windows"] = windows
    RESULT["log"], RESULT["editor"], RESULT["text"] = (
        shown_text().as_string(),
        shown_text().name,
        bpy.data.texts[0].name,
    )


play(steps())
