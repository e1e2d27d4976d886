# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures in headless Blender: what is rendered, where it is seen, and that the user's file stays as it was."""

import errno
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

bpy = pytest.importorskip("bpy")

import addon_utils  # noqa: E402

from blender_addon import capture_progress, orbit_render, stage, subject  # noqa: E402
from blender_addon.capture_progress import in_one_go  # noqa: E402
from blender_addon.clip_space import measure_steps  # noqa: E402
from blender_addon.contract.orbit import (  # noqa: E402
    FURTHER_VIEWS,
    Cameras,
    Orbit,
    frame_name,
    intrinsics,
    orbit_camera,
    orbit_cameras,
    read_orbit_json,
)
from blender_addon.contract.surface import check_surface_samples, read_surface_samples  # noqa: E402
from blender_addon.subject import CaptureError, SubjectError  # noqa: E402
from blender_addon.surface_samples import sample_surface_steps  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender

PRISM = [(-0.6, -0.2, -0.1), (0.9, -0.3, 0.0), (0.2, 0.8, 0.1), (0.1, 0.1, 1.3)]  # no symmetry: mirrors show
PRISM_FACES = [(0, 2, 1), (0, 1, 3), (1, 2, 3), (2, 0, 3)]


@pytest.fixture(autouse=True)
def empty_file():
    fresh_file()


# --- in one go -------------------------------------------------------------------------------------------------------


def measure(*arguments, **settings):
    return in_one_go(measure_steps(*arguments, **settings))


def sample_surface(*arguments, **settings):
    return in_one_go(sample_surface_steps(*arguments, **settings))


def render_views(*arguments, **settings):
    return in_one_go(orbit_render.render_views_steps(*arguments, **settings))


def render_orbit(context, obj, orbit, folder, *, frame_range, **settings):
    space = measure(context, obj, frame_range, frames=orbit.frames)
    return in_one_go(orbit_render.render_orbit_steps(space, orbit, folder, **settings))


def capture_steps(context, obj, orbit, folder, *, frame_range, **settings):
    space = yield from measure_steps(context, obj, frame_range, frames=orbit.frames)
    return (yield from orbit_render.capture_motion_steps(space, orbit, folder, **settings))


def capture(*arguments, **settings):
    return in_one_go(capture_steps(*arguments, **settings))


# --- making things ---------------------------------------------------------------------------------------------------


def add_mesh(name="Prism", vertices=PRISM, faces=PRISM_FACES, link=True):
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(vertices, [], faces)
    obj = bpy.data.objects.new(name, mesh)
    if link:
        bpy.context.collection.objects.link(obj)
    return obj


def add_object(name, data=None):
    obj = bpy.data.objects.new(name, data)
    bpy.context.collection.objects.link(obj)
    return obj


def add_cube(name="Cube", size=1.0, **keywords):
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return add_mesh(name, [tuple(size / 2 * c for c in corner) for corner in corners], faces, **keywords)


def keyframe(obj, path, values):
    for frame, value in values.items():
        setattr(obj, path, value)
        obj.keyframe_insert(path, frame=frame)


def update():
    bpy.context.view_layer.update()


# --- looking at things -----------------------------------------------------------------------------------------------


def world_vertices(obj):
    """Vertices of a mesh object as the user's own scene evaluates them, now."""
    evaluated = obj.evaluated_get(bpy.context.evaluated_depsgraph_get())
    local = np.array([vertex.co for vertex in evaluated.data.vertices])
    matrix = np.array(evaluated.matrix_world)
    return local @ matrix[:3, :3].T + matrix[:3, 3]


def to_clip(space, points):
    return (points - space.to_world[:3, 3]) / space.scale


def project(cameras, view, points):
    """Pixels of clip-space points."""
    viewmat = cameras.viewmats()[view]
    seen = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    pixels = seen @ cameras.Ks[view].T
    return pixels[:, :2] / pixels[:, 2:]


def picture(folder, view):
    return np.asarray(Image.open(folder / f"frame_{view:03d}.png").convert("RGBA"), np.float64) / 255


def silhouette(alpha):
    """Left, top, right and bottom of what is drawn, to a fraction of a pixel by the coverage of the outermost ones."""
    columns, rows = alpha.max(axis=0), alpha.max(axis=1)
    edges = []
    for line in (columns, rows):
        drawn = np.flatnonzero(line > 0.02)
        edges.append((drawn[0] + 1 - line[drawn[0]], drawn[-1] + line[drawn[-1]]))
    (left, right), (top, bottom) = edges
    return np.array([left, top, right, bottom])


def assert_seen_where_projected(folder, cameras, view, points, tolerance=1.0):
    pixels = project(cameras, view, points)
    expected = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
    np.testing.assert_allclose(silhouette(picture(folder, view)[..., 3]), expected, atol=tolerance)


def snapshot():
    """All of the file that a capture could have touched, as plain values."""
    data = bpy.data
    blocks = {
        prop.identifier: sorted((b.name_full, b.users, b.use_fake_user) for b in getattr(data, prop.identifier))
        for prop in data.bl_rna.properties
        if prop.type == "COLLECTION" and prop.identifier != "screens"
    }
    objects = {
        obj.name: (
            [tuple(row) for row in obj.matrix_world],
            tuple(obj.location),
            tuple(obj.rotation_euler),
            tuple(obj.scale),
            obj.select_get(),
            obj.hide_get(),
            obj.hide_render,
            obj.hide_viewport,
            obj.mode,
            [c.name for c in obj.users_collection],
            [s.name for s in obj.users_scene],
        )
        for obj in bpy.context.view_layer.objects
    }
    scenes = {scene.name: (plain(scene), plain(scene.render), plain(scene.cycles)) for scene in data.scenes}
    view_layer = bpy.context.view_layer
    active = view_layer.objects.active
    return {
        "blocks": blocks,
        "objects": objects,
        "scenes": scenes,
        "context": (bpy.context.scene.name, view_layer.name, active and active.name, bpy.context.mode),
        "images": plain(bpy.context.scene.render.image_settings),
        "view": plain(bpy.context.scene.view_settings),
        "dirty": data.is_dirty,
        "engines": sorted(cls.__name__ for cls in bpy.types.RenderEngine.__subclasses__() if cls.is_registered),
    }


def plain(struct):
    values = {}
    for prop in struct.bl_rna.properties:
        if prop.type in {"BOOLEAN", "INT", "FLOAT", "STRING", "ENUM"}:
            value = getattr(struct, prop.identifier)
            values[prop.identifier] = tuple(np.ravel(value)) if getattr(prop, "is_array", False) else value
        elif prop.type == "POINTER":
            value = getattr(struct, prop.identifier)
            values[prop.identifier] = getattr(value, "name_full", None) if isinstance(value, bpy.types.ID) else None
    return values


