# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker: one process that takes jobs from the queue, one after the other, and runs their pipelines.

It may be killed at any moment. What it owes to others it does in this order: result into the blobs, then the job's row.
Exit code 0: it was asked to end. 75: its device is lost, a fresh process is needed; the job is tried again.
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import filelock

from backend import __version__
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.service import paths, processes
from backend.service.blobs import BlobStore, DamagedError, StoreFullError
from backend.service.job_log import JobLog
from backend.service.queue import BlobsMissingError, Job, Queue
from backend.service.settings import Settings
from blender_addon.contract.arrays import BadFileError, atomic_file

Pipeline = Callable[[dict, Callable[[str], Path], Run], Path]  # request, sha256 -> its file, run -> the result's file

PIPELINES = {  # request kind -> module:function
    "orbit": "backend.pipelines.orbit_video:run_request",
    "object": "backend.pipelines.diffusion4d:run_request",
    "text": "backend.pipelines.diffusion4d:run_request",
    "image": "backend.pipelines.diffusion4d:run_request",
    "video": "backend.pipelines.fourdiffusion:run_request",
}

IDLE_SECONDS = 0.2  # between two looks into an empty queue
LOOK_SECONDS = 0.2  # between two looks whether the job is cancelled; also between two writes of progress
DETAIL_SECONDS = 30.0  # between two lines of the log about how a stage goes
PREVIEW_PIXELS = 512
DEVICE_LOST_EXIT = 75

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
        self.blobs = BlobStore(
            self.home.blobs, min_free=settings.min_free, quota=settings.quota, max_blob=settings.max_blob
        )
        self._stopping = False

    def run(self) -> None:
        """Work until asked to end. Raises WorkerStop or DeviceLost."""
        # A worker that a dead supervisor has left behind ends within seconds; two at once would share checkpoints.
        with filelock.FileLock(self.home.worker_lock):
            self._warm_up()
            while True:
                job = self._next_job()
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
                log.exception("The splatting kernels cannot be compiled")

    def _tell_waiting(self, message: str) -> None:
        """Tell whoever waits for the first job what goes on before it."""
        log.info(message)
        with contextlib.suppress(sqlite3.OperationalError):
            self.queue.note_waiting(message)

    def _next_job(self) -> Job | None:
        try:
            if paths.free_bytes(self.home.folder) < self.settings.min_free:
                self.queue.note_waiting("Waiting for free disk space")
                return None
            return self.queue.claim(self.name, self.settings.lease)
        except (sqlite3.OperationalError, OSError) as error:
            log.warning("The queue cannot be used now: %s", error)
            time.sleep(1.0)
            return None

    def _work(self, job: Job) -> None:
        """Run one job to one of its ends, or give it back."""
        job_log = JobLog(self.home.log(job.id))
        attempt = Attempt(self.settings, self.home, self.queue, job, job_log)
        job_log.write(f"Attempt {job.attempt} begins (Kinesplat {__version__}, {self.name}).")
        with attempt.kept_alive(), job_log.collecting():
            try:
                state = self._try(job, attempt, job_log)
            except WorkerStop:
                state = None
                with contextlib.suppress(sqlite3.Error):
                    state = self.queue.release(job.id, job.attempt)
                ended = (
                    "Ended: cancelled."
                    if state == "cancelled"
                    else "The backend ends; the job goes on at its next start."
                )
                job_log.write(ended)
                raise
        job_log.write(f"Ended: {state}." if state else "The job was taken from this attempt; nothing was written.")
        if state == "succeeded":
            self.home.forget_work(job.id)

    def _try(self, job: Job, attempt: "Attempt", job_log: JobLog) -> str | None:
        """Run the pipeline and write down how it ended; returns the job's final state."""
        try:
            pipeline = load_pipeline(self.settings.pipelines, job.kind)
            work = self.home.work(job.id)
            work.mkdir(parents=True, exist_ok=True)
            run = Run(work, attempt.show, attempt.is_cancelled, self.settings.device)
            result = pipeline(json.loads(job.request), self._input, run)
            if attempt.is_cancelled():
                raise JobCancelled
            return self._keep(job, result)
        except JobCancelled:
            return self._insist(lambda: self.queue.end_cancelled(job.id, job.attempt))
        except Exception as error:
            if _device_is_lost(error):
                job_log.write(f"The GPU is lost, a new worker takes over: {error}")
                raise DeviceLost from error
            failure = as_user_error(error, self.home.folder)
            job_log.write(f"Failed ({failure.code}): {failure} {failure.hint}".rstrip())
            if failure is not error:
                job_log.write("".join(traceback.format_exception(error)).rstrip())
            return self._insist(lambda: self.queue.fail(job.id, job.attempt, failure))

    def _keep(self, job: Job, result: Path) -> str | None:
        """The result into the blobs, then into the job's row."""

        def has_blob(sha256: str) -> bool:
            return not self.blobs.missing([sha256])

        while True:
            sha256, size = self.blobs.add_file(result)
            with contextlib.suppress(BlobsMissingError):  # somebody emptied the folder meanwhile: put it there again
                return self._insist(partial(self.queue.succeed, job.id, job.attempt, sha256, size, has_blob))

    def _input(self, sha256: str) -> Path:
        try:
            return self.blobs.verified(sha256)
        except DamagedError as error:
            raise UserError(
                "blob_damaged", "A file that the request names was lost or damaged on the disk.", "Generate again."
            ) from error

    def _insist(self, write: Callable[[], str | None]) -> str | None:
        """Bring the end of a job into the queue, if need be when there is space on the disk again."""
        while True:
            try:
                return write()
            except sqlite3.OperationalError as error:
                log.warning("The end of a job cannot be written yet: %s", error)
                time.sleep(1.0)


