# SPDX-License-Identifier: GPL-3.0-or-later
"""One forward pass of VideoMV's networks, beside the public code's time.

    python -m benchmarks.videomv [--out FILE.json]

On the CPU: the reduced network that the public code was timed with (24 frames of 16 x 16 latents, 77 words), CPU time
on one thread. A product of two 768 x 768 matrices was timed beside it, and is here: times are compared in such
products. On a CUDA device: the published size in bf16, wall time and memory.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from backend.models.videomv import IMAGE, TEXT, VideoMV, VideoMVConfig, describe
from benchmarks.report import Figure, cpu_milliseconds, write_report

REDUCED = VideoMVConfig(width=32, multipliers=(1, 1, 1, 2), heads=4, head_width=16)
PUBLIC_SECONDS, PUBLIC_PRODUCT = 0.9496534, 0.0113769  # of alibaba/VideoMV c434922, and of the product then
GIB = 2**30


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.videomv", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    row, figure = reduced()
    rows = [row]
    if torch.cuda.is_available():
        rows += [published(name, config) for name, config in (("text", TEXT), ("image", IMAGE))]
    write_report("VideoMV, one forward pass", rows, [figure], options.out)
    return 0 if figure.met else 1


@torch.no_grad()
def reduced() -> tuple[dict, Figure]:
    """The reduced network on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    net, given = VideoMV(REDUCED).eval(), inputs(REDUCED, 16)
    square = torch.randn(768, 768)
    product = cpu_milliseconds(lambda: square @ square, 50)
    spent = cpu_milliseconds(lambda: net(**given), 20)
    torch.set_num_threads(threads)
    row = {"network": "text, reduced", "device": "CPU, 1 thread", "ms": spent, "products of 768": spent / product}
    figure = Figure("one pass", spent / product, "products", at_most=PUBLIC_SECONDS / PUBLIC_PRODUCT)
    return {**row, "GiB": None, "foretold GiB": None}, figure


@torch.no_grad()
def published(name: str, config: VideoMVConfig) -> dict:
    """The published size on the GPU: 24 frames of 256 x 256 pixels, with random weights."""
    with torch.device("cuda"):
        net = VideoMV(config).to(torch.bfloat16).eval()
        net.weights_channels_last()
        given = inputs(config, 32)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        net(**given)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    row = {"network": f"{name}, published", "device": torch.cuda.get_device_name(), "ms": 1000 * best}
    memory = {"GiB": torch.cuda.max_memory_allocated() / GIB, "foretold GiB": describe(config).total / GIB}
    return {**row, "products of 768": None, **memory}


def inputs(config: VideoMVConfig, size: int) -> dict[str, Tensor]:
    """Random inputs of 24 frames and 77 words."""
    given = {
        "x": torch.randn(1, 4, 24, size, size),
        "t": torch.tensor([500]),
        "y": torch.randn(1, 77, config.context_width),
        "camera_data": torch.randn(1, 24, 16),
    }
    if config.image:
        given |= {"local_image": torch.randn(1, 4, 1, size, size), "image": torch.randn(1, 1, config.context_width)}
    return given


if __name__ == "__main__":
    raise SystemExit(main())