# --- cameras and clip space ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moving", [False, True])
def test_pictures_match_the_cameras(tmp_path, moving):
    """Parents, rotation, non-uniform scale and motion at fractional frames all show where the cameras say."""
    parent = add_object("Parent")
    parent.location, parent.scale = (3, -2, 5), (2.0, 0.7, 1.3)
    parent.rotation_euler = (0.3, -0.2, 0.8)
    prism = add_mesh()
    prism.parent = parent
    keyframe(prism, "rotation_euler", {1: (0, 0.4, 0), 20: (1.0, 0.4, 2.0)})
    keyframe(prism, "location", {1: (0.5, 0, 0), 20: (0, 0.3, 0.4)})
    keyframe(prism, "scale", {1: (1, 1, 1), 20: (1.2, 0.8, 1)})

    cameras = render_orbit(
        bpy.context,
        prism,
        Orbit(frames=5, elevation=20, azimuth_start=15),
        tmp_path,
        moving=moving,
        frame_range=(2, 18.5),
        resolution=96,
        samples=16,
    )
    space = measure(bpy.context, prism, (2, 18.5), frames=5)
    assert read_orbit_json(tmp_path).to_json() == cameras.to_json()
    every = []
    for view in range(5):
        frame = 2 + 16.5 * view / 4 if moving else 2
        bpy.context.scene.frame_set(int(frame), subframe=frame % 1)
        points = to_clip(space, world_vertices(prism))
        assert_seen_where_projected(tmp_path, cameras, view, points)
        every.append(points)
        if frame == 2:
            np.testing.assert_allclose(np.array(prism.matrix_world) @ space.to_object, space.to_world, atol=1e-5)
    if moving:
        low, high = np.concatenate(every).min(axis=0), np.concatenate(every).max(axis=0)
        np.testing.assert_allclose(low, -high, atol=1e-5)
        assert (high - low).max() == pytest.approx(1, abs=1e-5)


def test_clip_space_goes_along_with_what_travels(tmp_path):
    """Somebody who walks through the scene fills the pictures as much as on the spot."""
    prism = add_mesh()
    keyframe(prism, "rotation_euler", {1: (0, 0.4, 0), 20: (1.0, 0.4, 2.0)})
    keyframe(prism, "location", {1: (0.5, 0, 0), 20: (0.5, 0, 0)})
    on_the_spot = measure(bpy.context, prism, (1, 20), frames=5)
    assert not on_the_spot.travels
    keyframe(prism, "location", {20: (30, -20, 4)})

    space = measure(bpy.context, prism, (1, 20), frames=5)
    assert space.travels
    assert space.scale < 1.5 * on_the_spot.scale
    assert not space.travel[0].any()
    samples = sample_surface(space, 200, times=5)
    orbit = Orbit(frames=5, elevation=20)
    cameras = render_orbit(
        bpy.context, prism, orbit, tmp_path, moving=True, frame_range=(1, 20), resolution=48, samples=8
    )
    for view in range(5):
        frame = 1 + 19 * view / 4
        bpy.context.scene.frame_set(int(frame), subframe=frame % 1)
        points = to_clip(space, world_vertices(prism) - space.way_at(view / 4))
        assert_seen_where_projected(tmp_path, cameras, view, points)
        moved = samples.points + samples.movement[view]
        assert (moved >= points.min(axis=0) - 1e-4).all()
        assert (moved <= points.max(axis=0) + 1e-4).all()
    turned = render_orbit(  # and All Sides show the first moment
        bpy.context, prism, orbit, tmp_path, moving=False, frame_range=(1, 20), resolution=48, samples=8
    )
    bpy.context.scene.frame_set(1)
    assert_seen_where_projected(tmp_path, turned, 3, to_clip(space, world_vertices(prism)))


def test_pieces_of_what_travels_go_along():
    """A body whose faces change on its way."""
    body, cutter = add_cube("Body", size=2), add_cube("Cutter", size=0.7)
    cutter.hide_render = True
    cutter.parent = body
    body.modifiers.new("Cut", "BOOLEAN").object = cutter
    keyframe(body, "location", {1: (0, 0, 0), 9: (20, 0, 0)})
    keyframe(cutter, "location", {1: (0, 0, 3), 9: (0, 0, 1)})
    space = measure(bpy.context, body, (1, 9), frames=5)
    assert space.changes
    assert space.travels
    pieces = sample_surface(space, 300, times=5).pieces
    assert np.abs(pieces.points).max() < 0.6


def test_pixel_centres(tmp_path):
    """Coverage shows the place to a small part of a pixel: half a pixel off would be noticed."""
    cube = add_cube(size=1)
    space = measure(bpy.context, cube, (1, 1))
    cameras = orbit_cameras(Orbit(frames=4, closed=False), 50, 50, moving=False)
    render_views(space, cameras, tmp_path, samples=128)
    near = 2 - 0.5
    expected = 25 + np.array([-1, -1, 1, 1]) * cameras.Ks[0, 0, 0] * 0.5 / near
    for view in range(4):
        np.testing.assert_allclose(silhouette(picture(tmp_path, view)[..., 3]), expected, atol=0.12)


def test_any_cameras_and_times(tmp_path):
    """Wide pictures, an axis off the middle, any time: what evaluation on unseen views needs."""
    prism = add_mesh()
    keyframe(prism, "rotation_euler", {1: (0, 0, 0), 25: (0, 1.0, 2.0)})
    space = measure(bpy.context, prism, (1, 25))
    off_axis = intrinsics(45, 96, 64)
    off_axis[:2, 2] += 7.5, -4.25
    cameras = Cameras(
        np.stack([orbit_camera(33, 25, 2.3), orbit_camera(200, -40, 2.6)]),
        np.stack([off_axis, off_axis]),
        np.array([0.25, 1]),
        96,
        64,
    )
    render_views(space, cameras, tmp_path, samples=16)
    for view, frame in enumerate((7, 25)):
        bpy.context.scene.frame_set(frame)
        assert picture(tmp_path, view).shape == (64, 96, 4)
        assert_seen_where_projected(tmp_path, cameras, view, to_clip(space, world_vertices(prism)))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_tiny_and_huge_objects(tmp_path, scale):
    prism = add_mesh()
    prism.scale = (scale,) * 3
    prism.location = (3 * scale, 0, 0)
    cameras = render_orbit(
        bpy.context, prism, Orbit(frames=2, closed=False), tmp_path, moving=False, frame_range=(1, 1), samples=8
    )
    space = measure(bpy.context, prism, (1, 1))
    assert_seen_where_projected(tmp_path, cameras, 1, to_clip(space, world_vertices(prism)))


