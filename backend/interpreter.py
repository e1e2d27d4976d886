# SPDX-License-Identifier: GPL-3.0-or-later
"""How this program starts processes of its own: the same Python, which finds this very package and none where the
user is."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_SECONDS = 5.0  # `run.py setup` tries the lock for a moment


def own_process(module: str, *arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that runs one of our modules; `variables` go into its environment.

    On Windows the python.exe of a virtual environment only starts the real one. It is left out, as `multiprocessing`
    does, because what is done by the id of the process, such as handing over a socket, would reach the wrong one.
    """
    python = sys.executable
    if sys.platform == "win32" and os.path.normcase(sys._base_executable) != os.path.normcase(python):
        python, variables = sys._base_executable, {**variables, "__PYVENV_LAUNCHER__": python}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    environment = {**os.environ, **ours, **variables}
    return [python, "-m", module, *arguments], environment


@contextlib.contextmanager
def environment_held() -> Iterator[None]:
    """While the block lasts, `run.py setup` does not remove the environment that this process runs from."""
    folder = Path(sys.prefix).resolve()  # the user may have come by a link
    with contextlib.ExitStack() as stack:
        if folder.parent == ROOT / ".venv" and os.access(folder, os.W_OK):  # else nobody here could remove it
            import filelock

            # A name of its own: where containers share a folder, process ids are not.
            path = folder / f"in-use-{os.getpid()}-{secrets.token_hex(4)}.lock"
            with contextlib.suppress(OSError, NotImplementedError):  # a full disk, a file system without locks
                stack.callback(path.unlink, missing_ok=True)
                stack.enter_context(filelock.FileLock(path, timeout=LOCK_SECONDS))
        yield
