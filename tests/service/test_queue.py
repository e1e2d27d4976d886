# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue alone: its promises one by one, then against a model under random histories."""

import os
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from backend.progress import Progress, UserError
from backend.service.queue import SCHEMA_VERSION, BlobsMissingError, IdempotencyConflictError, Queue, QueueFullError

CRASHED = UserError("crashed", "It crashed.", "Retry.")
FRAME = "a" * 64
NEXT = {"kind": "orbit", "inputs": {"moving": {"frames": [FRAME]}, "static": None, "surface": None}}


def request(name: str = "Fox") -> dict:
    return {**NEXT, "name": name}


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "jobs.sqlite3")
    yield queue
    assert queue.problems() == []
    queue.close()


def test_database_is_durable(queue):
    with queue._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_job_goes_its_way(queue):
    job, is_new = queue.create(request(), "key", "me")
    assert is_new
    assert (job.state, job.attempt, job.client, job.name) == ("queued", 0, "me", "Fox")
    claimed = queue.claim("worker", 15)
    assert (claimed.id, claimed.state, claimed.attempt) == (job.id, "running", 1)
    assert queue.claim("another", 15) is None
    assert queue.progress(job.id, 1, Progress("Fitting", 3, 10, 0.3, 7.0), new_preview=True) == "running"
    now = queue.get(job.id)
    assert (now.stage, now.step, now.total, now.fraction, now.seconds_left) == ("Fitting", 3, 10, 0.3, 7.0)
    assert now.preview_rev == 1
    assert now.rev > claimed.rev > job.rev
    assert queue.succeed(job.id, 1, "b" * 64, 10, lambda sha256: True) == "succeeded"
    done = queue.get(job.id)
    assert (done.state, done.result_sha256, done.result_size, done.fraction) == ("succeeded", "b" * 64, 10, 1.0)
    assert done.finished is not None


def test_the_same_key_gives_the_same_job_and_another_request_is_refused(queue):
    job, _ = queue.create(request(), "key")
    again, is_new = queue.create(dict(reversed(request().items())), "key")  # the order of members means nothing
    assert (again.id, is_new) == (job.id, False)
    with pytest.raises(IdempotencyConflictError):
        queue.create(request("Another"), "key")
    assert len(queue.jobs()) == 1


