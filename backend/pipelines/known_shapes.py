# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape behind a picture, where the prompt names what it shows: that of a known subject, bent to the outline.

An outline alone tells little of what is behind it: inflated, all legs of a dog lie in one plane, and its head is a
lens. Known subjects have legs on both sides, ears, and backs. The one is taken, from the side, whose outline comes
nearest to that of the picture.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from backend.models.known_subjects import KnownSubjects, Mesh
from backend.models.text import words
from backend.pipelines.solids import HALF_DEPTH, RAYS, filled, occupancy
from blender_addon.contract.orbit import Orbit, orbit_cameras

# Words for what is built alike: a cat, which is not known, as a fox.
BUILDS = tuple(
    frozenset(text.split())
    for text in (
        "dog fox wolf husky shiba pug cat lion tiger leopard panther cheetah puma lynx jaguar jackal coyote hyena bear",
        "horse donkey zebra unicorn foal camel",
        "cow bull buffalo bison yak rhino",
        "deer stag antelope gazelle moose goat impala",
        "sheep goat ram",
        "llama alpaca camel",
        "pig boar hippo",
        "fish goldfish carp trout salmon perch cod bass guppy barracuda",
        "shark dolphin whale orca porpoise",
        "bird eagle hawk falcon sparrow crow raven pigeon dove owl parrot gull swallow",
        "man woman soldier king queen prince princess child dancer athlete knight pirate",
    )
)
TURNS = 24  # sides from which each is compared
SIDES = 0.04  # worth of being seen from a side, as most pictures show animals
OUTLINE_PIXELS, COMPARED = 64, 48
ASPECT, ASPECT_FREE = 0.5, 0.1  # cost of another proportion, of its logarithm; so much costs nothing
LEAST_SCORE, LEAST_FIT = 0.45, 0.85  # as it stands, and overlap of the outlines after bending; else it is another thing
DEEPEST = 0.95 * HALF_DEPTH  # a subject that would be deeper is made flatter
STRETCHED, TORN = 3.0, 0.002  # times its area, to which so much of an outline grows in the bending: it is another pose
ROUNDS = ((60, 3.0), (60, 2.0), (80, 1.2))  # of bending: how many, and how stiff
FARTHEST = 14.0  # pixels from an outline, that count


class Shape(NamedTuple):
    """What is behind a picture."""

    solid: np.ndarray  # [RAYS, RAYS, DEPTHS] float32, see `solids`
    subject: str  # whose shape it was


def known_shape(
    alpha: np.ndarray, memory: KnownSubjects, actions: Collection[str], prompt: str, half: float
) -> Shape | None:
    """The shape of the known subject that a prompt names or resembles; None: it names none, or none fits.

    alpha: [RAYS, RAYS] coverage of the picture, taken by a camera at -Y in distance 2; actions: what subjects do, as
    texts; half: tangent of half the camera's field of view.
    """
    candidates = alike(memory, actions, prompt)
    mask = alpha > 0.5
    if not candidates or mask.sum() < 16:
        return None
    wanted = _boxed(mask)
    ring = orbit_cameras(Orbit(frames=TURNS, closed=False), OUTLINE_PIXELS, OUTLINE_PIXELS, moving=False)
    scores = np.array([_scores(memory.mesh(one).pictures(ring)[..., 3] > 0.5, wanted) for one in candidates])
    best, turn = np.unravel_index(scores.argmax(), scores.shape)
    if scores[best, turn] < LEAST_SCORE:
        return None
    mesh = memory.mesh(candidates[best])
    points = _bent(mesh, turn * 360 / TURNS, mask, half)
    if points is None or _overlap(_outline(points, mesh, half), mask) < LEAST_FIT:
        return None
    solid = filled(occupancy(points, mesh.faces, half), mask, half)
    return Shape(solid, memory.subjects[candidates[best]])


def alike(memory: KnownSubjects, actions: Collection[str], prompt: str) -> list[int]:
    """The known subjects that the subject of a prompt is one of, or else those that are built like it.

    It is the last of the words that come together: a clown fish is a fish. What comes later is not meant.
    """
    kinds = [words(subject.split(" with ")[0])[-1] for subject in memory.subjects]
    things = set().union(kinds, *BUILDS) - {word for action in actions for word in words(action)}
    head = None
    for word in words(prompt):
        if word in things:
            head = word
        elif head:
            break
    named = {head} & set(kinds) or set().union(*(build for build in BUILDS if head in build))
    return [number for number, kind in enumerate(kinds) if kind in named]


class _Box(NamedTuple):
    """A mask cut out and brought to one size, and the logarithms of its sides."""

    cut: np.ndarray  # [COMPARED, COMPARED] bool
    sides: np.ndarray  # [2]


