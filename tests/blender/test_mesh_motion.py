# SPDX-License-Identifier: GPL-3.0-or-later
"""A mesh takes over the motion of Gaussians that lie on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from mathutils import Matrix  # noqa: E402

from blender_addon import mesh_motion, node_groups, point_cloud, retime, splat_object, subject, versions  # noqa: E402
from blender_addon.contract import rotations  # noqa: E402
from blender_addon.contract.clip import Clip, FrameMotion  # noqa: E402
from tests.blender.clips import show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender

FRAMES = 5
ANGLE = 0.9  # radians by which the rod is bent at the end


def bent(points: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] of a rod along X, -0.5..0.5, bent upwards into an arc, and the angles [N] by which they turned."""
    x = points[:, 0] + 0.5
    curve = max(ANGLE * share, 1e-6)
    angle = curve * x
    on_arc = np.stack([np.sin(angle) / curve, 0 * x, (1 - np.cos(angle)) / curve], -1)
    up = np.stack([-np.sin(angle), 0 * x, np.cos(angle)], -1)
    return on_arc - [0.5, 0, 0] + points[:, 1:2] * [0, 1, 0] + points[:, 2:] * up, angle


def bending_rod(count: int = 800, seed: int = 0, **fields) -> Clip:
    """Gaussians all over a rod that bends more and more."""
    random = np.random.default_rng(seed)
    around = random.uniform(0, 2 * np.pi, count)
    start = np.stack([random.uniform(-0.5, 0.5, count), 0.08 * np.cos(around), 0.08 * np.sin(around)], -1)
    means, quats = [], []
    for t in range(FRAMES):
        place, angle = bent(start, t / (FRAMES - 1))
        means.append(place)
        quats.append(np.stack([np.cos(angle / 2), 0 * angle, -np.sin(angle / 2), 0 * angle], -1))
    single = lambda values: np.ascontiguousarray(values, np.float32)  # noqa: E731
    return Clip(
        means=single(means[0]),
        quats=single(quats[0]),
        scales=np.full((count, 3), 0.02, np.float32),
        opacities=np.full(count, 0.9, np.float32),
        sh=np.zeros((count, 1, 3), np.float32),
        motion=FrameMotion(single(means), single(rotations.make_continuous(np.stack(quats)))),
        name="Rod",
        fps=bpy.context.scene.render.fps,
        **fields,
    )


def add_rod() -> bpy.types.Object:
    """The mesh of that rod, as a cylinder along X with a material."""
    bpy.ops.mesh.primitive_cylinder_add(vertices=16, radius=0.08, depth=1.0)
    rod = bpy.context.object
    rod.name = "Rod"
    rod.data.transform(Matrix.Rotation(np.pi / 2, 4, "Y"))
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.subdivide(number_cuts=6)
    bpy.ops.object.mode_set(mode="OBJECT")
    rod.data.materials.append(bpy.data.materials.new("Wood"))
    return rod


@pytest.fixture
def scene():
    fresh_file()
    return bpy.context.scene


def vertices(obj) -> np.ndarray:
    """Where the vertices are at the current frame, in the world."""
    evaluated = obj.evaluated_get(bpy.context.evaluated_depsgraph_get())
    values = np.empty(len(evaluated.data.vertices) * 3, np.float32)
    evaluated.data.vertices.foreach_get("co", values)
    matrix = np.array(obj.matrix_world)
    return values.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]


def test_vertices_go_where_the_surface_goes(scene):
    """In a place, turn and scale of its own, between stored frames too, with a hundredth of the motion as error."""
    place = Matrix.LocRotScale((1, 2, 3), Matrix.Rotation(0.7, 3, "Z").to_quaternion(), (2, 2, 2))
    rod = add_rod()
    rest = vertices(rod)
    rod.matrix_world = place
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    for frame in (1, 3, 5):
        show(frame)
        truth, _ = bent(rest, (frame - 1) / (FRAMES - 1))
        error = (vertices(copy) - place.translation) @ np.array(place.to_3x3()) / 4 - truth  # of scale 2
        assert np.abs(error).mean() < 0.003
        assert np.abs(error).max() < 0.03
    show(2.5)  # between frames, positions are interpolated
    a, _ = bent(rest, 0.25)
    b, _ = bent(rest, 0.5)
    halfway = (vertices(copy) - place.translation) @ np.array(place.to_3x3()) / 4
    assert np.abs(halfway - (a + b) / 2).mean() < 0.003


