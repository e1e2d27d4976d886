# SPDX-License-Identifier: GPL-3.0-or-later
"""The progress of what takes some seconds: a number at the mouse pointer, as Blender shows it."""

import contextlib
from collections.abc import Callable, Iterator

import bpy


@contextlib.contextmanager
def shown_progress(context: bpy.types.Context) -> Iterator[Callable[[float], None]]:
    """While it lasts, the pointer shows the share of the work, 0 to 1, that the function is told."""
    manager = context.window_manager
    manager.progress_begin(0, 1)
    try:
        yield manager.progress_update
    finally:
        manager.progress_end()
