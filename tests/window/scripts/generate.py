# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: install the extension, generate from the fox with real clicks, import, look, undo."""

import sys
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from driver import (
    RESULT,
    click,
    find_button,
    longest_freeze,
    move_mouse,
    note,
    open_tab,
    picture,
    play,
    press,
    viewport,
    wait_for_colors,
    wait_until,
    watch_freezes,
    window,
)
from fox import install_extension, middle, set_up, time_ticks


def toggle_local_view():
    area, _ = viewport()
    region = next(region for region in area.regions if region.type == "WINDOW")
    with bpy.context.temp_override(window=window(), area=area, region=region):
        bpy.ops.view3d.localview(frame_selected=False)


def vertices(name):
    """Where the vertices of an object are now, [V, 3]."""
    mesh = bpy.data.objects[name].evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    values = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", values)
    return values.reshape(-1, 3)


def undo():
    area, sidebar = viewport()
    move_mouse(area.x + (area.width - sidebar.width) // 2, area.y + area.height // 2)
    yield 0.6
    press("ctrl+z")
    yield 1.0


def steps():
    install_extension()
    yield 0.5
    set_up()
    yield 0.5
    yield from open_tab("Kinesplat")
    status = bpy.context.window_manager.kinesplat
    yield from wait_until(lambda: status.backend_state == "running", 30, "the backend is found")
    picture("1_before")

    place = yield from find_button("bpy.ops.kinesplat.generate(")
    ticks = time_ticks()
    watch_freezes()
    yield from click(*place)
    picture("2_capture")
    RESULT["capture_began"] = status.capture_active or len(status.jobs) > 0
    yield from wait_until(lambda: not status.capture_active, 120, "the capture has ended")
    RESULT["longest_freeze_capture"] = longest_freeze()
    RESULT["longest_tick_capture"] = max(ticks)
    ticks.clear()
    assert len(status.jobs) == 1, f"{len(status.jobs)} jobs after the capture: {status.notice}"

    watch_freezes()
    seen = set()

    def look():
        job = status.jobs[0]
        seen.add(job.state)
        if job.state == "running" and job.preview_icon and "preview" not in seen:
            seen.add("preview")
            picture("3_running")

    yield from wait_until(lambda: status.jobs[0].state in ("succeeded", "failed"), 150, "the job has ended", look)
    RESULT["job"] = {"state": status.jobs[0].state, "message": status.jobs[0].message, "seen": sorted(seen)}
    RESULT["longest_freeze_job"] = longest_freeze()
    RESULT["longest_tick_job"] = max(ticks)
    yield 1.0
    picture("4_done")

    toggle_local_view()
    before = set(bpy.data.objects)
    place = yield from find_button("bpy.ops.kinesplat.import_result(", below=place)
    yield from click(*place)
    yield from wait_until(lambda: set(bpy.data.objects) - before, 30, "the result is in the scene")
    (splats,) = set(bpy.data.objects) - before
    name = splats.name
    rig = next(obj for obj in bpy.data.objects if obj.type == "ARMATURE")
    RESULT["object"] = {
        "name": name,
        "type": splats.type,
        "points": len(splats.data.vertices) if splats.type == "MESH" else len(splats.data.points),
        "modifiers": [modifier.type for modifier in splats.modifiers],
        "in_scene": name in bpy.context.scene.objects,
        "in_local_view": splats.local_view_get(viewport()[0].spaces.active),
        "centre": list(middle(splats)),
        "fox_centre": list(middle(bpy.data.objects["fox"] if "fox" in bpy.data.objects else rig.children[0])),
        "fox_size": max(rig.children[0].dimensions),
    }
    toggle_local_view()
    yield from wait_for_colors()
    picture("5_imported")
    for obj in [rig, *rig.children_recursive]:
        obj.hide_set(True)
    yield from wait_for_colors()
    picture("6_gaussians_alone")
    bpy.context.scene.frame_set(12)
    yield from wait_for_colors()
    picture("7_frame_12")

    for obj in [rig, *rig.children_recursive]:
        obj.hide_set(False)
    picture("8_panels_of_gaussians")
    place = yield from find_button("bpy.ops.kinesplat.move_mesh(")
    yield from click(*place)
    moving = f"{rig.children[0].name} Moving"
    yield from wait_until(lambda: moving in bpy.data.objects, 30, "the mesh has taken over the motion")
    yield 1.0
    picture("9_moving_mesh")
    then = vertices(moving)
    bpy.context.scene.frame_set(20)
    RESULT["moving"] = {
        "selected": [obj.name for obj in bpy.context.selected_objects] == [moving],
        "gaussians_hidden": bpy.data.objects[name].hide_get(),
        "distance": float(np.linalg.norm(vertices(moving) - then, axis=1).mean()),
    }
    yield 1.0
    picture("10_moving_mesh_frame_20")
    yield from undo()
    RESULT["moving"]["undone"] = moving not in bpy.data.objects and not bpy.data.objects[name].hide_get()

    yield from undo()
    RESULT["undone"] = name not in bpy.data.objects
    RESULT["left"] = sorted(obj.name for obj in bpy.data.objects if obj.type == "MESH")
    yield from wait_for_colors()
    picture("11_undone")
    note("done")


play(steps())
