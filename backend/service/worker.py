# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker: one process that takes jobs from the queue, one after the other, and runs their pipelines.

Exit code 0: it was asked to end. 75: its device is lost, a fresh process is needed; the job is tried again.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import filelock

from backend import __version__
from backend.progress import Run
from backend.service import paths, processes
from backend.service.attempt import Attempt, Pipeline, next_job
from backend.service.blobs import BlobStore
from backend.service.failures import device_is_lost
from backend.service.processes import DEVICE_LOST_EXIT
from backend.service.queue import Job, Queue
from backend.service.settings import Settings
from backend.versions import program_key

PIPELINES = {  # request kind -> module:function
    "orbit": "backend.pipelines.orbit_video:run_request",
    "object": "backend.pipelines.diffusion4d:run_request",
    "text": "backend.pipelines.diffusion4d:run_request",
    "image": "backend.pipelines.diffusion4d:run_request",
    "video": "backend.pipelines.fourdiffusion:run_request",
}

IDLE_SECONDS = 0.2  # between two looks into an empty queue

log = logging.getLogger(__name__)


class WorkerStop(BaseException):
    """The process was asked to end; raised in the main thread, wherever it is."""


class DeviceLost(BaseException):
    """The GPU's context is broken; only a new process can use the GPU again."""


def load_pipeline(registry: str, kind: str) -> Pipeline:
    """The pipeline that `registry` (module:name) lists for a kind of request, imported."""
    target = _imported(registry)[kind]
    return _imported(target) if isinstance(target, str) else target


class Worker:
    """The loop over jobs."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.home = paths.Home(settings.home)
        self.queue = Queue(self.home.database)
        self.blobs = BlobStore.limited(self.home.blobs, settings)
        self._stopping = False

    def run(self) -> None:
        """Work until asked to end. Raises WorkerStop or DeviceLost."""
        # A worker that a dead supervisor has left behind ends within seconds; two at once would share checkpoints.
        with filelock.FileLock(self.home.worker_lock):
            program_key()  # of what is imported now, not of what may lie there by the time of the first job
            self._warm_up()
            while True:
                job = next_job(self.settings, self.queue, self.name)
                if job is None:
                    time.sleep(IDLE_SECONDS)
                else:
                    self._work(job)

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Signal handler: leave whatever goes on, once."""
        if not self._stopping:
            self._stopping = True
            raise WorkerStop

    def _warm_up(self) -> None:
        """Import the pipelines and compile what they draw with before the first job needs it; tell what they run on."""
        try:
            kinds = list(_imported(self.settings.pipelines))
        except Exception:
            log.exception("The pipelines cannot be found; each job will say so")
            return
        for kind in kinds:
            try:
                load_pipeline(self.settings.pipelines, kind)
            except Exception:  # the other kinds can do without it
                log.exception("The pipeline of kind %s cannot be loaded; its jobs will say so", kind)
        with contextlib.suppress(sqlite3.OperationalError):
            self.queue.set_fact("device", describe_device(self.settings.device))
        if (splatting := sys.modules.get("backend.splatting.rasterize")) is not None:  # a pipeline draws
            try:
                splatting.warm_up(self._tell_waiting)
            except Exception:  # jobs that need them will say so
                log.exception("The kernels cannot be compiled")

    def _tell_waiting(self, message: str) -> None:
        """Tell whoever waits for the first job what goes on before it."""
        log.info(message)
        with contextlib.suppress(sqlite3.OperationalError):
            self.queue.note_waiting(message)

    def _work(self, job: Job) -> None:
        """Run one job to one of its ends, or give it back."""
        attempt = Attempt(self.settings, self.queue, self.blobs, job)
        attempt.log.write(f"Attempt {job.attempt} begins (Kinesplat {__version__}, {self.name}).")
        try:
            with attempt.log.collecting():
                attempt.run(partial(self._run_pipeline, attempt))
        except WorkerStop:
            state = None
            with contextlib.suppress(sqlite3.Error):
                state = self.queue.release(job.id, job.attempt)
            attempt.log.write(
                "Ended: cancelled." if state == "cancelled" else "The backend ends; the job goes on at its next start."
            )
            raise

    def _run_pipeline(self, attempt: Attempt, request: dict, blob: Callable[[str], Path], run: Run) -> Path:
        try:
            return load_pipeline(self.settings.pipelines, attempt.job.kind)(request, blob, run)
        except Exception as error:
            if device_is_lost(error):
                attempt.log.write(f"The GPU is lost, a new worker takes over: {error}")
                raise DeviceLost from error
            raise


def describe_device(wanted: str) -> dict | None:
    """What splatting runs on and why, and the GPU that torch sees; None as long as nothing has loaded torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    from backend.splatting.engine import expected_engine
    from backend.splatting.rasterize.gsplat_kernels import surroundings

    engine = expected_engine(wanted)
    return {
        "type": engine.device.type,
        "name": engine.name if engine.is_gpu else f"{os.cpu_count()} cores",
        "gpu": surroundings().gpu,
        "torch": torch.__version__,
        "notes": list(engine.notes),
    }


def _imported(target: str) -> object:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def main(settings_json: str, launch_json: str) -> int:
    """The worker's process, started by the supervisor; returns its exit code."""
    import faulthandler

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    faulthandler.enable()
    settings, launch = Settings.from_json(settings_json), json.loads(launch_json)
    worker = Worker(settings, launch["name"])
    try:
        signal.signal(signal.SIGTERM, worker.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        processes.follow_parent(launch["parent"], _interrupt_main)
        processes.prefer_as_victim()
        processes.say_ready()
        worker.run()
    except WorkerStop:
        return 0
    except DeviceLost:
        return DEVICE_LOST_EXIT
    return 0


def _interrupt_main() -> None:
    """SIGTERM's handler in the main thread, on every system."""
    import _thread

    _thread.interrupt_main(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
