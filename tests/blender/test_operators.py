# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators in background mode against a backend over HTTP: the way of a user, and what can go wrong on it."""

import json
import time
from unittest.mock import MagicMock

import numpy as np
import pytest

from blender_addon.contract.clip import write_clip
from tests.addon.fake_backend import FakeBackend
from tests.contract.clips import random_clip

bpy = pytest.importorskip("bpy")
pytestmark = pytest.mark.blender


@pytest.fixture
def backend(tmp_path):
    with FakeBackend(tmp_path / "home") as running:
        yield running


@pytest.fixture
def quick(extension, part, monkeypatch):
    """Shorter waits, and a scene with a moving cube that takes a second to capture."""
    thread = part("blender_addon.http_thread")
    monkeypatch.setattr(thread, "RUNNING_INTERVAL", 0.02)
    monkeypatch.setattr(thread, "LOCAL_RETRY", 0.05)
    monkeypatch.setattr(part("operators.generate"), "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(part("blender_addon.job_tracker"), "LOST_SECONDS", 0.5)
    return moving_cube()


def moving_cube():
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 9
    settings = scene.kinesplat
    settings.frames, settings.resolution, settings.samples, settings.capture_static = 8, 64, 1, False
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.active_object
    cube.name = "Box"
    for frame, x in ((1, 0.0), (9, 1.0)):
        cube.location.x = x
        cube.keyframe_insert("location", frame=frame)
    return cube


def active_job():
    status = bpy.context.window_manager.kinesplat
    return status.jobs[status.active_job]


def why_not(operator) -> str:
    """The reason that poll gives, as the tooltip of a disabled button shows it."""
    with pytest.raises(RuntimeError) as caught:
        operator()
    assert ".poll() " in str(caught.value), caught.value
    reason = str(caught.value).split(".poll() ", 1)[1]
    assert reason.strip() != "failed, context is incorrect"
    return reason


def error_of(operator, **options) -> str:
    with pytest.raises(RuntimeError) as caught:
        operator(**options)
    return str(caught.value).removeprefix("Error: ").strip()


def test_from_generate_to_import(quick, backend, part) -> None:
    assert bpy.ops.kinesplat.generate() == {"FINISHED"}
    job = active_job()
    assert job.name == "Box"
    row = part("blender_addon.job_tracker").wait_for_job(job.uid, timeout=30)
    assert row.state == "succeeded"
    request = next(iter(backend.jobs.values()))
    assert request["client"] == part("blender_addon.job_tracker").tracker().records.client_id()
    quick.location = (50, 50, 50)  # the result belongs where the box was captured
    assert bpy.ops.kinesplat.import_result(uid=job.uid) == {"FINISHED"}
    splats = bpy.context.active_object
    assert part("blender_addon.splat_object").is_splat_object(splats)
    assert splats.select_get()
    assert not quick.select_get()
    assert splats.name.startswith("Box")
    assert len(splats.data.vertices) == 50
    timing = part("blender_addon.retime").timing(splats)
    assert timing.first == 1
    record = part("blender_addon.job_tracker").tracker().board.record(job.uid)
    assert np.allclose(np.array(record.matrix_world)[:3, 3], 0, atol=1e-5)
    assert record.imported == 1
    assert bpy.context.scene.cycles.transparent_max_bounces >= 512


def test_the_request_is_what_the_panel_says(quick, backend, part) -> None:
    settings = bpy.context.scene.kinesplat
    settings.preset, settings.seed, settings.capture_static = "draft", 7, True
    settings.resolution = 64  # the quality has set it
    bodies = []
    submit = backend.submit
    backend.submit = lambda key, body: bodies.append(body["request"]) or submit(key, body)
    bpy.ops.kinesplat.generate(wait=True)
    (request,) = bodies
    gaussians = part("blender_addon.contract.requests").GAUSSIANS_BY_PRESET["draft"]
    looks = {"sh_degree": 0, "color_space": "srgb", "motion_model": "bases"}
    assert request["settings"] == {"seed": 7, "preset": "draft", "gaussians": gaussians, "fps": 24.0 * 7 / 8, **looks}
    assert request["name"] == "Box, Seed 7"
    for kind, last, count in (("moving", 1.0, 8), ("static", 0.0, 16)):  # the last 8 from above and below
        orbit = request["inputs"][kind]
        assert len(orbit["frames"]) == count
        assert orbit["cameras"]["times"][-1] == last
        assert orbit["cameras"]["width"] == 64
    assert all(sha256 in backend.blobs for sha256 in request["inputs"]["moving"]["frames"])
    assert request["inputs"]["surface"] in backend.blobs


def test_generate_leaves_the_scene_as_it_was(quick, backend) -> None:
    def state():
        scene = bpy.context.scene
        return (
            scene.frame_current, scene.render.engine, scene.render.resolution_x, scene.render.filepath, scene.camera,
            [obj.name for obj in bpy.context.selected_objects], bpy.context.active_object.name,
            len(bpy.data.objects), len(bpy.data.scenes), len(bpy.data.worlds), len(bpy.data.materials),
        )  # fmt: skip

    before = state()
    bpy.ops.kinesplat.generate()
    assert state() == before


def test_no_object(quick, backend) -> None:
    bpy.context.view_layer.objects.active = None
    assert "Select the object" in why_not(bpy.ops.kinesplat.generate)


def test_hidden_object(quick, backend) -> None:
    quick.hide_set(True)
    assert "hidden" in why_not(bpy.ops.kinesplat.generate)


def test_object_without_surface(quick, backend) -> None:
    bpy.ops.object.empty_add()
    assert "no surface" in error_of(bpy.ops.kinesplat.generate)
    assert not bpy.context.window_manager.kinesplat.capture_active


def test_object_that_does_not_move(quick, backend, part) -> None:
    quick.animation_data_clear()
    bpy.context.scene.kinesplat.motion_source = "CAPTURE"
    assert "does not move" in error_of(bpy.ops.kinesplat.generate)
    assert list((part("blender_addon.job_tracker").tracker().records.folder / "outbox").glob("*")) == []
    assert not bpy.context.window_manager.kinesplat.jobs


def test_frame_range_without_motion(quick, backend) -> None:
    bpy.context.scene.frame_start = bpy.context.scene.frame_end = 5
    assert "no motion" in why_not(bpy.ops.kinesplat.generate)


@pytest.mark.parametrize("patience", [0.5, 30.0])  # less and more than the operator itself waits
def test_no_backend(quick, part, monkeypatch, patience) -> None:
    monkeypatch.setattr(part("blender_addon.job_tracker"), "LOST_SECONDS", patience)
    said = error_of(bpy.ops.kinesplat.generate)
    assert "not running" in said
    assert "Start" in said


def test_a_folder_that_cannot_be_written(quick, backend, part, monkeypatch, tmp_path) -> None:
    """The extension is enabled all the same, says what is wrong, and imports files."""
    (tmp_path / "addon").write_text("a file where the add-on's folder should be")
    job_tracker = part("blender_addon.job_tracker")
    job_tracker.pump()
    assert str(tmp_path / "addon") in bpy.context.window_manager.kinesplat.notice
    assert str(tmp_path / "addon") in error_of(bpy.ops.kinesplat.generate)
    write_clip(tmp_path / "clip.npz", random_clip())
    assert bpy.ops.kinesplat.import_clip_file(filepath=str(tmp_path / "clip.npz")) == {"FINISHED"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda backend: (backend.home / "token").write_text("wrong"), "token"),
        (lambda backend: backend.health.update(api_version=99), "Update"),
        (lambda backend: backend.health.update(product="other"), "Something else"),
    ],
)
def test_wrong_backend(quick, backend, change, words) -> None:
    change(backend)
    assert words in error_of(bpy.ops.kinesplat.generate)


