# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor: the parent that owns the data directory, the port and the token, and keeps API and worker alive.

It does no work of its own, so that it has no reason to die; if it does, its children die with it, and the next start
finds everything in the queue.
"""

import contextlib
import errno
import logging
import logging.handlers
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock

from backend import __version__
from backend.progress import UserError
from backend.service import paths, processes
from backend.service.blobs import BlobStore
from backend.service.job_log import JobLog
from backend.service.queue import Job, Queue
from backend.service.settings import Settings
from blender_addon.contract.requests import API_VERSION

HOST = "127.0.0.1"
TICK_SECONDS = 0.1
JANITOR_SECONDS = 600.0
STOP_SECONDS = 5.0  # for the children to end by themselves
BACK_OFF = (0.25, 10.0)  # seconds before a child that never became ready is started again; doubles
START_TRIES = 3  # of an API that has never been ready
SHUTDOWN_EXIT = 64  # the API's exit code when a client asked for the end; as in api.py
DEVICE_LOST_EXIT = 75  # the worker's; as in worker.py

log = logging.getLogger(__name__)


class AlreadyRunningError(UserError):
    """Another supervisor owns this data directory."""


def serve(settings: Settings, announce: Callable[[str], None] = print) -> None:
    """Run the service until SIGTERM, Ctrl-C or a client ends it. `announce` gets the lines for the terminal.

    Raises:
        AlreadyRunningError: this data directory is served already.
        UserError: the data directory, the queue or the port cannot be used, or the API does not start.
    """
    home = paths.Home(settings.home)
    paths.prepare(home)
    lock = filelock.FileLock(home.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise _already_running(home) from error
    try:
        with lock, _log_file(home):
            home.server.unlink(missing_ok=True)  # of one that was killed
            paths.note_installation(home)
            with bind(settings.port) as listener:
                Supervisor(settings, listener, announce).run()
    except (OSError, sqlite3.Error) as error:
        raise _unusable(home, error) from error


def bind(port: int) -> socket.socket:
    """A listening socket on loopback. The supervisor holds it, so that calls wait while the API restarts.

    Raises:
        UserError: `port_taken`.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise UserError(
            "port_taken",
            f"Port {port} cannot be used: {error.strerror or error}.",
            "Choose another one with --port, or leave it out and a free one is found.",
        ) from error
    return listener


@dataclass
class Patience:
    """How long the worker has been in a state that it should leave, by this process's own clock."""

    since: float
    mark: tuple = ()  # what would have to change

    def seconds(self) -> float:
        """So far. The clock stands still while the computer sleeps, so nobody is blamed for that."""
        return time.monotonic() - self.since


