# SPDX-License-Identifier: GPL-3.0-or-later
"""The published size on a GPU: a moving orbit of 24 x 256 pixels in 50 steps with three branches, by each memory plan.

    python -m benchmarks.gpu [--steps N] [--plans NAME ...] [--out FILE.json]

Weights are random: they cost what trained ones cost. Told are seconds of the whole generation (encoders, denoising,
decoding, cutting out) and of one step, peak memory beside what was foretold, and the share of the chip's matrix rate,
which is measured beside it as the product of two large matrices in the same type. The plan "12 GB" is the one that is
chosen where 11 GiB are free, as on a card with 12 GB, with the process held to that. Without a GPU there is nothing to
measure, and it says so.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backend.models.diffusion4d import Diffusion4DNet
from backend.models.encoders import Encoders, empty_encoders
from backend.models.videomv import IMAGE, LATENT_CHANNELS, VideoMV, VideoMVConfig
from backend.pipelines import videomv_orbit
from backend.pipelines.diffusion4d_published import generate_moving, needed
from backend.pipelines.memory_plan import GIB, PLANS, MemoryPlan, Networks, choose, computing_type, release
from backend.pipelines.published_needs import need
from backend.progress import Progress, Run
from benchmarks.report import Figure, write_report
from blender_addon.contract.orbit import Orbit, orbit_cameras
from blender_addon.contract.requests import GENERATED_FRAMES

BRANCHES = 3  # conditional, unconditional, static network
SMALL_CARD = 11 * GIB  # that a card with 12 GB has left
NAMES = needed(False, False, 3.0, 0.5, False)


@dataclass(frozen=True)
class Setting:
    """What is measured: sizes of the network, the other networks, how many steps."""

    config: VideoMVConfig = IMAGE
    encoders: Callable[[torch.device, torch.dtype], Encoders] = field(default=lambda *given: random_encoders(*given))
    frames: int = GENERATED_FRAMES
    pixels: int = videomv_orbit.PIXELS
    steps: int = 50
    matrix: int = 8192  # side of the matrices whose product gives the matrix rate


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met, or if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of denoising (default: 50)")
    parser.add_argument("--plans", nargs="+", metavar="NAME", help="only these, such as 'block by block' or '12 GB'")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use: nothing was measured.")
        return 0
    device = torch.device("cuda")
    dtype = computing_type(device)
    rows, figures = [], []
    setting = Setting(steps=options.steps)
    loaded = random_networks(setting, device, dtype)
    for name, plan, limit in cases(dtype):
        if options.plans and name not in options.plans:
            continue
        row = measured(name, plan, setting, loaded, device, dtype, limit)
        rows.append(row)
        figures.append(Figure(f"memory, {name}", row["GiB"], "GiB", at_most=row["foretold GiB"]))
    write_report(f"Moving orbit of published size, {options.steps} steps", rows, figures, options.out)
    return 0 if all(figure.met for figure in figures) else 1


def cases(dtype: torch.dtype) -> list[tuple[str, MemoryPlan, int | None]]:
    """Every plan, and the one for a card with 12 GB, held to that."""
    index, _ = choose(PLANS, lambda plan: need(plan, NAMES, dtype), SMALL_CARD)
    return [(plan.name, plan, None) for plan in PLANS] + [("12 GB", PLANS[index], SMALL_CARD)]


def measured(
    name: str,
    plan: MemoryPlan,
    setting: Setting,
    loaded: Mapping[str, nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    limit: int | None = None,
) -> dict:
    """One row: a whole generation by one plan. limit: bytes of the GPU that the process may have."""
    on_gpu = device.type == "cuda"
    networks = Networks({key: lambda network=network: network for key, network in loaded.items()}, device, lambda: None)
    networks.follow(plan)
    cameras = orbit_cameras(Orbit(setting.frames), setting.pixels, setting.pixels, moving=True)
    static = disc(setting.frames, setting.pixels)
    rate = matrix_rate(setting.matrix, device, dtype)
    if on_gpu:
        release()
        torch.cuda.reset_peak_memory_stats()
        if limit:
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory)
    ends: list[float] = []

    def on_progress(progress: Progress) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), on_progress)
        start = time.perf_counter()
        generate_moving(static, cameras, "a dog runs", 5.0, networks, steps=setting.steps, dtype=dtype, run=run)
        seconds = time.perf_counter() - start
    if on_gpu and limit:
        torch.cuda.set_per_process_memory_fraction(1.0)
    networks.forget(*loaded)
    step = float(np.median(np.diff(ends))) if len(ends) > 1 else seconds  # reports follow steps
    operations = BRANCHES * forward_operations(setting)
    return {
        "plan": name,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "seconds": seconds,
        "s a step": step,
        "GiB": torch.cuda.max_memory_reserved() / GIB if on_gpu else 0.0,
        "foretold GiB": need(plan, NAMES, dtype).device_bytes / GIB,
        "TFLOP/s": operations / step / 1e12,
        "of the matrix rate": operations / step / rate,
    }


def forward_operations(setting: Setting) -> int:
    """Floating-point operations of one pass of the network, from its shapes."""
    side = setting.pixels // videomv_orbit.LATENT_PIXEL
    with torch.device("meta"):
        network = VideoMV(setting.config)
        given = {
            "x": torch.empty(1, LATENT_CHANNELS, setting.frames, side, side),
            "t": torch.empty(1, dtype=torch.int64),
            "y": torch.empty(1, 77, setting.config.context_width),
            "camera_data": torch.empty(1, setting.frames, 16),
            "image": torch.empty(1, 1, setting.config.context_width),
            "local_image": torch.empty(1, LATENT_CHANNELS, 1, side, side),
        }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**given)
    return counter.get_total_flops()


def matrix_rate(side: int, device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second in the product of two square matrices: the best of several."""
    matrix = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def random_networks(setting: Setting, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """All networks with random weights, in main memory."""
    look = setting.encoders(device, dtype)
    with device:
        made = {"moving": Diffusion4DNet(setting.config).to(dtype), "image": VideoMV(setting.config).to(dtype)}
    for network in made.values():
        getattr(network, "base", network).weights_channels_last()
    made |= {"text_encoder": look.text, "image_encoder": look.image, "vae": look.vae}
    for network in made.values():
        network.to("cpu").eval().requires_grad_(False)
    release()
    return made


def random_encoders(device: torch.device, dtype: torch.dtype) -> Encoders:
    """Of published size."""
    look = empty_encoders(dtype)
    for part in (look.vae, look.text, look.image):
        part.to_empty(device=device)
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.02)
        for module in part.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):  # positions 0, 1, ...
                setattr(module, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    return look


def disc(frames: int, pixels: int) -> np.ndarray:  # [T, H, W, 4] uint8
    """Something to see."""
    line = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    inside = np.hypot(*np.meshgrid(line, line)) < 0.6
    picture = np.where(inside[..., None], np.array([200, 90, 30, 255]), 0).astype(np.uint8)
    return np.repeat(picture[None], frames, 0)


if __name__ == "__main__":
    raise SystemExit(main())
