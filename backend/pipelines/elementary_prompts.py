# SPDX-License-Identifier: GPL-3.0-or-later
"""Which elementary motion a prompt names: one of a thing, and nothing that living things do otherwise.

No grammar, but a few rules that read what animators type as it is meant.
"""

import re
from collections.abc import Container, Iterator

from backend.models.known_motions import KnownMotions
from backend.models.text import MANNERS, plain_form, stem, words
from backend.pipelines.elementary import MOTIONS, Elementary

VERBS = {
    verb: name
    for name, verbs in {
        "swaying": "sway bend lean",
        "swinging": "swing dangle",
        "wobbling": "wobble rock teeter totter tilt",
        "spinning": "spin rotate revolve twirl turn whirl pirouette turntable",
        "rolling": "roll",
        "tumbling": "tumble somersault",
        "bouncing": "bounce",
        "floating": "float hover bob levitate",
        "sailing": "sail drift row",
        "riding": "drive ride rumble",
        "trembling": "tremble shake shiver vibrate quake shudder jitter rattle buzz",
        "jiggling": "jiggle wiggle",
        "pulsing": "pulse pulsate throb beat breathe",
        "growing": "grow inflate swell expand",
        "shrinking": "shrink deflate",
        "stretching": "stretch",
        "squashing": "squash squeeze squish",
        "melting": "melt",
        "twisting": "twist",
        "toppling": "topple fall collapse",
        "waving": "wave flap blow rustle",
        "rippling": "ripple flutter",
        "billowing": "billow",
    }.items()
    for verb in verbs.split()
}
SOFT = {  # what moves in the wind, each in its way
    thing: name
    for name, things in {
        "rippling": "flag pennant ribbon scarf scarve streamer sail",
        "billowing": "curtain cloth towel blanket sheet cape cloak banner veil drape laundry",
        "swaying": """tree grass plant flower sunflower daisy tulip rose palm willow pine bamboo fern seaweed kelp coral
            vine branch reed leaf leave bush corn wheat""",
        "sailing": "boat ship sailboat yacht",
    }.items()
    for thing in things.split()
}
# What drifts down where other things fall over
LIGHT = frozenset("leaf leave petal feather snow snowflake confetti paper balloon parachute".split())  # noqa: SIM905
# Living things that one rides, beside those that are known: they are no vehicles on springs
RIDDEN = frozenset("horse donkey camel elephant ostrich deer dragon unicorn dinosaur bear".split())  # noqa: SIM905
# What living things never do as others do
LIVING = {"turn", "shake", "hover", "breathe", "fall", "collapse", "flutter", "buzz"}
THINGS = {"chest", "lever", "spike trap", "tank", "avocado", "banana", "peach", "pineapple", "watermelon"}
DETERMINERS = {"a", "an", "the", "its", "his", "her", "their"}
PLACES = {"in", "on", "of", "over", "under", "through", "from", "into", "onto", "across", "at"}
HAVING = {"with", "wearing", "wears", "holding", "holds", "carrying", "carries"}
DOING = {"do", "does", "doing"}  # a somersault
NEAR = 3  # words from "not" to what is not done
NOT = {"not", "no", "never", "without", "neither", "nor", "cannot", "dont", "doesnt", "isnt"}
CARRIED = {"sailing", "riding"}  # "a man rows a boat": both move
AIRBORNE = {"floating", "sailing", "rippling", "swaying", "tumbling"}  # what light things do on their way down
WINDBLOWN = {"waving", "swaying", "rippling"}  # which soft things do in a way of their own
WIND = {"wind", "winds", "windy", "breeze", "storm", "gale", "gust", "gusts"}
# Words of known actions and subjects that say how, or that in prompts more often name other things
NO_ACTIONS = MANNERS | frozenset(
    """out off water wind start but stand death coil floor chair sword gun weapon item block duck race red white gold
    large small flat casual sun suit shirt dress blob""".split()  # noqa: SIM905
)


