# SPDX-License-Identifier: GPL-3.0-or-later
"""gsplat's CUDA kernels: compiled and tried once, in a process of their own, then loaded from the user's cache.

gsplat comes as source. Its first use compiles for minutes, may fail, and may take the process along; so a child
process does that, with a time limit (`gsplat_trial`). What it found is kept beside the compiled kernels, one folder
for each combination of versions, GPU and tools: a start with working kernels only loads them, a start with broken ones
says why without compiling again, and a change of any version or tool asks for a new trial by itself.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import filelock
import platformdirs
import psutil
import torch

from backend.progress import UserError
from blender_addon.contract.arrays import write_json

BUILD_LIMIT = 20 * 60.0  # seconds that a trial may take
LEAST_CAPABILITY = (7, 0)  # of the GPU, for gsplat's kernels
GIGABYTES_PER_JOB = 3  # memory of one compiler process
TRIAL = (sys.executable, "-m", "backend.splatting.rasterize.gsplat_trial")
LIBRARY = "gsplat_cuda"
POLL = 0.5  # seconds

HINT = "See docs/gpu.md, or choose the CPU as the device."
RETRY_HINT = f"'python -m backend warm-up' tries again. {HINT}"

_lock = threading.Lock()  # a second thread waits instead of doing the same


@dataclass(frozen=True)
class Surroundings:
    """What decides whether gsplat's kernels can be had here. None: missing."""

    gsplat: str | None  # version
    ready_made: bool  # it was installed with its kernels compiled
    torch: str
    cuda: str | None  # that torch was built for
    gpu: str | None
    capability: tuple[int, int] | None
    nvcc: str | None  # paths
    compiler: str | None
    ninja: str | None
    python: str = platform.python_version()

    @property
    def problem(self) -> str | None:
        """One sentence about the first thing that is missing; None where a trial makes sense."""
        if self.cuda is None:
            return f"The installed PyTorch ({self.torch}) is built without CUDA."
        if self.gpu is None:
            return "PyTorch finds no CUDA device."
        if self.capability < LEAST_CAPABILITY:
            have, need = (".".join(map(str, version)) for version in (self.capability, LEAST_CAPABILITY))
            return f"The GPU {self.gpu} has compute capability {have}, and gsplat needs {need}."
        if self.gsplat is None:
            return "The package gsplat is not installed."
        if self.ready_made:
            return None
        tools = {"the CUDA compiler (nvcc)": self.nvcc, "a C++ compiler": self.compiler, "ninja": self.ninja}
        missing = [name for name, path in tools.items() if path is None]
        return f"To compile gsplat's CUDA kernels, {' and '.join(missing)} must be on the path." if missing else None

    @property
    def folder(self) -> Path:
        """Where the kernels for these surroundings are kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return Path(platformdirs.user_cache_dir("kinesplat", appauthor=False)) / "gsplat" / digest


@dataclass(frozen=True)
class Verdict:
    """What a trial found."""

    works: bool
    reason: str = ""  # one sentence, where it does not work
    seconds: float = 0.0  # that it took
    difference: float | None = (
        None  # mean difference of the trial's pictures and gradients to the CPU kernels', relative
    )


def load_kernels(on_message: Callable[[str], None] | None = None, *, retry: bool = False) -> None:
    """Make gsplat usable in this process; the first time on a computer this compiles for some minutes.

    Args:
        on_message: hears a sentence twice a second while kernels are compiled; what it raises ends the compilation,
            so it is also the way to cancel.
        retry: try even if an earlier trial failed with the same versions and tools.

    Raises:
        UserError: gsplat cannot be used on this computer; says why, and what to do.
    """
    with _lock:
        if _is_loaded():
            return
        here = surroundings()
        if here.problem:
            raise UserError("gsplat_missing", f"gsplat cannot draw on the GPU here. {here.problem}", HINT)
        verdict = known_verdict(here)
        if verdict is None or (retry and not verdict.works):
            verdict = try_kernels(here, on_message)
        if not verdict.works:
            raise UserError("gsplat_broken", verdict.reason, RETRY_HINT)
        try:
            if not here.ready_made:
                _take_as_installed(_library(here))
            with _path_to_tools():
                from gsplat.cuda import _backend
        except (ImportError, RuntimeError, OSError) as error:
            _verdict_file(here).unlink(missing_ok=True)  # so that the next start tries anew
            reason = f"gsplat's CUDA kernels worked when they were tried, and cannot be loaded now: {_line(str(error))}"
            raise UserError("gsplat_broken", reason, RETRY_HINT) from error
        if _backend._C is None:
            raise UserError("gsplat_broken", "gsplat is installed, but finds none of its CUDA kernels.", RETRY_HINT)


@functools.cache
def surroundings() -> Surroundings:
    """What this computer has."""
    gpu = capability = None
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a device that answers nothing is none
            gpu, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    try:
        version = importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        version = None
    with _path_to_tools():
        return Surroundings(
            gsplat=version,
            ready_made=_is_ready_made(),
            torch=torch.__version__,
            cuda=torch.version.cuda,
            gpu=gpu,
            capability=capability,
            nvcc=_nvcc(),
            compiler=shutil.which("cl" if os.name == "nt" else os.environ.get("CXX", "c++")),
            ninja=shutil.which("ninja"),
        )


def known_verdict(here: Surroundings) -> Verdict | None:
    """What an earlier trial found; None where none was made, or its kernels are gone."""
    try:
        verdict = Verdict(**json.loads(_verdict_file(here).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if verdict.works and not here.ready_made and _library(here) is None:
        return None
    return verdict


def try_kernels(here: Surroundings, on_message: Callable[[str], None] | None = None) -> Verdict:
    """Compile gsplat's kernels and draw with them, in a child process; the verdict is kept.

    What `on_message` raises ends the child and is no verdict.
    """
    here.folder.mkdir(parents=True, exist_ok=True)
    tell = on_message or (lambda message: None)
    before = _age_mark(here)
    with _alone(here.folder / "lock", tell):
        if _age_mark(here) != before and (verdict := known_verdict(here)):
            return verdict  # another process has tried meanwhile
        verdict = _trial(here, tell)
        write_json(_verdict_file(here), asdict(verdict))
        return verdict


def _trial(here: Surroundings, tell: Callable[[str], None]) -> Verdict:
    """One run of the child process."""
    started = time.monotonic()
    result, log = here.folder / "trial.json", here.folder / "trial.log"
    result.unlink(missing_ok=True)
    with _path_to_tools():
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(here.folder), "PYTHONUNBUFFERED": "1"}
    if here.nvcc and (home := toolkit(here.nvcc)):
        environment["CUDA_HOME"] = str(home)
    jobs = min(os.cpu_count() or 1, psutil.virtual_memory().available // (GIGABYTES_PER_JOB << 30), 10)
    environment.setdefault("MAX_JOBS", str(max(jobs, 1)))
    root = Path(__file__).resolve().parents[3]
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [*TRIAL, str(result), str(os.getpid())],
            cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while child.poll() is None:
                seconds = time.monotonic() - started
                if seconds > BUILD_LIMIT:
                    reason = f"gsplat's CUDA kernels were not compiled within {BUILD_LIMIT / 60:.0f} minutes ({log})."
                    return Verdict(False, reason, seconds)
                what = "Trying" if here.ready_made else "Compiling"
                tell(f"{what} gsplat's CUDA kernels, once, some minutes ({seconds // 60:.0f} min so far)")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL)
        finally:
            end_family(child)
    seconds = round(time.monotonic() - started, 1)
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        return Verdict(found["works"], found["reason"] and f"{found['reason']} ({log})", seconds, found["difference"])
    except (OSError, ValueError, KeyError):
        reason = f"The trial of gsplat's CUDA kernels broke off with exit code {child.returncode} ({log})."
        return Verdict(False, reason, seconds)


def toolkit(nvcc: str) -> Path | None:
    """The CUDA toolkit that a compiler belongs to, as it says itself: on the path it may be a link or a script."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([nvcc, "--dryrun", "-E", "none.cu"], capture_output=True, text=True, timeout=30).stderr
        if top := re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE):
            return Path(top[1].strip()).resolve()
    return None


