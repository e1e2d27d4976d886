# SPDX-License-Identifier: GPL-3.0-or-later
"""`doctor`: try every part that the backend needs, and say what to do about each that does not work."""

import importlib.metadata
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from backend import __version__
from backend.progress import UserError
from backend.service import paths
from backend.service.settings import GIGABYTE, RAY, Settings

OK, NOTE, FAULT = "ok", "note", "fault"
SET_UP = "Run 'python run.py setup' again."


@dataclass(frozen=True)
class Finding:
    """What one check found: `ok`, `note` (works without it) or `fault`."""

    subject: str
    verdict: str
    text: str
    hint: str = ""


def examine(settings: Settings, *, as_json: bool = False) -> int:
    """Run all checks and print what they found; returns 1 where there is a fault, else 0."""
    from rich.console import Console

    findings = []
    with Console(stderr=True).status("Checking") as status:
        for subject, check in (CHECKS | CHECKS_OF.get(settings.executor, {})).items():
            status.update(f"Checking: {subject}")
            findings.append(examined(subject, check, settings))
    faults = sum(finding.verdict == FAULT for finding in findings)
    if as_json:
        print(
            json.dumps(
                {"version": __version__, "faults": faults, "checks": [asdict(one) for one in findings]}, indent=2
            )
        )
    else:
        print_findings(findings)
        print("Everything that is needed works." if not faults else f"{faults} of {len(findings)} checks failed.")
    return 1 if faults else 0


def print_findings(findings: list[Finding]) -> None:
    """A table for people."""
    from rich.markup import escape
    from rich.table import Table

    from backend.console import print_table

    styles = {OK: "green", NOTE: "yellow", FAULT: "bold red"}
    table = Table("check", "", "found", title=f"Kinesplat {__version__}", title_justify="left")
    for finding in findings:
        text = "\n".join(escape(line) for line in (finding.text, finding.hint) if line)
        table.add_row(finding.subject, f"[{styles[finding.verdict]}]{finding.verdict}[/]", text)
    print_table(table)


def examined(subject: str, check: Callable[[Settings], tuple], settings: Settings) -> Finding:
    """One check; whatever it raises is a finding too."""
    try:
        return Finding(subject, *check(settings))
    except UserError as error:
        return Finding(subject, FAULT, str(error), error.hint)
    except Exception as error:
        return Finding(subject, FAULT, f"{type(error).__name__}: {error}", SET_UP)


def check_python(settings: Settings) -> tuple:
    """Which interpreter this is; one that is too old could not have read this file."""
    return OK, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"


def check_packages(settings: Settings) -> tuple:
    """Everything that the project's metadata or its pyproject asks for is installed."""
    missing = [name for name in required_packages() if not installed(name)]
    if missing:
        return FAULT, f"Not installed: {', '.join(missing)}.", SET_UP
    return OK, f"all {len(required_packages())} packages are installed"


def check_torch(settings: Settings) -> tuple:
    """torch loads and computes."""
    started = time.monotonic()
    import torch

    seconds = time.monotonic() - started
    value = torch.linalg.inv(torch.diag(torch.tensor([2.0, 4.0]))).sum().item()
    if value != 0.75:
        return FAULT, f"torch {torch.__version__} computes wrongly ({value}, not 0.75).", SET_UP
    return OK, f"torch {torch.__version__}, loaded in {seconds:.1f} s, {torch.get_num_threads()} threads"


def check_kernels(settings: Settings) -> tuple:
    """The CPU kernels compile, draw a Gaussian and give gradients."""
    import torch

    from backend.splatting import rasterize

    started = time.monotonic()
    rasterize.warm_up(lambda message: print(message, file=sys.stderr))
    means = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
    picture, alphas, _ = rasterize.rasterize(
        means,
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.2),
        torch.tensor([0.9]),
        torch.tensor([[1.0, 0.5, 0.25]]),
        torch.eye(4)[None],
        torch.tensor([[[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]]),
        32,
        32,
    )
    (picture.sum() + (picture * torch.arange(32.0)[None, None, :, None]).sum()).backward()
    center = alphas.detach()[0, 16, 16].item()
    if not (0.8 < center < 0.9 and means.grad.isfinite().all() and means.grad[0, 0] > 0):
        return FAULT, f"The kernels draw wrongly (opacity {center:.3f} in the middle).", SET_UP
    return OK, f"the CPU kernels draw and differentiate, ready in {time.monotonic() - started:.1f} s"