def test_a_backend_of_another_version_can_be_stopped(quick, backend, part) -> None:
    backend.health["api_version"] = 99
    tracker = part("blender_addon.job_tracker")
    _ = tracker.tracker().http
    tracker.pump(0.5)
    assert bpy.context.window_manager.kinesplat.backend_code == "wrong_version"
    assert bpy.ops.kinesplat.stop_backend.poll()


def test_backend_with_a_full_disk(quick, backend, part) -> None:
    problem = {"code": "disk_full", "detail": "There is too little free space.", "hint": "Free some, then retry."}
    backend.problems["POST", "/jobs"] = (507, problem)
    assert error_of(bpy.ops.kinesplat.generate, wait=True) == f"{problem['detail']} {problem['hint']}"
    backend.problems.clear()
    uid = active_job().uid
    assert bpy.ops.kinesplat.retry_job(uid=uid) == {"FINISHED"}  # the capture was kept
    assert part("blender_addon.job_tracker").wait_for_job(uid, timeout=30).state == "succeeded"


def test_full_disk_here(quick, backend, part, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part("blender_addon.capture"), "_hash_steps", full)
    assert "is full" in error_of(bpy.ops.kinesplat.generate)
    assert list((part("blender_addon.job_tracker").tracker().records.folder / "outbox").glob("*")) == []


