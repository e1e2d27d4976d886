# SPDX-License-Identifier: GPL-3.0-or-later
"""From prompts to tokens: plain forms, synonyms, and what is told of unknown words."""

import pytest
import torch

from backend.models.text import MAX_TOKENS, Vocabulary, plain_form, words


@pytest.mark.parametrize(
    ("word", "plain"),
    [
        ("walks", "walk"), ("walking", "walk"), ("walked", "walk"), ("running", "run"), ("sprints", "run"),
        ("galloping", "gallop"), ("ponies", "horse"), ("wolves", "wolf"), ("dies", "death"), ("waves", "wave"),
        ("attacking", "attack"), ("jumps", "jump"), ("leaping", "jump"), ("dress", "dress"), ("grass", "grass"),
    ],
)  # fmt: skip
def test_plain_forms(word, plain):
    assert plain_form(word) == plain
    assert plain_form(plain) == plain  # so that captions and prompts meet


def test_words_of_a_prompt():
    assert words("The red fox is walking, slowly.") == ["red", "fox", "walk", "slowly"]
    assert words("Please make it jump!") == ["jump"]
    assert words("HitReact") == ["hit", "react"]
    assert words("Goldfishes and a jellyfish") == ["gold", "fish", "jellyfish"]
    assert words("") == words("?!") == words("the") == []


def test_tokens_are_places_in_the_vocabulary():
    vocabulary = Vocabulary(("dog", "fox", "run", "walk"))
    assert vocabulary.tokens("a fox running") == [2, 3]
    assert vocabulary.unknown("a purple fox plays purple chess") == ["purple", "play", "chess"]
    assert vocabulary.unknown("fox") == []
    batch = vocabulary.batch(["dog walks", "", "chess"])
    assert batch.shape == (3, MAX_TOKENS)
    assert batch.dtype == torch.int64
    assert batch[0].tolist() == [1, 4] + [0] * (MAX_TOKENS - 2)
    assert (batch[1:] == 0).all()


def test_long_prompts_are_cut():
    vocabulary = Vocabulary(("dog",))
    assert vocabulary.tokens("dog " * 50) == [1] * MAX_TOKENS
    assert (vocabulary.batch(["dog " * 50]) == 1).all()
