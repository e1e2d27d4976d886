# SPDX-License-Identifier: GPL-3.0-or-later
"""The generator that the product uses, as evaluation takes it."""

import hashlib
from functools import partial
from pathlib import Path

from backend.evaluation.generation import Generator
from backend.models.kinesplat_small import CARD, FOLDER, load
from backend.models.shipped import default_device
from backend.pipelines.diffusion4d import generate_moving
from backend.pipelines.still_subject import generate_static
from backend.versions import code_key

ROOMS = ("models", "guidance", "pipelines", "splatting")  # whose code decides what comes out


def shipped_generator(weights: Path | None = None, *, known: bool = True) -> Generator:
    """kinesplat-small with the shipped weights or with those in a folder, on a GPU that can be used if there is one.

    known: known motions may take the place of invented ones, as they do in the product.

    Raises:
        UserError: the weights cannot be loaded.
    """
    folder = weights or FOLDER
    device = default_device()
    model = load(folder, device)
    card = hashlib.sha256((folder / CARD).read_bytes()).hexdigest()[:12]  # it holds the checksums of the weights
    chosen = {"model": model, "known": known}
    return Generator(
        moving=lambda *given, **settings: generate_moving(*given, **settings, **chosen).pictures,
        static=partial(generate_static, model=model),
        version=f"{model.name} on {device}, {card}, {code_key(*ROOMS)}{'' if known else ', invented only'}",
    )
