# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: packed runs from weights that come with the program, to train them on where their runs are not."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from backend.models import kinesplat_small, kinesplat_small_4dm
from backend.models.shipped import CARD, read_card, read_tensors, readable
from backend.progress import UserError
from backend.training.checkpoint import EMA, WEIGHTS, digest_of_average, write_about
from backend.training.config import TrainConfig, read_config
from backend.training.packed import check_place, write_parts

Tensors = dict[str, torch.Tensor]
# Sizes on a card that no configuration names.
DATA_DECIDES = ("vocabulary", "motion", "latent_channels", "condition_channels", "vector_channels")


def unship(weights: Path, out: Path) -> list[Path]:
    """Write a packed run of each network of a model to a folder in `out`; returns these, what others stand on first.

    Both their weights and their average are those that were shipped; the optimizer starts anew, as after any packing.

    Raises:
        UserError: the model is missing, damaged or of another version, is none that is trained in runs, or `out` is
            not empty.
    """
    check_place(out)
    with readable(weights):
        kind = json.loads((weights / CARD).read_text(encoding="utf-8"))["format"]
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise UserError("no_runs", f"A model of the kind {kind} is not trained in runs.", f"Known are {known}.")
        version, write = KINDS[kind]
        return write(weights, read_card(weights, kind, version), out)


def _small(weights: Path, card: dict, out: Path) -> list[Path]:
    runs = []
    for part, sizes in card["networks"].items():
        config = _config(f"kinesplat_small_{part}", sizes, card)
        runs.append(_write(out / part, config, read_tensors(weights, card["files"][part]), card, card["trained"][part]))
    return runs


def _small_fourdm(weights: Path, card: dict, out: Path) -> list[Path]:
    tensors = read_tensors(weights, card["files"]["views"])
    modules = {name: tensor for name, tensor in tensors.items() if "motion" in name}
    rest = {name: tensor for name, tensor in tensors.items() if name not in modules}
    base, motion = out / "base", out / "motion"
    # How long the base was trained is not on the card: its average begins anew.
    _write(base, _config("kinesplat_small_4dm", card["network"], card), rest, card, {"steps": 0, "batch": 1})
    config = _config("kinesplat_small_4dm_motion", card["network"], card, {"base_run": str(base)})
    _write(motion, config, modules, card, card["trained"], base_digest=digest_of_average(base))
    return [base, motion]


def _config(name: str, sizes: dict, card: dict, below: dict | None = None) -> TrainConfig:
    network = {key: value for key, value in sizes.items() if key not in DATA_DECIDES}
    return replace(read_config(name), network=network, resolution=card["resolution"], **(below or {}))


def _write(folder: Path, config: TrainConfig, tensors: Tensors, card: dict, trained: dict, **more: str) -> Path:
    write_parts(folder, {WEIGHTS: tensors, EMA: tensors})
    state = {"step": trained["steps"], "samples": trained["steps"] * trained["batch"]}
    write_about(folder, state, {**asdict(config), **more, "vocabulary": card["vocabulary"]})
    return folder


KINDS: dict[str, tuple[int, Callable[[Path, dict, Path], list[Path]]]] = {
    kinesplat_small.FORMAT: (kinesplat_small.VERSION, _small),
    kinesplat_small_4dm.FORMAT: (kinesplat_small_4dm.VERSION, _small_fourdm),
}