def test_a_script_generates_right_after_the_start(quick, part, monkeypatch, tmp_path) -> None:
    """In a window, Start returns before the backend answers, which may take longer than one that runs needs."""
    backends = []

    def start(*_) -> None:
        time.sleep(1.5)  # longer than CONNECT_TIMEOUT
        backends.append(FakeBackend(tmp_path / "home").__enter__())

    monkeypatch.setattr(part("blender_addon.local_backend"), "start", start)
    monkeypatch.setattr(part("blender_addon.preferences"), "installation", lambda: None)
    tracker = part("blender_addon.job_tracker").tracker()
    tracker.start_backend()
    assert bpy.context.window_manager.kinesplat.backend_state == "starting"
    try:
        assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    finally:
        for running in backends:
            running.__exit__(None, None, None)


def test_no_installation_to_start(quick, part) -> None:
    preferences = part("blender_addon.preferences").get()
    preferences.folder = str(part("blender_addon.job_tracker").tracker().records.folder)
    said = error_of(bpy.ops.kinesplat.start_backend)
    assert "no Kinesplat backend" in said
    assert "run.py" in said


def test_a_backend_that_cannot_start_says_why(quick, part, tmp_path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "backend").mkdir(parents=True)
    (checkout / "backend" / "__main__.py").write_text("raise SystemExit('Port 4711 is taken by another program.')")
    preferences = part("blender_addon.preferences").get()
    preferences.folder, preferences.python = str(checkout), __import__("sys").executable
    said = error_of(bpy.ops.kinesplat.start_backend)
    assert "Port 4711 is taken" in said


def test_job_operators_say_why_they_cannot(quick, backend) -> None:
    for name in ("cancel_job", "retry_job", "remove_job", "show_log", "import_result"):
        assert "no jobs yet" in why_not(getattr(bpy.ops.kinesplat, name))
    bpy.ops.kinesplat.generate(wait=True)
    job = active_job()
    assert bpy.ops.kinesplat.cancel_job(uid=job.uid) == {"CANCELLED"}
    assert bpy.ops.kinesplat.retry_job(uid=job.uid) == {"CANCELLED"}
    assert "no longer in the list" in error_of(bpy.ops.kinesplat.import_result, uid="nobody")
    bpy.context.view_layer.objects.active.select_set(True)
    bpy.ops.object.mode_set(mode="EDIT")
    assert "Object Mode" in why_not(bpy.ops.kinesplat.import_result)
    assert "Object Mode" in why_not(bpy.ops.kinesplat.import_clip_file)
    bpy.ops.object.mode_set(mode="OBJECT")
    assert "no capture" in why_not(bpy.ops.kinesplat.cancel_capture).lower()
    assert "Gaussians" in why_not(bpy.ops.kinesplat.retime_reverse)


def test_the_log_of_a_job_is_a_text(quick, backend, part, tmp_path) -> None:
    backend.steps = -1
    bpy.ops.kinesplat.generate()
    job = active_job()
    assert bpy.ops.kinesplat.show_log() == {"CANCELLED"}  # it is not on the backend yet
    part("blender_addon.job_tracker").wait(lambda: job.job_id != "", 10)
    backend.logs[job.job_id] = b"attempt 1 begins\n" * 10
    for _ in range(2):  # once more: the same text again
        assert bpy.ops.kinesplat.show_log(uid=job.uid) == {"FINISHED"}
    (text,) = bpy.data.texts
    assert (text.name, text.as_string()) == ("Log of Box", backend.logs[job.job_id].decode())
    backend.logs.clear()
    bpy.ops.kinesplat.show_log(uid=job.uid)
    assert text.as_string() == "This job has written nothing down.\n"
    backend.problems["GET", "/jobs/.*/log"] = (
        500,
        {"code": "internal_error", "detail": "It stumbled.", "hint": "Wait."},
    )
    bpy.ops.kinesplat.show_log(uid=job.uid)
    assert text.as_string() == "It stumbled. Wait.\n"
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "scene.blend"))
    assert not bpy.data.texts  # it names folders, and the file may be given away