def test_distance_grows_just_as_far_as_needed():
    random = np.random.default_rng(1)
    for elevation, fov in ((0, 39.6), (35, 39.6), (-60, 60), (90, 20)):
        outline = random.uniform(-0.5, 0.5, (30, 3))
        orbit = Orbit(frames=720, elevation=elevation, fov=fov, distance=0.1)
        distance = orbit_render.fitting_distance(outline, orbit)
        margin = orbit_render.MARGIN
        reach = []
        for azimuth in orbit.azimuths():
            viewmat = np.linalg.inv(orbit_camera(azimuth, elevation, distance) @ np.diag([1, -1, -1, 1]))
            seen = outline @ viewmat[:3, :3].T + viewmat[:3, 3]
            assert (seen[:, 2] > 0).all()
            reach.append(np.abs(seen[:, :2] / seen[:, 2:]).max() / math.tan(math.radians(fov) / 2))
        assert max(reach) == pytest.approx(1 - 2 * margin, abs=1e-3)
    assert orbit_render.fitting_distance(np.zeros((1, 3)), Orbit(distance=2)) == 2


def test_nothing_touches_the_border(tmp_path):
    cube = add_cube()
    cameras = render_orbit(
        bpy.context, cube, Orbit(frames=6, elevation=30), tmp_path, moving=False, frame_range=(1, 1), resolution=64
    )
    distances = np.linalg.norm(cameras.camera_to_world[:, :3, 3], axis=1)
    assert 2 < distances[0] < 2.8
    for view in range(6):
        alpha = picture(tmp_path, view)[..., 3]
        assert alpha[[0, -1]].max() == alpha[:, [0, -1]].max() == 0


def test_pictures_are_the_same_bytes_again(tmp_path):
    prism = add_mesh()
    space = measure(bpy.context, prism, (1, 1))
    cameras = orbit_cameras(Orbit(frames=2), 64, 64, moving=False)
    for name in "ab":
        render_views(space, cameras, tmp_path / name, samples=4)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.slow
def test_light_is_neutral_and_stays_in_the_world(tmp_path):
    """A grey ball is grey from all sides, neither black nor burnt, and lit from above rather than from the camera."""
    bpy.ops.mesh.primitive_uv_sphere_add(segments=32, ring_count=16)
    ball = bpy.context.object
    material = bpy.data.materials.new("Grey")
    material.use_nodes = True
    shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Base Color"].default_value = (0.5, 0.5, 0.5, 1)
    shader.inputs["Roughness"].default_value = 1.0
    ball.data.materials.append(material)
    orbit = Orbit(frames=6, closed=False)
    render_orbit(bpy.context, ball, orbit, tmp_path, moving=False, frame_range=(1, 1), resolution=64, samples=16)
    for view in range(6):
        rgba = picture(tmp_path, view)
        solid = rgba[..., 3] == 1
        assert np.ptp(rgba[solid][:, :3], axis=1).max() < 0.02
        assert 0.3 < rgba[solid][:, 0].min() < rgba[solid][:, 0].max() < 0.9
        top, bottom = rgba[:32][solid[:32]], rgba[32:][solid[32:]]
        assert top[:, 0].mean() > bottom[:, 0].mean() + 0.05


def test_alpha_is_straight(tmp_path):
    """At the silhouette, colour is that of the object, not darkened by the transparent background."""
    cube = add_cube()
    material = bpy.data.materials.new("Glow")
    material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    glow, output = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
    glow.inputs["Color"].default_value = (0.5, 0.1, 0.02, 1)
    material.node_tree.links.new(glow.outputs[0], output.inputs[0])
    cube.data.materials.append(material)
    orbit = Orbit(frames=1, azimuth_start=20)
    options = {"moving": False, "frame_range": (1, 1), "resolution": 64, "samples": 64}
    render_orbit(bpy.context, cube, orbit, tmp_path, **options)
    rgba = picture(tmp_path, 0)
    linear = np.array([0.5, 0.1, 0.02])
    coded = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    edge = (rgba[..., 3] > 0.2) & (rgba[..., 3] < 0.8)
    assert edge.sum() > 20
    np.testing.assert_allclose(rgba[edge][:, :3], np.broadcast_to(coded, (edge.sum(), 3)), atol=0.03)
    np.testing.assert_allclose(rgba[rgba[..., 3] == 1][:, :3].mean(axis=0), coded, atol=0.005)


@pytest.mark.slow
def test_eevee_sees_the_same(tmp_path):
    """Shape to the pixel, light about the same: a capture in the window must not differ from one in background."""
    prism = add_mesh()
    space = measure(bpy.context, prism, (1, 1))
    cameras = orbit_cameras(Orbit(frames=2, closed=False, elevation=15), 64, 64, moving=False)
    for engine in stage.ENGINES:
        render_views(space, cameras, tmp_path / engine, engine=engine, samples=16)
    for view in range(2):
        cycles, eevee = (picture(tmp_path / engine, view) for engine in stage.ENGINES)
        np.testing.assert_allclose(silhouette(cycles[..., 3]), silhouette(eevee[..., 3]), atol=1)
        solid = (cycles[..., 3] == 1) & (eevee[..., 3] == 1)
        assert np.abs(cycles[solid] - eevee[solid]).mean() < 0.08


# --- subjects --------------------------------------------------------------------------------------------------------


def assert_size(obj, size, frame=1, centre=None):
    """The evaluated subject has this bounding box, to 1 %."""
    space = measure(bpy.context, obj, (frame, frame))
    np.testing.assert_allclose(np.ptp(space.outline, axis=0) * space.scale, size, rtol=0.01, atol=1e-4)
    if centre is not None:
        np.testing.assert_allclose(space.to_world[:3, 3], centre, atol=1e-3)
    return space


def test_armature_with_children(tmp_path):
    armature = bpy.data.armatures.new("Rig")
    rig = add_object("Rig", armature)
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    bone = armature.edit_bones.new("Bone")
    bone.head, bone.tail = (0, 0, 0), (0, 0, 1)
    bpy.ops.object.mode_set(mode="OBJECT")
    cube = add_cube(size=1)
    cube.parent = rig
    cube.vertex_groups.new(name="Bone").add(range(8), 1.0, "REPLACE")
    cube.modifiers.new("Armature", "ARMATURE").object = rig
    pose = rig.pose.bones["Bone"]
    pose.rotation_mode = "XYZ"
    keyframe(pose, "location", {1: (0, 0, 0), 11: (2, 0, 0)})
    lamp = add_object("Lamp", bpy.data.lights.new("Lamp", "POINT"))
    lamp.parent, lamp.location = rig, (50, 0, 0)
    update()
    assert [obj.name for obj in subject.find_subject(bpy.context, rig).objects()] == ["Rig", "Cube"]
    assert measure(bpy.context, rig, (1, 11)).moves
    space = measure(bpy.context, rig, (1, 11), frames=11)
    np.testing.assert_allclose(np.ptp(space.outline, axis=0) * space.scale, (1, 1, 1), atol=1e-4)
    np.testing.assert_allclose(space.travel[-1], (2, 0, 0), atol=1e-4)
    assert space.motion * space.scale == pytest.approx(2, abs=1e-4)
    # The mesh alone moves with its armature, which is not part of the subject then.
    assert measure(bpy.context, cube, (1, 11), frames=11).motion == pytest.approx(2, abs=1e-4)


