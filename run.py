# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinesplat on a fresh machine: `python run.py demo` and `python run.py test`. Needs Python 3.11 and nothing else.

    python run.py demo  [--out DIR]        the main job on real input: Blender geometry -> Gaussians -> Blender scene
    python run.py test  [pytest arguments] all tests, or for example: -m "not slow"
    python run.py serve [--home DIR ...]   the backend for Blender, until Ctrl-C
    python run.py build [--out DIR]        the extension archive for Blender (default: dist)
    python run.py bench [NAME ...]         benchmarks; without a name, the list of them
    python run.py setup                    only make the environment

The first use makes an environment under `.venv`, in a folder named after the hash of the dependency lists. A folder
counts only once its stamp is written, so an interrupted set-up is thrown away and made anew by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
ENVIRONMENTS = ROOT / ".venv"
EXTRAS = ("blender", "train", "published", "usd", "test")
BLENDER_PYTHON = "3.11"  # the only Python for which the pinned bpy wheel exists
MOST_TESTS_AT_ONCE = 4  # each of them wants 1 GB of memory
STAMP = "ready"
OWN_NAME = re.compile(r"[0-9a-f]{12}(\.gone)?")  # of the environments here: `.venv` itself may be one of the user's
GONE = ".gone"  # ends the name of an environment that is being removed
LOCK_SECONDS = 60  # after which a lock is no longer one that somebody is about to take
RETRY = "WARNING: Retrying"  # how pip begins to say that a server does not answer


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    commands = {
        "demo": demo,
        "test": test,
        "serve": serve,
        "build": build,
        "bench": bench,
        "setup": setup,
    }
    if arguments in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    if not arguments or arguments[0] not in commands:
        print(__doc__.strip(), file=sys.stderr)
        return refuse(f"there is no command {arguments[0]!r}" if arguments else "say what to do")
    if arguments[0] == "setup" and arguments[1:]:
        return refuse("setup takes no options")
    if arguments[0] == "build" and arguments[1:] and (arguments[1] != "--out" or len(arguments) != 3):
        return refuse("build takes --out DIR alone")
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # of a log file, which on Windows may lack letters of a path or a name
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever Python there is
        print(f"Kinesplat needs Python 3.11 or newer; this is {platform.python_version()}.")
        return 2
    try:
        python = ready_python()
        return commands[arguments[0]](python, arguments[1:])
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"\n{error.filename or ROOT} cannot be used: {error.strerror or error}.\nSee that this folder belongs to "
            "you and that its disk has free space, then run the same command again.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130


def refuse(reason: str) -> int:
    """Say what is wrong with a command line; returns the exit code."""
    print(f"\npython run.py: {reason}", file=sys.stderr)
    return 2


def demo(python: Path, arguments: list[str]) -> int:
    """The whole way from Blender geometry to Gaussians in a Blender scene."""
    return run_module(python, "examples.demo", arguments)


def test(python: Path, arguments: list[str]) -> int:
    """All tests that can run here, some files at a time; others say why they do not. `-n 0`: one by one."""
    cores = os.cpu_count() or 1
    at_once = min(cores + 1, MOST_TESTS_AT_ONCE)  # one more, for some wait: for Blender's window, for a service
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // at_once, 1)))  # else each of them takes all cores
    # Files in the order of tests/conftest.py, not by how many tests they have.
    order = ["--dist", "loadfile", "--no-loadscope-reorder"]
    # After a crash the others finish what they have: pytest-xdist would run the file that crashed again and again, or
    # wait forever.
    order += ["--max-worker-restart", "0"]
    os.chdir(ROOT)  # where the names of tests begin
    return run_module(python, "pytest", ["-n", str(at_once), *order, *arguments])


def serve(python: Path, arguments: list[str]) -> int:
    """The backend in the foreground."""
    return run_module(python, "backend", ["serve", *arguments])


def setup(python: Path, arguments: list[str]) -> int:
    """The environment is there by now; what former ones have left goes."""
    remove_former(python.parent.parent)
    return 0


def build(python: Path, arguments: list[str]) -> int:
    """The extension archive, made and checked by Blender's own tool, which the bpy wheel carries."""
    out = Path(arguments[1]).absolute() if arguments else ROOT / "dist"
    tools = list(site_packages(python.parent.parent).glob("bpy/*/scripts/addons_core/bl_pkg/cli/blender_ext.py"))
    if not tools:
        raise SetupError("Building the archive needs the bpy wheel, which was not installed: see README.md.")
    out.mkdir(parents=True, exist_ok=True)
    for command in (["validate", str(ROOT)], ["build", "--source-dir", str(ROOT), "--output-dir", str(out)]):
        code = subprocess.call([python, tools[0], *command], cwd=ROOT)
        if code:
            return code
    return 0