def test_cancel_remove(quick, backend, part) -> None:
    backend.steps = -1
    bpy.ops.kinesplat.generate()
    uid = active_job().uid
    tracker = part("blender_addon.job_tracker")
    tracker.wait(lambda: tracker.tracker().board.rows[uid].job_id, 10)
    assert bpy.ops.kinesplat.remove_job(uid=uid) == {"CANCELLED"}
    assert bpy.ops.kinesplat.cancel_job(uid=uid) == {"FINISHED"}
    assert active_job().state == "cancelled"
    assert "no result" in error_of(bpy.ops.kinesplat.import_result, uid=uid)
    assert bpy.ops.kinesplat.remove_job(uid=uid) == {"FINISHED"}
    tracker.wait(lambda: not backend.jobs, 10)
    assert len(bpy.context.window_manager.kinesplat.jobs) == 0


def test_a_job_deleted_meanwhile(quick, backend, part) -> None:
    backend.steps = -1
    bpy.ops.kinesplat.generate()
    uid = active_job().uid
    tracker = part("blender_addon.job_tracker")
    tracker.wait(lambda: tracker.tracker().board.rows[uid].job_id, 10)
    backend.jobs.clear()
    tracker.wait(lambda: not tracker.tracker().board.rows[uid].is_live, 10)
    assert "no longer on the backend" in active_job().message
    assert bpy.ops.kinesplat.remove_job(uid=uid) == {"FINISHED"}


def test_import_of_a_file(extension, part, tmp_path) -> None:
    path = tmp_path / "wave_v2.npz"
    write_clip(path, random_clip(n=30, frames=4, name="Wave", fps=12.0))
    assert bpy.ops.kinesplat.import_clip_file(filepath=str(path)) == {"FINISHED"}
    splats = bpy.context.active_object
    assert (splats.name, len(splats.data.vertices)) == ("wave_v2", 30)  # as the file


@pytest.mark.parametrize("override", [False, True])
def test_collections_of_other_files_take_no_objects(extension, part, tmp_path, override) -> None:
    library, clip = tmp_path / "library.blend", tmp_path / "clip.npz"
    collection = bpy.data.collections.new("Set")
    collection.objects.link(bpy.data.objects.new("Rock", bpy.data.meshes.new("Rock")))
    bpy.data.libraries.write(str(library), {collection})
    bpy.data.collections.remove(collection)
    with bpy.data.libraries.load(str(library), link=True) as (_, wanted):
        wanted.collections = ["Set"]
    scene, view_layer = bpy.context.scene, bpy.context.view_layer
    if override:
        wanted.collections[0].override_hierarchy_create(scene, view_layer)
    else:
        scene.collection.children.link(wanted.collections[0])
    view_layer.active_layer_collection = view_layer.layer_collection.children["Set"]
    write_clip(clip, random_clip())
    assert bpy.ops.kinesplat.import_clip_file(filepath=str(clip)) == {"FINISHED"}
    assert bpy.context.active_object.users_collection == (scene.collection,)

    rock = next(obj for obj in scene.objects if obj.name.startswith("Rock"))
    record = part("blender_addon.job_records").JobRecord(uid="1", name="Rock", subject=rock.name)
    result_import = part("blender_addon.result_import")
    splats, _ = result_import.import_result(bpy.context, clip, record)
    assert splats.users_collection == (scene.collection,)


def test_import_of_several_files(extension, part, tmp_path) -> None:
    """As the file browser and dropping name them; one that cannot be read does not keep the others out."""
    for name, frames in (("short", 3), ("long", 9), ("bad", 0)):
        path = tmp_path / f"{name}.npz"
        write_clip(path, random_clip(frames=frames, name=name)) if frames else path.write_bytes(b"")
    files = [{"name": f"{name}.npz"} for name in ("short", "bad", "long")]
    said = error_of(
        bpy.ops.kinesplat.import_clip_file,
        filepath=str(tmp_path / "short.npz"), directory=str(tmp_path), files=files, fit_scene=True,
    )  # fmt: skip
    assert said.startswith("bad.npz")
    assert sorted(obj.name for obj in bpy.context.selected_objects) == ["long", "short"]
    assert bpy.context.scene.frame_end == max(
        part("blender_addon.retime").timing(obj).last for obj in bpy.context.selected_objects
    )