def named_in(prompt: str, known: KnownMotions) -> Elementary | None:
    """The elementary motion that a prompt names; the last one, if there are several.

    None: it names none, or one that is not done ("does not spin"), or a known action too ("walks and waves"), or one
    that its subject is known to do in a way of its own ("a man waves"), or one that is done to something else ("a man
    swings a sword"), or by what the subject has ("with falling leaves"), or by a living thing in place of a vehicle.
    """
    spoken, denied = _affirmed(re.findall(r"[a-z]+", re.sub(r"n['\u2019]t\b", " not", prompt.lower())))
    told = _told(spoken)
    if not told and (any(map(_verb, denied)) or not WIND & set(spoken)):
        return None
    verb = list(told.values())[-1] if told else "wave"
    beside = [
        text
        for place, text in enumerate(spoken)
        if text not in told
        and stem(text) not in NO_ACTIONS
        and plain_form(text) not in MANNERS  # slowly
        and _before(spoken, place) not in PLACES
    ]
    others = set(words(" ".join(beside)))
    for subject, action in zip(known.subjects, known.actions, strict=True):
        alike = verb in words(action) if subject in THINGS else verb in LIVING or plain_form(verb) in words(action)
        if (alike and set(words(subject)) & others) or set(words(action)) & others:
            return None
    name = VERBS[verb]
    if name in WINDBLOWN:
        name = _soft(spoken) or name
    if name == "riding" and _on_a_living_thing(spoken[spoken.index(list(told)[-1]) + 1 :], others, known):
        return None
    if name == "toppling" or (name in AIRBORNE and "down" in spoken):
        light = [text for text, is_placed in _subjects(spoken) if not is_placed and _thing(text, LIGHT)]
        name = "drifting" if light else name
    return MOTIONS.get(name)


def is_word_of(text: str) -> bool:
    """Whether a word may name an elementary motion, as "sways" and "wind" do."""
    return text in WIND or _verb(text) is not None


def _affirmed(spoken: list[str]) -> tuple[list[str], list[str]]:
    """The words of a prompt, and apart from them what is not done: "spins without swaying or bending" -> "spins"."""
    kept, denied, reach = [], [], 0  # how many words on something not done may still be named
    for place, text in enumerate(spoken):
        after, second = [*spoken[place + 1 : place + 3], "", ""][:2]
        if text in NOT and after != "only":
            reach = NEAR
        elif reach and (_verb(text) or text.endswith("ing") or text in WIND):
            alike = text.endswith("ing") and second.endswith("ing")  # but not in "does not sway and spins"
            denied.append(text)
            reach = 2 if after == "or" or (after == "and" and alike) else 0
        elif not (reach and text in DETERMINERS):
            reach = max(reach - 1, 0)
            kept.append(text)
    return kept, denied


def _told(spoken: list[str]) -> dict[str, str]:
    """The words of a prompt that say what its subject does, and their verbs."""
    told = {}
    for place, text in enumerate(spoken):
        before, after = _before(spoken, place), spoken[place + 1 : place + 2]
        thing = before in PLACES or (DETERMINERS & set(spoken[max(place - 1, 0) : place]) and before not in DOING)
        if text == "rock":  # a big one
            thing = thing or DETERMINERS & set(spoken[:place])
        if before in HAVING or (thing and not text.endswith("ing")):  # "on the waves", but not "a rocking boat"
            continue
        verb = _verb(text)
        if verb and (not place or VERBS[verb] in CARRIED or not DETERMINERS & set(after)):
            told[text] = verb
    return told


def _before(spoken: list[str], place: int) -> str:
    """The word before one and its article; empty for the first."""
    return next((word for word in reversed(spoken[:place]) if word not in DETERMINERS), "")


def _soft(spoken: list[str]) -> str | None:
    """The motion in the wind of what a prompt is about: not of what that has or holds."""
    soft = [(SOFT[thing], is_placed) for text, is_placed in _subjects(spoken) if (thing := _thing(text, SOFT))]
    return ([name for name, is_placed in soft if not is_placed] or [name for name, _ in soft] or [None])[-1]


def _subjects(spoken: list[str]) -> Iterator[tuple[str, bool]]:
    """The words of a prompt before what its subject has or holds, and whether each tells only a place."""
    for place, text in enumerate(spoken):
        if text in HAVING:
            return
        yield text, _before(spoken, place) in PLACES


def _on_a_living_thing(after: list[str], others: set[str], known: KnownMotions) -> bool:
    """Whether what is ridden, or who rides where that is not told, is alive; after: words behind "rides"."""
    subjects = [subject for subject in known.subjects if subject not in THINGS]
    living = {word for name in (*RIDDEN, *subjects) for word in words(name)}
    ridden = set(words(" ".join(after)))
    return bool(living & (ridden or others))


def _thing(text: str, things: Container[str]) -> str | None:
    """The one of some things that a word names, also where it names several."""
    return plain if (plain := stem(text)) in things else None


def _verb(text: str) -> str | None:
    """The verb of an elementary motion of which a word is a form."""
    return plain if (plain := stem(text)) in VERBS else None