def test_many_threads_with_one_key_make_one_job(queue):
    made = []
    threads = [threading.Thread(target=lambda: made.append(queue.create(request(), "key"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1


def test_many_workers_never_get_the_same_job(queue):
    for index in range(40):
        queue.create(request(), f"key-{index}")
    got = []

    def work(name):
        while job := queue.claim(name, 15):
            got.append(job.id)

    threads = [threading.Thread(target=work, args=(f"worker-{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 40


def test_missing_blobs_and_full_queue_leave_nothing_behind(queue):
    with pytest.raises(BlobsMissingError) as caught:
        queue.create(request(), "key", missing=lambda names: names)
    assert caught.value.missing == [FRAME]
    with pytest.raises(QueueFullError):
        queue.create(request(), "key", max_queued=0)
    assert queue.jobs() == []
    assert queue.create(request(), "key")[1]


def test_a_fenced_attempt_writes_nothing(queue):
    job, _ = queue.create(request(), "key")
    queue.claim("old", 15)
    queue.settle("old", CRASHED, 3)
    queue.claim("new", 15)
    before = queue.get(job.id)
    assert queue.state(job.id, 1) is None
    assert queue.beat(job.id, 1, 15) is None
    assert queue.progress(job.id, 1, Progress("Late", 1, 1, 1.0, 0.0)) is None
    assert queue.succeed(job.id, 1, "b" * 64, 10, lambda sha256: True) is None
    assert queue.fail(job.id, 1, CRASHED) is None
    assert queue.end_cancelled(job.id, 1) is None
    assert queue.release(job.id, 1) is None
    assert queue.get(job.id) == before


def test_a_job_that_crashes_at_the_same_place_fails_at_the_third_time(queue):
    job, _ = queue.create(request(), "key")
    for attempt in (1, 2, 3):
        assert queue.claim("worker", 15).attempt == attempt
        queue.progress(job.id, attempt, Progress("Fitting", 1, 2, 0.5, None))
        (settled,) = queue.settle("worker", CRASHED, 3)
        assert (settled.state, settled.crashes) == (("queued", attempt) if attempt < 3 else ("failed", 3))
    assert (settled.error_code, settled.error_detail, settled.error_hint) == ("crashed", "It crashed.", "Retry.")
    assert queue.claim("worker", 15) is None


def test_a_job_that_dies_early_every_time_fails_too(queue):
    queue.create(request(), "key")
    for _ in range(3):
        queue.claim("worker", 15)
        (settled,) = queue.settle("worker", CRASHED, 3)
    assert settled.state == "failed"


def test_a_job_that_gets_further_each_time_goes_on(queue):
    job, _ = queue.create(request(), "key")
    for attempt in range(1, 10):
        queue.claim("worker", 15)
        queue.progress(job.id, attempt, Progress("Fitting", attempt, 10, attempt / 10, None))
        (settled,) = queue.settle("worker", CRASHED, 3)
        assert (settled.state, settled.crashes) == ("queued", 1)


def test_giving_a_job_back_is_no_crash(queue):
    job, _ = queue.create(request(), "key")
    for attempt in range(1, 6):
        queue.claim("worker", 15)
        assert queue.release(job.id, attempt) == "queued"
    assert queue.get(job.id).crashes == 0


def test_cancel(queue):
    first, _ = queue.create(request(), "first")
    second, _ = queue.create(request(), "second")
    queue.claim("worker", 15)
    assert queue.cancel(second.id).state == "cancelled"  # queued: at once
    running = queue.cancel(first.id)
    assert running.state == "cancelling"
    assert queue.cancel(first.id) == running  # once more does no harm
    assert queue.beat(first.id, 1, 15) == "cancelling"
    # The work is done in this very moment: the user's word counts.
    assert queue.succeed(first.id, 1, "b" * 64, 10, lambda sha256: True) == "cancelled"
    final = queue.get(first.id)
    assert (final.state, final.result_sha256) == ("cancelled", None)
    assert queue.cancel(first.id) == final
    assert queue.cancel("0" * 16) is None


def test_a_cancelled_job_whose_worker_dies_is_cancelled(queue):
    job, _ = queue.create(request(), "key")
    queue.claim("worker", 15)
    queue.cancel(job.id)
    assert [settled.state for settled in queue.settle("worker", CRASHED, 3)] == ["cancelled"]


def test_settle_leaves_the_jobs_of_others(queue):
    queue.create(request(), "a")
    queue.create(request(), "b")
    queue.claim("dead", 15)
    other = queue.claim("alive", 15)
    queue.settle("dead", CRASHED, 3)
    assert queue.get(other.id).state == "running"


def test_retry_and_delete(queue):
    job, _ = queue.create(request(), "key")
    assert not queue.delete(job.id)  # active
    assert queue.retry(job.id).state == "queued"
    queue.claim("worker", 15)
    queue.fail(job.id, 1, CRASHED)
    again = queue.retry(job.id)
    assert (again.state, again.error_code, again.crashes, again.finished) == ("queued", None, 0, None)
    assert queue.claim("worker", 15).attempt == 2
    queue.succeed(job.id, 2, "b" * 64, 10, lambda sha256: True)
    assert queue.retry(job.id).state == "succeeded"
    assert queue.delete(job.id)
    assert queue.get(job.id) is None
    assert not queue.delete(job.id)


def test_a_result_without_its_blob_is_not_accepted(queue):
    job, _ = queue.create(request(), "key")
    queue.claim("worker", 15)
    with pytest.raises(BlobsMissingError):
        queue.succeed(job.id, 1, "b" * 64, 10, lambda sha256: False)
    assert queue.get(job.id).state == "running"


def test_which_blobs_are_in_use(queue):
    job, _ = queue.create(request(), "key")
    queue.claim("worker", 15)
    queue.succeed(job.id, 1, "b" * 64, 10, lambda sha256: True)
    for sha256, unused in ((FRAME, False), ("b" * 64, False), ("c" * 64, True)):
        with queue.unused_blob(sha256) as answer:
            assert answer is unused
    queue.delete(job.id)
    for sha256 in (FRAME, "b" * 64):
        with queue.unused_blob(sha256) as answer:
            assert answer


def test_lists(queue):
    for index in range(6):
        queue.create(request(f"{index}"), f"{index}", "even" if index % 2 == 0 else "odd")
    queue.claim("worker", 15)
    assert [job.name for job in queue.jobs()] == list("543210")
    assert [job.name for job in queue.jobs(client="even")] == list("420")
    assert [job.name for job in queue.jobs(("running",))] == ["0"]
    assert [job.name for job in queue.jobs(("queued",), "even", limit=1)] == ["4"]
    assert [queue.ahead(job) for job in queue.jobs()] == [4, 3, 2, 1, 0, 0]
    assert len(queue.queued()) == 5


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"This is a letter, not a database. " * 100)
    with pytest.raises(UserError, match="is damaged") as caught:
        Queue(path)
    assert caught.value.code == "database_damaged"
    assert path.read_bytes().startswith(b"This is a letter")  # nothing was overwritten


def test_a_damaged_page(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    queue = Queue(path)
    for index in range(50):
        queue.create(request("x" * 100), f"{index}")
    with queue._connection() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    queue.close()
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 3] = os.urandom(4096)
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        Queue(path)
    assert caught.value.code == "database_damaged"


def test_a_database_of_a_newer_version(tmp_path):
    Queue(tmp_path / "jobs.sqlite3").close()
    connection = sqlite3.connect(tmp_path / "jobs.sqlite3")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(UserError) as caught:
        Queue(tmp_path / "jobs.sqlite3")
    assert caught.value.code == "home_too_new"


def test_a_database_of_an_older_version_goes_on(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    queue = Queue(path)
    job, _ = queue.create(request(), "key", "me")
    queue.close()
    connection = sqlite3.connect(path)  # as version 1 had it
    connection.execute("ALTER TABLE jobs DROP COLUMN detail")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    queues = [Queue(path), Queue(path)]
    assert [queue.get(job.id) for queue in queues] == [job, job]
    with queues[0]._connection() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    claimed = queues[0].claim("worker", 15)
    queues[0].progress(job.id, claimed.attempt, Progress("Fitting", 1, 2, 0.5, None, detail="anchor 4.5"))
    assert queues[1].get(job.id).detail == "anchor 4.5"
    for queue in queues:
        queue.close()


def test_how_a_stage_goes_is_told_while_it_goes_on(queue):
    job, _ = queue.create(request(), "key")
    claimed = queue.claim("worker", 15)
    assert claimed.detail is None
    queue.progress(job.id, claimed.attempt, Progress("Fitting", 1, 2, 0.5, None, detail="anchor 4.5"))
    assert queue.get(job.id).detail == "anchor 4.5"
    queue.progress(job.id, claimed.attempt, Progress("Writing", 0, 1, 0.9, None))
    assert queue.get(job.id).detail is None
    queue.progress(job.id, claimed.attempt, Progress("Fitting", 1, 2, 0.5, None, detail="anchor 4.5"))
    queue.release(job.id, claimed.attempt)
    assert queue.get(job.id).detail is None


def test_a_full_disk_loses_no_row(tmp_path):
    """SQLite's own limit of pages gives the same error as a full disk, at every kind of write."""
    queue = Queue(tmp_path / "jobs.sqlite3")
    made = [queue.create(request("x" * 500), f"{index}")[0].id for index in range(20)]
    with queue._connection() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill():
        for index in range(20, 500):
            made.append(queue.create(request("x" * 500), f"{index}")[0].id)

    with pytest.raises(sqlite3.OperationalError) as caught:
        fill()
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    queue.close()
    queue = Queue(tmp_path / "jobs.sqlite3")  # space is back
    assert sorted(job.id for job in queue.jobs(limit=1000)) == sorted(made)
    assert queue.problems() == []
    assert queue.claim("worker", 15).id == made[0]


class QueueMachine(RuleBasedStateMachine):
    """Random histories of clients, two workers and a supervisor against a dictionary."""

    jobs = Bundle("jobs")
    attempts = Bundle("attempts")

    @initialize()
    def open(self):
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.queue = Queue(Path(self.folder.name) / "jobs.sqlite3", clock=lambda: self.now)
        self.model = {}  # id -> {state, attempt, worker, crashes, best, fraction, key, result}
        self.final = {}  # what was said of jobs that reached a final state
        self.count = 0

    def teardown(self):
        if hasattr(self, "queue"):
            assert self.queue.problems() == []
            self.queue.close()
            self.folder.cleanup()

    @rule(target=jobs)
    def create(self):
        self.count += 1
        job, is_new = self.queue.create(request(), f"key-{self.count}")
        assert is_new
        self.model[job.id] = {
            "state": "queued", "attempt": 0, "worker": None, "crashes": 0, "best": 0.0, "fraction": 0.0,
            "key": f"key-{self.count}", "result": None,
        }  # fmt: skip
        return job.id

    @rule(job=jobs)
    def create_again(self, job):
        if job in self.model:
            again, is_new = self.queue.create(request(), self.model[job]["key"])
            assert (again.id, is_new) == (job, False)

    @rule(target=attempts, worker=st.sampled_from(["one", "two"]))
    def claim(self, worker):
        job = self.queue.claim(worker, 15)
        queued = [item for item in self.model if self.model[item]["state"] == "queued"]
        if not queued:
            assert job is None
            return (None, 0)
        assert job.id == queued[0]  # the oldest
        row = self.model[job.id]
        row |= {"state": "running", "attempt": row["attempt"] + 1, "worker": worker}
        assert job.attempt == row["attempt"]
        return (job.id, job.attempt)

    def expected(self, attempt):
        """The state in which this attempt may still write, or None."""
        row = self.model.get(attempt[0])
        if row is None or row["attempt"] != attempt[1] or row["state"] not in ("running", "cancelling"):
            return None
        return row["state"]

    @rule(attempt=attempts, fraction=st.floats(0, 1))
    def progress(self, attempt, fraction):
        state = self.expected(attempt)
        assert self.queue.progress(*attempt, Progress("Work", 1, 2, fraction, None)) == state
        if state:
            self.model[attempt[0]]["fraction"] = fraction

    @rule(attempt=attempts, jump=st.floats(0, 100_000))
    def beat(self, attempt, jump):
        self.now += jump  # the clock may jump as it likes
        assert self.queue.beat(*attempt, 15) == self.expected(attempt)

    @rule(attempt=attempts, ending=st.sampled_from(["succeed", "fail", "end_cancelled", "release"]))
    def end(self, attempt, ending):
        state = self.expected(attempt)
        sha256 = f"{attempt[1]:064x}"
        if ending == "succeed":
            answer = self.queue.succeed(*attempt, sha256, 10, lambda name: True)
            wanted = "succeeded"
        elif ending == "fail":
            answer, wanted = self.queue.fail(*attempt, CRASHED), "failed"
        elif ending == "release":
            answer, wanted = self.queue.release(*attempt), "queued"
        else:
            answer, wanted = self.queue.end_cancelled(*attempt), "cancelled"
        if state is None:
            assert answer is None
            return
        if state == "cancelling":
            wanted = "cancelled"
        assert answer == wanted
        row = self.model[attempt[0]]
        row |= {"state": wanted, "worker": None, "result": sha256 if wanted == "succeeded" else None}
        if wanted == "succeeded":
            row["fraction"] = 1.0

    @rule(worker=st.sampled_from(["one", "two", None]))
    def crash(self, worker):
        """A worker is killed, or all are; the supervisor reaps."""
        settled = {job.id: job.state for job in self.queue.settle(worker, CRASHED, 3)}
        expected = {}
        for job_id, row in self.model.items():
            if row["state"] in ("running", "cancelling") and worker in (None, row["worker"]):
                row["crashes"] = 1 if row["fraction"] > row["best"] + 0.005 else row["crashes"] + 1
                row["best"] = max(row["best"], row["fraction"])
                if row["state"] == "cancelling":
                    row["state"] = "cancelled"
                else:
                    row["state"] = "failed" if row["crashes"] >= 3 else "queued"
                row["worker"] = None
                expected[job_id] = row["state"]
        assert settled == expected

    @rule(job=jobs)
    def cancel(self, job):
        answer = self.queue.cancel(job)
        if row := self.model.get(job):
            row["state"] = {"queued": "cancelled", "running": "cancelling"}.get(row["state"], row["state"])
            assert answer.state == row["state"]
        else:
            assert answer is None

    @rule(job=jobs)
    def retry(self, job):
        answer = self.queue.retry(job)
        row = self.model.get(job)
        if row is None:
            assert answer is None
        elif row["state"] in ("failed", "cancelled"):
            row |= {"state": "queued", "crashes": 0, "best": 0.0, "fraction": 0.0}
            self.final.pop(job, None)
        assert row is None or answer.state == row["state"]

    @rule(job=consumes(jobs))
    def delete(self, job):
        row = self.model.get(job)
        may = row is not None and row["state"] in ("succeeded", "failed", "cancelled")
        assert self.queue.delete(job) == may
        if may:
            del self.model[job]
            self.final.pop(job, None)

    @rule()
    def reopen(self):
        """Everybody was killed and starts again."""
        self.queue.close()
        self.queue = Queue(Path(self.folder.name) / "jobs.sqlite3", clock=lambda: self.now)

    @invariant()
    def table_equals_model(self):
        rows = {job.id: job for job in self.queue.jobs(limit=10_000)}
        assert rows.keys() == self.model.keys()
        for job_id, row in self.model.items():
            job = rows[job_id]
            seen = (job.state, job.attempt, job.worker, job.crashes, job.result_sha256)
            assert seen == (row["state"], row["attempt"], row["worker"], row["crashes"], row["result"])
            if job.is_final:
                assert self.final.setdefault(job_id, job) == job  # final is final, to the last column


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
