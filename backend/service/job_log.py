# SPDX-License-Identifier: GPL-3.0-or-later
"""One text file per job that says what its attempts did. A log that cannot be written stops nobody."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 1 << 20
FULL_BYTES = MAX_BYTES - (1 << 18)  # from here on only what must not be missing, such as how an attempt ended
FULL = "The log is full. From here on it tells only how attempts begin and end.\n"
MAX_MESSAGE = 20_000  # characters


class JobLog:
    """The log of one job. Several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, message: str, *, aside: bool = False) -> None:
        """Add one message with the time (UTC). aside: a full log can do without it."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        text = f"{stamp} {message[:MAX_MESSAGE]}\n".encode(errors="replace")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self.path.stat().st_size if self.path.exists() else 0
            if size > (FULL_BYTES if aside else MAX_BYTES):
                return
            if size <= FULL_BYTES < size + len(text):
                text += FULL.encode()
            with open(self.path, "ab") as file:
                file.write(text)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """While the block lasts the messages of Python's `logging` from INFO on come here too."""
        handler = _Handler(self)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)


class Spoken(JobLog):
    """A log that is no file: what was said and not yet passed on."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def write(self, message: str, *, aside: bool = False) -> None:
        """Add one message. Whoever passes it on says again whether it is an aside."""
        self._messages.append(message[:MAX_MESSAGE])

    def take(self) -> list[str]:
        """What was said since the last call."""
        taken = self._messages[:]
        del self._messages[: len(taken)]
        return taken


class _Handler(logging.Handler):
    def __init__(self, job_log: JobLog) -> None:
        super().__init__(logging.INFO)
        self.job_log = job_log
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.job_log.write(self.format(record), aside=True)
