# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes: who starts whom, who ends with whom, and what a restart finds."""

import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest

from backend.progress import UserError
from backend.service import paths, supervisor
from backend.service.client import CallError, Client
from backend.service.queue import Queue
from backend.service.settings import Settings
from tests.service.fake_pipelines import expected_result
from tests.service.running import ROOT, pictures, running, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

API_SECONDS = 1.5  # of CPU time until the API can answer


def serve_command(home, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "backend", "serve", "--home", str(home), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def all_ended(processes, seconds: float = 6.0) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def full_database() -> sqlite3.OperationalError:
    """As SQLite tells of a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def test_the_api_imports_no_torch_and_starts_fast():
    code = """
import sys, time, resource
import backend.service.api
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted(set(sys.modules) & {"torch", "numba", "scipy", "PIL", "bpy", "av"})
print(usage.ru_utime + usage.ru_stime, *heavy)
"""

    def start() -> float:
        command = [sys.executable, "-c", code]
        seconds, *found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        assert found == []
        return float(seconds)

    # One of three: other processes on the same cores cost caches.
    assert any(start() < API_SECONDS for _ in range(3))


def test_files_of_a_running_backend(tmp_path):
    with running(tmp_path / "home") as service:
        home = paths.Home(service.settings.home)
        server = json.loads(home.server.read_text())
        assert server["pid"] == service.process.pid
        assert {"port", "version", "api_version", "started", "host", "product"} <= server.keys()
        with socket.create_connection(("127.0.0.1", server["port"]), timeout=5):
            pass
        assert sorted(service.children()) == ["api", "worker"]
        assert service.said == [
            f"Kinesplat {server['version']} is ready at http://127.0.0.1:{server['port']}, data in {home.folder}"
            " (Ctrl-C ends it)"
        ]
        assert home.token.read_text().strip() not in " ".join(
            word for child in service.children().values() for word in child.cmdline()
        )
    assert not home.server.exists()


@pytest.mark.slow
def test_signals_end_it_cleanly_and_a_running_job_goes_on_later(tmp_path):
    steps, job, signals = 60, None, ("SIGTERM", "SIGINT", "SIGHUP")
    for name in signals:
        with running(tmp_path / "home") as service:
            client = service.client()
            job = job or service.submit(f"steps={steps} seconds=0.05", client)
            begun = client.job(job["id"])["step"]
            wait_for(lambda: client.job(job["id"])["step"] > begun + 3)  # noqa: B023
            children = list(service.children().values())
            started = time.monotonic()
            assert service.stop(getattr(signal, name)) == 0, name
            assert time.monotonic() - started < 6, name
            assert all_ended(children, 0.1), name
            queue = Queue(paths.Home(service.settings.home).database)
            row = queue.get(job["id"])
            queue.close()
            assert (row.state, row.crashes) == ("queued", 0), name  # no crash: it was given back
    with running(tmp_path / "home") as service:
        assert service.client().watch(job["id"])["state"] == "succeeded"
        trace = service.trace(job["id"])
        assert sorted(set(trace)) == list(range(steps))
        # The step that a signal cut off, before its checkpoint, is done again.
        assert len(trace) <= steps + len(signals)


@pytest.mark.slow
def test_kill_of_the_supervisor_takes_the_children_along_and_a_restart_resumes(tmp_path):
    home = tmp_path / "home"
    with running(home) as service:
        client = service.client()
        job = service.submit("steps=60 seconds=0.05", client)
        queued = service.submit("steps=3", client)
        wait_for(lambda: client.job(job["id"])["step"] > 5)
        children = list(service.children().values())
        assert len(children) == 2
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        assert all_ended(children), "children outlived the supervisor"
        assert paths.Home(home).server.exists()
        with pytest.raises(UserError, match="No backend runs"):
            Client(home)
    with running(home) as service:
        client = service.client()
        assert client.watch(job["id"])["state"] == "succeeded"
        assert client.watch(queued["id"])["state"] == "succeeded"
        trace = service.trace(job["id"])
        assert sorted(set(trace)) == list(range(60))
        assert len(trace) <= 61  # at most the step in hand was done again
        client.fetch(job["id"], tmp_path / "clip.npz")
        expected = expected_result({"name": "steps=60 seconds=0.05"}, pictures())
        assert (tmp_path / "clip.npz").read_bytes() == expected


@pytest.mark.slow
def test_children_follow_also_without_the_help_of_linux(tmp_path):
    """On other systems only the closed pipe tells them; Linux's signal is switched off here."""
    code = """
import signal, sys, time
from pathlib import Path
from backend.service import processes
processes.PR_SET_PDEATHSIG = 4  # PR_SET_DUMPABLE: harmless
import os
print(os.getpid(), flush=True)
processes.follow_parent(int(sys.argv[1]), lambda: Path(sys.argv[2]).write_text("told"))
processes.say_ready()
time.sleep(60)
"""
    parent = """
import subprocess, sys, os, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]], stdin=subprocess.PIPE,
    stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), flush=True)
child.stdout.readline()
print("ready", flush=True)
time.sleep(60)
"""
    told = tmp_path / "told"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, code, str(told)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(process.stdout.readline()))
    assert process.stdout.readline().strip() == "ready"
    process.kill()
    process.wait()
    assert all_ended([child])
    assert told.read_text() == "told"


