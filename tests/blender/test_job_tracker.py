# SPDX-License-Identifier: GPL-3.0-or-later
"""The job tracker through everything that happens to a Blender: other files, undo, disabling, closing, cancelling.

Timers do not fire without a window, so these tests call `tick` as the timer does.
"""

import time
from unittest.mock import MagicMock

import pytest

from tests.addon.fake_backend import FakeBackend
from tests.blender.test_operators import moving_cube

bpy = pytest.importorskip("bpy")
pytestmark = pytest.mark.blender


@pytest.fixture
def backend(tmp_path):
    with FakeBackend(tmp_path / "home") as running:
        yield running


@pytest.fixture
def job_tracker(extension, part, monkeypatch):
    thread = part("blender_addon.http_thread")
    monkeypatch.setattr(thread, "RUNNING_INTERVAL", 0.02)
    monkeypatch.setattr(thread, "LOCAL_RETRY", 0.05)
    return part("blender_addon.job_tracker")


def status():
    return bpy.context.window_manager.kinesplat


def tick_until(job_tracker, condition, seconds: float = 20.0) -> None:
    _ = job_tracker.tracker().http
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        interval = job_tracker.tracker().tick()
        time.sleep(min(interval, 0.01))


def begin(job_tracker):
    moving_cube()
    return job_tracker.tracker().begin_capture(bpy.context)


def test_a_capture_step_by_step(job_tracker, backend) -> None:
    tick_until(job_tracker, lambda: status().backend_state == "running")
    begin(job_tracker)
    seen = []

    def done() -> bool:
        if status().capture_active:
            seen.append((status().capture_text, status().capture_fraction))
        return len(status().jobs) == 1

    tick_until(job_tracker, done)
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert {text for text, _ in seen} >= {"Measuring the Motion", "Rendering the Motion"}
    assert not status().capture_active
    tick_until(job_tracker, lambda: status().jobs[0].has_result)
    job = status().jobs[0]
    assert (job.name, job.state, job.fraction) == ("Box", "succeeded", 1.0)
    assert not job.is_live


def test_prompts_are_suggested_by_the_backend(job_tracker, backend) -> None:
    tick_until(job_tracker, lambda: status().backend_state == "running")
    assert not bpy.ops.kinesplat.suggest_prompt.poll()  # an older one tells none
    backend.capabilities["prompts"] = ["red fox, gallop", "a flag waves in the wind"]
    job_tracker.tracker().reconnect()
    tick_until(job_tracker, bpy.ops.kinesplat.suggest_prompt.poll)
    assert bpy.ops.kinesplat.suggest_prompt(prompt="red fox, gallop") == {"FINISHED"}
    assert bpy.context.scene.kinesplat.prompt == "red fox, gallop"
    with pytest.raises(TypeError, match="not found"):
        bpy.ops.kinesplat.suggest_prompt(prompt="a knitted sock")


def test_intervals(job_tracker, backend) -> None:
    tick_until(job_tracker, lambda: status().backend_state == "running")
    backend.steps = -1
    assert job_tracker.tracker().tick() == job_tracker.IDLE_INTERVAL
    begin(job_tracker)
    assert job_tracker.tracker().tick() == job_tracker.CAPTURE_INTERVAL
    tick_until(job_tracker, lambda: len(status().jobs) == 1)
    assert job_tracker.tracker().tick() == job_tracker.BUSY_INTERVAL


def test_cancelling_a_capture_leaves_nothing(job_tracker, backend) -> None:
    begin(job_tracker)
    objects, scenes = len(bpy.data.objects), len(bpy.data.scenes)
    tick_until(job_tracker, lambda: status().capture_fraction > 0.2)
    assert bpy.ops.kinesplat.generate.poll() is False  # one at a time
    assert bpy.ops.kinesplat.cancel_capture() == {"FINISHED"}
    assert not status().capture_active
    assert (len(bpy.data.objects), len(bpy.data.scenes)) == (objects, scenes)
    outbox = job_tracker.tracker().records.folder / "outbox"
    assert not any(outbox.iterdir())
    job_tracker.tracker().tick()
    assert len(status().jobs) == 0
    assert bpy.ops.kinesplat.generate.poll() is True