class Supervisor:
    """One run of the service."""

    def __init__(self, settings: Settings, listener: socket.socket, announce: Callable[[str], None]) -> None:
        self.settings = settings
        self.home = paths.Home(settings.home)
        self.listener = listener
        self.announce = announce
        self.started = time.time()
        self.queue = Queue(self.home.database)
        self.blobs = BlobStore(
            self.home.blobs, min_free=settings.min_free, quota=settings.quota, max_blob=settings.max_blob
        )
        self.api = Kept(lambda: self._child("backend.service.api", "api.log", listener, started=self.started))
        self.worker = Kept(lambda: self._child("backend.service.worker", "worker.log"))
        self._ending = False  # a plain flag: signal handlers must take no lock, so an Event could hang for ever
        self._announced = False
        self._next_janitor = 0.0
        self._next_look = 0.0
        self._dead: list[tuple[str, UserError, str]] = []  # workers whose jobs are not yet put back: name, why, how
        self._patience: dict[str, Patience] = {}  # what the worker is watched for

    def run(self) -> None:
        """Start the children, keep them, end them."""
        paths.ensure_token(self.home)
        self._recover()
        with self._signals():
            try:
                self.api.start()
                self.worker.start()
                while not self._ending:
                    time.sleep(TICK_SECONDS)
                    try:
                        self._tick()
                    except (sqlite3.OperationalError, OSError) as error:
                        # The disk or the memory is full. The supervisor waits; it goes on when there is space.
                        log.warning("Not now: %s", error)
                        self._pause(1.0)
            finally:
                self._stop()

    def _tick(self) -> None:
        self._keep_api()
        self._keep_worker()
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + 0.5
            self._watch_worker()
        if now >= self._next_janitor:
            self._next_janitor = now + JANITOR_SECONDS
            self._tidy()

    # The children

    def _child(self, module: str, log_name: str, listener: socket.socket | None = None, **launch: object):
        return processes.Child(module, self.settings, self.home.logs / log_name, listener, **launch)

    def _keep_api(self) -> None:
        if self.api.child and self.api.child.ready.is_set() and not self._announced:
            self._write_server()
            self._announced = True
        code = self.api.reap()
        if code is None:
            return
        if code == SHUTDOWN_EXIT:
            log.info("A client ends the backend")
            self._ending = True
            return
        log.warning("The API process ended (%s)", exit_text(code))
        if not self._announced and self.api.failed_starts >= START_TRIES:
            raise UserError(
                "api_failed", "The backend's API does not start.", f"Its log is {self.home.logs / 'api.log'}."
            )

    def _keep_worker(self) -> None:
        name = self.worker.child.name if self.worker.child else ""
        code = self.worker.reap()
        if code is not None:
            log.log(logging.INFO if code == 0 else logging.WARNING, "%s ended (%s)", name, exit_text(code))
            killed = self._patience.get("killed")
            error = killed.mark[0] if killed else crash_error(code, self.settings.crash_limit)
            self._patience.clear()
            self._dead.append((name, error, exit_text(code)))
        while self._dead:
            name, error, what = self._dead[0]
            jobs = self.queue.settle(name, error, self.settings.crash_limit)
            del self._dead[0]
            for job in jobs:
                self._note(job, f"Attempt {job.attempt} ended: {what}.")

    def _note(self, job: Job, what: str) -> None:
        job_log = JobLog(self.home.log(job.id))
        job_log.write(f"{what} The job is {job.state} now.")
        if job.state == "failed":
            job_log.write(f"{job.error_detail} {job.error_hint}")

    def _watch_worker(self) -> None:
        """Cancel ladder, silence, standstill: what a living worker may do to a job, and what happens then."""
        worker = self.worker.child
        jobs = [job for job in self.queue.live() if worker and job.worker == worker.name]
        if not jobs or "killed" in self._patience:
            if not jobs:
                self._patience.clear()
            return
        job = jobs[0]
        if job.state == "cancelling":
            waited = self._waited("cancel", (job.id, job.attempt))
            if waited > self.settings.cancel_grace + self.settings.kill_grace:
                self._kill_worker(job, "it is cancelled and did not end by itself", stalled_error(self.settings))
            elif waited > self.settings.cancel_grace:
                worker.end()
            return
        if job.lease is not None and job.lease < time.time():
            if self._waited("lease", (job.id, job.attempt, job.lease)) > self.settings.lease / 2:
                self._kill_worker(job, "it gave no sign of life", silent_error(self.settings))
        else:
            self._patience.pop("lease", None)
        if self._waited("stall", (job.id, job.attempt, job.rev)) > self.settings.stall_limit:
            self._kill_worker(job, "there was no progress", stalled_error(self.settings))

    def _waited(self, what: str, mark: tuple) -> float:
        patience = self._patience.get(what)
        if patience is None or patience.mark != mark:
            patience = self._patience[what] = Patience(time.monotonic(), mark)
        return patience.seconds()

    def _kill_worker(self, job: Job, why: str, error: UserError) -> None:
        log.warning("Job %s: the worker is killed: %s", job.id, why)
        JobLog(self.home.log(job.id)).write(f"The worker is killed: {why}.")
        self._patience["killed"] = Patience(time.monotonic(), (error,))
        self.worker.child.kill()

    # Beginning and end

    def _recover(self) -> None:
        """Take up what a killed supervisor has left."""
        error = crash_error(None, self.settings.crash_limit)
        for job in self.queue.settle(None, error, self.settings.crash_limit):
            self._note(job, f"Attempt {job.attempt} was cut off by the end of the backend.")
        self.blobs.drop_temporaries()

    def _tidy(self) -> None:
        """Remove what nobody needs: blobs without a job, checkpoints of jobs that ended, folders of deleted jobs."""
        removed = self.blobs.clean_up(self.queue.unused_blob, self.settings.blob_age)
        if removed:
            log.info("%d blobs that no job names were removed", removed)
        for folder in self.home.jobs.iterdir():
            job = self.queue.get(folder.name)
            if job is None:
                self.home.forget(folder.name)
            elif job.is_final and (
                job.state == "succeeded" or time.time() - (job.finished or 0) > self.settings.work_age
            ):
                self.home.forget_work(job.id)

    def _write_server(self) -> None:
        port = self.listener.getsockname()[1]
        paths.write_server(
            self.home,
            {
                "product": "kinesplat",
                "host": HOST,
                "port": port,
                "pid": os.getpid(),
                "version": __version__,
                "api_version": API_VERSION,
                "started": self.started,
            },
        )
        log.info("Ready on port %d", port)
        self.announce(
            f"Kinesplat {__version__} is ready at http://{HOST}:{port}, data in {self.home.folder} (Ctrl-C ends it)"
        )

    def _stop(self) -> None:
        """End the children; what does not end in time is killed. A job that runs is put back into the queue."""
        self._ending = True
        with contextlib.suppress(OSError):
            self.home.server.unlink(missing_ok=True)
        children = [kept.child for kept in (self.api, self.worker) if kept.child]
        for child in children:
            child.end()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            child.join(max(deadline - time.monotonic(), 0.1))
        with contextlib.suppress(sqlite3.Error):
            self.queue.settle(None, crash_error(None, self.settings.crash_limit), self.settings.crash_limit)
        self.queue.close()
        log.info("Ended")

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._ending and time.monotonic() < end:
            time.sleep(TICK_SECONDS)

    def _on_signal(self, *_) -> None:
        self._ending = True

    @contextlib.contextmanager
    def _signals(self):
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        former = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


