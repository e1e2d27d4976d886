# SPDX-License-Identifier: GPL-3.0-or-later
"""Retiming, seen from outside: which stored frame is shown at which scene frame."""

import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import node_groups, point_cloud, retime, splat_object, versions  # noqa: E402
from tests.blender.clips import show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture
def splats():
    """Five stored frames at the scene's rate, shown at scene frames 10 to 14."""
    fresh_file()
    scene = bpy.context.scene
    clip = twisting_ring(5, 5, fps=scene.render.fps)
    return point_cloud.import_clip(clip, scene, start=10)


def shown(splats, *frames):
    """The value of the input Frame at scene frames."""
    values = []
    for frame in frames:
        show(frame)
        copy = splats.evaluated_get(bpy.context.evaluated_depsgraph_get())
        values.append(versions.modifier_input(point_cloud.playback_modifier(copy), node_groups.FRAME))
    return pytest.approx(values, abs=1e-4)


def curve(splats):
    modifier = point_cloud.playback_modifier(splats)
    return versions.find_fcurve(splats, versions.modifier_input_path(modifier, node_groups.FRAME))


def test_as_imported(splats):
    assert shown(splats, 5, 10, 11.5, 14, 20) == [0, 0, 1.5, 4, 4]
    assert retime.timing(splats) == retime.Timing(10, 14, "HOLD", pytest.approx(1))
    assert [key.interpolation for key in curve(splats).keyframe_points] == ["LINEAR", "LINEAR"]


def test_fit(splats):
    retime.fit(splats, 1, 9)
    assert shown(splats, 1, 3, 9) == [0, 1, 4]
    assert retime.timing(splats).speed == pytest.approx(0.5)


def test_fit_keeps_the_timing_inside(splats):
    modifier = point_cloud.playback_modifier(splats)
    versions.set_modifier_input(modifier, node_groups.FRAME, 3.0)
    splats.keyframe_insert(versions.modifier_input_path(modifier, node_groups.FRAME), frame=11)
    retime.fit(splats, 100, 140)
    assert shown(splats, 100, 110, 140) == [0, 3, 4]


def test_speed(splats):
    retime.set_speed(splats, 0.25)
    assert shown(splats, 10, 18, 26) == [0, 2, 4]
    assert retime.timing(splats) == retime.Timing(10, 26, "HOLD", pytest.approx(0.25))
    retime.set_speed(splats, 2)
    assert shown(splats, 10, 11, 12) == [0, 2, 4]


def test_reverse(splats):
    retime.reverse(splats)
    assert shown(splats, 5, 10, 11.5, 14, 20) == [4, 4, 2.5, 0, 0]
    assert retime.timing(splats).speed == pytest.approx(1)
    retime.reverse(splats)
    assert shown(splats, 5, 10, 11.5, 14, 20) == [0, 0, 1.5, 4, 4]


def test_reverse_mirrors_eased_keys(splats):
    """Bezier handles, steps and eases run backwards as well."""
    modifier = point_cloud.playback_modifier(splats)
    path = versions.modifier_input_path(modifier, node_groups.FRAME)
    for frame, value in ((11, 0.5), (13, 2.0)):
        versions.set_modifier_input(modifier, node_groups.FRAME, value)
        splats.keyframe_insert(path, frame=frame)
    keys = curve(splats).keyframe_points
    for key, interpolation in zip(keys, ("BEZIER", "QUAD", "LINEAR", "LINEAR"), strict=True):
        key.interpolation = interpolation
    keys[1].easing = "EASE_IN"
    keys[0].handle_right_type = keys[1].handle_left_type = "FREE"
    keys[0].handle_right = (10.8, 0.0)
    keys[1].handle_left = (10.9, 0.1)
    frames = [10, 10.25, 10.5, 10.75, 11, 11.5, 12, 12.5, 13, 13.5, 14]
    forward = shown(splats, *frames).expected
    retime.reverse(splats)
    assert shown(splats, *(24 - frame for frame in frames)) == forward


def test_loop(splats):
    retime.set_repeat(splats, "LOOP")
    assert shown(splats, 12, 15, 16, 18.5, 9, 7) == [2, 1, 2, 0.5, 3, 1]
    assert retime.timing(splats).repeat == "LOOP"


def test_ping_pong(splats):
    retime.set_repeat(splats, "PING_PONG")
    assert shown(splats, 12, 15, 16, 18, 19, 9, 7) == [2, 3, 2, 0, 1, 1, 3]
    assert retime.timing(splats).repeat == "PING_PONG"


def test_hold(splats):
    retime.set_repeat(splats, "LOOP")
    retime.set_repeat(splats, "PING_PONG")
    assert len(curve(splats).modifiers) == 1
    retime.set_repeat(splats, "HOLD")
    assert shown(splats, 0, 12, 30) == [0, 2, 4]
    assert retime.timing(splats).repeat == "HOLD"