def test_the_object_is_deleted_during_its_capture(job_tracker, backend) -> None:
    begin(job_tracker)
    tick_until(job_tracker, lambda: status().capture_fraction > 0.2)
    bpy.data.objects.remove(bpy.data.objects["Box"])
    tick_until(job_tracker, lambda: not status().capture_active)
    assert "not in the scene any more" in status().notice
    assert len(status().jobs) == 0


@pytest.mark.parametrize("change", ["removed", "renamed", "hidden"])
def test_a_part_is_missing_during_a_capture(job_tracker, backend, change) -> None:
    moving_cube()
    part = bpy.data.objects.new("Part", bpy.data.objects["Box"].data)
    part.parent = bpy.data.objects["Box"]
    bpy.context.collection.objects.link(part)
    job_tracker.tracker().begin_capture(bpy.context)
    tick_until(job_tracker, lambda: status().capture_fraction > 0.2)
    if change == "removed":
        bpy.data.objects.remove(part)
    elif change == "renamed":
        part.name = "Other"
    else:
        part.hide_render = True
    tick_until(job_tracker, lambda: not status().capture_active)
    assert status().notice.startswith("Part was removed, renamed or hidden in renders while Box was being captured")
    assert len(status().jobs) == 0


def test_an_import_that_hides_what_is_being_captured_waits(job_tracker, backend) -> None:
    begin(job_tracker)
    tracker = job_tracker.tracker()
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].has_result and not status().jobs[0].is_fetching)
    box = bpy.data.objects["Box"]
    tracker.begin_capture(bpy.context)
    assert bpy.ops.kinesplat.import_result(uid=status().jobs[0].uid) == {"CANCELLED"}
    tick_until(job_tracker, lambda: not status().capture_active)
    assert status().notice == ""
    assert len(status().jobs) == 2
    tick_until(job_tracker, lambda: "Box Gaussians" in bpy.data.objects)
    assert box.hide_render


def test_an_import_that_hides_a_part_of_what_is_being_captured_waits(job_tracker, backend) -> None:
    begin(job_tracker)
    tracker = job_tracker.tracker()
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].has_result and not status().jobs[0].is_fetching)
    whole = bpy.data.objects.new("Whole", None)
    bpy.context.collection.objects.link(whole)
    bpy.data.objects["Box"].parent = whole
    bpy.context.view_layer.update()
    bpy.context.view_layer.objects.active = whole
    tracker.begin_capture(bpy.context)
    assert bpy.ops.kinesplat.import_result(uid=status().jobs[0].uid) == {"CANCELLED"}
    tracker.cancel_capture()
    tick_until(job_tracker, lambda: "Box Gaussians" in bpy.data.objects)


def test_another_file_is_opened_during_a_capture(job_tracker, backend) -> None:
    begin(job_tracker)
    tick_until(job_tracker, lambda: status().capture_fraction > 0.2)
    bpy.ops.wm.read_homefile(use_empty=True)
    job_tracker.tracker().tick()
    assert not status().capture_active
    assert "another file" in status().notice
    assert len(bpy.data.scenes) == 1


def test_a_job_goes_on_over_file_open_and_undo(job_tracker, backend, tmp_path) -> None:
    backend.steps = -1
    begin(job_tracker)
    tick_until(job_tracker, lambda: len(status().jobs) == 1 and status().jobs[0].state == "queued")
    uid = status().jobs[0].uid
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.ops.wm.read_homefile(use_empty=True)
    assert [job.uid for job in status().jobs] == [uid]  # at once, not at the next tick
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "scene.blend"))
    assert [job.uid for job in status().jobs] == [uid]
    bpy.ops.ed.undo_push(message="One")
    bpy.ops.mesh.primitive_cube_add()
    bpy.ops.ed.undo_push(message="Two")
    bpy.ops.ed.undo()
    assert [job.uid for job in status().jobs] == [uid]
    backend.steps = 1
    tick_until(job_tracker, lambda: status().jobs[0].has_result)
    assert bpy.ops.kinesplat.import_result(uid=uid) == {"FINISHED"}


