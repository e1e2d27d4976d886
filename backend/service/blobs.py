# SPDX-License-Identifier: GPL-3.0-or-later
"""Content-addressed files: pictures and clips under the sha256 of their bytes. Names never come from outside."""

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from backend.service import paths
from backend.service.settings import Settings
from blender_addon.contract.arrays import replace, sync_folder
from blender_addon.contract.requests import file_sha256

SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
TEMPORARY = ".tmp-"
FREE_CHECK_BYTES = 16 << 20  # written between two looks at the free space
USAGE_SECONDS = 30.0  # how long a count of the whole store is trusted
STALE_TEMPORARY = 3600.0


class BlobError(Exception):
    """Base of what can be wrong with a blob."""


class WrongHashError(BlobError):
    """The bytes are not those that the name says."""


class TooLargeError(BlobError):
    """More bytes than a blob may have."""


class StoreFullError(BlobError):
    """The quota is reached, or the disk has too little free space."""


class DamagedError(BlobError):
    """The file is missing or its bytes have changed; a changed file has been removed."""


class BlobStore:
    """All blobs under one folder. Several processes may use it at once."""

    def __init__(self, folder: Path, *, min_free: int, quota: int, max_blob: int) -> None:
        self.folder = folder
        self.min_free = min_free
        self.quota = quota
        self.max_blob = max_blob
        self._usage = (float("-inf"), 0)  # monotonic time of the last count, bytes
        self._usage_lock = threading.Lock()

    @classmethod
    def limited(cls, folder: Path, settings: Settings) -> "BlobStore":
        """The store in a folder, with the limits that the settings set."""
        return cls(folder, min_free=settings.min_free, quota=settings.quota, max_blob=settings.max_blob)

    def path(self, sha256: str) -> Path:
        """Where a blob lies or would lie. Raises ValueError where `sha256` is no sha256."""
        if not SHA256.fullmatch(sha256):
            raise ValueError("not a sha256")
        return self.folder / sha256[:2] / sha256

    def verified(self, sha256: str) -> Path:
        """The path of a blob whose bytes have just been held against its name.

        Raises:
            DamagedError: it is not there, or was not what it should be.
        """
        path = self.path(sha256)
        try:
            before = path.stat()
            if file_sha256(path) == sha256:
                return path
            with contextlib.suppress(FileNotFoundError):
                after = path.stat()
                if (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
                    path.unlink()  # so that it can be sent again
        except OSError as error:
            raise DamagedError(sha256) from error
        raise DamagedError(sha256)

    def has(self, sha256: str) -> bool:
        """Whether the blob is there and undamaged."""
        try:
            self.verified(sha256)
        except DamagedError:
            return False
        return True

    def missing(self, names: list[str]) -> list[str]:
        """Those of `names` that are not there undamaged; the others count as just used."""
        return [name for name in names if not (self._touch(name) and self.has(name))]

    def check_space(self, size: int = 0) -> None:
        """Raises StoreFullError where `size` more bytes do not fit."""
        if paths.free_bytes(self.folder) - size < self.min_free or self.usage() + size > self.quota:
            raise StoreFullError

    def usage(self) -> int:
        """Bytes in all blobs, counted at most every half minute."""
        with self._usage_lock:
            when, size = self._usage
            if time.monotonic() - when > USAGE_SECONDS:
                size = sum(path.stat().st_size for path in self._files())
                self._usage = (time.monotonic(), size)
            return size

    @contextlib.contextmanager
    def incoming(self, declared_size: int = 0) -> Iterator["Incoming"]:
        """A new blob being written; without `keep` nothing remains of it.

        Raises:
            StoreFullError: there is no room for `declared_size` more bytes.
        """
        self.check_space(declared_size)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                yield Incoming(self, file, Path(temporary))
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def add_file(self, path: Path) -> tuple[str, int]:
        """Copy a file into the store; returns its sha256 and size."""
        with self.incoming(path.stat().st_size) as blob, open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                blob.write(chunk)
            blob.keep()
        return blob.sha256, blob.size

    def clean_up(self, is_unused: Callable[[str], contextlib.AbstractContextManager[bool]], age: float) -> int:
        """Remove temporary files that nobody writes any more, and blobs older than `age` seconds that no job names.

        `is_unused(sha256)` holds off, while its block lasts, everybody who wants to begin using the blob.
        Returns how many blobs went.
        """
        now, count = time.time(), 0
        for path in self.folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > STALE_TEMPORARY:
                    path.unlink()
        for path in self._files():
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > age:
                    with is_unused(path.name) as unused:
                        if unused and now - path.stat().st_mtime > age:
                            path.unlink()
                            count += 1
        with self._usage_lock:
            self._usage = (float("-inf"), 0)
        return count

    def drop_temporaries(self) -> None:
        """Remove all half-written files; only for who knows that nobody writes now."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _touch(self, sha256: str) -> bool:
        try:
            os.utime(self.path(sha256))
        except OSError:
            return False
        return True

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("[0-9a-f][0-9a-f]/*") if SHA256.fullmatch(path.name)]

    def _added(self, size: int) -> None:
        with self._usage_lock:
            self._usage = (self._usage[0], self._usage[1] + size)


class Incoming:
    """A blob on its way in: bytes are counted, hashed and written to a temporary file."""

    def __init__(self, store: BlobStore, file, temporary: Path) -> None:
        self.size = 0
        self._store = store
        self._file = file
        self._temporary = temporary
        self._hash = hashlib.sha256()
        self._next_check = FREE_CHECK_BYTES

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Raises TooLargeError, StoreFullError, or OSError where the disk is full."""
        self.size += len(data)
        if self.size > self._store.max_blob:
            raise TooLargeError
        if self.size > self._next_check:
            self._next_check += FREE_CHECK_BYTES
            self._store.check_space()
        self._hash.update(data)
        self._file.write(data)

    def keep(self, expected: str | None = None) -> bool:
        """Give the blob its name; returns whether it is new.

        The bytes are on the disk before the name is, so that a power cut leaves no name with other bytes.

        Raises:
            WrongHashError: the bytes are not `expected`.
        """
        sha256 = self.sha256
        if expected is not None and sha256 != expected:
            raise WrongHashError
        if not self._store.missing([sha256]):
            return False
        self._file.flush()
        os.fsync(self._file.fileno())
        path = self._store.path(sha256)
        path.parent.mkdir(exist_ok=True)
        self._file.close()  # Windows renames no open file
        replace(self._temporary, path)
        sync_folder(path.parent)
        self._store._added(self.size)
        return True
