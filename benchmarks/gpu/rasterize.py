# SPDX-License-Identifier: GPL-3.0-or-later
"""gsplat on CUDA against the CPU kernels: the same picture and the same gradients, and how many times faster."""

from collections.abc import Iterator

import torch
from torch import Tensor

from backend.splatting.engine import choose_engine
from backend.splatting.rasterize import get_threads, warm_up
from backend.splatting.rasterize.gsplat_trial import MOST_DIFFERENCE
from benchmarks.gpu.setting import Clock, Setting, wait
from benchmarks.rasterize import fit_of, least_times, step
from benchmarks.report import Figure


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """A row by number of Gaussians and size of the picture; differences are mean absolute, relative to the mean."""
    engine = choose_engine("auto" if setting.device.type == "cuda" else "cpu", print)
    for sentence in engine.notes:
        clock.tell(sentence)
    warm_up(print)
    for count, side in setting.rasterize:
        if not clock.case(f"{count} Gaussians, {side} px", 3 * setting.rasterize_seconds):
            continue
        row = {"Gaussians": count, "pixels": side, "threads": get_threads()}
        row["CPU ms"] = _wall("cpu", count, side, setting)
        if not engine.is_gpu:
            yield row
            continue
        row["gsplat ms"] = _wall("cuda", count, side, setting)
        row["times faster"] = row["CPU ms"] / row["gsplat ms"]
        here, there = _drawn("cpu", count, side), _drawn("cuda", count, side)
        differences = [float((a - b).abs().mean() / a.abs().mean()) for a, b in zip(here, there, strict=True)]
        row["difference of the picture"], row["of gradients, at most"] = differences[0], max(differences[1:])
        yield row
        what = f"difference to the CPU kernels, {count} Gaussians, {side} px"
        yield Figure(what, max(differences), "of the mean", at_most=MOST_DIFFERENCE)


def _wall(device: str, count: int, side: int, setting: Setting) -> float:
    work = step(*fit_of(count, side, device=device))

    def waited() -> None:
        work()
        wait(torch.device(device))

    return least_times(waited, seconds=setting.rasterize_seconds)[1]


def _drawn(device: str, count: int, side: int) -> list[Tensor]:
    """The picture, and the gradients of all that it was made of."""
    draw, scene, target = fit_of(count, side, device=device)
    picture = draw()
    torch.nn.functional.mse_loss(picture, target).backward()
    return [picture.detach().cpu(), *(tensor.grad.cpu() for tensor in scene)]