def test_jobs_of_an_old_file_are_not_believed(job_tracker, backend, tmp_path) -> None:
    """A file may bring a window manager that was saved with other jobs."""
    status().jobs.add().uid = "from another life"
    status().backend_state = "running"
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "old.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "old.blend"), load_ui=True)
    assert len(status().jobs) == 0
    assert status().backend_state == "stopped"


@pytest.mark.slow
def test_disabling_and_enabling_in_mid_job(job_tracker, backend, extension) -> None:
    backend.steps = -1
    begin(job_tracker)
    tick_until(job_tracker, lambda: len(status().jobs) == 1 and status().jobs[0].job_id)
    uid = status().jobs[0].uid
    extension.unregister()
    extension.register()
    backend.steps = 1
    tick_until(job_tracker, lambda: len(status().jobs) == 1 and status().jobs[0].state == "succeeded")
    assert bpy.ops.kinesplat.import_result(uid=uid) == {"FINISHED"}  # fetches it first
    assert len(backend.jobs) == 1


def test_disabling_during_a_capture(job_tracker, backend, extension) -> None:
    begin(job_tracker)
    tick_until(job_tracker, lambda: status().capture_fraction > 0.2)
    extension.unregister()
    assert len(bpy.data.scenes) == 1
    extension.register()
    job_tracker.tracker().tick()
    assert not status().capture_active


@pytest.mark.slow
def test_the_selected_job_stays_selected(job_tracker, backend) -> None:
    bpy.ops.kinesplat.connect()
    moving_cube()
    bpy.ops.kinesplat.generate()
    first = status().jobs[status().active_job].uid
    bpy.ops.kinesplat.generate()
    second = status().jobs[status().active_job].uid
    assert first != second  # the new one is selected
    status().active_job = next(index for index, job in enumerate(status().jobs) if job.uid == first)
    bpy.ops.kinesplat.generate()
    assert status().jobs[status().active_job].uid not in (first, second)
    status().active_job = next(index for index, job in enumerate(status().jobs) if job.uid == second)
    tick_until(job_tracker, lambda: all(job.has_result for job in status().jobs))
    bpy.ops.kinesplat.remove_job(uid=first)
    assert status().jobs[status().active_job].uid == second


def test_the_source_is_found_under_another_name(job_tracker, backend, part) -> None:
    begin(job_tracker)
    tick_until(job_tracker, lambda: len(status().jobs) == 1)
    record = job_tracker.tracker().board.record(status().jobs[0].uid)
    box = bpy.data.objects["Box"]
    box.name = "Renamed"
    copy = box.copy()
    bpy.context.scene.collection.objects.link(copy)
    copy.name = "Box"  # carries the same id, and now the old name
    find = part("blender_addon.capture").find_source
    assert find(record) == copy
    bpy.data.objects.remove(copy)
    assert find(record) == box


def test_the_source_is_not_looked_for_by_name_in_other_files(job_tracker, backend, part, tmp_path) -> None:
    moving_cube()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    job_tracker.tracker().begin_capture(bpy.context)
    tick_until(job_tracker, lambda: len(status().jobs) == 1)
    record = job_tracker.tracker().board.record(status().jobs[0].uid)
    find = part("blender_addon.capture").find_source
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "shot.blend"))  # without the id, which was not saved
    assert find(record) == bpy.data.objects["Box"]
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "other.blend"))
    assert find(record) is None


