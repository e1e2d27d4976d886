# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panel says before a click on Generate: what is in the way, what would be left out, what it will cost."""

from types import SimpleNamespace

import pytest

from backend.splatting.config import ConstructConfig

bpy = pytest.importorskip("bpy")
from tests.blender.test_orbit_render import add_simulation  # noqa: E402

pytestmark = pytest.mark.blender


@pytest.fixture
def options(extension):
    return bpy.context.scene.kinesplat


def add(name, data=None, parent=None):
    obj = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(obj)
    obj.parent = parent
    return obj


def choose(*objects):
    """Select objects, the last one as the active one."""
    bpy.context.view_layer.update()
    for obj in bpy.context.view_layer.objects:
        obj.select_set(obj in objects)
    bpy.context.view_layer.objects.active = objects[-1] if objects else None


@pytest.fixture
def mesh(extension):
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.active_object
    mesh = cube.data
    bpy.data.objects.remove(cube)
    return mesh


def test_it_says_what_to_do(options, part, mesh) -> None:
    problem = part("blender_addon.readiness").problem
    choose()
    assert problem(bpy.context).startswith("Select the object")
    choose(add("Camera", bpy.data.cameras.new("Camera")))
    assert problem(bpy.context).startswith("Camera has no surface")
    assert "select a mesh" in problem(bpy.context)
    cube = add("Cube", mesh)
    choose(cube)
    assert problem(bpy.context) == ""
    cube.hide_set(True)
    assert problem(bpy.context) == "Cube is hidden: show it in the viewport"
    options.kind = "TEXT"
    assert problem(bpy.context).startswith("Describe in the prompt")
    options.prompt = "a fox runs"
    assert problem(bpy.context) == ""


def test_generate_starts_a_local_backend_that_is_off_and_no_other(options, part, monkeypatch) -> None:
    readiness, preferences = part("blender_addon.readiness"), part("blender_addon.preferences")
    status = bpy.context.window_manager.kinesplat
    monkeypatch.setattr(readiness, "bpy", in_a_window())
    status.backend_state = "stopped"
    assert readiness.starts_backend(bpy.context)
    assert readiness.backend_problem(bpy.context) == ""
    for state, said in (("problem", "does not run"), ("stopping", "wait a moment")):
        status.backend_state = state
        assert not readiness.starts_backend(bpy.context)
        assert said in readiness.backend_problem(bpy.context)
    status.backend_state = "stopped"
    monkeypatch.setattr(preferences, "get", lambda: SimpleNamespace(backend="REMOTE"))
    assert not readiness.starts_backend(bpy.context)
    assert "no connection" in readiness.backend_problem(bpy.context)


def in_a_window():
    """`bpy` as it says of itself outside of background mode."""
    return SimpleNamespace(app=SimpleNamespace(background=False), types=bpy.types)


def test_an_armature_brings_the_meshes_that_it_deforms(options, part, mesh) -> None:
    subject = part("blender_addon.subject")
    rig = add("Rig", bpy.data.armatures.new("Rig"))
    body, eyes, other = add("Body", mesh, rig), add("Eyes", mesh), add("Other", mesh)
    eyes.modifiers.new("Armature", "ARMATURE").object = rig
    choose(rig)
    assert set(subject.family(rig)) == {rig, body, eyes}
    assert set(subject.find_subject(bpy.context, rig).objects()) == {rig, body, eyes}
    assert subject.family(other) == [other]
    part("blender_addon.placing").hide(bpy.context, [rig])
    assert eyes.hide_get()
    assert not other.hide_get()
    part("blender_addon.placing").show(bpy.context, [rig])
    assert not eyes.hide_get()
    assert not eyes.hide_render


def test_a_part_leads_to_the_whole(options, part, mesh) -> None:
    rig = add("Rig", bpy.data.armatures.new("Rig"))
    body, eyes = add("Body", mesh, rig), add("Eyes", mesh, rig)
    alone = add("Alone", mesh)
    choose(alone)
    assert not bpy.ops.kinesplat.take_whole.poll()
    choose(body)
    assert bpy.ops.kinesplat.take_whole() == {"FINISHED"}
    assert bpy.context.view_layer.objects.active == rig
    assert rig.select_get()
    assert not body.select_get()
    options.source = eyes
    assert bpy.ops.kinesplat.take_whole() == {"FINISHED"}
    assert options.source == rig


