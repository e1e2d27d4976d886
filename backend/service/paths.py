# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the service keeps its data: one directory on a local disk, readable by its owner alone."""

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from backend.progress import UserError
from backend.versions import program_key
from blender_addon.contract.arrays import write_json
from blender_addon.contract.home import HOME_VARIABLE, INSTALLATION_FILE, SERVER_FILE, TOKEN_FILE

TOKEN = re.compile(r"[0-9a-f]{64}")
PROGRAM_FILE = "program.txt"  # in the folder of a job's checkpoints: who wrote them
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb", "smbfs", "smb3", "afpfs", "fuse.sshfs", "9p", "ceph", "glusterfs"}


@dataclass(frozen=True)
class Home:
    """The data directory and the names in it."""

    folder: Path

    @property
    def database(self) -> Path:
        """The queue."""
        return self.folder / "jobs.sqlite3"

    @property
    def token(self) -> Path:
        """The secret that every call must show."""
        return self.folder / TOKEN_FILE

    @property
    def server(self) -> Path:
        """Who runs and where: the port file."""
        return self.folder / SERVER_FILE

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it lives."""
        return self.folder / "lock"

    @property
    def worker_lock(self) -> Path:
        """Held by the worker while it lives."""
        return self.folder / "worker.lock"

    @property
    def blobs(self) -> Path:
        """Content by its sha256."""
        return self.folder / "blobs"

    @property
    def jobs(self) -> Path:
        """One folder per job."""
        return self.folder / "jobs"

    @property
    def logs(self) -> Path:
        """What the processes say."""
        return self.folder / "logs"

    def work(self, job_id: str) -> Path:
        """A job's checkpoints."""
        return self.jobs / job_id / "work"

    def preview(self, job_id: str) -> Path:
        """A job's newest preview picture."""
        return self.jobs / job_id / "preview.jpg"

    def log(self, job_id: str) -> Path:
        """A job's log."""
        return self.jobs / job_id / "log.txt"

    def forget(self, job_id: str) -> None:
        """Remove a job's folder."""
        shutil.rmtree(self.jobs / job_id, ignore_errors=True)

    def begin_work(self, job_id: str) -> bool:
        """Make the folder of a job's checkpoints; whether those that another program has left there were removed.

        Raises:
            UserError: they cannot be removed, as where another process has them open.
        """
        work, stamp = self.work(job_id), self.work(job_id) / PROGRAM_FILE
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if stamp.read_text("utf-8") == program_key():
                return False
        removed = work.is_dir() and any(work.iterdir())
        self.forget_work(job_id)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise UserError(
                "work_in_use",
                f"What another version of Kinesplat has left in {work} cannot be removed.",
                "End what has it open, then try again.",
            )
        stamp.write_text(program_key(), "utf-8")
        return removed

    def forget_work(self, job_id: str) -> None:
        """Remove a job's checkpoints."""
        shutil.rmtree(self.work(job_id), ignore_errors=True)


def prepare(home: Home) -> None:
    """Make the directory and see that it can be used.

    Raises:
        UserError: it cannot be written, or lies on a network drive, where SQLite cannot guard the queue.
    """
    try:
        home.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a disk without owners, such as exFAT
            home.folder.chmod(0o700)
        for folder in (home.blobs, home.jobs, home.logs):
            folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=home.folder):
            pass
    except OSError as error:
        raise UserError(
            "home_not_writable",
            f"The data directory {home.folder} cannot be written: {error.strerror or error}.",
            f"Choose another one with --home or {HOME_VARIABLE}.",
        ) from error
    if is_kept_from_others(home.folder):
        raise UserError(
            "home_hidden",
            f"This Python comes from the Microsoft Store, and Windows hides its files in {home.folder} from Blender.",
            "Install Python 3.11 from python.org, remove the folder .venv, and run 'python run.py setup' again.",
        )
    if (kind := file_system(home.folder)) in NETWORK_FILE_SYSTEMS:
        raise UserError(
            "home_on_network",
            f"The data directory {home.folder} lies on a network drive ({kind}), where the queue is not safe.",
            f"Choose a folder on a local disk with --home or {HOME_VARIABLE}.",
        )


def is_kept_from_others(folder: Path) -> bool:
    """Whether Windows shows only to us what we write into `folder`: it redirects apps from its store."""
    return sys.platform == "win32" and r"\Packages\PythonSoftwareFoundation" in os.path.realpath(folder)


def file_system(folder: Path) -> str:
    """The kind of file system that `folder` lies on, in lower case; empty where it cannot be told."""
    import psutil

    resolved = folder.resolve()
    if resolved.drive.startswith(r"\\"):  # on Windows a share, also under a letter of its own
        return "smb"
    try:
        partitions = psutil.disk_partitions(all=True)
    except OSError:
        return ""
    holding = [part for part in partitions if resolved.is_relative_to(part.mountpoint)]
    # The longest mount point wins, and of mounts on one point the last.
    return (
        max(enumerate(holding), key=lambda item: (len(item[1].mountpoint), item[0]))[1].fstype.lower()
        if holding
        else ""
    )


def ensure_token(home: Home) -> str:
    """The token of this data directory, made on first use with mode 0600."""
    with contextlib.suppress(FileNotFoundError):
        if TOKEN.fullmatch(token := home.token.read_text(encoding="ascii", errors="replace").strip()):
            return token
        home.token.unlink()  # a crash left it empty, or the disk has damaged it
    handle = os.open(home.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    token = secrets.token_hex(32)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def note_installation(home: Home) -> None:
    """Note where this program lies, so that the add-on can start it without being told."""
    write_json(home.folder / INSTALLATION_FILE, {"folder": str(Path(__file__).resolve().parents[2])})


def write_server(home: Home, server: dict) -> None:
    """Write the port file in one step, with mode 0600."""
    write_json(home.server, server, private=True)


def read_server(home: Home) -> dict | None:
    """What the port file says; None where there is none or it cannot be read."""
    try:
        server = json.loads(home.server.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return server if isinstance(server, dict) and isinstance(server.get("port"), int) else None


def free_bytes(folder: Path) -> int:
    """Free space on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def disk_full(folder: Path) -> UserError:
    """The sentence about a full disk."""
    return UserError(
        "disk_full",
        f"There is too little free space on the disk of {folder}.",
        "Free some space or remove old jobs, then try again: nothing is lost.",
    )
