# SPDX-License-Identifier: GPL-3.0-or-later
"""From prompts to tokens: plain forms, synonyms, and what is told of unknown words."""

import pytest
import torch

from backend.models.kinesplat_small import load
from backend.models.text import MAX_TOKENS, Vocabulary, plain_form, words


@pytest.mark.parametrize(
    ("word", "plain"),
    [
        ("walks", "walk"), ("walking", "walk"), ("walked", "walk"), ("running", "run"), ("sprints", "run"),
        ("galloping", "gallop"), ("ponies", "horse"), ("wolves", "wolf"), ("dies", "death"), ("waves", "wave"),
        ("attacking", "attack"), ("jumps", "jump"), ("leaping", "jump"), ("dress", "dress"), ("grass", "grass"),
        ("punches", "punch"), ("slashes", "slash"), ("foxes", "fox"), ("horses", "horse"), ("raises", "raise"),
        ("hopping", "jump"), ("jogged", "run"), ("nods", "yes"), ("nodding", "yes"), ("trotting", "trot"),
        ("rolling", "roll"), ("buzzing", "buzz"), ("shaking", "shake"), ("gliding", "glide"), ("lunged", "attack"),
        ("hanging", "hang"), ("merging", "merge"), ("charging", "run"),
        ("octopus", "octopus"), ("idling", "idle"), ("crawling", "walk"), ("raised", "raise"),
        ("closing", "close"), ("rotating", "rotate"), ("floating", "float"), ("repeating", "repeat"),
        ("quaking", "quake"), ("hurried", "run"), ("flying", "fly"), ("flies", "fly"),
        ("cries", "cry"), ("opened", "open"), ("squeezing", "squeeze"),
        ("collapses", "death"), ("swinging", "swing"), ("spring", "spring"), ("king", "king"), ("playing", "play"),
        ("chickens", "chick"), ("orcas", "whale"), ("dinosaur", "kaiju"), ("witches", "mage"), ("people", "man"),
        ("guards", "man"), ("fell", "death"), ("thrown", "throw"),
    ],
)  # fmt: skip
def test_plain_forms(word, plain):
    assert plain_form(word) == plain
    assert plain_form(plain) == plain  # so that captions and prompts meet


def test_names_of_what_is_known_are_in_the_vocabulary():
    """It was made of these, by the rules of `words`: other rules would part them."""
    model = load()
    vocabulary = set(model.vocabulary.words)
    for name in {*model.motions.actions, *model.motions.subjects, *model.memory.subjects}:
        assert set(words(name)) <= vocabulary
    assert [word for word in vocabulary if plain_form(word) != word] == []


def test_words_of_a_prompt():
    assert words("The red fox is walking, gladly.") == ["red", "fox", "walk", "gladly"]
    assert words("he does it slowly") == ["slow"]
    assert words("Please make it jump!") == ["jump"]
    assert words("HitReact") == ["hit", "react"]
    assert words("Goldfishes and a jellyfish") == ["gold", "fish", "jellyfish"]
    assert words("A man gets up, looks around and says no") == ["man", "stand", "up", "idle", "shake", "head"]
    assert words("a duck flies as the fly does, the bird ducks") == ["chick", "fly", "bee", "bird", "duck"]
    assert words("ducks walking past the ducks") == ["chick", "walk", "past", "chick"]
    assert words("a yellow duck swims, a man ducks sideways") == ["yellow", "chick", "swim", "man", "duck", "sideway"]
    assert words("the race car's wheel") == ["car", "wheel"]
    assert words("a puppy wags its tail, the cat's tail wags, a boy falls asleep") == [
        *("dog", "idle", "cat", "idle", "man", "idle"),
    ]
    assert words("") == words("?!") == words("the") == []


def test_tokens_are_places_in_the_vocabulary():
    vocabulary = Vocabulary(("dog", "fox", "run", "walk"))
    assert vocabulary.tokens("a fox running") == [2, 3]
    assert vocabulary.unknown("a purple fox plays purple chess") == ["purple", "plays", "chess"]
    assert vocabulary.unknown("fox") == []
    assert vocabulary.unknown("the fox's Käfer, 犬 and movies") == ["käfer", "犬", "movies"]  # as they are written
    batch = vocabulary.batch(["dog walks", "", "chess"])
    assert batch.shape == (3, MAX_TOKENS)
    assert batch.dtype == torch.int64
    assert batch[0].tolist() == [1, 4] + [0] * (MAX_TOKENS - 2)
    assert (batch[1:] == 0).all()


def test_long_prompts_are_cut():
    vocabulary = Vocabulary(("dog",))
    assert vocabulary.tokens("dog " * 50) == [1] * MAX_TOKENS
    assert (vocabulary.batch(["dog " * 50]) == 1).all()
