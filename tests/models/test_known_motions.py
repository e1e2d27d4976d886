# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of a prompt find the clips that do what it names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.models.known_motions import KnownMotions

CLIPS = [("husky dog", "walk"), ("husky dog", "gallop"), ("horse", "walk slow"), ("bird", "flap"), ("wolf", "idle")]


@pytest.fixture
def motions() -> KnownMotions:
    subjects, actions = zip(*CLIPS, strict=True)
    nothing = torch.zeros(len(CLIPS), 15, 4, 3).half()
    return KnownMotions(subjects, actions, torch.ones(len(CLIPS), dtype=torch.bool), nothing[:, 0], nothing)


@pytest.mark.parametrize(
    ("prompt", "best"),
    [
        ("a dog is walking", 0),
        ("a horse runs", 1),  # galloping is a way to run
        ("an eagle flies", 3),  # flapping, one to fly
        ("a dog", 0),  # something calm
    ],
)
def test_a_prompt_finds_the_action_that_it_names(prompt: str, best: int, motions: KnownMotions) -> None:
    assert int(np.argmax(motions.fit(prompt))) == best


def test_other_actions_do_not_fit_at_all(motions: KnownMotions) -> None:
    np.testing.assert_array_equal(motions.fit("a dog gallops") > 0, [False, True, False, False, False])
    assert not motions.fit("a dog dances").any()  # dancing is not known at all


def test_an_action_counts_more_than_a_subject(motions: KnownMotions) -> None:
    fit = motions.fit("a wolf walks")
    assert fit[0] > 0.9
    assert fit[4] == 0
    assert fit[0] > fit[2] > 0.5  # nobody asked for slow


def test_how_something_is_done_counts_less_than_what(motions: KnownMotions) -> None:
    fit = replace(motions, actions=("walk", "forward", "run back", "run", "dodge backward")).fit
    assert np.argmax(fit("a dog walks forward")) == 0
    assert np.argmax(fit("a dog runs backwards")) == 2
    assert fit("a dog dodges")[4] > 0.8
    assert fit("forward")[1] == 1  # where nothing else is named