def test_the_copy_looks_as_the_original_and_the_original_stays(scene):
    rod = add_rod()
    rod.modifiers.new("Walls", "SOLIDIFY").thickness = 0.01
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    before = vertices(rod)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    assert [slot.material.name for slot in copy.material_slots] == ["Wood"]
    assert copy.data.uv_layers.keys() == rod.data.uv_layers.keys()
    assert len(copy.data.vertices) == len(before) > len(rod.data.vertices)  # with the walls
    assert set(copy.users_collection) == set(rod.users_collection)
    show(5)
    assert np.array_equal(vertices(rod), before)
    evaluated = copy.evaluated_get(bpy.context.evaluated_depsgraph_get())
    assert not [attribute for attribute in evaluated.data.attributes if attribute.name.startswith("pos.")]


def test_retiming_one_retimes_both(scene):
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    retime.fit(splats, 1, 9)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    show(9)
    end = vertices(copy)
    retime.fit(splats, 1, 101)
    retime.set_repeat(copy, "LOOP")
    assert retime.timing(splats) == retime.timing(copy)
    show(101)
    assert np.abs(vertices(copy) - end).max() < 1e-5


def test_gaussians_in_the_middle_of_their_motion_are_bound_at_their_first_frame(scene):
    rod = add_rod()
    rest = vertices(rod)
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    show(5)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    assert np.abs(vertices(copy) - bent(rest, 1)[0]).mean() < 0.003
    show(1)
    assert np.abs(vertices(copy) - rest).max() < 1e-5


def test_deleted_gaussians_have_no_part_in_it(scene):
    """Half of the Gaussians stand still; without them the mesh goes where the others go."""
    clip, still = bending_rod(), bending_rod(seed=1)
    frames = clip.frames()
    stays = np.tile(still.means, (FRAMES, 1, 1)), np.tile(still.quats, (FRAMES, 1, 1))
    double = Clip(
        *(np.concatenate([getattr(one, name) for one in (clip, still)]) for name in ("means", "quats")),
        *(np.concatenate([getattr(one, name) for one in (clip, still)]) for name in ("scales", "opacities", "sh")),
        motion=FrameMotion(np.concatenate([frames.means, stays[0]], 1), np.concatenate([frames.quats, stays[1]], 1)),
    )
    rod = add_rod()
    rest = vertices(rod)
    splats = point_cloud.import_clip(double, scene, source=rod, start=1)
    for index, vertex in enumerate(splats.data.vertices):
        vertex.select = index >= clip.count
    rod.select_set(False)
    bpy.context.view_layer.objects.active = splats
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    show(scene.frame_current + FRAMES - 1)
    assert np.abs(vertices(copy) - bent(rest, 1)[0]).mean() < 0.003


def coming(clip: Clip, sizes, gone) -> Clip:
    """The clip, so many times as large at each frame [T], without the Gaussians `gone` [T, N]."""
    old, sizes = clip.motion, np.array(sizes, np.float32)[:, None, None]
    scales = np.repeat(clip.scales[None], FRAMES, axis=0) * sizes
    opacities = np.where(gone, 0, clip.opacities).astype(np.float32)
    motion = FrameMotion(old.frame_means * sizes, old.frame_quats, scales, opacities)
    return replace(clip, means=motion.frame_means[0], scales=scales[0], opacities=opacities[0], motion=motion)


