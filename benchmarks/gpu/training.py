# SPDX-License-Identifier: GPL-3.0-or-later
"""Throughput of training: samples a second, share of the matrix rate, and time spent waiting for data.

It is the program's own training loop that runs, for a while, and is told apart after its first steps, which compile and
start what draws samples.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from backend.models.text import Vocabulary
from backend.training import trainer
from backend.training.batches import draw_now
from backend.training.config import TrainConfig, read_config
from benchmarks.gpu.setting import Clock, Setting, Training, attempted, matrix_rate, peak_gib, reset_peak
from benchmarks.report import Figure

UTILISATION = 0.4  # of the matrix rate; or else so many clips a second as the run's figure says
WAITING = 0.05  # share of the time: "data loading never the limit"
SPARE = 30.0  # seconds that a run takes beside its own


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """A row by configuration, each as it is and with torch.compile; figures of the faster."""
    for training in setting.trainings:
        rows = []
        for compiled in (False, True) if setting.device.type == "cuda" else (False,):
            name = f"{training.config}, compiled" if compiled else training.config
            if clock.case(name, training.seconds + SPARE):
                known = {"configuration": training.config, "compiled": compiled}
                row = attempted(partial(measured, training, compiled, setting), setting, **known)
                rows += [] if "failed" in row else [row]
                yield row
        if rows and setting.device.type == "cuda":
            best = max(rows, key=lambda row: row["samples/s"])
            yield from figures_of(training, best)


def figures_of(training: Training, row: dict) -> Iterator[Figure]:
    """Either figure of the throughput is enough, so the one that is nearer to being met counts."""
    wanted = training.clips_per_second
    if wanted is not None and row["samples/s"] / wanted >= row["of the matrix rate"] / UTILISATION:
        yield Figure(f"{training.config}, throughput", row["samples/s"], "clips/s", at_least=wanted)
    else:
        yield Figure(f"{training.config}, utilisation", row["of the matrix rate"], "of the rate", at_least=UTILISATION)
    yield Figure(f"{training.config}, waiting for data", row["waiting for data"], "of the time", at_most=WAITING)


def measured(training: Training, compiled: bool, setting: Setting) -> dict:
    """One run."""
    quiet = {"sheet_minutes": 0.0, "save_minutes": 1e6, "compile": compiled}
    config = replace(read_config(training.config), **quiet, **training.changes)
    waits = Waits()
    rate = matrix_rate(setting.matrix, setting.device, setting.dtype)
    operations = step_operations(config, setting) / config.batch
    reset_peak(setting.device)
    watched = mock.patch.object(trainer, "draw", waits.watched(trainer.draw))
    with tempfile.TemporaryDirectory() as folder, watched, kernels_as_before():
        length = {"steps": training.steps} if training.steps else {"minutes": training.seconds / 60}
        trainer.train(config, setting.assets, Path(folder), **length)
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    begun = waits.begun()
    samples = config.batch * waits.steps_since(begun) / waits.seconds_since(begun)
    return {
        "configuration": training.config,
        "compiled": compiled,
        "batch": config.batch,
        "workers": config.workers,
        "steps": len(waits.asked),
        "samples/s": samples,
        "logged samples/s": rows[-1]["samples_per_second"] if rows else None,
        "TFLOP/s": samples * operations / 1e12,
        "of the matrix rate": samples * operations / rate,
        "waiting for data": waits.waited_since(begun) / waits.seconds_since(begun),
        "first steps s": waits.asked[begun] - waits.asked[0],
        "GiB": peak_gib(setting.device),
        "assets": setting.assets.name,
    }


@contextmanager
def kernels_as_before() -> Iterator[None]:
    """What training chooses for the whole process does not reach the other sections."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]


class Waits:
    """When the training loop asked for each batch, and when it got it."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.got: list[float] = []

    def watched(self, draw):
        """`draw`, watched."""

        def drawn(*given, **named):
            batches = draw(*given, **named)
            try:
                while True:
                    asked = time.perf_counter()
                    if (batch := next(batches, None)) is None:
                        return
                    self.asked.append(asked)
                    self.got.append(time.perf_counter())
                    yield batch
            finally:
                batches.close()

        return drawn

    def begun(self) -> int:
        """The step from which on counts: the last two thirds of the time are left from it on."""
        if len(self.asked) < 3:
            raise RuntimeError("Too few steps were made to tell anything: give it more time.")
        third = self.asked[0] + (self.asked[-1] - self.asked[0]) / 3
        return min(next(index for index, when in enumerate(self.asked) if when >= third), len(self.asked) - 2)

    def steps_since(self, begun: int) -> int:
        """Whole steps."""
        return len(self.asked) - 1 - begun

    def seconds_since(self, begun: int) -> float:
        """What these took. The loop waits for no step on a GPU, but the queue is short against the time."""
        return self.asked[-1] - self.asked[begun]

    def waited_since(self, begun: int) -> float:
        """Seconds of these in which there was no batch."""
        return sum(got - asked for asked, got in zip(self.asked[begun:-1], self.got[begun:-1], strict=True))


def step_operations(config: TrainConfig, setting: Setting) -> float:
    """Floating-point operations of a step, there and back, counted on a batch of two samples on the CPU."""
    config = replace(config, compile=False)
    task, vocabulary = trainer.TASKS[config.task], Vocabulary(("dog",))
    network = task.build(config, vocabulary)
    stream = trainer.sample_stream(config, setting.assets, "train")
    batch = draw_now(stream, range(2), vocabulary)
    with FlopCounterMode(display=False) as counter:
        losses = task.loss(network, batch, config, torch.Generator().manual_seed(0))
        losses["loss"].backward()
    return counter.get_total_flops() / 2 * config.batch
