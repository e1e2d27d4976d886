# SPDX-License-Identifier: GPL-3.0-or-later
"""Construction of clips: quality on shown and on unseen views, CPU and wall time per stage.

    python -m benchmarks.construct                                  # the walking fox of the tests
    python -m benchmarks.construct --model fox                      # the demo's model, rendered in headless Blender
    python -m benchmarks.construct --orbit DIR [--static DIR] [--surface FILE] [--truth DIR] [--preset final]

`--truth` is an orbit folder like any other whose cameras and times are not those of the moving orbit; with
`tracks.npz` in it (`points` [T, M, 3], true places of points on the subject) the error of the motion is told as well.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from backend.evaluation.construction import evaluate_construction
from backend.evaluation.metrics import over_white
from backend.pipelines.orbit_video import construct_folders
from backend.progress import Progress, Run
from backend.splatting.construct import STAGES
from backend.splatting.observations import Observations, read_orbit_folder
from backend.splatting.rasterize import warm_up
from backend.splatting.render import render_clip
from benchmarks.report import Figure, write_report
from blender_addon.contract.arrays import read_arrays
from blender_addon.contract.clip import Clip, write_clip
from blender_addon.contract.requests import PRESETS

FOX = Path(__file__).parent.parent / "tests" / "data" / "fox_orbit"
SHEET_COLUMNS = 8


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
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="report; clip and contact sheet go beside it")
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


def measure(options: argparse.Namespace) -> int:
    """Construct, evaluate, report; 0 if all figures are met."""
    warm_up()  # compiled once per computer, so it is no part of a construction
    with tempfile.TemporaryDirectory() as folder:
        clock = StageClock()
        run = Run(Path(folder), on_progress=clock)
        cpu, wall = time.process_time(), time.monotonic()
        clip = construct_folders(
            options.orbit,
            options.static,
            options.surface,
            preset=options.preset,
            gaussians=options.gaussians,
            seed=options.seed,
            run=run,
        )
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    rows = [{"stage": stage, "CPU s": clock.cpu.get(stage), "wall s": run.stage_seconds.get(stage)} for stage in STAGES]
    rows.append({"stage": "all", "CPU s": cpu, "wall s": wall})

    moving = read_orbit_folder(options.orbit)
    truth = read_orbit_folder(options.truth) if options.truth else None
    quality = evaluate_construction(clip, moving, truth, _tracks(options.truth, clip))
    figures = [
        Figure("PSNR on the shown frames", quality["psnr_shown"], "dB", at_least=28.0),
        Figure("construction, wall time", wall, "s", at_most=90.0),
        Figure("construction, CPU time", cpu, "s"),
    ]
    if truth is not None:
        gain = quality["psnr_unseen"] - quality["psnr_unseen_frozen"]
        figures.append(Figure("PSNR on unseen views, more than the frozen clip", gain, "dB", at_least=3.0))
    figures += [Figure(name, value, "dB" if "psnr" in name else "") for name, value in quality.items()]
    if options.out:
        write_clip(options.out.with_suffix(".npz"), clip)
        contact_sheet(clip, moving).save(options.out.with_suffix(".png"))
        if truth is not None:
            contact_sheet(clip, truth).save(options.out.with_name(f"{options.out.stem}_unseen.png"))
    title = f"Construction of {options.model or options.orbit}, {options.preset}, {clip.count} Gaussians"
    write_report(title, rows, figures, options.out)
    return 0 if all(figure.met for figure in figures) else 1


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
    drawn = render_clip(clip, views.cameras)
    pictures = [np.concatenate(list(over_white(images[chosen]).numpy()), axis=1) for images in (views.images, drawn)]
    return Image.fromarray((np.concatenate(pictures) * 255).round().astype(np.uint8))


def _tracks(folder: Path | None, clip: Clip) -> np.ndarray | None:  # [T, M, 3]
    if folder is None or not (folder / "tracks.npz").exists():
        return None
    points = read_arrays(folder / "tracks.npz")["points"]
    return points if len(points) == clip.frame_count else None


if __name__ == "__main__":
    raise SystemExit(main())