def bench(python: Path, arguments: list[str]) -> int:
    """One benchmark, or the list of them."""
    folder = ROOT / "benchmarks"
    names = [path.stem for path in folder.glob("*.py") if "def main" in path.read_text("utf-8")]
    names = sorted([*names, *(path.parent.name for path in folder.glob("*/__main__.py"))])
    if not arguments or arguments[0] not in names:
        print("Benchmarks: " + ", ".join(names))
        return refuse(f"there is no benchmark {arguments[0]!r}") if arguments else 0
    return run_module(python, f"benchmarks.{arguments[0]}", arguments[1:])


def run_module(python: Path, module: str, arguments: list[str]) -> int:
    """`python -m module` where the user is, without seeing modules there; Ctrl-C goes to it, and it ends by itself."""
    environment = {**child_environment(), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}  # as will its own children
    with held(python.parent.parent):
        return ended(module, subprocess.Popen([python, "-m", module, *arguments], env=environment))


def ended(module: str, process: subprocess.Popen) -> int:
    """Wait for a module's end and return its exit code."""
    while True:
        try:
            code = process.wait()
            if code < 0 and -code not in (signal.SIGINT, signal.SIGTERM):
                print(f"\n{module} was ended by signal {-code}: a crash. Please run it again.", file=sys.stderr)
                return 1
            return code if code >= 0 else 128 - code  # as shells say it
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                process.wait(timeout=15)


# The environment


class SetupError(Exception):
    """Set-up failed; the message says why and what to do."""


class Base(NamedTuple):
    """A Python to make environments from."""

    executable: str
    version: str  # such as 3.11


def ready_python() -> Path:
    """The Python of the environment that fits the dependency lists; made first if need be."""
    requirements = read_requirements()
    base = base_python()
    key = environment_key(requirements, base)
    folder = ENVIRONMENTS / key
    if (folder / STAMP).exists():
        return python_of(folder)
    ENVIRONMENTS.mkdir(exist_ok=True)
    with one_at_a_time(ENVIRONMENTS / "lock"):
        if not (folder / STAMP).exists():
            make_environment(folder, base, requirements)
    return python_of(folder)


def read_requirements() -> list[str]:
    """The dependencies of the project and of the extras that the two README commands use."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]


def environment_key(requirements: list[str], base: Base) -> str:
    """Names an environment by all that it is made from."""
    text = "\n".join([*requirements, base.version, platform.machine(), sys.platform])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base_python() -> Base:
    """The interpreter to build on: this one if the bpy wheel fits it, else a Python 3.11 found on this machine."""
    own = Base(getattr(sys, "_base_executable", sys.executable), "{}.{}".format(*sys.version_info))  # not a venv's
    if own.version == BLENDER_PYTHON:
        return own
    command = ["py", f"-{BLENDER_PYTHON}"] if os.name == "nt" else [f"python{BLENDER_PYTHON}"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        code = "import sys; print(sys.executable)"
        found = subprocess.run([*command, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        return Base(found, BLENDER_PYTHON)
    print(
        f"Note: this is Python {platform.python_version()}; Blender's wheel needs Python {BLENDER_PYTHON}, which is "
        "not here.\nThe backend works; the demo and the tests in Blender need it installed beside this one.",
        file=sys.stderr,
    )
    return own


def make_environment(folder: Path, base: Base, requirements: list[str]) -> None:
    """Make the environment in `folder`; the stamp is written last."""
    if "PythonSoftwareFoundation" in base.executable:
        raise SetupError(
            "This Python comes from the Microsoft Store, and Windows hides its files from Blender.\n"
            f"Install Python {BLENDER_PYTHON} from python.org, then run: py -{BLENDER_PYTHON} run.py setup"
        )
    print("Setting up Kinesplat (once, a few minutes, about 3 GB on disk).", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    log_path = ENVIRONMENTS / "setup.log"
    started = time.monotonic()
    with open(log_path, "w", encoding="utf-8") as log:
        step(1, "Making the environment")
        run_logged([base.executable, "-m", "venv", str(folder)], log)
        python = python_of(folder)
        step(2, "Fetching packages")
        install(python, requirements, log, site_packages(folder))
        step(3, "Compiling the kernels")
        run_logged([str(python), "-m", "backend", "warm-up"], log, echo=True)
    (folder / STAMP).write_text("\n".join(requirements) + "\n", encoding="utf-8")
    remove_former(folder)
    print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)


def remove_former(folder: Path) -> None:
    """Remove environments of former dependency lists, but for those from which something still runs."""
    for other in ENVIRONMENTS.iterdir():
        if not OWN_NAME.fullmatch(other.name) or not other.is_dir() or other == folder:
            continue
        gone = other if other.suffix == GONE else other.with_suffix(GONE)
        if gone != other:
            shutil.rmtree(gone, ignore_errors=True)  # of a time before, half removed
        try:
            if in_use(other):
                raise PermissionError
            other.rename(gone)  # on Windows in vain where any of its files is in use
        except OSError:
            print(f"The former environment {other} stays: a backend or another command still runs from it.\n"
                  "End that, then run: python run.py setup", flush=True)  # fmt: skip
        else:
            shutil.rmtree(gone, ignore_errors=True)


def in_use(folder: Path) -> bool:
    """Whether a process says that it runs from this environment, as `held` and `backend.interpreter` do.

    What killed processes have left is removed.
    """
    found = False
    for path in folder.glob("in-use-*.lock"):
        with contextlib.suppress(FileNotFoundError):  # its process has ended just now
            with open(path, "a", encoding="utf-8") as file:
                taken = not locked(file)
            if not taken and time.time() - path.stat().st_mtime > LOCK_SECONDS:
                path.unlink()
            found = found or taken
    return found


@contextlib.contextmanager
def held(folder: Path):
    """Say that something runs from an environment, as long as the block lasts or its process lives."""
    path = folder / f"in-use-{os.getpid()}.lock"
    with contextlib.ExitStack() as stack:
        if folder.parent == ENVIRONMENTS and os.access(folder, os.W_OK):  # else nobody here could remove it
            stack.callback(path.unlink, missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's
                in_use(folder)  # only to remove what is left
            with contextlib.suppress(OSError):  # a full disk, a file system without locks
                locked(stack.enter_context(open(path, "a", encoding="utf-8")))
        yield


def step(number: int, text: str) -> None:
    """Say which part of the set-up begins."""
    print(f"[{number}/3] {text}", flush=True)


def install(python: Path, requirements: list[str], log, packages: Path) -> None:
    """pip, with what it does shown as one line per package fetched and a count while it unpacks."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--progress-bar",
        "off",
        "--disable-pip-version-check",
        *requirements,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    done = threading.Event()
    counter = None
    told_to_wait = False
    before = set(packages.glob("*.dist-info"))
    try:
        for line in process.stdout:
            log.write(line)
            if match := re.match(r"\s+(?:Downloading|Using cached) (\S+).*?(\([\d.]+ \w+\))?$", line.rstrip()):
                print(f"      {match[1].rsplit('/', 1)[-1]} {match[2] or ''}", flush=True)
            elif line.startswith(RETRY) and not told_to_wait:
                told_to_wait = True
                print("      no answer from where packages come from; trying again", flush=True)
            elif line.startswith("Installing collected packages:"):
                total = line.count(",") + 1
                counter = threading.Thread(target=count_packages, args=(packages, before, total, done), daemon=True)
                counter.start()
        code = process.wait()
    finally:
        done.set()
        if counter:
            counter.join()
        if process.poll() is None:
            process.terminate()
    if code:
        raise SetupError(failure_text(log))


