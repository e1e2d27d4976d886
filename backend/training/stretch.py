# SPDX-License-Identifier: GPL-3.0-or-later
"""A stretch of borrowed time: it ends by the clock, with all that comes after the last step done."""

import contextlib
from collections import deque
from collections.abc import Iterator

import torch

from backend.progress import UserError

MARGIN, MARGIN_SECONDS, MARGIN_MOST = 0.01, 6.0, 0.1  # for what is not measured: processes that end, busy disks
AHEAD = 2  # steps that the loop may be before the GPU


@contextlib.contextmanager
def enough_memory(batch: int, accumulate: int = 1) -> Iterator[None]:
    """While this lasts, a GPU that is too small is told of in words.

    Raises:
        UserError: it is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        hint = "Take a GPU with more of it."
        if batch > 1:
            hint = f"Try --set batch={batch // 2} --set accumulate={2 * accumulate}, which trains the same."
        raise UserError("out_of_memory", f"Samples by {batch} do not fit into the GPU's memory.", hint) from error


@contextlib.contextmanager
def able_to_compile() -> Iterator[None]:
    """While this lasts, a machine on which torch.compile does not work is told of in words.

    Raises:
        UserError: it is one.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).partition("\n\n")[0].split())  # then follows what helps developers of torch
        hint = "Install a C compiler, such as gcc, or train without: --set compile=false."
        raise UserError("not_compiled", f"The network cannot be compiled here: {reason}", hint) from error


class Reserve:
    """Seconds of a plan that are kept for what comes after its last step: validation, checkpoint, packing.

    They are measured once, right after the first step, and grow with the longest step.
    """

    def __init__(self, minutes: float) -> None:
        seconds = 60 * minutes
        self._margin = min(MARGIN * seconds + MARGIN_SECONDS, MARGIN_MOST * seconds)
        self._closing = self._longest = 0.0

    def step(self, seconds: float) -> None:
        """A step has taken so long."""
        self._longest = max(self._longest, seconds)

    def close(self, seconds: float) -> None:
        """Closing has taken so long."""
        self._closing = seconds

    @property
    def seconds(self) -> float:
        """What is to be kept. The step under way when time is up, and those the GPU has not done yet, come on top."""
        return self._margin + 1.5 * self._closing + (1 + AHEAD) * self._longest


class Pace:
    """Keeps the loop from running far before a GPU, so that its clock tells the truth."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        """One more step has been asked for; waits until the GPU has done the one before the last."""
        if self._device.type != "cuda":
            return
        self._marks.append(torch.cuda.Event())
        self._marks[-1].record()
        if len(self._marks) > AHEAD:
            self._marks.popleft().synchronize()

    def wait(self) -> None:
        """Wait until the GPU has done all of it."""
        while self._marks:
            self._marks.popleft().synchronize()
