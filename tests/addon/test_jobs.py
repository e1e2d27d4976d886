# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP thread and job board together, without Blender: what the user would see, whatever the backend does."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from blender_addon import http_thread
from blender_addon.contract.requests import generation_request, orbit_request
from blender_addon.http_thread import Connection, HttpThread
from blender_addon.job_board import GONE, REFUSED, WAITING, Board, time_left_text
from blender_addon.job_records import JobRecord, JobRecords
from tests.addon.fake_backend import TOKEN, FakeBackend


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http_thread, "RUNNING_INTERVAL", 0.02)
    monkeypatch.setattr(http_thread, "QUEUED_INTERVAL", 0.05)
    monkeypatch.setattr(http_thread, "LOCAL_RETRY", 0.05)
    monkeypatch.setattr(http_thread, "REMOTE_RETRY", (0.05, 0.1))
    monkeypatch.setattr(http_thread, "HEALTH_INTERVAL", 0.05)


class Addon:
    """What the job tracker is in Blender: records, thread and board, drained by hand."""

    def __init__(self, folder: Path, connection: Connection) -> None:
        self.records = JobRecords(folder)
        self.board = Board(self.records)
        self.board.load()
        self.thread = HttpThread(self.records, self.records.client_id())
        self.thread.start()
        self.thread.connect(connection)

    def until(self, condition, seconds: float = 10.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.board.backend, self.board.rows)
            while not self.thread.events.empty():
                self.board.apply(self.thread.events.get())
            time.sleep(0.005)

    def generate(self, name: str = "Fox"):
        """As the end of a capture: a record and a sealed outbox."""
        record = JobRecord(uid=str(uuid.uuid4()), name=name, subject=name, frame_end=24, created=time.time())
        data = name.encode()
        sha256 = hashlib.sha256(data).hexdigest()
        outbox = self.records.outbox(record.uid) / "moving"
        outbox.mkdir(parents=True)
        (outbox / "frame_000.png").write_bytes(data)
        request = orbit_request(name, {"frames": [sha256], "cameras": {}}, None, None, [[1.0, 0, 0, 0]] * 4)
        self.records.save(record)
        self.records.seal_outbox(record.uid, request, {sha256: "moving/frame_000.png"})
        row = self.board.add(record)
        self.thread.submit(record.uid)
        return row

    def close(self) -> None:
        self.thread.stop()
        assert not self.thread.is_alive()


@pytest.fixture
def addons(tmp_path):
    """Makes add-ons that share one data folder, as one Blender after another does."""
    opened = []

    def start(connection: Connection | None = None) -> Addon:
        addon = Addon(tmp_path / "addon", connection or Connection(local=True, home=tmp_path / "home"))
        opened.append(addon)
        return addon

    yield start
    for addon in opened:
        addon.close()


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


def test_from_capture_to_result(addons, home) -> None:
    with FakeBackend(home) as backend:
        addon = addons()
        addon.until(lambda: addon.board.backend.state == "running")
        row = addon.generate()
        assert row.state == WAITING
        addon.until(lambda: row.state == "running" and row.preview is not None)
        assert row.stage == "Fitting the motion"
        assert row.seconds_left == 12.0
        assert row.preview.read_bytes() == backend.picture
        addon.until(lambda: row.result is not None)
        assert row.state == "succeeded"
        assert not row.is_live
        assert row.result.read_bytes() == backend.result
        assert addon.records.waiting() == []
        kept = addon.records.load()[row.uid]
        assert (kept.job_id, kept.state) == (row.job_id, "succeeded")


def generated(addon, **options):
    """As a click on Generate for a text."""
    request = generation_request("text", "Fox", [[1.0, 0, 0, 0]] * 4, prompt="a fox runs", **options)
    record = JobRecord(uid=str(uuid.uuid4()), name="Fox", kind="text", result_kind=options["result"], request=request)
    addon.records.save(record)
    addon.records.seal_outbox(record.uid, request, {})
    row = addon.board.add(record)
    addon.thread.submit(record.uid)
    return row


