# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts that are suggested lead somewhere."""

import numpy as np

from backend.models.kinesplat_small import load
from backend.pipelines.elementary_prompts import named_in
from backend.pipelines.known_prompts import OF_THINGS, known_prompts
from blender_addon.contract.requests import MAX_PROMPT_LENGTH


def test_suggested_prompts_lead_to_a_motion() -> None:
    motions = load().motions
    found = [named_in(prompt, motions) for prompt in OF_THINGS]
    assert None not in found
    assert len({motion.name for motion in found}) > 10
    prompts = known_prompts()
    assert len(set(prompts)) == len(prompts) > 1000
    assert max(map(len, prompts)) <= MAX_PROMPT_LENGTH
    for prompt in prompts[len(OF_THINGS) :: 50]:
        subject, action = prompt.split(", ")
        best = motions.fit(prompt).max()
        fits = np.flatnonzero(motions.fit(prompt) > best - 1e-6)
        assert (subject, action) in [(motions.subjects[clip], motions.actions[clip]) for clip in fits]
