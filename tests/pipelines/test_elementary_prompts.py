# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts name elementary motions of things, and nothing that living things do otherwise."""

import pytest
import torch

from backend.models.known_motions import HARMONICS, KnownMotions
from backend.pipelines.elementary import MOTIONS
from backend.pipelines.elementary_prompts import RIDDEN, SOFT, VERBS, named_in


def known(*clips: tuple[str, str]) -> KnownMotions:
    subjects, actions = zip(*clips, strict=True)
    still = torch.zeros(len(clips), 1 + 2 * HARMONICS, 1, 3)
    return KnownMotions(subjects, actions, torch.ones(len(clips), dtype=torch.bool), still[:, 0], still)


KNOWN = known(
    ("person", "walk"), ("person", "wave"), ("dog", "death"), ("dog", "idle"), ("knight", "melee attack spin"),
    ("snake", "side winding"), ("bee", "fly"), ("red fox", "turning left"), ("crab", "shake head"),
    ("person", "sit chair down"), ("person", "duck"), ("person", "idle sword"), ("person", "jump start"),
    ("person", "block"), ("person", "run"), ("chest", "open"), ("banana", "run"), ("tank", "turning left"),
    ("cow", "walk slow"), ("enemy", "idle"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a tree sways in the wind", "swaying"),
        ("a tree in the wind", "swaying"),
        ("leaves rustle", "swaying"),
        ("A flag waves in the wind.", "rippling"),
        ("the curtain flutters", "billowing"),
        ("a spinning coin", "spinning"),
        ("a cube rotates fast", "spinning"),
        ("a globe rotates slowly", "spinning"),
        ("a monster truck drives", "riding"),
        ("a bolt turns", "spinning"),
        ("a rock rolls", "rolling"),  # what is first is a thing
        ("wobble", "wobbling"),
        ("a bobbing boat", "floating"),
        ("it stretches", "stretching"),
        ("it sways in the wind", "swaying"),
        ("spins slowly", "spinning"),  # the subject is picked in Blender
        ("an ice cube is melting", "melting"),
        ("a tree falls over", "toppling"),
        ("a ghost hovers", "floating"),
        ("a man sways", "swaying"),
        ("a ball bounces in the wind", "bouncing"),
        # without a subject, or told
        ("sways in the wind", "swaying"),
        ("it sways gently", "swaying"),
        ("spin slowly", "spinning"),
        ("spin the wheel", "spinning"),
        # what else is named does nothing
        ("a boat rocking on the waves", "wobbling"),
        ("a flag on a boat waves", "rippling"),
        ("a sail boat in the wind", "sailing"),
        ("bushes in the wind", "swaying"),
        ("a ballerina does a pirouette", "spinning"),
        ("a big rock", None),
        ("a rock on a hill", None),
        ("a castle with a flag waving", None),
        # done to something
        ("a man swings a bat", None),
        ("a person beats his chest", None),
        ("a sailor rows a boat", "sailing"),
        ("a car with spinning wheels", None),
        ("a tree with falling leaves", None),
        # not done
        ("a coin, not spinning", None),
        ("the coin does not spin", None),
        ("a coin that doesn't slowly spin", None),
        ("A coin that isn\u2019t spinning", None),
        ("a tree in the wind without swaying", None),
        ("a tree sways without wind", "swaying"),
        ("a boat neither sways nor rocks", None),
        ("a tower without swaying or bending", None),
        ("a coin spins without wobbling and shaking", "spinning"),
        ("a coin does not wobble and spins", "spinning"),
        ("a ball does not only bounce", "bouncing"),
        ("a ball is not rolling but bouncing", "bouncing"),
        ("a knight bounces without spinning", "bouncing"),
        ("a boat without a sail drifts", "sailing"),
        # what is light drifts down
        ("falling leaves", "drifting"),
        ("a leaf falls from a tree", "drifting"),
        ("snow is falling", "drifting"),
        ("a feather floats down", "drifting"),
        ("petals drift down", "drifting"),
        ("a feather floats", "floating"),
        ("a tree falls in the snow", "toppling"),
        ("a leafless tree falls", "toppling"),
        # what lives is no vehicle
        ("a man riding a horse", None),
        ("an elephant driver rides an elephant", None),
        ("a person rides", None),
        ("a man rides a bicycle", "riding"),
        ("a dog drives a car", "riding"),
        ("a hovercraft rides", "riding"),
        # words of known motions that here are those of things
        ("a rocking chair rocks", "wobbling"),
        ("a rubber duck bobbing", "floating"),
        ("a sword spinning", "spinning"),
        ("a dead tree sways", "swaying"),
        ("a coin starts spinning", "spinning"),
        ("a block of ice melts", "melting"),
        ("a race car drives", "riding"),
        ("a red cube turns", "spinning"),
        ("a treasure chest shakes", "trembling"),
        ("a banana falls", "toppling"),
        ("a tank turns left", None),
        ("a tank spins", "spinning"),
        # as those who are known do it, or not alone
        ("a person waves", None),
        ("a monkey waves", None),
        ("a dog falls", None),
        ("a dog breathes", None),
        ("a bee hovers", None),
        ("a fox turns left", None),
        ("a crab shakes", None),
        ("a monkey shakes its head", None),
        ("a knight spins", None),
        ("a snake is side winding", None),
        ("a tree walks and sways", None),
        ("a person walks", None),
        ("a rock", None),
        ("a lamp in the wind", None),
        ("", None),
    ],
)
def test_a_prompt_names_it(prompt: str, name: str | None) -> None:
    found = named_in(prompt, KNOWN)
    assert (found and found.name) == name


def test_who_is_not_known_has_no_way_of_his_own() -> None:
    strangers = known(("person", "walk"))
    assert named_in("a dog falls", strangers) is MOTIONS["toppling"]
    assert all(named_in(f"a man rides a {animal}", strangers) is None for animal in RIDDEN)


def test_every_word_leads_to_a_motion_and_every_motion_has_a_word() -> None:
    assert {*VERBS.values(), *SOFT.values(), "drifting"} - {"waving"} == set(MOTIONS)  # the last: of light things
    for verb in VERBS:
        if verb not in ("wave", "flap", "blow", "rustle"):
            assert named_in(f"the thing {verb}s", KNOWN) is MOTIONS[VERBS[verb]]
