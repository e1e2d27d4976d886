# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user sees: the tab Kinesplat in the 3D viewport's sidebar. It only reads."""

from . import assets, backend, clean_up, exchange, generate, jobs, splats

MODULES = (
    backend,
    splats,
    clean_up,
    assets,
    exchange,
    generate,
    jobs,
)  # selected Gaussians stand above what makes more


def register() -> None:
    """Register the panels in the order in which they stand."""
    for module in MODULES:
        module.register()


def unregister() -> None:
    """Unregister them, last first."""
    for module in reversed(MODULES):
        module.unregister()
