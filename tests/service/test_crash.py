# SPDX-License-Identifier: GPL-3.0-or-later
"""`kill -9` of the worker and of the API, at chosen points and at random times, while jobs are posted and run.

Promised: no acknowledged job is lost or made twice, every result has the right bytes, the database is whole.
"""

import contextlib
import os
import random
import signal
import threading
import time

import psutil
import pytest

from backend.progress import UserError
from backend.service import paths
from backend.service.client import CallError, Client
from backend.service.queue import Queue
from tests.service.fake_pipelines import expected_result
from tests.service.running import Service, pictures, running, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

POSTERS = 3
WORKER_KILLS, API_KILLS = 12, 4
ENOUGH_CRASHES = 1000  # these kills come from outside; that no job is to blame, the crash limit cannot know


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("crash") / "home") as service:
        yield service


@pytest.mark.parametrize(
    "point",
    [
        "backend.service.blobs:BlobStore.add_file:before",
        "backend.service.blobs:os.fsync:before",
        "backend.service.blobs:os.replace:before",
        "backend.service.blobs:os.replace:after",
        "backend.service.blobs:sync_folder:after",
        "backend.service.queue:Queue.succeed:before",
        "backend.service.queue:Queue.succeed:after",
        "backend.service.paths:Home.forget_work:before",
    ],
)
def test_the_worker_dies_at_this_point_of_handing_over_the_result(service, tmp_path, point):
    name = f"steps=3 die={point}"
    client = service.client()
    job = service.submit(name, client)
    done = client.watch(job["id"])
    assert wait_for((service.settings.home / "jobs" / job["id"] / "died").exists), "it was not killed there"
    assert done["state"] == "succeeded"
    committed = point.endswith(("succeed:after", "forget_work:before"))
    assert done["attempt"] == (1 if committed else 2)
    client.fetch(job["id"], tmp_path / "clip.npz")
    assert (tmp_path / "clip.npz").read_bytes() == expected_result({"name": name}, pictures())
    assert service.trace(job["id"]) == [0, 1, 2]
    assert client.watch(service.submit("steps=1", client)["id"])["state"] == "succeeded"


def test_the_next_start_clears_up(service):
    service.stop()
    home = paths.Home(service.settings.home)
    queue = Queue(home.database)
    assert queue.problems() == []
    queue.close()
    (home.blobs / ".tmp-half").write_bytes(b"x")
    service.start()
    wait_for(lambda: not list(home.jobs.glob("*/work")))
    assert list(home.blobs.glob(".tmp-*")) == []


@pytest.mark.slow
def test_kills_at_random_times(tmp_path, capsys):
    with running(tmp_path / "home", crash_limit=ENOUGH_CRASHES) as service:
        storm = Storm(service, WORKER_KILLS, API_KILLS)
        storm.run()
        client = service.client()
        results = {}
        for key, job_id in storm.acknowledged.items():
            done = client.watch(job_id)
            assert done["state"] == "succeeded", (done, service.log(job_id))
            client.fetch(job_id, tmp_path / "clip.npz")
            results[key] = (tmp_path / "clip.npz").read_bytes()
        rows = client.jobs(limit=1000)
        service.stop()

    queue = Queue(paths.Home(service.settings.home).database)
    lost = set(storm.acknowledged.values()) - {row["id"] for row in rows}
    twice = len(rows) - len(storm.acknowledged)
    wrong = [key for key, data in results.items() if data != expected_result({"name": storm.names[key]}, pictures())]
    interrupted = sum(row["attempt"] > 1 for row in rows)
    with capsys.disabled():
        print(
            f"\n{storm.kills['worker']} worker kills, {storm.kills['api']} API kills: {len(rows)} jobs acknowledged, "
            f"{interrupted} interrupted (at most {max(row['attempt'] for row in rows)} attempts), {storm.retries} "
            f"calls repeated; {len(lost)} lost, {twice} duplicated, {len(wrong)} wrong, database "
            f"{'whole' if not queue.problems() else 'damaged'}"
        )
    assert storm.kills == {"worker": WORKER_KILLS, "api": API_KILLS}
    assert interrupted > 0, "no kill struck a job"
    assert (lost, twice, wrong, queue.problems()) == (set(), 0, [], [])
    for row in rows:
        trace = service.trace(row["id"])
        steps = int(storm.names[queue.get(row["id"]).idempotency_key].split()[0].split("=")[1])
        assert sorted(set(trace)) == list(range(steps))
        assert len(trace) - steps < row["attempt"], "an attempt did more than one step again"
    queue.close()


