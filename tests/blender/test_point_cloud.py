# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip becomes ordinary Blender data, and stays right through edits, files, links and overrides."""

import dataclasses
import json

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from mathutils import Matrix  # noqa: E402

from blender_addon import node_groups, point_cloud, retime, splat_object, versions  # noqa: E402
from blender_addon.contract.arrays import BadFileError  # noqa: E402
from tests.blender.clips import add_camera, point_centers, quad_corners, read, show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402
from tests.contract.clips import random_clip  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture(autouse=True)
def empty_file():
    fresh_file()


def import_clip(clip, **options):
    return point_cloud.import_clip(clip, bpy.context.scene, **{"start": 1, **options})


def enter_edit_mode(obj):
    bpy.context.view_layer.objects.active = obj
    obj.select_set(True)
    bpy.ops.object.mode_set(mode="EDIT")


def delete_points(obj, which):
    enter_edit_mode(obj)
    bpy.ops.mesh.select_all(action="DESELECT")
    bpy.ops.object.mode_set(mode="OBJECT")
    obj.data.vertices.foreach_set("select", np.asarray(which, bool))
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")


def same_clip(a, b, tolerance=1e-5):
    assert a.frame_count == b.frame_count
    assert np.array_equal(a.sh, b.sh)
    for t in range(a.frame_count):
        one, two = a.frame(t), b.frame(t)
        assert np.abs(one.means - two.means).max() == 0
        assert np.allclose(np.abs(np.sum(one.quats * two.quats, axis=-1)), 1, atol=1e-6)
        assert np.allclose(one.scales, two.scales, rtol=tolerance)
        assert np.allclose(one.opacities, two.opacities, atol=tolerance)