def test_all_of_them_one_after_the_other(splats):
    retime.set_speed(splats, 0.5)
    retime.reverse(splats)
    retime.fit(splats, 1, 5)
    retime.set_repeat(splats, "LOOP")
    assert shown(splats, 1, 2, 4.5, 6) == [4, 3, 0.5, 3]


def test_create_replaces_what_was_there(splats):
    retime.set_repeat(splats, "LOOP")
    retime.create(splats, bpy.context.scene, 5, 12.0, 1)
    assert len(curve(splats).keyframe_points) == 2
    assert shown(splats, 1, 9, 20) == [0, 4, 4]


def test_other_curves_of_the_object_stay(splats):
    splats.keyframe_insert("location", frame=1)
    splats.location.x = 3
    splats.keyframe_insert("location", frame=14)
    retime.fit(splats, 100, 200)
    retime.set_repeat(splats, "LOOP")
    show(14)
    assert splats.location.x == pytest.approx(3)


def test_every_stored_frame_of_a_single_frame_is_the_same(splats):
    still = point_cloud.import_clip(twisting_ring(5, 1), bpy.context.scene, start=3)
    assert retime.timing(still) == retime.Timing(3, 3, "HOLD", 1.0)
    assert splat_object.is_still(still)
    assert not splat_object.is_still(splats)
    with pytest.raises(retime.RetimeError, match="single frame"):
        retime.set_speed(still, 2)
    retime.fit(still, 10, 20)
    retime.set_repeat(still, "LOOP")
    assert shown(still, 1, 15, 30) == [0, 0, 0]


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_impossible_speeds(splats, speed):
    with pytest.raises(retime.RetimeError, match="must be above 0"):
        retime.set_speed(splats, speed)


def test_impossible_range(splats):
    with pytest.raises(retime.RetimeError, match="after the first"):
        retime.fit(splats, 5, 5)


def test_unknown_repeat(splats):
    with pytest.raises(ValueError, match="SOMETIMES"):
        retime.set_repeat(splats, "SOMETIMES")


def test_keys_deleted_by_hand(splats):
    splats.animation_data_clear()
    assert retime.timing(splats) is None
    with pytest.raises(retime.RetimeError, match="has no keys"):
        retime.set_repeat(splats, "LOOP")
    retime.create(splats, bpy.context.scene, 5, 24.0, 1)
    assert shown(splats, 1, 5) == [0, 4]


def test_what_lies_outside_of_the_range_stands_still(splats):
    """Assets begin at frame 1, and shots often at 1001."""
    scene = bpy.context.scene
    first, last = retime.timing(splats).first, retime.timing(splats).last
    scene.frame_start, scene.frame_end = 1001, 1050
    assert retime.is_over(retime.timing(splats), scene)
    retime.start_at(splats, 1010)
    assert not retime.is_over(retime.timing(splats), scene)
    assert retime.timing(splats).last - 1010 == last - first
    retime.start_at(splats, 1050)
    assert retime.is_over(retime.timing(splats), scene)
    retime.set_repeat(splats, "LOOP")
    assert not retime.is_over(retime.timing(splats), scene)


def test_pushed_down_to_the_nla(splats):
    animation = splats.animation_data
    assert not retime.lies_in_nla(splats)
    track = animation.nla_tracks.new()
    track.strips.new("Clip", 10, animation.action)
    animation.action = None
    assert retime.timing(splats).first == 10
    assert retime.lies_in_nla(splats)
    assert shown(splats, 10, 12, 14) == [0, 2, 4]
    with pytest.raises(retime.RetimeError, match="lies in the NLA"):
        retime.reverse(splats)


def test_lost_modifier(splats):
    splats.modifiers.clear()
    assert retime.timing(splats) is None
    with pytest.raises(retime.RetimeError, match="has lost the modifier"):
        retime.set_repeat(splats, "LOOP")


def test_what_shares_its_keys_can_be_parted(splats):
    """Assets that are appended twice and linked duplicates have one action."""
    assert not retime.is_shared(splats)
    splats.animation_data.action.use_fake_user = True
    assert not retime.is_shared(splats)
    lamp = bpy.data.lights.new("Lamp", "POINT")
    lamp.animation_data_create().action = splats.animation_data.action
    lamp.keyframe_insert("energy")  # in a slot of its own
    assert not retime.is_shared(splats)
    other = splats.copy()
    bpy.context.collection.objects.link(other)
    assert retime.is_shared(splats)
    retime.fit(splats, 10, 18)
    assert shown(other, 10, 14, 18) == [0, 2, 4]
    retime.part(other)
    assert not retime.is_shared(splats)
    assert not retime.is_shared(other)
    retime.reverse(other)
    assert shown(other, 10, 14, 18) == [4, 2, 0]
    assert shown(splats, 10, 14, 18) == [0, 2, 4]
