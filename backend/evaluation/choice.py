# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clips of a manifest an evaluation takes: always the same ones, of all families in turn."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backend.data.baked import read_manifest
from backend.data.captions import action, caption
from backend.progress import UserError

STILL, TYPICAL = 0.008, 0.05  # mean motion by the manifest: less is hardly chosen, and what is near this comes first


@dataclass(frozen=True)
class ChosenClip:
    """One animation of one asset of a manifest."""

    entry: dict
    index: int

    @property
    def action(self) -> str:
        """Its name in the file."""
        return self.entry["clips"][self.index]["action"]

    @property
    def name(self) -> str:
        """For files and tables."""
        return re.sub(r"[^\w.-]+", "_", f"{self.entry['id'].replace('/', '__')}__{self.action}")

    @property
    def prompt(self) -> str:
        """What a user would ask for."""
        return caption(self.entry, self.action)


def choose_clips(
    entries: list[dict], per_asset: int, is_wanted: Callable[[ChosenClip], bool] = lambda clip: True
) -> list[ChosenClip]:
    """At most `per_asset` clips of each asset, all families in turn, always the same ones.

    Within a family, actions that have not been taken yet come first, then clips that stay in place, then those whose
    motion is nearest to the typical one. What hardly moves is taken only where an asset has nothing else.
    """
    families: dict[str, list[ChosenClip]] = {}
    taken: Counter[tuple[str, str]] = Counter()

    def rank(entry: dict, k: int) -> tuple:
        clip = entry["clips"][k]
        unusual = abs(math.log(max(clip.get("motion", TYPICAL), 1e-6) / TYPICAL))
        return taken[entry["family"], action(clip["action"], entry)], clip.get("recentre", False), unusual, k

    for round_ in range(per_asset):
        for entry in sorted(entries, key=lambda entry: entry["id"]):
            chosen = families.setdefault(entry["family"], [])
            own = {clip.index for clip in chosen if clip.entry is entry}
            left = [k for k in range(len(entry["clips"])) if k not in own and is_wanted(ChosenClip(entry, k))]
            moving = [k for k in left if entry["clips"][k].get("motion", TYPICAL) >= STILL]
            if moving or (left and round_ == 0):
                best = min(moving or left, key=lambda k, entry=entry: rank(entry, k))
                taken[entry["family"], action(entry["clips"][best]["action"], entry)] += 1
                chosen.append(ChosenClip(entry, best))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(families[name] for name in sorted(families))))
    return [clip for clip in in_turn if clip is not None]


def chosen_clips(
    assets: Path,
    split: str | None,
    per_asset: int,
    *,
    families: list[str] | None = None,
    actions: list[str] | None = None,
) -> list[ChosenClip]:
    """The clips of a split that may be evaluated, in order.

    Args:
        assets: folder of the manifest.
        split: of the manifest; None takes all of them.
        per_asset: clips of each asset at most.
        families: only assets of these.
        actions: only clips whose action's name holds one of these words, in small or capital letters.

    Raises:
        BadFileError: no manifest.
        UserError: there are no such clips.
    """
    everything = read_manifest(assets)
    entries = [entry for entry in everything if split in (None, entry["split"])]
    if not entries:
        known = sorted({entry["split"] for entry in everything})
        raise UserError("no_clips", f"There are no clips in split {split!r}.", f"Splits: {', '.join(known) or 'none'}.")
    known = sorted({entry["family"] for entry in entries})
    if unknown := sorted(set(families or []) - set(known)):
        hint = f"Families of the split: {', '.join(known)}."
        raise UserError("no_clips", f"There is no family {', '.join(unknown)}.", hint)
    words = [word.lower() for word in actions or [""]]
    clips = choose_clips(
        [entry for entry in entries if families is None or entry["family"] in families],
        per_asset,
        lambda clip: any(word in clip.action.lower() for word in words),
    )
    if not clips:
        raise UserError("no_clips", "No clip fits.", "Ask for another split, other families or other actions.")
    return clips


def named_clips(assets: Path, names: list[str]) -> list[ChosenClip]:
    """Exactly the clips that are named, each `ID:ACTION`; of the action, what follows the last `|` is enough.

    Raises:
        BadFileError: no manifest.
        UserError: there is no such clip; the hint lists what there is.
    """
    entries = {entry["id"]: entry for entry in read_manifest(assets)}
    chosen = []
    for name in names:
        identity, _, wanted = name.partition(":")
        if identity not in entries:
            raise UserError("no_clips", f"There is no asset {identity!r}.", "The manifest lists them.")
        known = [clip["action"] for clip in entries[identity]["clips"]]
        found = [k for k, action in enumerate(known) if wanted in (action, action.rpartition("|")[2])]
        if not found:
            raise UserError("no_clips", f"{identity} has no action {wanted!r}.", f"Actions: {', '.join(known)}.")
        chosen.append(ChosenClip(entries[identity], found[0]))
    return chosen
