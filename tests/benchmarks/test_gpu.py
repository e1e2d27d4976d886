# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of the published sizes: every section on the CPU with shrunk networks, and what becomes of failures."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend.pipelines import diffusion4d_published, videomv_orbit
from backend.pipelines.memory_plan import GIB, PLANS, Need, StageNeed
from backend.splatting.config import ConstructConfig
from benchmarks.gpu import __main__, construction, fourdm, networks, orbit, sds, sections, training, vae
from benchmarks.gpu.sections import SECTIONS, Section, run_sections
from benchmarks.gpu.setting import Clock, Training
from benchmarks.report import Figure
from tests.benchmarks import gpu_tiny
from tests.pipelines import published_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videomv_orbit, "PIXELS", gpu_tiny.PIXELS)
    monkeypatch.setattr(diffusion4d_published, "GENERATED_FRAMES", gpu_tiny.FRAMES)
    for section in (orbit, fourdm):  # to tell it of the published sizes takes half a minute
        monkeypatch.setattr(section, "need", lambda plan, *_: Need(plan, (StageNeed("all of it", 1, GIB, GIB),)))


def measured(name: str, tmp_path: Path, **changes: object) -> tuple[list[dict], list[dict]]:
    """Rows and figures of one section; it must not fail."""
    out = tmp_path / "gpu.json"
    run_sections(gpu_tiny.setting(**changes), [name], None, out)
    told = json.loads(out.read_text(encoding="utf-8"))["sections"][name]
    assert told["failed"] is None
    return told["rows"], told["figures"]


# --- sections --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_orbit(tmp_path: Path) -> None:
    rows, _ = measured("orbit", tmp_path, plans=[PLANS[0].name, "12 GB"])
    assert [row["plan"] for row in rows] == 4 * [PLANS[0].name] + ["12 GB"]
    assert [row["speed"] for row in rows[:3]] == ["plain", "recorded", "recorded, compiled"]
    for row in rows:
        assert 0 < row["s a step"] < row["seconds"]
        operations = 3 * networks.orbit_operations(published_tiny.IMAGE, gpu_tiny.FRAMES, gpu_tiny.PIXELS)
        assert row["TFLOP/s"] == pytest.approx(operations / row["s a step"] / 1e12)
        assert row["of the matrix rate"] == pytest.approx(row["TFLOP/s"] / row["matrix TFLOP/s"])


@pytest.mark.slow
def test_fourdm(tmp_path: Path) -> None:
    rows, _ = measured("4dm", tmp_path)
    assert [row["plan"] for row in rows] == [PLANS[0].name, PLANS[0].name, PLANS[-1].name]
    assert all(row["of the matrix rate"] > 0 for row in rows)


@pytest.mark.slow
def test_sds_foretells_the_whole_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sds, "SLOW", math.inf)  # the first step of all compiles
    rows, figures = measured("sds", tmp_path)
    steps = [row for row in rows if row["what"] == "step of a fit"]
    assert [(row["representation"], row["pixels"]) for row in steps] == [
        (kind, pixels) for kind in ("gaussians", "nerf") for pixels in (8, 8, 12)
    ]
    seconds = 10 * steps[0]["s a step"] + 10 * steps[1]["s a step"] + 50 * steps[2]["s a step"]
    seconds += 2 * rows[0]["seconds"]
    assert figures[0]["value"] == pytest.approx(seconds / 60)
    assert "gaussians" in figures[0]["what"]


@pytest.mark.slow
def test_profile(tmp_path: Path) -> None:
    rows, _ = measured("profile", tmp_path)
    names = ["moving network", "moving network, compiled", "4DM"]
    assert list(dict.fromkeys(row["network"] for row in rows)) == names
    for name in names:
        assert sum(row["share"] for row in rows if row["network"] == name) == pytest.approx(1)
    assert any("conv" in row["work"] for row in rows)


@pytest.mark.slow
def test_vae(tmp_path: Path) -> None:
    rows, _ = measured("vae", tmp_path)
    assert [row["layout"] for row in rows] == ["contiguous", "channels last"]
    assert rows[0]["largest difference of the latents"] == 0
    assert torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), vae.exact():
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_construction(tmp_path: Path) -> None:
    rows, figures = measured("construction", tmp_path)
    assert rows[-1]["stage"] == "all"
    assert any("PSNR" in figure["what"] for figure in figures)


