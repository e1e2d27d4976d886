# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: choose a film, look at frames of it, a bad file, then generate from a part of it and import."""

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).parent))
from driver import (
    JOB,
    RESULT,
    click,
    find_button,
    longest_freeze,
    note,
    open_tab,
    picture,
    play,
    viewport,
    wait_for_colors,
    wait_until,
    watch_freezes,
)
from fox import ADDON, install_extension, time_ticks


def steps():
    install_extension()
    yield 0.5
    scene = bpy.context.scene
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    scene.frame_start, scene.frame_end, scene.render.fps = 1, 48, 24
    scene.cursor.location = (1, 0, 0)
    options, status = scene.kinesplat, bpy.context.window_manager.kinesplat
    options.kind = "VIDEO"
    options.preset, options.cutout, options.prompt = "draft", "background", "a fox walks"
    yield from open_tab("Kinesplat")
    yield from wait_until(lambda: status.backend_state == "running", 60, "the backend is found")
    picture("0_empty")

    ticks = time_ticks()
    watch_freezes()
    options.video_path = str(JOB / "fox.mp4")
    yield from wait_until(lambda: all(status.video_icons), 30, "the frames are there")
    RESULT["whole"] = status.video_text
    yield 0.5
    picture("1_whole")
    options.use_whole_video, options.video_start, options.video_end = False, 13, 37
    yield from wait_until(lambda: status.video_numbers[2] == 37, 30, "the frames are those of the range")
    RESULT["part"], RESULT["numbers"] = status.video_text, list(status.video_numbers)
    RESULT["longest_tick_reading"], RESULT["longest_freeze_reading"] = max(ticks), longest_freeze()
    yield 0.5
    picture("2_part")
    options.video_path = str(JOB / "broken.mp4")
    yield from wait_until(lambda: status.video_problem, 30, "the bad file is refused")
    RESULT["problem"] = status.video_problem
    yield 0.5
    picture("3_bad_file")
    options.video_source, options.video_clip = "CLIP", bpy.data.movieclips.load(str(JOB / "fox.mp4"))
    yield from wait_until(lambda: all(status.video_icons), 30, "the movie clip is shown")
    yield 0.5
    picture("4_movie_clip")
    options.video_source = "STRIP"
    yield 0.7
    picture("5_no_strip")
    workspace = bpy.context.window_manager.windows[0].workspace
    if hasattr(workspace, "sequencer_scene"):
        workspace.sequencer_scene = scene
    editor = scene.sequence_editor_create()
    editor.active_strip = editor.strips.new_movie("shot", str(JOB / "fox.mp4"), 1, 10)
    yield from wait_until(lambda: all(status.video_icons), 30, "the strip is shown")
    RESULT["strip"] = status.video_text
    yield 0.5
    picture("5_strip")
    options.video_source, options.video_path = "FILE", str(JOB / "fox.mp4")
    yield from wait_until(lambda: all(status.video_icons), 30, "the file is shown again")

    yield from click(*(yield from find_button("bpy.ops.kinesplat.generate(")))
    yield from wait_until(lambda: len(status.jobs) == 1, 60, "the film is sent")
    seen = []

    def look():
        job = status.jobs[0]
        if job.state == "running" and job.preview_icon and job.fraction > 0.5 and not seen:
            seen.append(job.detail)
            picture("6_running")

    yield from wait_until(lambda: status.jobs[0].state in ("succeeded", "failed"), 200, "the job has ended", look)
    job = status.jobs[0]
    RESULT["job"] = {"state": job.state, "message": job.message, "detail": seen}
    yield from wait_until(lambda: job.has_result and not job.is_fetching, 20, "the result is here")
    options.kind = "TEXT"  # a shorter panel, so that all buttons of the job are to be seen
    yield 1.0
    yield from click(*(yield from find_button("bpy.ops.kinesplat.import_result(")))
    yield from wait_until(lambda: bpy.data.objects, 30, "the result is in the scene")
    splats = bpy.data.objects[0]
    area, _ = viewport()
    region = next(region for region in area.regions if region.type == "WINDOW")
    with bpy.context.temp_override(area=area, region=region):
        bpy.ops.view3d.view_axis(type="FRONT")
        bpy.ops.view3d.view_selected()
    points = [splats.matrix_world @ vertex.co for vertex in splats.data.vertices]
    low = sorted(point.z for point in points)[len(points) // 100]
    RESULT["distance"] = abs(low - scene.cursor.location.z)
    timing = sys.modules[f"{ADDON}.blender_addon.retime"].timing(splats)
    RESULT["played"] = [timing.first, timing.last]
    yield from wait_for_colors()
    picture("7_imported")
    note("done")


play(steps())