def test_what_is_selected_but_not_taken_is_told(options, part, mesh) -> None:
    left_out = part("blender_addon.settings").left_out
    body, eyes = add("Body", mesh), add("Eyes", mesh)
    choose(eyes, body)
    assert left_out(bpy.context) == [eyes]
    eyes.parent = body
    assert left_out(bpy.context) == []
    choose(body)
    assert left_out(bpy.context) == []
    eyes.parent = None
    choose(body, eyes)
    options.source = body  # fixed, so that anything may be selected
    assert left_out(bpy.context) == []


def test_the_cost_is_told_before_the_click(options, part, mesh) -> None:
    cost = part("blender_addon.cost")
    cube = add("Cube", mesh)
    choose(cube)
    assert cost.sentence(bpy.context).startswith("Renders 32 pictures, then works for about")
    cube.keyframe_insert("location", frame=1)
    assert cost.sentence(bpy.context).startswith("Renders 56 pictures")
    options.capture_static = False
    assert cost.sentence(bpy.context).startswith("Renders 24 pictures")
    for preset, core in (("draft", 4.6), ("preview", 6.7), ("final", 38.4)):  # the table of docs/construction.md
        options.preset = preset
        assert cost.seconds(options, invents=False) == pytest.approx(core, rel=0.02)
    options.gaussians = 200_000
    assert cost.sentence(bpy.context).endswith(" min without a GPU")
    options.kind, options.preset, options.preview_frames, options.candidates = "TEXT", "draft", True, 3
    assert cost.sentence(bpy.context) == f"Works for about {cost.time_text(3 * cost.INVENTION)} without a GPU"


def test_what_changes_its_surface_may_cost_more(options, part, mesh) -> None:
    cost = part("blender_addon.cost")
    cube = add("Cube", mesh)
    choose(cube)
    options.motion_source, options.preset = "CAPTURE", "preview"
    usual = cost.seconds(options, invents=False)
    assert f"about {cost.time_text(usual)}" in cost.sentence(bpy.context)
    remesh = cube.modifiers.new("Remesh", "REMESH")
    more = f"up to {cost.time_text(cost.CHANGING * usual)} without a GPU, as its surface may change"
    assert cost.sentence(bpy.context).endswith(more)
    remesh.show_render = False
    assert "up to" not in cost.sentence(bpy.context)
    child = add("Part", None, cube)
    child.keyframe_insert("hide_render", frame=3)
    assert cost.sentence(bpy.context).endswith(more)
    options.motion_source = "INVENT"
    assert "up to" not in cost.sentence(bpy.context)


def test_nodes_that_simulate_may_stand_still(options, part, mesh) -> None:
    remark = part("blender_addon.readiness").remark
    cube = add("Cube", mesh)
    choose(cube)
    assert not remark(bpy.context)
    add_simulation(cube)
    assert not part("blender_addon.settings").invents_motion(bpy.context)
    assert remark(bpy.context).startswith("The nodes of Cube simulate: bake them in Physics > Simulation Nodes")
    cube.modifiers[0].show_render = False
    assert not remark(bpy.context)


def test_the_cost_of_a_video(options, part) -> None:
    """As docs/fourdiffusion.md has measured it for 8 frames; more of them take longer."""
    sentence = part("blender_addon.cost").sentence
    options.kind, options.preset, options.video_frames = "VIDEO", "draft", 8
    assert sentence(bpy.context) == "Works for about 15 s without a GPU"
    options.video_frames = 32
    assert sentence(bpy.context) == "Works for about 70 s without a GPU"
    options.video_frames, options.preset, options.representation = 8, "preview", "nerf"
    assert sentence(bpy.context) == "Works for about 10 min without a GPU"
    options.model = "published"
    assert "depends on the GPU" in sentence(bpy.context)


def test_a_quality_captures_as_many_pixels_as_it_fits_to(options) -> None:
    said = options.bl_rna.properties["resolution"].description
    for preset in ("draft", "preview", "final"):
        options.preset = preset
        fitted = ConstructConfig.for_preset(preset).fine_pixels
        assert options.resolution >= fitted
        assert f"{fitted} for {preset.title()}" in said
