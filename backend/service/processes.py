# SPDX-License-Identifier: GPL-3.0-or-later
"""Child processes of the supervisor that never outlive it, on every system.

The parent holds the writing end of each child's standard input and never writes; when the parent ends in whatever way,
the child reads the end of the file there and ends too. On Linux the kernel also kills the child. A child says on its
standard output, once, that it is ready.
"""

import base64
import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from backend.interpreter import own_process
from backend.service.settings import Settings

READY = b"ready\n"
LAST_SECONDS = 3.0  # from the parent's end until a child that does not end by itself is ended
PR_SET_PDEATHSIG = 1
DEVICE_LOST_EXIT = 75  # of a process whose GPU must not be used any more
BACK_OFF = (0.25, 10.0)  # seconds before a child that never became ready is started again; doubles
LOG_BYTES = 1 << 20  # above this a log is put aside at the next start


class Child:
    """A process that runs one module of the service."""

    def __init__(
        self,
        module: str,
        settings: Settings,
        log_path: Path,
        listener: socket.socket | None = None,
        **launch: object,
    ) -> None:
        """Start it; `listener` is handed over, `launch` reaches it as JSON."""
        self.name = f"{module.rsplit('.', 1)[-1]}-{secrets.token_hex(4)}"
        self.started = time.monotonic()
        self.ready = threading.Event()
        self._end_called = False
        launch |= {"name": self.name, "parent": os.getpid()}
        options: dict = {"start_new_session": True}  # Ctrl-C in the terminal is the supervisor's business
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        elif listener is not None:
            launch["socket"] = listener.fileno()
            options["pass_fds"] = (listener.fileno(),)
        rotate(log_path)
        command, environment = own_process(module, settings.to_json(), json.dumps(launch), PYTHONUNBUFFERED="1")
        with open(log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, **options
            )
        if sys.platform == "win32" and listener is not None:
            self.process.stdin.write(base64.b64encode(listener.share(self.process.pid)) + b"\n")
            self.process.stdin.flush()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        if self.process.stdout.readline() == READY:
            self.ready.set()
        with contextlib.suppress(OSError, ValueError):
            while self.process.stdout.read(1 << 12):
                pass

    @property
    def pid(self) -> int:
        """The system's number of the process."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """None while it runs; reaps it when it has ended."""
        return self.process.poll()

    def end(self) -> None:
        """Ask it to end in good order."""
        if not self._end_called:
            self._end_called = True
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            if sys.platform != "win32":  # there it would be killed; the closed pipe asks it
                with contextlib.suppress(ProcessLookupError):
                    self.process.terminate()

    def kill(self) -> None:
        """End it and whatever it has started, now."""
        if self.process.poll() is not None:
            return
        if sys.platform == "win32":
            self.process.kill()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def join(self, seconds: float) -> None:
        """Wait for its end; what takes longer than `seconds` is killed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()


class Kept:
    """A child that is started again whenever it ends: at once if it had been ready, else later and later."""

    def __init__(self, start: Callable[[], Child]) -> None:
        self.child: Child | None = None
        self.failed_starts = 0
        self._start = start
        self._next_start = 0.0

    def start(self) -> None:
        """Start it now."""
        self.child = self._start()

    def reap(self) -> int | None:
        """The exit code if it has just ended; starts the next one when it is time."""
        if self.child is None:
            if time.monotonic() >= self._next_start:
                self.start()
            return None
        code = self.child.exit_code()
        if code is None:
            return None
        self.failed_starts = 0 if self.child.ready.is_set() else self.failed_starts + 1
        delay = min(BACK_OFF[0] * 2 ** (self.failed_starts - 1), BACK_OFF[1]) if self.failed_starts else 0.0
        self.child, self._next_start = None, time.monotonic() + delay
        return code


def exit_text(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    if code == DEVICE_LOST_EXIT:
        return "the GPU was lost"
    return f"exit code {code}"


def follow_parent(parent: int, on_end: Callable[[], None]) -> None:
    """In the child: call `on_end` when the parent ends or asks for the end, and see that the child does end."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform != "win32" and os.getppid() != parent:
        os._exit(0)  # it ended before we could ask to be told
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what this process starts must not read from the lifeline
    os.close(nothing)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(lifeline, 1):
                pass
        on_end()
        time.sleep(LAST_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def prefer_as_victim() -> None:
    """In the child: where memory runs out, Linux shall end this process rather than Blender or the supervisor."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def say_ready() -> None:
    """In the child: tell the parent; from here on standard output goes to the log."""
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(1, READY)
    os.dup2(2, 1)


def receive_socket(launch: dict) -> socket.socket:
    """In the child: the listening socket that the parent handed over."""
    if sys.platform == "win32":
        line = bytearray()
        while not line.endswith(b"\n"):
            line += os.read(0, 1)
        return socket.fromshare(base64.b64decode(line))
    return socket.socket(fileno=launch["socket"])


def rotate(path: Path) -> None:
    """Put a log aside that has grown large."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_BYTES:
            os.replace(path, path.with_suffix(".1.log"))
