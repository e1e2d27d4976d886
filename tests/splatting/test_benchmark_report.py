# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks' report and the plain torch rasterizer that ours is compared with."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.rasterize import bumpy_sphere as benchmark_scene
from benchmarks.report import Figure, cpu_milliseconds, write_report
from benchmarks.tiled_torch import rasterize_tiled
from tests.splatting.oracle import bumpy_sphere, camera, rasterize_dense


def test_figures_know_their_limits() -> None:
    assert Figure("time", 29.0, "ms", at_most=30).met
    assert not Figure("time", 31.0, "ms", at_most=30).met
    assert not Figure("speed", 24.0, "x", at_least=25).met
    assert Figure("size", 3.0, "MB").met


def test_a_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "report.json"
    rows = [{"case": "small", "ms": 1.234}, {"case": "large", "ms": None}]
    report = write_report("Times", rows, [Figure("time", 31.0, "ms", at_most=30)], out)
    assert json.loads(out.read_text("utf-8")) == report
    assert report["rows"] == rows
    assert report["figures"][0]["met"] is False
    assert {"kinesplat", "python", "torch"} <= set(report["versions"])
    assert report["machine"]["cores"] >= 1
    printed = capsys.readouterr().out
    assert "small" in printed
    assert "needed at most 30: NOT met" in printed


def test_cpu_time_is_of_the_work() -> None:
    calls = []
    assert 0 <= cpu_milliseconds(lambda: calls.append(1), repeats=4) < 100
    assert len(calls) == 5  # the first does not count


def test_the_compared_rasterizer_draws_the_same() -> None:
    """Otherwise the comparison would mean nothing."""
    scene = bumpy_sphere(600)
    viewmat, K = camera(48, 40)  # noqa: N806
    truth = torch.cat(rasterize_dense(*scene, viewmat, K, 48, 40)[:2], dim=-1)
    picture = rasterize_tiled(*(tensor.float() for tensor in scene), viewmat.float(), K.float(), 48, 40)
    assert (picture - truth).abs().max() <= 1e-5


def test_the_benchmark_scene_can_be_fitted() -> None:
    assert all(tensor.requires_grad and tensor.is_leaf for tensor in benchmark_scene(10))
