# SPDX-License-Identifier: GPL-3.0-or-later
"""What either executor promises, by the same tests: how jobs end, whoever dies, is cancelled or comes too late."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from backend import __version__
from backend.progress import UserError
from backend.service import paths
from backend.service.queue import Queue
from tests.service.executors.conftest import RESOURCE, actors, needs_ray
from tests.service.fake_pipelines import expected_result
from tests.service.running import ROOT, pictures, running, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

GRACE = 1.0
only_ray = pytest.mark.parametrize("service", [pytest.param("ray", marks=needs_ray)], indirect=True)
PATIENCE = 120.0  # seconds until a job has begun: Ray starts a process for each


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=needs_ray)])
def service(request, tmp_path_factory):
    """A service with this executor; checkpoints and traces lie in its home with both."""
    home = tmp_path_factory.mktemp(request.param) / "home"
    home.mkdir()
    settings = {"executor": request.param, "cancel_grace": GRACE, "kill_grace": GRACE}
    if request.param == "ray":
        address = request.getfixturevalue("cluster").address
        settings |= {"ray_address": address, "ray_resource": RESOURCE, "ray_folder": str(home)}
    with running(home, **settings) as service:
        yield service


@pytest.fixture
def client(service):
    return service.client()


def begun(client, job: dict, step: int = 1) -> dict:
    """The job once it has done so many steps."""
    return wait_for(lambda: (now := client.job(job["id"]))["step"] >= step and now, PATIENCE)


def is_right(client, job: dict, tmp_path) -> bool:
    """Whether the job's result is what it must be."""
    client.fetch(job["id"], tmp_path / "clip.npz")
    return (tmp_path / "clip.npz").read_bytes() == expected_result({"name": job["name"]}, pictures())


def test_success(service, client, tmp_path):
    job = service.submit("steps=30 seconds=0.05", client)
    seen = []
    done = client.watch(job["id"], seen.append)
    assert (done["state"], done["attempt"], done["fraction"]) == ("succeeded", 1, 1.0)
    assert is_right(client, job, tmp_path)
    fractions = [item["fraction"] for item in seen]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) >= 4, "progress was not shown"
    assert "Working" in {item["stage"] for item in seen}
    picture = Image.open(io.BytesIO(client._answer("GET", f"/jobs/{job['id']}/preview").content))
    assert (picture.format, picture.size) == ("JPEG", (256, 512))
    log = wait_for(lambda: "Ended: succeeded." in (text := client.log(job["id"])) and text)
    for words in ("Attempt 1 begins", "Reading", "30 of 30: loss 30", "Done"):
        assert words in log
    wait_for(lambda: not (service.settings.home / "jobs" / job["id"] / "work").exists())  # nobody needs it any more


@pytest.mark.parametrize(
    ("wish", "code", "message"),
    [
        ("user=2", "no_subject", "The pictures are empty."),
        ("bug=2", "internal_error", "The work stopped because of a fault in Kinesplat (KeyError)."),
    ],
)
def test_failure_is_a_sentence(service, client, wish, code, message):
    done = client.watch(service.submit(wish, client)["id"])
    assert (done["state"], done["error"]["code"], done["error"]["message"]) == ("failed", code, message)
    assert done["attempt"] == 1, "what will fail again is not tried again"
    log = client.log(done["id"])
    assert f"Failed ({code})" in log
    assert ("KeyError: 'secret of the code'" in log) == (code == "internal_error")


def test_cancel_is_cooperative_and_a_retry_goes_on_from_the_checkpoint(service, client, tmp_path):
    job = service.submit("steps=100 seconds=0.03", client)
    begun(client, job)
    started = time.monotonic()
    client.cancel(job["id"])
    assert client.watch(job["id"])["state"] == "cancelled"
    assert time.monotonic() - started < 3
    done = len(service.trace(job["id"]))
    assert 0 < done < 100
    client.retry(job["id"])
    assert client.watch(job["id"])["state"] == "succeeded"
    assert is_right(client, job, tmp_path)
    assert service.trace(job["id"]) == list(range(100)), "a step was done twice, or while nobody wanted it"


@pytest.mark.slow
def test_cancel_ends_what_does_not_listen(service, client):
    job = service.submit("steps=10 seconds=0.1 deaf=3", client)
    begun(client, job)
    wait_for(lambda: service.stands(job["id"]))
    started = time.monotonic()
    client.cancel(job["id"])
    assert client.watch(job["id"])["state"] == "cancelled"
    assert GRACE * 0.8 < time.monotonic() - started < 2 * GRACE + 5


def test_a_killed_process_costs_an_attempt_and_no_step(service, client, tmp_path):
    job = service.submit("steps=10 once=5", client)
    done = client.watch(job["id"])
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    assert is_right(client, job, tmp_path)
    assert service.trace(job["id"]) == list(range(10))
    assert "The job is queued now." in client.log(job["id"])


