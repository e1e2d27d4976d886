# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt at a job, wherever its pipeline runs: what it tells the queue and hears from it, and how it ends.

Whoever makes the attempt may be killed at any moment. What it owes to others it does in this order: result into the
blobs, then the job's row.
"""

import contextlib
import json
import logging
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from backend.progress import JobCancelled, Progress, Run, UserError
from backend.service import paths
from backend.service.blobs import BlobStore, DamagedError
from backend.service.failures import as_user_error
from backend.service.job_log import JobLog
from backend.service.queue import BlobsMissingError, Job, Queue
from backend.service.settings import Settings
from blender_addon.contract.arrays import atomic_file

T = TypeVar("T")
Pipeline = Callable[[dict, Callable[[str], Path], Run], Path]  # request, sha256 -> its file, run -> the result's file

LOOK_SECONDS = 0.2  # between two looks whether the job is cancelled; also between two writes of progress
DETAIL_SECONDS = 30.0  # between two lines of the log about how a stage goes
PREVIEW_PIXELS = 512
OTHER_PROGRAM = "What another version of Kinesplat had done of this job is done anew."

log = logging.getLogger(__name__)


def next_job(settings: Settings, queue: Queue, worker: str) -> Job | None:
    """Take the oldest queued job for `worker`; None where there is none, or no room for its result."""
    try:
        if paths.free_bytes(settings.home) < settings.min_free:
            queue.note_waiting("Waiting for free disk space")
            return None
        return queue.claim(worker, settings.lease)
    except (sqlite3.OperationalError, OSError) as error:
        log.warning("The queue cannot be used now: %s", error)
        time.sleep(1.0)
        return None


def note_put_back(home: paths.Home, job: Job, what: str) -> None:
    """Tell the job's log that an attempt has ended without bringing the job to an end, and what becomes of that."""
    job_log = JobLog(home.log(job.id))
    job_log.write(f"{what} The job is {job.state} now.")
    if job.state == "failed":
        job_log.write(f"{job.error_detail} {job.error_hint}")


def insist(write: Callable[[], T]) -> T:
    """Bring the end of a job into the queue, if need be when there is space on the disk again."""
    while True:
        try:
            return write()
        except sqlite3.OperationalError as error:
            log.warning("The end of a job cannot be written yet: %s", error)
            time.sleep(1.0)


class Attempt:
    """One attempt at `job`, which its caller has claimed."""

    def __init__(self, settings: Settings, queue: Queue, blobs: BlobStore, job: Job) -> None:
        self.job = job
        self.log = JobLog(paths.Home(settings.home).log(job.id))
        self._settings = settings
        self._home = paths.Home(settings.home)
        self._queue = queue
        self._blobs = blobs
        self._unwanted = False  # cancelled, or taken away
        self._stage = ""
        self._next_look = 0.0
        self._next_write = 0.0
        self._next_detail = 0.0

    def run(self, pipeline: Pipeline) -> str | None:
        """Run the pipeline and write down how it ended; returns the job's final state, None if it was taken away.

        What is no Exception is not the job's end: it goes to the caller, who gives the job back.
        """
        with self._kept_alive():
            state = self._run(pipeline)
        self.log.write(f"Ended: {state}." if state else "The job was taken from this attempt; nothing was written.")
        if state == "succeeded":
            self._home.forget_work(self.job.id)
        return state

    def _run(self, pipeline: Pipeline) -> str | None:
        job = self.job
        try:
            if self._home.begin_work(job.id):
                self.log.write(OTHER_PROGRAM)
            run = Run(self._home.work(job.id), self.show, self.is_cancelled, self._settings.device)
            result = pipeline(json.loads(job.request), self._input, run)
            if self.is_cancelled():
                raise JobCancelled
            return self._keep(result)
        except JobCancelled:
            return insist(lambda: self._queue.end_cancelled(job.id, job.attempt))
        except Exception as error:
            failure = as_user_error(error, self._home.folder)
            self.log.write(f"Failed ({failure.code}): {failure} {failure.hint}".rstrip())
            if failure is not error:
                self.log.write("".join(traceback.format_exception(error)).rstrip())
            return insist(lambda: self._queue.fail(job.id, job.attempt, failure))

    def _keep(self, result: Path) -> str | None:
        """The result into the blobs, then into the job's row."""

        def has_blob(sha256: str) -> bool:
            return not self._blobs.missing([sha256])

        while True:
            sha256, size = self._blobs.add_file(result)
            with contextlib.suppress(BlobsMissingError):  # somebody emptied the folder meanwhile: put it there again
                return insist(partial(self._queue.succeed, self.job.id, self.job.attempt, sha256, size, has_blob))

    def _input(self, sha256: str) -> Path:
        try:
            return self._blobs.verified(sha256)
        except DamagedError as error:
            raise UserError(
                "blob_damaged", "A file that the request names was lost or damaged on the disk.", "Generate again."
            ) from error

    def is_cancelled(self) -> bool:
        """Whether the work is not wanted any more; called often, looks into the queue a few times a second."""
        if not self._unwanted and time.monotonic() >= self._next_look:
            with contextlib.suppress(sqlite3.OperationalError):
                self._hear(self._queue.state(self.job.id, self.job.attempt))
        return self._unwanted

    def show(self, progress: Progress) -> None:
        """Write progress down, a few times a second, each stage and each preview at once; now and then to the log."""
        now = time.monotonic()
        if progress.detail and (now >= self._next_detail or progress.step == progress.total):
            self._next_detail = now + DETAIL_SECONDS
            self.log.write(f"{progress.step} of {progress.total}: {progress.detail}", aside=True)
        new_stage = progress.stage != self._stage
        if not new_stage and progress.preview is None and now < self._next_write:
            return
        self._next_write = now + LOOK_SECONDS
        if new_stage:
            self._stage = progress.stage
            self.log.write(f"{progress.stage} ({progress.fraction:.0%})", aside=True)
        new_preview = progress.preview is not None and self._save_preview(progress.preview)
        with contextlib.suppress(sqlite3.OperationalError):  # the disk is full: the work goes on
            job = self.job
            self._hear(self._queue.progress(job.id, job.attempt, progress, new_preview=new_preview))

    @contextlib.contextmanager
    def _kept_alive(self) -> Iterator[None]:
        """While the block lasts a thread renews the lease."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._settings.lease / 5):
                with contextlib.suppress(sqlite3.OperationalError):
                    self._hear(self._queue.beat(self.job.id, self.job.attempt, self._settings.lease))

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
            with atomic_file(self._home.preview(self.job.id)) as file:
                image.save(file, "JPEG", quality=85)
        except OSError as error:
            self.log.write(f"The preview cannot be written: {error}", aside=True)
            return False
        return True
