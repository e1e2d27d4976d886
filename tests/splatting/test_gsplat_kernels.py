# SPDX-License-Identifier: GPL-3.0-or-later
"""How gsplat's kernels are tried: in a child process that here is a stand-in, as a trial itself needs a GPU."""

import json
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from backend.progress import JobCancelled, UserError
from backend.splatting.engine import CPU, choose_engine, expected_engine
from backend.splatting.rasterize import gsplat_kernels, gsplat_trial
from backend.splatting.rasterize.gsplat_kernels import Surroundings, known_verdict, load_kernels, try_kernels

COMPLETE = Surroundings(
    gsplat="1.5.3",
    ready_made=False,
    torch="2.13.0",
    cuda="13.0",
    gpu="NVIDIA Test",
    capability=(9, 0),
    nvcc="/cuda/bin/nvcc",
    compiler="/usr/bin/c++",
    ninja="/usr/bin/ninja",
)
WORKS = {"works": True, "reason": "", "difference": 1e-5}
BREAKS = {"works": False, "reason": "nvcc: error 1.", "difference": None}


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer with a GPU, an empty cache, and nothing loaded."""
    monkeypatch.setattr(gsplat_kernels.platformdirs, "user_cache_dir", lambda *args, **options: str(tmp_path))
    monkeypatch.setattr(gsplat_kernels, "surroundings", lambda: COMPLETE)
    monkeypatch.setattr(gsplat_kernels, "POLL", 0.05)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


class Child:
    """A stand-in for the trial's process, which counts how often it is started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = folder / "runs"
        self.monkeypatch = monkeypatch

    def does(self, code: str) -> None:
        body = f"import json, os, sys, time\nopen({str(self.runs)!r}, 'a').write('x')\n{textwrap.dedent(code)}"
        self.monkeypatch.setattr(gsplat_kernels, "TRIAL", (sys.executable, "-c", body))

    def finds(self, found: dict, *, library: bool = True) -> None:
        self.does(f"""
            folder = os.path.join(os.environ["TORCH_EXTENSIONS_DIR"], "gsplat_cuda")
            os.makedirs(folder, exist_ok=True)
            if {library}:
                open(os.path.join(folder, "gsplat_cuda.so"), "w").close()
            json.dump(json.loads('''{json.dumps(found)}'''), open(sys.argv[1], "w"))
        """)

    @property
    def count(self) -> int:
        return len(self.runs.read_text()) if self.runs.exists() else 0


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    return Child(tmp_path, monkeypatch)


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing gsplat's compiled part succeeds."""
    backend = ModuleType("gsplat.cuda._backend")
    backend._C = SimpleNamespace()

    def take(library: Path) -> None:
        assert library.exists()
        monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
        monkeypatch.setattr(sys.modules["gsplat.cuda"], "_backend", backend, raising=False)

    import gsplat.cuda  # noqa: F401 - the package itself is here, without its compiled part

    monkeypatch.setattr(gsplat_kernels, "_take_as_installed", take)


def test_kernels_that_work_are_tried_once_and_then_only_loaded(child: Child, loadable: None) -> None:
    child.finds(WORKS)
    messages: list[str] = []
    assert expected_engine().notes  # nothing has been tried
    chosen = choose_engine("auto", messages.append)
    assert chosen.is_gpu
    assert chosen.name == "NVIDIA Test, gsplat 1.5.3"
    assert chosen.notes == ()
    assert "once, some minutes" in messages[0]
    assert choose_engine("cuda") == choose_engine("auto", retry=True) == expected_engine() == chosen
    assert known_verdict(COMPLETE).difference == 1e-5
    assert child.count == 1


def test_a_failure_is_kept_told_and_tried_again_only_if_asked(child: Child) -> None:
    child.finds(BREAKS)
    first, second = choose_engine("auto"), choose_engine("auto")
    assert first == second
    assert first.device == CPU.device
    assert "CPU, not on the GPU" in first.notes[0]
    assert "nvcc: error 1" in first.notes[0]
    assert "trial.log" in first.notes[0]
    assert "nvcc: error 1" in expected_engine().notes[0]
    assert child.count == 1
    with pytest.raises(UserError, match="nvcc: error 1") as caught:
        choose_engine("cuda")  # who asks for the GPU by name is not given something else
    assert "warm-up" in caught.value.hint
    assert choose_engine("auto", retry=True) == first
    assert child.count == 2


def test_other_versions_or_tools_ask_for_a_new_trial(child: Child) -> None:
    child.finds(BREAKS)
    try_kernels(COMPLETE)
    assert not known_verdict(COMPLETE).works
    for change in ({"torch": "2.14.0"}, {"gsplat": "1.6.0"}, {"cuda": "13.1"}, {"nvcc": "/other/nvcc"}):
        assert known_verdict(replace(COMPLETE, **change)) is None


def test_lost_kernels_and_a_damaged_verdict_count_as_none(child: Child) -> None:
    child.finds(WORKS, library=False)
    assert try_kernels(COMPLETE).works
    assert known_verdict(COMPLETE) is None
    assert known_verdict(replace(COMPLETE, ready_made=True)) is None  # in another folder
    (COMPLETE.folder / "verdict.json").write_text("{")
    assert known_verdict(COMPLETE) is None


