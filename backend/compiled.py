# SPDX-License-Identifier: GPL-3.0-or-later
"""How kernels become machine code: one specialization each, cached per user, compiled once with a message.

The cache lies in the user's cache folder, never beside the sources, which may be read-only. Its name holds a hash of
all files that a kernel's file imports from, because Numba itself does not notice a changed constant in any of them.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numba
import platformdirs

# IEEE rules that the kernels do not need. Where NaN or infinity can come in from outside (projection, binning), they
# must stay comparable, or a diverged fit could make the kernels write out of bounds.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
FASTMATH_FINITE = FASTMATH | {"nnan", "ninf"}

UNUSED_SECONDS = 60 * 86_400  # after which the kernels of a version are forgotten

_log = logging.getLogger(__name__)
_kernels: list[tuple[numba.core.dispatcher.Dispatcher, str]] = []
_lock = threading.Lock()
_compiled = 0  # how many of them are


def kernel(signature: str, fastmath: set[str] | bool = FASTMATH) -> Callable:
    """Decorate a kernel that runs without the GIL; `compile_all` compiles it for this one signature."""

    def decorate(function: Callable) -> numba.core.dispatcher.Dispatcher:
        folder = _cache_folder(Path(function.__code__.co_filename))
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder or before)
        try:
            dispatcher = numba.njit(
                nogil=True, boundscheck=False, error_model="numpy", fastmath=fastmath, cache=folder is not None
            )(function)
        finally:
            numba.config.CACHE_DIR = before
        _kernels.append((dispatcher, signature))
        return dispatcher

    return decorate


def compile_all(on_message: Callable[[str], None] | None = None) -> None:
    """Load all kernels known so far from the cache, or compile them (up to a minute, once per computer and version).

    Any thread may call it at any time. `on_message` hears a sentence per kernel that had to be compiled.
    """
    global _compiled
    if _compiled == len(_kernels):
        return
    with _lock:
        while _compiled < len(_kernels):
            dispatcher, signature = _kernels[_compiled]
            _compile(dispatcher, signature)
            dispatcher.disable_compile()  # another type of argument is a mistake, not a reason to compile again
            _compiled += 1
            if on_message and sum(dispatcher.stats.cache_misses.values()):
                on_message(f"Compiling the kernels for this computer (once): {_compiled} of {len(_kernels)}")


def _compile(dispatcher: numba.core.dispatcher.Dispatcher, signature: str) -> None:
    """Load or compile one kernel. A cache that is damaged, or cannot be read or written, stops nobody."""
    try:
        dispatcher.compile(signature)
    except Exception as error:  # damage can raise anything, as what is kept is pickled
        _warn_once(f"{type(error).__name__}: {error}")
        if dispatcher.signatures:
            return  # compiled, only not kept
        try:
            dispatcher._cache.flush()  # a loss of power has cut its files short
        except OSError:
            dispatcher._cache = numba.core.caching.NullCache()
        dispatcher.compile(signature)


@functools.cache
def _warn_once(problem: str) -> None:
    _log.warning("Compiled kernels cannot be kept or read: %s", problem)


@functools.cache
def _cache_folder(file: Path) -> Path | None:
    """Where the machine code of a file's kernels is kept; None where nothing can be kept."""
    sources = b"".join(path.read_bytes() for path in sorted({Path(__file__), *_sources(file, set())}))
    root = os.environ.get("NUMBA_CACHE_DIR") or Path(platformdirs.user_cache_dir("kinesplat", appauthor=False))
    folder = Path(root) / "kernels" / hashlib.sha256(sources).hexdigest()[:12]
    try:
        if not folder.exists():
            _forget_unused(folder.parent)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"probe-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        _log.warning("Compiled kernels cannot be kept in %s (%s): every start will compile them anew.", folder, error)
        return None
    return folder


def _forget_unused(kernels: Path) -> None:
    """Remove what no start has asked for in a long time: kernels of former versions. Each start leaves its time."""
    for folder in kernels.glob("*"):
        with contextlib.suppress(OSError):  # of another user, or gone meanwhile
            if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _sources(file: Path, known: set[Path]) -> set[Path]:
    """The file, and those of the backend that it imports names from, and so on."""
    known.add(file)
    for name in re.findall(r"^from backend\.(\S+) import", file.read_text("utf-8"), re.MULTILINE):
        imported = Path(__file__).parent / f"{name.replace('.', '/')}.py"
        if imported not in known and imported.is_file():  # a package alone defines no constants
            _sources(imported, known)
    return known


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)  # another thread of the parent may have held it
