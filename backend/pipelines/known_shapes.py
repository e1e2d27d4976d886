# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape behind pictures, where the prompt names what they show: that of a known subject, bent to the outlines.

An outline alone tells little of what is behind it: inflated, all legs of a dog lie in one plane, and its head is a
lens. Known subjects have legs on both sides, ears, and backs. The one is taken, from the side, in the poses of what the
prompt says that it does, whose outlines come nearest to those of the pictures.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from backend.models.kinesplat_small import KinesplatSmall
from backend.models.known_subjects import Mesh
from backend.models.text import STOP_WORDS, words
from backend.pipelines.known_poses import Poses, known_poses
from backend.pipelines.registration import registered
from backend.pipelines.solids import HALF_DEPTH, RAYS, filled, occupancy
from blender_addon.contract.orbit import Orbit, orbit_cameras

# Words for what is built alike: a cat, which is not known, as a fox.
BUILDS = tuple(
    frozenset(text.split())
    for text in (
        "dog fox wolf husky shiba pug cat lion tiger leopard panther cheetah puma lynx jaguar jackal coyote hyena bear",
        "horse donkey zebra unicorn camel",
        "cow bull buffalo bison yak rhino",
        "deer stag antelope gazelle moose goat impala",
        "sheep goat ram",
        "llama alpaca camel",
        "pig hippo",
        "fish perch barracuda",
        "shark dolphin whale porpoise",
        "bird eagle hawk falcon sparrow crow raven pigeon dove owl parrot gull swallow",
    )
)
# Known ones, bent, are farther from them than what is inflated: limbs are thin, and are held in too many ways.
PEOPLE = frozenset(
    word
    for line in (
        "man woman baby soldier king queen prince princess dancer athlete",
        "knight barbarian mage rogue astronaut ninja zombie",
    )
    for word in line.split()
)
# What parts of a prompt lie between: a knight on a horse is a knight.
BETWEEN = re.compile(rf"[^\w\s-]+|\b(?:{'|'.join(sorted(STOP_WORDS))})\b", re.IGNORECASE)
DESCRIBING = {"large", "small", "fly", "leg", "gun"}  # words that follow a name, as in "enemy large gun"
ENOUGH = 3  # subjects of one kind
TURNS = 24  # sides from which each is compared
OUTLINE_PIXELS, COMPARED = 64, 48
ASPECT, ASPECT_FREE = 0.5, 0.1  # cost of another proportion, of its logarithm; so much costs nothing
SIDES, FACING = 0.07, 0.08  # worth of being seen from a side, and of not being seen from behind, as most pictures show
POSED = 0.03  # cost of another pose than that in which it stands
STEP = 0.25  # cost of a pose that is so far from that before, as a share of the longest side
NAMED = 0.5  # how well the words of a motion have to fit the prompt
LOOKED_AT = 8  # pictures that decide which subject it is and from where; fewer of them, how well it can be bent
BY_REST, SIDES_TRIED, BY_POSES = 6, 2, 4  # subjects tried in all poses, sides of each, ways tried out by bending
BENDING = 0.5  # worth of the overlap after bending, beside that before
LEAST_SCORE, LEAST_FIT = 0.47, 0.85  # as it stands, and overlap of the outlines after bending; else it is another thing
FEWEST = 0.7  # of the pictures have to fit so well
LEAST_PIXELS = 16  # of an outline
RANKED, TRIED = 0.35, 0.15  # shares of the time, that choosing ways and trying them out take
DEEPEST = 0.95 * HALF_DEPTH  # a subject that would be deeper is made flatter
STRETCHED, TORN = 3.0, 0.002  # times its area, to which so much of an outline grows in the bending: it is another pose


@dataclass(frozen=True)
class Shape:
    """What is behind pictures of one subject."""

    subject: str  # whose shape it is
    faces: np.ndarray  # [F, 3] int32
    points: list[np.ndarray]  # of each picture: [V, 3] float32, as a camera at -Y in distance 2 sees them
    masks: np.ndarray  # [N, RAYS, RAYS] bool
    half: float  # tangent of half the camera's field of view
    sideways: bool  # seen from its side: what is not shown mirrors what is

    def solid(self, picture: int) -> np.ndarray:  # [RAYS, RAYS, DEPTHS] float32, see `solids`
        """What is behind one of them."""
        return filled(occupancy(self.points[picture], self.faces, self.half), self.masks[picture], self.half)


