# SPDX-License-Identifier: GPL-3.0-or-later
"""Scale and rotation that were applied (Ctrl A), which Blender does to the points alone and not to the stored frames.

The motion then is as large and the Gaussians are as big and turned as before, in points that are neither. So the
object takes its transform back.
"""

import bpy
import numpy as np
from mathutils import Matrix

from . import joined, placing, splat_object
from .attributes import readable

TOLERANCE = 1e-3  # of the object's size, and of a scale of 1; less is rounding


def find_applied(obj: bpy.types.Object | None) -> Matrix | None:
    """The transform that was applied to an object that plays; None where there is none, or it only shifts.

    It is known by where points lie and where their first frame has them, of which Edit Mode may have moved none but by
    that same transform.
    """
    return _applied_to(obj.data) if splat_object.plays(obj) else None


def refuse(splats: bpy.types.Object) -> None:
    """Raise ValueError where Gaussians do not fit their frames, of which something wrong would be made.

    Edit Mode is one of the modes that they may be in.
    """
    with readable(splats) as mesh:
        applied, misfits = _applied_to(mesh), joined.misfits(splats, mesh)
    if applied is not None:
        raise ValueError(
            f"Scale or rotation was applied to {splats.name}, which its stored frames know nothing of. "
            "Press Give Back to Object in its panel, and try again."
        )
    if misfits:
        raise ValueError(
            f"Gaussians were joined into {splats.name} that do not fit its frames. "
            "Press Fit Joined Frames in its panel, and try again."
        )


def _applied_to(mesh: bpy.types.Mesh) -> Matrix | None:
    found = [part.applied for part in joined.parts(mesh)]
    if not found or any(matrix is None or not joined.is_same_turn(matrix, found[0]) for matrix in found):
        return None
    return None if joined.is_same_turn(found[0], np.eye(4)) else Matrix(found[0].tolist())


def give_back(obj: bpy.types.Object) -> None:
    """Take the transform that was applied to an object's points back, and give it to the object.

    Others that share the points get it as well.

    Raises:
        ValueError: none was applied; keys move an object; it is linked; or it cannot take the transform.
    """
    applied = find_applied(obj)
    if applied is None:
        raise ValueError(f"No scale or rotation was applied to {obj.name}.")
    users = [user for user in bpy.data.objects if user.data == obj.data]
    for user in users:
        if user.library is not None or user.data.library is not None:
            raise ValueError(splat_object.LINKED.format(user.name))
        if placing.is_keyed(user):
            raise ValueError(
                f"{user.name} is moved by keys or drivers, which would overrule this. Undo what was applied, or "
                "remove them and try again."
            )
    wanted = {user: user.matrix_basis @ applied for user in users}
    for user, matrix in wanted.items():
        held, asked = (np.array(one)[:3, :3] for one in (Matrix.LocRotScale(*matrix.decompose()), matrix))
        if np.abs(held - asked).max() > TOLERANCE * np.abs(asked).max():
            raise ValueError(
                f"{user.name} was turned and scaled unevenly, which no object can hold. Undo what was applied."
            )
    for user, matrix in wanted.items():
        user.matrix_basis = matrix
    obj.data.transform(applied.inverted())
