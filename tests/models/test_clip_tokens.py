# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens of prompts against those of OpenCLIP's own tokenizer."""

import pytest

from backend.models.clip_tokens import LENGTH, plain_text, tokens
from tests import golden

FACTS = golden.facts("encoders/clip_tokens")


@pytest.mark.parametrize(("text", "expected"), list(zip(FACTS["texts"], FACTS["tokens"], strict=True)), ids=repr)
def test_tokens_are_openclips(text: str, expected: list[int]) -> None:
    assert tokens([text])[0].tolist() == expected


def test_an_empty_prompt_is_start_end_zeros() -> None:
    assert tokens([""])[0].tolist() == [49406, 49407] + [0] * (LENGTH - 2)


def test_a_long_prompt_keeps_its_end_token() -> None:
    row = tokens(["dog " * 200])[0].tolist()
    assert (row[0], row[-1], len(row)) == (49406, 49407, LENGTH)
    assert len(set(row[1:-1])) == 1


def test_prompts_are_cleaned() -> None:
    assert plain_text("  “A&amp;amp;B”\n") == '"a&b"'
