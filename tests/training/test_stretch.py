# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way from baked assets alone to weights that generate, in stretches, by packed runs, without network."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from backend.__main__ import main
from backend.models import kinesplat_small, kinesplat_small_4dm
from backend.pipelines.diffusion4d import generate_moving
from backend.pipelines.small_views import SIDE, SmallVideoModel
from backend.progress import Run, UserError
from backend.training import packed, small_fourdm_validation, trainer
from backend.training.checkpoint import found_checkpoint, read_about, read_average, read_state
from backend.training.stretch import Reserve, enough_memory
from blender_addon.contract.orbit import Orbit, orbit_cameras

COMMON = 'resolution = 16\nbatch = 2\nprecision = "fp32"\nwarmup = 2\nlog_steps = 1\nsheet_minutes = 0\n'
HEADS = "embedding = 16\ntext_width = 8\nheads = 2\n"
CONFIGS = {
    "base": f'task = "small_fourdm"\ntimes = 1\n{COMMON}[network]\nwidths = [8, 8]\nblocks = [1, 1]\n{HEADS}',
    "motion4": f'task = "small_fourdm"\ntimes = 2\n{COMMON}[network]\nwidths = [8, 8]\nblocks = [1, 1]\n{HEADS}',
    "motion": f'task = "motion"\n{COMMON}[network]\nwidths = [8, 8, 8, 8]\nblocks = [0, 1, 0, 1]\n{HEADS}',
    "sheets": "sheet_minutes = 1000\n",
}


