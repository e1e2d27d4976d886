# SPDX-License-Identifier: GPL-3.0-or-later
"""What made a result: versions of the program and of the packages that its numbers come from."""

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

from backend import __version__

BACKEND = Path(__file__).parent
LEAVES = ("compiled.py", "pictures.py")  # on which all rooms stand
PACKAGES = ("numpy", "torch", "numba", "llvmlite", "scipy", "diffusers", "gsplat", "bpy")


def versions() -> dict[str, str]:
    """Kinesplat, Python and the packages that matter, where installed."""
    found = {"kinesplat": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def program_key() -> str:
    """A digest of the program and of the weights that come with it: what another one has left half done is no use.

    The version alone would not do: sources are updated between releases, too. A process that stays asks for it at once,
    before what it runs from is replaced.
    """
    kinds = ("*.py", "*.toml", "weights/*/model.json", "weights/*/*.safetensors")
    return _digest(*(path for kind in kinds for path in BACKEND.rglob(kind)))


def code_key(*rooms: str) -> str:
    """A digest of all that decides what these rooms of the backend make: a change elsewhere leaves results valid.

    Of the shipped weights it takes the cards, which hold their checksums.
    """
    sources = [path for room in rooms for path in (BACKEND / room).rglob("*.py")]
    return _digest(*sources, *(BACKEND / name for name in LEAVES), *BACKEND.glob("weights/*/*.json"))


def _digest(*sources: Path) -> str:
    """Of files of the backend, and of the contract."""
    digest = hashlib.blake2b(__version__.encode())  # twice as fast as SHA-256 where the processor has none
    for path in sorted([*sources, *(BACKEND.parent / "blender_addon" / "contract").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
