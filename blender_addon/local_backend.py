# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend process on this computer: find it, start it, stop it. No bpy; may block, so it runs in the HTTP thread.

The backend writes two files into its home folder: `server.json` (port, pid, version) and `token`. It is a separate
process with a Python of its own and outlives Blender, because it owns the jobs.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .client import BackendClient, BackendError, Health, file_problem
from .contract.home import HOME_VARIABLE, INSTALLATION_FILE, SERVER_FILE, TOKEN_FILE, home_folder

LOG_FILE = "backend-start.log"
START_SECONDS = 90.0  # importing and compiling on a cold, slow disk
STOP_SECONDS = 10.0
SETUP_COMMAND = "python run.py setup"


@dataclass(frozen=True)
class Server:
    """A backend that runs, or says it does."""

    url: str
    token: str
    pid: int
    started: float  # seconds since 1970


@dataclass(frozen=True)
class Installation:
    """Where a backend can be started from."""

    folder: Path  # the checkout: it holds `backend` and `run.py`
    python: Path  # of the environment that `run.py setup` made


def read_server(home: Path) -> Server:
    """The backend that the files in `home` speak of.

    Raises:
        BackendError: `not_running` where there is none or its process has ended, `wrong_token` where its token cannot
            be read.
    """
    try:
        data = json.loads((home / SERVER_FILE).read_text(encoding="utf-8"))
        port, pid, started = int(data["port"]), int(data["pid"]), float(data["started"])
    except FileNotFoundError as error:
        raise _not_running() from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(
            "not_running",
            f"{home / SERVER_FILE} cannot be read, so the backend cannot be found.",
            "Stop the backend if it runs, and start it again.",
        ) from error
    if not process_exists(pid):
        raise _not_running()
    try:
        token = (home / TOKEN_FILE).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BackendError(
            "wrong_token",
            f"The backend's token in {home / TOKEN_FILE} cannot be read.",
            "Run the backend and Blender as the same user.",
        ) from error
    return Server(url=f"http://127.0.0.1:{port}", token=token, pid=pid, started=started)


def find_checkout(folder: str, home: Path | None = None) -> Path:
    """The folder with the backend's program files, set up or not.

    `folder` is the user's choice. Where it is empty, the folder that this extension lies in is tried, which is right
    when the extension is used from a checkout, then the one that set-up noted in the backend's `home`.

    Raises:
        BackendError: `not_installed`, with what to do as hint.
    """
    checkout = Path(folder).expanduser() if folder else Path(__file__).resolve().parent.parent
    if not folder and not _is_checkout(checkout):
        checkout = _noted_checkout(home or home_folder()) or checkout
    if _is_checkout(checkout):
        return checkout
    if folder:
        raise BackendError(
            "not_installed",
            f"There is no Kinesplat backend in {checkout}.",
            "In the preferences, choose the folder that holds run.py.",
        )
    raise BackendError(
        "not_installed",
        "The backend is not known yet: it is a program of its own, apart from this extension.",
        f"Download Kinesplat and run '{SETUP_COMMAND}' in its folder.",
    )


def find_installation(folder: str, python: str = "", home: Path | None = None) -> Installation:
    """The backend's program files, and the Python that runs them.

    `folder` and `home` are those of `find_checkout`. `python` overrides the environment's interpreter.

    Raises:
        BackendError: `not_installed`, with what to do as hint.
    """
    checkout = find_checkout(folder, home)
    if python:
        interpreter = Path(python).expanduser()
        if not interpreter.is_file():
            raise BackendError(
                "not_installed", f"There is no Python at {interpreter}.", "Correct it in the preferences."
            )
        return Installation(checkout, interpreter)
    stamps = _stamps(checkout)
    if not stamps:
        raise BackendError(
            "not_installed",
            "The backend is not set up yet.",
            f"In a terminal, run '{SETUP_COMMAND}' in {checkout}; it takes a few minutes, once.",
        )
    inside = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    return Installation(checkout, stamps[-1].parent / inside)


def is_set_up(checkout: Path) -> bool:
    """Whether 'python run.py setup' has made an environment there."""
    return bool(_stamps(checkout))


def _stamps(checkout: Path) -> list[Path]:
    """What set-up leaves in environments that are complete, the newest last."""
    return sorted((checkout / ".venv").glob("*/ready"), key=lambda stamp: stamp.stat().st_mtime)


def _is_checkout(folder: Path) -> bool:
    return (folder / "backend" / "__main__.py").is_file()