def test_collection_instance(tmp_path):
    inside = bpy.data.collections.new("Inside")  # not in the scene
    cube = add_cube(size=2, link=False)
    inside.objects.link(cube)
    other = add_cube("Other", size=1, link=False)
    other.location = (3, 0, 0)
    inside.objects.link(other)
    instance = add_object("Instance")
    instance.instance_type, instance.instance_collection = "COLLECTION", inside
    instance.location = (0, 0, 7)
    update()
    assert_size(instance, (4.5, 2, 2), centre=(1.25, 0, 7))
    render_orbit(
        bpy.context, instance, Orbit(frames=1), tmp_path, moving=False, frame_range=(1, 1), resolution=64, samples=4
    )
    assert picture(tmp_path, 0)[..., 3].mean() > 0.05


def test_text_curve_and_metaball():
    text = bpy.data.curves.new("Text", "FONT")
    text.body, text.extrude = "Kinesplat", 0.1
    space = measure(bpy.context, add_object("Text", text), (1, 1))
    assert np.ptp(space.outline, axis=0)[2] * space.scale == pytest.approx(0.2, abs=1e-3)
    assert len(sample_surface(space, 100).points) == 100

    curve = bpy.data.curves.new("Curve", "CURVE")
    curve.dimensions, curve.bevel_depth = "3D", 0.25
    spline = curve.splines.new("POLY")
    spline.points.add(1)
    spline.points[1].co = (4, 0, 0, 1)
    assert_size(add_object("Curve", curve), (4, 0.5, 0.5))

    ball = add_object("Ball", bpy.data.metaballs.new("Ball"))
    ball.data.elements.new()
    update()
    assert measure(bpy.context, ball, (1, 1)).scale > 0.5


def test_modifiers_as_rendered():
    """Levels and switches of rendering count, not those of the viewport."""
    cube = add_cube(size=1)
    array = cube.modifiers.new("Array", "ARRAY")
    array.count, array.show_viewport = 3, False
    hidden = cube.modifiers.new("Only in the viewport", "ARRAY")
    hidden.count, hidden.show_render = 5, False
    assert_size(cube, (3, 1, 1))


def test_hidden_helpers_are_evaluated_but_not_seen():
    """A cutter that is not even in the scene, a parent and a constraint target that are hidden."""
    cube = add_cube(size=2)
    cutter = add_cube("Cutter", size=2, link=False)
    cutter.location = (1.5, 0, 0)
    boolean = cube.modifiers.new("Cut", "BOOLEAN")
    boolean.object, boolean.operation = cutter, "DIFFERENCE"
    target = add_cube("Target", size=9)
    target.hide_set(True)
    target.hide_render = True
    keyframe(target, "location", {1: (0, 0, 0), 11: (0, 0, 10)})
    cube.constraints.new("COPY_LOCATION").target = target
    update()
    cutter_follows = cutter.constraints.new("COPY_LOCATION")
    cutter_follows.target, cutter_follows.use_offset = target, True
    assert_size(cube, (1.5, 2, 2), frame=6, centre=(-0.25, 0, 5))


def test_what_comes_and_goes_belongs_to_the_subject_wherever_the_timeline_stands():
    cube, hat = add_cube(), add_cube("Hat")
    hat.parent = cube
    keyframe(hat, "location", {1: (3, 0, 0)})
    keyframe(hat, "hide_render", {1: False, 10: True})
    for frame in (1, 12):
        bpy.context.scene.frame_set(frame)
        assert hat.hide_render == (frame == 12)
        space = measure(bpy.context, cube, (1, 20), frames=2)
        assert space.scale == pytest.approx(4)
        bpy.context.scene.frame_set(13 - frame)  # as the user plays the timeline meanwhile
        assert set(space.subject.objects()) == {cube, hat}
    assert_size(cube, (1, 1, 1), frame=12)


def test_geometry_nodes_with_object_and_collection():
    tree = bpy.data.node_groups.new("Instances", "GeometryNodeTree")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    info, output = tree.nodes.new("GeometryNodeObjectInfo"), tree.nodes.new("NodeGroupOutput")
    info.inputs["As Instance"].default_value = True
    source = add_cube("Source", size=3, link=False)
    info.inputs["Object"].default_value = source
    tree.links.new(info.outputs["Geometry"], output.inputs[0])
    carrier = add_object("Carrier", bpy.data.meshes.new("Empty mesh"))
    carrier.modifiers.new("Nodes", "NODES").node_group = tree
    assert_size(carrier, (3, 3, 3))


def test_drivers_and_shape_keys():
    cube = add_cube(size=1)
    cube.driver_add("location", 1).driver.expression = "frame * 2"
    helper = add_object("Helper")
    keyframe(helper, "location", {1: (0, 0, 0), 11: (10, 0, 0)})
    driver = cube.driver_add("location", 0).driver
    variable = driver.variables.new()
    variable.type, variable.targets[0].id = "TRANSFORMS", helper
    variable.targets[0].transform_type = "LOC_X"
    driver.expression = variable.name
    helper.animation_data.action.layers[0].strips[0].channelbags[0].fcurves[0].keyframe_points[
        0
    ].interpolation = "LINEAR"
    bpy.context.scene["size"] = 3.0
    grow = cube.driver_add("scale", 2).driver
    variable = grow.variables.new()
    variable.type, variable.targets[0].data_path = "CONTEXT_PROP", '["size"]'
    grow.expression = variable.name
    cube.shape_key_add(name="Basis")
    key = cube.shape_key_add(name="Wide")
    for point in key.data:
        point.co.y *= 2
    for frame, value in {1: 0, 11: 1}.items():
        key.value = value
        key.keyframe_insert("value", frame=frame)
    assert_size(cube, (1, 2, 3), frame=11, centre=(10, 22, 0))
    assert_size(cube, (1, 1, 3), frame=1, centre=(0, 2, 0))


def test_linked_and_overridden_objects(tmp_path):
    add_cube("Library cube", size=2)
    path = str(tmp_path / "library.blend")
    bpy.data.libraries.write(path, {bpy.data.objects["Library cube"]})
    fresh_file()
    with bpy.data.libraries.load(path, link=True) as (_, wanted):
        wanted.objects = ["Library cube"]
    bpy.context.collection.objects.link(wanted.objects[0])
    update()
    assert_size(wanted.objects[0], (2, 2, 2))


def test_edit_mode_shows_what_is_being_edited():
    cube = add_cube(size=1)
    bpy.context.view_layer.objects.active = cube
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.transform.resize(value=(2, 2, 2))
    assert_size(cube, (2, 2, 2))
    assert cube.mode == "EDIT"


# --- refusals --------------------------------------------------------------------------------------------------------


def refuse_none():
    return None


def refuse_no_surface():
    return add_object("Empty")


def refuse_no_faces():
    return add_mesh("Points", PRISM, [])


def refuse_hidden():
    cube = add_cube()
    cube.hide_set(True)
    return cube