def _boxed(mask: np.ndarray) -> _Box:
    low, high = _limits(mask)
    at = [np.minimum(start + (np.arange(COMPARED) + 0.5) / COMPARED * (end - start), end - 1).astype(int)
          for start, end in zip(low, high, strict=True)]  # fmt: skip
    return _Box(mask[np.ix_(*at)], np.log(high - low))


def _limits(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [2], [2]: first rows and columns, last + 1
    places = np.argwhere(mask)
    return places.min(0).astype(float), places.max(0) + 1.0


def _scores(outlines: np.ndarray, wanted: _Box) -> np.ndarray:  # [TURNS, P, P] bool -> [TURNS]
    """How near each outline comes to the wanted one, each brought to its box."""
    scores = np.zeros(len(outlines))
    for turn, outline in enumerate(outlines):
        box = _boxed(outline)
        aspect = abs(np.subtract(*(box.sides - wanted.sides)))
        scores[turn] = _overlap(box.cut, wanted.cut) - ASPECT * max(aspect - ASPECT_FREE, 0)
    scores[[TURNS // 4, 3 * TURNS // 4]] += SIDES
    return scores


def _bent(mesh: Mesh, azimuth: float, mask: np.ndarray, half: float) -> np.ndarray | None:  # [V, 3] float32
    """Vertices of a mesh seen from an azimuth, moved so that its outline becomes that of a mask [RAYS, RAYS].

    None: that tears it apart.
    """
    turn = np.radians(azimuth)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    points = mesh.positions @ matrix  # the camera at that azimuth becomes the one at -Y
    low, high = _limits(_outline(points, mesh, half))
    first, last = _limits(mask)
    scale = (last - first) / (high - low)
    rays = (_rays(points, half) - low) * scale + first
    depth = points[:, 1] * min(np.sqrt(scale.prod()), DEEPEST / np.abs(points[:, 1]).max())
    known = _outline(_placed(rays, depth, half), mesh, half)
    shift = _registered(known, mask)
    (down_y, down_x), (right_y, right_x) = (np.gradient(along) for along in shift)
    grown = (1 + down_y) * (1 + right_x) - down_x * right_y
    if (grown[known] > STRETCHED).mean() > TORN:
        return None
    at = (rays - 0.5).clip(0, RAYS - 1).T
    rays = rays + np.stack([ndimage.map_coordinates(along, at, order=1) for along in shift], -1)
    return _placed(rays, depth, half)


def _rays(points: np.ndarray, half: float) -> np.ndarray:  # [V, 3] -> [V, 2] row and column in the grid
    seen = points[:, [2, 0]] * [-1, 1] / (Orbit.distance + points[:, 1:2])
    return (seen / half + 1) * RAYS / 2


def _placed(rays: np.ndarray, depth: np.ndarray, half: float) -> np.ndarray:  # [V, 2], [V] -> [V, 3] float32
    seen = (rays * 2 / RAYS - 1) * half * (Orbit.distance + depth[:, None])
    return np.stack([seen[:, 1], depth, -seen[:, 0]], -1).astype(np.float32)


def _outline(points: np.ndarray, mesh: Mesh, half: float) -> np.ndarray:  # [RAYS, RAYS] bool
    return occupancy(np.ascontiguousarray(points, np.float32), mesh.faces, half).any(-1)


def _registered(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:  # [2, RAYS, RAYS], rows and columns
    """Where each pixel of an outline has to go for it to become another one: by demons on distances from the edge."""
    here, there = _distances(known), _distances(wanted)
    slopes = np.gradient(there)
    grid = np.mgrid[:RAYS, :RAYS].astype(float)
    shift = np.zeros_like(grid)
    for count, stiff in ROUNDS:
        for _ in range(count):
            at = grid + shift
            found, down, across = (
                ndimage.map_coordinates(one, at, order=1, mode="nearest") for one in (there, *slopes)
            )
            off = here - found
            near = np.exp(-np.minimum(np.abs(here), np.abs(found)) / 5)
            pull = near * off / (down**2 + across**2 + off**2 / 8 + 1e-3)
            shift += 0.7 * np.stack([ndimage.gaussian_filter(pull * slope, 2) for slope in (down, across)])
            shift = np.stack([ndimage.gaussian_filter(one, stiff) for one in shift])
    return shift


def _distances(mask: np.ndarray) -> np.ndarray:
    """How far each pixel is from the edge, negative outside."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return (inside - outside).clip(-FARTHEST, FARTHEST)


def _overlap(one: np.ndarray, two: np.ndarray) -> float:
    return (one & two).sum() / max((one | two).sum(), 1)