def test_rasterize(tmp_path: Path) -> None:
    rows, _ = measured("rasterize", tmp_path)
    assert rows[0]["CPU ms"] > 0


@pytest.mark.slow
def test_requests_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = ConstructConfig(gaussians=200, shape_steps=2, coarse_steps=2, fine_steps=2)
    monkeypatch.setattr(ConstructConfig, "for_preset", lambda *_: short)
    rows, figures = measured("request", tmp_path)
    assert [row["kind"] for row in rows] == ["image"]
    assert all(figure["value"] == row["seconds"] for figure, row in zip(figures, rows, strict=True))
    assert all(row["Writing the clip s"] >= 0 for row in rows)


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    rows, _ = measured("training", tmp_path)
    assert [row["configuration"] for row in rows] == ["kinesplat_small_motion", "kinesplat_small_4dm"]
    for row in rows:
        assert row["samples/s"] > 0
        assert row["TFLOP/s"] > 0
        assert 0 <= row["waiting for data"] < 1


# --- what the figures hang on ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_operations_grow_with_the_frames() -> None:
    few, many = (networks.orbit_operations(published_tiny.IMAGE, frames, 64) for frames in (4, 8))
    assert 1.9 < many / few < 2.3


def test_waiting_is_told_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 5.0, 6.0, 6.0, 7.0, 8.0, 9.0, 9.0, 10.0])  # asked, got, asked, got, ...
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(moments))
    waits = training.Waits()
    batches = waits.watched(lambda: (number for number in range(4)))()
    assert list(batches) == [0, 1, 2, 3]
    begun = waits.begun()
    assert begun == 1
    assert waits.steps_since(begun) == 2
    assert waits.seconds_since(begun) == 3.0
    assert waits.waited_since(begun) == 1.0  # the last one's wait is not over


def test_either_figure_of_a_training_is_enough() -> None:
    run = Training("one", clips_per_second=300.0)
    row = {"samples/s": 310.0, "of the matrix rate": 0.1, "waiting for data": 0.0}
    assert all(figure.met for figure in training.figures_of(run, row))
    assert all(figure.met for figure in training.figures_of(run, {**row, "samples/s": 9.0, "of the matrix rate": 0.5}))
    assert not all(figure.met for figure in training.figures_of(run, {**row, "samples/s": 90.0}))


def test_networks_of_noise_are_whole() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    out = networks.filled(network, torch.device("cpu")).requires_grad_(False)(torch.randn(100, 64))
    assert 0.5 < float(out.std()) < 2


# --- nothing measured is lost ----------------------------------------------------------------------------------------


class Module:
    """A section's module that does as it is told."""

    def __init__(self, *found: object) -> None:
        self.found = found

    def measure(self, setting: object, clock: Clock):
        for one in self.found:
            if isinstance(one, BaseException):
                raise one
            yield one


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch):
    """Sections of given modules, in the place of the real ones."""

    def put(**made: Module) -> None:
        monkeypatch.setattr(sections, "SECTIONS", [Section(name, name, name, 30.0) for name in made])
        find = sections.importlib.import_module
        ours = {f"benchmarks.gpu.{name}": module for name, module in made.items()}
        monkeypatch.setattr(sections.importlib, "import_module", lambda name: ours.get(name) or find(name))

    return put


@pytest.mark.slow
def test_a_section_that_fails_is_told_and_the_next_begins(modules, tmp_path: Path, capsys) -> None:
    memory = torch.OutOfMemoryError("CUDA out of memory.")
    missing = ImportError("No module named 'gsplat'", name="gsplat")
    modules(one=Module({"a": 1}, memory), two=Module(missing), three=Module({"b": 2}, Figure("x", 1.0, "s", 2.0)))
    out = tmp_path / "deep" / "gpu.json"
    assert run_sections(gpu_tiny.setting(), ["one", "two", "three"], None, out) == 1
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["sections"]["one"]["rows"] == [{"a": 1}, {"failed": "The GPU's memory did not suffice."}]
    assert report["sections"]["two"]["failed"] == "The package gsplat is missing."
    assert report["sections"]["three"]["failed"] is None
    assert report["sections"]["three"]["figures"][0]["met"]
    assert "gsplat" in capsys.readouterr().out
    assert {"kinesplat", "python", "torch"} <= set(report["versions"])


