# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a run lasts, and the learning rate that follows from it: warm-up, constant, down to zero.

A run on borrowed time is planned in minutes, one that has to be repeated exactly in steps. A plan that was interrupted
goes on where it stopped; a network that a finished plan has left behind can be given a new one.
"""

from dataclasses import dataclass, replace

from backend.progress import UserError
from backend.training.config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """The length of a run in steps or in minutes, and how much of it is spent."""

    steps: int | None = None
    minutes: float | None = None
    first_step: int = 0  # the step of the network at which it began
    seconds: float = 0.0  # spent, over all attempts

    def share(self, step: int, seconds: float, kept: float = 0.0) -> float:
        """How much of the plan is done, 0..1, at a step and `seconds` after this attempt began.

        kept: seconds at the end of a plan in minutes in which there is something else to do.
        """
        if self.steps is not None:
            return min(1.0, (step - self.first_step) / self.steps)
        return min(1.0, (self.seconds + seconds) / max(60 * self.minutes - kept, 1e-9))

    def seconds_left(self, step: int, seconds: float, rate: float) -> float:
        """Seconds until the end at `rate` steps a second."""
        if self.steps is not None:
            return (self.first_step + self.steps - step) / max(rate, 1e-9)
        return 60 * self.minutes - self.seconds - seconds


def make_plan(
    config: TrainConfig, stored: Plan | None, step: int, *, minutes: float | None, steps: int | None, anew: bool
) -> Plan:
    """The plan of this attempt.

    stored: the plan that a checkpoint brings; anew: what was asked for is another plan after it, not its whole length.

    Raises:
        UserError: nobody said how long.
    """
    asked = minutes is not None or steps is not None
    if stored is not None and not asked:
        return stored
    if stored is not None and not anew:
        return replace(stored, minutes=minutes, steps=steps)
    if not asked:
        steps = config.steps
    if minutes is None and steps is None:
        raise UserError("no_length", "Nobody said how long to train.", "Give --minutes or --steps.")
    return Plan(steps=steps, minutes=minutes, first_step=step)


def learning_rate(config: TrainConfig, plan: Plan, step: int, share: float) -> float:
    """The learning rate of a step, at a `share` 0..1 of the plan."""
    rise = min(1.0, (step - plan.first_step + 1) / max(config.warmup, 1))
    fall = min(1.0, max(0.0, (1 - share) / config.decay)) if config.decay else 1.0
    return config.learning_rate * rise * fall
