# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels on several cores: a plain pool of Python threads, since the kernels run without the GIL.

Numba's own threading layers are not used: one aborts the process when two Python threads enter it, another loads a
second OpenMP beside torch's.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """All of them, or as many as OMP_NUM_THREADS leaves to each process: torch heeds it as well."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    cores = available_cores()
    return min(int(wanted), cores) if wanted.isdecimal() and int(wanted) else cores


_threads = default_threads()


def set_threads(count: int) -> None:
    """Use `count` threads from the next call on. The results do not depend on it, to the last bit.

    Raises:
        ValueError: `count` is below 1.
    """
    global _threads, _pool
    if count < 1:
        raise ValueError(f"The number of threads must be at least 1, not {count}.")
    with _lock:
        _threads = count
        former, _pool = _pool, None
    if former:
        former.shutdown(wait=False)  # what runs there comes to its end


def get_threads() -> int:
    """The number of threads in use."""
    return _threads


def run_all(function: Callable[..., None], arguments: Iterable[tuple]) -> None:
    """Call `function(*each)` for each of `arguments`, spread over the threads, and wait for all."""
    arguments = list(arguments)
    if _threads == 1 or len(arguments) == 1:
        for each in arguments:
            function(*each)
        return
    futures = _submit(function, arguments)
    wait(futures)  # all of them, also when one fails: they write to arrays that the caller owns
    for future in futures:
        future.result()


def _submit(function: Callable[..., None], arguments: list[tuple]) -> list:
    global _pool
    with _lock:  # so that `set_threads` cannot shut the pool down between two submissions
        if _pool is None:
            _pool = ThreadPoolExecutor(_threads, thread_name_prefix="rasterize")
        return [_pool.submit(function, *each) for each in arguments]


def _forget_pool() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork
