# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs the attempts at jobs: a worker process here, or the machines of a Ray cluster."""

from collections.abc import Callable
from typing import Protocol

from backend.service.processes import Kept
from backend.service.queue import Queue
from backend.service.settings import LOCAL, Settings


class Executor(Protocol):
    """What the supervisor asks of either. The queue alone knows the truth about jobs; an executor runs attempts."""

    process: Kept  # takes jobs from the queue and brings each to an end; the supervisor starts and ends it

    def put_back(self) -> None:
        """The process does not run: whatever cannot go on without it is queued again."""

    def tick(self) -> None:
        """Called ten times a second while the service runs. Raises UserError where that must end."""


def make(settings: Settings, queue: Queue, announce: Callable[[str], None]) -> Executor:
    """The executor that the settings name. `announce` gets the lines for the terminal.

    Raises:
        UserError: it cannot be used on this computer, and why.
    """
    if settings.executor == LOCAL:
        from backend.service.executors.local import LocalExecutor

        return LocalExecutor(settings, queue)
    from backend.service.executors.ray import RayExecutor

    return RayExecutor(settings, queue, announce)