def check_gpu(settings: Settings) -> tuple:
    """What splatting runs on; a GPU is optional. Compiles nothing."""
    from backend.pipelines.memory_plan import gpu_problem
    from backend.splatting.engine import expected_engine
    from backend.splatting.rasterize.gsplat_kernels import surroundings

    if problem := gpu_problem():
        return (
            NOTE,
            f"everything runs on the CPU. {problem}",
            "Install a PyTorch that knows this GPU, or its new driver.",
        )
    engine = expected_engine()
    if engine.is_gpu:
        return (NOTE if engine.notes else OK), " ".join((f"splatting runs on {engine.name}.", *engine.notes))
    hint = "See docs/gpu.md; 'python -m backend warm-up' tries again."
    return NOTE, f"splatting runs on the CPU. {engine.notes[0]}", hint if surroundings().gpu else ""


def check_home(settings: Settings) -> tuple:
    """The data directory can be written and the queue read."""
    from backend.service.queue import Queue

    home = settings.home
    folder = paths.Home(home)
    paths.prepare(folder)
    if not folder.database.exists():
        return OK, f"{home} can be written; no jobs yet"
    queue = Queue(folder.database)
    try:
        if problems := queue.problems():
            return FAULT, f"The job list is damaged: {problems[0]}.", f"Move {folder.database} away and start again."
        return OK, f"{home} can be written; {len(queue.jobs(limit=-1))} jobs"
    finally:
        queue.close()


def check_disk(settings: Settings) -> tuple:
    """Space for blobs."""
    free = paths.free_bytes(settings.home) / GIGABYTE
    text = f"{free:.1f} GB free"
    if free < 1:
        return FAULT, text, "The backend accepts no jobs with less than 1 GB free."
    return (NOTE, text, "That is little.") if free < 5 else (OK, text)


def check_backend(settings: Settings) -> tuple:
    """A running backend, optional."""
    from backend.service.client import Client

    try:
        client = Client(settings.home)
    except UserError as error:
        if error.code == "not_running":
            return NOTE, "no backend runs for this data directory", "'python -m backend serve' starts one."
        raise
    device = client.capabilities()["device"] or {}
    if client.version != __version__:
        return FAULT, f"version {client.version} runs at {client.url}, and this is {__version__}.", "Restart it."
    return OK, f"version {client.version} runs at {client.url}" + (f" on {device['name']}" if device else "")


def check_cluster(settings: Settings) -> tuple:
    """The machines of the Ray cluster, and whether each can run jobs of this version."""
    from backend.service.executors.ray import machines

    found = machines(settings)
    jobs = sum(places for _, places, _ in found)
    lines = [
        f"{name}: {places} {settings.ray_resource}, Kinesplat {version or 'cannot be loaded'}"
        for name, places, version in found
    ]
    text = "\n".join([f"jobs that can run at once: {jobs}", *lines])
    if not jobs:
        return FAULT, text, f"No machine of the cluster has a {settings.ray_resource}: see docs/several_machines.md."
    if any(places and version != __version__ for _, places, version in found):
        return FAULT, text, f"Install Kinesplat {__version__} there, and start Ray again from its environment."
    return OK, text


CHECKS: dict[str, Callable[[Settings], tuple]] = {
    "Python": check_python,
    "packages": check_packages,
    "torch": check_torch,
    "splatting kernels": check_kernels,
    "GPU": check_gpu,
    "data directory": check_home,
    "disk space": check_disk,
    "backend": check_backend,
}
CHECKS_OF = {RAY: {"Ray cluster": check_cluster}}  # by executor


def required_packages() -> list[str]:
    """Names of the packages that pyproject.toml lists, or in an installed copy its metadata."""
    import tomllib

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.exists():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("kinesplat") or [] if "extra ==" not in line]
    return [re.match(r"[\w.-]+", line)[0] for line in lines]


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
