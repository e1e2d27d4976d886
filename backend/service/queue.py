# SPDX-License-Identifier: GPL-3.0-or-later
"""The durable queue: one SQLite table, the only truth about jobs.

Rules that hold at any moment, also after `kill -9` of anybody:

* A job that was acknowledged stays until somebody deletes it.
* The claim is one statement, so a job has at most one running attempt.
* An attempt writes by (job id, attempt number). Once the job was taken from it, its writes hit no row: it gets None,
  and stops.
* Each job reaches a final state, and only the user's `retry` or `delete` leads out of it.
"""

import contextlib
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from backend.progress import Progress, UserError
from blender_addon.contract.requests import JOB_STATES, TERMINAL_STATES, request_blobs

SCHEMA_VERSION = 2
ACTIVE_STATES = tuple(state for state in JOB_STATES if state not in TERMINAL_STATES)
BUSY_SECONDS = 30.0
HEADWAY = 0.005  # an attempt that got this much further than those before has not crashed at the same place

SCHEMA = f"""
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    idempotency_key TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    client TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN {JOB_STATES}),
    worker TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    lease REAL,
    crashes INTEGER NOT NULL DEFAULT 0,
    headway REAL NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    fraction REAL NOT NULL DEFAULT 0,
    seconds_left REAL,
    rev INTEGER NOT NULL DEFAULT 1,
    preview_rev INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    error_code TEXT,
    error_detail TEXT,
    error_hint TEXT,
    result_sha256 TEXT,
    result_size INTEGER,
    detail TEXT
);
CREATE INDEX jobs_queued ON jobs (seq) WHERE state = 'queued';
CREATE INDEX jobs_live ON jobs (seq) WHERE state IN ('running', 'cancelling');
CREATE INDEX jobs_client ON jobs (client, seq);
CREATE INDEX jobs_result ON jobs (result_sha256);
CREATE TABLE job_blobs (
    job_seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (job_seq, sha256)
) WITHOUT ROWID;
CREATE INDEX job_blobs_sha256 ON job_blobs (sha256);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
MIGRATIONS = {1: "ALTER TABLE jobs ADD COLUMN detail TEXT"}  # version -> what leads to the next one


class IdempotencyConflictError(Exception):
    """The key was used for another request."""


class BlobsMissingError(Exception):
    """The request names blobs that are not there; `missing` lists them."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(f"{len(missing)} blobs are missing")
        self.missing = missing


class QueueFullError(Exception):
    """Too many jobs wait."""


