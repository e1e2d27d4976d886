# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension's door. Imports stay inside the functions: pytest imports this file too, and it has no bpy."""

import atexit


def register() -> None:
    """Called by Blender when the extension is enabled."""
    from . import operators, panels
    from .blender_addon import job_tracker, preferences, settings

    preferences.register(__package__)
    settings.register()
    operators.register()
    panels.register()
    job_tracker.register()
    # Blender itself disables extensions when it quits. Blender as a Python module does not, and would hang at exit on
    # the classes that are left.
    atexit.register(unregister)


def unregister() -> None:
    """Called by Blender when the extension is disabled."""
    from . import operators, panels
    from .blender_addon import job_tracker, preferences, settings

    atexit.unregister(unregister)
    job_tracker.unregister()
    panels.unregister()
    operators.unregister()
    settings.unregister()
    preferences.unregister()
