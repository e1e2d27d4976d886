# SPDX-License-Identifier: GPL-3.0-or-later
"""A small dynamic radiance field fitted to a known moving object on the CPU: how good, how fast, and why.

    python run.py bench nerf [--seconds S] [--out FILE.json]

The object is an animated asset of the tests, drawn by the rasterizer of training at 8 times from 8 sides; the field
is judged by views between these, at the same times. The steps are plain ones: random pixels, squared error, the field's
own priors. Beside it, the same step by plain torch, and what hash grids cost at the published size. Times are CPU time
on one thread.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.compiled import compile_all
from backend.data.fast_renderer import FastRenderer
from backend.nerf import losses
from backend.nerf.field import BETAS, EPSILON, PUBLISHED, SMALL, Field, SpaceTimeHash
from backend.nerf.hash_grid import HashGrid
from backend.nerf.occupancy import Occupancy
from backend.nerf.rendering import Quality, rays_of, render
from backend.nerf.to_surface import camera_grid, pictures, surface
from backend.pictures import over_white, tiled
from benchmarks.report import Figure, cpu_milliseconds, write_report
from blender_addon.contract.orbit import Cameras

ASSETS = Path(__file__).resolve().parent.parent / "tests" / "data" / "assets"
ASSET = "quaternius_platformer_game_pack/bouncer"
TIMES, SIDES, PIXELS = 8, 8, 128
ELEVATIONS = (0.0, 30.0)
CAMERA = {"distance": 2.7, "fov": 39.6, "pixels": PIXELS}
RAYS = 2_048  # per step
NETWORK_RATE = 1e-2  # ten times 4Diffusion's: some hundred steps instead of 35,000
QUALITY = Quality(samples=192)
SECONDS = 60.0
SAMPLES = 50_000  # of the grids' figures


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit code says whether the needed figures are met."""
    parser = argparse.ArgumentParser(prog="bench nerf", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="CPU time of the fit")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the figures there, and a picture")
    options = parser.parse_args(arguments)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compile_all()
        rows = grid_costs()
        shown, unseen = truths()
        fit = Fit(shown)
        curve = fit.run(options.seconds, unseen)
        kernels_ms, torch_ms = fit.step_costs()
        median, stray = surface_errors(surface(fit.field, fit.occupancy, 5_000, quality=QUALITY).points)
    finally:
        torch.set_num_threads(threads)
    rows += [{"what": f"PSNR of unseen views after {row['seconds']:.0f} s", "dB or ms": row["psnr"]} for row in curve]
    figures = [
        Figure(f"unseen views after {options.seconds:.0f} s of CPU time", curve[-1]["psnr"], "dB", at_least=25.0),
        Figure(f"a step of {RAYS} rays, kernels", kernels_ms, "CPU ms"),
        Figure(f"a step of {RAYS} rays, plain torch", torch_ms, "CPU ms"),
        Figure("times faster than plain torch", torch_ms / kernels_ms, "x", at_least=3.0),
        Figure("surface points from the true surface, median", median, "of size", at_most=0.02),
        Figure("surface points beyond 0.05 of it", stray, "of all", at_most=0.15),
    ]
    write_report("Dynamic radiance field", rows, figures, options.out)
    if options.out:
        sheet(fit, unseen, options.out.with_suffix(".png"))
    return 0 if all(figure.met for figure in figures) else 1


def truths() -> tuple[tuple[Tensor, Cameras], tuple[Tensor, Cameras]]:
    """Pictures [V, H, W, 4] (colour times alpha) and cameras: those to fit, and those between them to judge by."""
    manifest = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in manifest["assets"] if entry["id"] == ASSET)
    renderer = FastRenderer(ASSETS, entry, PIXELS)
    shown = camera_grid(TIMES, SIDES, ELEVATIONS, **CAMERA)
    unseen = camera_grid(TIMES, 2, (15.0,), azimuth_start=180 / SIDES, **CAMERA)
    found = []
    for cameras in (shown, unseen):
        # The asset is stored at 24 frames: pictures are asked for at those times.
        cameras = replace(cameras, times=np.round(cameras.times * 23) / 23)
        images = torch.from_numpy(renderer.pictures(0, cameras).astype(np.float32) / 255)
        images[..., :3] *= images[..., 3:]
        found.append((images, cameras))
    return found[0], found[1]