def test_what_grows_from_nothing_takes_the_mesh_along(scene):
    """Also while nothing is there; not at a frame at which nothing is there yet."""
    rod = add_rod()
    rest, sizes = vertices(rod), [0.02, 0.25, 0.5, 0.75, 1]
    clip = coming(bending_rod(), sizes, np.arange(FRAMES)[:, None] == 0)
    splats = point_cloud.import_clip(clip, scene, source=rod, start=1)
    with pytest.raises(mesh_motion.MeshMotionError, match="0 % of the Gaussians are there at this frame"):
        mesh_motion.moving_copies(splats, [rod], bpy.context)
    bent_mesh(rod, bent(rest, 1)[0])
    show(5)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    for t, size in enumerate(sizes):
        show(t + 1)
        error = np.abs(vertices(copy) - size * bent(rest, t / (FRAMES - 1))[0])
        assert error.max() < 0.03 * size, t


def bent_mesh(rod, places: np.ndarray) -> None:
    rod.data.vertices.foreach_set("co", places.astype(np.float32).ravel())
    rod.data.update()


def test_gaussians_that_are_gone_leave_the_lead_to_others(scene):
    """Each second one waits far off while it is not there, and before it comes."""
    rod = add_rod()
    rest, clip = vertices(rod), bending_rod()
    gone = np.zeros((FRAMES, clip.count), bool)
    gone[2:, ::4], gone[:2, 1::4] = True, True
    clip = coming(clip, np.ones(FRAMES), gone)
    clip.motion.frame_means[gone] = 3
    splats = point_cloud.import_clip(clip, scene, source=rod, start=1)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    show(5)
    assert np.abs(vertices(copy) - bent(rest, 1)[0]).mean() < 0.005


def test_what_is_gone_while_the_mesh_stays_is_refused(scene):
    rod = add_rod()
    clip = bending_rod()
    gone = np.zeros((FRAMES, clip.count), bool)
    gone[3] = clip.means[:, 0] > 0
    splats = point_cloud.import_clip(coming(clip, np.ones(FRAMES), gone), scene, source=rod, start=1)
    blocks = len(bpy.data.objects), len(bpy.data.meshes)
    with pytest.raises(mesh_motion.MeshMotionError, match=r"\d\d % of Rod has no Gaussians at stored frame 3"):
        mesh_motion.moving_copies(splats, [rod], bpy.context)
    rod.scale = (0, 0, 0)
    bpy.context.view_layer.update()
    with pytest.raises(mesh_motion.MeshMotionError, match="Rod has no size at this frame"):
        mesh_motion.moving_copies(splats, [rod], bpy.context)
    assert (len(bpy.data.objects), len(bpy.data.meshes)) == blocks


@pytest.mark.parametrize("repeat", retime.REPEATS)
def test_shape_keys_move_it_in_the_same_way(scene, repeat):
    """Retimed, between stored frames, before the first key and after the last."""
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    retime.fit(splats, 1, 9)
    retime.reverse(splats)
    retime.set_repeat(splats, repeat)
    [played] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    [keyed] = mesh_motion.moving_copies(splats, [rod], bpy.context, shape_keys=True)
    assert not keyed.modifiers
    for frame in (-3, 1, 4, 5.5, 9, 11, 40):
        show(frame)
        assert np.abs(vertices(keyed) - vertices(played)).max() < 1e-5


@pytest.mark.slow
def test_game_engines_get_the_motion(scene, tmp_path):
    """As the shape keys of a glTF file."""
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context, shape_keys=True)
    show(4)
    there = vertices(copy).max(0)
    for obj in (rod, splats):
        bpy.data.objects.remove(obj)
    scene.frame_start, scene.frame_end = 1, FRAMES
    bpy.ops.export_scene.gltf(filepath=str(tmp_path / "rod.glb"), export_morph=True)
    fps = scene.render.fps
    fresh_file()
    bpy.context.scene.render.fps = fps
    bpy.ops.import_scene.gltf(filepath=str(tmp_path / "rod.glb"))
    show(4)
    assert np.abs(vertices(bpy.data.objects["Rod Moving"]).max(0) - there).max() < 1e-3


@pytest.fixture
def both(extension, part):
    """The rod and its Gaussians, in a scene in which the extension is registered; the Gaussians are active."""
    rod = add_rod()
    splats = part("blender_addon.point_cloud").import_clip(bending_rod(), bpy.context.scene, source=rod, start=1)
    part("blender_addon.placing").select_alone(bpy.context, [splats])
    return rod, splats