@pytest.mark.slow
def test_a_killed_child_is_replaced(tmp_path):
    with running(tmp_path / "home") as service:
        client = service.client()
        for name in ("api", "worker"):
            before = wait_for(lambda: service.children().get(name))  # noqa: B023
            for _ in range(2):
                os.kill(before.pid, signal.SIGKILL)
                if name == "api":  # the supervisor holds the port, so nobody is told that there is no backend
                    client.session.close()
                    time.sleep(0.05)
                    assert all(job["state"] == "succeeded" for job in client.jobs())
                after = wait_for(lambda: (now := service.children().get(name)) and now.pid != before.pid and now)  # noqa: B023
                before = after
                done = retried(lambda: client.watch(service.submit("steps=2", client)["id"]))
                assert done["state"] == "succeeded"


def retried(call, times: int = 20):
    """`call` again while its connection breaks."""
    for _ in range(times):
        try:
            return call()
        except CallError:
            raise
        except UserError:
            time.sleep(0.1)
    return call()


@pytest.mark.slow
def test_an_api_that_cannot_start_ends_it_with_a_sentence(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "uvicorn.py").write_text("raise ImportError('no uvicorn here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken), str(ROOT)]))
    answer = serve_command(tmp_path / "home")
    assert answer.returncode == 1
    assert "does not start" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "no uvicorn here" in (tmp_path / "home" / "logs" / "api.log").read_text()


@pytest.mark.slow
def test_one_backend_per_data_directory(tmp_path):
    with running(tmp_path / "home") as service:
        second = serve_command(tmp_path / "home")
        assert second.returncode == 2
        assert f"process {service.process.pid}" in second.stderr
        assert "runs already" in second.stderr
        assert "Traceback" not in second.stderr
        assert service.client().jobs() == []  # the first one was not disturbed
        with running(tmp_path / "another") as other:
            assert other.client().url != service.client().url


def test_a_taken_port_is_a_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = serve_command(tmp_path / "home", "--port", str(port))
    assert answer.returncode == 1
    assert f"Port {port} cannot be used" in answer.stderr
    assert "--port" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_other_computers_are_refused(tmp_path):
    answer = serve_command(tmp_path / "home", "--listen", "0.0.0.0")
    assert answer.returncode == 2
    assert "encrypted" in answer.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    answer = serve_command(tmp_path / "home")
    tmp_path.chmod(0o700)
    assert answer.returncode == 1
    assert "cannot be written" in answer.stderr


def test_a_home_that_is_a_file(tmp_path):
    (tmp_path / "home").write_text("letter")
    answer = serve_command(tmp_path / "home")
    assert answer.returncode == 1
    assert "cannot be written" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_damaged_job_list_is_a_sentence(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "jobs.sqlite3").write_bytes(b"letter " * 1000)
    answer = serve_command(home)
    assert answer.returncode == 1
    assert "is damaged" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_job_list_that_cannot_be_opened_is_a_sentence(tmp_path):
    (tmp_path / "home" / "jobs.sqlite3").mkdir(parents=True)
    answer = serve_command(tmp_path / "home")
    assert answer.returncode == 1
    assert "jobs.sqlite3 cannot be used" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), full_database()])
def test_a_disk_that_is_full_at_the_start_is_a_sentence(tmp_path, monkeypatch, error):
    def no_space(home: paths.Home) -> None:
        raise error

    monkeypatch.setattr(paths, "note_installation", no_space)
    with pytest.raises(UserError, match="too little free space") as caught:
        supervisor.serve(Settings(tmp_path / "home"))
    assert caught.value.code == "disk_full"


@pytest.mark.slow
def test_a_path_with_spaces_and_umlauts_and_a_client_that_ends_it(tmp_path):
    with running(tmp_path / "Daten für Läufe" / "home") as service:
        assert service.client().watch(service.submit("steps=2")["id"])["state"] == "succeeded"
        children = list(service.children().values())
        service.client().shut_down()
        assert service.process.wait(8) == 0
        assert all_ended(children, 0.1)


@pytest.mark.slow
def test_the_janitor_at_work(tmp_path):
    home = paths.Home(tmp_path / "home")
    paths.prepare(home)
    old = home.blobs / "aa" / ("a" * 64)
    old.parent.mkdir()
    old.write_bytes(b"nobody names me")
    os.utime(old, (1, 1))
    (home.blobs / ".tmp-half").write_bytes(b"x")
    (home.jobs / ("0" * 16) / "work").mkdir(parents=True)  # of a job that was deleted
    with running(home.folder):
        wait_for(lambda: not old.exists() and not (home.blobs / ".tmp-half").exists())
        wait_for(lambda: not (home.jobs / ("0" * 16)).exists())
