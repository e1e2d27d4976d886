# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells while it trains: log.jsonl, tensorboard, sample sheets, and a line on the terminal."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from backend.console import time_text


class Logbook:
    """The records in a run's folder. A resumed run strikes out what its checkpoint does not know of."""

    def __init__(self, out: Path, step: int) -> None:
        self.out = out
        path = out / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(part, path)
        self._rows = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._board.close()

    def write(self, step: int, values: dict[str, float], group: str = "train") -> None:
        """Record figures."""
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def write_sheet(self, step: int, sheet: np.ndarray) -> Path:
        """Keep a contact sheet [H, W, 3] uint8."""
        path = self.out / "sheets" / f"step_{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sheet).save(path)
        self._board.add_image("sheet", sheet, step, dataformats="HWC")
        return path


class Meter:
    """Means since the last record, and what is due by the clock."""

    def __init__(self) -> None:
        now = time.monotonic()
        self._steps, self._since = 0, now
        self._sums: dict[str, torch.Tensor] = {}
        self._last: dict[str, float] = {}
        self._start = now
        self._waited = self._waited_before = 0.0  # seconds since the last record, and up to it

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While this lasts, training waits for samples."""
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def waited_share(self) -> float:
        """The share of all the time that was spent waiting."""
        return (self._waited_before + self._waited) / max(time.monotonic() - self._start, 1e-9)

    def add(self, values: dict[str, torch.Tensor], share: float = 1.0) -> None:
        """Add up, on the device: no step waits for its own figures."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + torch.as_tensor(value).detach().float() * share

    def step(self) -> None:
        """One more step has been added."""
        self._steps += 1

    def means(self) -> tuple[float, dict[str, float]]:
        """Steps a second and mean values since the last call; `waiting`: the share of the time, see `waiting`."""
        now = time.monotonic()
        values = {name: round(float(value) / self._steps, 4) for name, value in self._sums.items()}
        rate = self._steps / (now - self._since)
        values["waiting"] = round(self._waited / (now - self._since), 4)
        self._waited, self._waited_before = 0.0, self._waited_before + self._waited
        self._steps, self._sums, self._since = 0, {}, now
        return rate, values

    def due(self, what: str, minutes: float) -> bool:
        """Whether `minutes` have passed since it was last due; never for 0."""
        now = time.monotonic()
        if not minutes or now - self._last.get(what, self._start) < 60 * minutes:
            return False
        self._last[what] = now
        return True


def progress_line(step: int, rate: float, values: dict[str, float], seconds_left: float) -> str:
    """`step 1,250   3.4 samples/s   loss 0.4821   lr 8.0e-04   41:10 left`."""
    told = f"step {step:,}   {rate:.3g} samples/s   loss {values['loss']:.4f}   lr {values['lr']:.1e}"
    return f"{told}   {time_text(max(seconds_left, 0))} left"


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line that a crash cut off
        return float("inf")
