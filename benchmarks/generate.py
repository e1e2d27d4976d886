# SPDX-License-Identifier: GPL-3.0-or-later
"""Generation of 24 moving frames by kinesplat-small: wall and CPU time by sampler, steps, threads and precision.

    python -m benchmarks.generate                         # the still fox of the tests, 96 pixels
    python -m benchmarks.generate --orbit FOLDER ... --steps 12 24 --threads 1 2 --sampler ddim --out FILE.json

bf16 is what the program uses where the processor has matrix units for it (AMX); elsewhere only float32 is measured.
"""

import argparse
import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from backend.models.kinesplat_small import FOLDER, KinesplatSmall, load
from backend.models.motion_magnitude import magnitude_of
from backend.models.precision import fast_bf16
from backend.pipelines import diffusion4d
from backend.pipelines.orbit_pictures import as_pictures
from backend.splatting.observations import read_orbit_folder
from benchmarks.report import Figure, write_report
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import BOUNDS, GENERATED_FRAMES

FOX = Path(__file__).parent.parent / "tests" / "data" / "fox_orbit" / "static"
PROMPT, MAGNITUDE = "a fox walks", BOUNDS["motion"].default
DEFAULT_STEPS = int(BOUNDS["steps"].default)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--orbit", nargs="+", type=Path, default=[FOX], metavar="FOLDER", help="static orbits (default: the fox)"
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument(
        "--weights", type=Path, default=FOLDER, metavar="DIR", help="other weights than the shipped ones"
    )
    parser.add_argument("--sampler", nargs="+", choices=("ddim", "dpm"), default=["ddim", "dpm"])
    parser.add_argument("--steps", nargs="+", type=int, default=[DEFAULT_STEPS // 2, DEFAULT_STEPS], metavar="N")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}), metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)

    model = load(options.weights)
    orbits = {folder: read_orbit(folder) for folder in options.orbit}
    precisions = ["float32", "bf16"] if fast_bf16("cpu") else ["float32"]
    static, cameras = orbits[options.orbit[0]]
    diffusion4d.generate_moving(static, cameras, options.prompt, MAGNITUDE, steps=1, model=model)  # warms up
    rows = [
        {"orbit": str(folder), **measure(model, *orbit, options.prompt, sampler, steps, threads, precision)}
        for folder, orbit in orbits.items()
        for precision in precisions
        for threads in options.threads
        for sampler in options.sampler
        for steps in options.steps
    ]
    standard = [row for row in rows if row["steps"] == DEFAULT_STEPS and row["precision"] == precisions[-1]]
    figures = [
        Figure(f"24 frames of {row['orbit']}, {row['threads']} threads", row["wall s"], "s", at_most=60.0)
        for row in standard
        if row["sampler"] == "ddim" and row["threads"] == max(options.threads)
    ]
    title = f"Generation of {len(static)} frames of {cameras.width} pixels by {model.name}, m = {MAGNITUDE:g}"
    write_report(title, rows, figures, options.out)
    return 0 if all(figure.met for figure in figures) else 1


def read_orbit(folder: Path) -> tuple[np.ndarray, Cameras]:
    """The still pictures of an orbit folder without further views, and the cameras of the frames to be made of them."""
    seen = read_orbit_folder(folder).subset(np.arange(GENERATED_FRAMES))
    static = as_pictures(seen.images.permute(0, 3, 1, 2)[None])
    return static, replace(seen.cameras, times=np.linspace(0, 1, len(static)))


def measure(
    model: KinesplatSmall,
    static: np.ndarray,
    cameras: Cameras,
    prompt: str,
    sampler: str,
    steps: int,
    threads: int,
    precision: str,
) -> dict:
    """One row of the table: generate once."""
    torch.set_num_threads(threads)
    plain = mock.patch.object(diffusion4d, "matrix_precision", return_value=contextlib.nullcontext())
    with plain if precision == "float32" else contextlib.nullcontext():
        cpu, wall = time.process_time(), time.monotonic()
        moving = diffusion4d.generate_moving(
            static, cameras, prompt, MAGNITUDE, steps=steps, sampler=sampler, model=model
        ).pictures
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return {
        "precision": precision,
        "threads": threads,
        "sampler": sampler,
        "steps": steps,
        "wall s": wall,
        "CPU s": cpu,
        "m measured": magnitude_of(moving, static),
    }


if __name__ == "__main__":
    raise SystemExit(main())