def _noted_checkout(home: Path) -> Path | None:
    """Where the backend was last set up or run, by its own note."""
    try:
        return Path(json.loads((home / INSTALLATION_FILE).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def start(
    installation: Installation,
    home: Path,
    port: int = 0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Server:
    """Start the backend and wait until it answers.

    Raises:
        BackendError: `start_failed` with the reason from its log, `stopped`, or a problem with files.
    """
    log_path = home / LOG_FILE
    command = [str(installation.python), "-m", "backend", "serve", "--home", str(home)]
    if port:
        command += ["--port", str(port)]
    detached: dict = {"start_new_session": True}  # Blender's end and its Ctrl-C do not end the backend
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        home.mkdir(parents=True, exist_ok=True)
        log = open(log_path, "wb")  # noqa: SIM115 - closed below; only its opening is the data folder's fault
    except OSError as error:
        raise file_problem(error, error.filename or home) from error
    try:
        with log:
            process = subprocess.Popen(
                command,
                cwd=installation.folder,
                env=_environment(home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                close_fds=True,
                **detached,
            )
    except OSError as error:
        raise BackendError(
            "not_installed",
            f"{installation.python} cannot be run as Python: {error.strerror or error}.",
            "Correct it in the preferences, or leave it empty there.",
        ) from error

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            with contextlib.suppress(BackendError):  # another one was started at the same moment: that is fine
                return answering(home)
            reason, hint = _last_words(log_path), f"The whole log is {log_path}."
            if "No module named" in reason:
                hint = (
                    f"{installation.python} lacks what the backend needs. Leave Python empty in the preferences, "
                    f"and run '{SETUP_COMMAND}' in {installation.folder}. {hint}"
                )
            raise BackendError("start_failed", f"The backend did not start: {reason}", hint)
        if is_stopped():
            process.terminate()
            raise BackendError("stopped", "Starting the backend was stopped.")
        with contextlib.suppress(BackendError):
            return answering(home)
        time.sleep(0.2)
    process.terminate()
    raise BackendError(
        "start_failed",
        f"The backend did not answer within {START_SECONDS:.0f} s.",
        f"Where the computer is busy, start it once more. Its log is {log_path}.",
    )


def stop(home: Path) -> None:
    """End the backend of `home`, if one runs. Its queue survives; a job that runs goes on at the next start.

    Raises:
        BackendError: `stop_failed` where it does not end, or what answers there is not ours to end.
    """
    try:
        server = read_server(home)
        client = BackendClient(server.url, server.token)
        try:
            with _any_version():  # an older one, which goes on while extension and backend are updated, ends as well
                check_identity(server, client.health())
            client.shutdown()
        finally:
            client.close()
    except BackendError as error:
        if error.code == "not_running":
            return
        raise
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if not process_exists(server.pid):
            return
        time.sleep(0.1)
    raise BackendError(
        "stop_failed",
        f"The backend has not ended after {STOP_SECONDS:.0f} s.",
        f"It is process {server.pid}; its jobs are kept if you end it.",
    )


def process_exists(pid: int) -> bool:
    """Whether a process with this id runs (an ended one that nobody has waited for does not count)."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _process_exists_windows(pid)
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)  # if it was ours and has ended, let it go
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process_exists_windows(pid: int) -> bool:
    """os.kill(pid, 0) would end the process there."""
    import ctypes

    query_limited_information, still_active = 0x1000, 259
    kernel32 = ctypes.windll.kernel32
    handle = kernel32.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    try:
        code = ctypes.c_ulong()
        return bool(kernel32.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == still_active
    finally:
        kernel32.CloseHandle(handle)


def answering(home: Path) -> Server:
    """The backend of `home`, once it answers and is the one that its files speak of.

    Raises:
        BackendError: `not_running`, or what `BackendClient.health` says.
    """
    server = read_server(home)
    client = BackendClient(server.url, server.token)
    try:
        check_identity(server, client.health())
    finally:
        client.close()
    return server


def check_identity(server: Server, health: Health) -> None:
    """Raises BackendError (`not_running`) where the files speak of another process than the one that answers."""
    if abs(health.started - server.started) > 0.01:
        raise _not_running()


@contextlib.contextmanager
def _any_version() -> Iterator[None]:
    try:
        yield
    except BackendError as error:
        if error.code != "wrong_version":
            raise


def _environment(home: Path) -> dict[str, str]:
    """This process's environment without Blender's Python in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, HOME_VARIABLE: str(home), "PYTHONUTF8": "1"}


def _last_words(log_path: Path) -> str:
    """The last line of the log that says something."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines()]
        if said := [line for line in lines if line]:
            return said[-1][:300]
    return "it left no word in its log."


def _not_running() -> BackendError:
    return BackendError("not_running", "The backend is not running.", "Press Start.")
