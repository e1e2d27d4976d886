# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: a job fails, and its log is opened by a real click."""

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).parent))
from driver import JOB, RESULT, click, find_button, open_tab, picture, play, wait_until, window
from fox import install_extension


def editor():
    windows = bpy.context.window_manager.windows
    areas = [area for window in windows for area in window.screen.areas if area.type == "TEXT_EDITOR"]
    return areas[0].spaces.active if areas else None


def is_shown(words):
    return editor() is not None and words in editor().text.as_string()


def steps():
    install_extension()
    yield 0.5
    options = bpy.context.scene.kinesplat
    options.kind, options.prompt = "TEXT", "the fox stumbles"  # nothing is to be captured
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
    yield from click(*button)
    yield from wait_until(lambda: is_shown("ZeroDivisionError"), 20, "the log is there")
    yield 1.0
    picture("2_log")
    windows.append(len(wm.windows))
    tops = [editor().top]
    (path,) = JOB.glob("backend/jobs/*/log.txt")
    with open(path, "a") as file:
        file.writelines(f"more {number}\n" for number in range(300))
    with bpy.context.temp_override(window=window()):  # the new window lies over the button
        bpy.ops.kinesplat.show_log()
    yield from wait_until(lambda: is_shown("more 299"), 20, "the longer log is there")
    yield 1.0
    picture("3_long_log")
    RESULT["windows"], RESULT["tops"] = [*windows, len(wm.windows)], [*tops, editor().top]
    RESULT["log"], RESULT["editor"], RESULT["text"] = (
        editor().text.as_string(), editor().text.name, bpy.data.texts[0].name
    )  # fmt: skip


play(steps())
