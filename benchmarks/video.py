# SPDX-License-Identifier: GPL-3.0-or-later
"""A video becomes a clip by the small 4DM: time of each preset, and how memory goes with the length.

    python -m benchmarks.video                                   draft and preview of 8 frames, draft of 64
    python -m benchmarks.video --cases preview:nerf:8 final:gaussians:8 --out FILE.json

The video is one of the project's own test models, filmed from the front. Each case runs in a process of its own,
whose peak of memory is reported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.report import Figure, write_report

ASSETS = Path(__file__).resolve().parent.parent / "tests" / "data" / "assets"
CASES = ("draft:gaussians:8", "preview:gaussians:8", "draft:gaussians:64")  # preset, representation, frames
LIMITS = {"draft": 3.0, "preview": 15.0}  # minutes


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="PRESET:REPRESENTATION:FRAMES")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measured(*options.one.split(":"))))
        return 0

    rows, figures = [], []
    for case in options.cases:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.video", "--one", case], stdout=subprocess.PIPE, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        limit = LIMITS.get(row["preset"])
        figures.append(Figure(f"{case}, wall time", row["wall s"] / 60, "minutes", at_most=limit))
    peaks = {(row["preset"], row["frames"]): row["peak MB"] for row in rows if row["representation"] == "gaussians"}
    if ("draft", 8) in peaks and ("draft", 64) in peaks:
        figures.append(Figure("memory, 64 frames over 8", peaks["draft", 64] / peaks["draft", 8], "times", at_most=1.5))
    write_report("A video becomes a clip", rows, figures, options.out)
    return 0 if all(figure.met for figure in figures) else 1


def measured(preset: str, representation: str, frames: str) -> dict:
    """One case, here and now."""
    from backend.pipelines import fourdiffusion
    from backend.pipelines.fourdiffusion_settings import Settings
    from backend.pipelines.small_views import SmallVideoModel
    from backend.progress import Run
    from blender_addon.contract.requests import SMALL

    model = SmallVideoModel()
    video = filmed(int(frames), model.framing.size)
    settings = Settings.for_preset(preset, representation, model=SMALL)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        run.plan(fourdiffusion.stages(settings))
        wall, cpu = time.monotonic(), time.process_time()
        clip = fourdiffusion.generate(video, "a fish swims", model, settings, run)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {
        "preset": preset,
        "representation": representation,
        "frames": int(frames),
        "Gaussians": clip.count,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "wall s": wall,
        "CPU s": cpu,
        "peak MB": peak_megabytes(),
    }


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def filmed(frames: int, side: int) -> torch.Tensor:  # [F, 4, side, side] premultiplied
    """The test fish, swimming, from its side."""
    from backend.data.baked import read_baked, read_manifest
    from backend.data.samples import View
    from backend.data.view_samples import LARGEST, render_view_sample

    entry = next(entry for entry in read_manifest(ASSETS) if "fish2" in entry["id"])
    asset = read_baked(ASSETS, entry)
    drawn = render_view_sample(asset, 0, View(size=LARGEST), [90.0, 90.0], side, times=frames)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(drawn.video, -1, 1)))


if __name__ == "__main__":
    raise SystemExit(main())
