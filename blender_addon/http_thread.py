# SPDX-License-Identifier: GPL-3.0-or-later
"""The one thread that talks to the backend: plain data in by method calls, plain data out by a queue of events.

It never touches bpy. It finds the backend, sends what waits in the outbox, follows the jobs that live, fetches previews
and results, and says so in events, which the main thread takes from `events` when it likes.
"""

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import local_backend
from .client import BackendClient, BackendError, file_problem
from .contract.arrays import BadFileError, atomic_file
from .contract.clip import read_clip
from .contract.frames import read_frames
from .contract.requests import TERMINAL_STATES
from .http_events import (
    BackendChanged,
    CommandFailed,
    Fetching,
    JobGone,
    JobSeen,
    JobsListed,
    JobTaken,
    LogFetched,
    PreviewSaved,
    ResultFailed,
    ResultSaved,
    SendFailed,
    Sending,
)
from .job_records import JobRecord, JobRecords

RUNNING_INTERVAL = 1.0  # seconds between two looks at a job that runs
QUEUED_INTERVAL = 5.0
FRESH_SECONDS = 15.0  # a job that was just submitted is looked at as if it ran
LOCAL_RETRY = 2.0  # seconds between two looks for a backend on this computer: two small files
REMOTE_RETRY = (2.0, 30.0)  # doubles from the first to the second
HEALTH_INTERVAL = 10.0  # with no job alive
LONGEST_SLEEP = 60.0
NEVER = float("inf")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connection:
    """Where the backend is, from the preferences."""

    local: bool = True
    home: Path = Path()  # of the local backend
    url: str = ""  # of another backend
    token: str = ""
    refusal: str = ""  # why no connection may be made, such as Blender's offline mode