class Kept:
    """A child that is started again whenever it ends: at once if it had been ready, else later and later."""

    def __init__(self, start: Callable[[], processes.Child]) -> None:
        self.child: processes.Child | None = None
        self.failed_starts = 0
        self._start = start
        self._next_start = 0.0

    def start(self) -> None:
        """Start it now."""
        self.child = self._start()

    def reap(self) -> int | None:
        """The exit code if it has just ended; starts the next one when it is time."""
        if self.child is None:
            if time.monotonic() >= self._next_start:
                self.start()
            return None
        code = self.child.exit_code()
        if code is None:
            return None
        self.failed_starts = 0 if self.child.ready.is_set() else self.failed_starts + 1
        delay = min(BACK_OFF[0] * 2 ** (self.failed_starts - 1), BACK_OFF[1]) if self.failed_starts else 0.0
        self.child, self._next_start = None, time.monotonic() + delay
        return code


def exit_text(code: int) -> str:
    """An exit code for the log."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    if code == DEVICE_LOST_EXIT:
        return "the GPU was lost"
    return f"exit code {code}"


def crash_error(code: int | None, limit: int) -> UserError:
    """Why a job fails whose worker died again and again at the same place."""
    hint = "The job's log says more. Retry it with a lower preset or fewer Gaussians."
    if sys.platform != "win32" and code == -signal.SIGKILL:
        hint = "Most often memory ran out: close other programs, or choose a lower preset or fewer Gaussians."
    return UserError("crashed", f"The process that worked on this crashed {limit} times at the same place.", hint)


def silent_error(settings: Settings) -> UserError:
    """Why a job fails whose worker stops giving signs of life."""
    return UserError(
        "stalled",
        f"The process that worked on this hung {settings.crash_limit} times at the same place.",
        "The job's log says more. Retry it with a lower preset.",
    )


def stalled_error(settings: Settings) -> UserError:
    """Why a job fails that makes no progress."""
    return UserError(
        "stalled",
        f"There was no progress for {settings.stall_limit / 60:.0f} minutes, {settings.crash_limit} times.",
        "The job's log says more. Retry it with a lower preset.",
    )


def _already_running(home: paths.Home) -> AlreadyRunningError:
    server = paths.read_server(home)
    who = f" (process {server['pid']}, port {server['port']}, version {server['version']})" if server else ""
    return AlreadyRunningError(
        "already_running",
        f"A backend runs already for {home.folder}{who}.",
        "Use that one, end it first, or choose another data directory with --home.",
    )


def _unusable(home: paths.Home, error: OSError | sqlite3.Error) -> UserError:
    """Why the service cannot begin or go on with this data directory, as a sentence."""
    primary = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if primary == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return paths.disk_full(home.folder)
    what = getattr(error, "filename", None) or (home.database if isinstance(error, sqlite3.Error) else home.folder)
    return UserError(
        "home_not_usable",
        f"{what} cannot be used: {getattr(error, 'strerror', None) or error}.",
        "See that all of the data directory belongs to you, or choose another one with --home.",
    )


@contextlib.contextmanager
def _log_file(home: paths.Home):
    """The supervisor's own log."""
    path: Path = home.logs / "supervisor.log"
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    former = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # the terminal gets what is announced, and nothing else
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = former
        handler.close()
