# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor: the parent that owns the data directory, the port and the token, and keeps API and executor alive.

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
from pathlib import Path

import filelock

from backend import __version__
from backend.progress import UserError
from backend.service import executors, paths
from backend.service.blobs import BlobStore
from backend.service.processes import Child, Kept, exit_text
from backend.service.queue import Queue
from backend.service.settings import Settings
from blender_addon.contract.requests import API_VERSION

HOST = "127.0.0.1"
TICK_SECONDS = 0.1
JANITOR_SECONDS = 600.0
STOP_SECONDS = 5.0  # for the children to end by themselves
START_TRIES = 3  # of an API that has never been ready
SHUTDOWN_EXIT = 64  # the API's exit code when a client asked for the end; as in api.py

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


class Supervisor:
    """One run of the service."""

    def __init__(self, settings: Settings, listener: socket.socket, announce: Callable[[str], None]) -> None:
        self.settings = settings
        self.home = paths.Home(settings.home)
        self.listener = listener
        self.announce = announce
        self.started = time.time()
        self.queue = Queue(self.home.database)
        self.blobs = BlobStore.limited(self.home.blobs, settings)
        self.api = Kept(
            lambda: Child("backend.service.api", settings, self.home.logs / "api.log", listener, started=self.started)
        )
        self.executor = executors.make(settings, self.queue, announce)
        self._ending = False  # a plain flag: signal handlers must take no lock, so an Event could hang for ever
        self._announced = False
        self._next_janitor = 0.0

    def run(self) -> None:
        """Start the children, keep them, end them."""
        paths.ensure_token(self.home)
        self.executor.put_back()
        self.blobs.drop_temporaries()
        with self._signals():
            try:
                self.api.start()
                self.executor.process.start()
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
        self.executor.tick()
        now = time.monotonic()
        if now >= self._next_janitor:
            self._next_janitor = now + JANITOR_SECONDS
            self._tidy()

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

    # Beginning and end

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
        children = [kept.child for kept in (self.api, self.executor.process) if kept.child]
        for child in children:
            child.end()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            child.join(max(deadline - time.monotonic(), 0.1))
        with contextlib.suppress(sqlite3.Error):
            self.executor.put_back()
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
        "See that all of the data directory belongs to you and its disk is not full, or choose another with --home.",
    )


@contextlib.contextmanager
def _log_file(home: paths.Home):
    """The supervisor's own log."""
    path: Path = home.logs / "supervisor.log"
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("backend.service")
    former = ours.level, ours.propagate
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # the terminal gets what is announced, and nothing else
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.level, ours.propagate = former
        handler.close()
