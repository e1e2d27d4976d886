# SPDX-License-Identifier: GPL-3.0-or-later
"""Construction by the paper's schedule: 5,000 coarse and 2,000 fine steps, 20,000 Gaussians, 24 x 256 pixels."""

from collections.abc import Iterator
from dataclasses import replace

from backend.evaluation.construction import evaluate_construction
from backend.splatting.engine import choose_engine
from backend.splatting.observations import read_orbit_folder
from backend.splatting.rasterize import warm_up
from benchmarks.construct import figures_of, paper_schedule, timed_construction
from benchmarks.construct_steps import Inputs
from benchmarks.gpu.setting import FOX, Clock, Setting
from benchmarks.report import Figure
from blender_addon.contract.surface import read_surface_samples

SHORT = {"shape_steps": 10, "coarse_steps": 10, "fine_steps": 10}  # for what only the first call does


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """Rows by stage on the GPU's engine; without gsplat the CPU's takes its place, at a twentieth of the steps."""
    engine = choose_engine("auto" if setting.device.type == "cuda" else "cpu", print)
    for sentence in engine.notes:
        clock.tell(sentence)
    inputs = Inputs(
        read_orbit_folder(FOX / "moving"), read_orbit_folder(FOX / "static"), read_surface_samples(FOX / "surface.npz")
    ).at(setting.construction_pixels)
    config = setting.construction or paper_schedule(0)
    schedule = "paper"
    warm_up(print)  # quality is measured by the CPU's kernels on every engine
    if not engine.is_gpu:
        if setting.construction is None:
            schedule = "a twentieth of the paper's"
            names = ("shape_steps", "coarse_steps", "fine_steps")
            config = replace(config, **{name: getattr(config, name) // 20 for name in names})
            clock.tell("gsplat was not used: a twentieth of the paper's steps was measured, on the CPU.")
    else:
        timed_construction(inputs, replace(config, **SHORT), engine)
    clip, rows = timed_construction(inputs, config, engine)
    for row in rows:
        yield {"engine": engine.name, "schedule": schedule, **row}
    quality = evaluate_construction(clip, inputs.moving, read_orbit_folder(FOX / "truth"), None)
    yield from figures_of(schedule, config, engine, quality, rows[-1])
