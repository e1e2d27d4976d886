# SPDX-License-Identifier: GPL-3.0-or-later
"""What Gaussians need of a scene, what is said where it is missing, and the frame range of a clip."""

import pytest

bpy = pytest.importorskip("bpy")

import addon_utils  # noqa: E402

from blender_addon import node_groups, point_cloud, retime, scene_settings, splat_object, versions  # noqa: E402
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


@pytest.fixture
def eevee(scene):
    """A scene of EEVEE with a camera, and Gaussians in it."""
    splats = point_cloud.import_clip(twisting_ring(5, 2), scene)
    add_camera()
    scene.render.engine = versions.eevee_id()
    point_cloud.ensure_scene_settings(scene)
    return scene, splats


def test_motion_blur_of_eevee_needs_steps_or_dithering(eevee):
    """Pictures with and without motion blur were the same with a single step, its default."""
    scene, splats = eevee
    scene.render.use_motion_blur = True
    assert scene.eevee.motion_blur_steps == 1
    assert point_cloud.scene_warnings(scene) == [
        "EEVEE leaves Gaussians out of motion blur unless they are drawn dithered"
    ]
    scene.eevee.motion_blur_steps = 8
    assert point_cloud.scene_warnings(scene) == []
    scene.eevee.motion_blur_steps = 1
    assert len(point_cloud.ensure_scene_settings(scene)) == 1
    assert point_cloud.scene_warnings(scene) == []
    # What is sorted anew in each frame is smeared all over the place.
    versions.set_modifier_input(point_cloud.playback_modifier(splats), node_groups.SORT, True)
    assert scene_settings.needs_settings(scene)


def test_eevee_focuses_on_dithered_gaussians_alone(eevee):
    """Blended ones in focus were as blurred as what is behind them, and are in no pass."""
    scene, splats = eevee
    assert not scene_settings.needs_settings(scene)
    second = bpy.data.objects.new("Second", bpy.data.cameras.new("Second"))
    scene.collection.objects.link(second)
    scene.timeline_markers.new("Cut", frame=10).camera = second
    second.data.dof.use_dof = True
    scene.view_layers[0].use_pass_mist = True
    assert point_cloud.scene_warnings(scene) == [
        "EEVEE leaves Gaussians out of depth of field and passes unless they are drawn dithered"
    ]
    assert scene_settings.needs_settings(scene)
    assert point_cloud.ensure_scene_settings(scene) == [
        "EEVEE draws Gaussians dithered, which is smooth from 64 samples on"
    ]
    modifier = point_cloud.playback_modifier(splats)
    assert versions.modifier_input(modifier, node_groups.MATERIAL).surface_render_method == "DITHERED"
    assert not versions.modifier_input(modifier, node_groups.SORT)
    assert point_cloud.scene_warnings(scene) == []
    assert not scene_settings.needs_settings(scene)


def test_a_material_of_another_file_is_copied_to_be_dithered(eevee, tmp_path):
    scene, splats = eevee
    modifier = point_cloud.playback_modifier(splats)
    bpy.data.libraries.write(str(tmp_path / "m.blend"), {versions.modifier_input(modifier, node_groups.MATERIAL)})
    with bpy.data.libraries.load(str(tmp_path / "m.blend"), link=True) as (there, here):
        here.materials = there.materials
    versions.set_modifier_input(modifier, node_groups.MATERIAL, here.materials[0])
    twin = splats.copy()
    scene.collection.objects.link(twin)
    scene.camera.data.dof.use_dof = True
    point_cloud.ensure_scene_settings(scene)
    own = versions.modifier_input(modifier, node_groups.MATERIAL)
    assert own.library is None
    assert versions.modifier_input(point_cloud.playback_modifier(twin), node_groups.MATERIAL) == own
    assert here.materials[0].surface_render_method == "BLENDED"
    assert point_cloud.scene_warnings(scene) == []


def test_depth_passes_of_cycles_without_holes(scene):
    """Few single Gaussians are as opaque as Blender's own threshold: the depth of a fox had more holes than fox."""
    point_cloud.import_clip(twisting_ring(5, 2), scene)
    add_camera()
    point_cloud.ensure_scene_settings(scene)
    layer, other = scene.view_layers[0], scene.view_layers.new("Other")
    assert not scene_settings.needs_settings(scene)
    layer.use_pass_z = True
    assert point_cloud.scene_warnings(scene) == [
        "Passes have holes where Gaussians are: set Passes > Data > Alpha Threshold to 0.1"
    ]
    assert point_cloud.ensure_scene_settings(scene) == [f"Alpha threshold of {layer.name} lowered from 0.5 to 0.1"]
    assert other.pass_alpha_threshold == 0.5
    assert point_cloud.scene_warnings(scene) == []
    assert not scene_settings.needs_settings(scene)


def test_workbench_and_clay_draw_whole_quads(eevee):
    scene, splats = eevee
    scene.view_layers[0].material_override = bpy.data.materials.new("Clay")
    (warning,) = point_cloud.scene_warnings(scene)
    assert warning.startswith(f"The material override of {scene.view_layers[0].name} draws whole quads")
    scene.render.engine = "BLENDER_WORKBENCH"
    (warning,) = point_cloud.scene_warnings(scene)
    assert warning.startswith("Workbench draws whole quads")
    splat_object.set_draw_mode(splats, render="POINTS")
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