@dataclass(frozen=True)
class Job:
    """One row of the table."""

    seq: int
    id: str
    idempotency_key: str
    request: str
    request_sha256: str
    kind: str
    name: str
    client: str
    state: str
    worker: str | None
    attempt: int
    lease: float | None
    crashes: int
    headway: float
    stage: str
    step: int
    total: int
    fraction: float
    seconds_left: float | None
    rev: int
    preview_rev: int
    created: float
    started: float | None
    finished: float | None
    error_code: str | None
    error_detail: str | None
    error_hint: str | None
    result_sha256: str | None
    result_size: int | None
    detail: str | None  # how the stage goes, such as its losses

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more by itself."""
        return self.state in TERMINAL_STATES


COLUMNS = ", ".join(field.name for field in fields(Job))


class Queue:
    """The queue in one database file. Several threads and processes may use it at once."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the queue, and make it if it is not there.

        Raises:
            UserError: the file is damaged, or was made by a newer version.
        """
        self._path = path
        self._clock = clock
        self._idle: list[sqlite3.Connection] = []
        try:
            with self._connection() as connection:
                if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                    raise _damaged(path)
                self._prepare(connection)
        except sqlite3.OperationalError:
            raise  # busy or full: not the file's fault
        except sqlite3.DatabaseError as error:
            raise _damaged(path) from error

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    # For clients

    def create(
        self,
        request: dict,
        idempotency_key: str,
        client: str = "",
        *,
        missing: Callable[[list[str]], list[str]] = lambda names: [],
        max_queued: int = 10_000,
    ) -> tuple[Job, bool]:
        """Queue a request; returns its job and whether it is new. The same key gives the same job again.

        `missing(names)` says which blobs are not there. It is asked while nobody can remove any.

        Raises:
            IdempotencyConflictError, BlobsMissingError, QueueFullError.
        """
        text = json.dumps(request, sort_keys=True, separators=(",", ":"), allow_nan=False)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        with self._transaction() as connection:
            former = self._one(connection, "SELECT {} FROM jobs WHERE idempotency_key = ?", idempotency_key)
            if former:
                if former.request_sha256 != sha256:
                    raise IdempotencyConflictError
                return former, False
            names = request_blobs(request)
            if absent := missing(names):
                raise BlobsMissingError(absent)
            if connection.execute("SELECT COUNT(*) FROM jobs WHERE state = 'queued'").fetchone()[0] >= max_queued:
                raise QueueFullError
            job = self._one(
                connection,
                "INSERT INTO jobs (id, idempotency_key, request, request_sha256, kind, name, client, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING {}",
                secrets.token_hex(8), idempotency_key, text, sha256, request["kind"], request["name"], client,
                self._clock(),
            )  # fmt: skip
            connection.executemany("INSERT INTO job_blobs VALUES (?, ?)", [(job.seq, name) for name in names])
        return job, True

    def get(self, job_id: str) -> Job | None:
        """One job, or None where there is none of this id."""
        with self._connection() as connection:
            return self._one(connection, "SELECT {} FROM jobs WHERE id = ?", job_id)

    def jobs(
        self, states: Sequence[str] = (), client: str | None = None, limit: int = 100, before: int | None = None
    ) -> list[Job]:
        """Jobs, newest first; `before`: older than that of this `seq`."""
        conditions, values = ["1"], []
        if states:
            conditions.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        if client is not None:
            conditions.append("client = ?")
            values.append(client)
        if before is not None:
            conditions.append("seq < ?")
            values.append(before)
        sql = f"SELECT {{}} FROM jobs WHERE {' AND '.join(conditions)} ORDER BY seq DESC LIMIT ?"
        with self._connection() as connection:
            return self._all(connection, sql, *values, limit)

    def ahead(self, job: Job) -> int:
        """How many queued jobs come before this queued one."""
        if job.state != "queued":
            return 0
        with self._connection() as connection:
            sql = "SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND seq < ?"
            return connection.execute(sql, (job.seq,)).fetchone()[0]

    def queued(self) -> list[int]:
        """The sequence numbers of all queued jobs, in the order in which they will begin."""
        with self._connection() as connection:
            return [row[0] for row in connection.execute("SELECT seq FROM jobs WHERE state = 'queued' ORDER BY seq")]

    def cancel(self, job_id: str) -> Job | None:
        """A queued job is cancelled at once; a running one learns of it. A final one stays as it is."""
        sql = """UPDATE jobs SET rev = rev + 1,
            finished = CASE state WHEN 'queued' THEN ? ELSE finished END,
            state = CASE state WHEN 'queued' THEN 'cancelled' ELSE 'cancelling' END
            WHERE id = ? AND state IN ('queued', 'running')"""
        with self._connection() as connection:
            connection.execute(sql, (self._clock(), job_id))
        return self.get(job_id)

    def retry(self, job_id: str, *, also_succeeded: bool = False) -> Job | None:
        """Queue a failed or cancelled job again; one that is active stays as it is."""
        states = ("failed", "cancelled", "succeeded") if also_succeeded else ("failed", "cancelled")
        sql = f"""UPDATE jobs SET state = 'queued', rev = rev + 1, crashes = 0, headway = 0, stage = '', step = 0,
            total = 0, fraction = 0, seconds_left = NULL, started = NULL, finished = NULL, worker = NULL, lease = NULL,
            error_code = NULL, error_detail = NULL, error_hint = NULL, result_sha256 = NULL, result_size = NULL,
            detail = NULL
            WHERE id = ? AND state IN ({", ".join("?" * len(states))})"""
        with self._connection() as connection:
            connection.execute(sql, (job_id, *states))
        return self.get(job_id)

    def delete(self, job_id: str) -> bool:
        """Remove a final job; returns whether one was removed."""
        sql = f"DELETE FROM jobs WHERE id = ? AND state IN {TERMINAL_STATES}"
        with self._connection() as connection:
            return connection.execute(sql, (job_id,)).rowcount == 1

    # For the worker

    def claim(self, worker: str, lease: float) -> Job | None:
        """Take the oldest queued job for `lease` seconds."""
        sql = """UPDATE jobs SET state = 'running', worker = ?, attempt = attempt + 1, lease = ?, rev = rev + 1,
            stage = 'Starting', step = 0, total = 0, seconds_left = NULL, detail = NULL, started = COALESCE(started, ?)
            WHERE seq = (SELECT seq FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT 1) AND state = 'queued'
            RETURNING {}"""
        with self._connection() as connection:
            if connection.execute("SELECT 1 FROM jobs WHERE state = 'queued' LIMIT 1").fetchone() is None:
                return None  # without taking the write lock
            now = self._clock()
            return self._one(connection, sql, worker, now + lease, now)

    def state(self, job_id: str, attempt: int) -> str | None:
        """The job's state as far as this attempt may act on it; None once it was taken away."""
        sql = "SELECT state FROM jobs WHERE id = ? AND attempt = ? AND state IN ('running', 'cancelling')"
        with self._connection() as connection:
            row = connection.execute(sql, (job_id, attempt)).fetchone()
        return row[0] if row else None

    def beat(self, job_id: str, attempt: int, lease: float) -> str | None:
        """The worker lives: it keeps the job for `lease` more seconds. Returns as `state` does."""
        return self._write(job_id, attempt, "lease = ?", self._clock() + lease)

    def progress(self, job_id: str, attempt: int, progress: Progress, *, new_preview: bool = False) -> str | None:
        """Write down where the attempt is. Returns as `state` does."""
        return self._write(
            job_id, attempt,
            "stage = ?, step = ?, total = ?, fraction = ?, seconds_left = ?, detail = ?, rev = rev + 1,"
            " preview_rev = preview_rev + ?",
            progress.stage, progress.step, progress.total, progress.fraction, progress.seconds_left,
            progress.detail or None, int(new_preview),
        )  # fmt: skip

    def succeed(self, job_id: str, attempt: int, sha256: str, size: int, has_blob: Callable[[str], bool]) -> str | None:
        """The attempt made a result. Returns the final state: `cancelled` where somebody cancelled meanwhile.

        `has_blob` is asked while nobody can remove blobs.

        Raises:
            BlobsMissingError: the result's blob is gone again; put it back and call once more.
        """
        with self._transaction() as connection:
            if not has_blob(sha256):
                raise BlobsMissingError([sha256])
            return self._finish(connection, job_id, attempt, "succeeded", result=(sha256, size))

    def fail(self, job_id: str, attempt: int, error: UserError) -> str | None:
        """The attempt failed for good. Returns the final state."""
        with self._transaction() as connection:
            return self._finish(connection, job_id, attempt, "failed", error=error)

    def end_cancelled(self, job_id: str, attempt: int) -> str | None:
        """The attempt ended because it was cancelled. Returns the final state."""
        with self._transaction() as connection:
            return self._finish(connection, job_id, attempt, "cancelled")

    def release(self, job_id: str, attempt: int) -> str | None:
        """Give the job back in good order: queued again, or cancelled where that was wished. Not a crash."""
        sql = """UPDATE jobs SET rev = rev + 1, worker = NULL, lease = NULL, seconds_left = NULL,
            stage = 'Interrupted', detail = NULL, finished = CASE state WHEN 'cancelling' THEN ? END,
            state = CASE state WHEN 'cancelling' THEN 'cancelled' ELSE 'queued' END
            WHERE id = ? AND attempt = ? AND state IN ('running', 'cancelling') RETURNING state"""
        with self._connection() as connection:
            row = connection.execute(sql, (self._clock(), job_id, attempt)).fetchone()
        return row[0] if row else None

    # For the supervisor

    def live(self) -> list[Job]:
        """The jobs that some worker has."""
        with self._connection() as connection:
            return self._all(connection, "SELECT {} FROM jobs WHERE state IN ('running', 'cancelling') ORDER BY seq")

    def settle(self, worker: str | None, error: UserError, crash_limit: int) -> list[Job]:
        """`worker` is dead (None: all are): its jobs are queued again, cancelled if that was wished, or failed.

        A job fails with `error` once `crash_limit` attempts in a row have died without getting any further.
        Returns the jobs as they are now.
        """
        with self._transaction() as connection:
            condition = "" if worker is None else " AND worker = ?"
            values = [] if worker is None else [worker]
            jobs = self._all(
                connection, f"SELECT {{}} FROM jobs WHERE state IN ('running', 'cancelling'){condition}", *values
            )
            for job in jobs:
                crashes = 1 if job.fraction > job.headway + HEADWAY else job.crashes + 1
                connection.execute(
                    "UPDATE jobs SET crashes = ?, headway = MAX(headway, fraction) WHERE seq = ?", (crashes, job.seq)
                )
                if job.state == "cancelling":
                    self._finish(connection, job.id, job.attempt, "cancelled")
                elif crashes >= crash_limit:
                    self._finish(connection, job.id, job.attempt, "failed", error=error)
                else:
                    connection.execute(
                        "UPDATE jobs SET state = 'queued', worker = NULL, lease = NULL, seconds_left = NULL,"
                        " stage = 'Interrupted', detail = NULL, rev = rev + 1 WHERE seq = ?",
                        (job.seq,),
                    )
            return [self._one(connection, "SELECT {} FROM jobs WHERE seq = ?", job.seq) for job in jobs]

    def note_waiting(self, stage: str) -> None:
        """Tell the first queued job why it does not begin."""
        sql = """UPDATE jobs SET stage = ?, rev = rev + 1 WHERE stage != ?
            AND seq = (SELECT seq FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT 1)"""
        with self._connection() as connection:
            connection.execute(sql, (stage, stage))

    @contextlib.contextmanager
    def unused_blob(self, sha256: str) -> Iterator[bool]:
        """Whether no job names the blob. While the block lasts no job can begin to."""
        with self._transaction() as connection:
            sql = """SELECT EXISTS (SELECT 1 FROM job_blobs WHERE sha256 = ?)
                OR EXISTS (SELECT 1 FROM jobs WHERE result_sha256 = ?)"""
            yield not connection.execute(sql, (sha256, sha256)).fetchone()[0]

    def set_fact(self, name: str, value: object) -> None:
        """Remember something about this service, such as the worker's device."""
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def fact(self, name: str) -> object:
        """What `set_fact` remembered; None where nothing was."""
        with self._connection() as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def problems(self) -> list[str]:
        """What SQLite's full check finds wrong; empty where all is well."""
        with self._connection() as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    # Inside

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise UserError(
                "home_too_new",
                f"The job list {self._path} was made by a newer version of Kinesplat.",
                "Update this one, or choose another data directory with --home.",
            )
        while 0 < version < SCHEMA_VERSION:
            version = self._migrate(connection)
        if version == SCHEMA_VERSION:
            return
        connection.execute("PRAGMA journal_mode = WAL")
        statements = ";".join(
            ["BEGIN IMMEDIATE", SCHEMA.strip().rstrip(";"), f"PRAGMA user_version = {SCHEMA_VERSION}"]
        )
        connection.executescript(f"{statements}; COMMIT;")

    @staticmethod
    def _migrate(connection: sqlite3.Connection) -> int:
        """Bring a database of an older version to the next one; returns the version that it has now.

        Several processes may open it at once: the version is looked at again under the write lock.
        """
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version in MIGRATIONS:
                connection.execute(MIGRATIONS[version])
                version += 1
                connection.execute(f"PRAGMA user_version = {version}")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return version

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own; it comes back only if all went well, so none returns within a transaction."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _write(self, job_id: str, attempt: int, assignments: str, *values: object) -> str | None:
        sql = f"""UPDATE jobs SET {assignments}
            WHERE id = ? AND attempt = ? AND state IN ('running', 'cancelling') RETURNING state"""
        with self._connection() as connection:
            row = connection.execute(sql, (*values, job_id, attempt)).fetchone()
        return row[0] if row else None

    def _finish(
        self,
        connection: sqlite3.Connection,
        job_id: str,
        attempt: int,
        state: str,
        result: tuple[str, int] = (None, None),
        error: UserError | None = None,
    ) -> str | None:
        """Bring a live job to its final state. Whoever cancels gets `cancelled`, also if the work was just done."""
        sql = "SELECT state FROM jobs WHERE id = ? AND attempt = ? AND state IN ('running', 'cancelling')"
        row = connection.execute(sql, (job_id, attempt)).fetchone()
        if row is None:
            return None
        if row[0] == "cancelling":
            state, result, error = "cancelled", (None, None), None
        connection.execute(
            "UPDATE jobs SET state = ?, rev = rev + 1, finished = ?, worker = NULL, lease = NULL, seconds_left = NULL,"
            " detail = NULL,"
            " result_sha256 = ?, result_size = ?, error_code = ?, error_detail = ?, error_hint = ?,"
            " fraction = CASE ? WHEN 'succeeded' THEN 1 ELSE fraction END,"
            " stage = CASE ? WHEN 'succeeded' THEN 'Done' ELSE stage END WHERE id = ?",
            (
                state, self._clock(), *result,
                error and error.code, error and str(error), error and error.hint, state, state, job_id,
            ),
        )  # fmt: skip
        return state

    def _one(self, connection: sqlite3.Connection, sql: str, *values: object) -> Job | None:
        row = connection.execute(sql.format(COLUMNS), values).fetchone()
        return Job(*row) if row else None

    def _all(self, connection: sqlite3.Connection, sql: str, *values: object) -> list[Job]:
        return [Job(*row) for row in connection.execute(sql.format(COLUMNS), values)]


def _damaged(path: Path) -> UserError:
    return UserError(
        "database_damaged",
        f"The job list {path} is damaged.",
        "Move it away and start again; finished clips stay in the blobs folder beside it.",
    )
