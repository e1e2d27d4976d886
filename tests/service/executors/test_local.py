# SPDX-License-Identifier: GPL-3.0-or-later
"""What the local executor makes of time that passes; what it does with real processes is in test_worker.py."""

from types import SimpleNamespace

import pytest

from backend.service.executors import local
from backend.service.queue import Queue
from backend.service.settings import Settings
from tests.service.running import request_of


class Worker:
    """A child that lives until it is killed."""

    name, killed = "worker-1", False

    def exit_code(self) -> None:
        """It lives."""

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: time.now, time=lambda: time.now))
    return time


@pytest.fixture
def executor(tmp_path, clock):
    queue = Queue(tmp_path / "jobs.sqlite3", clock=lambda: clock.now)
    made = local.LocalExecutor(Settings(tmp_path, stall_limit=60.0), queue)
    made.process.child = Worker()
    queue.create(request_of("any", [f"{index:064x}" for index in range(8)]), "key")
    queue.claim(Worker.name, lease=1e9)
    yield made
    queue.close()


def pass_time(executor, clock, seconds: float, step: float = 0.5) -> None:
    for _ in range(round(seconds / step)):
        clock.now += step
        executor.tick()


def test_a_worker_without_progress_is_killed_when_its_time_is_over(executor, clock):
    pass_time(executor, clock, 58)
    assert not executor.process.child.killed
    pass_time(executor, clock, 4)
    assert executor.process.child.killed


def test_nobody_is_blamed_for_the_time_that_the_computer_slept(executor, clock):
    pass_time(executor, clock, 30)
    pass_time(executor, clock, 8 * 3600, step=8 * 3600)  # Windows' clock goes on meanwhile
    pass_time(executor, clock, 20)
    assert not executor.process.child.killed
    pass_time(executor, clock, 20)
    assert executor.process.child.killed


def test_a_cluster_that_worked_before_is_told_to_leave_off(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(local, "Child", lambda module, settings, log: started.append((module, settings)))
    queue = Queue(tmp_path / "jobs.sqlite3")
    local.LocalExecutor(Settings(tmp_path), queue)
    assert started == []
    queue.set_fact("ray_address", "head:6379")  # as the Ray executor does
    local.LocalExecutor(Settings(tmp_path), queue)
    ((module, settings),) = started
    assert module == "backend.service.executors.ray"
    assert (settings.executor, settings.ray_address) == ("ray", "head:6379")
    queue.close()
