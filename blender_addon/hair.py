# SPDX-License-Identifier: GPL-3.0-or-later
"""Hair as ribbons of faces, so that it is measured, framed and followed as all surfaces are."""

from typing import NamedTuple

import bpy
import numpy as np

MAX_PARTICLE_HAIRS = 2_000  # of a particle system, evenly chosen: Blender tells each of their points by a call


class Ribbons(NamedTuple):
    """Two triangles for each piece of a strand, between two of its points."""

    positions: np.ndarray  # [2 P, 3] float64, left and right of the strands' points
    triangles: np.ndarray  # [F, 3] int32


def hair_of_curves(curves: bpy.types.Curves) -> Ribbons | None:
    """Evaluated hair curves, in the object's space; None where there are none."""
    if not len(curves.points):
        return None
    offsets = np.empty(len(curves.curves) + 1, np.int32)
    curves.curve_offset_data.foreach_get("value", offsets)
    points = np.empty(3 * len(curves.points), np.float32)
    curves.attributes["position"].data.foreach_get("vector", points)
    radii = np.full(len(curves.points), 0.01, np.float32)  # Blender's own where no attribute says another
    if (radius := curves.attributes.get("radius")) is not None:
        radius.data.foreach_get("value", radii)
    return _ribbons(points.reshape(-1, 3).astype(np.float64), offsets, radii)


def hair_of_particles(obj: bpy.types.Object) -> list[Ribbons]:
    """Hair of an evaluated object's particle systems that is rendered as strands, in world space."""
    systems = [
        modifier.particle_system
        for modifier in obj.modifiers
        if modifier.type == "PARTICLE_SYSTEM" and modifier.show_render
    ]
    found = (_hair_of_system(obj, system) for system in systems)
    return [ribbons for ribbons in found if ribbons is not None]


def _hair_of_system(obj: bpy.types.Object, system: bpy.types.ParticleSystem) -> Ribbons | None:
    settings = system.settings
    if settings.type != "HAIR" or settings.render_type != "PATH":
        return None
    parents, children = len(system.particles), len(system.child_particles)
    numbers = np.arange(parents, parents + children) if children else np.arange(parents)  # as Cycles draws them
    numbers = numbers[:: -(-len(numbers) // MAX_PARTICLE_HAIRS) or 1]
    if not len(numbers):
        return None
    steps = (1 << settings.render_step) + 1
    points = np.array([system.co_hair(obj, particle_no=int(n), step=step) for n in numbers for step in range(steps)])
    radius = settings.root_radius * settings.radius_scale
    return _ribbons(points, np.arange(len(numbers) + 1) * steps, np.full(len(points), radius))


def _ribbons(points: np.ndarray, offsets: np.ndarray, radii: np.ndarray) -> Ribbons:
    """Of strands whose `points` [P, 3] follow each other; strand i begins at `offsets` [i]."""
    begins = np.ones(len(points), bool)
    begins[offsets[1:] - 1] = False  # at the last point of a strand no piece begins
    along = np.zeros_like(points)
    along[:-1] = np.diff(points, axis=0)
    along[~begins] = np.roll(along, 1, axis=0)[~begins]
    flattest = np.eye(3)[np.abs(along).argmin(axis=1)]
    sideways = np.cross(along, flattest)
    lengths = np.linalg.norm(sideways, axis=1, keepdims=True)
    sideways = np.divide(sideways, lengths, out=np.zeros_like(sideways), where=lengths > 0) * radii[:, None]
    first = 2 * np.flatnonzero(begins)
    corners = np.array([[0, 1, 2], [1, 3, 2]])
    return Ribbons(
        np.stack([points - sideways, points + sideways], axis=1).reshape(-1, 3),
        (first[:, None, None] + corners).reshape(-1, 3).astype(np.int32),
    )
