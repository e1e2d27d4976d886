# SPDX-License-Identifier: GPL-3.0-or-later
"""kinesplat-small, the model that comes with the program: loading its weights, checked against its card."""

from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from backend.models.known_motions import KnownMotions
from backend.models.known_subjects import KnownSubjects
from backend.models.shipped import (
    CARD,
    WEIGHTS,
    default_device,
    load_network,
    read_card,
    readable,
    sizes,
    write_model,
)
from backend.models.small import SmallConfig, SmallVideoNet
from backend.models.text import MANNERS, Vocabulary, words
from backend.models.volume import VolumeConfig, VolumeNet

__all__ = ["CARD", "FOLDER", "KinesplatSmall", "load", "save"]

FOLDER = WEIGHTS / "kinesplat-small"
MEMORY, MOTIONS = "memory.safetensors", "known_motions.safetensors"
FORMAT, VERSION = "kinesplat-small", 2


@dataclass(frozen=True)
class KinesplatSmall:
    """The networks, ready for use, in float32."""

    motion: SmallVideoNet  # static orbit -> motion latents
    static: VolumeNet | None  # text or image -> still subject, as a volume; None: first guesses are all there is
    memory: KnownSubjects  # of known subjects
    motions: KnownMotions  # that it was trained on
    vocabulary: Vocabulary
    one_way: frozenset[str]  # words in plain form for what ends elsewhere than it began
    resolution: int  # pixels
    frames: int
    name: str  # with its version, for provenance
    licence: str

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.motion.parameters()).device

    def loops(self, prompt: str) -> bool:
        """Whether a motion is likely to end as it began: a walk does, a death does not."""
        return self.one_way.isdisjoint(set(words(prompt)) - MANNERS)


@cache
def load(folder: Path = FOLDER, device: str | None = None) -> KinesplatSmall:
    """The model in `folder`, its files checked; loaded once. `device`: None is the GPU where there is one.

    Raises:
        UserError: the files are missing, damaged or of another version.
    """
    device = device or default_device()
    with readable(folder):
        card = read_card(folder, FORMAT, VERSION)
        networks = {"motion": SmallVideoNet(SmallConfig(**sizes(card["networks"]["motion"])))}
        if "static" in card["networks"]:
            networks["static"] = VolumeNet(VolumeConfig(**sizes(card["networks"]["static"])))
        for part, network in networks.items():
            load_network(network, folder, card["files"][part], device)
        networks["motion"].to(memory_format=torch.channels_last)
        return KinesplatSmall(
            **{"static": None, **networks},
            memory=KnownSubjects(tuple(card["subjects"]), **load_file(folder / MEMORY)),
            motions=KnownMotions(*zip(*card["motions"], strict=True), **load_file(folder / MOTIONS)),
            vocabulary=Vocabulary(tuple(card["vocabulary"])),
            one_way=frozenset(card["one_way"]),
            resolution=card["resolution"],
            frames=card["frames"],
            name=card["name"],
            licence=card["licence"],
        )


def save(
    folder: Path,
    parts: dict[str, torch.nn.Module],
    vocabulary: Vocabulary,
    memory: KnownSubjects,
    motions: KnownMotions,
    about: dict,
) -> None:
    """Write a model: float16 safetensors in files of at most 15 MB, and the card with their checksums.

    `parts`: motion and, if it has one, static; `about`: name, licence, resolution, frames, one_way and whatever the
    card is to tell.
    """
    told = {
        **about,
        "networks": {part: asdict(network.config) for part, network in parts.items()},
        "vocabulary": vocabulary.words,
        "subjects": memory.subjects,
        "motions": list(zip(motions.subjects, motions.actions, strict=True)),
    }
    extra = {
        MEMORY: {field.name: getattr(memory, field.name) for field in fields(memory) if field.name != "subjects"},
        MOTIONS: {"loops": motions.loops, "points": motions.points, "series": motions.series},
    }
    write_model(folder, FORMAT, VERSION, parts, told, extra)
