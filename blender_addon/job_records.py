# SPDX-License-Identifier: GPL-3.0-or-later
"""What the add-on itself remembers of its jobs, on disk: no bpy pointers, so it outlives undo, files and Blender.

    <folder>/client.json            this installation's id; the backend lists our jobs by it
    <folder>/records/<uid>.json     one JobRecord
    <folder>/outbox/<uid>/          a capture that the backend has not accepted yet: request.json and its blobs
    <folder>/results/<uid>.npz      fetched results
    <folder>/results/<uid>/         frames that somebody has opened as an image sequence; they stay, as files use them
    <folder>/previews/<uid>.jpg     latest previews

`uid` names a job from the moment somebody presses Generate; it is also the idempotency key of its submission.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .contract.arrays import write_json

REQUEST_FILE = "request.json"
UNFINISHED_SECONDS = 86_400.0  # a capture that old will not be finished any more


@dataclass
class JobRecord:
    """Where a job came from and where its result belongs."""

    uid: str
    name: str
    job_id: str = ""  # the backend's; empty until it has accepted the request
    state: str = "queued"  # as the backend said last
    subject: str = ""  # name of the source object when it was captured
    subject_uuid: str = ""  # the same object's own id (a custom property), which survives renaming
    blend_file: str = ""  # the file that it was in; empty where that had not been saved yet
    matrix_world: list[list[float]] = field(default_factory=list)  # of the source object at the first frame
    frame_start: int = 1
    frame_end: int = 1
    created: float = 0.0  # seconds since 1970
    imported: int = 0  # how often the result was imported
    kind: str = "orbit"  # of its request
    result_kind: str = "clip"  # what it ends with
    group: str = ""  # uid of the first of the candidates that were asked for together
    request: dict = field(default_factory=dict)  # of candidates: what the one that is chosen goes on from
    warnings: list[str] = field(default_factory=list)  # sentences that came with the result
    holder: int = field(default_factory=os.getpid)  # process id of the Blender that fetches the result by itself


class JobRecords:
    """The folder with all of that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def client_id(self) -> str:
        """The stable id of this installation; made on first use."""
        path = self.folder / "client.json"
        try:
            return str(uuid.UUID(json.loads(path.read_text(encoding="utf-8"))["client"]))
        except (OSError, ValueError, KeyError, TypeError):
            client = str(uuid.uuid4())
            write_json(path, {"client": client})
            return client

    def load(self) -> dict[str, JobRecord]:
        """All records by uid, oldest first. A damaged record is left out."""
        records = []
        names = {item.name for item in fields(JobRecord)}
        for path in (self.folder / "records").glob("*.json"):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                record = JobRecord(**{name: value for name, value in data.items() if name in names})
            except (OSError, ValueError, TypeError, AttributeError):
                continue
            if record.uid == path.stem:
                records.append(record)
        return {record.uid: record for record in sorted(records, key=lambda record: record.created)}

    def save(self, record: JobRecord) -> None:
        """Write one record. Raises OSError."""
        write_json(self.folder / "records" / f"{record.uid}.json", asdict(record))

    def remove(self, uid: str) -> None:
        """Forget a job with all its files here, but for those that Windows keeps because somebody has them open."""
        self.empty_outbox(uid)
        result = self.result(uid)
        parts = [result.with_name(result.name + ending) for ending in (".part", ".etag")]
        for path in (self.folder / "records" / f"{uid}.json", result, *parts, self.preview(uid)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def result(self, uid: str) -> Path:
        """Where a fetched result lies."""
        return self.folder / "results" / f"{uid}.npz"

    def is_half_fetched(self, uid: str) -> bool:
        """Whether fetching the result was interrupted."""
        return self.result(uid).with_name(f"{uid}.npz.part").exists()

    def preview(self, uid: str) -> Path:
        """Where the latest preview picture lies."""
        return self.folder / "previews" / f"{uid}.jpg"

    def outbox(self, uid: str) -> Path:
        """The folder of a capture that waits for the backend."""
        return self.folder / "outbox" / uid

    def seal_outbox(self, uid: str, request: dict, blobs: dict[str, str]) -> None:
        """Declare a capture complete. `blobs` maps sha256 to the file's path inside the outbox folder."""
        write_json(self.outbox(uid) / REQUEST_FILE, {"request": request, "blobs": blobs})

    def read_outbox(self, uid: str) -> tuple[dict, dict[str, Path]]:
        """The request and its blobs (sha256 -> file) of a complete capture. Raises OSError, ValueError or KeyError."""
        folder = self.outbox(uid)
        data = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
        return data["request"], {sha256: folder / name for sha256, name in data["blobs"].items()}

    def waiting(self) -> list[str]:
        """The uids of complete captures that the backend has not accepted yet."""
        return sorted(path.parent.name for path in (self.folder / "outbox").glob(f"*/{REQUEST_FILE}"))

    def empty_outbox(self, uid: str) -> None:
        """Throw a capture away."""
        shutil.rmtree(self.outbox(uid), ignore_errors=True)

    def drop_unfinished_captures(self) -> None:
        """Throw away what a Blender that was closed during a capture has left; a younger one may still be at work."""
        for folder in (self.folder / "outbox").glob("*"):
            with contextlib.suppress(OSError):
                is_old = time.time() - folder.stat().st_mtime > UNFINISHED_SECONDS
                if is_old and not (folder / REQUEST_FILE).exists():
                    shutil.rmtree(folder, ignore_errors=True)
