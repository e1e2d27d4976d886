# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes of a mesh's points as arrays."""

import contextlib
from collections.abc import Iterator

import bpy
import numpy as np

NUMBER = "number"  # which of its clip each point is

_KEYS = {"FLOAT": "value", "INT": "value", "FLOAT_VECTOR": "vector", "QUATERNION": "value"}  # of foreach_get
_WIDTHS = {"FLOAT": 1, "INT": 1, "FLOAT_VECTOR": 3, "QUATERNION": 4}


def read(attribute: bpy.types.Attribute) -> np.ndarray:  # [N] or [N, width]
    """All values."""
    width = _WIDTHS[attribute.data_type]
    values = np.empty(len(attribute.data) * width, np.int32 if attribute.data_type == "INT" else np.float32)
    attribute.data.foreach_get(_KEYS[attribute.data_type], values)
    return values if width == 1 else values.reshape(-1, width)


def write(attribute: bpy.types.Attribute, values: np.ndarray) -> None:
    """Set all values, in the type in which foreach_set copies at once instead of number by number."""
    kind = np.int32 if attribute.data_type == "INT" else np.float32
    attribute.data.foreach_set(_KEYS[attribute.data_type], np.ascontiguousarray(values, kind).reshape(-1))


@contextlib.contextmanager
def readable(obj: bpy.types.Object) -> Iterator[bpy.types.Mesh]:
    """An object's mesh as it is now; in Edit Mode, where Blender hides attributes from Python, a copy for a while."""
    if obj.mode != "EDIT":
        yield obj.data
        return
    obj.update_from_editmode()
    copy = obj.data.copy()
    try:
        yield copy
    finally:
        bpy.data.meshes.remove(copy)
