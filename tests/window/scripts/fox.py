# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: what the scripts have in common: the extension, a walking fox, small settings, a good view."""

import sys
import time

import bpy
from driver import JOB, RESULT, viewport, window
from mathutils import Vector

FIRST, LAST = 1, 24
ADDON = "bl_ext.user_default.kinesplat"


def install_extension() -> None:
    archive = next(JOB.glob("kinesplat-*.zip"))
    bpy.ops.extensions.package_install_files(filepath=str(archive), repo="user_default", enable_on_install=True)
    RESULT["installed"] = [key for key in bpy.context.preferences.addons.keys() if "kinesplat" in key]  # noqa: SIM118


def add_fox() -> bpy.types.Object:
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    bpy.ops.import_scene.gltf(filepath=str(JOB / "fox.glb"))
    rig = next(obj for obj in bpy.data.objects if obj.type == "ARMATURE")
    for track in rig.animation_data.nla_tracks:
        track.mute = True
    action = bpy.data.actions["Walk"]
    rig.animation_data.action, rig.animation_data.action_slot = action, action.slots[0]
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = FIRST, LAST
    scene.frame_set(FIRST)
    for obj in bpy.context.view_layer.objects:
        obj.select_set(obj is rig or obj.parent is rig)
    bpy.context.view_layer.objects.active = rig
    rig.show_in_front = False
    return rig


def small_settings() -> None:
    options = bpy.context.scene.kinesplat
    options.preset = "draft"
    options.gaussians = 1000
    options.frames = 8
    options.resolution = 64
    options.engine = "CYCLES"
    options.samples = 4


def middle(obj: bpy.types.Object) -> Vector:
    """Mean of the object's vertices, as they lie in its own data, in the world."""
    return obj.matrix_world @ (sum((vertex.co for vertex in obj.data.vertices), Vector()) / len(obj.data.vertices))


def look_at_fox() -> None:
    area, _ = viewport()
    view = area.spaces.active.region_3d
    region = next(region for region in area.regions if region.type == "WINDOW")
    area.spaces.active.shading.color_type = "TEXTURE"
    with bpy.context.temp_override(area=area, region=region):
        bpy.ops.view3d.view_selected()
    view.view_perspective = "PERSP"


def set_up() -> None:
    """A scene with the fox in view, ready to generate."""
    add_fox()
    small_settings()
    look_at_fox()
    with bpy.context.temp_override(window=window()):
        bpy.ops.ed.undo_push(message="Set up the test")  # scripts make no undo steps by themselves


def time_ticks() -> list[float]:
    """From now on, the processor seconds that each beat of the add-on's timer takes of Blender's main thread."""
    tracker = sys.modules[f"{ADDON}.blender_addon.job_tracker"].Tracker
    tick, seconds = tracker.tick, []

    def timed(self):
        start = time.thread_time()
        try:
            return tick(self)
        finally:
            seconds.append(time.thread_time() - start)

    tracker.tick = timed
    return seconds