def test_the_source_is_found_without_selecting_it(both):
    rod, splats = both
    child = bpy.data.objects.new("Ear", rod.data)
    child.parent = rod
    bpy.context.collection.objects.link(child)
    rod["kinesplat_source"] = splats["kinesplat_made_of"] = "some id"
    assert bpy.ops.kinesplat.move_mesh() == {"FINISHED"}
    assert {obj.name for obj in bpy.context.selected_objects} == {"Rod Moving", "Ear Moving"}
    assert rod.hide_get()
    assert child.hide_render
    assert splats.hide_get()
    assert bpy.ops.kinesplat.retime_repeat(repeat="LOOP") == {"FINISHED"}


@pytest.mark.parametrize("case", ["nothing selected", "elsewhere", "no surface", "no modifier"])
def test_what_cannot_move_is_said_and_adds_nothing(both, case):
    rod, splats = both
    if case == "nothing selected":
        rod.name = "Stick"
    else:
        rod.select_set(True)
    if case == "elsewhere":
        rod.location.x = 3
    if case == "no surface":
        rod.data.clear_geometry()
    if case == "no modifier":
        splats.modifiers.clear()
    blocks = len(bpy.data.objects), len(bpy.data.meshes)
    expected = {
        "nothing selected": "not in this scene. Select the mesh to move first",
        "elsewhere": "do not lie in the same place",
        "no surface": "no surface to move",
        "no modifier": "has lost the modifier",
    }
    with pytest.raises(RuntimeError, match=expected[case]):
        bpy.ops.kinesplat.move_mesh()
    assert (len(bpy.data.objects), len(bpy.data.meshes)) == blocks


def test_gaussians_alone_are_no_mesh(both):
    both[0].name = "Stick"
    point_cloud.import_clip(twisting_ring(20, 3), bpy.context.scene).select_set(True)
    with pytest.raises(RuntimeError, match="not in this scene"):
        bpy.ops.kinesplat.move_mesh()


def test_a_clip_of_a_file_finds_the_object_of_its_name(both, part):
    rod, splats = both
    may_know = part("blender_addon.origin").may_know_source
    assert may_know(splats, bpy.context.scene)
    rod.location.x = 3  # it may be another rod
    for operator in (bpy.ops.kinesplat.move_mesh, bpy.ops.kinesplat.back_to_object):
        with pytest.raises(RuntimeError, match="not in this scene"):
            operator()
    assert not splats.hide_get()
    rod.location.x = 0
    assert bpy.ops.kinesplat.move_mesh() == {"FINISHED"}
    assert bpy.context.active_object.name == "Rod Moving"
    rod.name = "Stick"
    assert not may_know(splats, bpy.context.scene)


def test_each_vertex_goes_its_way_whatever_goes_with_it():
    """Many vertices are worked on in parts and in another order."""
    places = np.random.default_rng(3).uniform(-0.5, 0.5, (4500, 3)).astype(np.float32)
    told = []
    moved = mesh_motion.follow(places, bending_rod(), 0.0, told.append)
    few = np.arange(0, 4500, 45)
    assert np.allclose(moved[:, few], mesh_motion.follow(places[few], bending_rod(), 0.0), atol=1e-6)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > 3


def test_active_gaussians_are_not_what_gaussians_are_made_of(both, part):
    """The panel asks for an object then, where one is wanted."""
    rod = both[0]
    lacks_object, options = part("blender_addon.settings").lacks_object, bpy.context.scene.kinesplat
    assert lacks_object(bpy.context)
    options.kind = "TEXT"
    assert not lacks_object(bpy.context)
    options.kind, options.source = "OBJECT", rod
    assert not lacks_object(bpy.context)
    options.source = None
    bpy.context.view_layer.objects.active = rod
    assert not lacks_object(bpy.context)


