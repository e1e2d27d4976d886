# SPDX-License-Identifier: GPL-3.0-or-later
"""What Gaussians need of a scene, what is said where it is missing, and the frame range of a clip."""

import pytest

bpy = pytest.importorskip("bpy")

import addon_utils  # noqa: E402

from blender_addon import node_groups, point_cloud, retime, versions  # noqa: E402
from tests.blender.clips import add_camera, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture
def scene():
    fresh_file()
    bpy.context.scene.render.engine = "CYCLES"
    return bpy.context.scene


def test_transparent_bounces_are_raised_once(scene):
    changes = point_cloud.ensure_scene_settings(scene)
    assert changes == [
        "Transparent bounces of Cycles raised from 8 to 512",
        "Minimum transparent bounces of Cycles raised from 0 to 512",
    ]
    assert (scene.cycles.transparent_max_bounces, scene.cycles.min_transparent_bounces) == (512, 512)
    assert point_cloud.ensure_scene_settings(scene) == []


def test_higher_settings_and_all_others_are_left_alone(scene):
    scene.cycles.transparent_max_bounces = 800
    scene.cycles.max_bounces = 3
    scene.view_settings.view_transform = "Filmic"
    point_cloud.ensure_scene_settings(scene)
    assert scene.cycles.transparent_max_bounces == 800
    assert scene.cycles.min_transparent_bounces == 512
    assert scene.cycles.max_bounces == 3
    assert scene.view_settings.view_transform == "Filmic"


def test_cycles_may_be_switched_off(scene):
    addon_utils.disable("cycles")
    try:
        assert not hasattr(scene, "cycles")
        assert point_cloud.ensure_scene_settings(scene) == []
        point_cloud.import_clip(twisting_ring(n=5), scene)
        assert point_cloud.scene_warnings(scene) == ["Splats face the scene's camera, and there is none: add one"]
    finally:
        addon_utils.enable("cycles")


def test_motion_blur_of_eevee_needs_steps(scene):
    """Pictures with and without motion blur were the same with a single step, its default."""
    point_cloud.import_clip(twisting_ring(5, 2), scene)
    add_camera()
    scene.render.engine, scene.render.use_motion_blur = versions.eevee_id(), True
    assert scene.eevee.motion_blur_steps == 1
    (warning,) = point_cloud.scene_warnings(scene)
    assert "Motion Blur > Steps" in warning
    scene.eevee.motion_blur_steps = 8
    assert point_cloud.scene_warnings(scene) == []


def test_no_warnings_without_gaussians(scene):
    assert point_cloud.scene_warnings(scene) == []


def test_warnings(scene):
    splats = point_cloud.import_clip(twisting_ring(5, 2), scene, name="Ring")
    modifier = point_cloud.playback_modifier(splats)
    warnings = point_cloud.scene_warnings(scene)
    assert len(warnings) == 2
    assert "512 transparent bounces" in warnings[0]
    assert "camera" in warnings[1]
    point_cloud.ensure_scene_settings(scene)
    add_camera()
    assert point_cloud.scene_warnings(scene) == []
    scene.view_settings.view_transform = "Raw"
    assert point_cloud.scene_warnings(scene) == [
        "Ring is too dark under the view transform Raw: switch off Scene Linear"
    ]
    versions.set_modifier_input(modifier, node_groups.SCENE_LINEAR, False)
    assert point_cloud.scene_warnings(scene) == []
    scene.view_settings.view_transform = "Standard"
    assert "too bright" in point_cloud.scene_warnings(scene)[0]
    splats.modifiers.clear()
    assert "lost the modifier" in point_cloud.scene_warnings(scene)[0]


@pytest.mark.parametrize(("fps", "frames", "expected"), [(24.0, 25, (5, 29)), (12.5, 25, (5, 29)), (30.0, 1, (5, 5))])
def test_frame_range_and_rate(scene, fps, frames, expected):
    clip = twisting_ring(5, frames, fps=fps)
    point_cloud.apply_frame_range(scene, clip, 5)
    assert retime.scene_fps(scene) == pytest.approx(fps)
    assert (scene.frame_start, scene.frame_end) == expected
    splats = point_cloud.import_clip(clip, scene, start=5)
    assert (retime.timing(splats).first, retime.timing(splats).last) == pytest.approx(expected)


def test_few_frames_of_a_long_video_do_not_slow_the_scene_down(scene):
    scene.render.fps, scene.render.fps_base = 24, 1.0
    point_cloud.apply_frame_range(scene, twisting_ring(5, 8, fps=2.5), 5)
    assert retime.scene_fps(scene) == pytest.approx(25)
    assert (scene.frame_start, scene.frame_end) == (5, 75)