def test_an_import_can_fit_the_scene_to_the_clip(extension, tmp_path):
    path = tmp_path / "clip.npz"
    write_clip(path, random_clip(frames=12, fps=30.0))
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end, scene.render.fps = 1, 250, 24
    scene.frame_set(5)
    assert bpy.ops.kinesplat.import_clip_file(filepath=str(path)) == {"FINISHED"}
    assert (scene.frame_start, scene.frame_end, scene.render.fps) == (1, 250, 24)
    assert bpy.ops.kinesplat.import_clip_file(filepath=str(path), fit_scene=True) == {"FINISHED"}
    assert (scene.frame_start, scene.frame_end, scene.render.fps) == (5, 16, 30)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"ply\nformat ascii 1.0\n"])
def test_import_of_a_file_of_another_format(extension, tmp_path, content) -> None:
    path = tmp_path / "something.npz"
    path.write_bytes(content)
    before = len(bpy.data.objects), len(bpy.data.meshes)
    assert "not a Kinesplat file" in error_of(bpy.ops.kinesplat.import_clip_file, filepath=str(path))
    assert (len(bpy.data.objects), len(bpy.data.meshes)) == before
    assert "There is no file" in error_of(bpy.ops.kinesplat.import_clip_file, filepath=str(tmp_path / "nothing.npz"))


def test_retiming(extension, part, tmp_path) -> None:
    path = tmp_path / "wave.npz"
    write_clip(path, random_clip(n=30, frames=5, fps=24.0))
    bpy.ops.kinesplat.import_clip_file(filepath=str(path))
    splats = bpy.context.active_object
    timing = lambda: part("blender_addon.retime").timing(splats)  # noqa: E731
    for repeat in ("LOOP", "PING_PONG", "HOLD"):
        assert bpy.ops.kinesplat.retime_repeat(repeat=repeat) == {"FINISHED"}
        assert timing().repeat == repeat
    bpy.ops.kinesplat.retime_fit(use_scene_range=False, frame_start=11, frame_end=31)
    assert (timing().first, timing().last) == (11, 31)
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 1, 41
    bpy.ops.kinesplat.retime_fit()
    assert (timing().first, timing().last) == (1, 41)
    bpy.context.scene.frame_set(21)
    bpy.ops.kinesplat.retime_start()
    assert (timing().first, timing().last) == (21, 61)
    bpy.ops.kinesplat.retime_start(frame=1)
    bpy.ops.kinesplat.retime_speed(factor=2.0)
    assert timing().speed == pytest.approx(2.0)
    assert bpy.ops.kinesplat.retime_reverse() == {"FINISHED"}


def test_drawing_and_render_settings(extension, part, tmp_path) -> None:
    path = tmp_path / "wave.npz"
    write_clip(path, random_clip(n=30, frames=5))
    bpy.ops.kinesplat.import_clip_file(filepath=str(path))
    splats = bpy.context.active_object
    draw_mode = part("blender_addon.splat_object").draw_mode
    for mode in ("QUADS", "POINTS"):
        assert bpy.ops.kinesplat.set_draw_mode(mode=mode) == {"FINISHED"}
        assert draw_mode(splats) == mode
    assert "all the render settings" in why_not(bpy.ops.kinesplat.fix_scene_settings)
    bpy.context.scene.cycles.transparent_max_bounces = 8
    assert bpy.ops.kinesplat.fix_scene_settings() == {"FINISHED"}
    assert bpy.context.scene.cycles.transparent_max_bounces == 512


def test_splats_in_solid_shading_are_told_about(extension, tmp_path, capfd) -> None:
    path = tmp_path / "wave.npz"
    write_clip(path, random_clip(n=30, frames=5))
    bpy.ops.kinesplat.import_clip_file(filepath=str(path))
    window = bpy.context.window_manager.windows[0]
    area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
    capfd.readouterr()
    for shading, mode, told in (("SOLID", "POINTS", False), ("SOLID", "QUADS", True), ("MATERIAL", "QUADS", False)):
        area.spaces.active.shading.type = shading
        with bpy.context.temp_override(window=window, area=area):
            bpy.ops.kinesplat.set_draw_mode(mode=mode)
        assert ("Solid shading" in capfd.readouterr().out) == told