def end_family(child: subprocess.Popen) -> None:
    """End a child process and all that it has started: compilers would go on for minutes."""
    if child.poll() is not None:
        return
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(child.pid).children(recursive=True)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.kill()
    child.wait()
    psutil.wait_procs(family, timeout=5)


def first_error(text: str) -> str:
    """The line of a compiler's or Python's output that says most about what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() and not line.startswith(("FAILED", "ninja:"))]
    # The first line of torch's own message is "Error building extension ...", which says nothing yet.
    telling = [line for line in telling if not line.startswith(("Error building extension", "RuntimeError: Error b"))]
    return _line((telling or lines or ["no message"])[0])


def _line(text: str) -> str:
    """The first line, not too long, as the end of a sentence."""
    line = (text.strip().splitlines() or ["no message"])[0]
    return f"{line[:200].rstrip('.')}."


def _is_loaded() -> bool:
    backend = sys.modules.get("gsplat.cuda._backend")
    return getattr(backend, "_C", None) is not None


def _take_as_installed(library: Path) -> None:
    """Let gsplat find its compiled part where it would lie if it had been installed ready-made.

    Otherwise gsplat asks ninja whether all is up to date, which needs the tools at each start and may compile again.
    """
    import gsplat

    spec = importlib.util.spec_from_file_location(LIBRARY, library)
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["gsplat.csrc"] = gsplat.csrc = module


def _library(here: Surroundings) -> Path | None:
    """The compiled kernels, if they are there."""
    folder = here.folder / LIBRARY
    return next((file for suffix in ("so", "pyd") for file in folder.glob(f"{LIBRARY}*.{suffix}")), None)


def _is_ready_made() -> bool:
    """Whether gsplat was installed with its kernels compiled, as some distributions do it. Imports nothing."""
    package = importlib.util.find_spec("gsplat")
    folders = package.submodule_search_locations or [] if package else []
    return any(True for folder in folders for suffix in ("so", "pyd") for _ in Path(folder).glob(f"csrc*.{suffix}"))


def _verdict_file(here: Surroundings) -> Path:
    return here.folder / "verdict.json"


def _age_mark(here: Surroundings) -> int | None:
    """Changes with each new verdict."""
    file = _verdict_file(here)
    return file.stat().st_mtime_ns if file.exists() else None


def _nvcc() -> str | None:
    """The CUDA compiler, looked for where torch looks for it."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    for home in homes:
        if home and (found := shutil.which("nvcc", path=str(Path(home) / "bin"))):
            return found
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@contextlib.contextmanager
def _path_to_tools() -> Iterator[None]:
    """Tools that pip has put beside Python, as ninja, are found although nobody has activated the environment."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def _alone(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock among processes; whoever waits for it can be cancelled."""
    lock = filelock.FileLock(path)
    while True:
        try:
            lock.acquire(timeout=POLL)
            break
        except filelock.Timeout:
            tell("Waiting for another process, which compiles gsplat's CUDA kernels")
    try:
        yield
    finally:
        lock.release()