class TestData:
    def test_one_point_for_each_gaussian_with_named_attributes(self):
        clip = twisting_ring(50, 4, sh_degree=2, moving_scales=False)
        splats = import_clip(clip)
        mesh = splats.data
        assert len(mesh.vertices) == clip.count
        own = {a.name: a.data_type for a in mesh.attributes if a.name != "position" and not a.name.startswith(".")}
        expected = {f"f_dc_{c}": "FLOAT" for c in range(3)} | {
            "opacity": "FLOAT",
            "lsc": "FLOAT_VECTOR",
            "number": "INT",
        }
        expected |= {f"sh_{i}": "FLOAT_VECTOR" for i in range(8)}
        expected |= {f"pos.{t}": "FLOAT_VECTOR" for t in range(4)} | {f"rot.{t}": "QUATERNION" for t in range(4)}
        assert own == expected
        assert {mesh.attributes[name].domain for name in own} == {"POINT"}
        assert np.array_equal(read(mesh.attributes, "f_dc_1"), clip.sh[:, 0, 1])
        assert np.array_equal(read(mesh.attributes, "sh_7"), clip.sh[:, 8])
        assert np.array_equal(read(mesh.attributes, "pos.3"), clip.motion.frame_means[3])
        logits = np.log(clip.opacities / (1 - clip.opacities.astype(np.float64)))
        assert np.allclose(read(mesh.attributes, "opacity"), logits, atol=1e-5)
        assert np.allclose(read(mesh.attributes, "lsc"), np.log(clip.scales), atol=1e-6)

    def test_rotations_keep_their_sign_over_time(self):
        clip = random_clip(3, n=40, frames=7, bases=None)  # random signs
        splats = import_clip(clip)
        quats = np.stack([read(splats.data.attributes, f"rot.{t}") for t in range(7)])
        assert (np.sum(quats[1:] * quats[:-1], axis=-1) >= 0).all()

    def test_scales_and_opacities_over_time(self):
        clip = twisting_ring(30, 3, moving_opacities=True)
        attributes = import_clip(clip).data.attributes
        assert "lsc" not in attributes
        assert np.allclose(read(attributes, "lsc.2"), np.log(clip.motion.frame_scales[2]), atol=1e-6)
        sigmoid = 1 / (1 + np.exp(-read(attributes, "opacity.2")))
        assert np.allclose(sigmoid, clip.motion.frame_opacities[2], atol=1e-6)

    def test_provenance_and_identity(self):
        provenance = {"pipeline": "orbit", "seed": 7, "models": [{"name": "x", "licence": "MIT"}]}
        clip = twisting_ring(5, 2, name="Fox", fps=30.0, color_space="linear", provenance=provenance)
        one, two = import_clip(clip), import_clip(clip)
        about = json.loads(one["kinesplat_clip"])
        assert about["provenance"] == provenance
        assert (about["name"], about["fps"], about["color_space"]) == ("Fox", 30.0, "linear")
        assert one["kinesplat_uuid"] != two["kinesplat_uuid"]
        assert point_cloud.is_splat_object(one)
        assert not point_cloud.is_splat_object(add_camera())
        assert not point_cloud.is_splat_object(None)

    def test_placed_where_the_source_stands(self):
        to_object = np.diag([2.0, 2.0, 2.0, 1.0])
        to_object[:3, 3] = [0.5, 0, 1]
        source = bpy.data.objects.new("Source", None)
        bpy.context.scene.collection.objects.link(source)
        source.matrix_world = Matrix.Translation((1, 2, 3)) @ Matrix.Rotation(0.7, 4, "Z")
        splats = import_clip(twisting_ring(5, 2, to_object=to_object), source=source)
        expected = np.array(source.matrix_world) @ to_object
        assert np.allclose(np.array(splats.matrix_world), expected, atol=1e-6)
        alone = import_clip(twisting_ring(5, 2, to_object=to_object))
        assert np.allclose(np.array(alone.matrix_world), to_object, atol=1e-6)

    def test_linked_to_the_collection_asked_for(self):
        collection = bpy.data.collections.new("Splats")
        bpy.context.scene.collection.children.link(collection)
        splats = import_clip(twisting_ring(5, 2), collection=collection, name="Ring")
        assert splats.users_collection == (collection,)
        assert splats.name == "Ring"

    def test_a_bad_clip_adds_nothing(self):
        clip = dataclasses.replace(twisting_ring(5, 2), scales=np.zeros((5, 3), np.float32))
        with pytest.raises(BadFileError, match="scales must be above 0"):
            import_clip(clip)
        assert not bpy.data.objects
        assert not bpy.data.meshes

    @pytest.mark.skipif(versions.has_native_splats(), reason="this Blender draws splats by itself")
    def test_drawing_that_this_blender_lacks_adds_nothing(self):
        with pytest.raises(ValueError, match="cannot draw Gaussians as native"):
            import_clip(twisting_ring(5, 2), draw="NATIVE")
        assert not bpy.data.objects


