# SPDX-License-Identifier: GPL-3.0-or-later
"""Cleaning up for all frames at once: what is chosen, what of it is carried out, and what is left as it was."""

import importlib
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from blender_addon.contract import rotations
from blender_addon.contract.clip import Clip, FrameMotion
from tests.blender import ewa
from tests.blender.conftest import PACKAGE, fresh_file, load_extension

bpy = pytest.importorskip("bpy")

from blender_addon import clean_up, enclosure, node_groups, point_cloud, versions  # noqa: E402
from tests.blender.clips import add_camera, quad_corners, show, twisting_ring  # noqa: E402
from tests.blender.test_operators import error_of, why_not  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture(scope="module")
def operators():
    """The operators alone, in one file for all tests: node groups take longer to build than a test runs."""
    fresh_file()
    load_extension()
    module = importlib.import_module(f"{PACKAGE}.operators.clean_up")
    module.register()
    yield
    module.unregister()
    fresh_file()


@pytest.fixture
def scene(operators):
    """A scene without objects, at frame 0 of 24 per second."""
    yield bpy.context.scene
    if bpy.context.mode != "OBJECT":
        bpy.ops.object.mode_set(mode="OBJECT")
    bpy.data.batch_remove([*bpy.data.objects, *bpy.data.meshes, *bpy.data.libraries])
    bpy.context.scene.frame_set(0)


