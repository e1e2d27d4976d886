# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes of a mesh's points as arrays."""

import bpy
import numpy as np

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
