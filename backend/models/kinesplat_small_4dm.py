# SPDX-License-Identifier: GPL-3.0-or-later
"""kinesplat-small-4dm, the small 4DM that comes with the program: loading its weights, checked against its card."""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from backend.models.shipped import WEIGHTS, default_device, load_network, read_card, readable, sizes, write_model
from backend.models.small_fourdm import SmallFourDM, SmallFourDMConfig
from backend.models.text import Vocabulary

FOLDER = WEIGHTS / "kinesplat-small-4dm"
FORMAT, VERSION = "kinesplat-small-4dm", 1


@dataclass(frozen=True)
class KinesplatSmall4DM:
    """The network, ready for use, in float32."""

    network: SmallFourDM
    vocabulary: Vocabulary
    resolution: int  # pixels of the views
    name: str  # with its version, for provenance
    licence: str

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device


@cache
def load(folder: Path = FOLDER, device: str | None = None) -> KinesplatSmall4DM:
    """The model in `folder`, its files checked; loaded once. `device`: None is the GPU where there is one.

    Raises:
        UserError: the files are missing, damaged or of another version.
    """
    with readable(folder):
        card = read_card(folder, FORMAT, VERSION)
        network = SmallFourDM(SmallFourDMConfig(**sizes(card["network"])))
        load_network(network, folder, card["files"]["views"], device or default_device())
        network.to(memory_format=torch.channels_last)
        words = Vocabulary(tuple(card["vocabulary"]))
        return KinesplatSmall4DM(network, words, card["resolution"], card["name"], card["licence"])


def save(folder: Path, network: SmallFourDM, vocabulary: Vocabulary, about: dict) -> None:
    """Write a model and its card, which tells `about` (name, licence, resolution, training) too."""
    told = {**about, "network": asdict(network.config), "vocabulary": vocabulary.words}
    write_model(folder, FORMAT, VERSION, {"views": network}, told)
