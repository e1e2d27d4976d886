# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of the rasterizer, forward and backward: by Gaussians, pixels, modes and threads, and against others.

    python run.py bench rasterize [--out FILE.json]

The scene is an uneven surface that fills most of the picture, in one camera; the loss is the squared difference to
noise. Others, in the same run, are plain tiled torch and, where there is one, gsplat on a CUDA device. Times are the
least of several: what the work costs; the rest is noise of the machine.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.splatting.bases import BasesMotion
from backend.splatting.config import ConstructConfig
from backend.splatting.engine import choose_engine
from backend.splatting.gaussians import discs
from backend.splatting.motion import TimeBasis
from backend.splatting.rasterize import get_threads, rasterize, set_threads, warm_up
from backend.splatting.scene import Pictures
from benchmarks.report import Figure, write_report
from benchmarks.tiled_torch import rasterize_tiled
from blender_addon.contract.orbit import Orbit, orbit_cameras

COUNTS = (2_000, 10_000, 50_000, 200_000)  # Gaussians, at PIXELS
SIDES = (64, 128, 256, 512)  # pixels, with COUNT Gaussians
COUNT, PIXELS = 10_000, 256
MODES = {  # beside plain RGB
    "RGB, antialiased": {"rasterize_mode": "antialiased"},
    "RGB and depth": {"render_mode": "RGB+D"},
    "harmonics of degree 1": {"sh_degree": 1},
    "harmonics of degree 3": {"sh_degree": 3},
    "8 channels": {"channels": 8},
    "32 channels": {"channels": 32},
}
COMPARED = [(2_000, 128), (10_000, 128), (10_000, 256)]  # with plain torch, which takes its time
REPEATS, SECONDS = 25, 8.0  # per figure: whichever comes first


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit code says whether the needed figures are met."""
    parser = argparse.ArgumentParser(prog="bench rasterize", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the figures there")
    out = parser.parse_args(arguments).out

    threads_before = torch.get_num_threads(), get_threads()
    torch.set_num_threads(1)
    warm_up(print)
    try:
        rows = measure_cpu() + compare()
        engine = choose_engine("auto", print)
        rows += measure_cuda() if engine.is_gpu else []
        iteration_ms = full_iteration(COUNT, PIXELS)
    finally:
        torch.set_num_threads(threads_before[0])
        set_threads(threads_before[1])

    def cpu_ms(count: int, side: int) -> float:
        return next(
            row["CPU ms"] for row in rows if (row["Gaussians"], row["pixels"], row["threads"]) == (count, side, 1)
        )

    by_count = exponent(COUNTS, [cpu_ms(count, PIXELS) for count in COUNTS])
    by_pixels = exponent([side**2 for side in SIDES], [cpu_ms(COUNT, side) for side in SIDES])
    ratio = next(row["ratio"] for row in rows if (row["Gaussians"], row["pixels"], row["what"]) == (10_000, 128, TORCH))
    figures = [
        Figure("10k Gaussians, 128 x 128, one thread", cpu_ms(10_000, 128), "CPU ms", at_most=30.0),
        Figure("times faster than plain tiled torch there", ratio, "x", at_least=25.0),
        Figure("growth with Gaussians: CPU time ~ N ^", by_count, "", at_most=1.0),
        Figure("growth with pixels: CPU time ~ pixels ^", by_pixels, "", at_most=1.0),
        Figure("a whole step of a fit, 10k Gaussians, 256 x 256, one thread", iteration_ms, "CPU ms", at_most=60.0),
    ]
    write_report("Rasterizer, forward + backward, one picture", rows, figures, out)
    return 0 if all(figure.met for figure in figures) else 1


CPU, TORCH, CUDA = "CPU kernels", "plain torch", "gsplat, CUDA"


def measure_cpu() -> list[dict]:
    """Our kernels: by Gaussians, by pixels, by mode with one thread, then by threads."""
    cases = [(count, PIXELS, 1, "", {}) for count in COUNTS]
    cases += [(COUNT, side, 1, "", {}) for side in SIDES if side != PIXELS]
    cases += [(COUNT, PIXELS, 1, mode, options) for mode, options in MODES.items()]
    threads = 2
    while threads <= (os.cpu_count() or 1):
        cases += [(count, PIXELS, threads, "", {}) for count in (COUNT, COUNTS[-1])]
        threads *= 2
    rows = []
    for count, side, threads, mode, options in cases:
        set_threads(threads)
        cpu, wall = least_times(step(*fit_of(count, side, **options)))
        rows.append(row(f"{CPU}, {mode}" if mode else CPU, count, side, threads, cpu, wall))
    return rows


def compare() -> list[dict]:
    """Plain torch, how many times longer it takes than our kernels, and how far its picture is from ours."""
    set_threads(1)
    rows = []
    for count, side in COMPARED:
        draw, scene, target = fit_of(count, side)
        viewmat, K = camera(side)  # noqa: N806

        def plain(scene=scene, viewmat=viewmat, K=K, side=side) -> Tensor:  # noqa: N803
            return rasterize_tiled(*scene, viewmat, K, side, side)

        with torch.no_grad():
            difference = (draw() - plain()).abs().max().item()
        ours, _ = least_times(step(draw, scene, target))
        cpu, wall = least_times(step(plain, scene, target), repeats=4)
        rows.append(row(TORCH, count, side, 1, cpu, wall, cpu / ours, difference))
    return rows


def measure_cuda() -> list[dict]:
    """gsplat on the GPU, by Gaussians and by pixels; its time is that of the wall."""
    cases = [(count, PIXELS) for count in COUNTS] + [(COUNT, side) for side in SIDES if side != PIXELS]
    rows = []
    for count, side in cases:
        work = step(*fit_of(count, side, device="cuda"))

        def waited(work=work) -> None:
            work()
            torch.cuda.synchronize()

        rows.append(row(CUDA, count, side, None, None, least_times(waited)[1]))
    return rows


def full_iteration(count: int, side: int) -> float:
    """CPU ms of a whole step of a fit: poses of 128 control points, their blend, rasterizer, loss, priors, Adam."""
    set_threads(1)
    means, *_, colors = (0.5 * tensor.detach() for tensor in bumpy_sphere(count))  # clip space is smaller
    normals = torch.nn.functional.normalize(means, dim=-1)
    gaussians = discs(means.numpy(), normals.numpy(), colors.numpy()).require_grad()
    motion = BasesMotion(gaussians.means.detach(), TimeBasis(True, 6), ConstructConfig())
    cameras = orbit_cameras(Orbit(frames=4), side, side, moving=True)
    images = torch.rand(4, side, side, 4, generator=torch.Generator().manual_seed(1))
    pictures = Pictures(images, torch.from_numpy(cameras.viewmats()).float(), torch.from_numpy(cameras.Ks).float())
    leaves = [*gaussians.tensors().values(), *motion.parameters().values()]
    optimizer = torch.optim.Adam(leaves, lr=1e-6, fused=True)
    view, random = torch.tensor([1]), np.random.default_rng(0)
    moment = torch.from_numpy(np.asarray(cameras.times)).float()[view]

    def work() -> None:
        optimizer.zero_grad()
        loss = pictures.loss(view, motion.moved(moment, gaussians), gaussians, 0.5) + motion.prior(0.5, random)
        loss.backward()
        optimizer.step()

    return least_times(work)[0]


def fit_of(
    count: int, side: int, *, channels: int = 3, device: str = "cpu", **modes: object
) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    """How the scene is drawn, its Gaussians, and what is to come out."""
    *geometry, colors = bumpy_sphere(count)
    random = torch.Generator().manual_seed(1)
    if "sh_degree" in modes:
        colors = 0.3 * torch.randn(count, (modes["sh_degree"] + 1) ** 2, 3, generator=random)
    elif channels != 3:
        colors = torch.rand(count, channels, generator=random)
    scene = [tensor.detach().to(device).requires_grad_() for tensor in (*geometry, colors)]
    viewmat, K = (tensor.to(device) for tensor in camera(side))  # noqa: N806

    def draw() -> Tensor:
        pictures, alphas, _ = rasterize(*scene, viewmat[None], K[None], side, side, **modes)
        return torch.cat([pictures, alphas], dim=-1)[0]

    with torch.no_grad():
        target = torch.rand(draw().shape, generator=random).to(device)
    return draw, scene, target


def step(draw: Callable[[], Tensor], scene: list[Tensor], target: Tensor) -> Callable[[], None]:
    """One step of a fit without the optimizer."""

    def work() -> None:
        for tensor in scene:
            tensor.grad = None
        torch.nn.functional.mse_loss(draw(), target).backward()

    return work


def least_times(work: Callable[[], None], repeats: int = REPEATS, seconds: float = SECONDS) -> tuple[float, float]:
    """The least CPU time (of all threads) and the least wall time of one call, ms, after one that does not count."""
    work()
    cpu, wall = [], []
    begin = time.monotonic()
    while len(cpu) < 2 or (len(cpu) < repeats and time.monotonic() - begin < seconds):
        cpu_start, wall_start = time.process_time(), time.monotonic()
        work()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.monotonic() - wall_start)
    return 1000 * min(cpu), 1000 * min(wall)


def row(
    what: str,
    count: int,
    side: int,
    threads: int | None,
    cpu: float | None,
    wall: float,
    ratio: float | None = None,
    difference: float | None = None,
) -> dict:
    """One line of the table."""
    return {
        "what": what,
        "Gaussians": count,
        "pixels": side,
        "threads": threads,
        "CPU ms": cpu,
        "wall ms": wall,
        "ratio": ratio,
        "largest difference": difference,
    }


def exponent(sizes: tuple[int, ...] | list[int], times: list[float]) -> float:
    """The e of time ~ size^e that fits best; 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def bumpy_sphere(count: int) -> list[Tensor]:
    """Means, quats, scales, opacities, colors: about as far apart as they are large, all opacities, all directions."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    radius = 0.75 + 0.12 * torch.sin(5 * direction[:, :1]) * torch.cos(4 * direction[:, 1:2])
    means = direction * radius + 0.01 * torch.randn(count, 3, generator=generator)
    quats = torch.randn(count, 4, generator=generator)
    spacing = math.sqrt(4 * math.pi * 0.75**2 / count)
    scales = spacing * (0.35 + 0.9 * torch.rand(count, 3, generator=generator)) * torch.tensor([0.4, 1.0, 1.0])
    opacities = 0.08 + 0.9 * torch.rand(count, generator=generator)
    colors = torch.rand(count, 3, generator=generator)
    return [tensor.requires_grad_() for tensor in (means, quats, scales, opacities, colors)]


def camera(side: int) -> tuple[Tensor, Tensor]:
    """A view matrix [4, 4] and intrinsics [3, 3] that put the sphere in the middle of the picture."""
    viewmat = torch.eye(4)
    viewmat[2, 3] = 3.0
    focal = 0.5 * side / math.tan(math.radians(35) / 2)
    return viewmat, torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])


if __name__ == "__main__":
    raise SystemExit(main())
