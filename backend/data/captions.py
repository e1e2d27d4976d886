# SPDX-License-Identifier: GPL-3.0-or-later
"""Captions of clips, from the names that their makers gave to assets and actions."""

import re

import numpy as np

NOISE = re.compile(r"armature|action(?=\b|\.)|\.\d+|animations?\b|\brm\b|inplace", re.IGNORECASE)
SUBJECTS = {  # file names that say too little or too much
    "horse_white": "white horse", "shibainu": "shiba inu dog", "husky": "husky dog", "pug": "pug dog",
    "red_fox": "red fox", "knightcharacter": "knight", "character": "person", "character_gun": "person with gun",
    "alien_helmet": "alien with helmet", "smooth_male_casual": "casual man", "smooth_male_longsleeve": "longsleeve man",
    "smooth_male_shirt": "shirt man", "male_casual": "casual man", "male_longsleeve": "longsleeve man",
    "male_shirt": "shirt man", "male_suit": "suit man", "female_alternative": "alternative woman",
    "female_casual": "casual woman", "female_dress": "dress woman", "female_tanktop": "tanktop woman",
    "astronaut_barbarathebee": "bee astronaut", "astronaut_fernandotheflamingo": "flamingo astronaut",
    "astronaut_finnthefrog": "frog astronaut", "astronaut_raetheredpanda": "red panda astronaut",
    "hazard_spiketrap": "spike trap", "snake_angry": "angry snake", "manta_ray": "manta ray fish",
    "enemy_extrasmall": "small flying enemy", "rogue_hooded": "hooded rogue",
}  # fmt: skip
ACTIONS = {  # names that say too little, by what they show
    "hitreact": "hit react", "hitrecieve": "hit react", "headbut": "headbutt", "out of water": "flop out of water",
    "swimming impulse": "swim impulse", "unarmed": "", "melee": "", "ranged": "shoot", "rangedshoot": "shoot",
    "no": "shake head", "yes": "nod yes",
}  # fmt: skip


def subject(entry: dict) -> str:
    """What an asset is, such as "husky dog"."""
    name = re.sub(r"_animations$", "", entry["id"].split("/")[-1].lower())
    plain = SUBJECTS.get(name, re.sub(r"[_\d]+", " ", name).strip())
    if entry["family"] == "cute_fish":
        plain = plain if plain.endswith("fish") else f"{plain} fish"
        plain = re.sub(r"(?<=\w)fish$", " fish", plain).replace("  ", " ")
    return plain


def action(name: str, entry: dict) -> str:
    """What a clip shows, such as "walk"; empty where its name tells nothing."""
    words = NOISE.sub(" ", name.split("|")[-1])
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower()
    words = re.sub(r"[_\s]+", " ", words).strip()
    words = re.sub(r"^(man|female|alien|snake|frog|rat|spider|wasp|tank|bouncer|chest|lever)\s+", "", words)
    words = re.sub(r"\b(hit recieve|hitrecieve|hitreact)\b", "hit react", words)
    words = re.sub(r"\b([a-d])$", "", words).strip()
    words = ACTIONS.get(words, words)
    if not words and re.search(r"fish|whale|shark|dolphin|piranha", entry["id"]):
        return "swim"
    return words


def caption(entry: dict, name: str, rng: np.random.Generator | None = None) -> str:
    """A caption of one clip, "husky dog walk"; with a generator sometimes only the subject or only the action."""
    what, does = subject(entry), action(name, entry)
    if rng is not None:
        pick = rng.random()
        if pick < 0.2:
            return does
        if pick < 0.3:
            return what
    return f"{what} {does}".strip()