def test_back_to_the_object_for_another_try(both, part):
    """What was hidden when the Gaussians came is shown again, and nothing else of the family."""
    rod, splats = both
    ear, widget = (bpy.data.objects.new(name, rod.data) for name in ("Ear", "Widget"))
    for child in (ear, widget):
        child.parent = rod
        bpy.context.collection.objects.link(child)
    bpy.context.view_layer.update()
    widget.hide_set(True)
    widget.hide_render = True
    part("blender_addon.placing").hide(bpy.context, [rod])
    assert all(obj.hide_get() and obj.hide_render for obj in (rod, ear, widget))

    rod.name = "Stick"  # not that of the clip any more
    assert bpy.ops.kinesplat.back_to_object.poll()
    with pytest.raises(RuntimeError, match="is not in this scene"):
        bpy.ops.kinesplat.back_to_object()
    assert not splats.hide_get()

    rod["kinesplat_source"] = splats["kinesplat_made_of"] = "some id"
    assert bpy.ops.kinesplat.back_to_object() == {"FINISHED"}
    assert bpy.context.view_layer.objects.active == rod
    assert bpy.context.selected_objects == [rod]
    assert not any(obj.hide_get() or obj.hide_render for obj in (rod, ear))
    assert widget.hide_get()
    assert widget.hide_render
    assert not [obj for obj in (rod, ear, widget) if "kinesplat_hidden" in obj]
    assert splats.hide_get()
    assert splats.hide_render
    assert not bpy.ops.kinesplat.back_to_object.poll()  # the rod is active


def test_back_from_gaussians_that_have_gone_far(both):
    """At the current frame they are not where the object of their name stands; at the first one they were."""
    rod, splats = both
    far = splats.modifiers.new("Far", "DISPLACE")
    far.direction, far.strength, far.mid_level = "X", 9.0, 0.0
    splats.modifiers.move(1, 0)
    bpy.context.view_layer.update()
    assert min(corner[0] for corner in splats.bound_box) > 1
    assert bpy.ops.kinesplat.back_to_object() == {"FINISHED"}
    assert bpy.context.view_layer.objects.active == rod


@pytest.mark.parametrize("parented", ["Gaussians to their object", "object to its Gaussians"])
def test_back_to_an_object_that_moves_along(both, parented):
    rod, splats = both
    child, parent = (splats, rod) if parented.startswith("Gaussians") else (rod, splats)
    child.parent = parent
    for _ in range(2):
        assert bpy.ops.kinesplat.back_to_object() == {"FINISHED"}
        assert splats.hide_get()
        assert splats.hide_render
        assert not rod.hide_get()
        assert not rod.hide_render
        bpy.context.view_layer.objects.active = splats


class Layout:
    """Takes what a panel draws; `operators` are the buttons."""

    def __init__(self):
        self.operators = []

    def __getattr__(self, name):
        return lambda *_, **__: self

    def operator(self, name, **_):
        self.operators.append(name)
        return self


def test_the_panel_offers_the_way_back(both, part):
    """Also where the source is one that was chosen, and is hidden now."""
    rod = both[0]
    panel = part("panels.generate").KINESPLAT_PT_generate

    def buttons():
        layout = Layout()
        panel.draw(SimpleNamespace(layout=layout), bpy.context)
        return layout.operators

    options = bpy.context.scene.kinesplat
    assert buttons() == ["kinesplat.back_to_object"]
    options.source = rod
    rod.hide_set(True)
    assert buttons() == ["kinesplat.generate", "kinesplat.back_to_object"]
    options.kind = "TEXT"
    assert buttons() == ["kinesplat.generate"]
    options.kind = "OBJECT"
    bpy.context.view_layer.objects.active = rod
    assert buttons() == ["kinesplat.generate"]


def test_back_to_an_object_that_cannot_be_seen(both):
    rod, splats = both
    away = bpy.data.collections.new("Away")
    bpy.context.scene.collection.children.link(away)
    away.objects.link(rod)
    bpy.context.collection.objects.unlink(rod)
    layer = bpy.context.view_layer.layer_collection.children["Away"]
    layer.exclude = True
    with pytest.raises(RuntimeError, match="Rod is excluded from the view layer"):
        bpy.ops.kinesplat.back_to_object()
    assert not splats.hide_get()
    layer.exclude, layer.hide_viewport = False, True
    assert bpy.ops.kinesplat.back_to_object() == {"FINISHED"}
    assert not rod.visible_get()  # a warning says so
    assert bpy.context.view_layer.objects.active == rod


