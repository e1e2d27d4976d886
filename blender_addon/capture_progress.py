# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a subject's frames in steps, between which Blender is the user's.

Such work comes as generators that yield `CaptureProgress`. Between two steps the file holds nothing of ours, so the
user may edit, undo, save or open another file meanwhile, and cancelling is closing the generator:

    space = in_one_go(measure_steps(context, obj, (1, 24)))
    steps = render_orbit_steps(space, Orbit(), folder, moving=True)
    for progress in steps: ...                       # or let a timer call next(steps)
"""

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from .stage import Stage, is_rendering, open_stage
from .subject import CaptureError, Subject

T = TypeVar("T")

STEP_SECONDS = 0.1  # a step goes on with the next frame until so much time has passed


@dataclass(frozen=True)
class CaptureProgress:
    """Where a capture stands."""

    stage: str  # "waiting" (Blender renders something else), "measure", "moving", "static", "surface" or "views"
    done: int
    total: int


def in_steps(
    subject: Subject,
    size: tuple[int, int],
    engine: str | None,
    samples: int,
    count: int,
    work: Callable[[Stage, int], None],
    name: str,
) -> Generator[CaptureProgress, None, None]:
    """Call `work(stage, 0)` ... `work(stage, count - 1)`, several within one step where they are quick."""
    done = 0
    while done < count:
        if is_rendering():
            yield CaptureProgress("waiting", done, count)
            continue
        width, height = size
        deadline = time.monotonic() + STEP_SECONDS
        with open_stage(subject, width=width, height=height, engine=engine, samples=samples) as stage:
            while done < count:
                work(stage, done)
                done += 1
                if time.monotonic() > deadline:
                    break
        yield CaptureProgress(name, done, count)


def in_one_go(steps: Generator[CaptureProgress, None, T]) -> T:
    """Do all of such work, for scripts and background mode, and return what comes of it.

    Raises:
        CaptureError: as the work does, or Blender is rendering something else.
    """
    with contextlib.closing(steps):
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return end.value
            if progress.stage == "waiting":
                raise CaptureError("Blender is rendering. Wait until the render has ended and try again.")