def refuse_hidden_in_render():
    cube = add_cube()
    cube.hide_render = True
    return cube


def refuse_unseen():
    cube = add_cube()
    cube.visible_camera = False
    return cube


def refuse_shadow_catcher():
    cube = add_cube()
    cube.is_shadow_catcher = True
    return cube


def refuse_holdout():
    cube = add_cube()
    cube.is_holdout = True
    return cube


def refuse_what_comes_later():
    cube = add_cube()
    keyframe(cube, "hide_render", {1: True, 20: False})
    return cube


def refuse_excluded():
    cube = add_cube()
    collection = bpy.data.collections.new("Out")
    bpy.context.scene.collection.children.link(collection)
    for former in cube.users_collection:
        former.objects.unlink(cube)
    collection.objects.link(cube)
    bpy.context.view_layer.layer_collection.children["Out"].exclude = True
    return cube


def refuse_point():
    return add_mesh("Point", [(1, 1, 1)] * 3, [(0, 1, 2)])


def refuse_scale_zero():
    cube = add_cube()
    cube.scale = (1, 1, 0)
    return cube


def refuse_rigid_body():
    cube = add_cube()
    bpy.context.view_layer.objects.active = cube
    bpy.ops.rigidbody.world_add()
    bpy.ops.rigidbody.object_add()
    return cube


def refuse_cloth():
    cube = add_cube()
    cube.modifiers.new("Cloth", "CLOTH")
    return cube


def refuse_driver_on_scene():
    cube = add_cube()
    driver = cube.driver_add("location", 0).driver
    variable = driver.variables.new()
    variable.targets[0].id_type = "SCENE"
    variable.targets[0].id = bpy.context.scene
    variable.targets[0].data_path = "frame_current"
    driver.expression = variable.name
    return cube


def refuse_simulation():
    cube = add_cube()
    add_simulation(cube)
    return cube


def add_simulation(cube):
    nodes = bpy.data.node_groups.new("Grow", "GeometryNodeTree")
    for in_out in ("INPUT", "OUTPUT"):
        nodes.interface.new_socket("Geometry", in_out=in_out, socket_type="NodeSocketGeometry")
    kinds = ("NodeGroupInput", "GeometryNodeSimulationInput", "GeometryNodeSimulationOutput", "NodeGroupOutput")
    chain = [nodes.nodes.new(kind) for kind in kinds]
    chain[1].pair_with_output(chain[2])
    for before, after in pairwise(chain):
        nodes.links.new(before.outputs["Geometry"], after.inputs["Geometry"])
    cube.modifiers.new("Grow", "NODES").node_group = nodes


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (refuse_none, "No object is selected"),
        (refuse_no_surface, "Empty has no surface"),
        (refuse_no_faces, "Points has no faces from frame 1 to 10"),
        (refuse_what_comes_later, "Cube has no faces from frame 1 to 10. .*: choose a frame at which it has some"),
        (refuse_hidden, "Cube is hidden. Show it"),
        (refuse_hidden_in_render, "Cube is hidden in renders"),
        (refuse_unseen, "Cube is not seen by cameras. .* > Ray Visibility > Camera"),
        (refuse_shadow_catcher, "Cube is not seen by cameras. .* > Mask > Shadow Catcher"),
        (refuse_holdout, "Cube is not seen by cameras. .* > Mask > Holdout"),
        (refuse_excluded, "Cube is not in this scene's view layer"),
        (refuse_point, "Point has no size from frame 1 to 10"),
        (refuse_scale_zero, "Cube has a scale of 0"),
        (refuse_rigid_body, "Cube moves by rigid body physics"),
        (refuse_cloth, "Cloth physics of Cube is not baked"),
        (refuse_simulation, "Cube does not move in renders, although its nodes simulate"),
        (refuse_driver_on_scene, "A driver of Cube follows the scene's frame_current"),
    ],
)
def test_refusals(make, sentence):
    obj = make()
    update()
    before = snapshot()
    with pytest.raises(CaptureError, match=sentence):
        measure(bpy.context, obj, (1, 10))
    assert snapshot() == before


def test_no_motion_is_refused_with_a_sentence(tmp_path):
    cube = add_cube()
    keyframe(cube, "location", {50: (0, 0, 0), 60: (1, 0, 0)})
    assert not measure(bpy.context, cube, (1, 20)).moves
    assert measure(bpy.context, cube, (50, 60)).moves
    with pytest.raises(CaptureError, match="Cube does not move between frame 1 and 20"):
        capture(bpy.context, cube, Orbit(frames=8), tmp_path, frame_range=(1, 20))
    with pytest.raises(CaptureError, match="ends at 1, before it starts at 20"):
        measure(bpy.context, cube, (20, 1))


def test_geometry_is_read_without_cycles():
    """Which may be switched off: then EEVEE renders the pictures."""
    cube = add_cube(size=2)
    addon_utils.disable("cycles")
    try:
        space = measure(bpy.context, cube, (1, 1))
        assert len(sample_surface(space, 100).points) == 100
    finally:
        addon_utils.enable("cycles")
    assert space.scale == pytest.approx(2)


def test_a_mesh_that_is_rebuilt_moves():
    cube = add_cube()
    build = cube.modifiers.new("Build", "BUILD")
    build.frame_start, build.frame_duration = 1, 10
    assert measure(bpy.context, cube, (5, 11)).motion == np.inf


# --- surface ---------------------------------------------------------------------------------------------------------


def test_surface_samples_lie_evenly_on_the_surface():
    cube = add_cube(size=2)
    keyframe(cube, "scale", {1: (3, 1, 1), 10: (1, 1, 1)})
    cube.rotation_euler = (0, 0, math.radians(90))
    space = measure(bpy.context, cube, (1, 10))
    samples = sample_surface(space, 4_000, seed=3)
    check_surface_samples(samples)
    half = np.array([1, 3, 1]) / 6
    on_face = np.isclose(np.abs(samples.points), half, atol=1e-5)
    assert on_face.any(axis=1).all()
    assert (np.sum(samples.points * samples.normals, axis=1) > 0.1).all()  # outward
    shares = [(np.abs(samples.normals[:, axis]) > 0.9).mean() for axis in range(3)]
    np.testing.assert_allclose(shares, np.array([12, 4, 12]) / 28, atol=0.002)
    again = sample_surface(space, 4_000, seed=3)
    np.testing.assert_array_equal(samples.points, again.points)
    assert not np.array_equal(samples.points, sample_surface(space, 4_000, seed=4).points)


