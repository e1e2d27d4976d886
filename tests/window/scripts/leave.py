# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: cancel a capture by mouse, generate, open another file, and leave while the job runs."""

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).parent))
from driver import RESULT, click, find_button, open_tab, picture, play, wait_until, window
from fox import install_extension, set_up


def status():
    """Asked for anew each time: File > Open brings another window manager."""
    return bpy.context.window_manager.kinesplat


def steps():
    install_extension()
    yield 0.5
    set_up()
    bpy.context.scene.kinesplat.frames = 96  # more than can be rendered before the mouse is there
    before = sorted(obj.name for obj in bpy.data.objects), len(bpy.data.scenes)
    yield 0.5
    yield from open_tab("Kinesplat")
    yield from wait_until(lambda: status().backend_state == "running", 30, "the backend is found")
    generate = yield from find_button("bpy.ops.kinesplat.generate(")
    yield from click(*generate)
    yield from wait_until(lambda: status().capture_active, 10, "the capture has begun")
    yield from click(*(yield from find_button("bpy.ops.kinesplat.cancel_capture(", below=generate)))
    yield from wait_until(lambda: not status().capture_active, 20, "the capture is cancelled")
    RESULT["jobs_after_cancel"] = len(status().jobs)
    RESULT["scene_as_before"] = before == (sorted(obj.name for obj in bpy.data.objects), len(bpy.data.scenes))
    picture("1_cancelled")

    bpy.context.scene.kinesplat.frames = 8
    bpy.context.scene.kinesplat.preset = "preview"  # takes long enough to leave in the middle
    bpy.context.scene.kinesplat.gaussians = 1000  # after the preset, which sets these as well
    bpy.context.scene.kinesplat.resolution = 64
    yield 0.5
    yield from click(*generate)
    yield from wait_until(lambda: len(status().jobs) == 1, 120, "the job is there")
    yield from wait_until(lambda: status().jobs[0].state == "running", 120, "the job runs")
    with bpy.context.temp_override(window=window()):
        bpy.ops.wm.read_homefile(app_template="", use_empty=True)
    yield 1.0
    RESULT["state_in_new_file"] = status().jobs[0].state
    yield from open_tab("Kinesplat")
    picture("2_new_file")


play(steps())
