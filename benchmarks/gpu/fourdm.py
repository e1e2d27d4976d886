# SPDX-License-Identifier: GPL-3.0-or-later
"""4DM at its published size: 8 frames x 4 views of 256 pixels from a video, all denoised together."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from backend.pipelines.memory_plan import GIB, PLANS, MemoryPlan, Networks
from backend.pipelines.multi_view_video import SOURCES, generate_views
from backend.pipelines.published_needs import need
from backend.progress import Progress, Run
from benchmarks.gpu.orbit import disc
from benchmarks.gpu.setting import Clock, Setting, attempted, matrix_rate, peak_gib, reset_peak, wait
from benchmarks.report import Figure

SECONDS = 25.0  # that have to be left for a plan


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """Rows with everything on the GPU, before and after steps are recorded, and one block by block."""
    rate = matrix_rate(setting.matrix, setting.device, setting.dtype)
    for plan in (replace(PLANS[0], recorded=False), PLANS[0], PLANS[-1]):
        if clock.case(plan.name, SECONDS):
            row = attempted(partial(views, plan, setting, rate, clock), setting, plan=plan.name)
            yield row
            if row.get("GiB") is not None:
                yield Figure(f"memory of 4DM, {plan.name}", row["GiB"], "GiB", at_most=row["foretold GiB"])


def views(plan: MemoryPlan, setting: Setting, rate: float, clock: Clock) -> dict:
    """The four views of a video. rate: operations a second of matrix products."""
    device, ends = setting.device, []
    loaded = setting.networks(*SOURCES)
    networks = Networks({name: lambda one=one: one for name, one in loaded.items()}, device, lambda: None)
    networks.follow(plan)
    video = torch.from_numpy(disc(setting.video_frames, setting.pixels)).float().movedim(-1, 1) / 255
    on_white = video[:, :3] * video[:, 3:] + 1 - video[:, 3:]
    reset_peak(device)

    def on_progress(progress: Progress) -> None:
        wait(device)
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), on_progress)
        start = time.perf_counter()
        generate_views(
            on_white, np.linspace(0, 1, len(video)), "a dog runs", networks,
            steps=setting.video_steps, dtype=setting.dtype, run=run,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    for sentence in run.notes:
        clock.tell(f"{plan.name}: {sentence}")
    peak = peak_gib(device)
    networks.rest()
    step = float(np.median(np.diff(ends))) if len(ends) > 1 else seconds
    operations = setting.operations["fourdm"]()
    return {
        "plan": plan.name,
        "speed": "recorded" if plan.recorded else "plain",
        "steps": setting.video_steps,
        "seconds": seconds,
        "s a step": step,
        "GiB": peak,
        "foretold GiB": need(plan, tuple(SOURCES), setting.dtype).device_bytes / GIB,
        "TFLOP/s": operations / step / 1e12,
        "of the matrix rate": operations / step / rate,
    }