def test_points_of_the_surface_are_followed():
    """Parent, child and a modifier; quads, whose halves Blender chooses anew as they bend."""
    cube = add_cube("Body", size=2)
    keyframe(cube, "rotation_euler", {1: (0, 0, 0), 9: (0, 0, math.pi)})
    child = add_cube("Child", size=1)
    child.parent, child.location = cube, (2, 0, 0)
    child.modifiers.new("Round", "SUBSURF")
    space = measure(bpy.context, cube, (1, 9))
    samples = sample_surface(space, 500, times=9)
    check_surface_samples(samples)
    angles = []
    for frame in range(1, 10):
        bpy.context.scene.frame_set(frame)
        angles.append(cube.rotation_euler.z)
    assert angles[-1] == pytest.approx(math.pi)
    about = (np.linalg.inv(space.to_world) @ [0, 0, 0, 1])[:2]  # clip space
    c, s = np.cos(angles), np.sin(angles)
    turned = (
        np.einsum("tij,nj->tni", np.stack([c, -s, s, c], 1).reshape(-1, 2, 2), samples.points[:, :2] - about) + about
    )
    moved = samples.points + samples.movement
    np.testing.assert_allclose(moved[..., :2], turned, atol=1e-5)
    np.testing.assert_allclose(moved[..., 2], samples.points[None, :, 2] + np.zeros((9, 1)), atol=1e-6)
    np.testing.assert_array_equal(samples.points, sample_surface(space, 500).points)
    assert sample_surface(space, 500).movement is None


@pytest.mark.parametrize("rebuilt", ["build", "boolean", "particles"])
def test_a_mesh_that_is_rebuilt_comes_in_pieces(rebuilt):
    """Also where there are as many vertices and faces as before, but others."""
    body = add_cube("Body", size=2)
    other = add_cube("Other", size=0.7)
    if rebuilt == "build":
        build = body.modifiers.new("Build", "BUILD")
        build.frame_start, build.frame_duration = 1, 10
    elif rebuilt == "boolean":
        other.hide_render = True
        body.modifiers.new("Cut", "BOOLEAN").object = other
        keyframe(other, "location", {1: (0.6, 0.1, 0.95), 9: (-0.6, -0.1, 0.95)})
    else:  # some die as others are born
        emitted = body.modifiers.new("Emit", "PARTICLE_SYSTEM").particle_system.settings
        emitted.count, emitted.frame_start, emitted.frame_end, emitted.lifetime = 50, -40, 60, 10
        emitted.render_type, emitted.instance_object = "OBJECT", other
    space = measure(bpy.context, body, (3, 9), frames=3)
    assert space.changes
    assert space.motion == np.inf
    samples = sample_surface(space, 400, times=3)
    check_surface_samples(samples)
    assert samples.movement is None
    assert len(samples.pieces.spans) > 1
    assert 300 < len(samples.points) < 500
    if rebuilt == "boolean":  # the same body at all times, each time with other faces
        assert samples.pieces.spans[:, :3].tolist() == [[0, 0, 1], [0, 1, 1], [0, 2, 1]]
    if rebuilt == "particles":  # the body keeps its faces
        assert samples.pieces.spans[samples.pieces.spans[:, 2] == 3].shape[0] >= 1
    np.testing.assert_array_equal(samples.pieces.points, sample_surface(space, 400, times=3).pieces.points)


def test_what_grows_is_as_dense_in_the_end_and_followed():
    plate, ball = add_cube("Plate", size=2), add_cube("Ball", size=1)
    plate.scale.z = 0.1
    ball.parent = plate
    keyframe(ball, "scale", {1: (0, 0, 0), 9: (1, 1, 10)})
    keyframe(ball, "location", {1: (0, 0, 0), 9: (0, 0, 20)})
    space = measure(bpy.context, plate, (1, 9), frames=5)
    assert space.changes
    assert space.fullest == 1
    samples = sample_surface(space, 1_000, times=5)
    check_surface_samples(samples)
    grown = samples.pieces.piece(1)[2]
    assert not grown[0].any()
    np.testing.assert_allclose(grown[-1], 1, atol=1e-5)
    np.testing.assert_allclose(grown[2], grown[2, 0], atol=1e-4)
    counts = samples.pieces.spans[:, 3]
    areas = np.array([2 * 4 + 4 * 2 * 0.2, 6.0])
    np.testing.assert_allclose(counts / counts.sum(), areas / areas.sum(), atol=0.01)


def test_what_is_hidden_for_a_time_is_the_same_when_it_comes_back():
    cube = add_cube("Cube")
    keyframe(cube, "hide_render", {1: False, 2: True, 3: False})
    keyframe(cube, "location", {1: (0, 0, 0), 3: (1, 0, 0)})
    pieces = sample_surface(measure(bpy.context, cube, (1, 3), frames=3), 100, times=3).pieces
    assert pieces.spans.tolist() == [[0, 0, 3, 100]]
    assert pieces.piece(0)[2].any(axis=1).tolist() == [True, False, True]


def test_what_is_hidden_waits_where_it_comes_back():
    """So that what comes back elsewhere is not seen on its way there. Where it is alone, clip space waits as well."""
    cube, stays = add_cube("Cube"), add_cube("Stays")
    keyframe(cube, "hide_render", {1: False, 2: True, 5: False})
    keyframe(cube, "location", {1: (0, 0, 0), 5: (8, 0, 0)})
    alone = measure(bpy.context, cube, (1, 5), frames=5)
    np.testing.assert_allclose(alone.travel[:, 0], [0, 0, 0, 8, 8])
    parent = bpy.data.objects.new("Both", None)
    bpy.context.scene.collection.objects.link(parent)
    cube.parent = stays.parent = parent
    update()
    both = measure(bpy.context, parent, (1, 5), frames=5)
    pieces = sample_surface(both, 200, times=5).pieces
    points, _, sizes = pieces.piece(0)
    assert sizes.any(axis=1).tolist() == [True, False, False, False, True]
    shift = np.linalg.norm(points - points[0], axis=-1).mean(axis=1)
    np.testing.assert_allclose(shift, [0, 0, 0, shift[4], shift[4]])
    assert shift[4] > 0.5


def test_what_is_flat_for_a_time_is_there():
    cube = add_cube("Cube", size=1)
    keyframe(cube, "scale", {1: (1, 1, 0), 3: (1, 1, 1)})
    space = measure(bpy.context, cube, (1, 3), frames=3)
    np.testing.assert_allclose(space.areas[0], 2, rtol=1e-5)  # both its sides


def test_what_comes_later_is_captured(tmp_path):
    """From where all of it is there it is shown from all sides; its pieces tell when it came."""
    cube, other = add_cube("Cube"), add_cube("Other")
    other.parent, other.location = cube, (0, 0, 3)
    for obj, frame in ((cube, 3), (other, 7)):
        keyframe(obj, "hide_render", {1: True, frame: False})
    captured = capture(
        bpy.context, cube, Orbit(frames=5), tmp_path, frame_range=(1, 9), resolution=16, samples=1, engine="CYCLES"
    )
    assert captured.space.fullest == 0.75
    times = read_orbit_json(tmp_path / "static").times
    np.testing.assert_array_equal(captured.static.times, times)
    assert len(times) == 5 + FURTHER_VIEWS
    assert (times[: 3 + FURTHER_VIEWS] == 0.75).all()
    assert (times[3 + FURTHER_VIEWS :] == 0.25).all()  # from above, when something was there for the first time
    pieces = read_surface_samples(captured.surface).pieces
    assert pieces.spans[:, :3].tolist() == [[0, 1, 4], [1, 3, 2]]


