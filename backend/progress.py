# SPDX-License-Identifier: GPL-3.0-or-later
"""How long work tells where it is, hears that it is cancelled, and keeps what a retry can use.

Every pipeline gets one `Run`. The service, the command line and tests each bring their own `on_progress`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEVICES = ("auto", "cpu", "cuda")  # that work may be asked to use; "auto": the GPU where it works
PREVIEW_INTERVAL = 1.0  # seconds between two preview pictures


class JobCancelled(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The user cancelled; nothing is to be reported as failed."""


class UserError(Exception):
    """Something that a person can put right.

    `code` is stable and for programs, the message says what happened, `hint` what to do.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Progress:
    """Where a run is. `fraction` and `seconds_left` are of the whole run, `step` of `total` of the stage."""

    stage: str  # a few words for people, such as "Fitting the motion"
    step: int
    total: int
    fraction: float  # 0..1, never falls
    seconds_left: float | None  # None until it can be told
    preview: np.ndarray | None = None  # [H, W, 3] uint8 sRGB
    detail: str = ""  # how the stage goes, such as its losses


class Run:
    """One attempt at one piece of long work.

    `stages` maps each stage's name to its share of the whole time, in order. `folder` survives attempts: what a stage
    leaves there is found by the next attempt (see `checkpoint`). `device`: one of DEVICES.
    """

    def __init__(
        self,
        folder: Path,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        is_cancelled: Callable[[], bool] = lambda: False,
        device: str = "auto",
    ) -> None:
        self.folder = folder
        self.device = device
        self.stage_seconds: dict[str, float] = {}
        self.notes: list[str] = []  # see `note`
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._shares: dict[str, float] = {}
        self._stage = ""
        self._stage_start = 0.0
        self._start = time.monotonic()
        self._first_fraction: float | None = None  # where a resumed run took up: its past cost no time now
        self._fraction = 0.0
        self._last_preview = 0.0

    def plan(self, shares: dict[str, float]) -> None:
        """Declare the stages in order, with their expected shares of the time (any unit)."""
        whole = sum(shares.values())
        self._shares = {stage: share / whole for stage, share in shares.items()}
        self._start = time.monotonic()

    def begin(self, stage: str) -> None:
        """Enter a stage that `plan` named."""
        self._end_stage()
        self._stage, self._stage_start = stage, time.monotonic()
        self.report(0, 1)

    def part(self, done: int, total: int, folder: Path | None = None) -> "Run":
        """A run for one of `total` equal pieces of this stage, of which so many are `done`.

        Its progress moves that of the stage, and it ends with this run. folder: instead of this run's.
        """

        def forward(progress: Progress) -> None:
            self.report(done + progress.fraction, total)

        part = Run(folder or self.folder, forward, self._is_cancelled, self.device)
        part.plan({"": 1.0})  # for work that announces no stages
        return part

    def finish(self) -> None:
        """The whole run is done."""
        self._end_stage()
        self._on_progress(Progress("Done", 1, 1, 1.0, 0.0))

    def report(self, step: int, total: int, preview: Callable[[], np.ndarray] | None = None, detail: str = "") -> None:
        """Tell that `step` of `total` of this stage is done; called often, so it must stay cheap.

        `preview` is called at most once a second. `detail`: how it goes, in a few words or numbers.

        Raises:
            JobCancelled: somebody wants the run to end.
        """
        self.check()
        before = 0.0
        for name, share in self._shares.items():
            if name == self._stage:
                before += share * min(step / max(total, 1), 1.0)
                break
            before += share
        self._fraction = max(self._fraction, min(before, 1.0))
        picture = None
        now = time.monotonic()
        if preview is not None and now - self._last_preview >= PREVIEW_INTERVAL:
            picture = preview()
            self._last_preview = time.monotonic()
        self._on_progress(Progress(self._stage, step, total, self._fraction, self._seconds_left(now), picture, detail))

    def check(self) -> None:
        """Look whether to go on; for work within a step that takes long.

        Raises:
            JobCancelled: somebody wants the run to end.
        """
        if self._is_cancelled():
            raise JobCancelled

    def say(self, text: str) -> None:
        """Tell in a few words about something that no stage is planned for, such as compiling.

        Raises:
            JobCancelled: somebody wants the run to end.
        """
        self.check()
        self._on_progress(Progress(text, 0, 1, self._fraction, None))

    def note(self, sentence: str) -> None:
        """Keep a warning for whoever gets the result: what was wrong with the inputs, and what was done about it.

        Pipelines put `notes` into the provenance of their results as `warnings`; panel and command line show those.
        """
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _seconds_left(self, now: float) -> float | None:
        if self._first_fraction is None:
            if self._fraction > 0:
                self._first_fraction, self._start = self._fraction, now
            return None
        done = self._fraction - self._first_fraction
        if done < 0.02:
            return None
        return (now - self._start) * (1.0 - self._fraction) / done

    def _end_stage(self) -> None:
        if self._stage:
            seconds = time.monotonic() - self._stage_start
            self.stage_seconds[self._stage] = self.stage_seconds.get(self._stage, 0.0) + seconds
