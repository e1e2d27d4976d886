# SPDX-License-Identifier: GPL-3.0-or-later
"""Why jobs fail: whatever goes wrong as a sentence with a code and a hint."""

import errno
import signal
import sys
from pathlib import Path

from backend.progress import UserError
from backend.service import paths
from backend.service.blobs import StoreFullError
from backend.service.settings import Settings
from blender_addon.contract.arrays import BadFileError


def as_user_error(error: BaseException, home: Path) -> UserError:
    """Any failure of a pipeline; `home` is the data directory, in case it is full."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, BadFileError):
        return UserError("bad_input", str(error))
    if isinstance(error, StoreFullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return paths.disk_full(home)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        where = "The computer" if isinstance(error, MemoryError) else "The GPU"
        return UserError(
            "out_of_memory",
            f"{where} ran out of memory.",
            "Close other programs, or choose fewer Gaussians, a lower resolution or a lower quality.",
        )
    return UserError(
        "internal_error",
        f"The work stopped because of a fault in Kinesplat ({type(error).__name__}).",
        "The job's log says more. Retry, or report it.",
    )


def device_is_lost(error: BaseException) -> bool:
    """CUDA errors other than a lack of memory leave a context that cannot be used again."""
    name = type(error).__name__
    return name == "AcceleratorError" or (isinstance(error, RuntimeError) and str(error).startswith("CUDA error"))


def crash_error(code: int | None, limit: int) -> UserError:
    """Why a job fails whose process died again and again at the same place; `code`: its exit code, if known."""
    hint = "The job's log says more. Generate again in a lower quality or with fewer Gaussians."
    if sys.platform != "win32" and code == -signal.SIGKILL:
        hint = "Most often memory ran out: close other programs, or choose a lower quality or fewer Gaussians."
    return UserError("crashed", f"The process that worked on this crashed {limit} times at the same place.", hint)


def silent_error(settings: Settings) -> UserError:
    """Why a job fails whose process stops giving signs of life."""
    return UserError(
        "stalled",
        f"The process that worked on this hung {settings.crash_limit} times at the same place.",
        "The job's log says more. Generate again in a lower quality.",
    )


def unplaced_error(settings: Settings) -> UserError:
    """Why a job fails that a cluster gives no place, although it has a free one."""
    return UserError(
        "ray_no_place",
        f"The Ray cluster had a free place, but started nothing there within {settings.ray_placing / 60:.0f} minutes, "
        f"{settings.crash_limit} times.",
        "Look at 'ray status' and at the machines' memory, then retry.",
    )


def stalled_error(settings: Settings) -> UserError:
    """Why a job fails that makes no progress."""
    return UserError(
        "stalled",
        f"There was no progress for {settings.stall_limit / 60:.0f} minutes, {settings.crash_limit} times.",
        "The job's log says more. Generate again in a lower quality.",
    )
