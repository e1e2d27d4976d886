# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a subject's frames in steps, between which Blender is the user's.

Such work comes as generators that yield `CaptureProgress`. Between two steps the file holds nothing of ours, so the
user may edit, undo, save or open another file meanwhile, and cancelling is closing the generator:

    space = measure(context, obj, (1, 24))
    steps = render_orbit_steps(space, Orbit(), folder, moving=True)
    for progress in steps: ...                       # or let a timer call next(steps)

Functions whose names lack `_steps` do the same in one go, for scripts and background mode.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from .stage import Stage, is_rendering, open_stage
from .subject import CaptureError, Subject

STEP_SECONDS = 0.1  # a step goes on with the next frame until so much time has passed


class CaptureCancelled(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The caller's `is_cancelled` said yes. Nothing is left behind."""


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


def exhaust(steps: Generator, on_progress=None, is_cancelled=None):
    """Run a generator to its end and return its value."""
    try:
        while True:
            progress = next(steps)
            if progress.stage == "waiting":
                raise CaptureError("Blender is rendering. Wait until the render has ended and try again.")
            if on_progress is not None:
                on_progress(progress)
            if is_cancelled is not None and is_cancelled():
                raise CaptureCancelled
    except StopIteration as end:
        return end.value
    finally:
        steps.close()
