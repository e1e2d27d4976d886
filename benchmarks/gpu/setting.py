# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured: device, type and sizes, networks with random weights; and how long there is."""

import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:  # each section imports what it needs when it begins, as packages may be missing
    from backend.splatting.config import ConstructConfig

ROOT = Path(__file__).resolve().parents[2]
FOX = ROOT / "tests" / "data" / "fox_orbit"
ASSETS = ROOT / "tests" / "data" / "assets"
GIB = 2**30


class Clock:
    """The time there is, and what was told on the way."""

    def __init__(self, minutes: float | None = None) -> None:
        """Without `minutes` there is as much as it takes."""
        self._start, self._budget = time.monotonic(), None if minutes is None else 60 * minutes
        self.told: list[str] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def allows(self, seconds: float) -> bool:
        """Whether so much is left."""
        return self._budget is None or self.elapsed + seconds <= self._budget

    def case(self, what: str, seconds: float) -> bool:
        """Whether a case of a section may begin; tells that it was left out where it may not."""
        if self.allows(seconds):
            return True
        self.tell(f"Left out, as the time was nearly up: {what}.")
        return False

    def tell(self, sentence: str) -> None:
        """Something that belongs beside the table."""
        if sentence not in self.told:
            self.told.append(sentence)


@dataclass(frozen=True)
class Training:
    """A training run whose throughput is measured."""

    config: str  # name of a configuration
    changes: dict = field(default_factory=dict)  # of its fields
    seconds: float = 40.0
    steps: int | None = None  # in the place of the seconds
    clips_per_second: float | None = None  # figure; or else the share of the matrix rate


@dataclass(frozen=True)
class Setting:
    """Sizes and networks; `published` makes the real ones, tests make small ones."""

    device: torch.device
    dtype: torch.dtype  # that the large networks compute in
    make: Mapping[str, Callable[[], nn.Module]]  # networks by name, see `networks.py`
    operations: Mapping[str, Callable[[], float]]  # of one pass of `orbit` (one branch) and of `fourdm` (both)
    frames: int = 24
    pixels: int = 256
    steps: int = 50  # of denoising an orbit
    kernels: object | None = None  # `models.fused.Kernels` in the place of those that are compiled
    plans: Sequence[str] | None = None  # of the orbit; None: all
    video_frames: int = 8
    video_steps: int = 100
    sds_steps: tuple[int, int] = (2, 8)  # at each size of the renders: those that do not count, and those that do
    sds_changes: dict = field(default_factory=dict)  # of the settings of the fit
    sds_gaussians: int = 20_000
    text_width: int = 1024
    image_features: tuple[int, int] = (257, 1280)
    repeats: int = 5  # of what is timed by itself
    matrix: int = 8192  # side of the matrices whose product gives the matrix rate
    kinds: Sequence[str] = ("object", "text", "image")  # of requests
    preset: str = "preview"  # of their construction
    construction: "ConstructConfig | None" = None  # None: the paper's schedule
    construction_pixels: int = 256
    rasterize: Sequence[tuple[int, int]] = ((10_000, 256), (50_000, 256), (20_000, 512))  # Gaussians, pixels
    rasterize_seconds: float = 3.0  # a case
    trainings: Sequence[Training] = ()
    assets: Path = ASSETS
    made: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def published(cls, device: torch.device, **changes: object) -> "Setting":
        """At the published sizes."""
        from backend.models.precision import fast_bf16
        from benchmarks.gpu import networks

        dtype = torch.float32
        if device.type == "cuda":
            dtype = torch.bfloat16 if fast_bf16(device) else torch.float16
        trainings = (
            Training("kinesplat_small_motion", {"batch": 96}, clips_per_second=300.0),
            Training("kinesplat_small_4dm", {"batch": 128}),
        )
        return cls(
            device, dtype, networks.published(device, dtype), networks.OPERATIONS, trainings=trainings, **changes
        )

    def with_training(self, assets: Path | None, workers: int | None) -> "Setting":
        """With other assets for training, and so many processes that draw samples (None: all cores but two)."""
        import os

        count = max((os.cpu_count() or 1) - 2, 1) if workers is None else workers
        trainings = tuple(replace(one, changes={**one.changes, "workers": count}) for one in self.trainings)
        return replace(self, assets=assets or self.assets, trainings=trainings)

    def networks(self, *names: str) -> dict[str, nn.Module]:
        """Networks by name, in main memory and in evaluation mode; made when first asked for."""
        for name in names:
            if name not in self.made:
                self.made[name] = self.make[name]().to("cpu").eval().requires_grad_(False)
                self.free()
        return {name: self.made[name] for name in names}

    def free(self) -> None:
        """Networks go back to main memory, and unused memory to the GPU."""
        for network in self.made.values():
            network.to("cpu")
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, ImportError) and error.name:
        return f"The package {error.name} is missing."
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU's memory did not suffice."
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def attempted(work: Callable[[], dict], setting: Setting, **known: object) -> dict:
    """The row that `work` returns; where it fails, what is `known` of the row, and `failed`: why."""
    try:
        return work()
    except Exception as error:  # whatever it is: the other rows are still worth having
        traceback.print_exc()
        row = {**known, "failed": sentence(error)}
    setting.free()
    return row


def wait(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Least seconds of one call, after one that does not count."""
    work()
    best = float("inf")
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def matrix_rate(side: int, device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second in the product of two square matrices: the best of several."""
    matrix = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / timed(lambda: matrix @ matrix, device, repeats)


def reset_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float | None:
    """The most memory of the GPU since `reset_peak` that torch has held, GiB; None on a CPU."""
    return torch.cuda.max_memory_reserved() / GIB if device.type == "cuda" else None