def test_frames_come_with_their_warnings(addons, home) -> None:
    with FakeBackend(home) as backend:
        addon = addons()
        row = generated(addon, result="frames")
        addon.until(lambda: row.result is not None)
        assert row.result.read_bytes() == backend.frames
        assert (row.result_kind, row.warnings) == ("frames", ("The word flurb is not known.",))
    again = addons().board.rows[row.uid]
    assert (again.result_kind, again.warnings) == (row.result_kind, row.warnings)
    assert again.result == row.result


def test_a_clip_where_frames_were_asked_for_is_refused(addons, home) -> None:
    with FakeBackend(home) as backend:
        backend.frames = backend.result
        addon = addons()
        row = generated(addon, result="frames")
        addon.until(lambda: bool(row.message))
        assert "does not hold generated frames" in row.message
        assert row.result is None


def test_pictures_that_the_backend_has_lost(addons, home) -> None:
    with FakeBackend(home) as backend:
        backend.problems["POST", "/jobs"] = (422, {"code": "blobs_missing", "detail": "2 files are not here."})
        addon = addons()
        row = generated(addon, result="clip")
        addon.until(lambda: row.state == REFUSED)
        assert row.message == "The backend no longer has the pictures of this job."
        assert row.hint == "Generate again."


def test_each_preview_has_a_second_of_its_own(addons, home) -> None:
    with FakeBackend(home, steps=4):
        addon = addons()
        row = addon.generate()
        stamps = set()

        def note() -> bool:
            if row.preview:
                stamps.add(int(row.preview.stat().st_mtime))
            return row.state == "succeeded"

        addon.until(note)
        assert row.preview_rev == 4
        assert len(stamps) >= 2


def test_a_capture_waits_for_the_backend(addons, home) -> None:
    addon = addons()
    row = addon.generate()
    addon.until(lambda: addon.board.backend.code == "not_running")
    assert addon.board.backend.state == "stopped"
    assert row.state == WAITING
    with FakeBackend(home):
        addon.until(lambda: row.state == "succeeded")


def test_blender_closed_before_the_capture_was_sent(addons, home) -> None:
    first = addons()
    uid = first.generate().uid
    first.close()
    with FakeBackend(home) as backend:
        second = addons()
        second.until(lambda: second.board.rows[uid].state == "succeeded")
        assert list(backend.keys) == [uid]


