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
from functools import lru_cache

import torch
from torch import Tensor

MAX_TOKENS = 12
PAD = 0

STOP_WORDS = frozenset(
    """a an the is are be of in on at to and or with its it his her their while that this as by for from into
    he she they him them something someone somebody do does doing very please make let some one""".split()  # noqa: SIM905
)
IRREGULAR = {
    "ran": "run", "swam": "swim", "dying": "death", "died": "death", "dies": "death", "die": "death", "dead": "death",
    "lying": "lie", "lied": "lie", "flew": "fly", "ate": "eat", "bit": "bite", "threw": "throw", "shot": "shoot",
    "stood": "stand", "sat": "sit", "spun": "spin", "using": "use", "used": "use", "breathing": "breathe",
    "breathed": "breathe", "fires": "shoot", "fired": "shoot", "firing": "shoot",
    "fell": "fall", "fallen": "fall", "fought": "fight", "thrown": "throw", "struck": "strike",
    "crept": "creep", "leapt": "leap",
    "headbutting": "headbutt", "headbutted": "headbutt", "pirouetting": "pirouette",
    "pirouetted": "pirouette", "wolves": "wolf", "calves": "calf", "men": "man", "women": "woman", "people": "man",
    "geese": "goose", "grass": "grass", "alias": "alias", "yes": "yes", "dress": "dress", "colossus": "colossus",
}  # fmt: skip
_SAID = {  # words that prompts have, and after each others for the same
    "walk": """stroll stride march step crawl scuttle waddle trudge stomp limp wander saunter strut shuffle
        amble plod""",
    "wind": "slither",
    "run": "sprint jog race dash hurry charge flee chase rush scamper scurry skip",
    "gallop": "canter",
    "jump": "hop leap pounce breach vault backflip",
    "sneak": "creep prowl stalk hunt lurk tiptoe",
    "swim": "paddle",
    "fly": "hover",
    "glide": "soar",
    "duck": "crouch squat",
    "idle": "breathe rest wait wag talk speak look watch sleep relax pant sniff",
    "death": "collapse fall perish",
    "attack": "strike fight hiss lunge sting maul smash bash",
    "bite": "chomp snap",
    "block": "parry defend",
    "dodge": "evade",
    "throw": "hurl toss fling",
    "eat": "chew graze feed nibble munch devour drink peck",
    "roar": "growl snarl bellow",
    "dance": "boogie",
    "wave": "greet hello salute",
    "yes": "nod",
    "cheer": "celebrate rejoice",
    "clap": "applaud",
    "spellcast": "cast spell",
    "slow": "slowly",
    "fast": "quick quickly",
    "dog": "puppy doggy hound hunde",
    "cat": "kitten kitty",
    "horse": "pony stallion mare foal",
    "cow": "calf cattle",
    "bull": "ox",
    "sheep": "lamb ewe",
    "pig": "piglet hog boar",
    "chick": "duckling hen chicken rooster",
    "donkey": "donkey mule",
    "stag": "elk",
    "deer": "reindeer doe",
    "fish": "trout salmon carp cod bass guppy herring",
    "whale": "orca",
    "snake": "serpent viper cobra python",
    "spider": "tarantula",
    "bee": "bumblebee honeybee",
    "dragon": "wyvern",
    "kaiju": "dinosaur godzilla",
    "man": "guy boy gentleman person human male child kid fellow guard",
    "woman": "girl lady female",
    "mage": "wizard sorcerer witch magician",
    "barbarian": "warrior viking",
    "rogue": "thief pirate",
    "astronaut": "spaceman cosmonaut",
    "enemy": "robot monster drone",
}
SYNONYMS = {other: word for word, others in _SAID.items() for other in others.split()}
PHRASES = {  # two words that together are others
    ("get", "up"): ("stand", "up"), ("take", "off"): ("fly",), ("say", "no"): ("shake", "head"),
    ("breathe", "fire"): ("attack",), ("play", "dead"): ("death",), ("look", "around"): ("idle",),
    ("fall", "asleep"): ("idle",), ("wag", "tail"): ("idle",), ("tail", "wag"): ("idle",),
    ("race", "car"): ("car",), ("monster", "truck"): ("truck",), ("pirate", "ship"): ("ship",),
}  # fmt: skip
# How something is done
MANNERS = frozenset(
    """forward backward left right up down front back side fast slow normal long short high low full
    horizontal vertical diagonal""".split()  # noqa: SIM905
)
ANIMALS = {"duck": "chick", "fly": "bee"}  # that are called as what others do

# What verbs end in that have a silent e: those of one syllable in a vowel and a consonant (glide), and others
SILENT_E = re.compile(
    r"^[^aeiou]*[aeiou][^aeiouwxy]$|[cv]$|[dr]g$|(lu|plu|cha)ng$|[bdfgkpstz]l$|[lnpr]s$|[aeiou]{2}s$|[aeiou]z$"
    r"|[aeiouy].*[^aeiou]at$"
)
NO_FISH = "jelly|star|cray|cuttle|shell|silver"  # beginnings of what is called a fish and is none


def words(text: str) -> list[str]:
    """Plain forms of the words of a text, in order, without stop words."""
    return [plain for _, plain in _read(text)]


@lru_cache(8192)  # each prompt is compared with the names of all known subjects and motions
def _read(text: str) -> tuple[tuple[str, str], ...]:
    """The same, each with what was written."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    spaced = re.sub(r"['\u2019]s\b", "", spaced)  # the dog's tail
    spaced = re.sub(rf"\b(?!{NO_FISH})([a-z]{{2,}})(?=fish)", r"\1 ", spaced)  # goldfish
    spaced = re.sub(rf"\b(an?|the) ({'|'.join(ANIMALS)})\b", lambda found: ANIMALS[found[2]], spaced)
    # Those of whom something is told: the ducks swim, ducks swimming, a yellow duck swims
    spaced = re.sub(r"\bthe ducks\b|\bducks?(?= \w+ing\b)|\bduck(?= \w{2,}[^sy]s\b)", ANIMALS["duck"], spaced)
    written = [word for word in re.findall(r"[^\W\d_]+|\d[a-z]?", spaced) if word not in STOP_WORDS]
    found, read = [stem(word) for word in written], []
    while found:
        pair = PHRASES.get(tuple(found[:2]))
        read += [(written[0], plain) for plain in pair or [SYNONYMS.get(found[0], found[0])]]
        del found[: 2 if pair else 1], written[: 2 if pair else 1]
    return tuple(read)


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
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith(("ss", "us", "is")):
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
        """The words of a text that the network has never learned, as they are written, each once."""
        return list(dict.fromkeys(written for written, plain in _read(text) if plain not in self.index))

    def batch(self, texts: list[str]) -> Tensor:  # [B, MAX_TOKENS] int64, 0 where there is no word
        """Tokens of several texts."""
        tokens = torch.full((len(texts), MAX_TOKENS), PAD, dtype=torch.long)
        for row, text in enumerate(texts):
            found = self.tokens(text)
            tokens[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return tokens
