# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop: exact resume, stopping, new plans, what it leaves on disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training import checkpoint, motion_task, motion_validation
from backend.training.batches import draw_now
from backend.training.config import read_config
from backend.training.packed import pack
from backend.training.trainer import TASKS, precision, sample_stream, train

ROOT = Path(__file__).resolve().parents[2]
FILES = (checkpoint.WEIGHTS, checkpoint.EMA, checkpoint.OPTIMIZER)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.newest_checkpoint(run)
    return {f"{file}:{key}": value for file in FILES for key, value in load_file(folder / file).items()}


def stop_after(monkeypatch, losses: int) -> None:
    """SIGTERM during the given computation of the loss."""
    whole, calls = motion_task.loss, []

    def loss(*args):
        calls.append(1)
        if len(calls) == losses:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(motion_task, "loss", loss)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(tiny, assets, tmp_path, monkeypatch, capsys):
    config = tiny(accumulate=2)
    assert train(config, assets, tmp_path / "whole", steps=6)
    stop_after(monkeypatch, 6)
    assert not train(config, assets, tmp_path / "parts", steps=6)
    assert "Stopped at step 3, saved in" in capsys.readouterr().out
    assert checkpoint.read_state(checkpoint.newest_checkpoint(tmp_path / "parts"))["step"] == 3
    assert train(config, assets, tmp_path / "parts")  # the length is remembered

    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert {name for name in whole if not torch.equal(whole[name], parts[name])} == set()
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert whole["model.safetensors:exit.weight"].abs().max() > 0

    # The same command again has nothing to do; a new plan goes on from the end, its learning rate from the start.
    assert train(config, assets, tmp_path / "parts", steps=6)
    assert "This run is finished, at step 6" in capsys.readouterr().out
    assert train(config, assets, tmp_path / "more", steps=2, resume=tmp_path / "parts")
    state = checkpoint.read_state(checkpoint.newest_checkpoint(tmp_path / "more"))
    assert (state["step"], state["samples"], state["plan"]["first_step"]) == (8, 32, 6)
    last = json.loads((tmp_path / "more" / "log.jsonl").read_text().splitlines()[-1])
    assert last["lr"] > config.learning_rate / 2
    with pytest.raises(UserError, match="another run"):
        train(config, assets, tmp_path / "more", steps=2, resume=tmp_path / "whole")


@pytest.mark.slow
def test_sheets_and_figures_while_it_trains(tiny, assets, tmp_path):
    train(tiny(sheet_minutes=1e-9), assets, tmp_path, steps=1)
    with Image.open(tmp_path / "sheets" / "step_00000001.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (9 * 16, 8 * 16, 3)  # three subjects: still, true, generated
    rows = sheet.astype(int).reshape(9, 16, 8 * 16, 3)
    assert (rows[0] != 255).any()
    assert abs(rows[0] - rows[1]).max() > 20  # the truth moves
    assert abs(rows[0, :, :16] - rows[2, :, :16]).max() <= 3  # at time 0 nothing has moved
    figures = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert figures["error_t1"] == pytest.approx(1, abs=0.1)  # it has learned nothing
    assert -1 <= figures["magnitude_rank"] <= 1
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_a_packed_run_goes_on_elsewhere(tiny, assets, tmp_path):
    config = tiny()
    train(config, assets, tmp_path / "run", steps=2)
    packed = pack(tmp_path / "run", tmp_path / "packed")
    assert max(file.stat().st_size for file in packed.iterdir()) < 16 * 2**20
    train(config, assets, tmp_path / "there", steps=1, resume=packed)
    assert checkpoint.read_state(checkpoint.newest_checkpoint(tmp_path / "there"))["step"] == 3
    with pytest.raises(UserError, match="not empty"):
        pack(tmp_path / "run", packed)


@pytest.mark.slow
def test_without_the_static_orbit_the_network_is_blind_to_it(tiny, assets, tmp_path):
    config = tiny(drop_orbit=1.0)
    assert train(config, assets, tmp_path, steps=3)
    words = Vocabulary(checkpoint.read_about(tmp_path)["vocabulary"])
    network = motion_task.build(tiny(), words)
    network.load_state_dict(checkpoint.read_average(tmp_path))
    batch = draw_now(sample_stream(config, assets, "train"), range(2), words)
    noisy = torch.randn(2, 24, 4, 8, 8)
    given = (torch.ones(2), batch.times, batch.camera_to_world, batch.tokens, torch.ones(2), torch.ones(2) > 0)
    seen = [network(noisy, motion_task.condition(batch.static * share), *given) for share in (0, 1)]
    assert torch.equal(*seen)
    assert seen[0].abs().max() > 0


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_two_micro_batches(tiny, assets, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from backend.training.config import read_config; from backend.training.trainer import train\n"
        "train(read_config(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), steps=2)\n"
    )
    config = tmp_path / "tiny.toml"
    config.write_text(
        'task = "motion"\nresolution = 16\nbatch = 1\nprecision = "fp32"\nsheet_minutes = 0\n'
        "[network]\nwidths = [8, 8, 8, 8]\nblocks = [0, 1, 0, 1]\nembedding = 16\ntext_width = 8\nheads = 2\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [script, config, assets, tmp_path / "two"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, cwd=ROOT, env=environment, check=True, timeout=300)
    changed = tiny(batch=1, accumulate=2, warmup=100, learning_rate=8e-4)
    train(changed, assets, tmp_path / "one", steps=2)
    two, one = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    for name in one:
        if name.startswith("model"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def test_motion_latents_need_pictures_that_can_be_halved(tiny, assets, tmp_path):
    with pytest.raises(UserError, match="power of two"):
        train(tiny(resolution=20), assets, tmp_path, steps=1)


def test_a_run_needs_a_length_and_assets(tiny, assets, tmp_path):
    with pytest.raises(UserError, match="how long"):
        train(tiny(), assets, tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        train(tiny(), assets, tmp_path, steps=1, resume=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *(f"kinesplat_small_{kind}" for kind in ("motion", "scene_flow", "4dm")),
        pytest.param("kinesplat_small_static", marks=pytest.mark.slow),  # renders its volumes
    ],
)
def test_a_step_stays_on_its_device(name, assets):
    """On a device that is not the CPU and has no numbers: what asks for them, or mixes devices, fails."""
    config = read_config(name)
    stream = sample_stream(config, assets, "train")
    with torch.device("meta"):
        network = TASKS[config.task].build(config, Vocabulary(("lever",)))
    batch = draw_now(stream, range(2), Vocabulary(("lever",))).to("meta")
    losses = TASKS[config.task].loss(network, batch, config, None)
    assert {value.device.type for value in losses.values()} == {"meta"}
    losses["loss"].backward()
    assert {parameter.grad.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.slow
def test_a_run_on_a_pretended_card(card, tiny, assets, tmp_path, monkeypatch):
    """In bf16, with the fused optimiser, a moving average, a validation and a checkpoint that is gone on from."""
    for name in ("SHEET_STEPS", "CONTROL_STEPS"):  # all of them are alike
        monkeypatch.setattr(motion_validation, name, 2)
    config = tiny(precision="auto", sheet_minutes=1e-9)
    assert precision(config) == "bf16"
    assert train(config, assets, tmp_path, steps=1)
    assert train(config, assets, tmp_path, steps=2)
    card.broken = True
    with pytest.raises(UserError, match="no kernel image"):
        train(config, assets, tmp_path, steps=3)