class Attempt:
    """What one attempt tells the queue and hears from it."""

    def __init__(self, settings: Settings, home: paths.Home, queue: Queue, job: Job, job_log: JobLog) -> None:
        self._settings = settings
        self._home = home
        self._queue = queue
        self._job = job
        self._log = job_log
        self._unwanted = False  # cancelled, or taken away
        self._stage = ""
        self._next_look = 0.0
        self._next_write = 0.0
        self._next_detail = 0.0

    def is_cancelled(self) -> bool:
        """Whether the work is not wanted any more; called often, looks into the queue a few times a second."""
        if not self._unwanted and time.monotonic() >= self._next_look:
            with contextlib.suppress(sqlite3.OperationalError):
                self._hear(self._queue.state(self._job.id, self._job.attempt))
        return self._unwanted

    def show(self, progress: Progress) -> None:
        """Write progress down, a few times a second, each stage and each preview at once; now and then to the log."""
        now = time.monotonic()
        if progress.detail and (now >= self._next_detail or progress.step == progress.total):
            self._next_detail = now + DETAIL_SECONDS
            self._log.write(f"{progress.step} of {progress.total}: {progress.detail}")
        new_stage = progress.stage != self._stage
        if not new_stage and progress.preview is None and now < self._next_write:
            return
        self._next_write = now + LOOK_SECONDS
        if new_stage:
            self._stage = progress.stage
            self._log.write(f"{progress.stage} ({progress.fraction:.0%})")
        new_preview = progress.preview is not None and self._save_preview(progress.preview)
        with contextlib.suppress(sqlite3.OperationalError):  # the disk is full: the work goes on
            job = self._job
            self._hear(self._queue.progress(job.id, job.attempt, progress, new_preview=new_preview))

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """While the block lasts a thread renews the lease."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._settings.lease / 5):
                with contextlib.suppress(sqlite3.OperationalError):
                    self._hear(self._queue.beat(self._job.id, self._job.attempt, self._settings.lease))

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _hear(self, state: str | None) -> None:
        self._next_look = time.monotonic() + LOOK_SECONDS
        if state != "running":
            self._unwanted = True

    def _save_preview(self, picture) -> bool:
        """Write the preview in one step; a preview that cannot be written stops no work."""
        from PIL import Image

        image = Image.fromarray(picture)
        image.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        try:
            with atomic_file(self._home.preview(self._job.id)) as file:
                image.save(file, "JPEG", quality=85)
        except OSError as error:
            self._log.write(f"The preview cannot be written: {error}")
            return False
        return True


def as_user_error(error: BaseException, home: Path) -> UserError:
    """Any failure of a pipeline as a sentence with a code and a hint."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, BadFileError):
        return UserError("bad_input", str(error))
    if isinstance(error, StoreFullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return paths.disk_full(home)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        where = "The computer" if isinstance(error, MemoryError) else "The GPU"
        return UserError(
            "out_of_memory",
            f"{where} ran out of memory.",
            "Close other programs, or choose fewer Gaussians, a lower resolution or a lower preset.",
        )
    return UserError(
        "internal_error",
        f"The work stopped because of a fault in Kinesplat ({type(error).__name__}).",
        "The job's log says more. Retry, or report it.",
    )


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


def _device_is_lost(error: BaseException) -> bool:
    """CUDA errors other than a lack of memory leave a context that cannot be used again."""
    name = type(error).__name__
    return name == "AcceleratorError" or (isinstance(error, RuntimeError) and str(error).startswith("CUDA error"))


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
