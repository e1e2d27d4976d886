# SPDX-License-Identifier: GPL-3.0-or-later
"""How often a fit is kept."""

from pathlib import Path

import numpy as np
import pytest

from backend.splatting import checkpoint
from backend.splatting.checkpoint import INTERVAL, MOST_TIME, Checkpoint


@pytest.mark.parametrize("seconds", [0.01, 2.0])
def test_large_ones_are_kept_more_seldom(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def slow(file, arrays, *, compressed) -> None:
        now[0] += seconds

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "write_npz", slow)
    kept = Checkpoint(tmp_path / "fit.npz", "key")
    now[0] += INTERVAL
    assert kept.is_due()
    kept.save({"a": np.zeros(3)})
    wait = max(INTERVAL, seconds / MOST_TIME)
    now[0] += wait - 0.1
    assert not kept.is_due()
    now[0] += 0.2
    assert kept.is_due()