class Fit:
    """A fit of random pixels of all pictures."""

    def __init__(self, shown: tuple[Tensor, Cameras]) -> None:
        torch.manual_seed(0)
        images, cameras = shown
        self.pixels, self.rays = images.flatten(0, 2), rays_of(cameras)
        self.field, self.occupancy = Field(SpaceTimeHash(SMALL)), Occupancy()
        groups = self.field.parameter_groups(network_rate=NETWORK_RATE)
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON)
        self.generator = torch.Generator().manual_seed(0)
        self.iteration = 0

    def step(self) -> None:
        """One iteration."""
        self.occupancy.update(self.field, self.iteration, self.generator)
        chosen = torch.randint(len(self.pixels), (RAYS,), generator=self.generator)
        rendered = render(
            self.field, self.occupancy, self.rays.at(chosen), QUALITY, jitter=True, generator=self.generator
        )
        target = self.pixels[chosen]
        background = torch.rand(RAYS, 3, generator=self.generator)
        error = rendered.over(background) - (target[:, :3] + (1 - target[:, 3:]) * background)
        loss = error.square().mean() + 1e-4 * losses.opaqueness(rendered.opacity)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1

    def run(self, seconds: float, unseen: tuple[Tensor, Cameras]) -> list[dict]:
        """Steps for that much CPU time; PSNR at a quarter, half and all of it (looking does not count)."""
        rows, spent = [], 0.0
        for until in (seconds / 4, seconds / 2, seconds):
            while spent < until:
                start = time.process_time()
                self.step()
                spent += time.process_time() - start
            rows.append({"seconds": spent, "iterations": self.iteration, "psnr": self.psnr(unseen)})
            print(f"{spent:.0f} s: {self.iteration} iterations, {rows[-1]['psnr']:.1f} dB", flush=True)
        return rows

    def psnr(self, truth: tuple[Tensor, Cameras]) -> float:
        """Mean over the pictures, on white."""
        images, cameras = truth
        seen = pictures(self.field, self.occupancy, cameras, QUALITY)
        error = over_white(seen) - over_white(images)
        return float(-10 * error.square().flatten(1).mean(dim=1).log10().mean())

    def step_costs(self) -> tuple[float, float]:
        """CPU milliseconds of a step in the middle of the fit: with the kernels, with plain torch."""
        costs = []
        for use_kernels in (True, False):
            for module in self.field.modules():
                if isinstance(module, HashGrid):
                    module.use_kernels = use_kernels
            self.iteration = 1_001  # no update of the occupancy among those that are measured
            costs.append(cpu_milliseconds(self.step, repeats=5))
        return costs[0], costs[1]


def grid_costs() -> list[dict]:
    """Look-up and gradient of one grid, SAMPLES samples."""
    rows = []
    for name, config in (("published", PUBLISHED), ("small", SMALL)):
        for dimensions in (3, 4):
            grid = HashGrid(dimensions, config)
            positions = torch.rand(SAMPLES, dimensions) * 0.5 + 0.25
            for path in ("kernels", "torch"):
                grid.use_kernels = path == "kernels"
                cost = cpu_milliseconds(lambda grid=grid, positions=positions: grid(positions).sum().backward(), 3)
                rows.append({"what": f"{name} grid, {dimensions}D, {path}, forward + backward", "dB or ms": cost})
    return rows


def surface_errors(points: np.ndarray) -> tuple[float, float]:
    """How far points are from dense samples of the true surface at time 0: the median, and the share beyond 0.05.

    No camera sees the object from below, so that the field may be anything there.
    """
    from scipy.spatial import cKDTree

    manifest = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in manifest["assets"] if entry["id"] == ASSET)
    true = FastRenderer(ASSETS, entry, PIXELS).surface(0).points
    distances = cKDTree(true).query(points)[0]
    return float(np.median(distances)), float((distances > 0.05).mean())


def sheet(fit: Fit, truth: tuple[Tensor, Cameras], path: Path) -> None:
    """True pictures above those of the field."""
    images, cameras = truth
    views = np.arange(0, len(cameras.times), max(len(cameras.times) // 8, 1))
    seen = pictures(fit.field, fit.occupancy, cameras, QUALITY)
    rows = torch.stack([one[torch.from_numpy(views)] for one in (images, seen)])
    Image.fromarray(tiled(over_white(rows))).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