class TestPlayback:
    @pytest.mark.parametrize("frame", [0.0, 1.0, 2.37, 4.999, 5.0])
    def test_centers_are_exact(self, frame):
        clip = twisting_ring(100, 6)
        splats = import_clip(clip)
        add_camera()
        show(1 + frame)
        expected = clip.frame(frame).means
        assert np.abs(point_centers(splats) - expected).max() < 1e-6
        assert np.abs(quad_corners(splats).mean(axis=1) - expected).max() < 1e-6

    @pytest.mark.parametrize("bases", [3, None])
    def test_both_kinds_of_motion(self, bases):
        clip = random_clip(1, n=30, frames=4, bases=bases)
        splats = import_clip(clip)
        show(3)
        assert np.abs(point_centers(splats) - clip.frame(2).means).max() < 1e-6

    def test_keys_follow_the_frame_rates(self):
        bpy.context.scene.render.fps = 24
        splats = import_clip(twisting_ring(5, 13, fps=12.0), start=10)
        timing = retime.timing(splats)
        assert (timing.first, timing.last, timing.repeat) == (10, 34, "HOLD")
        assert timing.speed == pytest.approx(1)

    def test_a_clip_made_as_a_loop_plays_again_and_again(self):
        for made, repeat in ({"loop": True}, "LOOP"), ({"loop": False}, "HOLD"):
            assert retime.timing(import_clip(twisting_ring(5, 3, provenance=made))).repeat == repeat

    def test_a_clip_begins_at_the_current_frame(self):
        bpy.context.scene.frame_set(42)
        splats = point_cloud.import_clip(twisting_ring(5, 3), bpy.context.scene)
        assert retime.timing(splats).first == 42

    def test_a_single_frame(self):
        clip = twisting_ring(20, 1)
        splats = import_clip(clip)
        show(30)
        assert np.abs(point_centers(splats) - clip.means).max() < 1e-6

    def test_a_copy_plays_by_itself(self):
        clip = twisting_ring(20, 3)
        splats = import_clip(clip)
        copy = splats.copy()
        bpy.context.scene.collection.objects.link(copy)
        copy.animation_data.action = splats.animation_data.action.copy()
        retime.fit(copy, 11, 13)
        show(3)
        assert np.abs(point_centers(splats) - clip.frame(2).means).max() < 1e-6
        assert np.abs(point_centers(copy) - clip.frame(0).means).max() < 1e-6


class TestEdits:
    def test_deleting_points_edits_all_frames(self):
        clip = twisting_ring(60, 4, moving_opacities=True)
        splats = import_clip(clip)
        add_camera()
        keep = np.arange(60) % 3 != 0
        delete_points(splats, ~keep)
        for frame in (0, 1.5, 3):
            show(1 + frame)
            expected = clip.frame(frame).means[keep]
            assert np.abs(point_centers(splats) - expected).max() < 1e-6
            assert np.abs(quad_corners(splats).mean(axis=1) - expected).max() < 1e-6
        left = point_cloud.clip_of_object(splats)
        assert np.abs(left.frame(2).means - clip.frame(2).means[keep]).max() == 0

    def test_moving_points_moves_all_frames(self):
        clip = twisting_ring(20, 3)
        splats = import_clip(clip)
        splats.data.vertices[4].co.x += 0.25
        splats.data.update()
        expected = clip.frame(1.5).means.copy()
        expected[4, 0] += 0.25
        show(2.5)
        assert np.abs(point_centers(splats) - expected).max() < 1e-6
        assert np.abs(point_cloud.clip_of_object(splats).frame(1.5).means - expected).max() < 1e-6

    def test_a_modifier_above_moves_all_frames(self):
        clip = twisting_ring(20, 3)
        splats = import_clip(clip)
        bend = splats.modifiers.new("Displace", "DISPLACE")
        bend.direction, bend.mid_level, bend.strength = "X", 0.0, 0.5
        splats.modifiers.move(1, 0)
        show(2)
        expected = clip.frame(1).means + np.array([0.5, 0, 0])
        assert np.abs(point_centers(splats) - expected).max() < 1e-6

    def test_all_points_deleted(self):
        splats = import_clip(twisting_ring(10, 3))
        delete_points(splats, np.ones(10))
        show(2)
        assert len(quad_corners(splats)) == 0
        with pytest.raises(ValueError, match="no Gaussians left"):
            point_cloud.clip_of_object(splats)


