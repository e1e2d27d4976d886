# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs in a running service: every way in which one can end, with a pipeline that misbehaves on demand."""

import io
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from backend.service import paths, worker
from backend.service.client import CallError
from backend.service.settings import Settings
from backend.service.worker import Worker
from blender_addon.contract.requests import KINDS, generation_request
from tests.service.fake_pipelines import expected_result
from tests.service.running import PIPELINES, pictures, request_of, running, wait_for

GRACE = 1.0  # seconds of each step of the cancel ladder in these tests


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("worker") / "home", cancel_grace=GRACE, kill_grace=GRACE) as service:
        yield service


@pytest.fixture
def client(service):
    return service.client()


def worker_pid(service) -> int:
    return wait_for(lambda: service.children().get("worker")).pid


def begun(client, job: dict) -> dict:
    """The job once it has done a step."""
    return wait_for(lambda: (now := client.job(job["id"]))["state"] == "running" and now["step"] > 0 and now)


def test_a_worker_is_the_program_that_it_began_as(tmp_path, monkeypatch):
    """Sources that are replaced before its first job do not become those that its checkpoints name."""
    asked = []
    monkeypatch.setattr(worker, "program_key", lambda: asked.append("key"))
    monkeypatch.setattr(Worker, "_warm_up", lambda self: asked.append("imports"))
    monkeypatch.setattr(worker, "next_job", lambda *arguments: (_ for _ in ()).throw(worker.WorkerStop))
    with pytest.raises(worker.WorkerStop):
        Worker(Settings(tmp_path), "worker").run()
    assert asked == ["key", "imports"]


def test_a_job_succeeds_and_its_result_is_right(service, client, tmp_path):
    job = service.submit("steps=20 seconds=0.05", client)
    seen = []
    done = client.watch(job["id"], seen.append)
    assert done["state"] == "succeeded"
    fractions = [item["fraction"] for item in seen]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) >= 4, "progress was not shown"
    assert [item["rev"] for item in seen] == sorted({item["rev"] for item in seen})
    assert "Working" in {item["stage"] for item in seen}
    assert all(item["detail"] == f"loss {item['step']}" for item in seen if item["stage"] == "Working" and item["step"])
    assert done["detail"] is None
    told = [line for line in service.log(job["id"]).splitlines() if "loss" in line]
    assert [line.split(maxsplit=2)[2] for line in told] == ["1 of 20: loss 1", "20 of 20: loss 20"]  # now and then
    client.fetch(job["id"], tmp_path / "clip.npz")
    name = {"name": "steps=20 seconds=0.05"}
    assert (tmp_path / "clip.npz").read_bytes() == expected_result(name, pictures())
    assert service.trace(job["id"]) == list(range(20))
    assert not (service.settings.home / "jobs" / job["id"] / "work").exists()  # nobody needs it any more


def test_a_job_that_waits_for_the_kernels_says_so(tmp_path, monkeypatch):
    """The first start after an update compiles them for half a minute."""
    compiling = SimpleNamespace(warm_up=lambda tell: tell("Compiling the kernels: 1 of 3"))
    monkeypatch.setitem(sys.modules, "backend.splatting.rasterize", compiling)
    monkeypatch.setattr("backend.service.worker.describe_device", lambda wanted: None)  # which looks for the rest of it
    paths.prepare(paths.Home(tmp_path))
    worker = Worker(Settings(tmp_path, pipelines=PIPELINES), "worker")
    job, _ = worker.queue.create(request_of("Fox", ["a" * 64]), "key", "me")
    worker._warm_up()
    assert worker.queue.get(job.id).stage == "Compiling the kernels: 1 of 3"
    worker.queue.close()


def test_every_kind_of_request_has_its_pipeline():
    assert set(worker.PIPELINES) == set(KINDS)
    for kind in KINDS:
        assert callable(worker.load_pipeline(f"{worker.__name__}:PIPELINES", kind))