@pytest.mark.slow
def test_a_row_that_fails_is_told_and_the_next_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = fourdm.generate_views

    def generate(*given: object, **named: object):
        if given[3].plan == PLANS[0]:
            raise RuntimeError("operation not permitted\nand much more")
        return real(*given, **named)

    monkeypatch.setattr(fourdm, "generate_views", generate)
    out = tmp_path / "gpu.json"
    assert run_sections(gpu_tiny.setting(), ["4dm"], None, out) == 1
    rows = json.loads(out.read_text(encoding="utf-8"))["sections"]["4dm"]["rows"]
    assert rows[1] == {"plan": PLANS[0].name, "failed": "RuntimeError: operation not permitted"}
    assert rows[2]["seconds"] > 0


def test_what_was_measured_is_written_before_the_next_row(modules, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    seen = []

    class Watching(Module):
        def measure(self, setting: object, clock: Clock):
            yield {"a": 1}
            seen.append(json.loads(out.read_text(encoding="utf-8"))["sections"]["one"]["rows"])
            raise KeyboardInterrupt

    modules(one=Watching(), two=Module({"never": 0}))
    assert run_sections(gpu_tiny.setting(), ["one", "two"], None, out) == 130
    assert seen == [[{"a": 1}]]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["sections"]["one"]["failed"] == "Stopped."
    assert "two" not in report["sections"]


def test_nothing_begins_when_the_time_is_nearly_up(modules, tmp_path: Path, capsys) -> None:
    modules(one=Module({"a": 1}), two=Module({"b": 1}))
    out = tmp_path / "gpu.json"
    assert run_sections(gpu_tiny.setting(), ["one", "two"], 0.4, out) == 1  # 24 s, and each wants 30
    assert json.loads(out.read_text(encoding="utf-8"))["left_out"] == ["one", "two"]
    assert "Left out, as the time was nearly up: one, two." in capsys.readouterr().out
    assert run_sections(gpu_tiny.setting(), ["two"], 0.6, out) == 0


def test_cases_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0)
    assert clock.case("short", 59.0)
    assert not clock.case("long", 61.0)
    assert clock.told == ["Left out, as the time was nearly up: long."]
    assert Clock().case("anything", 1e9)


# --- on a card -------------------------------------------------------------------------------------------------------

# The profiler knows real cards alone; what a backward pass computes again, as one row of `sds` wants it, the pretended
# one does not reach; `orbit` and `request` take it 2 and 7 minutes for what tests of the pipeline show in less.
NOT_PRETENDED = ("profile", "sds", "orbit", "request")


@pytest.mark.slow
@pytest.mark.parametrize("name", [section.name for section in SECTIONS if section.name not in NOT_PRETENDED])
def test_a_section_on_a_pretended_card(card, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In bf16. Times say nothing; that no row fails does."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(construction, "SHORT", dict.fromkeys(construction.SHORT, 2))
    rows, _ = measured(name, tmp_path, device="cuda", dtype=torch.bfloat16, video_steps=1)
    assert rows
    assert [row["failed"] for row in rows if "failed" in row] == []


# --- the command -----------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main([]) == 0
    assert "no GPU" in capsys.readouterr().out


def test_sections_are_chosen_by_name(capsys) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--only", "everything"])
    assert ", ".join(section.name for section in SECTIONS) in capsys.readouterr().err.replace("'", "")


def test_the_command_is_in_the_list(capsys) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import run, sys; run.bench(sys.executable, [])"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert " gpu," in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
def test_published_size_on_the_gpu(tmp_path: Path) -> None:
    """A few steps by the fastest plan and on 12 GB: both stay within what was foretold."""
    out = tmp_path / "gpu.json"
    chosen = ["--only", "orbit", "--steps", "4", "--plans", PLANS[0].name, "12 GB"]
    __main__.main([*chosen, "--out", str(out)])
    rows = json.loads(out.read_text(encoding="utf-8"))["sections"]["orbit"]["rows"]
    assert {row["plan"] for row in rows} == {PLANS[0].name, "12 GB"}
    assert rows[-1]["GiB"] < 11
