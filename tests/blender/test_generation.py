# SPDX-License-Identifier: GPL-3.0-or-later
"""Motion that is invented: what the panel makes of objects, texts and images, and the choice among candidates."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from backend.service.schema import RequestModel
from blender_addon.contract.frames import write_frames
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import BOUNDS, GENERATED_FRAMES, MAX_NAME_LENGTH, STILL_FRAMES
from tests.blender.test_operators import active_job, error_of, why_not
from tests.contract.clips import random_frames

bpy = pytest.importorskip("bpy")
from mathutils import Matrix  # noqa: E402

pytestmark = pytest.mark.blender


def still_cube(x: float = 0.0):
    bpy.ops.mesh.primitive_cube_add(location=(x, 0, 0))
    bpy.context.active_object.name = "Box"
    return bpy.context.active_object


def only_request(backend) -> dict:
    """The one request that arrived; it is what the real server takes."""
    (request,) = backend.requests.values()
    TypeAdapter(RequestModel).validate_python(request)
    return request


def board(part):
    return part("blender_addon.job_tracker").tracker().board


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_still_object_is_sent_as_it_stands(options, backend, part) -> None:
    cube = still_cube(x=5.0)
    options.prompt, options.motion, options.seed, options.resolution = "  it  jumps ", 4.5, 7, 96
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    request = only_request(backend)
    assert active_job().name == "Box, it jumps, Seed 7"
    assert (request["kind"], request["pipeline"], request["name"]) == ("object", "diffusion4d", "Box, it jumps, Seed 7")
    settings = request["settings"]
    assert (settings["prompt"], settings["motion"], settings["seed"]) == ("it jumps", 4.5, 7)
    for name in ("guidance_motion", "guidance_static", "steps", "fps"):
        assert settings[name] == BOUNDS[name].default
    assert settings["result"] == "clip"
    static = request["inputs"]["static"]
    cameras = Cameras.from_json(static["cameras"])
    assert (cameras.width, cameras.height) == (96, 96)
    assert len(static["frames"]) == STILL_FRAMES
    assert not cameras.times.any()
    poses = cameras.camera_to_world[:GENERATED_FRAMES]
    assert np.allclose(poses[0], poses[-1])  # a closed orbit
    picture = np.asarray(Image.open(io.BytesIO(backend.blobs[static["frames"][0]])))
    assert picture.shape == (96, 96, 4)
    assert 0.1 < (picture[..., 3] > 128).mean() < 0.9
    assert request["inputs"]["surface"] in backend.blobs
    record = board(part).record(active_job().uid)
    assert np.allclose(np.array(record.matrix_world)[:3, 3], (5, 0, 0))
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    assert cube.hide_get()


@pytest.mark.slow
def test_a_moving_object_keeps_its_own_motion(options, backend) -> None:
    cube = still_cube()
    options.frames, options.resolution, options.capture_static, options.preview_frames = 8, 64, False, True
    # Nothing of the cube itself is animated: only its motion, measured, tells.
    bpy.ops.object.empty_add()
    target = bpy.context.active_object
    for frame, z in ((3, 0.0), (11, 1.0)):
        target.location.z = z
        target.keyframe_insert("location", frame=frame)
    cube.constraints.new("COPY_LOCATION").target = target
    options.source = cube
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    request = only_request(backend)
    assert request["kind"] == "orbit"
    assert len(request["inputs"]["moving"]["frames"]) == 8
    # It stays in the middle of the pictures, and its way comes along: half of its own size.
    np.testing.assert_allclose(request["inputs"]["travel"][-1], (0, 0, 0.5), atol=1e-5)


@pytest.mark.slow
def test_a_moving_object_may_get_another_motion(options, backend, part) -> None:
    cube = still_cube()
    for frame, x in ((3, 0.0), (11, 8.0)):
        cube.location.x = x
        cube.keyframe_insert("location", frame=frame)
    options.motion_source = "INVENT"
    bpy.context.scene.frame_set(7)
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    assert only_request(backend)["kind"] == "object"
    record = board(part).record(active_job().uid)
    assert record.frame_start == 7
    assert np.allclose(np.array(record.matrix_world)[:3, 3], (4, 0, 0), atol=1e-3)  # as it stands now
    bpy.context.scene.frame_set(3)
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    splats = bpy.context.active_object
    place = part("blender_addon.splat_object").description(splats)["to_object"]
    for frame, x in ((7, 4.0), (11, 8.0)):  # its own way is not what was invented
        bpy.context.scene.frame_set(frame)
        there = bpy.data.objects[cube.name].matrix_world @ Matrix(place)
        assert np.allclose(splats.matrix_world, there, atol=1e-5)
        assert bpy.data.objects[cube.name].matrix_world.translation.x == pytest.approx(x, abs=1e-3)
    assert splats not in part("blender_addon.subject").family(cube)
    assert cube.hide_get()
    assert splats.visible_get()


@pytest.mark.slow
def test_an_animated_object_that_stands_still_is_a_mistake(options, backend) -> None:
    cube = still_cube()
    cube.keyframe_insert("location", frame=1)
    said = error_of(bpy.ops.kinesplat.generate)
    assert "does not move" in said
    assert "invented" in said


@pytest.mark.slow
def test_a_still_object_needs_no_frame_range(options, backend) -> None:
    still_cube()
    bpy.context.scene.frame_start = bpy.context.scene.frame_end = 5
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    assert only_request(backend)["kind"] == "object"


@pytest.mark.parametrize("how", ["itself", "parent", "armature", "child", "shape keys"])
def test_what_looks_animated(options, part, how) -> None:
    cube = still_cube()
    looks_animated = part("blender_addon.settings").looks_animated
    assert not looks_animated(cube)
    mover = cube
    if how == "shape keys":
        cube.shape_key_add(name="Basis")
        cube.shape_key_add(name="Tall").keyframe_insert("value", frame=1)
    elif how != "itself":
        bpy.ops.object.armature_add() if how == "armature" else bpy.ops.object.empty_add()
        mover = bpy.context.active_object
    if how == "parent":
        cube.parent = mover
    elif how == "child":
        mover.parent = cube
    elif how == "armature":
        cube.modifiers.new("Armature", "ARMATURE").object = mover
    if how != "shape keys":
        assert not looks_animated(cube)
        mover.keyframe_insert("location", frame=1)
    assert looks_animated(cube)


@pytest.mark.parametrize("how", ["Build", "emitter", "cutter", "nodes", "keyed nodes"])
def test_what_moves_without_keys_of_its_own(options, part, how) -> None:
    """Its frames are captured, so the panel shows which: nothing is invented for it."""
    cube = still_cube()
    looks_animated = part("blender_addon.settings").looks_animated
    if how == "Build":
        moving = cube.modifiers.new("Build", "BUILD")
    elif how == "emitter":
        moving = cube.modifiers.new("Particles", "PARTICLE_SYSTEM")
        moving.particle_system.settings.type = "HAIR"
        assert not looks_animated(cube)
        moving.particle_system.settings.type = "EMITTER"
    elif how == "cutter":
        moving = cube.modifiers.new("Boolean", "BOOLEAN")
        moving.object = bpy.data.objects.new("Cutter", cube.data.copy())
        assert not looks_animated(cube)
        moving.object.keyframe_insert("location", frame=1)
    else:
        moving = cube.modifiers.new("Nodes", "NODES")
        assert not looks_animated(cube)
        moving.node_group = bpy.data.node_groups.new("Nodes", "GeometryNodeTree")
        value = moving.node_group.nodes.new("ShaderNodeValue")
        assert not looks_animated(cube)
        if how == "nodes":
            moving.node_group.nodes.new("GeometryNodeInputSceneTime")
        else:
            value.outputs[0].keyframe_insert("default_value", frame=1)
    assert looks_animated(cube)
    moving.show_render = False
    assert not looks_animated(cube)


# --- text and images -------------------------------------------------------------------------------------------------


def test_text(options, backend, part) -> None:
    options.kind = "TEXT"
    assert "prompt" in why_not(bpy.ops.kinesplat.generate)
    options.prompt = "a fox runs"
    bpy.context.scene.cursor.location = (1, 2, 3)
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    request = only_request(backend)
    assert (request["kind"], request["name"], request["settings"]["prompt"]) == ("text", "a fox runs", "a fox runs")
    assert not any(request["inputs"][name] for name in ("static", "image", "surface", "generated"))
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    splats = bpy.context.active_object
    assert bpy.context.collection.objects.get(splats.name) == splats
    assert part("blender_addon.retime").timing(splats).first == 3
    points = np.array([splats.matrix_world @ vertex.co for vertex in splats.data.vertices])
    assert np.percentile(points[:, 2], 1) == pytest.approx(3, abs=1e-3)  # it stands on the cursor
    assert splats.matrix_world.translation.xy[:] == pytest.approx((1, 2))


@pytest.mark.slow
def test_an_image(options, backend) -> None:
    options.kind = "IMAGE"
    assert "Choose an image" in why_not(bpy.ops.kinesplat.generate)
    image = bpy.data.images.new("cat.png", 1200, 600, alpha=True)
    pixels = np.zeros((600, 1200, 4), np.float32)
    pixels[:300] = (1.0, 0.5, 0.25, 1.0)  # the lower half
    image.pixels.foreach_set(pixels.ravel())
    options.image, options.prompt = image, "a cat walks"
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    request = only_request(backend)
    assert (request["kind"], request["name"]) == ("image", "cat, a cat walks")
    sent = np.asarray(Image.open(io.BytesIO(backend.blobs[request["inputs"]["image"]])))
    assert sent.shape == (200, 400, 4)
    assert (sent[:100, :, 3] == 0).all()
    assert (sent[100:] == (255, 128, 64, 255)).all()


@pytest.mark.parametrize(("system", "scale", "size"), [("METRIC", 0.01, 200), ("IMPERIAL", 1, 2), ("NONE", 0.01, 2)])
def test_what_is_made_up_is_as_large_in_every_unit(options, backend, system, scale, size) -> None:
    units = bpy.context.scene.unit_settings
    units.system, units.scale_length = system, scale
    options.kind, options.prompt = "TEXT", "a fox runs"
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    assert np.diag(only_request(backend)["inputs"]["to_object"]) == pytest.approx([size, size, size, 1])


@pytest.mark.slow
def test_jobs_of_one_subject_are_told_apart(options, backend) -> None:
    image = bpy.data.images.new("dog.png", 8, 8, alpha=True)
    options.kind, options.image = "IMAGE", image
    for options.prompt, options.seed in (("", 0), ("a dog walks", 0), ("a dog walks", 3), ("a dog runs " * 30, 3)):
        assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    names = [job.name for job in bpy.context.window_manager.kinesplat.jobs]
    assert names[3:0:-1] == ["dog", "dog, a dog walks", "dog, a dog walks, Seed 3"]
    assert len(names[0]) == MAX_NAME_LENGTH
    assert names[0].endswith(", Seed 3")


@pytest.mark.slow
def test_an_image_in_linear_light(options, backend) -> None:
    image = bpy.data.images.new("hdr", 8, 8, float_buffer=True)
    image.pixels.foreach_set(np.full((8, 8, 4), (0.2140, 2.0, 0.0, 1.0), np.float32).ravel())
    options.kind, options.image = "IMAGE", image
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    sent = np.asarray(Image.open(io.BytesIO(backend.blobs[only_request(backend)["inputs"]["image"]])))
    assert (sent == (127, 255, 0, 255)).all()


@pytest.mark.slow
def test_an_image_whose_file_is_gone(options, backend, tmp_path, part) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    image = bpy.data.images.load(str(tmp_path / "there.png"))
    (tmp_path / "there.png").unlink()
    image.reload()
    options.kind, options.image = "IMAGE", image
    assert "cannot be read" in error_of(bpy.ops.kinesplat.generate)
    assert not any((part("blender_addon.job_tracker").tracker().records.folder / "outbox").iterdir())


def test_in_the_window_what_needs_no_pictures_is_selected_at_once(options, backend, part, monkeypatch) -> None:
    options.kind, options.prompt = "TEXT", "a fox runs"
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    window = SimpleNamespace(app=SimpleNamespace(background=False))  # where a click waits for no capture
    monkeypatch.setattr(part("operators.generate"), "bpy", window)
    options.prompt = "a dog walks"
    assert bpy.ops.kinesplat.generate() == {"FINISHED"}
    assert active_job().name == "a dog walks"


# --- candidates ------------------------------------------------------------------------------------------------------


@pytest.fixture
def candidates(options, backend):
    """Two candidates of a text, generated."""
    options.kind, options.prompt, options.seed = "TEXT", "a fox runs", 5
    options.preview_frames, options.candidates = True, 2
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    return list(bpy.context.window_manager.kinesplat.jobs)


@pytest.mark.slow
def test_each_candidate_has_a_seed_of_its_own(candidates, backend) -> None:
    assert [job.name for job in candidates] == ["a fox runs, Seed 5", "a fox runs, Seed 6"]
    assert len({job.group for job in candidates}) == 1
    assert all(job.shows_frames and job.has_result for job in candidates)
    assert sorted(request["settings"]["seed"] for request in backend.requests.values()) == [5, 6]
    assert all(request["settings"]["result"] == "frames" for request in backend.requests.values())
    assert all(job.warnings == "The word flurb is not known." for job in candidates)


@pytest.mark.slow
def test_frames_are_no_clip(candidates) -> None:
    assert "build it first" in error_of(bpy.ops.kinesplat.import_result, uid=candidates[0].uid)


def test_building_the_one_that_was_chosen(candidates, backend, options, part) -> None:
    options.preset = "draft"
    chosen = next(job_id for job_id, request in backend.requests.items() if request["settings"]["seed"] == 6)
    before = set(backend.requests)
    assert bpy.ops.kinesplat.build_job(uid=candidates[1].uid, wait=True) == {"FINISHED"}
    (job_id,) = set(backend.requests) - before
    request, asked = backend.requests[job_id], backend.requests[chosen]
    TypeAdapter(RequestModel).validate_python(request)
    assert backend.blobs[request["inputs"]["generated"]] == backend.frames
    assert request["settings"] == {**asked["settings"], "result": "clip", "preset": "draft", "gaussians": 2000}
    built = active_job()
    assert (built.name, built.shows_frames, built.has_result) == ("a fox runs, Seed 6", False, True)
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    assert bpy.context.active_object.name == "a fox runs, Seed 6 Gaussians"
    assert len(bpy.context.window_manager.kinesplat.jobs) == 3
    part("blender_addon.job_tracker").tracker().board.load()  # as after a restart
    assert board(part).rows[candidates[1].uid].result_kind == "frames"


@pytest.mark.slow
def test_a_candidate_of_an_object_brings_its_pictures_along(options, backend) -> None:
    still_cube()
    options.preview_frames, options.candidates = True, 1
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    (asked,) = backend.requests.values()
    job = active_job()
    assert bpy.ops.kinesplat.build_job(uid=job.uid, wait=True) == {"FINISHED"}
    request = list(backend.requests.values())[-1]
    assert request["inputs"] == {**asked["inputs"], "generated": request["inputs"]["generated"]}


@pytest.mark.slow
def test_a_backend_that_has_lost_the_pictures(options, backend) -> None:
    still_cube()
    options.preview_frames, options.candidates = True, 1
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    backend.blobs.clear()
    said = error_of(bpy.ops.kinesplat.build_job, uid=active_job().uid, wait=True)
    assert "no longer has the pictures" in said
    assert "Generate again" in said


@pytest.mark.slow
def test_frames_as_an_image_sequence(candidates, part) -> None:
    uid = candidates[0].uid
    assert bpy.ops.kinesplat.open_frames(uid=uid) == {"FINISHED"}
    image = bpy.data.images["a fox runs, Seed 5"]
    assert image.source == "SEQUENCE"
    frames = random_frames(size=32).moving
    folder = part("blender_addon.job_tracker").tracker().records.result(uid).with_suffix("")
    assert len(list(folder.iterdir())) == len(frames)
    for index in (0, 23):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"frame_{index:03}.png")), frames[index])
    assert "no frames" in error_of(bpy.ops.kinesplat.open_frames, uid=build_of(uid))


def build_of(uid: str) -> str:
    """The uid of the job that builds a candidate."""
    bpy.ops.kinesplat.build_job(uid=uid, wait=True)
    return active_job().uid


def test_candidates_that_move_alike(part) -> None:
    """What is the same but for a trace is alike; another motion, another subject, and stillness are not."""
    film = part("blender_addon.film")
    still = np.zeros((4, 8, 8, 4), np.float32)
    moved, trace, other = still.copy(), still.copy(), still.copy()
    moved[:, 2], trace[:, 2], other[:, 4] = 200, 205, 200
    assert film.move_alike((moved, still), (trace, still))
    assert not film.move_alike((moved, still), (other, still))
    assert not film.move_alike((moved, still), (trace[:3], still[:3]))
    assert not film.move_alike((still, still), (still, still))


def test_a_film(options, part, tmp_path) -> None:
    """Icons themselves exist in a window alone."""
    film = part("blender_addon.film")
    frames = random_frames(size=16, motion=3.0, motion_measured=2.06, seed=9)
    frames.moving[0] = (255, 0, 0, 255)
    frames.moving[1, ..., 3] = 0
    pictures = film.on_backdrop(frames.moving)
    assert (pictures[0] == (1, 0, 0, 1)).all()
    assert np.allclose(pictures[1], (film.BACKDROP, film.BACKDROP, film.BACKDROP, 1))
    small = np.zeros((3, 64, 64, 4), np.uint8)
    small[1, 20:30, 10:30] = 255
    assert film.cropped(small).shape == (3, 46, 46, 4)  # 22 pixels from the middle to the left, and one more
    assert film.cropped(small)[1, ..., 3].sum() == small[1, ..., 3].sum()
    assert film.cropped(small[:1]).shape == (1, 64, 64, 4)  # nothing to be seen
    path = tmp_path / "frames.npz"
    write_frames(path, frames)
    films = film.Films()
    try:
        assert films.icon("uid", path, 0) == 0
        assert films.caption("uid") == "Seed 9\nMotion 2.1"
        known = replace(frames, provenance={"moves_as": "husky dog walk"})
        assert film.caption(known) == "Seed 9\nMotion 2.1\nHusky dog walk"
        films.icon("other", path, 0)
        assert films.move_alike(("uid", "other"))
        films.keep_only(["uid"])
        assert (films.caption("uid") != "", films.caption("other"), films._alike) == (True, "", {})
        films.keep_only([])
        assert films.caption("uid") == ""
        path.write_bytes(b"broken")
        assert films.icon("uid", path, 0) == 0
    finally:
        films.close()
