# SPDX-License-Identifier: GPL-3.0-or-later
"""What made a result: versions of the program and of the packages that its numbers come from."""

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

from backend import __version__

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

    The version alone would not do: sources are updated between releases, too.
    """
    backend = Path(__file__).parent
    sources = [*backend.rglob("*.py"), *backend.rglob("*.toml"), *backend.glob("weights/*/model.json")]
    sources += (backend.parent / "blender_addon" / "contract").glob("*.py")
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(sources):
        digest.update(path.read_bytes())
    for path in sorted(backend.glob("weights/*/*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]
