# SPDX-License-Identifier: GPL-3.0-or-later
"""Decoding without a process, for what does not test the process."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from backend.progress import Run
from backend.video import decoder, reading


@pytest.fixture
def decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder answers in this process, without limits: one of its own takes 0.3 s to begin."""

    def answer(question: decoder.Question, folder: Path, run: Run, seconds: float) -> None:
        (folder / "question.json").write_text(json.dumps(asdict(question)), encoding="utf-8")
        decoder.main([str(folder / "question.json")])

    monkeypatch.setattr(decoder, "limit_process", lambda question: None)
    monkeypatch.setattr(reading, "_run_decoder", answer)
