# SPDX-License-Identifier: GPL-3.0-or-later
"""Enabling and disabling the extension: all is there, and nothing stays behind."""

import math
import threading

import pytest

bpy = pytest.importorskip("bpy")
pytestmark = pytest.mark.blender

OPERATORS = {
    "start_backend", "stop_backend", "connect", "open_preferences", "copy_setup_command",
    "generate", "suggest_prompt", "take_whole", "back_to_object", "cancel_capture", "read_video",
    "cancel_job", "retry_job", "remove_job", "show_log", "import_result", "build_job", "open_frames",
    "import_clip_file",
    "set_draw_mode", "fix_scene_settings",
    "retime_repeat", "retime_reverse", "retime_fit", "retime_start", "retime_speed", "retime_part",
    "move_mesh",
    "remove_floaters", "remove_faint", "remove_oversized", "crop_to_object", "reduce_density",
    "import_ply_files", "export_clip_file", "export_ply_sequence",
    "mark_asset", "save_asset", "give_back_transform", "fit_joined",
}  # fmt: skip

BOUNDED = (
    *("seed", "frames", "resolution", "gaussians", "motion", "guidance_motion", "guidance_static", "steps"),
    "video_frames",
)


HANDLED = ("load_pre", "load_post", "undo_post", "redo_post")


def registered_names() -> set[str]:
    return {name for name in dir(bpy.types) if name.startswith("KINESPLAT")}


def test_every_operator_exists_and_explains_itself(extension) -> None:
    assert set(dir(bpy.ops.kinesplat)) == OPERATORS
    for name in OPERATORS:
        rna = getattr(bpy.ops.kinesplat, name).get_rna_type()
        assert rna.description, name
        assert not rna.description.endswith("."), f"{name}: tooltips end without a full stop"
        assert rna.name == rna.name.strip()
        assert rna.name[0].isupper(), name


def test_every_option_of_an_operator_says_what_it_does(extension) -> None:
    for name in OPERATORS:
        for prop in getattr(bpy.ops.kinesplat, name).get_rna_type().properties:
            if prop.identifier == "rna_type" or prop.is_hidden:
                continue
            where = f"{name}.{prop.identifier}"
            assert prop.name[0].isupper(), where
            assert prop.description, where
            assert not prop.description.endswith("."), where
            assert prop.description.lower() != prop.name.lower(), where


def test_the_panel_shows_degrees_and_files_keep_them(extension) -> None:
    settings = bpy.context.scene.kinesplat
    assert settings.bl_rna.properties["elevation_angle"].unit == "ROTATION"
    settings.elevation_angle = math.radians(20)
    assert settings.elevation == pytest.approx(20)
    settings.elevation = -15
    assert settings.elevation_angle == pytest.approx(math.radians(-15))
    settings.elevation_angle = math.radians(90)
    assert settings.elevation == pytest.approx(60)


def test_tooltips_of_settings_end_without_a_full_stop(extension) -> None:
    for prop in bpy.context.scene.kinesplat.bl_rna.properties:
        if prop.identifier not in ("rna_type", "name"):
            assert prop.description, prop.identifier
            assert not prop.description.endswith("."), prop.identifier


def test_settings_have_the_bounds_of_the_contract(extension, part) -> None:
    bounds = part("blender_addon.contract.requests").BOUNDS
    properties = bpy.context.scene.kinesplat.bl_rna.properties
    for name in BOUNDED:
        assert properties[name].hard_min == bounds[name].minimum
        assert properties[name].hard_max == bounds[name].maximum
        assert properties[name].default == bounds[name].default
    settings = bpy.context.scene.kinesplat
    assert settings.preset == "preview"
    settings.preset = "final"
    assert settings.gaussians == part("blender_addon.contract.requests").GAUSSIANS_BY_PRESET["final"]
    assert settings.resolution == 256


def test_nothing_stays_behind(extension, part) -> None:
    tracker = part("blender_addon.job_tracker")
    tracker.pump()  # starts the thread
    assert any(thread.name == "Kinesplat HTTP" for thread in threading.enumerate())
    extension.unregister()
    try:
        assert registered_names() == set()
        assert not hasattr(bpy.types.Scene, "kinesplat")
        assert not hasattr(bpy.types.WindowManager, "kinesplat")
        for handlers in (getattr(bpy.app.handlers, name) for name in HANDLED):
            assert not any("kinesplat" in handler.__module__ for handler in handlers)
        assert not bpy.app.timers.is_registered(tracker._tick)
        assert not any(thread.name == "Kinesplat HTTP" for thread in threading.enumerate())
    finally:
        extension.register()


def test_no_picture_is_drawn_that_went_with_a_disabled_extension(extension) -> None:
    status = bpy.context.window_manager.kinesplat
    status.jobs.add().preview_icon = 5
    status.video_icons = (6, 7, 8)
    extension.unregister()
    extension.register()
    status = bpy.context.window_manager.kinesplat  # Blender has kept what it held
    assert [job.preview_icon for job in status.jobs] == [0]
    assert status.video_icons[:] == (0, 0, 0)


def test_disabling_and_enabling_again(extension) -> None:
    before = registered_names()
    for _ in range(3):
        extension.unregister()
        extension.register()
    assert registered_names() == before
    assert bpy.context.window_manager.kinesplat.backend_state == "stopped"
    assert bpy.ops.kinesplat.generate.poll() is False