def test_the_source_is_found_after_an_undo_in_a_file_never_saved(job_tracker, backend, part, tmp_path) -> None:
    """Generate is no undo step: an undo of what came after it takes the object's id away, a name is in every file."""
    moving_cube()
    bpy.ops.ed.undo_push(message="Made")
    job_tracker.tracker().begin_capture(bpy.context)
    tick_until(job_tracker, lambda: len(status().jobs) == 1)
    bpy.data.objects["Box"].location.y = 5
    bpy.ops.ed.undo_push(message="Moved")
    bpy.ops.ed.undo()
    record = job_tracker.tracker().board.record(status().jobs[0].uid)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    find = part("blender_addon.capture").find_source
    assert find(record) == bpy.data.objects["Box"]

    bpy.ops.wm.read_homefile(use_empty=True)
    moving_cube()
    bpy.ops.ed.undo_push(message="Made")
    bpy.ops.ed.undo_push(message="Again")
    bpy.ops.ed.undo()
    assert find(record) is None, "the Box of another file that was never saved is another object"


def test_what_arrives_in_edit_mode_waits_for_its_end(job_tracker, backend) -> None:
    """And goes to the scene in which it was asked for, as the user sees it."""
    begin(job_tracker)
    tracker = job_tracker.tracker()
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].has_result and not status().jobs[0].is_fetching)
    row = next(iter(tracker.board.rows.values()))
    scene, window = bpy.context.scene, bpy.context.window_manager.windows[0]
    window.view_layer = scene.view_layers.new("Second")
    window.view_layer.objects.active = bpy.data.objects["Box"]
    bpy.ops.object.mode_set(mode="EDIT")
    row.import_into = scene.name
    before = set(bpy.data.objects)
    tracker.tick()
    assert set(bpy.data.objects) == before
    assert status().notice == ""
    bpy.ops.object.mode_set(mode="OBJECT")
    with bpy.context.temp_override(window=None):  # as timers are called
        tick_until(job_tracker, lambda: not row.import_into)
    (splats,) = set(bpy.data.objects) - before
    assert splats.select_get(view_layer=window.view_layer)
    assert not splats.select_get(view_layer=scene.view_layers[0])
    tracker.tick()
    assert len(bpy.data.objects) == len(before) + 1


def test_what_one_file_asked_for_is_not_imported_into_another(job_tracker, backend) -> None:
    begin(job_tracker)
    tracker = job_tracker.tracker()
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].has_result and not status().jobs[0].is_fetching)
    next(iter(tracker.board.rows.values())).import_into = bpy.context.scene.name
    bpy.ops.wm.read_homefile(app_template="")
    before = len(bpy.data.objects)
    tracker.tick()
    assert len(bpy.data.objects) == before


def test_nothing_is_imported_while_blender_renders(job_tracker, backend, part, monkeypatch, tmp_path) -> None:
    """What was clicked meanwhile comes when the render has ended; a file is refused."""
    begin(job_tracker)
    tracker = job_tracker.tracker()
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].has_result and not status().jobs[0].is_fetching)
    before = set(bpy.data.objects)
    with monkeypatch.context() as rendering:
        rendering.setattr(part("blender_addon.stage"), "is_rendering", lambda: True)
        assert bpy.ops.kinesplat.import_result() == {"CANCELLED"}
        with pytest.raises(RuntimeError, match="Blender is rendering: import when the render has ended"):
            bpy.ops.kinesplat.import_clip_file(filepath=str(tmp_path / "any.npz"))
        assert tracker.tick() == job_tracker.BUSY_INTERVAL
        assert set(bpy.data.objects) == before
    tick_until(job_tracker, lambda: set(bpy.data.objects) != before)
    (splats,) = set(bpy.data.objects) - before
    with monkeypatch.context() as rendering:
        rendering.setattr(part("blender_addon.stage"), "is_rendering", lambda: True)
        with pytest.raises(RuntimeError, match="Blender is rendering: try again when"):
            bpy.ops.kinesplat.export_ply_sequence(filepath=str(tmp_path / "frames.ply"), frames="SCENE")
    assert not list(tmp_path.glob("*.ply"))
    assert splats.name == "Box Gaussians"