@pytest.fixture
def place(assets, tmp_path, monkeypatch) -> Path:
    """An empty folder with the assets alone, in which to work, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing here may ask the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(assets, "assets")
    for name, text in CONFIGS.items():
        Path(f"{name}.toml").write_text(text)
    return tmp_path


def stretch(what: str, name: str, out: str, *more: str) -> int:
    """One stretch: the run in runs/OUT, what travels in OUT."""
    command = ["train", what, "--config", f"{name}.toml", "--assets", "assets", "--out", f"runs/{out}", "--pack", out]
    return main([*command, *(more if "--minutes" in more else ("--steps", "2", *more))])


def only_packed_remains(*names: str) -> None:
    """Another machine: nothing of the runs is there."""
    shutil.rmtree("runs")
    for name in names:
        files = list(Path(name).rglob("*"))
        assert len(files) <= packed.FILES
        assert max(file.stat().st_size for file in files) < 16 * 2**20
        assert {file.parent for file in files} == {Path(name)}
        assert {"trainer.json", "config.json", "log.jsonl"} < {file.name for file in files}


@pytest.mark.slow
def test_small_4dm_in_stretches(place, monkeypatch):
    monkeypatch.setattr(small_fourdm_validation, "STEPS", 2)
    assert stretch("4dm", "base", "base1", "--config", "sheets.toml") == 0
    only_packed_remains("base1")
    assert [file.name for file in Path("base1").glob("*.png")] == ["step_00000002.png"]
    rows = [json.loads(line) for line in Path("base1/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "error_t1" in row] == [1, 2]  # before and after
    assert all(0 <= row["waiting"] <= 1 for row in rows if "loss" in row)

    assert stretch("4dm", "base", "base2", "--resume", "base1") == 0
    only_packed_remains("base2")
    assert read_state(found_checkpoint("base2"))["step"] == 4
    assert stretch("4dm", "motion4", "motion1", "--set", 'base_run="base2"') == 0
    only_packed_remains("motion1")
    assert read_about("motion1")["vocabulary"] == read_about("base2")["vocabulary"]
    assert all("motion" in name for name in read_average("motion1"))  # the base travels by itself
    assert stretch("4dm", "motion4", "motion2", "--set", 'base_run="base2"', "--resume", "motion1") == 0
    only_packed_remains("motion2")

    os.rename("base2", "elsewhere")
    ship = ["train", "ship", "--small-4dm", "motion2", "--name", "tiny 4dm", "--out", "weights"]
    assert main(ship) == 1  # the base is not where it was
    assert main([*ship, "--base", "base1"]) == 1  # the base as it was earlier
    assert main([*ship, "--base", "elsewhere"]) == 0
    model = kinesplat_small_4dm.load(Path("weights"), "cpu")
    kept, base = model.network.state_dict(), read_average("elsewhere")
    assert kept.keys() == base.keys() | read_average("motion2").keys()
    assert all(torch.equal(kept[name], base[name]) for name in base)
    run = Run(place / "job")
    run.folder.mkdir()
    run.plan({"Viewing": 1.0})
    run.begin("Viewing")
    model = SmallVideoModel(device="cpu", weights=Path("weights"))
    views = model.views(torch.rand(2, 4, SIDE, SIDE), "lever", seed=0, steps=1, elevation=0, run=run)
    assert np.isfinite(np.asarray(views.pictures, np.float32)).all()

    assert main(["train", "pack", "weights", "--out", "again"]) == 0  # and back, without the runs
    assert same(read_average("again/base"), read_average("elsewhere"))
    assert same(read_average("again/motion"), read_average("motion2"))
    assert stretch("4dm", "base", "base3", "--resume", "again/base") == 0
    assert stretch("4dm", "motion4", "motion3", "--set", 'base_run="base3"', "--resume", "again/motion") == 0
    assert read_state(Path("motion3"))["step"] == read_state(Path("motion2"))["step"] + 2


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_kinesplat_small_in_stretches(place):
    assert stretch("diffusion4d", "motion", "motion1") == 0
    assert stretch("diffusion4d", "motion", "motion2", "--resume", "motion1") == 0
    only_packed_remains("motion1", "motion2")
    assert read_about("motion2")["vocabulary"] == read_about("motion1")["vocabulary"]

    ship = ["train", "ship", "--motion", "motion2", "--assets", "assets", "--name", "tiny", "--out", "weights"]
    assert main(ship) == 0
    model = kinesplat_small.load(Path("weights"), "cpu")
    averaged = read_average("motion2")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in model.motion.state_dict().items())
    cameras = orbit_cameras(Orbit(), 16, 16, moving=True)
    moving = generate_moving(np.full((24, 16, 16, 4), 200, np.uint8), cameras, "lever", 1.0, steps=1, model=model)
    assert moving.pictures.shape == (24, 16, 16, 4)

    assert main(["train", "pack", "weights", "--out", "again"]) == 0
    assert same(read_average("again/motion"), averaged)
    assert stretch("diffusion4d", "motion", "motion3", "--resume", "again/motion") == 0
    assert read_state(Path("motion3"))["step"] == read_state(Path("motion2"))["step"] + 2


def test_weights_that_no_run_makes_are_told(place):
    Path("weights").mkdir()
    Path("weights/model.json").write_text('{"format": "stone tablet"}')
    assert main(["train", "pack", "weights", "--out", "again"]) == 1
    assert not Path("again").exists()


@pytest.mark.slow
def test_minutes_are_all_there_is(place, monkeypatch):
    monkeypatch.setattr(trainer, "save_checkpoint", slowed(trainer.save_checkpoint, 0.3))
    begun = time.monotonic()
    assert stretch("4dm", "base", "base1", "--minutes", "0.2") == 0
    assert time.monotonic() - begun < 24  # of 12, on a machine that is busy
    assert read_state(Path("base1"))["step"] > 1
    rates = [json.loads(line)["lr"] for line in Path("base1/log.jsonl").read_text().splitlines()]
    assert rates[-1] < max(rates) / 4  # and all of the plan was carried out


def slowed(work, seconds: float):
    def slow(*args):
        time.sleep(seconds)
        return work(*args)

    return slow


def test_a_signal_leaves_a_packed_run(place, monkeypatch):
    whole = trainer.update_average

    def update_average(*args):
        whole(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "update_average", update_average)
    assert stretch("4dm", "base", "base1", "--steps", "50") == 130
    assert read_state(Path("base1"))["step"] == 1
    assert not Path("base1.part").exists()


def test_a_packed_run_replaces_nothing_else(place):
    (place / "base1").mkdir()
    (place / "base1" / "thesis.txt").write_text("mine")
    assert stretch("4dm", "base", "base1") == 1
    assert [path.name for path in (place / "base1").iterdir()] == ["thesis.txt"]
    assert not Path("runs").exists()  # told before anything begins
    with pytest.raises(UserError, match="no checkpoint"):
        packed.pack(place / "nowhere", place / "out")


def test_a_gpu_that_is_too_small_is_told_of(place, monkeypatch, capsys):
    def loss(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.small_fourdm_task, "loss", loss)
    assert stretch("4dm", "base", "base1") == 1
    assert "--set batch=1 --set accumulate=2" in capsys.readouterr().err
    for batch, accumulate, told in ((8, 2, "batch=4 --set accumulate=4"), (1, 4, "more of it")):
        with pytest.raises(UserError) as caught, enough_memory(batch, accumulate):
            loss()
        assert told in caught.value.hint


@pytest.mark.slow
def test_a_machine_that_cannot_compile_is_told_of(place, monkeypatch, capsys):
    def loss(*_: object) -> None:
        raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found.\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(trainer.small_fourdm_task, "loss", loss)
    assert stretch("4dm", "base", "base1", "--set", "compile=true") == 1
    told = capsys.readouterr().err
    assert "No working C++ compiler found. Install a C compiler" in told
    assert "compile=false" in told
    assert "TORCHDYNAMO" not in told


def test_what_is_kept_at_the_end():
    assert Reserve(0.1).seconds == pytest.approx(0.6)
    reserve = Reserve(10)
    assert reserve.seconds == 12
    reserve.close(20)
    for seconds in (1, 2, 1):
        reserve.step(seconds)
    assert reserve.seconds == 12 + 30 + 6