@pytest.mark.slow
def test_a_late_result_is_not_taken(service, client, tmp_path):
    """The job is taken from a living attempt, as a supervisor does that takes it for dead."""
    job = service.submit("steps=60 seconds=0.05", client)
    begun(client, job)
    queue = Queue(paths.Home(service.settings.home).database)
    late = queue.get(job["id"])
    assert [now.state for now in queue.settle(late.worker, UserError("taken", "Taken."), 3)] == ["queued"]
    done = client.watch(job["id"])
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    assert is_right(client, job, tmp_path)
    assert queue.succeed(job["id"], late.attempt, "0" * 64, 1, lambda name: True) is None
    queue.close()
    assert "The job was taken from this attempt; nothing was written." in client.log(job["id"])


@pytest.mark.slow
def test_the_server_is_killed_while_a_job_runs(service, client, tmp_path):
    job = service.submit("steps=150 seconds=0.05", client)
    begun(client, job, 5)
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()
    service.start(PATIENCE)
    client = service.client()
    done = client.watch(job["id"])
    assert done["state"] == "succeeded"
    assert is_right(client, job, tmp_path)
    trace = service.trace(job["id"])
    if service.settings.executor == "ray":
        assert done["attempt"] == 1, "the attempt did not outlive the server"
        assert trace == list(range(150))
        assert "takes up attempt 1" in client.log(job["id"])
    else:
        assert done["attempt"] == 2
        assert sorted(set(trace)) == list(range(150))
        assert len(trace) <= 151  # at most the step in hand was done again


@only_ray
def test_as_many_jobs_run_as_there_are_places_and_a_dead_machine_costs_one_attempt(service, client, cluster, tmp_path):
    machine = cluster.add_machine()
    jobs = [service.submit(f"steps=300 seconds=0.05 of={index}", client) for index in range(2)]
    for job in jobs:
        begun(client, job)
    assert [client.job(job["id"])["state"] for job in jobs] == ["running", "running"]
    cluster.kill_machine(machine)
    done = [client.watch(job["id"]) for job in jobs]
    assert [job["state"] for job in done] == ["succeeded", "succeeded"]
    assert sorted(job["attempt"] for job in done) == [1, 2]
    for job in done:
        assert is_right(client, job, tmp_path)
        assert len(service.trace(job["id"])) - 300 < job["attempt"], "more than the step in hand was done again"


@only_ray
def test_an_attempt_that_nobody_wants_any_more_is_ended_at_the_next_start(service, client):
    job = service.submit("steps=10000 seconds=0.05", client)
    begun(client, job)
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()
    queue = Queue(paths.Home(service.settings.home).database)
    queue.cancel(job["id"])
    assert [now.state for now in queue.settle(queue.get(job["id"]).worker, UserError("", ""), 3)] == ["cancelled"]
    queue.close()
    assert actors(), "it should have outlived the server"
    service.start(PATIENCE)
    wait_for(lambda: not actors(), PATIENCE)


@only_ray
def test_a_server_that_now_works_alone_takes_its_jobs_out_of_the_cluster(service, client, tmp_path):
    job = service.submit("steps=300 seconds=0.05", client)
    begun(client, job)
    service.stop()
    assert actors(), "it should go on without the server"
    ray_settings = service.settings
    try:
        service.settings = replace(ray_settings, executor="local")
        service.start(PATIENCE)
        wait_for(lambda: not actors(), PATIENCE)
        assert service.client().watch(job["id"])["state"] == "succeeded"
    finally:
        service.stop()
        service.settings = ray_settings
        service.start(PATIENCE)


@only_ray
def test_a_place_that_never_comes_is_not_waited_for_for_ever(service, monkeypatch):
    """An actor that Ray does not start: its first call is never answered."""
    from backend.service.executors import ray_dispatcher

    monkeypatch.setattr(ray_dispatcher.ray, "wait", lambda answers, timeout: ([], answers))
    never = SimpleNamespace(prepare=SimpleNamespace(remote=lambda: object()))
    attempt = SimpleNamespace(is_cancelled=lambda: False, job=SimpleNamespace(fraction=0.0), show=lambda progress: None)
    conversation = ray_dispatcher.Conversation(replace(service.settings, ray_placing=0.2), attempt, never)
    with pytest.raises(ray_dispatcher.AttemptLost, match="no place") as caught:
        conversation.run({}, None, None)
    assert caught.value.error.code == "ray_no_place"


@only_ray
def test_doctor_tells_about_the_machines(service, cluster):
    code = """
import sys
from backend.service.doctor import check_cluster
from backend.service.settings import Settings
print(check_cluster(Settings.from_json(sys.argv[1]))[:2])
"""
    command = [sys.executable, "-c", code, service.settings.to_json()]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "('ok', 'jobs that can run at once: 1" in answer.stdout, answer
    assert f"1 {RESOURCE}, Kinesplat {__version__}" in answer.stdout


def test_nothing_is_left_running(service):
    """After all of these."""
    wait_for(lambda: not actors())
    executor = "worker" if service.settings.executor == "local" else "ray_dispatcher"
    assert sorted(service.children()) == sorted(["api", executor])
