# SPDX-License-Identifier: GPL-3.0-or-later
"""Motions that are known: what the clips of the training set do, as points on a surface and how they move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from backend.models.text import MANNERS, words, worth

HARMONICS = 7  # of the series in time
CALM = {"idle", "walk", "swim", "fly"}  # what is meant by a prompt that names no action
KIN = (
    {"fly", "flap"},
    {"back", "backward"},
    {"run", "gallop", "trot"},
    {"attack", "bite", "headbutt"},
    {"idle", "stand"},
)
MANNER = 0.3  # worth of a word for how it is done, beside one for what
KINDRED = 0.7  # worth of words for nearly the same, beside that of the same word
SURPLUS = 0.5  # of the worth of a clip's words that were not asked for: "normal", "slow"
SUBJECT = 0.25  # worth of the same subject, beside that of the same action: shapes tell subjects apart, too


@dataclass(frozen=True)
class KnownMotions:
    """The clips of the training set, each by its words and by how P points of its subject's surface move."""

    subjects: tuple[str, ...]  # of each clip, such as "husky dog"
    actions: tuple[str, ...]  # of each clip, such as "walk"
    loops: Tensor  # [C] bool: it ends as it began
    points: Tensor  # [C, P, 3] float16: at time 0, in its clip space
    series: Tensor  # [C, J, P, 3] float16: shifts from there, along a `TimeBasis`; the drift, 0 of loops, comes first

    def fit(self, prompt: str) -> np.ndarray:  # [C] float64
        """How well the words of a prompt fit those of each clip: 0 to 1 for its action, a little for its subject.

        Rare words count more, and words that only one of the two has count against it. No action in common: 0. That is
        all clips where the prompt names no known action and has other words that are not known.
        """
        asked = set(words(prompt))
        actions, subjects = (
            {word for text in texts for word in words(text)} for texts in (self.actions, self.subjects)
        )
        named = {word for word in asked if word in actions or actions & _kin(word)}
        meant = [named] if named or asked - subjects else [{word} for word in CALM]
        actions = np.max([_overlap(one, self.actions) for one in meant], 0)
        return np.where(actions > 0, actions + SUBJECT * _overlap(asked - named, self.subjects), 0)


def _overlap(asked: set[str], texts: Sequence[str]) -> np.ndarray:
    """The worth of the words in common with each text, relative to that of all asked and some of those not asked."""
    each = [set(words(text)) for text in texts]
    value = {word: held * (MANNER if word in MANNERS else 1) for word, held in worth(each).items()}

    def total(some: set[str]) -> float:
        return sum(value.get(word, 0) for word in some)

    def shared(text: set[str]) -> float:
        common, kindred = asked & text, {word for word in text - asked if asked & _kin(word)}
        missed = {word for word in asked - common if not text & _kin(word)}
        held = total(common) + KINDRED * total(kindred)
        return held / max(total(common | kindred | missed) + SURPLUS * total(text - common - kindred), 1e-9)

    return np.array([shared(text) for text in each])


def _kin(word: str) -> set[str]:
    """Words for nearly the same."""
    return {other for family in KIN if word in family for other in family - {word}}
