# SPDX-License-Identifier: GPL-3.0-or-later
"""Thin verbs, one file per subject: `execute` calls blender_addon, reports, and returns."""

from . import assets, backend, clean_up, exchange, files, generate, jobs, mesh_motion, retime, scene

MODULES = (backend, generate, jobs, files, scene, retime, clean_up, mesh_motion, assets, exchange)


def register() -> None:
    """Register the operators of all files."""
    for module in MODULES:
        module.register()


def unregister() -> None:
    """Unregister them, last first."""
    for module in reversed(MODULES):
        module.unregister()
