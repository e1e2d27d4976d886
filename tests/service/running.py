# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole service in processes of its own, with the fake pipelines, for tests."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from backend.service import paths
from backend.service.client import Client
from backend.service.settings import Settings
from blender_addon.contract.orbit import Orbit, orbit_cameras
from blender_addon.contract.requests import orbit_request

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = "tests.service.fake_pipelines:PIPELINES"
SERVE = """
import sys
from backend.service.settings import Settings
from backend.service.supervisor import serve
serve(Settings.from_json(sys.argv[1]), lambda line: print(line, flush=True))
"""
FRAMES = 8


def request_of(name: str, frames: list[str], **settings: object) -> dict:
    """A request of kind `orbit` whose frames are these blobs."""
    cameras = orbit_cameras(Orbit(frames=len(frames)), 64, 64, moving=True).to_json()
    moving = {"frames": frames, "cameras": cameras}
    return orbit_request(name, moving, None, None, np.eye(4).tolist(), **settings)


def pictures(seed: int = 0) -> list[bytes]:
    """The bytes of some frames."""
    return [f"frame {index} of {seed}".encode() * 50 for index in range(FRAMES)]


class Service:
    """One supervisor with its children."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.settings = Settings(home, **{"pipelines": PIPELINES, "min_free": 0, **settings})
        self.process: subprocess.Popen | None = None
        self.said: list[str] = []
        self._writing = threading.Lock()

    def start(self, timeout: float = 30.0) -> "Service":
        """Start it and wait until it is ready."""
        self.said = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, self.settings.to_json()],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        wait_for(lambda: any("is ready" in line for line in self.said), timeout, lambda: "\n".join(self.said))
        return self

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def client(self) -> Client:
        """A client of it."""
        return Client(self.settings.home)

    def submit(self, name: str, client: Client | None = None, seed: int = 0, key: str | None = None) -> dict:
        """Submit a job that does what `name` says (see fake_pipelines)."""
        client = client or self.client()
        folder = self.settings.home.parent / f"frames-{seed}"
        with self._writing:
            if not folder.exists():
                folder.mkdir()
                for index, data in enumerate(pictures(seed)):
                    (folder / f"{index}.png").write_bytes(data)
        frames = [client.upload(folder / f"{index}.png") for index in range(FRAMES)]
        return client.submit(request_of(name, frames), key or os.urandom(8).hex(), "tests")

    def children(self) -> dict[str, psutil.Process]:
        """The living children, by `api` and `worker`."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()  # empty while it is being made, and when it has ended
                if len(words) > 2 and words[1] == "-m":
                    found[words[2].rsplit(".", 1)[-1]] = child
        return found

    def trace(self, job_id: str) -> list[int]:
        """The steps that were done, over all attempts."""
        return [int(line) for line in (self.settings.home / "jobs" / job_id / "trace").read_text().split()]

    def stands(self, job_id: str) -> bool:
        """Whether it has come to where it listens to nobody any more (`stuck`, `deaf`)."""
        return (self.settings.home / "jobs" / job_id / "stands").exists()

    def log(self, job_id: str) -> str:
        """A job's log."""
        return paths.Home(self.settings.home).log(job_id).read_text()

    def stop(self, number: int = signal.SIGTERM, timeout: float = 12.0) -> int:
        """End it; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def ensure_ended(self) -> None:
        """After a test."""
        if self.process and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running(home: Path, **settings: object) -> Iterator[Service]:
    """A service for the length of a block."""
    service = Service(home, **settings)
    try:
        yield service.start()
    finally:
        service.ensure_ended()


def wait_for(condition: Callable[[], object], timeout: float = 10.0, what: Callable[[], str] = lambda: "") -> object:
    """What `condition` gives as soon as it is true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout} s in vain. {what()}")