def test_a_pipeline_that_cannot_be_loaded_fails_its_own_jobs_alone(service, client):
    request = generation_request("text", "Fox", np.eye(4).tolist(), prompt="a fox runs")
    broken = client.submit(request, "broken", "tests")
    good = service.submit("steps=1", client)
    failed = client.watch(broken["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "internal_error")
    assert "no_such_module" in service.log(broken["id"])
    assert client.watch(good["id"])["state"] == "succeeded"


@pytest.mark.slow
def test_preview(service, client):
    job = service.submit("steps=30 seconds=0.08", client)
    done = client.watch(job["id"])
    assert 2 <= done["preview_rev"] <= 5  # one a second
    answer = client._answer("GET", f"/jobs/{job['id']}/preview")
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.size) == ("JPEG", (256, 512))


def test_log(service, client):
    job = service.submit("steps=2", client)
    client.watch(job["id"])
    lines = wait_for(lambda: "Ended: succeeded." in (text := client.log(job["id"])) and text).splitlines()
    assert "Attempt 1 begins" in lines[0]
    assert [part for part in ("Reading", "Working", "Done") if any(part in line for line in lines)] == [
        "Reading", "Working", "Done",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "code", "message"),
    [
        ("user=2", "no_subject", "The pictures are empty."),
        ("bad=2", "bad_input", "orbit.json is missing."),
        ("memory=2", "out_of_memory", "The computer ran out of memory."),
        ("full=2", "disk_full", "There is too little free space"),
        ("bug=2", "internal_error", "The work stopped because of a fault in Kinesplat (KeyError)."),
    ],
)
def test_failures_are_sentences_and_the_queue_goes_on(service, client, wish, code, message):
    pid = worker_pid(service)
    job = service.submit(wish, client)
    after = service.submit("steps=1", client)
    done = client.watch(job["id"])
    assert (done["state"], done["error"]["code"]) == ("failed", code)
    assert done["error"]["message"].startswith(message)
    assert "Traceback" not in str(done)
    assert "secret of the code" not in str(done)
    assert client.watch(after["id"])["state"] == "succeeded"
    assert worker_pid(service) == pid, "the worker should live on"
    log = service.log(job["id"])
    assert f"Failed ({code})" in log
    assert ("KeyError: 'secret of the code'" in log) == (code == "internal_error")


def test_retry_goes_on_from_the_checkpoint(service, client):
    job = service.submit("steps=6 user=4", client)
    assert client.watch(job["id"])["state"] == "failed"
    assert service.trace(job["id"]) == [0, 1, 2, 3]
    again = client.retry(job["id"])
    assert again["id"] == job["id"]
    assert again["error"] is None
    assert client.watch(job["id"])["attempt"] == 2
    assert service.trace(job["id"]) == [0, 1, 2, 3]  # nothing was done twice


def test_a_poison_job_fails_at_the_third_crash_and_the_next_one_begins_soon(service, client):
    job = service.submit("steps=5 poison=2", client)
    after = service.submit("steps=1", client)
    done = client.watch(job["id"])
    ended = time.monotonic()
    assert (done["state"], done["attempt"], done["error"]["code"]) == ("failed", 3, "crashed")
    assert "3 times" in done["error"]["message"]
    assert service.trace(job["id"]) == [0, 1]
    assert client.watch(after["id"])["state"] == "succeeded"
    assert time.monotonic() - ended < 10
    assert "killed by SIGKILL" in service.log(job["id"])


def test_a_lost_gpu_costs_the_process_and_after_three_the_job(service, client):
    pid = worker_pid(service)
    job = service.submit("lost=1", client)
    assert client.watch(job["id"])["error"]["code"] == "crashed"
    assert worker_pid(service) != pid
    assert "The GPU is lost" in service.log(job["id"])


def test_cancel_while_queued(service, client):
    first = service.submit("steps=100 seconds=0.05", client)
    second = service.submit("steps=100", client)
    assert client.cancel(second["id"])["state"] == "cancelled"
    assert begun(client, first)["state"] == "running"  # the one that runs is left alone
    client.cancel(first["id"])
    assert client.watch(first["id"])["state"] == "cancelled"