class Storm:
    """Clients that post jobs, and somebody who kills processes, until enough were killed."""

    def __init__(self, service: Service, worker_kills: int, api_kills: int) -> None:
        self.service = service
        self.wanted = {"worker": worker_kills, "api": api_kills}
        self.kills = {"worker": 0, "api": 0}
        self.acknowledged: dict[str, str] = {}  # key -> job id
        self.names: dict[str, str] = {}  # key -> name
        self.retries = 0
        self.faults: list[str] = []
        self._over = threading.Event()

    def run(self) -> None:
        """All of it."""
        posters = [threading.Thread(target=self._post, args=(index,)) for index in range(POSTERS)]
        killers = [threading.Thread(target=self._kill, args=(name, seed)) for seed, name in enumerate(self.wanted)]
        for thread in posters:
            thread.start()
        wait_for(lambda: len(self.acknowledged) >= 2 * POSTERS or self.faults, 30)
        for thread in killers:
            thread.start()
        for thread in killers:
            thread.join()
        self._over.set()
        for thread in posters:
            thread.join()
        assert self.faults == []

    def _kill(self, name: str, seed: int) -> None:
        dice = random.Random(seed)
        former = 0
        while self.kills[name] < self.wanted[name]:
            child = wait_for(lambda: self.service.children().get(name), 30)
            if child.pid == former:
                time.sleep(0.01)
                continue
            # From before it is up until it has worked for a while.
            time.sleep(dice.uniform(0.1, 1.3) if name == "worker" else dice.uniform(0.1, 3.0))
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                os.kill(child.pid, signal.SIGKILL)
                self.kills[name] += 1
            former = child.pid

    def _post(self, index: int) -> None:
        dice = random.Random(100 + index)
        client = None
        count = 0
        while not self._over.is_set():
            key = f"poster-{index}-{count}"
            name = f"steps={dice.randint(4, 14)} seconds=0.03 of={key}"
            self.names[key] = name
            job = None
            while job is None:  # as the add-on does: the same call with the same key until it is answered
                try:
                    client = client or self.service.client()
                    job = self.service.submit(name, client, key=key)
                except CallError as error:
                    self.faults.append(f"{error.code}: {error}")
                    return
                except UserError:
                    self.retries += 1
                    client = None
                    time.sleep(0.05)
            self.acknowledged[key] = job["id"]
            if dice.random() < 0.2 and not self._same_again(client, name, key, job["id"]):
                return
            count += 1
            time.sleep(dice.uniform(0.1, 0.8))

    def _same_again(self, client: Client, name: str, key: str, job_id: str) -> bool:
        """Posting once more gives the job that there is."""
        with contextlib.suppress(UserError):
            if (again := self.service.submit(name, client, key=key)["id"]) != job_id:
                self.faults.append(f"{key} gave two jobs: {job_id} and {again}")
                return False
        return True


@pytest.mark.slow
def test_the_supervisor_is_killed_again_and_again(tmp_path):
    """All processes die at once, as when the computer is switched off; the next start takes everything up."""
    dice = random.Random(7)
    jobs = {}
    for round_number in range(4):
        service = Service(tmp_path / "home", crash_limit=ENOUGH_CRASHES)
        try:
            service.start()
            client = service.client()
            for index in range(3):
                name = f"steps=12 seconds=0.03 of={round_number}-{index}"
                jobs[service.submit(name, client)["id"]] = name
            if round_number < 3:
                time.sleep(dice.uniform(0.1, 1.2))
                children = list(service.children().values())
                os.kill(service.process.pid, signal.SIGKILL)
                service.process.wait()
                assert not psutil.wait_procs(children, timeout=6)[1]
                continue
            for job_id, name in jobs.items():
                assert client.watch(job_id)["state"] == "succeeded"
                client.fetch(job_id, tmp_path / "clip.npz")
                assert (tmp_path / "clip.npz").read_bytes() == expected_result({"name": name}, pictures())
            assert len(client.jobs()) == len(jobs) == 12
        finally:
            service.ensure_ended()