def test_a_child_that_dies_is_a_finding(child: Child) -> None:
    child.does("os._exit(134)")
    verdict = try_kernels(COMPLETE)
    assert not verdict.works
    assert "exit code 134" in verdict.reason


GRANDCHILD = """
    import subprocess
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(sys.argv[1] + ".pid", "w").write(str(other.pid))
    time.sleep(60)
"""


def grandchild() -> psutil.Process:
    file = COMPLETE.folder / "trial.json.pid"
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(file.read_text()))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_trial_that_takes_too_long_is_ended_with_its_compilers(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    child.does(GRANDCHILD)
    processes: list[psutil.Process] = []

    def tell(message: str) -> None:
        if not processes:
            processes.append(grandchild())
            monkeypatch.setattr(gsplat_kernels, "BUILD_LIMIT", 0.01)

    verdict = try_kernels(COMPLETE, tell)
    assert "not compiled within" in verdict.reason
    assert has_ended(processes[0])
    assert not known_verdict(COMPLETE).works


@pytest.mark.slow
def test_cancelling_ends_the_trial_and_is_no_verdict(child: Child) -> None:
    child.does(GRANDCHILD)
    processes: list[psutil.Process] = []

    def cancel(message: str) -> None:
        processes.append(grandchild())
        raise JobCancelled

    with pytest.raises(JobCancelled):
        load_kernels(cancel)
    assert has_ended(processes[0])
    assert known_verdict(COMPLETE) is None


def test_two_who_come_at_once_try_once(child: Child) -> None:
    child.finds(BREAKS)
    verdicts = []
    threads = [threading.Thread(target=lambda: verdicts.append(try_kernels(COMPLETE))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert child.count == 1
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ({"cuda": None}, "without CUDA"),
        ({"gpu": None, "capability": None}, "no CUDA device"),
        ({"capability": (6, 1)}, "6.1"),
        ({"gsplat": None}, "not installed"),
        ({"nvcc": None, "ninja": None}, "nvcc) and ninja"),
    ],
)
def test_what_is_missing_is_said_at_once(child: Child, monkeypatch: pytest.MonkeyPatch, lack: dict, words: str) -> None:
    monkeypatch.setattr(gsplat_kernels, "surroundings", lambda: replace(COMPLETE, **lack))
    child.finds(WORKS)
    assert words in choose_engine("auto").notes[0]
    assert words in expected_engine().notes[0]
    with pytest.raises(UserError, match="GPU"):
        choose_engine("cuda")
    assert child.count == 0


def test_ready_made_kernels_need_no_tools() -> None:
    bare = replace(COMPLETE, ready_made=True, nvcc=None, compiler=None, ninja=None)
    assert bare.problem is None


def test_a_computer_without_a_gpu_takes_the_cpu_and_makes_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_engine("auto") == choose_engine("cpu") == CPU
    with pytest.raises(ValueError, match="no device 'gpu'"):
        choose_engine("gpu")


def test_the_reason_is_the_line_that_says_most() -> None:
    text = """
        Error building extension 'gsplat_cuda': [1/3] nvcc -c a.cu
        FAILED: [code=1] a.o
        /gsplat/a.cu(12): error: identifier "foo" is undefined
        2 errors detected in the compilation of "a.cu".
        ninja: build stopped: subcommand failed.
    """
    assert gsplat_kernels.first_error(text) == '/gsplat/a.cu(12): error: identifier "foo" is undefined.'
    assert gsplat_kernels.first_error("The detected CUDA version (12.4) mismatches") == (
        "The detected CUDA version (12.4) mismatches."
    )


def test_the_reason_is_what_went_wrong_first() -> None:
    def builds() -> bool:
        try:
            raise OSError("CUDA_HOME is not set")
        except OSError:
            raise ImportError("gsplat_cuda.so: no such file") from None

    found = gsplat_trial.judged(torch.device("cpu"), builds)
    assert found == {"works": False, "reason": "CUDA_HOME is not set.", "difference": None}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_toolkit_is_where_the_compiler_says(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '#$ _HERE_=/x' >&2; echo '#$ TOP={tmp_path}/cuda/bin/..' >&2\n")
    nvcc.chmod(0o755)
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    assert gsplat_kernels.toolkit(str(nvcc)) == (tmp_path / "cuda").resolve()
    assert gsplat_kernels.toolkit(str(tmp_path / "none")) is None


def test_the_trial_judges_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of the GPU: the same pictures are accepted, others and errors are refused."""
    cpu = torch.device("cpu")
    assert gsplat_trial.judged(cpu, lambda: True) == {"works": True, "reason": "", "difference": 0.0}
    assert "no CUDA toolkit" in gsplat_trial.judged(cpu, lambda: False)["reason"]
    right = gsplat_trial.rasterize
    calls = iter((1.0, 1.01))
    monkeypatch.setattr(
        gsplat_trial, "rasterize", lambda *args: (lambda c, a, n, f: (c * f, a, n))(*right(*args), next(calls))
    )
    found = gsplat_trial.judged(cpu, lambda: True)
    assert not found["works"]
    assert "draw wrongly" in found["reason"]

    def breaks() -> bool:
        raise RuntimeError("nvcc was not found")

    assert gsplat_trial.judged(cpu, breaks)["reason"] == "nvcc was not found."
