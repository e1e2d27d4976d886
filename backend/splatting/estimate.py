# SPDX-License-Identifier: GPL-3.0-or-later
"""What a construction will cost, told before it starts: memory and time, from the sizes of its inputs."""

from dataclasses import dataclass

import psutil

from backend.progress import UserError
from backend.splatting.config import ConstructConfig

MEGABYTE = 1e6
# Memory, fitted to the peak resident size of processes with 5,000 to 100,000 Gaussians, 24 to 96 frames of 128 to 256
# pixels (0.59 to 1.13 GB); it was off by less than a tenth.
PROGRAM_BYTES = 540 * MEGABYTE  # interpreter, torch, compiled kernels
PICTURE_COPIES = 3  # as given, and made smaller twice
PIXEL_BYTES = 16  # RGBA float32
GAUSSIAN_BYTES = 1_000  # parameters, gradients, Adam's moments, projections and tile lists of one picture
# Time of one core for one picture of an iteration, forward and backward.
GAUSSIAN_SECONDS, PIXEL_SECONDS, STEP_SECONDS = 9e-7, 2e-7, 3e-3
RARE_KIND = "carried"  # of motion: few subjects travel enough for it to be tried
GPU_STEP_SECONDS = 1.5e-2  # all pictures at once; small fits are bound by launches, not by size


@dataclass(frozen=True)
class Estimate:
    """What a construction needs."""

    memory: float  # bytes of main memory at the peak, the program itself included
    seconds: float  # of one core; on a GPU, of its time

    def sentence(self, engine: str = "") -> str:
        """For people: `About 40 s and 0.7 GB`."""
        seconds = max(5 * round(self.seconds / 5), 5)
        time = f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        where = f" on {engine}" if engine else ""
        return f"About {time}{where}, {self.memory / 1e9:.1f} GB of memory"


def estimate(
    config: ConstructConfig,
    moving: tuple[int, int, int],
    static: tuple[int, int, int] | None = None,
    *,
    on_gpu: bool = False,
) -> Estimate:
    """The cost of a construction from pictures of `moving` and `static`: (views, height, width) each."""
    given = sum(views * height * width for views, height, width in filter(None, (moving, static)))
    at_once = max(config.fine_frames, config.shape_frames) if not on_gpu else 1
    memory = PROGRAM_BYTES + PICTURE_COPIES * PIXEL_BYTES * given + GAUSSIAN_BYTES * at_once * config.gaussians
    usual = [kind for kind in config.hypotheses if kind != RARE_KIND]
    tried = len(usual) + len(config.mirrors) if config.motion == "bases" else 1
    steps = config.shape_steps + tried * config.coarse_steps + config.fine_steps
    if on_gpu:
        return Estimate(memory, steps * GPU_STEP_SECONDS)

    def picture(gaussians: int, pixels: int) -> float:
        height, width = moving[1:]
        shrink = min(pixels / max(height, width), 1.0)
        return gaussians * GAUSSIAN_SECONDS + height * width * shrink**2 * PIXEL_SECONDS

    fine = picture(config.gaussians, config.fine_pixels)
    coarse = picture(min(config.coarse_gaussians, config.gaussians), config.coarse_pixels)
    seconds = steps * STEP_SECONDS + config.shape_steps * config.shape_frames * fine
    seconds += tried * config.coarse_steps * config.coarse_frames * coarse
    seconds += config.fine_steps * config.fine_frames * fine * (1 + (config.static_chance if static else 0))
    return Estimate(memory, seconds)


def demand_memory(needed: Estimate, config: ConstructConfig, available: float | None = None) -> None:
    """Refuse a construction that this computer has no room for.

    `available`: bytes; by default what programs can have without swapping.

    Raises:
        UserError: too little memory is free; says what to lower.
    """
    available = psutil.virtual_memory().available if available is None else available
    if needed.memory - PROGRAM_BYTES <= available:  # the program is loaded already when this is asked
        return
    raise UserError(
        "too_little_memory",
        f"The construction needs about {needed.memory / 1e9:.1f} GB of memory, "
        f"of which {(available + PROGRAM_BYTES) / 1e9:.1f} GB are free.",
        f"Close other programs, or take fewer frames, smaller pictures or fewer Gaussians than {config.gaussians:,}.",
    )