@pytest.mark.parametrize("override", [False, True])
def test_a_linked_family_is_shown_again(both, part, tmp_path, override):
    placing = part("blender_addon.placing")
    family = bpy.data.collections.new("Family")
    for name in ("Rig", "Skin"):
        family.objects.link(bpy.data.objects.new(name, both[0].data.copy()))
    family.objects["Skin"].parent = family.objects["Rig"]
    bpy.data.libraries.write(str(tmp_path / "library.blend"), {family})
    for obj in list(family.objects):
        bpy.data.objects.remove(obj)
    bpy.data.collections.remove(family)
    with bpy.data.libraries.load(str(tmp_path / "library.blend"), link=True) as (_, wanted):
        wanted.collections = ["Family"]
    if override:
        wanted.collections[0].override_hierarchy_create(bpy.context.scene, bpy.context.view_layer)
    else:
        bpy.context.scene.collection.children.link(wanted.collections[0])
    bpy.context.view_layer.update()
    rig, skin = (bpy.context.scene.objects[name] for name in ("Rig", "Skin"))
    placing.hide(bpy.context, [rig])
    assert all(obj.hide_get() for obj in (rig, skin))
    placing.show(bpy.context, [rig])
    assert not any(obj.hide_get() or obj.hide_render for obj in (rig, skin))


def test_both_selected_are_reversed_once(both):
    rod, splats = both
    rod.select_set(True)
    assert bpy.ops.kinesplat.move_mesh(hide_gaussians=False) == {"FINISHED"}
    splats.select_set(True)
    assert bpy.ops.kinesplat.retime_reverse() == {"FINISHED"}
    show(1)
    assert splat_object.shown_frame(splats) == FRAMES - 1


def test_a_moving_copy_goes_where_its_gaussians_go(scene):
    """By keys, a parent, a strip in the NLA and a driver; not where the original stands askew."""
    parent = bpy.data.objects.new("Parent", None)
    scene.collection.objects.link(parent)
    parent.scale = (1, 3, 1)
    rod = add_rod()
    rod.parent, rod.rotation_euler.z = parent, 0.6
    splats = point_cloud.import_clip(bending_rod(), scene, start=1)
    splats.parent, splats.rotation_euler.z = parent, 0.6
    splats.keyframe_insert("location", frame=1)
    splats.location.x = 5
    splats.keyframe_insert("location", frame=5)
    show(1)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    assert np.abs(vertices(copy) - vertices(rod)).max() < 1e-5
    before = vertices(copy).mean(0)
    show(5)
    assert np.linalg.norm(vertices(copy).mean(0) - before) > 4


def test_a_moving_copy_of_what_carries_its_gaussians(both):
    """Invented motion goes along with the object of which it was made."""
    rod, splats = both
    splats.parent, splats.matrix_basis = rod, rod.matrix_world.inverted() @ splats.matrix_world
    for frame, x in ((1, 0.0), (5, 4.0)):
        rod.location.x = x
        rod.keyframe_insert("location", frame=frame)
    show(1)
    assert splats not in subject.family(rod)
    assert bpy.ops.kinesplat.move_mesh() == {"FINISHED"}
    copy = bpy.context.active_object
    assert rod.hide_get()
    assert splats.hide_get()
    assert copy.visible_get()
    before = vertices(copy)
    assert np.abs(before - vertices(rod)).max() < 1e-5
    show(5)
    assert vertices(copy).mean(0)[0] - before.mean(0)[0] > 3


