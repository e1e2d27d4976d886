# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights that come with the program: float16 safetensors in small files, beside a card that knows their checksums."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from backend.models.gpu import usable_gpu
from backend.progress import UserError
from blender_addon.contract.arrays import atomic_file, write_json
from blender_addon.contract.requests import file_sha256

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
CARD = "model.json"
MAX_FILE_BYTES = 15 * 2**20
HINT = "Install Kinesplat's backend again."


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Whatever goes wrong while a model is loaded from `folder`, said in a sentence.

    Raises:
        UserError: files are missing, damaged or of another version.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError("weights_missing", f"The model's file {error.filename} is missing.", HINT) from error
    except RuntimeError as error:  # names or shapes of tensors
        message = f"The weights in {folder} do not fit this version of the program."
        raise UserError("weights_version", message, HINT) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError("weights_damaged", f"The model in {folder} cannot be loaded: {error}", HINT) from error


def read_card(folder: Path, kind: str, version: int) -> dict:
    """The card of the model in `folder`, whose files have been checked. Use within `readable`."""
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if (card["format"], card["version"]) != (kind, version):
        raise UserError("weights_version", f"{folder} holds weights of another version.", HINT)
    for name, digest in card["sha256"].items():
        if file_sha256(folder / name) != digest:
            raise UserError("weights_damaged", f"{folder / name} is damaged: its checksum is wrong.", HINT)
    return card


def load_network(network: torch.nn.Module, folder: Path, names: list[str], device: str) -> None:
    """Give a network its weights, in float32, ready for use on `device`."""
    network.load_state_dict({name: tensor.float() for name, tensor in read_tensors(folder, names).items()})
    network.eval().requires_grad_(False).to(device)


def read_tensors(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The tensors of a network, in float16, from its files in `folder`. Use within `readable`."""
    return {key: tensor for name in names for key, tensor in load_file(folder / name).items()}


def default_device() -> str:
    """The GPU where there is one that can be used."""
    return "cuda" if usable_gpu() else "cpu"


def write_model(
    folder: Path,
    kind: str,
    version: int,
    parts: dict[str, torch.nn.Module],
    about: dict,
    extra: dict[str, dict[str, torch.Tensor]] | None = None,
) -> None:
    """Write networks, the files of `extra` as they are, and the card, which tells `about` too."""
    folder.mkdir(parents=True, exist_ok=True)
    files, digests = {}, {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        content = serialize(tensors)
        with atomic_file(folder / name) as file:
            file.write(content)
        digests[name] = hashlib.sha256(content).hexdigest()

    for name, tensors in (extra or {}).items():
        write(name, tensors)
    for part, network in parts.items():
        files[part] = []
        halves = {key: one.detach().to("cpu", torch.float16).contiguous() for key, one in network.state_dict().items()}
        for number, tensors in enumerate(shards(halves, MAX_FILE_BYTES)):
            name = f"{part}-{number}.safetensors"
            write(name, tensors)
            files[part].append(name)
    card = {"format": kind, "version": version, **about, "files": files, "sha256": digests}
    write_json(folder / CARD, card)


def sizes(values: dict) -> dict:
    """A network's sizes as its configuration takes them: JSON and TOML have lists where it has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def shards(tensors: dict[str, torch.Tensor], most: int) -> list[dict[str, torch.Tensor]]:
    """The tensors in order, in parts of at most `most` bytes; a larger tensor is a part of its own."""
    parts, size = [{}], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > most and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts
