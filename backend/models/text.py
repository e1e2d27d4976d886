# SPDX-License-Identifier: GPL-3.0-or-later
"""From a prompt to tokens: a small closed vocabulary of things and actions, not open language.

Words are brought to a plain form (walking, walks -> walk), synonyms to the word that the network has learned
(sprint -> run). Words that it never learned are left out, and the caller can tell the user which.
"""

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_TOKENS = 12
PAD = 0

STOP_WORDS = frozenset(
    """a an the is are be of in on at to and or with its it his her their while that this as by for from into
    very please make let some one""".split()  # noqa: SIM905
)
IRREGULAR = {
    "ran": "run", "swam": "swim", "dying": "death", "died": "death", "dies": "death", "die": "death", "dead": "death",
    "lying": "lie", "lied": "lie", "flew": "fly", "ate": "eat", "bit": "bite", "threw": "throw", "shot": "shoot",
    "stood": "stand", "sat": "sit", "spun": "spin", "using": "use", "used": "use", "breathing": "breathe",
    "breathed": "breathe", "headbutting": "headbutt", "headbutted": "headbutt", "pirouetting": "pirouette",
    "pirouetted": "pirouette", "wolves": "wolf", "calves": "calf", "men": "man", "women": "woman", "people": "man",
    "geese": "goose", "grass": "grass", "alias": "alias", "yes": "yes", "dress": "dress", "colossus": "colossus",
}  # fmt: skip
SYNONYMS = {
    "sprint": "run", "jog": "run", "race": "run", "dash": "run", "hurry": "run", "stroll": "walk", "stride": "walk",
    "march": "walk", "step": "walk", "hop": "jump", "leap": "jump", "pounce": "jump", "breathe": "idle",
    "rest": "idle", "wait": "idle", "collapse": "death", "fall": "death", "strike": "attack", "fight": "attack",
    "hiss": "attack", "lunge": "attack", "chew": "eat", "graze": "eat", "feed": "eat", "hover": "fly",
    "soar": "glide", "crawl": "walk", "creep": "sneak", "boogie": "dance", "greet": "wave", "hello": "wave",
    "nod": "yes", "puppy": "dog", "doggy": "dog", "hound": "dog", "kitten": "cat", "kitty": "cat", "pony": "horse",
    "stallion": "horse", "mare": "horse", "foal": "horse", "calf": "cow", "ox": "bull", "cattle": "cow",
    "lamb": "sheep", "piglet": "pig", "hog": "pig", "duckling": "chick", "guy": "man", "boy": "man",
    "gentleman": "man", "person": "man", "human": "man", "male": "man", "girl": "woman", "lady": "woman",
    "female": "woman", "wizard": "mage", "sorcerer": "mage", "warrior": "barbarian", "thief": "rogue",
    "serpent": "snake", "viper": "snake", "cobra": "snake", "robot": "enemy", "monster": "enemy", "drone": "enemy",
    "spaceman": "astronaut", "cosmonaut": "astronaut", "elk": "stag", "reindeer": "deer", "doe": "deer",
    "donkey": "donkey", "mule": "donkey", "hunde": "dog", "wag": "idle",
    "hen": "chick", "chicken": "chick", "rooster": "chick", "boar": "pig", "ewe": "sheep", "kid": "man",
    "bumblebee": "bee", "honeybee": "bee", "tarantula": "spider", "python": "snake", "wyvern": "dragon",
    "orca": "whale", "dinosaur": "kaiju", "godzilla": "kaiju", "trout": "fish", "salmon": "fish", "carp": "fish",
    "cod": "fish", "bass": "fish", "guppy": "fish", "herring": "fish", "child": "man",
    "fellow": "man", "witch": "mage", "magician": "mage", "pirate": "rogue", "viking": "barbarian",
}  # fmt: skip

# What verbs end in that have a silent e: those of one syllable in a vowel and a consonant (glide), and others
SILENT_E = re.compile(
    r"^[^aeiou]*[aeiou][^aeiouwxy]$|[cv]$|[dr]g$|(lu|plu|cha)ng$|[bdfgkpstz]l$|[lnpr]s$|[aeiou]{2}s$|[aeiou]z$"
    r"|[aeiouy].*[^aeiou]at$"
)
NO_FISH = "jelly|star|cray|cuttle|shell|silver"  # beginnings of what is called a fish and is none


def words(text: str) -> list[str]:
    """Plain forms of the words of a text, in order, without stop words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    spaced = re.sub(rf"\b(?!{NO_FISH})([a-z]{{2,}})(?=fish)", r"\1 ", spaced)  # goldfish
    found = re.findall(r"[a-z]+|\d[a-z]?", spaced)
    return [plain for word in found if word not in STOP_WORDS and (plain := plain_form(word))]


def plain_form(word: str) -> str:
    """The word that stands for this one in the vocabulary: without its ending, or its synonym."""
    word = stem(word)
    return SYNONYMS.get(word, word)


def stem(word: str) -> str:
    """The word without its ending: hops, hopping and hopped -> hop, bounces and bouncing -> bounce, foxes -> fox."""
    word = IRREGULAR.get(word, word)
    if word in SYNONYMS or word in IRREGULAR.values():
        return word
    for ending, rest, least in (("ies", "y", 2), ("ied", "y", 2), ("s", "", 3)):
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith("ss"):
            word = word[: -len(ending)] + rest
            return word[:-1] if re.search("(ss|zz|x|ch|sh)e$", word) else word
    verb = re.fullmatch(r"(\w*[aeiouy]\w*)(?:ing|ed)", word)
    return _with_its_end(verb[1]) if verb and len(verb[1]) >= 3 else word


def _with_its_end(verb: str) -> str:
    """A verb that has lost its ending, with the silent e that it had, or without the letter that was doubled."""
    sound = verb.replace("qu", "q")
    if re.search(r"([bdgkmnprt])\1$", sound):
        return verb[:-1]
    return verb + "e" if re.search(SILENT_E, sound) else verb


def worth(texts: Collection[set[str]]) -> dict[str, float]:
    """How much each word of some texts tells: rare ones more."""
    count = Counter(word for text in texts for word in text)
    return {word: math.log(1 + len(texts) / held) for word, held in count.items()}


@dataclass(frozen=True)
class Vocabulary:
    """The words that a network has learned; a word's token is its place + 1."""

    words: tuple[str, ...]
    index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {word: place + 1 for place, word in enumerate(self.words)})

    def tokens(self, text: str) -> list[int]:
        """Tokens of the known words, at most MAX_TOKENS."""
        return [self.index[word] for word in words(text) if word in self.index][:MAX_TOKENS]

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the network has never learned, in plain form, each once."""
        return list(dict.fromkeys(word for word in words(text) if word not in self.index))

    def batch(self, texts: list[str]) -> Tensor:  # [B, MAX_TOKENS] int64, 0 where there is no word
        """Tokens of several texts."""
        tokens = torch.full((len(texts), MAX_TOKENS), PAD, dtype=torch.long)
        for row, text in enumerate(texts):
            found = self.tokens(text)
            tokens[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return tokens
