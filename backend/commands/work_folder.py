# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a command keeps what it has finished, so that the same command goes on from there."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from backend.progress import UserError
from blender_addon.contract.arrays import made_folder

LOCK = "in-use.lock"
OURS = "made-by-kinesplat"  # tells our folders from those of others, also where locks go when they are released


@contextlib.contextmanager
def work_folder(chosen: Path | None, out: Path) -> Iterator[Path]:
    """The folder that was chosen, or one beside the result `out`, which goes once the block has ended well.

    Where the block fails, it goes only if nothing was finished in it.

    Raises:
        UserError: another command works in it.
    """
    folder = chosen or out.with_suffix(".work")
    ours = not folder.exists() or (folder / OURS).exists()
    with made_folder(folder), _held(folder / LOCK):
        try:
            if ours:
                (folder / OURS).touch()
            yield folder
        except BaseException:
            if ours:
                _drop_empty(folder)
            raise
        finally:
            if not ours:
                _drop(folder / LOCK)
    if ours and chosen is None:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock that the system drops when the process ends."""
    lock = filelock.FileLock(path)
    with contextlib.suppress(NotImplementedError):  # a file system without locks
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            hint = "Wait for its end, or choose another --out or --work."
            raise UserError("work_taken", f"Another command is at work in {path.parent}.", hint) from error
    try:
        yield
    finally:
        lock.release()


def _drop_empty(folder: Path) -> None:
    """Remove folders in which nothing lies, and what else is there if nothing was finished; the rest `made_folder`."""
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):  # there is something in it
            path.rmdir()
    if {path.name for path in folder.iterdir()} <= {LOCK, OURS}:
        _drop(folder / OURS)
        _drop(folder / LOCK)


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows lets no open file go; filelock removes its own there
        path.unlink()
