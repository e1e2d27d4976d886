# SPDX-License-Identifier: GPL-3.0-or-later
"""What one step of a construction costs, by number of Gaussians, size of the pictures, threads and engine.

A step is one of the last stage, with everything: motion, rasterizer, losses, priors, both ways, and the optimizers.
Its time is the least interval between two reports of progress, as checkpoints and previews fall into some of them.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from backend.progress import Progress, Run
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import FINE, GPU_REPORT_STEPS, STAGE_SHARES, construct
from backend.splatting.engine import Engine
from backend.splatting.observations import Observations
from backend.splatting.rasterize import get_threads, set_threads
from benchmarks.report import Figure
from blender_addon.contract.surface import SurfaceSamples

COUNTS = (2_000, 10_000, 50_000, 200_000)  # Gaussians, at PIXELS
SIDES = (64, 128, 256, 512)  # pixels, with COUNT Gaussians
COUNT, PIXELS = 10_000, 256
STEPS = {"cpu": 9, "cuda": 10 * GPU_REPORT_STEPS}


@dataclass(frozen=True)
class Inputs:
    """What is constructed."""

    moving: Observations
    static: Observations | None
    surface: SurfaceSamples | None

    def at(self, pixels: int) -> "Inputs":
        """The same with pictures whose longer side has so many pixels."""
        return Inputs(resized(self.moving, pixels), self.static and resized(self.static, pixels), self.surface)


@dataclass
class StepClock:
    """Hears of progress, and keeps when the steps of the last stage were done."""

    steps: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        """Hear of progress."""
        if progress.stage == FINE and progress.step > 0:
            self.steps.append(progress.step)
            self.cpu.append(time.process_time())
            self.wall.append(time.monotonic())

    def least(self, times: list[float]) -> float:
        """Milliseconds per step, the least of the intervals between reports."""
        intervals = [
            1000 * (times[i + 1] - times[i]) / (self.steps[i + 1] - self.steps[i]) for i in range(len(times) - 1)
        ]
        return min(intervals)


def measure_steps(inputs: Inputs, engines: list[Engine]) -> tuple[list[dict], list[Figure]]:
    """A row per case, and the figures that follow from them."""
    rows, figures = [], []
    threads_before = get_threads()
    try:
        for engine in engines:
            here = [measure_step(inputs, engine, *case) for case in cases(engine)]
            rows += here
            figures += figures_of(here, engine)
    finally:
        set_threads(threads_before)
    return rows, figures


def cases(engine: Engine) -> Iterator[tuple[int, int, int]]:
    """Gaussians, pixels, threads."""
    yield from ((count, PIXELS, 1) for count in COUNTS)
    yield from ((COUNT, side, 1) for side in SIDES if side != PIXELS)
    if not engine.is_gpu:
        threads = 2
        while threads <= (os.cpu_count() or 1):
            yield COUNT, PIXELS, threads
            threads *= 2


def measure_step(inputs: Inputs, engine: Engine, count: int, side: int, threads: int) -> dict:
    """Construct with a few steps per stage, and see how long those of the last stage take."""
    set_threads(threads)
    steps = STEPS[engine.device.type]
    config = ConstructConfig(gaussians=count, shape_steps=1, coarse_steps=1, fine_steps=steps, static_chance=0.0)
    config = replace(config, fine_pixels=side)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), on_progress=clock)
        run.plan(STAGE_SHARES)
        at_size = inputs.at(side)
        construct(at_size.moving, at_size.static, at_size.surface, config, run, engine)
    frames = len(at_size.moving.images) if engine.is_gpu else config.fine_frames
    return {
        "engine": engine.name,
        "Gaussians": count,
        "pixels": side,
        "pictures": frames,
        "threads": None if engine.is_gpu else threads,
        "CPU ms": clock.least(clock.cpu),
        "wall ms": clock.least(clock.wall),
    }


def figures_of(rows: list[dict], engine: Engine) -> list[Figure]:
    """Growth against linear growth; on the CPU also the step that has a limit."""
    unit = "wall ms" if engine.is_gpu else "CPU ms"

    def cost(count: int, side: int) -> float:
        found = (row for row in rows if (row["Gaussians"], row["pixels"], row["threads"] or 1) == (count, side, 1))
        return next(found)[unit]

    growth = {
        f"from {COUNTS[0]} to {COUNTS[-1]} Gaussians": cost(COUNTS[-1], PIXELS)
        / cost(COUNTS[0], PIXELS)
        / (COUNTS[-1] / COUNTS[0]),
        f"from {SIDES[0]} to {SIDES[-1]} pixels a side": cost(COUNT, SIDES[-1])
        / cost(COUNT, SIDES[0])
        / (SIDES[-1] / SIDES[0]) ** 2,
    }
    figures = [
        Figure(f"cost of a step {what}, of linear growth ({engine.name})", value, "x", at_most=1.0)
        for what, value in growth.items()
    ]
    if not engine.is_gpu:
        name = f"one step, {COUNT // 1000}k Gaussians, {PIXELS} x {PIXELS} px, one thread"
        figures.append(Figure(name, cost(COUNT, PIXELS), "CPU ms", at_most=60.0))
    return figures


def resized(views: Observations, pixels: int) -> Observations:
    """Pictures made larger or smaller, with the cameras that belong to them."""
    height, width = views.images.shape[1:3]
    share = pixels / max(height, width)
    size = round(height * share), round(width * share)
    images = torch.nn.functional.interpolate(views.images.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    cameras, Ks = views.cameras, views.cameras.Ks.copy()  # noqa: N806
    Ks[:, 0] *= size[1] / width
    Ks[:, 1] *= size[0] / height
    cameras = replace(cameras, Ks=Ks, width=size[1], height=size[0])
    return replace(views, images=images.permute(0, 2, 3, 1).contiguous(), cameras=cameras)
