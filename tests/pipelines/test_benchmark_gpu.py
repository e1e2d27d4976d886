# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of the published size: its logic on the CPU with shrunk networks, and its figures on a GPU."""

import json
from pathlib import Path

import pytest
import torch

from backend.models.encoders import Encoders
from backend.pipelines import videomv_orbit
from backend.pipelines.memory_plan import PLANS
from benchmarks import gpu
from tests.pipelines import published_tiny

CPU = torch.device("cpu")


def small_encoders(device: torch.device, dtype: torch.dtype) -> Encoders:
    made = published_tiny.networks()
    return Encoders(made["vae"], made["text_encoder"], made["image_encoder"])


@pytest.mark.slow
def test_a_row_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videomv_orbit, "PIXELS", published_tiny.PIXELS)
    setting = gpu.Setting(published_tiny.IMAGE, small_encoders, frames=4, pixels=64, steps=2, matrix=256)
    loaded = gpu.random_networks(setting, CPU, torch.float32)
    assert set(loaded) == set(gpu.NAMES)
    row = gpu.measured("sliced", PLANS[2], setting, loaded, CPU, torch.float32)
    assert row["plan"] == "sliced"
    assert 0 < row["s a step"] < row["seconds"]
    operations = gpu.BRANCHES * gpu.forward_operations(setting)
    assert row["TFLOP/s"] == pytest.approx(operations / row["s a step"] / 1e12)
    assert row["of the matrix rate"] > 0


def test_operations_grow_with_the_frames() -> None:
    few, many = (
        gpu.forward_operations(gpu.Setting(published_tiny.IMAGE, frames=frames, pixels=64)) for frames in (4, 8)
    )
    assert 1.9 < many / few < 2.3


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "no GPU" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
def test_published_size_on_the_gpu(tmp_path: Path) -> None:
    """A few steps by the fastest plan and on 12 GB: both stay within what was foretold."""
    out = tmp_path / "gpu.json"
    assert gpu.main(["--steps", "4", "--plans", PLANS[0].name, "12 GB", "--out", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["plan"] for row in rows] == [PLANS[0].name, "12 GB"]
    assert rows[1]["GiB"] < 11
