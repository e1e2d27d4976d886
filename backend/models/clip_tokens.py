# SPDX-License-Identifier: GPL-3.0-or-later
"""CLIP's tokens of a prompt. The vocabulary comes with the program, so nothing is downloaded.

OpenCLIP fills up with 0 after the end token, where other CLIP tokenizers repeat the end token. VideoMV, I2VGen-XL and
ImageDream attend to all 77 places, so the filling matters.
"""

import html
import lzma
from functools import cache
from pathlib import Path

import ftfy
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from torch import Tensor

LENGTH = 77
PAD = 0
MERGES = Path(__file__).resolve().parent / "clip_vocabulary" / "merges.txt.xz"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
END_OF_WORD = "</w>"


def tokens(prompts: list[str]) -> Tensor:  # [B, 77] int64
    """Start token, the prompt, end token, zeros. Prompts of more than 75 tokens are cut."""
    bpe, start, end = _vocabulary()
    rows = torch.full((len(prompts), LENGTH), PAD, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        found = [start, *bpe.encode(plain_text(prompt)).ids[: LENGTH - 2], end]
        row[: len(found)] = torch.tensor(found)
    return rows


def plain_text(prompt: str) -> str:
    """A prompt without broken encodings, curly quotes, HTML entities, capitals and needless spaces, as CLIP saw it."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split()).lower()


@cache
def _vocabulary() -> tuple[Tokenizer, int, int]:
    """The byte-pair encoder, the start token and the end token."""
    merges = [tuple(line.split()) for line in lzma.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()]
    letters = _byte_letters()
    words = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
    numbers = {word: number for number, word in enumerate(words)}
    encoder = Tokenizer(BPE(numbers, merges, continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD))
    encoder.pre_tokenizer = Sequence(
        [Split(Regex(WORDS), "removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return encoder, len(words), len(words) + 1


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, in the vocabulary's order: printable bytes as they are, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + place) for place in range(others)]