@pytest.mark.parametrize("timed", ["strip", "driver"])
def test_strips_and_drivers_time_the_copy_too(scene, timed):
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    animation = splats.animation_data
    if timed == "strip":
        strip = animation.nla_tracks.new().strips.new("Walk", 1, animation.action)
        strip.action_slot, strip.scale, animation.action = animation.action_slot, 2, None
    else:
        path = versions.modifier_input_path(splat_object.playback_modifier(splats), node_groups.FRAME)
        splats.driver_add(path).driver.expression = "frame / 4"
    show(1)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    scene.frame_end = 9
    [keyed] = mesh_motion.moving_copies(splats, [rod], bpy.context, shape_keys=True)
    show(5)
    assert splat_object.shown_frame(copy) == splat_object.shown_frame(splats) > 0
    assert np.abs(vertices(keyed) - vertices(copy)).max() < 1e-5


def test_an_original_askew_is_met_with_its_own_materials_and_looks(scene):
    parent = bpy.data.objects.new("Parent", None)
    scene.collection.objects.link(parent)
    parent.scale = (1, 1.5, 1)
    rod = add_rod()
    rod.parent, rod.rotation_euler.z = parent, 0.6
    rod.material_slots[0].link = "OBJECT"
    rod.material_slots[0].material = bpy.data.materials.new("Gold")
    bpy.context.view_layer.update()
    about = Matrix.Rotation(0.8, 4, "Z")  # as nearly as it can without being askew
    splats = point_cloud.import_clip(bending_rod(to_object=np.array(about)), scene, start=1)
    splats.display_type, splats.visible_camera = "BOUNDS", False  # of the Gaussians, not of the original
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    show(1)
    assert np.abs(vertices(copy) - vertices(rod)).max() < 1e-5
    assert copy.material_slots[0].material.name == "Gold"
    assert (copy.display_type, copy.visible_camera) == ("TEXTURED", True)


def test_shape_keys_stay_in_step_with_a_loop_that_ends_between_frames(scene):
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    retime.fit(splats, 1, 5.5)
    retime.set_repeat(splats, "LOOP")
    [played] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    [keyed] = mesh_motion.moving_copies(splats, [rod], bpy.context, shape_keys=True)
    show(60)
    assert np.abs(vertices(keyed) - vertices(played)).max() < 0.01


def test_of_duplicates_the_one_that_lies_there_moves(both):
    rod, splats = both
    duplicate = rod.copy()
    duplicate.location.x = 5
    bpy.context.collection.objects.link(duplicate)
    rod["kinesplat_source"] = duplicate["kinesplat_source"] = splats["kinesplat_made_of"] = "some id"
    assert bpy.ops.kinesplat.move_mesh() == {"FINISHED"}
    assert [obj.name for obj in bpy.context.selected_objects] == ["Rod Moving"]


def test_what_blender_does_not_evaluate_is_said(scene):
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    for obj in (rod, splats):
        obj.hide_viewport = True
        with pytest.raises(ValueError, match=f"{obj.name} is disabled in viewports"):
            mesh_motion.moving_copies(splats, [rod], bpy.context)
        obj.hide_viewport = False


def test_children_of_the_original_that_are_to_be_seen_are_not_hidden_with_it(both):
    rod, splats = both
    splats.parent = rod
    rod.select_set(True)
    assert bpy.ops.kinesplat.move_mesh(hide_gaussians=False) == {"FINISHED"}
    assert [obj.name for obj in bpy.context.selected_objects] == ["Rod Moving"]
    assert not splats.hide_get()
    assert rod.hide_render


def test_gaussians_that_hold_still_do_so_afterwards(scene):
    """They are moved as a whole by an action that has no key for `Frame`."""
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    splats.animation_data_clear()
    splats.keyframe_insert("location", frame=1)
    show(1)
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    assert retime.timing(copy) == retime.Timing(1, FRAMES, "HOLD", pytest.approx(1))
    assert retime.timing(splats) is None


def test_a_copy_is_not_put_where_it_is_not_seen(scene):
    rod = add_rod()
    splats = point_cloud.import_clip(bending_rod(), scene, source=rod, start=1)
    originals = bpy.data.collections.new("Originals")
    scene.collection.children.link(originals)
    originals.objects.link(rod)
    scene.collection.objects.unlink(rod)
    bpy.context.view_layer.layer_collection.children[0].hide_viewport = True
    [copy] = mesh_motion.moving_copies(splats, [rod], bpy.context)
    assert copy.users_collection == (scene.collection,)