def test_a_job_whose_backend_is_gone_promises_nothing(job_tracker, backend, part) -> None:
    backend.steps = 100_000
    begin(job_tracker)
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].state == "running")
    row = next(iter(job_tracker.tracker().board.rows.values()))
    row.seconds_left, row.stage, row.detail = 9.0, "Fitting", "loss 0.1"
    tracker = job_tracker.tracker()
    tracker.mirror()
    assert (status().jobs[0].stage, status().jobs[0].seconds_left) == ("Fitting", 9.0)
    tracker.board.apply(part("blender_addon.http_thread").BackendChanged("stopped"))
    tracker.mirror()
    job = status().jobs[0]
    assert (job.stage, job.detail, job.seconds_left) == ("Goes on once the backend runs", "", -1.0)


def test_a_notice_ends_with_what_it_speaks_of(job_tracker, backend, part) -> None:
    thread, client = part("blender_addon.http_thread"), part("blender_addon.client")
    tracker = job_tracker.tracker()
    tick_until(job_tracker, lambda: status().backend_state == "running")

    def fail(code: str, job_id: str = "") -> None:
        tracker.board.apply(thread.CommandFailed(client.BackendError(code, "It did not work."), job_id))
        tracker.drain()
        tracker.mirror()

    fail("stop_failed")
    assert status().notice == "It did not work."
    tracker.board.apply(thread.BackendChanged("stopped"))
    tracker.tick()
    assert status().notice == ""

    tracker.board.apply(thread.BackendChanged("running"))
    begin(job_tracker)
    tick_until(job_tracker, lambda: status().jobs and status().jobs[0].has_result)
    fail("refused", status().jobs[0].job_id)
    assert (status().jobs[0].message, status().notice) == ("It did not work.", "")  # said once, where it belongs
    fail("refused")
    assert status().notice
    bpy.ops.kinesplat.import_result()
    tracker.tick()
    assert status().notice == ""


def test_why_a_start_failed_stays_to_be_read(job_tracker, part) -> None:
    thread, tracker = part("blender_addon.http_thread"), job_tracker.tracker()
    tracker.http.events.put(thread.BackendChanged("problem", "It did not start.", "Its log is there.", "start_failed"))
    tracker.http.events.put(thread.BackendChanged("stopped", "The backend is not running.", "", "not_running"))
    tracker.tick()
    assert (status().notice, status().notice_hint) == ("It did not start.", "Its log is there.")
    tracker.http.events.put(thread.BackendChanged("running"))
    tracker.tick()
    assert status().notice == ""


def test_a_tick_is_short_with_many_events(job_tracker, backend, part) -> None:
    tick_until(job_tracker, lambda: status().backend_state == "running")
    tracker = job_tracker.tracker()
    for index in range(200):
        job = {"id": f"{index:016x}", "name": f"Job {index}", "state": "running", "fraction": 0.5, "rev": 1}
        tracker.http.events.put(part("blender_addon.http_thread").JobSeen(job))
    slowest = 0.0
    while not tracker.http.events.empty():
        start = time.process_time()
        tracker.tick()
        slowest = max(slowest, time.process_time() - start)
    assert len(status().jobs) == 200
    assert slowest < 0.05
    start = time.process_time()
    tracker.tick()
    assert time.process_time() - start < 0.005  # nothing new


def test_a_stumbling_tick_does_not_end_the_timer(job_tracker, backend, monkeypatch) -> None:
    monkeypatch.setattr(job_tracker.tracker(), "drain", lambda *_: 1 / 0)
    assert job_tracker._tick() == job_tracker.IDLE_INTERVAL


def test_a_jobs_buttons_stand_above_its_notes(extension, part, monkeypatch) -> None:
    panel, drawn = part("panels.jobs"), MagicMock()
    job = status().jobs.add()
    job.uid, job.state, job.has_result, job.warnings = "1", "succeeded", True, "The model does not know: wonderfully."
    monkeypatch.setattr(panel, "draw_sentence", lambda layout, context, text, icon: drawn.note(text))
    panel.draw_job(drawn, bpy.context, job)
    names = [name for name, *_ in drawn.mock_calls if name.endswith(("operator", "note"))]
    assert names == ["row().operator", "row().operator", "note"]
