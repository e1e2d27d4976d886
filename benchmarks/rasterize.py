# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time of the rasterizer, forward and backward with projection, against plain tiled torch in the same run.

    python run.py bench rasterize [--out FILE.json]

The scene is an uneven surface that fills most of the picture; the loss is the squared difference to noise.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from backend.splatting.rasterize import get_threads, rasterize, set_threads, warm_up
from benchmarks.report import Figure, cpu_milliseconds, write_report
from benchmarks.tiled_torch import rasterize_tiled

CASES = [(count, side) for side in (128, 256) for count in (2_000, 10_000, 50_000)]
COMPARED = [(2_000, 128), (10_000, 128)]  # with plain torch, which takes its time
REPEATS = 20


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit code says whether the needed figures are met."""
    parser = argparse.ArgumentParser(prog="bench rasterize", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the figures there")
    out = parser.parse_args(arguments).out

    threads_before = torch.get_num_threads(), get_threads()
    torch.set_num_threads(1)
    warm_up(print)
    try:
        rows = [measure(count, side) for count, side in CASES]
    finally:
        torch.set_num_threads(threads_before[0])
        set_threads(threads_before[1])

    needed = next(row for row in rows if (row["Gaussians"], row["pixels"]) == (10_000, "128 x 128"))
    figures = [
        Figure("10k Gaussians, 128 x 128, one thread", needed["1 thread"], "CPU ms", at_most=30.0),
        Figure("times faster than plain tiled torch there", needed["ratio"], "x", at_least=25.0),
    ]
    write_report("Rasterizer, forward + backward, CPU ms", rows, figures, out)
    return 0 if all(figure.met for figure in figures) else 1


def measure(count: int, side: int) -> dict:
    """One row: CPU milliseconds with one and two threads, and of plain torch where it is compared."""
    scene = bumpy_sphere(count)
    viewmat, K = camera(side)  # noqa: N806
    target = torch.rand(side, side, 4, generator=torch.Generator().manual_seed(1))

    def ours() -> Tensor:
        colors, alphas, _ = rasterize(*scene, viewmat[None], K[None], side, side)
        return torch.cat([colors, alphas], dim=-1)[0]

    def plain() -> Tensor:
        return rasterize_tiled(*scene, viewmat, K, side, side)

    row: dict = {"Gaussians": count, "pixels": f"{side} x {side}"}
    for threads in (1, 2):
        set_threads(threads)
        row[f"{threads} thread{'s' * (threads > 1)}"] = cpu_milliseconds(iteration(ours, scene, target), REPEATS)
    row["plain torch"] = row["ratio"] = row["largest difference"] = None
    if (count, side) in COMPARED:
        with torch.no_grad():
            row["largest difference"] = (ours() - plain()).abs().max().item()
        row["plain torch"] = cpu_milliseconds(iteration(plain, scene, target), repeats=5)
        row["ratio"] = row["plain torch"] / row["1 thread"]
    return row


def iteration(draw: Callable[[], Tensor], scene: list[Tensor], target: Tensor) -> Callable[[], None]:
    """One step of a fit without the optimizer."""

    def step() -> None:
        for tensor in scene:
            tensor.grad = None
        torch.nn.functional.mse_loss(draw(), target).backward()

    return step


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
