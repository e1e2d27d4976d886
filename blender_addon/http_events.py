# SPDX-License-Identifier: GPL-3.0-or-later
"""What the HTTP thread tells the main thread: plain data, one class for each kind of news."""

from dataclasses import dataclass
from pathlib import Path

from .client import BackendError


@dataclass(frozen=True)
class BackendChanged:
    """The state of the connection: stopped, starting, running, stopping, or problem."""

    state: str
    sentence: str = ""
    hint: str = ""
    code: str = ""
    url: str = ""
    version: str = ""
    prompts: tuple[str, ...] = ()  # that its model knows something for


@dataclass(frozen=True)
class Sending:
    """How much of a capture has gone to the backend."""

    uid: str
    fraction: float


@dataclass(frozen=True)
class SendFailed:
    """The backend refused a request; it stays in the outbox."""

    uid: str
    error: BackendError


@dataclass(frozen=True)
class JobSeen:
    """A job as the backend describes it. `uid` is known where it was submitted just now."""

    job: dict
    uid: str = ""


@dataclass(frozen=True)
class JobsListed:
    """All jobs of this client as the backend knows them; others are gone."""

    jobs: list


@dataclass(frozen=True)
class JobGone:
    """The backend no longer knows this job."""

    job_id: str


@dataclass(frozen=True)
class JobTaken:
    """This Blender now fetches the result of a job that another one has left behind."""

    uid: str


@dataclass(frozen=True)
class PreviewSaved:
    """A new preview picture lies in its file."""

    uid: str
    path: Path


@dataclass(frozen=True)
class Fetching:
    """How much of a result is here."""

    uid: str
    fraction: float


@dataclass(frozen=True)
class ResultSaved:
    """A result lies in its file, whole and readable."""

    uid: str
    path: Path
    warnings: tuple[str, ...] = ()  # what whoever made it wants to be known


@dataclass(frozen=True)
class ResultFailed:
    """A result could not be fetched."""

    uid: str
    error: BackendError


@dataclass(frozen=True)
class CommandFailed:
    """Something that the user asked for was refused."""

    error: BackendError
    job_id: str = ""


@dataclass(frozen=True)
class LogFetched:
    """A job's log as it is now, or why it could not be fetched."""

    uid: str
    text: str
    error: BackendError | None = None
