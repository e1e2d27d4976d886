# SPDX-License-Identifier: GPL-3.0-or-later
"""Who trains on which samples, and how they get there in time.

A step takes `accumulate` micro-batches on each of `ranks` processes. Micro-batches are numbered through the whole run,
whatever the number of processes: two processes do what one does that accumulates two micro-batches.
"""

import contextlib
import itertools
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backend.data.samples import SampleStream
from backend.models.text import Vocabulary
from backend.training.interrupts import SIGNALS

AHEAD = 2  # micro-batches that wait ready
PIECE = 8  # samples that a process draws at a time
PIECES_AHEAD = 4  # such pieces that wait ready, per process
SHARED = Path("/dev/shm")  # where Linux keeps memory that processes share
SAMPLE_BYTES = 7 * 2**20  # of the largest kind of sample, at 64 pixels


@dataclass(frozen=True)
class AnyBatch:
    """What all batches have in common."""

    number: int  # of the first sample in the stream
    tokens: Tensor  # [B, L]
    captions: tuple[str, ...]

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(self, **{name: each.to(device) for name, each in vars(self).items() if isinstance(each, Tensor)})

    def head(self, count: int) -> Self:
        """Its first samples."""
        return replace(self, **{name: each[:count] for name, each in vars(self).items() if name != "number"})


@dataclass(frozen=True)
class StillBatch(AnyBatch):
    """Still subjects as the static network takes them."""

    first: Tensor  # [B, 4, H, W] premultiplied RGBA of the first view
    volume: Tensor  # [B, N, N, N, 4] premultiplied RGBA


@dataclass(frozen=True)
class Batch(AnyBatch):
    """Orbits as the networks take them."""

    moving: Tensor  # [B, T, 4, H, W] premultiplied RGBA
    static: Tensor  # [B, T, 4, H, W]
    flow: Tensor  # [B, T, 3, H, W]
    camera_to_world: Tensor  # [B, T, 4, 4]
    viewmats: Tensor  # [B, T, 4, 4]
    focal: Tensor  # [B, T]
    times: Tensor  # [B, T]


@dataclass(frozen=True)
class FlowBatch(AnyBatch):
    """What `data.flow_samples.FlowSample` tells."""

    moving: Tensor  # [B, T, 4, H, W] premultiplied RGBA
    near: Tensor  # [B, T, 4, H, W]
    far: Tensor  # [B, T, 4, H, W]
    near_flow: Tensor  # [B, T, 3, H, W]
    far_flow: Tensor  # [B, T, 3, H, W]
    camera_to_world: Tensor  # [B, T, 4, 4]
    times: Tensor  # [B, T]


@dataclass(frozen=True)
class ViewBatch(AnyBatch):
    """What `data.view_samples.ViewSample` tells."""

    video: Tensor  # [B, T, 4, H, W] premultiplied RGBA
    views: Tensor  # [B, T, N, 4, H, W]
    camera_to_world: Tensor  # [B, N, 4, 4] of the views


@dataclass(frozen=True)
class GuessedViewBatch(ViewBatch):
    """What `data.view_samples.GuessedViewSample` tells."""

    guess: Tensor  # [B, T, N, 4, H, W]


# Their channels come last.
PICTURES = ("moving", "static", "flow", "first", "near", "far", "near_flow", "far_flow", "video", "views", "guess")


