# SPDX-License-Identifier: GPL-3.0-or-later
"""A GPU that torch finds but cannot use is not used, and people are told; bf16 only where the GPU has units for it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backend.evaluation import shipped
from backend.models.gpu import gpu_problem, usable_gpu
from backend.models.precision import fast_bf16
from backend.models.shipped import default_device
from backend.pipelines.memory_plan import chosen_device, computing_type
from backend.progress import Run, UserError
from backend.service.doctor import check_gpu
from backend.service.settings import Settings


def test_a_gpu_that_works_is_used(card, tmp_path: Path) -> None:
    assert gpu_problem() is None
    assert default_device() == "cuda"
    assert chosen_device(Run(tmp_path)).type == "cuda"
    assert chosen_device(Run(tmp_path, device="cpu")).type == "cpu"


def test_a_gpu_without_kernels_is_not(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.broken = True
    assert "no kernel image" in gpu_problem()
    assert not usable_gpu()
    assert default_device() == "cpu"
    monkeypatch.setattr(shipped, "load", lambda *_: SimpleNamespace(name="model"))
    assert shipped.shipped_generator().version.startswith("model on cpu")
    run = Run(tmp_path)
    assert chosen_device(run).type == "cpu"
    assert "no kernel image" in run.notes[0]
    with pytest.raises(UserError, match="no kernel image"):
        chosen_device(Run(tmp_path, device="cuda"))
    assert "no kernel image" in check_gpu(Settings(tmp_path))[1]


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_bf16_that_is_only_emulated_is_not_fast(card, capability: tuple[int, int], fast: bool) -> None:
    card.capability = capability
    assert fast_bf16("cuda") == fast
    assert computing_type(torch.device("cuda")) == (torch.bfloat16 if fast else torch.float16)