def count_packages(packages: Path, before: set[Path], total: int, done: threading.Event) -> None:
    """Print how many packages lie in place until `done`."""
    shown = -1
    while True:
        finished = done.wait(2.0)
        count = min(len(set(packages.glob("*.dist-info")) - before), total)
        if count != shown:
            print(f"      installed {count} of {total} packages ({100 * count // total} %)", flush=True)
            shown = count
        if finished:
            return


def run_logged(command: list[str], log, echo: bool = False) -> None:
    """Run a part of the set-up with its output in the log; failure becomes a SetupError."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    for line in process.stdout:
        log.write(line)
        if echo:
            print(f"      {line.rstrip()}", flush=True)
    if process.wait():
        raise SetupError(failure_text(log))


def failure_text(log) -> str:
    """What failed, from the log's last lines, and what to do."""
    log.flush()
    lines = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()
    noise = ("WARNING: Location", RETRY)
    told = [line[:200] for line in lines if line.strip() and not line.startswith(noise)]
    tail = "\n".join(f"  {line}" for line in told[-12:])
    what_to_do = "Check the network connection and the free disk space"
    if any(line.startswith(RETRY) for line in lines):
        what_to_do = "Packages could not be fetched: check the network connection, and the proxy if there is one"
    return (
        f"Set-up failed:\n{tail}\n\nThe whole log is {log.name}. {what_to_do}, then run the same command again: it "
        "starts over by itself."
    )


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(folder: Path) -> Path:
    """Where the packages of an environment lie."""
    if os.name == "nt":
        return folder / "Lib" / "site-packages"
    found = sorted((folder / "lib").glob("python3*/site-packages"))
    return found[0] if found else folder / "lib"


def child_environment() -> dict[str, str]:
    """This process's environment without what would lead Python elsewhere, or have every process compile all anew.

    A run of all tests starts some hundred processes.
    """
    left_out = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**environment, "PYTHONUTF8": "1"}


@contextlib.contextmanager
def one_at_a_time(path: Path):
    """Hold a lock that the system drops when the process ends, so that two first runs do not meet."""
    with open(path, "w", encoding="utf-8") as file:
        if not locked(file):
            print("Another set-up is running here; waiting for it.", flush=True)
            while not locked(file):
                time.sleep(1)
        yield


def locked(file) -> bool:
    """Whether the lock could be taken now. Windows' own way to wait for one gives up after 10 s."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
