# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender, started anew: the job that was left is there, ends, and its result is imported by mouse."""

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).parent))
from driver import RESULT, click, find_button, open_tab, picture, play, wait_for_colors, wait_until
from fox import ADDON, set_up


def steps():
    bpy.ops.preferences.addon_enable(module=ADDON)
    yield 0.5
    set_up()
    yield from open_tab("Kinesplat")
    status = bpy.context.window_manager.kinesplat
    yield from wait_until(lambda: status.backend_state == "running", 30, "the backend is found")
    yield from wait_until(lambda: len(status.jobs) == 1, 30, "the job is listed")
    RESULT["state_at_first"] = status.jobs[0].state
    picture("3_back")
    yield from wait_until(lambda: status.jobs[0].state in ("succeeded", "failed"), 300, "the job has ended")
    RESULT["state"] = status.jobs[0].state
    before = set(bpy.data.objects)
    yield from click(*(yield from find_button("bpy.ops.kinesplat.import_result(")))
    yield from wait_until(lambda: set(bpy.data.objects) - before, 60, "the result is in the scene")
    (splats,) = set(bpy.data.objects) - before
    RESULT["points"] = len(splats.data.vertices)
    yield from wait_for_colors()
    picture("4_imported")


play(steps())