class TestBackToClip:
    @pytest.mark.parametrize("moving", [False, True])
    def test_round_trip(self, moving):
        to_object = np.diag([3.0, 3.0, 3.0, 1.0])
        clip = twisting_ring(
            40,
            5,
            sh_degree=3,
            moving_scales=moving,
            moving_opacities=moving,
            fps=30.0,
            to_object=to_object,
            name="Ring",
        )
        back = point_cloud.clip_of_object(import_clip(clip))
        same_clip(clip, back)
        assert (back.name, back.fps, back.color_space) == ("Ring", 30.0, "srgb")
        assert np.array_equal(back.to_object, to_object)
        assert (back.motion.frame_scales is not None) == moving
        assert (back.motion.frame_opacities is not None) == moving

    def test_from_bases(self):
        clip = random_clip(5, n=25, frames=4, bases=3, sh_degree=1)
        same_clip(clip, point_cloud.clip_of_object(import_clip(clip)))

    def test_opacities_of_0_and_1(self):
        clip = dataclasses.replace(twisting_ring(3, 2), opacities=np.array([0, 0.5, 1], np.float32))
        back = point_cloud.clip_of_object(import_clip(clip))
        assert np.allclose(back.opacities, [0, 0.5, 1], atol=1e-6)

    def test_in_edit_mode(self):
        clip = twisting_ring(20, 3)
        splats = import_clip(clip)
        enter_edit_mode(splats)
        same_clip(clip, point_cloud.clip_of_object(splats))
        assert splats.mode == "EDIT"

    def test_not_a_splat_object(self):
        plain = bpy.data.objects.new("Plain", bpy.data.meshes.new("Plain"))
        with pytest.raises(ValueError, match="holds no Gaussians"):
            point_cloud.clip_of_object(plain)


class TestNoAddonNeeded:
    """Saved, opened, appended, linked and overridden: nothing of the add-on runs in these files."""

    @pytest.fixture
    def saved(self, tmp_path):
        clip = twisting_ring(80, 6, moving_opacities=True)
        import_clip(clip, name="Ring")
        add_camera()
        path = tmp_path / "ring.blend"
        bpy.ops.wm.save_as_mainfile(filepath=str(path), compress=True)
        fresh_file()
        return path, clip

    def check(self, splats, clip, at=lambda frame: 1 + frame):
        for frame in (0, 2.37, 5):
            show(at(frame))
            assert np.abs(point_centers(splats) - clip.frame(frame).means).max() < 1e-6

    def test_opened(self, saved):
        path, clip = saved
        bpy.ops.wm.open_mainfile(filepath=str(path))
        splats = bpy.data.objects["Ring"]
        assert not splats.modifiers[0].node_warnings if hasattr(splats.modifiers[0], "node_warnings") else True
        self.check(splats, clip)
        show(3)
        assert np.abs(quad_corners(splats).mean(axis=1) - clip.frame(2).means).max() < 1e-6

    def test_appended(self, saved):
        path, clip = saved
        with bpy.data.libraries.load(str(path), link=False) as (_, wanted):
            wanted.objects = ["Ring"]
        splats = bpy.data.objects["Ring"]
        bpy.context.scene.collection.objects.link(splats)
        self.check(splats, clip)
        again = import_clip(clip)
        groups = [group.name for group in bpy.data.node_groups if group.name.startswith("Kinesplat Playback")]
        assert len(groups) == 1
        assert again.modifiers[0].node_group == splats.modifiers[0].node_group

    def test_linked(self, saved):
        path, clip = saved
        with bpy.data.libraries.load(str(path), link=True) as (_, wanted):
            wanted.objects = ["Ring"]
        splats = bpy.data.objects["Ring"]
        bpy.context.scene.collection.objects.link(splats)
        for frame in (0, 2.37, 5):
            show(1 + frame)
            geometry = splats.evaluated_get(bpy.context.evaluated_depsgraph_get()).evaluated_geometry()
            centers = read(geometry.pointcloud.attributes, "position")
            assert np.abs(centers - clip.frame(frame).means).max() < 1e-6
        assert point_cloud.is_splat_object(splats)
        with pytest.raises(retime.RetimeError, match="library override"):
            retime.reverse(splats)

    def test_overridden_and_retimed(self, saved):
        path, clip = saved
        with bpy.data.libraries.load(str(path), link=True) as (_, wanted):
            wanted.objects = ["Ring"]
        linked = bpy.data.objects["Ring"]
        bpy.context.scene.collection.objects.link(linked)
        splats = linked.override_create(remap_local_usages=True)
        self.check(splats, clip)
        retime.reverse(splats)
        self.check(splats, clip, at=lambda frame: 6 - frame)
        assert linked.animation_data.action.library is not None
        assert splats.animation_data.action.library is None

    def test_an_override_survives_saving(self, saved, tmp_path):
        path, clip = saved
        with bpy.data.libraries.load(str(path), link=True) as (_, wanted):
            wanted.objects = ["Ring"]
        linked = bpy.data.objects["Ring"]
        bpy.context.scene.collection.objects.link(linked)
        splats = linked.override_create(remap_local_usages=True)
        splats.name = "Mine"
        retime.fit(splats, 11, 16)
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
        fresh_file()
        bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "shot.blend"))
        mine = bpy.data.objects["Mine"]
        assert retime.timing(mine).first == 11
        for frame in (0, 2.37, 5):
            show(11 + frame)
            geometry = mine.evaluated_get(bpy.context.evaluated_depsgraph_get()).evaluated_geometry()
            centers = read(geometry.pointcloud.attributes, "position")
            assert np.abs(centers - clip.frame(frame).means).max() < 1e-6