def test_what_has_no_size_yet_stands_where_it_will_grow():
    cube = add_cube(size=2)
    cube.location = (5, 0, 0)
    keyframe(cube, "scale", {1: (0, 0, 0), 9: (1, 1, 1)})
    space = measure(bpy.context, cube, (1, 9), frames=5)
    assert space.changes
    place = space.to_world @ np.linalg.inv(space.to_object)  # of the result in the scene
    np.testing.assert_allclose(place, [[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-6)
    with pytest.raises(CaptureError, match="no surface at the first frame"):  # a motion is invented for what is there
        sample_surface(space, 10)


def test_hair_is_framed_and_followed():
    """Of both kinds: hair curves that are a child of the head, and a particle system."""
    ball = add_cube("Ball", size=2)
    keyframe(ball, "rotation_euler", {1: (0, 0, 0), 5: (0, 0, math.pi / 2)})
    curves = bpy.data.hair_curves.new("Tuft")
    curves.add_curves([3, 2])
    points = [(1, 0, 0), (2, 0, 0), (4, 0, 0), (1, 0.5, 0), (3, 0.5, 0)]
    curves.attributes["position"].data.foreach_set("vector", np.ravel(points).astype(np.float32))
    tuft = add_object("Tuft", curves)
    tuft.parent = ball
    space = measure(bpy.context, ball, (1, 5), frames=3)
    samples = sample_surface(space, 2_000, times=3)
    check_surface_samples(samples)
    first, last = (space.to_world[:3, 3] + space.scale * (samples.points + samples.movement[t]) for t in (0, 2))
    on_tuft = first[:, 0] > 1.01
    assert on_tuft.any()
    assert first[:, 0].max() > 3
    assert (space.outline * space.scale + space.to_world[:3, 3]).max() == pytest.approx(4, abs=0.05)
    np.testing.assert_allclose(last[on_tuft], first[on_tuft] @ [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-4)

    bpy.data.objects.remove(tuft)
    settings = ball.modifiers.new("Fur", "PARTICLE_SYSTEM").particle_system.settings
    settings.type, settings.count, settings.hair_length = "HAIR", 50, 3.0
    ball.animation_data_clear()
    ball.rotation_euler = (0, 0, 0)
    space = measure(bpy.context, ball, (1, 1))
    assert np.ptp(space.outline, axis=0).max() * space.scale == pytest.approx(8, abs=0.5)
    alone = add_object("Alone", curves)
    update()
    assert measure(bpy.context, alone, (1, 1)).scale == pytest.approx(3, abs=0.05)


def test_a_curve_is_sampled_once():
    """Blender shows it twice: as what it is, and as the mesh that comes of it."""
    curve = bpy.data.curves.new("Curve", "CURVE")
    spline = curve.splines.new("POLY")
    spline.points.add(2)
    for point, x in zip(spline.points, (0, 1, 2), strict=True):
        point.co = (x, 0, 0, 1)
    curve.dimensions, curve.bevel_depth = "3D", 0.2
    obj = add_object("Vine", curve)
    for frame, end in ((1, 0.3), (9, 1.0)):
        curve.bevel_factor_end = end
        curve.keyframe_insert("bevel_factor_end", frame=frame)
    space = measure(bpy.context, obj, (1, 9), frames=3)
    pieces = sample_surface(space, 300, times=3).pieces
    assert pieces.spans[:, :3].tolist() == [[0, 0, 1], [0, 1, 2]]  # one part of it, then two
    assert pieces.spans[1, 3] == pytest.approx(300, rel=0.05)


def test_normals_of_mirrored_objects_and_instances_point_outward():
    bpy.ops.mesh.primitive_uv_sphere_add()
    ball = bpy.context.object
    ball.scale = (-1, 1.5, 1)
    samples = sample_surface(measure(bpy.context, ball, (1, 1)), 500)
    assert (np.sum(samples.points * samples.normals, axis=1) > 0).all()


def test_a_subject_that_is_moved_during_its_capture_is_refused(tmp_path):
    """Else its pictures would show it in two places, and the backend would tell it in words of its own."""
    cube = add_cube("Hero")
    keyframe(cube, "rotation_euler", {1: (0, 0, 0), 9: (0, 0, 1)})
    settings = {"frame_range": (1, 9), "resolution": 32, "samples": 1, "static": False}
    steps = capture_steps(bpy.context, cube, Orbit(frames=3), tmp_path, **settings)
    while next(steps).stage != "moving":
        pass
    cube.location.x += 0.1
    with pytest.raises(CaptureError, match=r"^Hero was moved or changed .* Generate again"):
        list(steps)


def test_a_subject_that_comes_and_goes_is_refused_when_it_was_moved():
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    for frame, shown in ((1, True), (5, False), (9, True)):
        cube.hide_render = not shown
        cube.keyframe_insert("hide_render", frame=frame)
    space = measure(bpy.context, cube, (1, 9), frames=3)
    assert sample_surface(space, 50, times=3).pieces is not None
    cube.location.z -= 1
    with pytest.raises(CaptureError, match="was moved or changed"):
        sample_surface(space, 50, times=3)


# --- the user's file -------------------------------------------------------------------------------------------------


@pytest.fixture
def working_file():
    """A file in the middle of somebody's work: odd settings, selection, unkeyed pose, fractional frame."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x, scene.render.resolution_y, scene.render.film_transparent = 40, 24, False
    scene.render.filepath = "//somewhere"
    scene.cycles.samples = 3
    scene.view_settings.view_transform, scene.view_settings.exposure = "AgX", 0.5
    scene["note"] = {"deep": [1, 2, 3]}
    scene.camera = add_object("Camera", bpy.data.cameras.new("Camera"))
    cube = add_cube("Hero")
    cube.data.materials.append(bpy.data.materials.new("Skin"))
    keyframe(cube, "location", {1: (0, 0, 0), 20: (1, 2, 3)})
    cube.driver_add("scale", 2).driver.expression = "1 + frame / 10"
    child = add_cube("Child", size=0.3)
    child.parent = cube
    hidden = add_cube("Hidden")
    hidden.hide_set(True)
    scene.frame_set(7, subframe=0.25)
    cube.location = (9, 9, 9)  # moved, not keyed yet
    child.select_set(True)
    bpy.context.view_layer.objects.active = child
    update()
    return cube


def test_the_file_is_as_before(working_file, tmp_path):
    before = snapshot()
    result = capture(
        bpy.context, working_file, Orbit(frames=4), tmp_path, frame_range=(1, 20), resolution=64, samples=2
    )
    assert snapshot() == before
    assert result.fps == pytest.approx(24 * 3 / 19)
    moving, static = (read_orbit_json(tmp_path / folder) for folder in ("moving", "static"))
    assert (len(moving.times), len(static.times)) == (4, 4 + 8)
    assert static.times.max() == 0
    assert result.surface.is_file()


def test_the_users_last_render_is_kept(working_file, tmp_path):
    bpy.ops.render.render()
    image = bpy.data.images["Render Result"]
    image.save_render(str(tmp_path / "before.png"))
    render_orbit(
        bpy.context, working_file, Orbit(frames=2), tmp_path / "o", moving=False, frame_range=(1, 1), samples=1
    )
    bpy.data.images["Render Result"].save_render(str(tmp_path / "after.png"))
    before, after = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("before", "after"))
    assert before.shape == (24, 40, 4) or before.shape == (24, 40, 3)
    np.testing.assert_array_equal(before, after)


LEFT_BEHIND = """
import bpy
from blender_addon.stage import open_stage
from blender_addon.subject import find_subject
cube = bpy.data.objects["Cube"]
with open_stage(find_subject(bpy.context, cube), width=8, height=8, engine="CYCLES", samples=1) as stage:
    bpy.ops.render.render(scene=stage._scene.name)
taken = [b"SC" * half for half in range(2500, 5000, 4) for _ in range(12)]  # the memory of a scene, with no scene in it
bpy.context.scene.collection.objects.link(bpy.data.objects.new("New", None))
print("alive")
"""


def test_blender_survives_what_comes_after_a_capture():
    """Blender may not keep anything that points to the scene of the stage, which is gone: it crashed at random."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "alive" in done.stdout


def test_the_file_is_as_before_after_cancelling(working_file, tmp_path, monkeypatch):
    monkeypatch.setattr(capture_progress, "STEP_SECONDS", 0)  # a step per frame, however fast they are
    before = snapshot()
    steps = capture_steps(
        bpy.context, working_file, Orbit(frames=30), tmp_path, frame_range=(1, 20), resolution=64, samples=2
    )
    assert next(progress for progress in steps if progress.stage == "moving").done < 30
    steps.close()
    assert snapshot() == before
    assert not list((tmp_path / "moving").iterdir())


def test_the_file_is_as_before_after_errors(working_file, tmp_path, monkeypatch):
    before = snapshot()
    settings = {"moving": True, "frame_range": (1, 20), "resolution": 64, "samples": 1}

    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(CaptureError, match="cannot be written"):
        render_orbit(bpy.context, working_file, Orbit(frames=3), blocked, **settings)
    assert snapshot() == before

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(orbit_render, "write_orbit_json", full)
        with pytest.raises(CaptureError, match="No space left on device"):
            render_orbit(bpy.context, working_file, Orbit(frames=3), tmp_path / "full", **settings)
    assert not list((tmp_path / "full").iterdir())
    assert snapshot() == before

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_read_geometry", full)
        with pytest.raises(OSError, match="No space left"):
            render_orbit(bpy.context, working_file, Orbit(frames=3), tmp_path / "probe", **settings)
    assert snapshot() == before

    with pytest.raises(ValueError, match="engine"):
        render_orbit(bpy.context, working_file, Orbit(frames=3), tmp_path, engine="POVRAY", **settings)
    assert snapshot() == before


def test_a_folder_that_cannot_be_written(working_file, tmp_path):
    """Blender's own file error becomes a sentence: here a folder stands where a picture should go."""
    before = snapshot()
    (tmp_path / "frame_001.png").mkdir()
    with pytest.raises(CaptureError):
        render_orbit(bpy.context, working_file, Orbit(frames=3), tmp_path, moving=False, frame_range=(1, 1), samples=1)
    assert snapshot() == before


def test_a_folder_of_any_name(working_file, tmp_path):
    """Blender takes braces in an output path for a template, and # for the frame's number."""
    folder = tmp_path / "a {b} ##_%d é"
    render_orbit(bpy.context, working_file, Orbit(frames=2), folder, moving=False, frame_range=(1, 1), samples=1)
    assert sorted(path.name for path in folder.glob("*.png")) == [frame_name(k) for k in range(2 + FURTHER_VIEWS)]


def test_between_two_steps_the_user_may_do_anything(working_file, tmp_path):
    before = snapshot()
    steps = capture_steps(
        bpy.context, working_file, Orbit(frames=60), tmp_path, frame_range=(1, 20), resolution=64, samples=4
    )
    for progress in steps:
        if progress.stage == "moving":
            break
    assert snapshot() == before

    bpy.ops.ed.undo_push(message="Before")
    bpy.context.scene.frame_set(3)
    bpy.ops.ed.undo_push(message="After")
    bpy.ops.ed.undo()
    assert next(steps).stage == "moving"

    fresh_file()
    with pytest.raises(SubjectError, match="Hero is not in the scene any more"):
        next(steps)
    assert not list((tmp_path / "moving").iterdir())
    assert [scene.name for scene in bpy.data.scenes] == ["Scene"]


def test_steps_wait_while_blender_renders(working_file, tmp_path, monkeypatch):
    space = measure(bpy.context, working_file, (1, 20))
    monkeypatch.setattr(capture_progress, "is_rendering", lambda: True)
    steps = orbit_render.render_orbit_steps(space, Orbit(frames=2), tmp_path, moving=True, resolution=64, samples=1)
    assert [next(steps).stage for _ in range(3)] == ["waiting"] * 3
    with pytest.raises(CaptureError, match="Blender is rendering"):
        render_orbit(bpy.context, working_file, Orbit(frames=2), tmp_path, moving=True, frame_range=(1, 20))
    monkeypatch.setattr(capture_progress, "is_rendering", lambda: False)
    assert next(steps).stage == "moving"


def test_the_bundled_fox(tmp_path, pytestconfig):
    bpy.ops.import_scene.gltf(filepath=str(pytestconfig.rootpath / "examples" / "fox.glb"))
    rig = next(obj for obj in bpy.data.objects if obj.type == "ARMATURE")
    action = bpy.data.actions["Walk"]
    rig.animation_data.action, rig.animation_data.action_slot = action, action.slots[0]
    for track in rig.animation_data.nla_tracks:
        track.mute = True
    result = capture(
        bpy.context, rig, Orbit(frames=6), tmp_path, frame_range=tuple(action.frame_range), resolution=64, samples=4
    )
    assert 0.1 < result.space.motion < 0.5
    first, last = picture(tmp_path / "moving", 0), picture(tmp_path / "moving", 5)
    side = picture(tmp_path / "moving", 1)
    assert 0.02 < side[..., 3].mean() < 0.3
    orange = side[side[..., 3] == 1][:, :3].mean(axis=0)
    assert orange[0] > orange[1] > orange[2] + 0.1
    assert np.abs(first - last).mean() < 0.01  # a loop, seen from the same place
    moving, static = picture(tmp_path / "moving", 2), picture(tmp_path / "static", 2)
    assert np.abs(moving - static).mean() > 0.005
