# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts that the small model knows something for, to choose from; told without loading it (no torch)."""

import json
from functools import cache
from pathlib import Path

CARD = Path(__file__).resolve().parents[1] / "weights" / "kinesplat-small" / "model.json"
OF_THINGS = (  # elementary motions, which no clip of the training set shows
    "a tree sways in the wind", "a flag waves in the wind", "a curtain billows", "a lamp swings", "a tower topples",
    "a coin spins", "a barrel rolls", "a ball bounces", "a balloon floats", "a boat sails", "a car drives",
    "a leaf drifts down", "a snowman wobbles", "a pudding jiggles", "a heart pulses", "a crystal grows",
)  # fmt: skip


@cache
def known_prompts() -> tuple[str, ...]:
    """The motions of each known subject, as "fox, sneak", and some that things have. None where weights lack."""
    try:
        motions = json.loads(CARD.read_text(encoding="utf-8"))["motions"]
    except (OSError, ValueError, KeyError):
        return ()
    return (*OF_THINGS, *sorted({f"{subject}, {action}" for subject, action in motions if action}))