class HttpThread:
    """Start it, call its methods from the main thread (none of them waits), and drain `events`."""

    def __init__(self, records: JobRecords, client_id: str) -> None:
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self._records = records
        self._client_id = client_id
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._ended = threading.Event()
        self._still = threading.Condition()
        self._wants_still = self._is_still = False
        self._thread = threading.Thread(target=self._run, name="Kinesplat HTTP", daemon=True)
        # What follows belongs to the thread.
        self._connection = Connection()
        self._client: BackendClient | None = None
        self._server: local_backend.Server | None = None
        self._said: BackendChanged | None = None
        self._next_connect = NEVER  # until `connect` is called
        self._retry_seconds = REMOTE_RETRY[0]
        self._next_health = 0.0
        self._live: dict[str, _Followed] = {}  # by the backend's job id
        self._uids: dict[str, str] = {}  # job id -> uid, for file names
        self._own: set[str] = set()  # ids of jobs whose results are fetched by themselves

    # Called from the main thread

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End. A call that hangs in the network is left to end by itself; its events go nowhere."""
        self._ended.set()
        with self._still:
            self._still.notify_all()
        self._commands.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @contextlib.contextmanager
    def held(self, timeout: float) -> Iterator[bool]:
        """Keep the thread from running Python during the block; yields whether it stood still within `timeout`.

        Up to Python 3.11 (Blender 5.0), Blender reads a context that `temp_override` has changed without holding the
        interpreter's lock while another thread holds it, and crashes. So operators that are called in such a context
        are called with this thread held. It stops between two calls over the network, never within one.
        """
        if sys.version_info >= (3, 12) or not self._thread.is_alive():
            yield True
            return
        with self._still:
            self._wants_still = True
        self._commands.put(lambda: None)  # wakes it
        try:
            with self._still:
                is_still = self._still.wait_for(lambda: self._is_still, timeout)
            if is_still:
                time.sleep(0.001)  # lets it come to rest inside its wait
            yield is_still
        finally:
            with self._still:
                self._wants_still = self._is_still = False
                self._still.notify_all()

    def connect(self, connection: Connection) -> None:
        """Use this backend from now on."""
        self._commands.put(partial(self._do_connect, connection))

    def start_backend(self, installation: local_backend.Installation, port: int = 0) -> None:
        """Start the backend on this computer."""
        self._commands.put(partial(self._do_start_backend, installation, port))

    def stop_backend(self) -> None:
        """Stop the backend on this computer."""
        self._commands.put(self._do_stop_backend)

    def submit(self, uid: str) -> None:
        """Send what lies in the outbox under `uid`, now or when the backend is there."""
        self._commands.put(partial(self._do_submit, uid))

    def cancel(self, job_id: str) -> None:
        """Ask the backend to end a job."""
        self._commands.put(partial(self._do_job, job_id, lambda client: client.cancel(job_id)))

    def retry(self, job_id: str) -> None:
        """Queue a job again."""
        self._commands.put(partial(self._do_job, job_id, lambda client: client.retry(job_id)))

    def remove(self, job_id: str) -> None:
        """Remove a job from the backend."""
        self._commands.put(partial(self._do_remove, job_id))

    def fetch(self, job_id: str, uid: str, result_kind: str = "clip") -> None:
        """Fetch a result, a clip or frames."""
        self._commands.put(partial(self._do_fetch, job_id, uid, result_kind))

    def fetch_log(self, job_id: str, uid: str) -> None:
        """Fetch what a job's attempts have written down."""
        self._commands.put(partial(self._do_fetch_log, job_id, uid))

    # The thread

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._stand_still_if_wanted()
                self._connect_if_due()
                self._look_at_jobs()
                with contextlib.suppress(queue.Empty):
                    self._commands.get(timeout=self._seconds_to_next())()
            except BackendError as error:
                self._lost(error)
            except Exception:
                log.exception("The Kinesplat HTTP thread stumbled and goes on")
                self._ended.wait(1.0)
        if self._client:
            self._client.close()

    def _stand_still_if_wanted(self) -> None:
        with self._still:
            while self._wants_still and not self._ended.is_set():
                self._is_still = True
                self._still.notify_all()
                self._still.wait()

    def _is_stopped(self) -> bool:
        """Asked within long work: a place to stand still, and whether to give up."""
        self._stand_still_if_wanted()
        return self._ended.is_set()

    def _emit(self, event: object) -> None:
        if not self._ended.is_set():
            self.events.put(event)

    def _say(self, state: BackendChanged) -> None:
        if state != self._said:
            self._said = state
            self._emit(state)

    def _seconds_to_next(self) -> float:
        if self._client is None:
            due = self._next_connect
        else:
            due = min((followed.due for followed in self._live.values()), default=self._next_health)
        return min(max(due - time.monotonic(), 0.01), LONGEST_SLEEP)

    def _connect_if_due(self) -> None:
        if self._client is not None or time.monotonic() < self._next_connect:
            return
        connection = self._connection
        if connection.refusal:
            self._next_connect = NEVER  # until `connect` is called again
            self._say(BackendChanged("problem", connection.refusal, code="not_allowed"))
            return
        client = None
        try:
            if connection.local:
                self._next_connect = time.monotonic() + LOCAL_RETRY
                self._server = local_backend.read_server(connection.home)
                client = BackendClient(self._server.url, self._server.token)
            else:
                self._next_connect = time.monotonic() + self._retry_seconds
                self._retry_seconds = min(self._retry_seconds * 2, REMOTE_RETRY[1])
                self._server = None
                client = BackendClient(connection.url, connection.token)
            health = client.health()
            if self._server:
                local_backend.check_identity(self._server, health)
            prompts = _prompts(client.capabilities())  # the first call that needs the token
            jobs = client.jobs(self._client_id)
        except BackendError as error:
            if client:
                client.close()
            self._say(_state_of(error, connection.local))
            return
        self._client = client
        self._retry_seconds = REMOTE_RETRY[0]
        self._next_health = time.monotonic() + HEALTH_INTERVAL
        self._say(BackendChanged("running", url=client.url, version=health.version, prompts=prompts))
        records = {record.job_id: record for record in self._records.load().values() if record.job_id}
        self._uids.update({job_id: record.uid for job_id, record in records.items()})
        self._live = {}
        self._emit(JobsListed(jobs))
        for job in jobs:
            if record := records.get(str(job["id"])):
                self._take_over(record)
            self._follow(job)
            self._fetch_missed(job)
        for uid in self._records.waiting():
            self._do_submit(uid)

    def _lost(self, error: BackendError) -> None:
        """The connection broke, or an answer was none: begin again from the start."""
        if self._client:
            self._client.close()
        self._client = None
        self._next_connect = time.monotonic() + 0.5
        self._say(_state_of(error, self._connection.local))

    def _look_at_jobs(self) -> None:
        if self._client is None:
            return
        now = time.monotonic()
        for job_id, followed in list(self._live.items()):
            if followed.due > now or self._is_stopped():
                continue
            try:
                job = self._client.job(job_id)
            except BackendError as error:
                if error.status != 404:
                    raise
                self._forget(job_id)
                continue
            followed.due = now + followed.interval(now)
            if job["rev"] != followed.revision:
                self._emit(JobSeen(job))
                self._follow(job)
        if not self._live and now >= self._next_health:
            self._client.health()
            self._next_health = now + HEALTH_INTERVAL

    def _take_over(self, record: JobRecord) -> None:
        """Wait for the result that a Blender waited for when it was closed, or the add-on when it was disabled."""
        waits = record.state not in TERMINAL_STATES or self._records.is_half_fetched(record.uid)
        if not waits or record.job_id in self._own:
            return
        if record.holder != os.getpid():
            if local_backend.process_exists(record.holder):
                return  # a second Blender beside this one: one of them fetches
            self._emit(JobTaken(record.uid))
        self._own.add(record.job_id)

    def _fetch_missed(self, job: dict) -> None:
        """Fetch a result that became ready while nobody looked."""
        job_id, uid = str(job["id"]), self._uid(str(job["id"]))
        if job["state"] == "succeeded" and job_id in self._own and not self._records.result(uid).exists():
            self._do_fetch(job_id, uid, str(job.get("result_kind") or "clip"))

    def _follow(self, job: dict) -> None:
        """Keep an eye on a job that lives; take its preview, and its result once it has succeeded."""
        job_id = str(job["id"])
        now = time.monotonic()
        followed = self._live.get(job_id)
        if followed is None:
            if job["state"] in TERMINAL_STATES:
                return
            followed = self._live[job_id] = _Followed(since=now)
        followed.revision, followed.state = job["rev"], job["state"]
        followed.due = now + followed.interval(now)
        self._take_preview(job, followed)
        if job["state"] in TERMINAL_STATES:
            del self._live[job_id]
            if job["state"] == "succeeded" and job_id in self._own:
                self._do_fetch(job_id, self._uid(job_id), str(job.get("result_kind") or "clip"))

    def _take_preview(self, job: dict, followed: "_Followed") -> None:
        revision = job["preview_rev"]
        if not revision or revision == followed.preview_revision:
            return
        followed.preview_revision = revision
        picture = self._client.preview(str(job["id"]))
        if not picture:
            return
        uid = self._uid(str(job["id"]))
        path = self._records.preview(uid)
        try:
            before = path.stat().st_mtime if path.exists() else 0.0
            with atomic_file(path) as file:
                file.write(picture)
            # Blender's thumbnail cache compares whole seconds: each picture gets a second of its own.
            stamp = max(int(time.time()), int(before) + 1)
            os.utime(path, (stamp, stamp))
        except OSError as error:
            log.warning("A preview cannot be kept: %s", error)  # worth no interruption
            return
        self._emit(PreviewSaved(uid, path))

    def _uid(self, job_id: str) -> str:
        return self._uids.get(job_id, job_id)

    def _forget(self, job_id: str) -> None:
        self._live.pop(job_id, None)
        self._emit(JobGone(job_id))

    # Commands, run in the thread

    def _do_connect(self, connection: Connection) -> None:
        if self._client:
            self._client.close()
        self._client, self._connection, self._said = None, connection, None
        self._next_connect, self._retry_seconds = 0.0, REMOTE_RETRY[0]

    def _do_start_backend(self, installation: local_backend.Installation, port: int) -> None:
        if self._client is not None:
            return
        self._say(BackendChanged("starting"))
        try:
            local_backend.start(installation, self._connection.home, port, self._is_stopped)
        except BackendError as error:
            self._say(_state_of(error, local=True))
            self._next_connect = time.monotonic() + 10.0  # leave the reason on the screen for a while
            return
        self._next_connect = 0.0

    def _do_stop_backend(self) -> None:
        self._say(BackendChanged("stopping"))
        if self._client:
            self._client.close()
        self._client = None
        try:
            local_backend.stop(self._connection.home)
        except BackendError as error:
            self._emit(CommandFailed(error))
        self._next_connect = 0.0

    def _do_submit(self, uid: str) -> None:
        if self._client is None:
            return  # it waits in the outbox and goes when the backend is there
        try:
            request, blobs = self._records.read_outbox(uid)
        except FileNotFoundError:
            return  # sent already, or removed meanwhile
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._emit(SendFailed(uid, BackendError("damaged_capture", "The captured frames cannot be read.",
                                                    "Remove this job and generate again.")))  # fmt: skip
            return
        try:
            for index, (sha256, path) in enumerate(blobs.items()):
                if self._is_stopped():
                    return
                self._emit(Sending(uid, index / len(blobs)))
                self._client.upload(path, sha256)
            job = self._client.submit(request, uid, self._client_id)
        except BackendError as error:
            if error.is_temporary or error.code in ("wrong_token", "not_kinesplat"):
                raise
            if error.code == "blobs_missing":  # of a candidate whose own job is gone from there
                error = BackendError(
                    "blobs_missing", "The backend no longer has the pictures of this job.", "Generate again."
                )
            self._emit(SendFailed(uid, error))
            return
        job_id = str(job["id"])
        self._uids[job_id] = uid
        self._own.add(job_id)
        self._emit(JobSeen(job, uid))  # the board writes it down, then empties the outbox: the same key, the same job
        self._follow(job)

    def _do_job(self, job_id: str, call: Callable[[BackendClient], dict]) -> None:
        if self._client is None:
            self._emit(CommandFailed(BackendError("not_running", "The backend is not running.", "Start it."), job_id))
            return
        try:
            job = call(self._client)
        except BackendError as error:
            if error.status == 404:
                self._forget(job_id)
                return
            if not error.is_temporary:
                with contextlib.suppress(BackendError):
                    self._emit(JobSeen(self._client.job(job_id)))  # its row shows already what was asked for
            self._emit(CommandFailed(error, job_id))
            if error.is_temporary:
                raise
            return
        self._own.add(job_id)
        self._emit(JobSeen(job))
        self._live.pop(job_id, None)
        self._follow(job)

    def _do_remove(self, job_id: str) -> None:
        self._live.pop(job_id, None)
        if self._client is None:
            return
        try:
            self._client.delete(job_id)
        except BackendError as error:
            self._emit(CommandFailed(error, job_id))
            if error.is_temporary:
                raise

    def _do_fetch(self, job_id: str, uid: str, result_kind: str) -> None:
        if self._client is None:
            error = BackendError("not_running", "The backend is not running, so the result cannot be fetched.",
                                 "Start it, then import again.")  # fmt: skip
            self._emit(ResultFailed(uid, error))
            return
        path = self._records.result(uid)
        shown = 0.0

        def show(fraction: float) -> None:
            nonlocal shown
            if fraction - shown >= 0.02:
                shown = fraction
                self._emit(Fetching(uid, fraction))

        try:
            self._client.download_result(job_id, path, show, self._is_stopped)
            result = read_frames(path) if result_kind == "frames" else read_clip(path)  # what is wrong is said now
        except BadFileError as error:
            path.unlink(missing_ok=True)
            self._emit(ResultFailed(uid, BackendError("damaged_result", str(error), "Retry the job.")))
        except OSError as error:
            self._emit(ResultFailed(uid, file_problem(error, path)))
        except MemoryError:
            self._emit(ResultFailed(uid, BackendError("out_of_memory", "This computer ran out of memory.",
                                                      "Close other programs, then import again.")))  # fmt: skip
        except BackendError as error:
            if error.status == 404:
                self._forget(job_id)
            self._emit(ResultFailed(uid, error))
            if error.is_temporary:
                raise
        else:
            self._emit(ResultSaved(uid, path, _warnings(result.provenance)))

    def _do_fetch_log(self, job_id: str, uid: str) -> None:
        try:
            if self._client is None:
                raise BackendError("not_running", "The backend is not running.", "Start it.")
            text = self._client.log(job_id)
        except BackendError as error:
            self._emit(LogFetched(uid, "", error))
            if error.status == 404:
                self._forget(job_id)
            if self._client and error.is_temporary:
                raise
        else:
            self._emit(LogFetched(uid, text))


@dataclass
class _Followed:
    """A job that is looked at until it ends."""

    since: float  # monotonic
    due: float = 0.0
    revision: int | None = None
    state: str = "queued"
    preview_revision: int | None = None

    def interval(self, now: float) -> float:
        fresh = now - self.since < FRESH_SECONDS
        return QUEUED_INTERVAL if self.state == "queued" and not fresh else RUNNING_INTERVAL


def _warnings(provenance: dict) -> tuple[str, ...]:
    listed = provenance.get("warnings")
    return tuple(str(sentence) for sentence in listed) if isinstance(listed, list) else ()


def _prompts(capabilities: dict) -> tuple[str, ...]:
    """What to choose a prompt from; nothing, where the backend is older and tells none."""
    told = capabilities.get("prompts")
    return tuple(map(str, told)) if isinstance(told, list) else ()


def _state_of(error: BackendError, local: bool) -> BackendChanged:
    state = "stopped" if local and error.code == "not_running" else "problem"
    return BackendChanged(state, str(error), error.hint, error.code)
