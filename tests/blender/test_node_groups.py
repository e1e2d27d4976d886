# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node groups compute, part by part, against numpy."""

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from mathutils import Matrix  # noqa: E402

from blender_addon import node_groups, point_cloud, versions  # noqa: E402
from blender_addon.contract import rotations  # noqa: E402
from blender_addon.contract.spherical_harmonics import sh_basis  # noqa: E402
from tests.blender.clips import add_camera, evaluated, point_centers, quad_corners, read, show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402
from tests.blender.ewa import sh_values  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture(autouse=True)
def groups_built_once():
    """Not here: each test builds what it tests."""


@pytest.fixture(autouse=True)
def empty_file():
    fresh_file()


def import_clip(clip, **options):
    return point_cloud.import_clip(clip, bpy.context.scene, **{"start": 1, **options})


def set_input(splats, name, value):
    versions.set_modifier_input(point_cloud.playback_modifier(splats), name, value)


def quad_values(splats, name):
    geometry = evaluated(splats, "QUADS")
    return read(geometry.mesh.attributes, name)


class TestSphericalHarmonics:
    def test_against_their_definition(self):
        directions = np.random.default_rng(0).normal(size=(200, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        values = np.stack(sh_basis(4, *directions.T), axis=-1)
        assert np.abs(values - sh_values(directions, 25)[:, 1:]).max() < 1e-12

    def test_unknown_degree(self):
        with pytest.raises(ValueError, match="degree 5"):
            sh_basis(5, 0.0, 0.0, 1.0)


class TestColors:
    @pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
    def test_seen_from_the_camera(self, degree):
        clip = twisting_ring(40, 2, sh_degree=degree)
        splats = import_clip(clip)
        set_input(splats, node_groups.SCENE_LINEAR, False)
        set_input(splats, node_groups.SORT, False)
        splats.matrix_world = (
            Matrix.Translation((0.3, 0, 0)) @ Matrix.Rotation(0.8, 4, (1, 2, 3)) @ Matrix.Scale(0.6, 4)
        )
        camera = add_camera()
        show(1.5)
        seat = splats.matrix_world.inverted() @ camera.matrix_world.translation
        directions = clip.frame(0.5).means - np.array(seat)
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        expected = 0.5 + np.einsum("nk,nkc->nc", sh_values(directions, clip.sh.shape[1]), clip.sh)
        assert np.abs(quad_values(splats, "splat_color") - np.maximum(expected, 0)).max() < 1e-5

    def test_srgb_becomes_linear(self):
        clip = twisting_ring(200, 2, sh_degree=0)
        splats = import_clip(clip)
        set_input(splats, node_groups.SORT, False)
        add_camera()
        show(1)
        coded = np.maximum(0.5 + 0.28209479177387814 * clip.sh[:, 0], 0)
        linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
        assert coded.min() < 0.06  # both pieces of the curve are met
        assert np.abs(quad_values(splats, "splat_color") - linear).max() < 1e-5
        points = evaluated(splats, "POINTS")
        assert np.abs(read(points.pointcloud.attributes, "splat_color")[:, :3] - linear).max() < 1e-5

    def test_linear_clips_are_left_alone(self):
        clip = twisting_ring(50, 2, sh_degree=0, color_space="linear")
        splats = import_clip(clip)
        set_input(splats, node_groups.SORT, False)
        add_camera()
        show(1)
        assert np.abs(quad_values(splats, "splat_color") - (0.5 + 0.28209479177387814 * clip.sh[:, 0])).max() < 1e-5


class TestQuads:
    def covariances(self, splats):  # [N, 3, 3] seen along the ray, in object space
        corners = quad_corners(splats).astype(np.float64)
        offsets = corners - corners.mean(axis=1, keepdims=True)
        alpha = quad_values(splats, "splat_alpha").astype(np.float64)
        reach2 = 2 * np.log(255 * alpha)
        # The corners are centers + reach (+-X +- Y); over the four, X X^T + Y Y^T is a quarter of the sum.
        return np.einsum("nki,nkj->nij", offsets, offsets) / 4 / reach2[:, None, None]

    @pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
    def test_span_the_projected_covariance_and_a_pixel(self, kind):
        clip = twisting_ring(60, 2)
        splats = import_clip(clip)
        set_input(splats, node_groups.SORT, False)
        splats.matrix_world = Matrix.Rotation(0.5, 4, (3, 1, 2)) @ Matrix.Scale(1.7, 4)
        camera = add_camera(resolution=100)
        camera.data.type = kind
        camera.data.ortho_scale = 3.0
        show(1)
        moment = clip.frame(0)
        to_object = np.array(splats.matrix_world.inverted() @ camera.matrix_world)
        if kind == "PERSP":
            rays = moment.means - to_object[:3, 3]
            distances = np.linalg.norm(rays, axis=-1)
            pixel = distances * 36 / 50 / 100
        else:
            rays = np.tile(-to_object[:3, 2], (60, 1))
            pixel = np.full(60, 3.0 / 100 / 1.7)
        rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
        across = np.eye(3) - rays[:, :, None] * rays[:, None, :]  # projection on the plane across the ray
        axes = rotations.to_matrix(moment.quats) * moment.scales[:, None]
        expected = across @ (axes @ axes.swapaxes(1, 2)) @ across + 0.3 * pixel[:, None, None] ** 2 * across
        scale = np.abs(expected).max(axis=(1, 2))[:, None, None]
        assert (np.abs(self.covariances(splats) - expected) / scale).max() < 1e-3

    def test_far_first_when_sorted(self):
        clip = twisting_ring(300, 2)
        splats = import_clip(clip)
        camera = add_camera()
        show(1)
        geometry = evaluated(splats, "QUADS")
        mesh = geometry.mesh
        index = np.empty(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("vertex_index", index)
        centers = read(mesh.attributes, "position")[index.reshape(-1, 4)].mean(axis=1)
        distances = np.linalg.norm(centers - np.array(camera.matrix_world.translation), axis=-1)
        assert (np.diff(distances) <= 1e-6).all()
        # The points keep their order, so that motion blur and motion vectors find each of them again.
        assert np.abs(quad_corners(splats).mean(axis=1) - clip.frame(0).means).max() < 1e-6

    def test_size_and_opacity_factors(self):
        clip = twisting_ring(30, 2)
        splats = import_clip(clip)
        set_input(splats, node_groups.SORT, False)
        add_camera(resolution=100_000)  # a pixel is next to nothing
        show(1)
        before = self.covariances(splats)
        set_input(splats, node_groups.SPLAT_SIZE, 2.0)
        set_input(splats, node_groups.OPACITY, 0.5)
        assert np.allclose(self.covariances(splats), 4 * before, rtol=1e-3, atol=1e-9)
        assert np.allclose(quad_values(splats, "splat_alpha"), 0.5 * clip.opacities, atol=1e-6)

    def test_a_pixel_follows_the_render_size(self):
        splats = import_clip(twisting_ring(30, 2))
        add_camera(resolution=100)
        show(1)
        width = versions.modifier_input(
            point_cloud.playback_modifier(splats.evaluated_get(bpy.context.evaluated_depsgraph_get())),
            node_groups.RENDER_WIDTH,
        )
        bpy.context.scene.render.resolution_percentage = 50
        show(2)
        half = versions.modifier_input(
            point_cloud.playback_modifier(splats.evaluated_get(bpy.context.evaluated_depsgraph_get())),
            node_groups.RENDER_WIDTH,
        )
        assert (width, half) == (100, 50)

    def test_only_what_materials_need_is_left(self):
        splats = import_clip(twisting_ring(10, 3))
        add_camera()
        geometry = evaluated(splats, "QUADS")
        names = {a.name for a in geometry.mesh.attributes if not a.name.startswith(".")}
        assert {"splat_color", "splat_alpha", "splat_corner"} <= names
        assert not any(name.split(".")[0] in {"pos", "rot", "lsc", "opacity"} for name in names)
        geometry = evaluated(splats, "POINTS")
        names = {a.name for a in geometry.pointcloud.attributes if not a.name.startswith(".")}
        assert names == {"position", "radius", "splat_color"}


class TestDrawModes:
    def test_points_in_the_viewport_quads_in_renders(self):
        splats = import_clip(twisting_ring(10, 2))
        assert point_cloud.draw_mode(splats) == "POINTS"
        assert point_cloud.draw_mode(splats, render=True) == node_groups.draw_modes()[-1]
        point_cloud.set_draw_mode(splats, viewport="QUADS", render="POINTS")
        assert point_cloud.draw_mode(splats) == "QUADS"
        assert point_cloud.draw_mode(splats, render=True) == "POINTS"

    def test_without_a_camera_quads_are_still_drawn(self):
        splats = import_clip(twisting_ring(10, 2))
        show(1)
        corners = quad_corners(splats)
        assert corners.shape == (10, 4, 3)
        assert np.isfinite(corners).all()

    def test_lost_modifier(self):
        splats = import_clip(twisting_ring(10, 2))
        splats.modifiers.clear()
        assert point_cloud.draw_mode(splats) is None
        with pytest.raises(ValueError, match="has lost the modifier"):
            point_cloud.set_draw_mode(splats, viewport="QUADS")


class TestNative:
    """The branch for Blender 5.3 and newer, built here with stand-ins for what older versions lack."""

    @pytest.fixture
    def as_if_native(self, monkeypatch):
        if versions.has_native_splats():
            return
        monkeypatch.setattr(versions, "has_native_splats", lambda: True)
        monkeypatch.setattr(versions, "SPLAT_NODE", "GeometryNodeSetID")  # passes points through
        monkeypatch.setattr(node_groups, "choose_splats", lambda node: None)

    def test_attributes_are_those_of_blender_s_own_splats(self, as_if_native):
        clip = twisting_ring(30, 4, sh_degree=2, moving_opacities=True)
        splats = import_clip(clip, draw="NATIVE")
        assert point_cloud.draw_mode(splats, render=True) == "NATIVE"
        show(2.25)
        moment = clip.frame(1.25)
        geometry = evaluated(splats, "NATIVE")
        attributes = geometry.pointcloud.attributes
        assert np.abs(read(attributes, "position") - moment.means).max() < 1e-6
        assert np.allclose(read(attributes, "scale"), moment.scales, rtol=1e-5)
        same = np.abs(np.sum(read(attributes, "rotation") * moment.quats, axis=-1))
        assert np.allclose(same, 1, atol=1e-5)
        base = read(attributes, "radiance:base")
        assert np.allclose(base[:, :3], clip.sh[:, 0], atol=1e-6)
        assert np.allclose(base[:, 3], moment.opacities, atol=1e-6)
        for index in range(8):
            assert np.array_equal(read(attributes, f"radiance:sh_{index}"), clip.sh[:, index + 1])
        names = {a.name for a in attributes if not a.name.startswith(".")}
        assert not any(name.split(".")[0] in {"pos", "rot", "lsc", "opacity", "f_dc_0", "sh_0"} for name in names)

    def test_a_blender_whose_node_is_different_draws_quads(self, as_if_native, monkeypatch, caplog):
        monkeypatch.setattr(versions, "SPLAT_NODE", "GeometryNodeOfTheFuture")
        monkeypatch.setattr(node_groups, "_native_problems", [])
        clip = twisting_ring(10, 2)
        splats = import_clip(clip)
        assert "not used" in caplog.text
        assert node_groups.draw_modes() == ["POINTS", "QUADS"]
        assert point_cloud.draw_mode(splats, render=True) == "QUADS"
        assert not [group for group in bpy.data.node_groups if "Native" in group.name]
        show(2)
        assert np.abs(point_centers(splats) - clip.frame(1).means).max() < 1e-6

    @pytest.mark.parametrize("item", ["3D Gaussian Splats", "Gaussian Splat", "Splats (3DGS)"])
    def test_the_menu_item_is_found_by_its_meaning(self, item):
        node, menu = self.menu_node("Points", item)
        node_groups.choose_splats(node)
        assert menu.default_value == item

    def test_no_such_menu_item(self):
        node, _ = self.menu_node("Points", "Spheres")
        with pytest.raises(RuntimeError, match="knows no Gaussian splats"):
            node_groups.choose_splats(node)

    def menu_node(self, *items):
        tree = bpy.data.node_groups.new("Menu", "GeometryNodeTree")
        node = tree.nodes.new("GeometryNodeMenuSwitch")
        node.enum_items.clear()
        for item in items:
            node.enum_items.new(item)
        return node, node.inputs["Menu"]

    @pytest.mark.skipif(versions.has_native_splats(), reason="this Blender draws splats by itself")
    def test_not_offered_where_blender_lacks_it(self):
        assert node_groups.draw_modes() == ["POINTS", "QUADS"]


def test_trees_can_be_read_by_people():
    """No two nodes lie on each other, and links run from left to right."""
    import_clip(twisting_ring(5, 2))
    for tree in bpy.data.node_groups:
        places = [tuple(node.location) for node in tree.nodes]
        assert len(set(places)) == len(places)
        assert all(link.from_node.location.x < link.to_node.location.x for link in tree.links)
