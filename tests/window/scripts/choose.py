# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: a still fox gets a motion by real clicks: two candidates play, one is built and imported."""

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).parent))
from driver import (
    RESULT,
    click,
    find_button,
    longest_freeze,
    note,
    open_tab,
    picture,
    play,
    press,
    wait_for_colors,
    wait_until,
    watch_freezes,
    window,
    xdotool,
)
from fox import install_extension, middle, set_up, time_ticks


def steps():
    install_extension()
    yield 0.5
    set_up()
    rig = bpy.context.active_object
    rig.animation_data_clear()
    options = bpy.context.scene.kinesplat
    options.seed = 1
    options.preview_frames = True
    yield 0.5
    yield from open_tab("Kinesplat")
    status = bpy.context.window_manager.kinesplat
    yield from wait_until(lambda: status.backend_state == "running", 60, "the backend is found")
    yield 0.5  # so that the search is in reach
    search = yield from find_button("bpy.ops.kinesplat.suggest_prompt(")
    yield from click(*search)
    xdotool("type", "sneak")
    yield 1.0
    picture("0_suggestions")
    press("Return")
    yield 1.0
    RESULT["suggested"] = options.prompt
    options.prompt = "the fox sways wonderfully"
    yield 0.5
    picture("1_before")

    generate = yield from find_button("bpy.ops.kinesplat.generate(")
    yield from click(*generate)
    yield from wait_until(lambda: len(status.jobs) == 2, 120, "the capture has ended")
    seen = set()

    def look():
        if any(job.state == "running" and job.preview_icon for job in status.jobs) and not seen:
            seen.add("preview")
            picture("2_running")

    ended = ("succeeded", "failed")
    yield from wait_until(
        lambda: all(job.state in ended for job in status.jobs), 120, "the candidates have ended", look
    )
    assert all(job.state == "succeeded" for job in status.jobs), [job.message for job in status.jobs]
    yield from wait_until(lambda: all(job.caption for job in status.jobs), 20, "the candidates are there")
    RESULT["captions"] = [job.caption for job in status.jobs]
    RESULT["warnings"] = [job.warnings for job in status.jobs]
    RESULT["group"] = len({job.group for job in status.jobs})
    RESULT["alike"] = status.candidates_alike
    yield 1.0
    picture("3_candidates")
    ticks = time_ticks()
    watch_freezes()
    icons = set()
    for _ in range(40):
        icons.add(tuple(job.preview_icon for job in status.jobs))
        yield 0.05
    picture("4_candidates_later")
    RESULT["icons"] = len(icons)
    RESULT["longest_tick_playing"] = max(ticks)
    RESULT["longest_freeze_playing"] = longest_freeze()

    with bpy.context.temp_override(window=window()):
        bpy.ops.kinesplat.open_frames(uid=status.jobs[0].uid)
    yield 1.0
    picture("5_image_sequence")
    windows = bpy.context.window_manager.windows
    editor = next(area for win in windows for area in win.screen.areas if area.type == "IMAGE_EDITOR")
    space = editor.spaces.active
    RESULT["image"] = {"name": space.image.name, "frames": space.image_user.frame_duration}
    for frame in (bpy.context.scene.frame_start, bpy.context.scene.frame_start + 23):
        bpy.context.scene.frame_set(frame)
        yield 0.5
        RESULT["image"][f"shown_{frame}"] = Path(space.image.filepath_from_user(image_user=space.image_user)).name
    bpy.context.scene.frame_set(bpy.context.scene.frame_start)
    if len(windows) > 1:
        with bpy.context.temp_override(window=windows[-1]):
            bpy.ops.wm.window_close()
    yield 1.0

    yield from click(*(yield from find_button("bpy.ops.kinesplat.build_job(", below=generate)))
    yield from wait_until(lambda: len(status.jobs) == 3, 10, "the construction is queued")
    built = status.jobs[0]
    yield from wait_until(lambda: status.jobs[0].state in ("succeeded", "failed"), 200, "the job has ended")
    RESULT["built"] = {"name": built.name, "state": built.state, "message": built.message}
    yield from wait_until(lambda: status.jobs[0].has_result and not status.jobs[0].is_fetching, 20, "it is here")
    yield 1.0
    before = set(bpy.data.objects)
    yield from click(*(yield from find_button("bpy.ops.kinesplat.import_result(", below=generate)))
    yield from wait_until(lambda: set(bpy.data.objects) - before, 30, "the result is in the scene")
    (splats,) = set(bpy.data.objects) - before
    RESULT["centre"] = list(middle(splats))
    RESULT["fox_centre"] = list(middle(rig.children[0]))
    RESULT["fox_size"] = max(rig.children[0].dimensions)
    yield from wait_for_colors()
    picture("6_imported")
    bpy.context.scene.frame_set(8)
    yield from wait_for_colors()
    picture("7_frame_8")
    note("done")


play(steps())