def test_timing_in_the_nla_is_told_and_has_no_buttons(extension, part, tmp_path) -> None:
    path = tmp_path / "wave.npz"
    write_clip(path, random_clip(n=30, frames=5))
    bpy.ops.kinesplat.import_clip_file(filepath=str(path))
    draw, drawn = part("panels.splats").draw_timing, MagicMock()
    draw(drawn, bpy.context)
    assert any(name.endswith("operator") for name, *_ in drawn.mock_calls)
    animation, drawn = bpy.context.active_object.animation_data, MagicMock()
    animation.nla_tracks.new().strips.new("Clip", 40, animation.action)  # the keys are still at 1 to 5
    animation.action = None
    draw(drawn, bpy.context)
    assert not any(name.endswith("operator") for name, *_ in drawn.mock_calls)
    assert not drawn.row.called
    assert "NLA" in " ".join(options.get("text", "") for _, _, options in drawn.mock_calls)


def test_no_timer_waits_in_the_background(quick, backend, part) -> None:
    assert not bpy.app.timers.is_registered(part("blender_addon.job_tracker")._tick)
    start = time.monotonic()
    bpy.ops.kinesplat.connect()
    assert bpy.context.window_manager.kinesplat.backend_state == "running"
    assert time.monotonic() - start < 5


def test_records_hold_no_secrets(quick, backend, part) -> None:
    bpy.ops.kinesplat.generate(wait=True)
    folder = part("blender_addon.job_tracker").tracker().records.folder
    for path in folder.rglob("*.json"):
        assert "token" not in json.dumps(json.loads(path.read_text()))


def test_a_missing_installation_is_shown_in_the_panel(quick, part, tmp_path) -> None:
    tracker = part("blender_addon.job_tracker")
    part("blender_addon.preferences").get().folder = str(tmp_path)
    error_of(bpy.ops.kinesplat.start_backend)
    tracker.pump()
    status = bpy.context.window_manager.kinesplat
    assert status.notice_code == "not_installed"
    assert "run.py" in status.notice_hint
    with FakeBackend(tmp_path / "home"):
        tracker.wait(lambda: status.backend_state == "running", 10)
    assert status.notice == ""


def test_the_setup_command_is_offered_where_there_is_something_to_set_up(quick, part, tmp_path) -> None:
    preferences, checkout = part("blender_addon.preferences"), tmp_path / "kinesplat"
    preferences.get().folder = str(checkout)
    assert preferences.setup_folder() is None
    assert "no backend to set up" in error_of(bpy.ops.kinesplat.copy_setup_command)
    (checkout / "backend").mkdir(parents=True)
    (checkout / "backend" / "__main__.py").touch()
    assert preferences.setup_folder() == checkout
    (checkout / ".venv" / "one").mkdir(parents=True)
    (checkout / ".venv" / "one" / "ready").touch()
    assert preferences.setup_folder() is None


def test_gaussians_are_no_source(quick, backend, tmp_path) -> None:
    path = tmp_path / "wave.npz"
    write_clip(path, random_clip(n=30, frames=4))
    bpy.ops.kinesplat.import_clip_file(filepath=str(path))
    assert "Gaussians already" in why_not(bpy.ops.kinesplat.generate)


def test_the_preferences_forbid_the_internet_by_themselves(quick, part, monkeypatch) -> None:
    preferences = part("blender_addon.preferences")
    entry = preferences.get()
    entry.backend = "REMOTE"
    assert "address" in preferences.connection().refusal
    entry.url = "127.0.0.1:8080"
    assert preferences.connection().refusal == ""
    entry.url = "render-box:8080"
    assert bool(preferences.connection().refusal) is not bpy.app.online_access
    entry.url = "ftp://nowhere"
    assert "not an address" in preferences.connection().refusal
    assert "another computer" in why_not(bpy.ops.kinesplat.start_backend)
    assert "another computer" in why_not(bpy.ops.kinesplat.stop_backend)