def known_shape(
    alphas: np.ndarray,
    model: KinesplatSmall,
    prompt: str,
    half: float,
    report: Callable[[float], None] = lambda share: None,
) -> Shape | None:
    """The shape of the known subject that a prompt names or resembles; None: it names none, or none fits.

    alphas: [N, RAYS, RAYS] coverage of pictures in their order in time, taken by a camera at -Y in distance 2; half:
    tangent of half the camera's field of view; report: told which share is done, often; may raise.
    """
    everywhere = alphas > 0.5
    shown = np.flatnonzero(everywhere.sum((1, 2)) >= LEAST_PIXELS)  # a subject may leave the picture for a while
    candidates = alike(model, prompt)
    if not candidates or not len(shown):
        return None
    masks = everywhere[shown]
    looked_at = np.unique(np.linspace(0, len(masks) - 1, LOOKED_AT).round().astype(int))
    wanted = [_boxed(masks[picture]) for picture in looked_at]
    ways = _ways(candidates, wanted, model, prompt, lambda share: report(RANKED * share))
    ways = [way for way in ways if way.score >= LEAST_SCORE][:BY_POSES]
    few = np.unique(looked_at[[0, len(looked_at) // 2]])
    tried = []
    for number, way in enumerate(ways):
        bending = _Bending(way, masks, half)
        fits = [bending.fitting(picture)[1] for picture in few]
        if max(fits) >= LEAST_FIT:
            tried.append((way.score + _worth(way.turn) + BENDING * np.mean(fits), bending))
        report(RANKED + TRIED * (number + 1) / len(ways))
    for _, bending in sorted(tried, key=lambda pair: -pair[0]):
        found = []
        for picture in range(len(masks)):
            found.append(bending.fitting(picture))
            report(RANKED + TRIED + (1 - RANKED - TRIED) * (picture + 1) / len(masks))
        fits = np.array([fit >= LEAST_FIT for _, fit in found])
        if fits.mean() >= FEWEST:
            # Where it does not fit, the shape of the nearest picture takes its place, as far as the outline reaches.
            good = np.flatnonzero(fits)
            nearest = [good[np.abs(shown[good] - picture).argmin()] for picture in range(len(everywhere))]
            way, points = bending.way, [found[one][0] for one in nearest]
            subject = model.memory.subjects[way.subject]
            return Shape(subject, way.poses.mesh.faces, points, everywhere, half, 4 * way.turn in (TURNS, 3 * TURNS))
    return None


def alike(model: KinesplatSmall, prompt: str) -> list[int]:
    """The known subjects that the subject of a prompt is one of; where these are few, those built like it, too.

    It is the last of the words that come together: a clown fish is a fish. What comes later is not meant. Of people
    there is none.
    """
    names = [words(subject.split(" with ")[0]) for subject in model.memory.subjects]
    kinds = [([word for word in name if word not in DESCRIBING] or name)[-1] for name in names]
    things = set().union(kinds, PEOPLE, *BUILDS) - {word for action in model.motions.actions for word in words(action)}
    head = None
    for part in BETWEEN.split(prompt):
        for word in words(part):
            if word in things:
                head = word
            elif head:
                break
        if head:
            break
    if head in PEOPLE:
        return []
    named = {head} & set(kinds)
    if kinds.count(head) < ENOUGH:
        named |= set().union(*(build for build in BUILDS if head in build))
    return [number for number, kind in enumerate(kinds) if kind in named]


class _Way(NamedTuple):
    """A known subject seen from a side."""

    score: float  # how near its outlines come, in the best of its poses
    subject: int
    turn: int
    poses: Poses
    deeper: float  # than it is, that others of its kind are, who look alike from there


def _ways(
    candidates: list[int],
    wanted: list["_Box"],
    model: KinesplatSmall,
    prompt: str,
    report: Callable[[float], None],
) -> list[_Way]:
    """The best ways of the candidates whose outlines come nearest, best first."""
    worth = np.array([_worth(turn) for turn in range(TURNS)])
    sides, meshes = np.arange(TURNS), {candidate: model.memory.mesh(candidate) for candidate in candidates}

    def scores_of(mesh: Mesh, positions: np.ndarray) -> np.ndarray:  # [S, W]
        return _scores(_outlines(mesh, positions, sides), wanted)

    def rest(candidate: int) -> float:
        report(0)
        return (scores_of(meshes[candidate], meshes[candidate].positions).mean(1) + worth).max()

    clips = frozenset(np.flatnonzero(model.motions.fit(prompt) > NAMED).tolist())
    best = sorted(candidates, key=rest, reverse=True)[:BY_REST]
    ways = []
    for number, candidate in enumerate(best):
        poses = known_poses(model, candidate, clips)
        found = []
        for one in poses.positions:
            found.append(scores_of(poses.mesh, one))
            report((number + len(found) / len(poses.positions)) / len(best))
        scores = np.stack(found)  # [K, S, W]
        scores[1:] -= POSED
        by_turn = scores.max(0).mean(1)
        likeliest = np.argsort(-(by_turn + worth), kind="stable")[:SIDES_TRIED]
        for turn in likeliest.tolist():
            typical = np.median([_depth(mesh, turn) for mesh in meshes.values()])
            deeper = float(typical / _depth(poses.mesh, turn))
            ways.append(_Way(float(by_turn[turn]), candidate, turn, poses, deeper))
    return sorted(ways, key=lambda way: way.score + worth[way.turn], reverse=True)


def _depth(mesh: Mesh, turn: int) -> float:
    """How deep a mesh is as seen from a side, beside its width and height."""
    wide, deep, high = np.ptp(mesh.positions @ _turning(turn), axis=0)
    return float(deep / np.sqrt(max(wide * high, 1e-6)))


def _turning(turn: int) -> np.ndarray:  # [3, 3], to be multiplied from the right
    """The camera at that side becomes the one at -Y."""
    cos, sin = np.cos(2 * np.pi * turn / TURNS), np.sin(2 * np.pi * turn / TURNS)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _worth(turn: int) -> float:
    """How much likelier than others a side is to be shown."""
    facing = np.cos(2 * np.pi * turn / TURNS)
    return FACING * (1.0 if facing > 0.1 else 0.5 if facing > -0.1 else 0.0) + SIDES * (abs(facing) < 1e-6)


class _Bending:
    """A known subject in the poses that come nearest to outlines in time, bent to each of these."""

    def __init__(self, way: _Way, masks: np.ndarray, half: float) -> None:
        self.way, self._masks, self._half = way, masks, half
        mesh, positions = way.poses.mesh, way.poses.positions
        self._pose = _course(_near(way, [_boxed(mask) for mask in masks]), positions)
        self._turned = positions @ _turning(way.turn)
        self._limits = {pose: _limits(_outline(self._turned[pose], mesh, half)) for pose in set(self._pose)}
        wide = [(last - first) / np.subtract(*self._limits[pose][::-1])
                for pose, (first, last) in zip(self._pose, map(_limits, masks), strict=True)]  # fmt: skip
        deep = np.abs(self._turned[self._pose, :, 1]).max()
        self._depth = min(way.deeper * np.median([np.sqrt(scale.prod()) for scale in wide]), DEEPEST / deep)
        self._kept: dict[int, tuple[np.ndarray | None, float]] = {}

    def fitting(self, picture: int) -> tuple[np.ndarray | None, float]:
        """Vertices [V, 3] float32, moved so that their outline becomes that of a picture, and how near it comes (0..1).

        None, 0: that tears it apart.
        """
        if picture not in self._kept:
            mesh, mask, half = self.way.poses.mesh, self._masks[picture], self._half
            bent = self._bent(self._pose[picture], mask)
            fit = 0.0 if bent is None else _overlap(_outline(bent, mesh, half), mask)
            self._kept[picture] = bent, fit
        return self._kept[picture]

    def _bent(self, pose: int, mask: np.ndarray) -> np.ndarray | None:
        points, mesh, half = self._turned[pose], self.way.poses.mesh, self._half
        (low, high), (first, last) = self._limits[pose], _limits(mask)
        rays = (_rays(points, half) - low) * (last - first) / (high - low) + first
        depth = points[:, 1] * self._depth
        known = _outline(_placed(rays, depth, half), mesh, half)
        shift = registered(known, mask)
        (down_y, down_x), (right_y, right_x) = (np.gradient(along) for along in shift)
        grown = (1 + down_y) * (1 + right_x) - down_x * right_y
        if (grown[known] > STRETCHED).mean() > TORN:
            return None
        at = (rays - 0.5).clip(0, RAYS - 1).T
        rays = rays + np.stack([ndimage.map_coordinates(along, at, order=1) for along in shift], -1)
        return _placed(rays, depth, half)


def _near(way: _Way, wanted: list["_Box"]) -> np.ndarray:  # [K, W]
    """How near the outline of each pose comes to each wanted one."""
    side = np.array([way.turn])
    scores = np.stack([_scores(_outlines(way.poses.mesh, one, side), wanted)[0] for one in way.poses.positions])
    scores[1:] -= POSED
    return scores


def _course(near: np.ndarray, positions: np.ndarray) -> np.ndarray:  # [K, W], [K, V, 3] -> [W]
    """The poses that come nearest, one after the other, without leaps (Viterbi)."""
    some = positions[:, :: max(positions.shape[1] // 256, 1)]
    apart = np.sqrt(np.square(some[:, None] - some[None]).sum(-1).mean(-1))
    worth, before = near[:, 0], []
    for score in near.T[1:]:
        reached = worth - STEP * apart  # [K to, K from]
        before.append(reached.argmax(1))
        worth = reached.max(1) + score
    course = [int(worth.argmax())]
    for back in reversed(before):
        course.append(int(back[course[-1]]))
    return np.array(course[::-1])


def _outlines(mesh: Mesh, positions: np.ndarray, turns: np.ndarray) -> np.ndarray:  # [S, P, P] bool
    """What a mesh with its vertices at `positions` covers from sides."""
    ring = orbit_cameras(Orbit(frames=TURNS, closed=False), OUTLINE_PIXELS, OUTLINE_PIXELS, moving=False)
    return replace(mesh, positions=positions).pictures(ring.picked(turns))[..., 3] > 0.5


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


def _scores(outlines: np.ndarray, wanted: list[_Box]) -> np.ndarray:  # [S, P, P] bool -> [S, W]
    """How near each outline comes to each wanted one, each brought to its box."""
    boxes = [_boxed(outline) for outline in outlines]
    cuts, other = (np.stack([box.cut.ravel() for box in some]).astype(np.float32) for some in (boxes, wanted))
    both = cuts @ other.T
    overlap = both / np.maximum(cuts.sum(1)[:, None] + other.sum(1) - both, 1)
    sides, others = (np.stack([box.sides for box in some]) for some in (boxes, wanted))
    aspect = np.abs(np.subtract(*sides.T)[:, None] - np.subtract(*others.T))
    return overlap - ASPECT * np.maximum(aspect - ASPECT_FREE, 0)


def _rays(points: np.ndarray, half: float) -> np.ndarray:  # [V, 3] -> [V, 2] row and column in the grid
    seen = points[:, [2, 0]] * [-1, 1] / (Orbit.distance + points[:, 1:2])
    return (seen / half + 1) * RAYS / 2


def _placed(rays: np.ndarray, depth: np.ndarray, half: float) -> np.ndarray:  # [V, 2], [V] -> [V, 3] float32
    seen = (rays * 2 / RAYS - 1) * half * (Orbit.distance + depth[:, None])
    return np.stack([seen[:, 1], depth, -seen[:, 0]], -1).astype(np.float32)


def _outline(points: np.ndarray, mesh: Mesh, half: float) -> np.ndarray:  # [RAYS, RAYS] bool
    return occupancy(np.ascontiguousarray(points, np.float32), mesh.faces, half).any(-1)


def _overlap(one: np.ndarray, two: np.ndarray) -> float:
    return (one & two).sum() / max((one | two).sum(), 1)
