# SPDX-License-Identifier: GPL-3.0-or-later
"""What made a result: versions of the program and of the packages that its numbers come from."""

import importlib.metadata
import platform

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