def test_blender_closed_in_mid_job_and_the_job_is_found_again(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        first = addons()
        row = first.generate()
        first.until(lambda: row.job_id)
        first.close()
        backend.steps = 2
        second = addons()
        found = second.board.rows[row.uid]
        assert found.job_id == row.job_id
        second.until(lambda: found.state == "succeeded")
        assert second.board.record(row.uid).subject == "Fox"
        second.until(lambda: found.result is not None)
        assert len(backend.jobs) == 1


def test_a_result_that_came_while_blender_was_closed_is_fetched(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        first = addons()
        row = first.generate()
        first.until(lambda: row.job_id)
        first.close()
        record = first.records.load()[row.uid]
        record.holder = ended_process()
        first.records.save(record)
        backend.steps = 2
        for _ in range(3):  # somebody else's looks move the fake job on
            backend.advance(backend.jobs[row.job_id])
        second = addons()
        found = second.board.rows[row.uid]
        second.until(lambda: found.result is not None)
        assert second.records.load()[row.uid].holder == os.getpid()
        result = found.result
        second.close()
        result.unlink()
        third = addons()  # what was fetched once is not fetched again by itself
        third.until(lambda: third.board.backend.state == "running")
        time.sleep(0.1)
        assert not result.exists()


def test_a_second_blender_leaves_the_result_to_the_first(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        first = addons()
        row = first.generate()
        first.until(lambda: row.job_id)
        first.close()
        record = first.records.load()[row.uid]
        record.holder = os.getppid()
        first.records.save(record)
        backend.steps = 2
        second = addons()
        found = second.board.rows[row.uid]
        second.until(lambda: found.state == "succeeded")
        time.sleep(0.1)
        assert not second.records.result(row.uid).exists()
        second.thread.fetch(found.job_id, found.uid)
        second.until(lambda: found.result is not None)


def ended_process() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_answer_to_a_submission_gets_lost(addons, home) -> None:
    """The backend has the job, Blender does not know: the same key must not make a second one."""
    with FakeBackend(home, steps=-1) as backend:
        first = addons()
        row = first.generate()
        first.until(lambda: backend.jobs)
        first.close()
        first.records.save(JobRecord(uid=row.uid, name="Fox"))  # as before the answer
        request = orbit_request("Fox", {"frames": [], "cameras": {}}, None, None, [[1.0, 0, 0, 0]] * 4)
        first.records.seal_outbox(row.uid, request, {})
        second = addons()
        second.until(lambda: second.board.rows[row.uid].job_id)
        assert len(backend.jobs) == 1


def test_the_backend_dies_and_comes_back(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        jobs = backend.jobs
    addon.until(lambda: addon.board.backend.state == "stopped")
    assert row.is_live
    with FakeBackend(home) as backend:
        backend.jobs = jobs
        addon.until(lambda: row.state == "succeeded")


def test_a_job_deleted_meanwhile(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        backend.jobs.clear()
        addon.until(lambda: row.state == GONE)
        assert "no longer" in row.message
        assert not row.is_live
        addon.board.remove(row.uid)
        assert addon.records.load() == {}


def test_a_job_deleted_while_blender_was_closed(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        first = addons()
        row = first.generate()
        first.until(lambda: row.job_id)
        first.close()
        backend.jobs.clear()
        second = addons()
        second.until(lambda: second.board.rows[row.uid].state == GONE)


def test_cancel_and_retry(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        addon.thread.cancel(row.job_id)
        addon.until(lambda: row.state == "cancelled")
        backend.steps = 1
        addon.thread.retry(row.job_id)
        addon.until(lambda: row.result is not None)


def test_a_failed_job_says_why(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        error = {"code": "out_of_memory", "message": "Memory ran out.", "hint": "Use fewer Gaussians."}
        backend.jobs[row.job_id].update(state="failed", error=error, rev=9)
        addon.until(lambda: row.state == "failed")
        assert (row.message, row.hint) == ("Memory ran out.", "Use fewer Gaussians.")


def test_the_log_of_a_failed_job(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        error = {"code": "internal_error", "message": "It stumbled.", "hint": "The job's log says more."}
        backend.jobs[row.job_id].update(state="failed", error=error, rev=9)
        backend.logs[row.job_id] = b"attempt 1 begins\nTraceback: ZeroDivisionError: by zero\n"
        addon.until(lambda: row.state == "failed")
        addon.thread.fetch_log(row.job_id, row.uid)
        addon.until(lambda: addon.board.logs)
        fetched = addon.board.logs.pop()
        assert (fetched.uid, fetched.text) == (row.uid, backend.logs[row.job_id].decode())
        backend.problems["GET", "/jobs/.*/log"] = (503, {"code": "busy", "detail": "It is busy.", "hint": "Wait."})
        addon.thread.fetch_log(row.job_id, row.uid)
        addon.until(lambda: addon.board.logs)
        assert str(addon.board.logs.pop().error) == "It is busy."
        assert row.message == "It stumbled."  # why the job failed stays to be read
        backend.problems.clear()
        addon.until(lambda: addon.board.backend.state == "problem")
        addon.until(lambda: addon.board.backend.state == "running")
        del backend.jobs[row.job_id]
        addon.thread.fetch_log(row.job_id, row.uid)
        addon.until(lambda: addon.board.logs)
        assert addon.board.logs.pop().error.status == 404
        addon.until(lambda: row.state == GONE)


def test_a_refused_request_stays_here(addons, home) -> None:
    with FakeBackend(home) as backend:
        problem = {"code": "disk_full", "detail": "The disk is full.", "hint": "Free some."}
        backend.problems["POST", "/jobs"] = (507, problem)
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.state == REFUSED)
        assert (row.message, row.hint) == ("The disk is full.", "Free some.")
        assert addon.records.waiting() == [row.uid]
        backend.problems.clear()
        row.state = WAITING
        addon.thread.submit(row.uid)
        addon.until(lambda: row.state == "succeeded")


def test_a_damaged_result_is_said(addons, home) -> None:
    with FakeBackend(home) as backend:
        backend.corrupt_result = True
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.message)
        assert "damaged" in row.message
        assert row.has_result  # the backend still has it
        backend.corrupt_result = False
        addon.thread.fetch(row.job_id, row.uid)
        addon.until(lambda: row.result is not None)
        assert row.message == ""


def test_a_result_that_is_no_clip_is_said(addons, home) -> None:
    with FakeBackend(home) as backend:
        backend.result = b"not a clip"
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.message)
        assert "not a Kinesplat file" in row.message
        assert row.result is None


@pytest.mark.parametrize(
    ("change", "code", "state"),
    [
        (lambda backend: backend.health.update(api_version=99), "wrong_version", "problem"),
        (lambda backend: (backend.home / "token").write_text("wrong"), "wrong_token", "problem"),
        (lambda backend: backend.health.update(product="other"), "not_kinesplat", "problem"),
        (lambda backend: backend.announce(pid=2**22 + 1), "not_running", "stopped"),
        (lambda backend: backend.announce(started=1.0), "not_running", "stopped"),
        (lambda backend: (backend.home / "server.json").write_text("{"), "not_running", "stopped"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_backend_is_said(addons, home, change, code, state) -> None:
    with FakeBackend(home) as backend:
        change(backend)
        addon = addons()
        addon.until(lambda: addon.board.backend.code == code)
        assert addon.board.backend.state == state
        assert addon.board.backend.sentence.endswith(".")


def test_another_computer(addons, home) -> None:
    with FakeBackend(home) as backend:
        addon = addons(Connection(local=False, url=f"127.0.0.1:{backend.port}/", token=TOKEN))
        addon.until(lambda: addon.board.backend.state == "running")
        addon.thread.connect(Connection(local=False, url=backend.url, token="wrong"))
        addon.until(lambda: addon.board.backend.code == "wrong_token")
        addon.thread.connect(Connection(local=False, refusal="Online access is off."))
        addon.until(lambda: addon.board.backend.sentence == "Online access is off.")


def test_a_job_whose_file_is_open_can_be_removed(tmp_path, monkeypatch) -> None:
    """Windows removes no file that somebody has open, such as a result that is being fetched."""
    records = JobRecords(tmp_path)
    records.save(JobRecord(uid="fox", name="Fox"))
    records.seal_outbox("fox", {}, {})
    part = records.result("fox").with_name("fox.npz.part")
    part.parent.mkdir()
    part.touch()
    unlink = Path.unlink

    def refusing(path: Path, missing_ok: bool = False) -> None:
        if path == part:
            raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    records.remove("fox")
    assert records.waiting() == []
    assert not records.load()


def test_what_is_refused_does_not_look_as_if_it_were_done(addons, home) -> None:
    with FakeBackend(home) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.result is not None)
        job = backend.jobs[row.job_id]
        job.update(state="failed", error={"code": "crashed", "message": "It crashed.", "hint": ""})
        backend.problems["POST", "/jobs/.*/retry"] = (500, {"code": "internal_error", "detail": "A mistake."})
        row.state, row.message = "queued", ""  # as the operator shows it at once
        addon.thread.retry(row.job_id)
        addon.until(lambda: row.message == "A mistake.")
        assert row.state == "failed"


def test_a_result_for_which_there_is_no_memory_can_be_asked_for_again(addons, home, monkeypatch) -> None:
    def too_large(path) -> None:
        raise MemoryError

    with FakeBackend(home) as backend:
        addon = addons()
        with monkeypatch.context() as little:
            little.setattr(http_thread, "read_clip", too_large)
            row = addon.generate()
            addon.until(lambda: "out of memory" in row.message)
        assert row.fetching is None
        addon.thread.fetch(row.job_id, row.uid)
        addon.until(lambda: row.result is not None)
        assert row.result.read_bytes() == backend.result


def test_a_slow_backend_delays_nobody_but_the_thread(addons, home) -> None:
    with FakeBackend(home) as backend:
        backend.delay = 2.0
        addon = addons()
        start = time.monotonic()
        addon.generate()
        for _ in range(100):
            addon.thread.cancel("0" * 16)
            while not addon.thread.events.empty():
                addon.board.apply(addon.thread.events.get())
            time.sleep(0.005)
        assert time.monotonic() - start < backend.delay  # had anything waited for one answer, it would be more


def test_stopping_leaves_no_thread(addons, home) -> None:
    with FakeBackend(home, steps=-1):
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        addon.close()
        assert not any(thread.name == "Kinesplat HTTP" and thread.is_alive() for thread in threading.enumerate())


def test_two_blenders_at_once(addons, home) -> None:
    with FakeBackend(home) as backend:
        one, other = addons(), addons()
        rows = [addon.generate(f"Fox {index}") for index, addon in enumerate((one, other, one, other))]
        one.until(lambda: all(row.state == "succeeded" for row in rows[::2]))
        other.until(lambda: all(row.state == "succeeded" for row in rows[1::2]))
        assert sorted(backend.keys) == sorted(row.uid for row in rows)


def test_records_survive_damage(tmp_path) -> None:
    records = JobRecords(tmp_path)
    client = records.client_id()
    assert records.client_id() == client
    records.save(JobRecord(uid="a", name="A", created=1.0))
    (tmp_path / "records" / "b.json").write_text("{ not json")
    (tmp_path / "records" / "c.json").write_text('{"uid": "c", "name": "C", "from_the_future": 1, "created": 2.0}')
    assert list(records.load()) == ["a", "c"]
    (tmp_path / "client.json").write_text("[]")
    assert records.client_id() != client


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (-1.0, ""), (0.4, "0 s left"), (59, "59 s left"), (75, "1:15 left"), (3725, "1:02:05 left")],
)
def test_time_left(seconds, text) -> None:
    assert time_left_text(seconds) == text


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="newer Pythons need not hold the thread")
def test_the_thread_stands_still_while_it_is_held(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        row = addon.generate()
        addon.until(lambda: row.job_id)
        for _ in range(20):
            with addon.thread.held(2.0) as is_held:
                assert is_held
                before = len(backend.calls)
                time.sleep(0.03)
                assert len(backend.calls) == before
        before = len(backend.calls)
        addon.until(lambda: len(backend.calls) > before)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="newer Pythons need not hold the thread")
def test_a_thread_in_the_network_is_not_waited_for(addons, home) -> None:
    with FakeBackend(home, steps=-1) as backend:
        addon = addons()
        addon.until(lambda: addon.board.backend.state == "running")
        backend.delay = 0.5
        addon.thread.connect(Connection(local=True, home=home))
        before = len(backend.calls)
        addon.until(lambda: len(backend.calls) > before)
        start = time.monotonic()
        with addon.thread.held(0.05) as is_held:
            assert not is_held
        assert time.monotonic() - start < 0.3


def test_a_held_thread_can_be_stopped(addons, home) -> None:
    addon = addons()
    with addon.thread.held(2.0):
        addon.close()
