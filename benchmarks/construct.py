# SPDX-License-Identifier: GPL-3.0-or-later
"""Construction from pictures: quality on shown and unseen views, time per stage, cost of a step, on every engine here.

    python -m benchmarks.construct                                  # the walking fox of the tests
    python -m benchmarks.construct --model fox                      # the demo's model, rendered in headless Blender
    python -m benchmarks.construct --orbit DIR [--static DIR] [--surface FILE] [--truth DIR] [--preset final]
    python -m benchmarks.construct --schedule paper                 # 5k + 2k steps, 20k Gaussians, 24 x 256 px

On a computer with a GPU that gsplat can use, one command measures both engines, and the paper's schedule on the GPU.
`--truth` is an orbit folder like any other whose cameras and times are not those of the moving orbit; with
`tracks.npz` in it (`points` [T, M, 3], true places of points on the subject) the error of the motion is told as well.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend.evaluation.construction import evaluate_construction
from backend.pictures import over_white, tiled
from backend.progress import DEVICES, Progress, Run
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import STAGE_SHARES, STAGES, construct
from backend.splatting.engine import CPU, Engine, choose_engine
from backend.splatting.observations import Observations, read_orbit_folder, read_orbit_folders
from backend.splatting.rasterize import warm_up
from backend.splatting.render import render_clip
from benchmarks.construct_steps import Inputs, measure_steps
from benchmarks.report import Figure, write_report
from blender_addon.contract.arrays import read_arrays
from blender_addon.contract.clip import Clip, write_clip
from blender_addon.contract.requests import PRESETS
from blender_addon.contract.surface import read_surface_samples

FOX = Path(__file__).parent.parent / "tests" / "data" / "fox_orbit"
SHEET_COLUMNS = 8
PAPER_PIXELS = 256
SHOWN_FIGURES = ("psnr_shown", "psnr_unseen", "psnr_gain", "ssim_unseen", "iou_unseen", "track_error")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.construct", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("fox", "shark"), help="a bundled model")
    parser.add_argument("--orbit", type=Path, metavar="DIR", help="moving orbit (default: the fox of the tests)")
    parser.add_argument("--static", type=Path, metavar="DIR")
    parser.add_argument("--surface", type=Path, metavar="FILE")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="views that the construction is not shown")
    parser.add_argument("--preset", choices=PRESETS, default="preview")
    parser.add_argument("--gaussians", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto (default): every engine that works")
    parser.add_argument("--schedule", choices=("preset", "paper"), help="default: preset, and on a GPU the paper's too")
    parser.add_argument("--no-steps", action="store_true", help="leave out the cost of a step by size")
    parser.add_argument("--out", type=Path, metavar="FILE.json",
                        help="report; cost of a step, clips and contact sheets go beside it")  # fmt: skip
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is not None:
            from benchmarks.example_views import render_example  # needs bpy

            render_example(options.model, Path(folder))
            use_example(options, Path(folder))
        elif options.orbit is None:
            use_example(options, FOX)
        return measure(options)


def use_example(options: argparse.Namespace, folder: Path) -> None:
    """Take everything from a folder that holds an orbit with its static one, its surface and its truth."""
    options.orbit, options.static = folder / "moving", folder / "static"
    options.surface, options.truth = folder / "surface.npz", folder / "truth"


def engines(wanted: str) -> list[Engine]:
    """What is measured; says why where a GPU is not."""
    best = choose_engine(wanted, print)
    for sentence in best.notes:
        print(sentence)
    return [best] if wanted != "auto" or not best.is_gpu else [CPU, best]


def paper_schedule(seed: int) -> ConstructConfig:
    """Diffusion4D's 5,000 coarse and 2,000 fine steps, with all Gaussians in both; the coarse ones on small pictures.

    The coarse steps are those of the first two stages: shape, then motion.
    """
    return ConstructConfig(
        gaussians=20_000,
        seed=seed,
        shape_steps=1_000,
        coarse_steps=4_000,
        fine_steps=2_000,
        coarse_pixels=PAPER_PIXELS // 2,
        fine_pixels=PAPER_PIXELS,
        coarse_gaussians=20_000,
    )


def measure(options: argparse.Namespace) -> int:
    """Construct, evaluate, report; 0 if all figures are met."""
    warm_up()  # compiled once per computer, so it is no part of a construction
    inputs = Inputs(
        *read_orbit_folders(options.orbit, options.static),
        read_surface_samples(options.surface) if options.surface else None,
    )
    truth = read_orbit_folder(options.truth) if options.truth else None
    preset = ConstructConfig.for_preset(options.preset, options.gaussians, options.seed)
    here = engines(options.device)
    cases = []
    for engine in here:
        if options.schedule != "paper":
            cases.append((options.preset, inputs, preset, engine))
        if options.schedule == "paper" or (options.schedule is None and engine.is_gpu):
            cases.append(("paper", inputs.at(PAPER_PIXELS), paper_schedule(options.seed), engine))

    rows, figures = [], []
    for schedule, given, config, engine in cases:
        if engine.is_gpu:  # the first call on a GPU loads libraries
            timed_construction(given, replace(config, shape_steps=10, coarse_steps=10, fine_steps=10), engine)
        clip, timed = timed_construction(given, config, engine)
        rows += [{"engine": engine.name, "schedule": schedule, **row} for row in timed]
        quality = evaluate_construction(clip, given.moving, truth, _tracks(options.truth, clip))
        figures += figures_of(schedule, config, engine, quality, timed[-1])
        if options.out:
            name = f"{options.out.stem}_{schedule}_{engine.device.type}"
            write_clip(options.out.with_name(f"{name}.npz"), clip)
            contact_sheet(clip, given.moving).save(options.out.with_name(f"{name}.png"))
            if truth is not None:
                contact_sheet(clip, truth).save(options.out.with_name(f"{name}_unseen.png"))
    write_report(f"Construction of {options.model or options.orbit}", rows, figures, options.out)

    if not options.no_steps:
        rows, more = measure_steps(inputs, here)
        out = options.out and options.out.with_name(f"{options.out.stem}_steps.json")
        write_report("One step of the last stage, with everything", rows, more, out)
        figures += more
    return 0 if all(figure.met for figure in figures) else 1


def timed_construction(inputs: Inputs, config: ConstructConfig, engine: Engine) -> tuple[Clip, list[dict]]:
    """A clip, and a row of seconds for each stage and for all of it."""
    with tempfile.TemporaryDirectory() as folder:
        clock = StageClock()
        run = Run(Path(folder), on_progress=clock)
        run.plan(STAGE_SHARES)
        cpu, wall = time.process_time(), time.monotonic()
        clip = construct(inputs.moving, inputs.static, inputs.surface, config, run, engine)
        run.finish()
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    rows = [{"stage": stage, "CPU s": clock.cpu.get(stage), "wall s": run.stage_seconds.get(stage)} for stage in STAGES]
    return clip, [*rows, {"stage": "all", "CPU s": cpu, "wall s": wall}]


def figures_of(
    schedule: str, config: ConstructConfig, engine: Engine, quality: dict[str, float], seconds: dict
) -> list[Figure]:
    """What was reached and what has to be."""
    label = f"{schedule}, {engine.name}"
    figures = [Figure(f"{label}: PSNR on the shown frames", quality["psnr_shown"], "dB", at_least=28.0)]
    if "psnr_gain" in quality:
        what = f"{label}: PSNR on unseen views, more than the frozen clip"
        figures.append(Figure(what, quality["psnr_gain"], "dB", at_least=3.0))
    limits = {("preview", "cpu"): ("CPU s", 60.0), ("paper", "cuda"): ("wall s", 45.0)}
    unit, limit = limits.get((schedule, engine.device.type), ("wall s", None))
    steps = config.shape_steps + config.coarse_steps + config.fine_steps
    what = f"{label}: construction, {config.gaussians} Gaussians, {steps} steps"
    figures.append(Figure(what, seconds[unit], unit, at_most=limit))
    figures += [Figure(f"{label}: {name}", quality[name], "") for name in SHOWN_FIGURES if name in quality]
    return figures


class StageClock:
    """CPU seconds of each stage, from the progress that a run tells."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self._last = time.process_time()

    def __call__(self, progress: Progress) -> None:
        """Hear of progress."""
        now = time.process_time()
        self.cpu[progress.stage] = self.cpu.get(progress.stage, 0.0) + now - self._last
        self._last = now


def contact_sheet(clip: Clip, views: Observations) -> Image.Image:
    """Pictures above what the clip looks like from the same cameras, evenly chosen."""
    chosen = np.linspace(0, len(views.times) - 1, min(SHEET_COLUMNS, len(views.times))).round().astype(int)
    rows = [images[chosen] for images in (views.images, render_clip(clip, views.cameras))]
    return Image.fromarray(tiled(over_white(torch.stack(rows))))


def _tracks(folder: Path | None, clip: Clip) -> np.ndarray | None:  # [T, M, 3]
    if folder is None or not (folder / "tracks.npz").exists():
        return None
    points = read_arrays(folder / "tracks.npz")["points"]
    return points if len(points) == clip.frame_count else None


if __name__ == "__main__":
    raise SystemExit(main())
