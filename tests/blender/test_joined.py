# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians that were joined with a scale, a rotation or frames of their own are found, and made to fit."""

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import (  # noqa: E402
    applied_transform,
    exchange,
    joined,
    node_groups,
    point_cloud,
    splat_object,
    versions,
)
from blender_addon.contract.clip import FrameMotion  # noqa: E402
from tests.blender.clips import add_camera, quad_corners, show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402
from tests.contract.clips import random_clip  # noqa: E402

pytestmark = pytest.mark.blender

OTHER = {"location": (3, -1, 0.5), "rotation_euler": (0.3, -0.2, 0.9), "scale": (2.5, 2.5, 2.5)}


@pytest.fixture(autouse=True)
def scene():
    fresh_file()
    add_camera()


def add(clip, **place) -> bpy.types.Object:
    splats = point_cloud.import_clip(clip, bpy.context.scene, start=1)
    for name, value in place.items():
        setattr(splats, name, value)
    return splats


def join(active: bpy.types.Object, *others: bpy.types.Object) -> None:
    bpy.context.view_layer.update()
    for obj in bpy.context.view_layer.objects:
        obj.select_set(obj in (active, *others))
    bpy.context.view_layer.objects.active = active
    bpy.ops.object.join()


def drawn(*objects: bpy.types.Object, share: float) -> np.ndarray:  # [N, 12]
    """Middle and spread of all quads in the world, at a part of the time that each plays."""
    found = []
    for splats in objects:
        first, last = splats.animation_data.action.frame_range
        show(first + share * (last - first))
        matrix = np.array(splats.matrix_world)
        found.append(quad_corners(splats) @ matrix[:3, :3].T + matrix[:3, 3])
    corners = np.concatenate(found)  # one ellipse has many quads
    middle = corners.mean(axis=1, keepdims=True)
    spread = np.einsum("nci,ncj->nij", corners - middle, corners - middle)
    return np.concatenate([middle[:, 0], spread.reshape(-1, 9)], axis=1)


CLIPS = {
    "sizes move": twisting_ring(40),
    "opacities move": twisting_ring(40, moving_scales=False, moving_opacities=True),
    "neither": random_clip(n=40, frames=6, sh_degree=2),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_another_scale_and_rotation(clip):
    a, b = add(clip, scale=(0.5, 0.5, 0.5)), add(clip, **OTHER)
    before = drawn(a, b, share=0.6)
    join(a, b)
    assert np.abs(drawn(a, share=0.6) - before).max() > 0.05, "nothing to mend"
    assert joined.misfits(a)
    joined.settle(a)
    np.testing.assert_allclose(drawn(a, share=0.6), before, atol=2e-3)
    assert not joined.misfits(a)
    assert applied_transform.find_applied(a) is None


@pytest.mark.parametrize(("first", "second"), [(9, 4), (4, 9)])
def test_another_number_of_frames(first, second):
    a, b = (add(random_clip(n=30, frames=frames), location=(frames, 0, 0)) for frames in (first, second))
    before = [drawn(a, b, share=share) for share in (0.0, 1.0)]
    join(a, b)
    assert joined.misfits(a)
    joined.settle(a)
    assert splat_object.frame_count(a.data) == first
    for share, was in zip((0.0, 1.0), before, strict=True):
        np.testing.assert_allclose(drawn(a, share=share), was, atol=1e-3)


@pytest.mark.parametrize("moving_first", [True, False])
def test_sizes_that_move_and_sizes_that_do_not(moving_first):
    still = random_clip(n=30, frames=6)
    ring = twisting_ring(30)
    assert isinstance(ring.motion, FrameMotion)
    assert ring.motion.frame_scales is not None
    a, b = (add(clip) for clip in ((ring, still) if moving_first else (still, ring)))
    b.scale = (2, 2, 2)
    before = drawn(a, b, share=0.0)
    join(a, b)
    joined.settle(a)
    after = drawn(a, share=0.0)
    np.testing.assert_allclose(after[:30], before[:30], atol=1e-3)
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-3)
    assert 0.2 < after[30:, 3:].max() / before[30:, 3:].max() < 5
    names = {name for name in a.data.attributes.keys() if name.startswith("lsc")}  # noqa: SIM118
    assert names == ({f"lsc.{t}" for t in range(6)} if moving_first else {"lsc"})


def test_what_fits_is_left_alone(tmp_path):
    a, b = add(twisting_ring(30)), add(twisting_ring(20), location=(2, 0, 0))
    before = drawn(a, b, share=0.4)
    join(a, b)
    np.testing.assert_allclose(drawn(a, share=0.4), before, atol=1e-4)
    assert not joined.misfits(a)
    with pytest.raises(ValueError, match="nothing to mend"):
        joined.settle(a)
    a.scale = (2, 2, 2)
    join(a)
    bpy.ops.object.transform_apply()
    assert not joined.misfits(a)
    applied_transform.give_back(a)
    assert a.scale[:] == pytest.approx((2, 2, 2))
    exchange.export_clip(bpy.context, a, tmp_path / "both.npz")


def test_points_in_edit_mode_are_no_parts():
    a = add(twisting_ring(30))
    join(a)
    bpy.ops.object.mode_set(mode="EDIT")
    assert not joined.misfits(a)
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.mesh.duplicate()
    bpy.ops.transform.translate(value=(1, 0, 0))
    bpy.ops.object.mode_set(mode="OBJECT")
    assert len(joined.parts(a.data)) == 2
    assert not joined.misfits(a)
    a.data.vertices[3].co.x += 1
    assert not joined.misfits(a)
    modifier = splat_object.playback_modifier(a)
    for last in (3, 30):  # as somebody may type into the modifier
        versions.set_modifier_input(modifier, node_groups.LAST_FRAME, last)
        assert not joined.misfits(a)
    assert not joined.misfits(None)


def test_misfits_are_not_exported_and_a_stretch_is_refused(tmp_path):
    a, b = add(random_clip(n=30, frames=6)), add(random_clip(n=30, frames=6), scale=(1, 1, 3))
    join(a, b)
    with pytest.raises(ValueError, match="Press Fit Joined Frames"):
        exchange.export_clip(bpy.context, a, tmp_path / "both.npz")
    with pytest.raises(ValueError, match="stretched unevenly"):
        joined.settle(a)


@pytest.mark.parametrize("subdivisions", [1, 5])
def test_a_mesh_among_gaussians_is_told(subdivisions):
    a = add(random_clip(n=30, frames=6))
    bpy.ops.mesh.primitive_ico_sphere_add(subdivisions=subdivisions)
    join(a, bpy.context.active_object)
    assert joined.misfits(a)
    with pytest.raises(ValueError, match="are no Gaussians"):
        joined.settle(a)