def test_cancel_is_cooperative_within_two_seconds(service, client):
    pid = worker_pid(service)
    waits = []
    for _ in range(3):
        job = service.submit("steps=1000 seconds=0.02", client)
        begun(client, job)
        started = time.monotonic()
        assert client.cancel(job["id"])["state"] == "cancelling"
        assert client.watch(job["id"])["state"] == "cancelled"
        waits.append(time.monotonic() - started)
    assert max(waits) < 2, waits
    assert worker_pid(service) == pid


@pytest.mark.slow
@pytest.mark.parametrize(("wish", "limit"), [("stuck=3", GRACE + 4), ("deaf=3", 2 * GRACE + 5)])
def test_cancel_ends_what_does_not_listen(service, client, wish, limit):
    job = service.submit(f"steps=10 {wish}", client)
    wait_for(lambda: service.stands(job["id"]))
    started = time.monotonic()
    client.cancel(job["id"])
    assert client.watch(job["id"])["state"] == "cancelled"
    assert GRACE * 0.8 < time.monotonic() - started < limit
    assert client.watch(service.submit("steps=1", client)["id"])["state"] == "succeeded"
    assert "next start" not in client.log(job["id"])


@pytest.mark.slow
def test_cancelled_jobs_can_be_taken_up_again(service, client):
    job = service.submit("steps=60 seconds=0.03", client)
    begun(client, job)
    client.cancel(job["id"])
    client.watch(job["id"])
    done = len(service.trace(job["id"]))
    assert 0 < done < 60
    client.retry(job["id"])
    assert client.watch(job["id"])["state"] == "succeeded"
    assert service.trace(job["id"]) == list(range(60))


def test_a_damaged_input_is_a_sentence(service, client):
    blocker = service.submit("steps=100 seconds=0.05", client)
    job = service.submit("steps=1", client, seed=77)
    import hashlib

    sha256 = hashlib.sha256(pictures(77)[2]).hexdigest()
    (service.settings.home / "blobs" / sha256[:2] / sha256).write_bytes(b"rot")
    client.cancel(blocker["id"])
    assert client.watch(job["id"])["error"]["code"] == "blob_damaged"


def test_a_job_deleted_meanwhile(service, client):
    job = service.submit("steps=1", client)
    client.watch(job["id"])
    client.delete(job["id"])
    client.delete(job["id"])  # it is gone, as it should be
    for call in (client.job, client.cancel, client.retry, client.log):
        with pytest.raises(CallError) as caught:
            call(job["id"])
        assert (caught.value.status, caught.value.code) == (404, "job_unknown")


def test_the_status_answers_while_the_worker_is_busy(service, client):
    job = service.submit("steps=200 seconds=0.01", client)
    slow = []

    def poll():
        own = service.client()
        for _ in range(20):
            started = time.monotonic()
            own.job(job["id"])
            slow.append(time.monotonic() - started)

    threads = [threading.Thread(target=poll) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(slow) == 80
    assert sorted(slow)[len(slow) // 2] < 0.5
    client.cancel(job["id"])


@pytest.mark.slow
def test_a_job_without_progress_is_ended(tmp_path):
    with running(tmp_path / "home", stall_limit=0.7, crash_limit=2) as service:
        client = service.client()
        done = client.watch(service.submit("stuck=1", client)["id"])
        assert (done["state"], done["attempt"], done["error"]["code"]) == ("failed", 2, "stalled")


@pytest.mark.slow
def test_too_little_disk_space_holds_the_queue_and_says_so(tmp_path):
    import json

    from backend.service.queue import Queue
    from tests.service.running import request_of

    home = tmp_path / "home"
    home.mkdir()
    queue = Queue(home / "jobs.sqlite3")
    request = request_of("steps=1", [f"{index:064x}" for index in range(8)])
    job, _ = queue.create(json.loads(json.dumps(request)), "key")
    with running(home, min_free=1 << 60) as service:
        wait_for(lambda: queue.get(job.id).stage == "Waiting for free disk space")
        rev = queue.get(job.id).rev
        time.sleep(0.6)
        assert queue.get(job.id).rev == rev, "the note is written once"
        assert service.client().job(job.id)["state"] == "queued"
    queue.close()
