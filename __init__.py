# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension's door. Imports stay inside the functions: pytest imports this file too, and it has no bpy."""

import atexit

_enabled = False


def register() -> None:
    """Called by Blender when the extension is enabled."""
    global _enabled
    from . import operators, panels
    from .blender_addon import job_tracker, preferences, settings

    preferences.register(__package__)
    settings.register()
    operators.register()
    panels.register()
    job_tracker.register()
    _enabled = True
    # Blender as a Python module disables extensions too late when it quits, and hangs on the classes that are left.
    atexit.register(unregister)


def unregister() -> None:
    """Called by Blender when the extension is disabled, and at exit; the second call finds nothing to do."""
    global _enabled
    if not _enabled:
        return
    _enabled = False
    from . import operators, panels
    from .blender_addon import job_tracker, preferences, settings

    atexit.unregister(unregister)
    job_tracker.unregister()
    panels.unregister()
    operators.unregister()
    settings.unregister()
    preferences.unregister()