def balls(*places, count=500, frames=3, radius=0.3, size=0.02, seed=0) -> Clip:
    """Balls of small, opaque Gaussians on their surface, standing still."""
    random = np.random.default_rng(seed)
    normals = random.normal(size=(len(places), count, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    means = (np.array(places, float)[:, None] + radius * normals).reshape(-1, 3)
    quats = rotations.normalize(random.normal(size=(len(means), 4)))
    return clip_of(means, quats, np.full((len(means), 3), size), np.full(len(means), 0.9), frames)


def clip_of(means, quats, scales, opacities, frames) -> Clip:
    """A clip of `frames` equal moments whose scales and opacities may be changed over time."""
    single = [np.asarray(values, np.float32) for values in (means, quats, scales, opacities)]
    stacked = [np.repeat(values[None], frames, axis=0) for values in single]
    return Clip(*single, np.full((len(means), 1, 3), 0.3, np.float32), FrameMotion(*stacked))


def with_points(clip: Clip, points, size=0.02, opacity=0.9) -> Clip:
    """The clip with further Gaussians at [M, 3], or [T, M, 3] where they move."""
    means = np.broadcast_to(points, (clip.frame_count, *np.shape(points)[-2:]))
    old, count = clip.motion, means.shape[1]

    def extended(values, value):
        more = np.broadcast_to(np.asarray(value, np.float32), (clip.frame_count, count, *values.shape[2:]))
        return np.concatenate([values, more], axis=1)

    motion = FrameMotion(
        np.concatenate([old.frame_means, means], axis=1, dtype=np.float32),
        extended(old.frame_quats, [1, 0, 0, 0]),
        extended(old.frame_scales, size),
        extended(old.frame_opacities, opacity),
    )
    moments = (motion.frame_means[0], motion.frame_quats[0], motion.frame_scales[0], motion.frame_opacities[0])
    return Clip(*moments, np.full((clip.count + count, 1, 3), 0.3, np.float32), motion)


def add(clip: Clip, name: str = "Ring"):
    """The clip as the only selected object of the scene, frame t at scene frame t."""
    bpy.context.scene.render.fps = round(clip.fps)
    splats = point_cloud.import_clip(clip, bpy.context.scene, start=0, name=name)
    activate(splats)
    return splats


def activate(*objects) -> None:
    """Select objects and nothing else; the last is the active one."""
    bpy.context.view_layer.update()
    for obj in bpy.context.view_layer.objects:
        obj.select_set(obj in objects)
    bpy.context.view_layer.objects.active = objects[-1]


def add_empty(location=(0, 0, 0), size=1.0, display="CUBE", scale=(1, 1, 1), rotation=(0, 0, 0)):
    empty = bpy.data.objects.new("Box", None)
    empty.empty_display_type, empty.empty_display_size = display, size
    empty.location, empty.scale, empty.rotation_euler = location, scale, rotation
    bpy.context.scene.collection.objects.link(empty)
    return empty


class TestFloaters:
    def test_a_whole_body_keeps_everything(self) -> None:
        for distance in (1.5, 3.0, 10.0):
            assert not clean_up.floaters(balls((0, 0, 0)), distance).any()

    def test_single_ones_and_small_clumps_go(self) -> None:
        body = balls((0, 0, 0), count=1000)
        clump = np.random.default_rng(1).normal((0.5, 0.5, 0), 0.01, (8, 3))
        stray = np.concatenate([clump, [[0.7, 0, 0], [0, -0.6, 0.1], [50, 0, 0]]])
        gone = clean_up.floaters(with_points(body, stray))
        assert np.array_equal(np.flatnonzero(gone), 1000 + np.arange(11))

    def test_a_large_separate_part_stays(self) -> None:
        assert not clean_up.floaters(balls((0, 0, 0), (3, 0, 0))).any()

    def test_strength(self) -> None:
        """By the distance, and by how much a clump may hold, for which faint ones count less."""
        body = balls((0, 0, 0), count=1000)
        near = with_points(body, [[0.5, 0, 0]])  # 0.2 from the body, whose spacing is about 0.03
        assert [clean_up.floaters(near, distance).sum() for distance in (3.0, 10.0)] == [1, 0]
        clump = np.random.default_rng(1).normal((0.8, 0, 0), 0.01, (40, 3))
        assert [clean_up.floaters(with_points(body, clump), clump=c).sum() for c in (0.01, 0.1)] == [0, 40]
        assert clean_up.floaters(with_points(body, clump, opacity=0.1)).sum() == 40

    def test_large_ones_reach_farther(self) -> None:
        """Sparse parts of large Gaussians hang together; the spacing is that of the dense part."""
        sparse = np.stack([np.arange(0.3, 3, 0.35), np.zeros(8), np.zeros(8)], axis=-1)
        body = balls((0, 0, 0), count=2000)
        assert clean_up.floaters(with_points(body, sparse, size=0.02)).sum() > 4
        assert not clean_up.floaters(with_points(body, sparse, size=0.3)).any()

    def test_for_how_long(self) -> None:
        """Apart at 2 of 8 frames; where it is not to be seen does not count."""
        body = balls((0, 0, 0), frames=8)
        path = np.full((8, 1, 3), (0.3, 0, 0))
        path[:2] = (0.9, 0, 0)
        clip = with_points(body, path)
        assert [clean_up.floaters(clip, share_of_time=share).sum() for share in (0.0, 0.25, 0.5)] == [1, 1, 0]
        clip.motion.frame_opacities[3:, -1] = 0
        assert clean_up.floaters(clip, share_of_time=0.5).sum() == 1
        clip.motion.frame_opacities[:, -1] = 0
        assert not clean_up.floaters(clip, share_of_time=0.0).any()

    def test_all_at_one_place_or_too_few(self) -> None:
        """As where a clip begins with nothing and grows."""
        clip = balls((0, 0, 0))
        clip.motion.frame_means[0] = 0
        assert not clean_up.floaters(clip).any()
        clip.motion.frame_means[:] = 0
        assert not clean_up.floaters(clip).any()
        assert not clean_up.floaters(balls((0, 0, 0), count=3)).any()


def test_faint_is_what_is_never_opaque() -> None:
    clip = balls((0, 0, 0), count=10)
    clip.motion.frame_opacities[:, :4] = 0.05
    clip.motion.frame_opacities[2, 0] = 0.5  # flashes once
    assert np.flatnonzero(clean_up.faint(clip, 0.1)).tolist() == [1, 2, 3]


def test_oversized_is_measured_on_the_whole() -> None:
    clip = balls((0, 0, 0), count=1000, size=0.01)  # 0.6 across
    clip.motion.frame_scales[1, 7] = (0.001, 0.001, 0.06)  # 0.24 long, once
    clip.motion.frame_means[:, 9] = 100  # a stray one does not make the whole large
    assert np.flatnonzero(clean_up.oversized(clip, 0.3)).tolist() == [7]
    assert not clean_up.oversized(clip, 0.5).any()


def test_what_is_not_there_has_no_size() -> None:
    clip = balls((0, 0, 0), count=1000, size=0.01)
    clip.motion.frame_scales[1, 7] = 0.06
    clip.motion.frame_means[2, :500] = 100  # where half of them wait while they are not there
    clip.motion.frame_opacities[1, 7] = clip.motion.frame_opacities[2, :500] = 0
    assert not clean_up.oversized(clip, 0.3).any()


def test_thinning_leaves_each_moment_its_due() -> None:
    """Two balls at the same place, one after the other, and one that is there all the time."""
    clip = balls((0, 0, 0), (0, 0, 0), (1, 0, 0), frames=4)
    clip.motion.frame_opacities[2:, :500] = clip.motion.frame_opacities[:2, 500:1000] = 0
    clip.motion.frame_opacities[:2, :500] = 0.99  # more to be seen than the other
    stays = ~clean_up.too_many(clip, 0.5)
    assert [int(stays[first : first + 500].sum()) for first in (0, 500, 1000)] == [250, 250, 250]


class TestCrop:
    @pytest.fixture
    def splats(self, scene):
        """Three Gaussians: inside for all frames, at frame 1 only, never."""
        means = np.full((3, 3, 3), 0.0)
        means[:, 1, 0], means[:, 2, 0] = (5, 0, 5), 5
        clip = with_points(balls((0, 0, 0), count=0), means)
        return add(clip)

    def stays(self, splats, volume, frames, *, box=False, **options):
        bpy.context.view_layer.update()
        inside, _ = enclosure.inside_test(volume, bpy.context.evaluated_depsgraph_get(), box=box)
        gone = clean_up.outside(splats, point_cloud.clip_of_object(splats), volume, inside, frames, **options)
        return np.flatnonzero(~gone).tolist()

    def test_frames_and_invert(self, splats) -> None:
        box = add_empty()
        assert self.stays(splats, box, "ANY") == [0, 1]
        assert self.stays(splats, box, "ALL") == [0]
        show(0.4)
        assert self.stays(splats, box, "CURRENT") == [0]
        show(0.9)  # halfway between stored frames as the nodes show it
        assert self.stays(splats, box, "CURRENT") == [0, 1]
        assert self.stays(splats, box, "CURRENT", invert=True) == [2]
        assert self.stays(splats, box, "ANY", invert=True) == [2]
        assert self.stays(splats, box, "ALL", invert=True) == [1, 2]

    def test_what_is_not_there_lies_nowhere(self, scene) -> None:
        """Gaussians that are there at the first frame alone: inside, outside; and one that is never there."""
        means = np.full((3, 3, 3), 0.0)
        means[1:, 0, 0], means[0, 1, 0], means[:, 2, 0] = 5, 5, 5
        splats = add(with_points(balls((0, 0, 0), count=0), means, opacity=[[0.9, 0.9, 0], [0, 0, 0], [0, 0, 0]]))
        box = add_empty()
        for frames in ("ANY", "ALL", "CURRENT"):
            assert self.stays(splats, box, frames) == [0, 2]
            assert self.stays(splats, box, frames, invert=True) == [1, 2]
        show(2)
        assert self.stays(splats, box, "CURRENT") == [0, 1, 2]
        assert self.stays(splats, box, "CURRENT", invert=True) == [0, 1, 2]

    def test_both_objects_may_stand_anywhere(self, splats) -> None:
        splats.location, splats.rotation_euler = (1, 2, 3), (0, 0, math.pi / 2)
        far = add_empty((1, 7, 3), size=0.5, scale=(0.2, 1, 2), rotation=(0, 0, math.pi / 2))  # where 5 0 0 is now
        assert self.stays(splats, far, "ALL") == [2]
        far.location.x += 0.6  # its own y, along which it is 0.5 to each side
        assert self.stays(splats, far, "ALL") == []

    def test_meshes_and_empties(self, splats) -> None:
        bpy.ops.mesh.primitive_cube_add(size=1, location=(5, 0.4, 0))
        assert self.stays(splats, bpy.context.object, "ANY") == [1, 2]
        corner = (5.7, 0.7, 0.7)
        assert self.stays(splats, add_empty(corner), "ALL") == [2]
        assert self.stays(splats, add_empty(corner, display="SPHERE"), "ALL") == []
        assert self.stays(splats, add_empty(corner, size=1.3, display="SPHERE"), "ALL") == [2]

    def test_the_shape_of_a_closed_mesh_counts(self, splats) -> None:
        bpy.ops.mesh.primitive_uv_sphere_add(radius=0.5, location=(5.4, 0.4, 0))  # 5 0 0 is in its box, not in it
        ball = bpy.context.object
        assert self.stays(splats, ball, "ALL") == []
        assert self.stays(splats, ball, "ALL", box=True) == [2]
        ball.scale = (1.3, 1.3, 1.3)
        assert self.stays(splats, ball, "ALL") == [2]
        assert self.stays(splats, ball, "ANY") == [1, 2]
        ball.scale = (1, 1, 1)
        ball.modifiers.new("Thick", "DISPLACE").strength = 0.3
        bpy.context.view_layer.update()
        assert self.stays(splats, ball, "ALL") == [2]

    def test_of_a_mesh_with_holes_the_box_counts(self, splats) -> None:
        bpy.ops.mesh.primitive_cylinder_add(radius=0.5, location=(5.4, 0.4, 0), end_fill_type="NOTHING")
        pipe = bpy.context.object
        assert self.stays(splats, pipe, "ALL") == [2]
        assert enclosure.inside_test(pipe, bpy.context.evaluated_depsgraph_get(), box=False)[1]

    def test_what_has_no_volume(self, splats) -> None:
        lamp = bpy.data.objects.new("Lamp", bpy.data.lights.new("Lamp", "POINT"))
        with pytest.raises(ValueError, match="Lamp has no volume"):
            self.stays(splats, lamp, "ANY")
        with pytest.raises(clean_up.CleanUpError, match="scale of 0"):
            self.stays(splats, add_empty(scale=(0, 1, 1)), "ANY")


class TestDensity:
    def test_how_many_stay(self) -> None:
        clip = balls((0, 0, 0))
        for share, count in ((0.5, 250), (0.33, 165), (1.0, 500), (0.0001, 1)):
            assert np.sum(~clean_up.too_many(clip, share)) == count
        assert clean_up.growth(clip, clean_up.too_many(clip, 1.0)) == 1

    def test_each_part_keeps_its_due(self) -> None:
        clip = balls((0, 0, 0), (3, 0, 0), count=1000)
        clip.motion.frame_opacities[:, :1000] = 0.2  # less to be seen, and left a surface all the same
        stays = ~clean_up.too_many(clip, 0.25)
        octants = (clip.means > (1.5, 0, 0)) @ (1, 2, 4)
        shares = np.bincount(octants, stays) / np.bincount(octants)
        assert np.all(np.abs(shares - 0.25) < 0.05)

    def test_the_most_visible_stay(self) -> None:
        clip = balls((0, 0, 0), count=1000)
        opaque = np.random.default_rng(2).random(1000) < 0.5
        clip.motion.frame_opacities[:, ~opaque] = 0.05
        stays = ~clean_up.too_many(clip, 0.5)
        assert stays[opaque].mean() > 0.7
        assert stays[~opaque].mean() < 0.3

    def test_the_surface_stays_closed(self, scene) -> None:
        """Alpha in the middle of a ball, whose Gaussians overlap as those of constructed clips do."""
        ball = balls((0, 0, 0), count=1500, frames=1, size=0.018)
        ball = replace(
            ball, opacities=np.full(1500, 0.6, np.float32), motion=FrameMotion(ball.means[None], ball.quats[None])
        )
        splats = add(ball)
        assert alpha_of(splats).min() > 0.95
        gone = clean_up.too_many(ball, 0.5)
        clean_up.remove(splats.data, gone)
        thinned = alpha_of(splats)
        clean_up.widen(splats.data, clean_up.growth(ball, gone))
        after = alpha_of(splats)
        assert after.min() > thinned.min() + 0.04
        assert after.min() > 0.89
        assert after.mean() > 0.98

    def test_surfaces_stay_thin(self, scene) -> None:
        splats = add(twisting_ring(50, 4, moving_scales=True))
        before = point_cloud.clip_of_object(splats).motion.frame_scales
        clean_up.widen(splats.data, 1.5)
        factors = point_cloud.clip_of_object(splats).motion.frame_scales / before
        assert np.allclose(factors[..., 2], 1, atol=1e-5)  # the ring's Gaussians are flat along z
        assert np.allclose(factors[..., :2], 1.5, atol=1e-4)


def alpha_of(splats) -> np.ndarray:
    """Alpha in the middle of the picture of what lies round the origin."""
    clip = point_cloud.clip_of_object(splats)
    camera = np.array([[1, 0, 0, 0], [0, 0, -1, -2.0], [0, 1, 0, 0], [0, 0, 0, 1]])
    _, alpha = ewa.render(clip.frame(0), clip.sh, np.eye(4), camera, 65, 32)
    return alpha[10:22, 10:22]


# The operators


@pytest.fixture
def ring(scene):
    """A ring of which the first 5 Gaussians are never opaque, and all else that a user may have added to it."""
    clip = twisting_ring(60, 5, sh_degree=2, moving_scales=True, moving_opacities=True, fps=24.0)
    clip.motion.frame_opacities[:, :5] = 0.02
    clip.opacities[:5] = 0.02
    return add(clip)


def state_of(mesh) -> dict:
    """All attributes of the points, by name, as lists."""
    keys = {"FLOAT_COLOR": "color", "BYTE_COLOR": "color", "FLOAT_VECTOR": "vector", "FLOAT2": "vector"}
    return {
        name: [
            value if isinstance(value, bool | int | float | bytes) else tuple(map(tuple, value))
            if data_type == "FLOAT4X4" else tuple(value)
            for value in (getattr(item, keys.get(data_type, "value")) for item in attribute.data)
        ]
        for name, attribute in mesh.attributes.items()
        if not name.startswith(".") and (data_type := attribute.data_type)
    }  # fmt: skip


def test_all_attributes_keep_their_exact_values(ring) -> None:
    """Those of the clip, and whatever else a user keeps on points."""
    mesh, random = ring.data, np.random.default_rng(0)
    widths = {"FLOAT": 1, "FLOAT_VECTOR": 3, "FLOAT2": 2, "FLOAT_COLOR": 4, "QUATERNION": 4, "FLOAT4X4": 16}
    for data_type in (*widths, "INT", "BOOLEAN", "INT8"):
        mesh.attributes.new(f"own_{data_type}", data_type, "POINT")
    for data_type, width in widths.items():
        key = {"FLOAT_COLOR": "color", "FLOAT_VECTOR": "vector", "FLOAT2": "vector"}.get(data_type, "value")
        mesh.attributes[f"own_{data_type}"].data.foreach_set(key, random.normal(size=60 * width).astype(np.float32))
    for data_type in ("INT", "BOOLEAN", "INT8"):
        mesh.attributes[f"own_{data_type}"].data.foreach_set("value", np.arange(60) % 2)
    group = ring.vertex_groups.new(name="Head")
    group.add(range(0, 60, 2), 0.25, "REPLACE")
    ring.shape_key_add(name="Basis")
    ring.shape_key_add(name="Wide").data[10].co = (7, 8, 9)
    mesh.vertices[12].co.x += 0.5  # moved in Edit Mode

    before, moved = state_of(mesh), point_cloud.clip_of_object(ring).frame(2).means
    assert len(before) > 40
    assert bpy.ops.kinesplat.remove_faint(opacity=10) == {"FINISHED"}
    after = state_of(mesh)
    assert list(after) == list(before) or set(after) == set(before)
    for name, values in before.items():
        assert after[name] == values[5:], name
    assert np.array_equal(point_cloud.clip_of_object(ring).frame(2).means, moved[5:])
    weights = [[element.weight for element in vertex.groups] for vertex in mesh.vertices]
    assert weights == [[] if index % 2 else [0.25] for index in range(5, 60)]
    assert tuple(mesh.shape_keys.key_blocks["Wide"].data[5].co) == (7, 8, 9)


def test_everything_else_stays(ring) -> None:
    ring["note"] = "mine"
    ring.data.materials.append(bpy.data.materials.new("Mine"))
    ring.data["note"] = "ours"
    modifier, mesh = ring.modifiers[0], ring.data
    before = (dict(ring.items()), modifier.node_group, point_cloud.draw_mode(ring), ring.animation_data.action)
    keys = [key.co[:] for key in fcurve_of(ring).keyframe_points]
    bpy.ops.kinesplat.remove_faint(opacity=10)
    assert ring.data == mesh
    assert len(mesh.vertices) == 55
    assert mesh["note"] == "ours"
    assert [material.name for material in mesh.materials] == ["Mine"]
    assert before == (dict(ring.items()), modifier.node_group, point_cloud.draw_mode(ring), ring.animation_data.action)
    assert [key.co[:] for key in fcurve_of(ring).keyframe_points] == keys


def fcurve_of(splats):
    return versions.find_fcurve(splats, versions.modifier_input_path(splats.modifiers[0], node_groups.FRAME))


def test_density_leaves_all_but_scales(ring) -> None:
    before = state_of(ring.data)
    bpy.ops.kinesplat.reduce_density(keep=50)
    after = state_of(ring.data)
    stayed = [before["pos.0"].index(place) for place in after["pos.0"]]
    assert len(stayed) == 30
    assert stayed == sorted(stayed)
    for name, values in before.items():
        if not name.startswith("lsc"):
            assert after[name] == [values[index] for index in stayed], name
    grown = np.array(after["lsc.3"]) - np.array(before["lsc.3"])[stayed]
    assert np.all(grown.max(axis=1) > 0.05)
    assert np.all(grown.min(axis=1) == 0)


def test_says_how_many(ring, capfd) -> None:
    assert bpy.ops.kinesplat.remove_faint(opacity=10) == {"FINISHED"}
    assert "Removed 5 of 60 Gaussians" in capfd.readouterr().out
    assert bpy.ops.kinesplat.remove_faint(opacity=10) == {"FINISHED"}  # so that it can be adjusted
    assert "Removed 0 of 55 Gaussians" in capfd.readouterr().out


def test_one_undo_brings_all_back(ring) -> None:
    before = state_of(ring.data)
    bpy.ops.ed.undo_push(message="Before")
    bpy.ops.kinesplat.reduce_density("EXEC_DEFAULT", True, keep=50)
    assert len(bpy.data.objects["Ring"].data.vertices) == 30
    bpy.ops.ed.undo()
    assert state_of(bpy.data.objects["Ring"].data) == before


def test_never_all(ring) -> None:
    assert "all of Ring" in error_of(bpy.ops.kinesplat.remove_faint, opacity=100)
    box = add_empty((50, 0, 0))
    activate(box, ring)
    assert "Place the other object" in error_of(bpy.ops.kinesplat.crop_to_object)
    assert len(ring.data.vertices) == 60
    ring.data.clear_geometry()
    assert "Select Gaussians" in why_not(bpy.ops.kinesplat.remove_faint)


def test_no_points_left(ring) -> None:
    clean_up.remove(ring.data, np.ones(60, bool))
    assert "no Gaussians left" in error_of(bpy.ops.kinesplat.remove_floaters)


def test_several_objects(ring, capfd) -> None:
    """One that cannot be changed does not keep the other out."""
    other, broken = add(twisting_ring(40, 3), "Other"), add(twisting_ring(40, 3), "Broken")
    broken.data.attributes.remove(broken.data.attributes["f_dc_2"])
    activate(other, broken, ring)
    assert "Broken has lost its attribute f_dc_2" in error_of(bpy.ops.kinesplat.remove_faint, opacity=10)
    assert "Removed 5 of 100 Gaussians" in capfd.readouterr().out
    assert len(ring.data.vertices) == 55


def test_edit_mode_selects(ring, capfd) -> None:
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.context.tool_settings.mesh_select_mode = (False, False, True)
    assert "Leave Edit Mode" in why_not(bpy.ops.kinesplat.reduce_density)
    bpy.ops.kinesplat.remove_faint(opacity=10)
    assert "Selected 5 of 60 Gaussians" in capfd.readouterr().out
    assert ring.mode == "EDIT"
    assert tuple(bpy.context.tool_settings.mesh_select_mode) == (True, False, False)
    ring.update_from_editmode()
    selected = np.array([vertex.select for vertex in ring.data.vertices])
    assert np.flatnonzero(selected).tolist() == [0, 1, 2, 3, 4]
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")
    assert len(ring.data.vertices) == 55


def test_edit_mode_knows_what_was_just_edited(ring, capfd) -> None:
    """Hidden points cannot be selected; deleted ones are gone; others that were selected no longer are."""
    ring.data.vertices.foreach_set("hide", np.arange(60) == 0)
    ring.data.vertices.foreach_set("select", np.arange(60) == 1)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.kinesplat.remove_faint(opacity=10)
    assert "Selected 3 of 59 Gaussians" in capfd.readouterr().out
    bpy.ops.object.mode_set(mode="OBJECT")
    selected = np.array([vertex.select for vertex in ring.data.vertices])
    assert np.flatnonzero(selected).tolist() == [1, 2, 3]


def test_crop_by_selection(ring) -> None:
    assert "Select one object to crop to" in why_not(bpy.ops.kinesplat.crop_to_object)
    box = add_empty((1, 0, 0), size=1)
    for order in ((box, ring), (ring, box)):
        activate(*order)
        assert bpy.ops.kinesplat.crop_to_object.poll()
    bpy.ops.kinesplat.crop_to_object(frames="CURRENT")
    assert 10 < len(ring.data.vertices) < 50
    assert np.all(point_cloud.clip_of_object(ring).means[:, 0] >= 0)
    activate(box, add_empty(), ring)
    assert not bpy.ops.kinesplat.crop_to_object.poll()
    activate(box)
    assert "Select Gaussians" in why_not(bpy.ops.kinesplat.crop_to_object)


def test_shared_gaussians(ring) -> None:
    """They are changed where all that have them are selected, once; else a sentence, and what it says helps."""
    twin = ring.copy()
    bpy.context.scene.collection.objects.link(twin)
    twin.location.x = 5
    activate(ring)
    said = error_of(bpy.ops.kinesplat.remove_faint, opacity=10)
    assert f"shares its Gaussians with {twin.name}" in said
    assert len(ring.data.vertices) == 60

    activate(ring, twin)
    bpy.ops.kinesplat.remove_faint(opacity=10)
    assert len(ring.data.vertices) == 55
    assert ring.data == twin.data

    activate(add_empty((5, 0, 0)), ring, twin)
    bpy.ops.kinesplat.crop_to_object()  # all of the twin stays, so all of the ring does
    assert len(ring.data.vertices) == 55

    activate(ring)
    bpy.ops.object.make_single_user(object=True, obdata=True)
    bpy.ops.kinesplat.reduce_density()
    assert (len(ring.data.vertices), len(twin.data.vertices)) == (28, 55)


@pytest.mark.parametrize("override", [False, True])
def test_gaussians_of_another_file(ring, tmp_path, override) -> None:
    """Linked or overridden, they are refused; after what the sentence says, they can be cleaned."""
    path = tmp_path / "library.blend"
    bpy.data.libraries.write(str(path), {ring})
    bpy.data.objects.remove(ring)
    with bpy.data.libraries.load(str(path), link=True) as (_, wanted):
        wanted.objects = ["Ring"]
    linked = splats = wanted.objects[0]
    bpy.context.scene.collection.objects.link(linked)
    if override:
        splats = linked.override_create(remap_local_usages=True)
    activate(splats)
    said = error_of(bpy.ops.kinesplat.remove_faint, opacity=10)
    if override:
        assert "Make Single User > Object & Data" in said
        bpy.ops.object.make_single_user(object=True, obdata=True)
    else:
        assert "Make Local > Selected Objects and Data" in said
        bpy.ops.object.make_local(type="SELECT_OBDATA")
    splats = bpy.context.active_object
    bpy.ops.kinesplat.remove_faint(opacity=10)
    assert len(splats.data.vertices) == 55
    assert fcurve_of(splats) is not None
    assert all(len(mesh.vertices) == 60 for mesh in bpy.data.meshes if mesh.library is not None)


def test_other_modes(ring) -> None:
    bpy.ops.object.mode_set(mode="WEIGHT_PAINT")
    assert "Object Mode" in why_not(bpy.ops.kinesplat.remove_faint)


def test_pictures_show_what_is_left(ring) -> None:
    """The nodes follow: quads of the Gaussians that stay, at any frame."""
    add_camera()
    bpy.ops.kinesplat.remove_faint(opacity=10)
    show(2)
    centers = quad_corners(ring).mean(axis=1)
    assert np.abs(centers - point_cloud.clip_of_object(ring).frame(2).means).max() < 1e-5


@pytest.mark.slow
def test_speed(scene) -> None:
    """20,000 Gaussians of 24 frames, in seconds of one core; see `docs/scene.md`."""
    splats = add(twisting_ring(20_000, 24, moving_opacities=True))
    for operator in (bpy.ops.kinesplat.remove_floaters, bpy.ops.kinesplat.reduce_density):
        start = time.process_time()
        operator()
        seconds = time.process_time() - start
        print(f"\n{operator.idname_py()}: {seconds:.2f} s")
        assert seconds < 2
    assert len(splats.data.vertices) == 10_000
