# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the backend and of the jobs, in plain Python: events of the HTTP thread go in, rows come out.

The window manager's properties are only a mirror of this board, because Blender replaces them with each file.
"""

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

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

# States of a row: those of the contract, and three more that only this side knows.
WAITING = "waiting"  # captured; goes to the backend as soon as it is there
REFUSED = "refused"  # captured; the backend does not take it
GONE = "gone"  # the backend no longer knows the job
ENDED_STATES = (*TERMINAL_STATES, REFUSED, GONE)

log = logging.getLogger(__name__)


@dataclass
class Row:
    """One job as the user sees it."""

    uid: str
    name: str
    state: str = WAITING
    job_id: str = ""
    stage: str = ""
    detail: str = ""  # what the backend adds to the stage
    ahead: int = 0  # queued jobs that come first
    fraction: float = 0.0
    seconds_left: float | None = None
    message: str = ""  # what went wrong
    hint: str = ""  # what to do about it
    created: float = 0.0
    result: Path | None = None  # the fetched file
    preview: Path | None = None
    preview_rev: int = 0  # grows with each new picture
    fetching: float | None = None  # how much of the result is here, while it is coming
    import_into: str = ""  # the scene that gets the result as soon as it is here
    result_kind: str = "clip"  # what it ends with: a clip, or frames to choose from
    group: str = ""  # the same for all candidates that were asked for together
    warnings: tuple[str, ...] = ()  # sentences that came with the result

    @property
    def is_live(self) -> bool:
        """Whether it may still change by itself."""
        return self.state not in ENDED_STATES or self.fetching is not None

    @property
    def has_result(self) -> bool:
        """Whether there is something to import or to look at, here or on the backend."""
        return self.result is not None or self.state == "succeeded"


@dataclass
class Board:
    """All rows, newest first, and the backend's state."""

    records: JobRecords
    backend: BackendChanged = field(default_factory=lambda: BackendChanged("stopped"))
    rows: dict[str, Row] = field(default_factory=dict)  # by uid
    notice: CommandFailed | None = None  # the last thing that was refused, until it is shown
    logs: list[LogFetched] = field(default_factory=list)  # that have come, until they are shown
    _kept: dict[str, JobRecord] = field(default_factory=dict)  # by uid, as on disk

    def load(self) -> None:
        """Begin with what is on disk: records of jobs, captures that wait, results and previews that are here."""
        waiting = set(self.records.waiting())
        for uid, record in self.records.load().items():
            if not record.job_id and uid not in waiting:
                continue  # another Blender is about to complete it, or was closed before it could
            self.add(record)

    def add(self, record: JobRecord) -> Row:
        """A row for a record that lies on disk."""
        self._kept[record.uid] = record
        return self._add(_row_of(record, self.records))

    def record(self, uid: str) -> JobRecord | None:
        """Where a job came from, if this installation still knows."""
        return self._kept.get(uid)

    def keep(self, record: JobRecord) -> None:
        """Write a changed record down."""
        try:
            self.records.save(record)
        except OSError as error:
            log.warning("The record of a job cannot be written: %s", error)  # the backend still has the job

    def count_import(self, uid: str) -> None:
        """A result was imported once more."""
        if record := self._kept.get(uid):
            record.imported += 1
            self.keep(record)

    def remove(self, uid: str) -> None:
        """Forget a row and its files here."""
        self.rows.pop(uid, None)
        self._kept.pop(uid, None)
        self.records.remove(uid)

    def find(self, uid: str) -> Row | None:
        """The row with this uid, or with this job id."""
        return self.rows.get(uid) or next((row for row in self.rows.values() if uid and row.job_id == uid), None)

    @property
    def is_busy(self) -> bool:
        """Whether anything may change soon."""
        return self.backend.state in ("starting", "stopping") or any(row.is_live for row in self.rows.values())

    def apply(self, event: object) -> None:
        """Take one event of the HTTP thread."""
        match event:
            case BackendChanged():
                self.backend = event
            case Sending(uid, fraction):
                if row := self.rows.get(uid):
                    row.state, row.stage, row.fraction = WAITING, "Sending", fraction
                    row.message = row.hint = ""
            case SendFailed(uid, error):
                if row := self.rows.get(uid):
                    row.state, row.message, row.hint = REFUSED, str(error), error.hint
            case JobSeen(job, uid):
                self._see(job, uid)
            case JobsListed(jobs):
                self._list(jobs)
            case JobGone(job_id):
                if row := self.find(job_id):
                    self._gone(row)
            case JobTaken(uid):
                if record := self._kept.get(uid):
                    record.holder = os.getpid()
                    self.keep(record)
            case PreviewSaved(uid, path):
                if row := self.find(uid):
                    row.preview = path
                    row.preview_rev += 1
            case Fetching(uid, fraction):
                if row := self.find(uid):
                    row.fetching = fraction
            case ResultSaved(uid, path, warnings):
                if row := self.find(uid):
                    row.result, row.fetching, row.warnings = path, None, warnings
                    row.message = row.hint = ""
                    if (record := self._kept.get(row.uid)) and tuple(record.warnings) != warnings:
                        record.warnings = list(warnings)
                        self.keep(record)
            case ResultFailed(uid, error):
                if row := self.find(uid):
                    row.fetching, row.import_into = None, ""
                    row.message, row.hint = str(error), error.hint
            case LogFetched():
                self.logs.append(event)
            case CommandFailed(error, job_id):
                if row := self.find(job_id):
                    row.message, row.hint = str(error), error.hint
                else:
                    self.notice = event

    def _add(self, row: Row) -> Row:
        self.rows[row.uid] = row
        newest_first = sorted(self.rows.values(), key=lambda row: row.created, reverse=True)
        self.rows = {row.uid: row for row in newest_first}
        return row

    def _list(self, jobs: list[dict]) -> None:
        for job in jobs:
            self._see(job)
        known = {str(job["id"]) for job in jobs}
        for row in self.rows.values():
            if row.job_id and row.job_id not in known:
                self._gone(row)

    def _see(self, job: dict, uid: str = "") -> None:
        job_id = str(job["id"])
        row = self.rows.get(uid) or self.find(job_id)
        if row is None:  # another Blender's, or one whose record is lost: it can still be followed and imported
            record = next((kept for kept in self.records.load().values() if kept.job_id == job_id), None)
            new = Row(uid=uid or job_id, name=str(job.get("name") or "Job"), created=_created(job))
            row = self.add(record) if record else self._add(new)
        row.job_id = job_id
        row.state = str(job["state"])
        row.result_kind = str(job.get("result_kind") or "clip")
        row.stage, row.detail = str(job.get("stage") or ""), str(job.get("detail") or "")
        row.ahead = int(job.get("ahead") or 0)
        row.fraction = min(max(float(job.get("fraction") or 0.0), 0.0), 1.0)
        left = job.get("seconds_left")
        row.seconds_left = None if left is None else max(float(left), 0.0)
        error = job.get("error") or {}
        row.message = str(error.get("message") or "It failed.") if row.state == "failed" else ""
        row.hint = str(error.get("hint") or "") if row.state == "failed" else ""
        self._note_down(row)

    def _note_down(self, row: Row) -> None:
        record = self._kept.get(row.uid)
        if record is None or (record.job_id, record.state) == (row.job_id, row.state):
            return
        was_sent = bool(record.job_id)
        record.job_id, record.state = row.job_id, row.state
        self.keep(record)
        if not was_sent:
            self.records.empty_outbox(row.uid)

    def _gone(self, row: Row) -> None:
        if row.state == GONE:
            return
        row.state, row.stage, row.detail, row.fetching, row.seconds_left = GONE, "", "", None, None
        row.message = "This job is no longer on the backend."
        row.hint = "Its result is still here." if row.result else "Remove it, or generate again."
        self._note_down(row)


def time_left_text(seconds: float | None) -> str:
    """`75` -> `1:15 left`, `9` -> `9 s left`; nothing where it is not known."""
    if seconds is None or seconds < 0:
        return ""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s left"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def _row_of(record: JobRecord, records: JobRecords) -> Row:
    result, preview = records.result(record.uid), records.preview(record.uid)
    return Row(
        uid=record.uid,
        name=record.name,
        state=record.state if record.job_id else WAITING,
        job_id=record.job_id,
        created=record.created,
        result=result if result.exists() else None,
        preview=preview if preview.exists() else None,
        preview_rev=1 if preview.exists() else 0,
        result_kind=record.result_kind,
        group=record.group,
        warnings=tuple(record.warnings),
    )


def _created(job: dict) -> float:
    try:
        return float(job.get("created") or time.time())
    except (TypeError, ValueError):
        return time.time()
