# SPDX-License-Identifier: GPL-3.0-or-later
"""Published weights that this program can use: where from, how large, under which licence (`weights.toml`)."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from backend.models.checkpoints import KeyDifference, Shape, compare, expected_shapes
from backend.progress import UserError

REGISTRY = Path(__file__).resolve().parent / "weights.toml"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class File:
    """One file of a repository, and what public records say about it."""

    path: str
    bytes: int | None = None
    about: float | None = None  # bytes, as people round them
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Without folders."""
        return PurePosixPath(self.path).name

    @property
    def is_pickle(self) -> bool:
        """Whether it has to be converted before anything else reads it."""
        return self.path.endswith(PICKLES)


@dataclass(frozen=True)
class Weights:
    """One set of weights; see `weights.toml` for the fields."""

    name: str
    title: str
    needed_by: tuple[str, ...]
    licence: str
    licence_page: str
    commercial: str
    files: tuple[File, ...]
    sources: tuple[Source, ...] = ()
    note: str = ""
    page: str = ""
    keys: str = ""
    strip: tuple[str, ...] = ()
    drop: str = ""
    part: str = ""

    @property
    def must_be_accepted(self) -> bool:
        """Whether the licence forbids commercial use, or may."""
        return self.commercial != "yes"

    @property
    def is_pickle(self) -> bool:
        """Whether the weights have to be converted."""
        return any(file.is_pickle for file in self.files)

    @property
    def size(self) -> float | None:
        """Bytes of all files, as far as they are known; None where none is."""
        known = [file.bytes or file.about for file in self.files if file.bytes or file.about]
        return sum(known) if known else None

    @property
    def verified(self) -> bool:
        """Whether each file with tensors has a digest."""
        return all(file.sha256 for file in self.files if not file.path.endswith(".json"))

    def differences(self, found: Mapping[str, Shape]) -> KeyDifference | None:
        """Tensors found against the published network's; None where its names are not known.

        Tensors that no network needs do not count, and a file that holds just `part` is complete.
        """
        if not self.keys:
            return None
        expected = expected_shapes(self.keys)
        found = {name: shape for name, shape in found.items() if not (self.drop and re.fullmatch(self.drop, name))}
        if self.part and all(re.fullmatch(self.part, name) for name in found):
            expected = {name: shape for name, shape in expected.items() if re.fullmatch(self.part, name)}
        return compare(found, expected)


@cache
def registry() -> dict[str, Weights]:
    """All published weights by name."""
    entries = tomllib.loads(REGISTRY.read_text("utf-8"))
    return {name: _weights(name, entry) for name, entry in entries.items()}


def find(name: str) -> Weights:
    """The weights of that name.

    Raises:
        UserError: there are none; the hint names those that may be meant.
    """
    known = registry()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
        raise UserError("unknown_weights", f"There are no weights called {name}.", hint)
    return known[name]


def of_file(name: str) -> list[Weights]:
    """The weights that a file of this name belongs to."""
    return [weights for weights in registry().values() if any(file.name == name for file in weights.files)]


def _weights(name: str, entry: dict) -> Weights:
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    made["files"] = tuple(File(**file) for file in entry["files"])
    made["sources"] = tuple(Source(**source) for source in entry.get("sources", ()))
    return Weights(name, **made)
