# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of published networks: where they lie, what is in them, and whether it is what a network expects.

Only safetensors files are read here. `weights_fetch` and `weights_convert` make them.
"""

import json
import lzma
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backend.progress import UserError
from blender_addon.contract.home import home_folder

FOLDER_VARIABLE = "KINESPLAT_WEIGHTS"
DOWNLOADS = ".downloads"  # within the weights' folder: what is not complete yet
CARD = "card.json"  # written last: a folder with a card is complete
INDEX = "model.safetensors.index.json"  # which file of several holds which tensor, as the Hugging Face hub has it
SINGLE = "model.safetensors"
KEYS = Path(__file__).resolve().parent / "keys"
SHOWN = 5  # names that a message lists
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # in which programs save weights
LGM = "lgm_big."  # VideoMV's files carry its Gaussian refiner, LGM, too

Shape = tuple[int, ...]


def weights_folder(override: str | os.PathLike | None = None) -> Path:
    """Where downloaded weights are kept: `override`, KINESPLAT_WEIGHTS, `weights` in KINESPLAT_HOME or in the user's
    data folder."""
    if chosen := override or os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return home_folder() / "weights"


def locate(name: str, folder: str | os.PathLike | None = None) -> Path:
    """The folder with the weights called `name` in the registry. Nothing is ever downloaded here.

    Raises:
        UserError: they are not there, or not all of them; the hint says which command fetches them.
    """
    path = weights_folder(folder) / name
    if not (path / CARD).is_file():
        raise UserError(
            "weights_missing",
            f"The weights {name} are not on this computer: {path} does not hold them.",
            f"Run: python -m backend weights fetch {name}",
        )
    return path


def read_card(folder: Path) -> dict:
    """What `fetch` or `convert` noted about a folder of weights.

    Raises:
        UserError: the note is missing or damaged.
    """
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
        if not isinstance(card["files"], dict):
            raise TypeError("files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("weights_damaged", f"{folder / CARD} cannot be read: {error}", _again(folder)) from error
    return card


def tensor_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: `path` itself, or those of the folder that `path` is.

    Raises:
        UserError: there are none, or some are missing.
    """
    if path.is_file():
        return [path]
    index = path / INDEX
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError("weights_damaged", f"{index} cannot be read: {error}", _again(path)) from error
    files = [path / name for name in sorted(names)] or sorted(path.glob("*.safetensors"))
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError("weights_missing", f"{path} lacks {listed(missing)}.", _again(path))
    if not files:
        raise UserError("weights_missing", f"{path} holds no safetensors file.", _again(path))
    return files


def read_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes of all tensors of a checkpoint, without reading the tensors.

    Raises:
        UserError: a file is missing or damaged.
    """
    shapes: dict[str, Shape] = {}
    for file in tensor_files(path):
        with _opened(file) as content:
            shapes.update({name: tuple(content.get_slice(name).get_shape()) for name in content.keys()})  # noqa: SIM118
    return shapes


def read_tensors(path: Path, prefix: str = "", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names, on the CPU.

    `path`: a safetensors file or a folder of such. `dtype`: of the floating-point ones; by default as stored, and then
    the tensors are views of the memory-mapped file.

    Raises:
        UserError: a file is missing or damaged, or no name begins with `prefix`.
    """
    tensors: dict[str, Tensor] = {}
    for file in tensor_files(path):
        with _opened(file) as content:
            for name in content.keys():  # noqa: SIM118 - not a mapping
                if name.startswith(prefix):
                    tensor = content.get_tensor(name)
                    floating = dtype is not None and tensor.is_floating_point()
                    tensors[name[len(prefix) :]] = tensor.to(dtype) if floating else tensor
    if not tensors:
        raise UserError("weights_damaged", f"{path} holds no tensor whose name begins with {prefix!r}.", _again(path))
    return tensors


@dataclass(frozen=True)
class KeyDifference:
    """How the tensors of a checkpoint differ from those that a network expects."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: tuple[str, ...]  # "name: (found) instead of (expected)"

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.reshaped)

    def __str__(self) -> str:
        parts = (("missing", self.missing), ("extra", self.extra), ("of another shape", self.reshaped))
        return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)


def compare(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> KeyDifference:
    """Names and shapes against each other."""
    return KeyDifference(
        missing=tuple(sorted(expected.keys() - found.keys())),
        extra=tuple(sorted(found.keys() - expected.keys())),
        reshaped=tuple(
            f"{name}: {tuple(found[name])} instead of {tuple(expected[name])}"
            for name in sorted(found.keys() & expected.keys())
            if tuple(found[name]) != tuple(expected[name])
        ),
    )


def expected_shapes(keys: str) -> dict[str, Shape]:
    """Names and shapes of a published network; `keys` is a file in `backend/models/keys`.

    They come from constructing the public code's networks, not from opening released files.
    """
    listing = json.loads(lzma.decompress((KEYS / f"{keys}.json.xz").read_bytes()))
    return {name: tuple(shape) for name, shape in listing.items()}


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Give `network` exactly these tensors. `what` names them for people; `assign`: take them instead of copying.

    Raises:
        UserError: names or shapes differ; the message lists the first of them and counts all.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if difference := compare({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected):
        raise UserError(
            "weights_mismatch",
            f"{what} does not fit the network {type(network).__name__}: {difference}.",
            "It is a file of another network or another release. See: python -m backend weights verify",
        )
    network.load_state_dict(tensors, assign=assign)


def released_state(released: Mapping) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's weights and LGM's, from a released file's contents; without prefixes.

    The weights may lie under "state_dict" or the like, beside step counts, and all their keys may begin with "module."
    or the like.
    """
    inside = next((released[name] for name in WRAPPERS if isinstance(released.get(name), Mapping)), None)
    if inside is not None:
        return released_state(inside)
    state = {key: value for key, value in released.items() if isinstance(value, Tensor)}
    prefixes = [f"{name}." for name in WRAPPERS]
    while prefix := next((one for one in prefixes if state and all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    lgm = {key.removeprefix(LGM): value for key, value in state.items() if key.startswith(LGM)}
    return {key: value for key, value in state.items() if not key.startswith(LGM)}, lgm


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class _opened:
    """`safe_open` whose errors are for people."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> safe_open:
        try:
            self._content = safe_open(self._file, framework="pt", device="cpu")
            return self._content.__enter__()
        except (OSError, SafetensorError) as error:
            message = f"{self._file} is missing, damaged or not a safetensors file: {error}"
            raise UserError("weights_damaged", message, _again(self._file.parent)) from error

    def __exit__(self, *error: object) -> None:
        self._content.__exit__(*error)


def _again(folder: Path) -> str:
    return f"Remove {folder} and fetch or convert the weights again."
