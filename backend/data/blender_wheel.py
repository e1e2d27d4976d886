# SPDX-License-Identifier: GPL-3.0-or-later
"""Blender as a Python module, which not everybody has."""

import importlib.util

from backend.progress import UserError

INSTALL = "pip install bpy==4.5.15"  # as in pyproject.toml


def demand_blender(what: str, instead: str) -> None:
    """See that Blender's module is installed. `what` needs it; the sentence of the hint goes on with `instead`.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("bpy") is None:
        message = f"{what} needs Blender's Python module, which is not installed."
        raise UserError("no_blender", message, f"Install it with `{INSTALL}` (Python 3.11), or {instead}.")
