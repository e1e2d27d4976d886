# SPDX-License-Identifier: GPL-3.0-or-later
"""A tiny run: three small models, 16 pixels, a network of a few thousand parameters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.training.config import TrainConfig

ASSETS = Path(__file__).resolve().parent.parent / "data" / "assets"
TINY = TrainConfig(
    task="motion",
    network={"widths": [8, 8, 8, 8], "blocks": [0, 1, 0, 1], "embedding": 16, "text_width": 8, "heads": 2},
    resolution=16,
    batch=2,
    precision="fp32",
    warmup=2,
    learning_rate=3e-3,
    log_steps=2,
    sheet_minutes=0,
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def assets() -> Path:
    return ASSETS


@pytest.fixture
def tiny():
    """The configuration, with other values where wanted."""
    return lambda **changes: replace(TINY, **changes)