def micro_batches(first: int, size: int, *, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> Iterator[range]:
    """The samples of each micro-batch of one process, step after step, from sample `first` of the stream on."""
    for step in itertools.count():
        for micro in range(accumulate):
            start = first + ((step * accumulate + micro) * ranks + rank) * size
            yield range(start, start + size)


def draw(
    stream: SampleStream,
    numbers: Iterator[range],
    vocabulary: Vocabulary,
    workers: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[..., None] = print,
) -> Iterator[AnyBatch]:
    """Micro-batches on a device, drawn ahead by a thread, or by `workers` processes that each have the assets.

    Close the iterator to end them. say: told where shared memory does not suffice, so that samples travel more slowly.
    """
    device = torch.device(device)
    drawn = _draw_in_processes(stream, numbers, workers, device, say) if workers else _draw_in_thread(stream, numbers)
    with contextlib.closing(drawn):
        for number, arrays, captions in drawn:
            yield make_batch(number, arrays, captions, vocabulary).to(device)


def draw_now(stream: SampleStream, numbers: range, vocabulary: Vocabulary) -> Batch:
    """One batch, here and now."""
    return make_batch(*_draw(stream, numbers), vocabulary)


def make_batch(
    number: int, arrays: dict[str, np.ndarray | Tensor], captions: list[str], vocabulary: Vocabulary
) -> AnyBatch:
    """Stacked samples in the networks' order of axes."""
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    for name in set(PICTURES) & set(tensors):
        tensors[name] = tensors[name].movedim(-1, -3)
    kinds = (Batch, StillBatch, FlowBatch, ViewBatch, GuessedViewBatch)
    kind = next(kind for kind in kinds if {field.name for field in fields(kind)} >= set(tensors))
    return kind(number, vocabulary.batch(captions), tuple(captions), **tensors)


Drawn = tuple[int, dict[str, np.ndarray | Tensor], list[str]]


def _draw(stream: SampleStream, numbers: range) -> Drawn:
    samples = [stream.sample(number) for number in numbers]
    names = [known.name for known in fields(samples[0]) if known.name != "caption"]
    arrays = {name: np.stack([getattr(sample, name) for sample in samples]) for name in names}
    return numbers.start, arrays, [sample.caption for sample in samples]


def _draw_in_thread(stream: SampleStream, numbers: Iterator[range]) -> Iterator[Drawn]:
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(_draw, stream, next(numbers)) for _ in range(AHEAD)]
        while True:
            waiting.append(pool.submit(_draw, stream, next(numbers)))
            yield waiting.pop(0).result()


class _Stream(Dataset):
    """A stream as torch's loader takes it: its keys are the numbers of pieces of micro-batches."""

    def __init__(self, stream: SampleStream) -> None:
        self.stream = stream

    def __getitem__(self, numbers: range) -> Drawn:
        return _draw(self.stream, numbers)


def _draw_in_processes(
    stream: SampleStream, numbers: Iterator[range], workers: int, device: torch.device, say: Callable[..., None]
) -> Iterator[Drawn]:
    """Whole micro-batches; several processes draw pieces of one, which are put together on the device."""
    first = next(numbers)
    shared = _shared_memory_suffices(stream, workers, say)
    loader = DataLoader(
        _Stream(stream),
        sampler=_pieces(itertools.chain([first], numbers)),
        batch_size=None,
        collate_fn=None if shared else _as_drawn,
        num_workers=workers,
        prefetch_factor=PIECES_AHEAD,
        multiprocessing_context="spawn",  # a fork would copy the locks of our threads
        pin_memory=device.type == "cuda",
        worker_init_fn=_deaf,
    )
    with _held_back():
        drawn = iter(loader)
    waiting: list[Drawn] = []
    for piece in drawn:
        number, arrays, captions = piece
        moved = {name: torch.as_tensor(array).to(device, non_blocking=True) for name, array in arrays.items()}
        waiting.append((number, moved, captions))
        if sum(len(captions) for _, _, captions in waiting) == len(first):
            yield _joined(waiting)
            waiting = []


def _as_drawn(piece: Drawn) -> Drawn:
    """A piece as it is, whose arrays go through a pipe. By itself torch makes tensors of them, in shared memory."""
    return piece


def _deaf(_: int) -> None:
    """Ctrl-C, and what ends a whole group of processes, is for the one that trains: it saves, and ends the others."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Those signals wait meanwhile. Processes that are started are born so: it takes seconds until they are `_deaf`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pieces(numbers: Iterator[range]) -> Iterator[range]:
    for batch in numbers:
        for start in range(batch.start, batch.stop, PIECE):
            yield range(start, min(start + PIECE, batch.stop))


def _joined(pieces: list[Drawn]) -> Drawn:
    names = pieces[0][1]
    arrays = {name: torch.cat([arrays[name] for _, arrays, _ in pieces]) for name in names}
    return pieces[0][0], arrays, [caption for _, _, captions in pieces for caption in captions]


def _shared_memory_suffices(stream: SampleStream, workers: int, say: Callable[..., None]) -> bool:
    """Whether what waits ready fits into shared memory: containers often have 64 MiB of it."""
    if not SHARED.exists():  # other systems have no such limit
        return True
    needed = int(SAMPLE_BYTES * (stream.resolution / 64) ** 2) * PIECE * (PIECES_AHEAD + 1) * workers
    free = shutil.disk_usage(SHARED).free
    if needed > free:
        say(f"{SHARED} has {free >> 20} MiB free and {needed >> 20} are needed: samples take the slower way, by pipes.")
    return needed <= free
