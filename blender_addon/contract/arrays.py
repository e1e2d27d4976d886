# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading of `.npz` files from anywhere: no pickles, no surprises in size. Writing of files in one step."""

import contextlib
import json
import os
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

TEMPORARY = ".tmp-"  # begins the names of files that are not there yet
MAX_FILE_BYTES = 4 << 30  # unpacked; a clip of 1,000,000 Gaussians x 96 frames as bases is 0.3 GB
REPLACE_TRIES, REPLACE_SECONDS = 100, 0.02  # two seconds


class BadFileError(ValueError):
    """A file is not what it should be. The message is one sentence for the user."""


def demands(wrong: str) -> Callable[[Any, str], None]:
    """A function that raises BadFileError, "`wrong`: problem.", where its condition is not met."""

    def demand(condition: Any, problem: str) -> None:
        if not condition:
            raise BadFileError(f"{wrong}: {problem}.")

    return demand


def read_arrays(path: str | os.PathLike, max_bytes: int = MAX_FILE_BYTES) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`, by name.

    Each array's header is read before its data, so that a small file cannot claim much memory.

    Raises:
        BadFileError: not an `.npz`, damaged, holds objects (pickles), or larger than `max_bytes` unpacked.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    arrays: dict[str, np.ndarray] = {}
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    raise BadFileError(f"{path.name} is not a Kinesplat file: it holds {entry.filename!r}.")
                name = entry.filename[: -len(".npy")]
                if name in arrays:
                    raise BadFileError(f"{path.name} is damaged: {name} is in it twice.")
                with archive.open(entry) as member:
                    shape, fortran_order, dtype = _read_header(member, path, name)
                    total += _byte_count(shape, dtype)
                    if total > max_bytes:
                        raise BadFileError(f"{path.name} would take more than {max_bytes / 1e9:.1f} GB of memory.")
                    data = member.read(_byte_count(shape, dtype) + 1)
                if len(data) != _byte_count(shape, dtype):
                    raise BadFileError(f"{path.name} is damaged: {name} has the wrong length.")
                array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
                arrays[name] = array.astype(dtype.newbyteorder("="), copy=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadFileError(f"{path.name} is damaged or not a Kinesplat file.") from error
    return arrays


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write an `.npz` in one step: either the whole file is there afterwards, or the former one."""
    with atomic_file(path) as file:
        write_npz(file, arrays)


def write_npz(file: BinaryIO, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
    """What `np.savez_compressed` writes. That leaves its archive open on a full disk, and a traceback in the end."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def write_json(path: str | os.PathLike, data: dict, *, private: bool = False) -> None:
    """Write JSON in one step; `private` as in `atomic_file`."""
    with atomic_file(path, private=private) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


def replace(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """As `os.replace`. Raises OSError.

    Windows renames no file that somebody has open, and virus scanners open each new one for a moment: there it is tried
    again for a while.
    """
    for left in reversed(range(REPLACE_TRIES)):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if not left or getattr(error, "winerror", None) is None:
                raise
            time.sleep(REPLACE_SECONDS)


def sync_folder(folder: Path) -> None:
    """Bring a rename in `folder` to the disk, where the system can (Windows cannot, and need not)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, *, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    private: for its owner alone; else for whom the system lets new files be.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    rights = 0o600 if private else 0o666  # less what the umask takes
    with made_folder(path.parent), _errors_name(path):
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, rights)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_files(folder: str | os.PathLike) -> Iterator[Path]:
    """An empty folder whose files move into `folder` when the block ends well, and vanish with it when it does not.

    For files that belong together, and for libraries that only write to names. Files of the same name are replaced.
    """
    folder = Path(folder)
    with made_folder(folder), _errors_name(folder):
        temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        temporary.mkdir()  # open to whom `folder` is: on Windows files keep the rights of where they were made
        try:
            yield temporary
            for path in sorted(temporary.iterdir()):
                replace(path, folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it. Where the block does not end well, the empty ones that were made go again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # somebody else has put something there
            for path in made:
                if path.exists():
                    path.rmdir()
        raise


@contextlib.contextmanager
def _errors_name(known: Path) -> Iterator[None]:
    """Let the system's errors name `known` where they name a temporary file or, as those of a full disk, nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename and TEMPORARY not in str(error.filename)):
            raise
        raise OSError(error.errno, error.strerror, str(error.filename2 or known)) from error


def _read_header(member: BinaryIO, path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(member)
    except BadFileError:
        raise
    except (ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise BadFileError(f"{path.name} is damaged: {name} cannot be read.") from error
    if dtype.hasobject:
        raise BadFileError(f"{path.name} is refused: {name} holds Python objects, which could run code.")
    if any(size < 0 for size in shape):
        raise BadFileError(f"{path.name} is damaged: {name} has a negative size.")
    return shape, fortran_order, dtype


def _byte_count(shape: tuple[int, ...], dtype: np.dtype) -> int:
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count