class TestReuse:
    def test_imports_share_groups_and_materials(self):
        for frames in (2, 3, 5):
            import_clip(twisting_ring(5, frames))
        assert sorted(group.name for group in bpy.data.node_groups) == [
            "Kinesplat Playback (SH 1, moving scales)",
            "Kinesplat Points",
            "Kinesplat Quads (SH 1)",
        ]
        assert sorted(material.name for material in bpy.data.materials) == ["Kinesplat Points", "Kinesplat Splats"]

    def test_a_group_that_somebody_changed_is_left_to_them(self):
        mine = import_clip(twisting_ring(5, 2)).modifiers[0].node_group
        math = next(node for node in mine.nodes if node.bl_idname == "ShaderNodeMath" and node.operation == "FLOOR")
        math.operation = "ROUND"
        other = import_clip(twisting_ring(5, 2)).modifiers[0].node_group
        assert other != mine
        assert import_clip(twisting_ring(5, 2)).modifiers[0].node_group == other

    def test_moving_nodes_about_is_no_change(self):
        mine = import_clip(twisting_ring(5, 2)).modifiers[0].node_group
        mine.nodes[0].location = (1000, 1000)
        assert import_clip(twisting_ring(5, 2)).modifiers[0].node_group == mine

    def test_a_material_that_somebody_changed_is_left_to_them(self):
        node_groups.splat_material().node_tree.nodes[0].mute = True
        import_clip(twisting_ring(5, 2))
        assert len([material for material in bpy.data.materials if "Splats" in material.name]) == 2


def test_cycles_takes_gaussians_for_no_lamps():
    """Thousands of lamps made renders of a lit scene twice as slow and a third noisier."""
    for material in (node_groups.splat_material(), node_groups.point_material()):
        assert material.cycles.emission_sampling == "NONE"


def test_instances_of_a_collection_with_gaussians_are_known():
    """Their quads face the camera as the original does: one that was turned by 90 degrees looked sliced."""
    splats = import_clip(twisting_ring(5, 2))
    within, empty = bpy.data.collections.new("Within"), bpy.data.collections.new("Empty")
    outer = bpy.data.collections.new("Outer")
    outer.children.link(within)
    within.objects.link(splats)
    instance = bpy.data.objects.new("Instance", None)
    assert not splat_object.instances_quads(None)
    assert not splat_object.instances_quads(instance)
    instance.instance_type, instance.instance_collection = "COLLECTION", empty
    assert not splat_object.instances_quads(instance)
    instance.instance_collection = outer
    assert splat_object.instances_quads(instance)
    splat_object.set_draw_mode(splats, render="POINTS")
    assert not splat_object.instances_quads(instance)
