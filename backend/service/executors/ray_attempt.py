# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt on a machine of the Ray cluster: an actor that gets inputs, works, answers questions, hands out its clip.

The actor knows no queue and calls nobody. What is said crosses as JSON texts and bytes, never as objects of our own.
"""

import contextlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path

from backend import __version__
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.service import paths, processes
from backend.service.attempt import OTHER_PROGRAM
from backend.service.blobs import BlobStore, StoreFullError
from backend.service.failures import as_user_error, device_is_lost
from backend.service.job_log import Spoken
from backend.service.settings import Settings
from backend.service.worker import load_pipeline
from blender_addon.contract.requests import file_sha256, request_blobs

WATCH_SECONDS = 5.0


class RayAttempt:
    """The actor. Ray runs its calls one after the other; the pipeline has a thread of its own."""

    def __init__(self, settings_json: str, job_json: str) -> None:
        """`job_json`: the job's id, kind and request."""
        self.settings = Settings.from_json(settings_json)
        self.job = json.loads(job_json)
        self.cache = paths.Home(cache_folder())
        self.cache.blobs.mkdir(parents=True, exist_ok=True)
        self.home = paths.Home(Path(self.settings.ray_folder)) if self.settings.ray_folder else self.cache
        self.blobs = BlobStore.limited(self.cache.blobs, self.settings)
        self._log = Spoken()
        self._arriving = contextlib.ExitStack()  # the input that is being received
        self._blob = None
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._news: list[Progress] = []  # that nobody has asked for yet: of each stage the newest
        self._last: list[Progress] = []  # the newest of all
        self._lock = threading.Lock()  # of both
        self._result: Path | None = None
        self._end: dict | None = None
        self._asked = time.monotonic()
        # Ray says 1 to whoever asks for no CPUs. Nothing here has loaded torch yet.
        os.environ.pop("OMP_NUM_THREADS", None)
        logging.getLogger("backend").setLevel(logging.INFO)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def prepare(self) -> str:
        """Who this is and what it lacks: version, machine, sha256 of missing inputs, whether the work has begun."""
        self._asked = time.monotonic()
        self._arriving.close()  # of a server that was killed while it sent
        with self._lock:
            self._news = self._news or self._last  # whoever asks knows nothing yet
        missing = [] if self._thread else self.blobs.missing(request_blobs(self.job["request"]))
        about = {"version": __version__, "machine": socket.gethostname(), "missing": missing}
        return json.dumps(about | {"begun": self._thread is not None})

    def receive(self, sha256: str, chunk: bytes, is_first: bool, is_last: bool) -> str:
        """The next bytes of an input; returns a sentence where they cannot be written.

        Raises:
            WrongHashError: they are not those of `sha256`.
        """
        self._asked = time.monotonic()
        try:
            if is_first:
                self._blob = self._arriving.enter_context(self.blobs.incoming())
            self._blob.write(chunk)
            if is_last:
                with self._arriving:
                    self._blob.keep(sha256)
        except (StoreFullError, OSError) as error:
            self._arriving.close()
            why = "there is too little free space" if isinstance(error, StoreFullError) else error.strerror
            return f"The inputs cannot be written to {self.cache.folder} on {socket.gethostname()}: {why}."
        return ""

    def begin(self) -> None:
        """Start the work; once is enough."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="attempt", daemon=True)
            self._thread.start()

    def poll(self) -> tuple[str, list[bytes]]:
        """What is new: messages, progress and how the work ended, as JSON; for each progress the preview's pixels."""
        self._asked = time.monotonic()
        end = self._end  # before the messages: those that it follows must not stay behind
        with self._lock:
            news, self._news = self._news, []
        previews = [progress.preview for progress in news]
        shapes = [None if preview is None else preview.shape for preview in previews]
        shown = [asdict(replace(progress, preview=None)) for progress in news]
        text = json.dumps({"messages": self._log.take(), "news": shown, "shapes": shapes, "end": end})
        return text, [b"" if preview is None else preview.tobytes() for preview in previews]

    def cancel(self) -> None:
        """Ask the pipeline to leave off."""
        self._cancelled.set()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the result."""
        self._asked = time.monotonic()
        with open(self._result, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def forget(self) -> None:
        """The result has arrived: nobody needs the checkpoints any more."""
        self.home.forget_work(self.job["id"])
        with contextlib.suppress(OSError):
            self.home.work(self.job["id"]).parent.rmdir()  # unless something else lies there

    def _work(self) -> None:
        with self._log.collecting():
            try:
                run = Run(self._work_folder(), self._show, self._cancelled.is_set, self.settings.device)
                pipeline = load_pipeline(self.settings.pipelines, self.job["kind"])
                self._result = pipeline(self.job["request"], self.blobs.verified, run)
                size, sha256 = self._result.stat().st_size, file_sha256(self._result)
                end = {"state": "succeeded", "sha256": sha256, "size": size}
            except JobCancelled:
                end = {"state": "cancelled"}
            except Exception as error:
                if device_is_lost(error):
                    os._exit(processes.DEVICE_LOST_EXIT)
                failure = as_user_error(error, self.home.folder)
                if failure is not error:
                    self._log.write("".join(traceback.format_exception(error)).rstrip())
                end = {"state": "failed", "code": failure.code, "message": str(failure), "hint": failure.hint}
        self._end = end

    def _work_folder(self) -> Path:
        """The job's checkpoints, made where need be; what jobs of long ago have left on this machine goes."""
        if self.home != self.cache and not self.home.folder.is_dir():
            raise UserError(
                "ray_folder_missing",
                f"The folder {self.home.folder} for checkpoints is not there on {socket.gethostname()}.",
                "See that it is mounted on all machines, or start the server without --ray-folder.",
            )
        if self.home.begin_work(self.job["id"]):
            self._log.write(OTHER_PROGRAM)
        work = self.home.work(self.job["id"])
        os.utime(work)
        self.blobs.clean_up(lambda sha256: contextlib.nullcontext(True), self.settings.work_age)
        for other in self.home.jobs.glob("*/work"):
            with contextlib.suppress(OSError):
                if time.time() - other.stat().st_mtime > self.settings.work_age:
                    shutil.rmtree(other, ignore_errors=True)
                    other.parent.rmdir()
        return work

    def _show(self, progress: Progress) -> None:
        with self._lock:
            self._last = [replace(progress, preview=None)]
            if self._news and self._news[-1].stage == progress.stage:
                former = self._news.pop()
                progress = progress if progress.preview is not None else replace(progress, preview=former.preview)
            self._news.append(progress)

    def _watch(self) -> None:
        """No GPU is held for a server that does not come back."""
        while time.monotonic() - self._asked < self.settings.ray_forsaken:
            time.sleep(WATCH_SECONDS)
        os._exit(0)


def cache_folder() -> Path:
    """Where a machine of the cluster keeps inputs and checkpoints: the system's place for what can be made again."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("kinesplat", appauthor=False)) / "ray"
