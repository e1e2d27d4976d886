# SPDX-License-Identifier: GPL-3.0-or-later
"""Scale and rotation that were applied to Gaussians are found, and given back to the object."""

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from mathutils import Euler, Matrix, Vector  # noqa: E402

from blender_addon import applied_transform, asset_library, exchange, mesh_motion, point_cloud  # noqa: E402
from tests.blender.clips import add_camera, quad_corners, show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture
def ring():
    """Gaussians that stand aslant, in another size and place, below a moved parent."""
    fresh_file()
    add_camera()
    return placed_ring()


def placed_ring() -> bpy.types.Object:
    splats = point_cloud.import_clip(twisting_ring(40), bpy.context.scene)
    parent = bpy.data.objects.new("Parent", None)
    bpy.context.collection.objects.link(parent)
    parent.location = (0, 3, 0)
    splats.parent = parent
    splats.location, splats.rotation_euler, splats.scale = (1, 2, 3), (0.3, 0.5, -0.4), (2.5, 2.5, 2.5)
    select(splats)
    return splats


def select(splats: bpy.types.Object) -> None:
    bpy.context.view_layer.update()
    for obj in bpy.context.view_layer.objects:
        obj.select_set(obj is splats)
    bpy.context.view_layer.objects.active = splats


def drawn(splats: bpy.types.Object) -> np.ndarray:  # [N, 4, 3] corners of the quads in the world, in mid-motion
    show(splats.animation_data.action.frame_range[0] + 2.5)
    matrix = np.array(splats.matrix_world)
    return quad_corners(splats) @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.mark.parametrize(
    ("location", "rotation", "scale"),
    [(False, False, True), (False, True, False), (True, False, True), (True, True, True)],
)
def test_what_was_applied_is_given_back(ring, location, rotation, scale):
    before = drawn(ring)
    bpy.ops.object.transform_apply(location=location, rotation=rotation, scale=scale)
    assert np.abs(drawn(ring) - before).max() > 0.01, "nothing to mend"
    applied_transform.give_back(ring)
    np.testing.assert_allclose(drawn(ring), before, atol=1e-4)
    assert applied_transform.find_applied(ring) is None


def test_a_mirrored_scale_is_given_back(ring):
    ring.scale.x *= -1
    select(ring)
    before = drawn(ring)
    bpy.ops.object.transform_apply()
    applied_transform.give_back(ring)
    np.testing.assert_allclose(drawn(ring), before, atol=1e-4)


def test_what_is_no_applied_transform(ring):
    assert applied_transform.find_applied(None) is None
    assert applied_transform.find_applied(ring) is None
    ring.data.transform(Matrix.Translation((1, 2, 3)))
    assert applied_transform.find_applied(ring) is None, "all frames go along with a shift"
    for vertex in list(ring.data.vertices)[::5]:
        vertex.co *= 1.5
    assert applied_transform.find_applied(ring) is None, "points moved by hand keep their offsets"


def test_those_that_share_the_points_keep_their_place(ring):
    other = bpy.data.objects.new("Other", ring.data)
    bpy.context.collection.objects.link(other)
    other.matrix_basis = Matrix.LocRotScale(Vector((5, 0, 0)), Euler((0, 0, 1)), Vector((1, 1, 1)))
    point = [obj.matrix_basis @ ring.data.vertices[0].co for obj in (ring, other)]
    ring.data.transform(Matrix.Scale(0.5, 4))  # as all points scaled in Edit Mode are
    for obj, place in zip((ring, other), point, strict=True):
        place[:] = obj.matrix_basis @ ring.data.vertices[0].co
    applied_transform.give_back(ring)
    for obj, place in zip((ring, other), point, strict=True):
        assert (obj.matrix_basis @ ring.data.vertices[0].co - place).length < 1e-5
    assert other.scale.x == pytest.approx(0.5)


def test_what_cannot_be_given_back_says_why_and_changes_nothing(ring):
    with pytest.raises(ValueError, match=r"^No scale or rotation was applied"):
        applied_transform.give_back(ring)
    ring.data.transform(Matrix.Diagonal((1, 3, 1, 1)))
    points = [vertex.co.copy() for vertex in ring.data.vertices]
    ring.rotation_euler, ring.scale = (0, 0, 0.7), (2, 1, 1)
    ring.data.transform(Matrix.Rotation(0.6, 4, "Z"))
    with pytest.raises(ValueError, match="turned and scaled unevenly"):
        applied_transform.give_back(ring)
    ring.keyframe_insert("location", frame=1)
    with pytest.raises(ValueError, match="moved by keys"):
        applied_transform.give_back(ring)
    turned = [Matrix.Rotation(0.6, 3, "Z") @ point for point in points]
    assert max((v.co - p).length for v, p in zip(ring.data.vertices, turned, strict=True)) < 1e-5


def test_the_button(extension):
    add_camera()
    ring = placed_ring()
    assert not bpy.ops.kinesplat.give_back_transform.poll()
    before = drawn(ring)
    bpy.ops.object.transform_apply()
    assert bpy.ops.kinesplat.give_back_transform() == {"FINISHED"}
    np.testing.assert_allclose(drawn(ring), before, atol=1e-4)
    assert not bpy.ops.kinesplat.give_back_transform.poll()


@pytest.mark.parametrize("mode", ["OBJECT", "EDIT"])
def test_nothing_is_made_of_frames_that_do_not_fit(ring, tmp_path, mode):
    bpy.ops.object.transform_apply()
    bpy.ops.object.mode_set(mode=mode)
    for make in (
        lambda: exchange.export_clip(bpy.context, ring, tmp_path / "ring.npz"),
        lambda: exchange.export_ply(bpy.context, ring, tmp_path / "ring.ply"),
        lambda: asset_library.save(ring, tmp_path),
        lambda: mesh_motion.moving_copies(ring, [ring.parent], bpy.context),
    ):
        with pytest.raises(ValueError, match="Press Give Back to Object in its panel"):
            make()
    assert not list(tmp_path.iterdir())
    bpy.ops.object.mode_set(mode="OBJECT")
    applied_transform.give_back(ring)
    exchange.export_clip(bpy.context, ring, tmp_path / "ring.npz")
