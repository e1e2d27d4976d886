# SPDX-License-Identifier: GPL-3.0-or-later
"""Elementary motions: what a thing does as a whole when it sways, spins, bounces or ripples in the wind.

No clip of the training set shows a tree, a flag or a coin, and none needs to: such motions are written down as
functions of place and time. Every one begins with the subject at rest. `elementary_prompts` finds them by their words.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UP = np.array([0.0, 0.0, 1.0])
TAU = 2 * np.pi
SIDES = 0.382 * TAU  # between the directions of one seed and the next: no two are alike for long
OUTER = 0.08  # of a cloth's length, at either end: the taller end is the pole
TALLER = 1.05  # than the other end, at least
WAVES = 1.25  # along a cloth
LANDED = 0.7  # of the time, when what topples is down
LOWEST = 0.7  # below the middle of clip space: there pictures end
CROUCH = 0.2  # of a bounce, on the ground before it and after
TURNS_ONCE = "It turns once, whatever amount of motion is asked for."
FALLS_OVER = "It falls over, whatever amount of motion is asked for."
DRIFTS_DOWN = "It falls as far as pictures show, whatever amount of motion is asked for: that says how far it glides."


@dataclass(frozen=True)
class Elementary:
    """One elementary motion, as a prompt names it."""

    name: str  # such as "swaying"
    move: Callable[["Body", np.ndarray, float], np.ndarray]  # of a body, times [T] and a size: positions [T, B, 3]
    most: float = 3.0  # the largest size at which it is itself
    one_way: bool = False  # it ends elsewhere, unless it is to loop
    note: str = ""  # to the user, where the size decides on less than all of it

    def shifts(
        self, points: Tensor, around: Tensor, times: np.ndarray, size: float, *, loop: bool, seed: int
    ) -> Tensor:  # [T, B, 3] float32
        """How far points [B, 3] move from rest; around: [N, 3] the whole surface. Clip space, times [T] in 0..1."""
        if self.one_way and loop:  # there and back
            times = (1 - np.cos(TAU * times)) / 2
        body = Body(points.double().numpy(), around.double().numpy(), seed)
        moved = self.move(body, times[:, None], min(size, self.most))
        return torch.from_numpy(moved - body.points).float()


class Body:
    """Points [B, 3] that move, and the shape of what they are part of. Directions are unit vectors [3]."""

    def __init__(self, points: np.ndarray, around: np.ndarray, seed: int) -> None:
        self.points, self.around = points, around
        self.low, self.high = around.min(0), around.max(0)
        self.middle = (self.low + self.high) / 2
        self.foot, self.head = (np.array([*self.middle[:2], height]) for height in (self.low[2], self.high[2]))
        self.height = max(float(self.high[2] - self.low[2]), 1e-6)
        self.level = ((points[:, 2] - self.low[2]) / self.height).clip(0, 1)  # [B], 0 at the foot, 1 at the head
        self.side = np.array([np.cos(SIDES * seed), np.sin(SIDES * seed), 0.0])
        self.sense = 1 - 2 * (seed % 2)

    @property
    def across(self) -> np.ndarray:
        """Horizontal, at right angles to `side`."""
        return np.cross(UP, self.side)


def _turned(points: np.ndarray, angles: np.ndarray, axis: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Points [(T,) B, 3] turned by angles [T, 1] or [T, B] about a line."""
    arm, angles = points - pivot, angles[..., None]
    along = (arm @ axis)[..., None] * axis
    return pivot + along + np.cos(angles) * (arm - along) + np.sin(angles) * np.cross(axis, arm)


def _scaled(body: Body, factor: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Taller by a factor [T, 1] and as much slimmer as keeps the volume."""
    scale = np.stack([factor**-0.5, factor**-0.5, factor], -1)
    return fixed + scale * (body.points - fixed)


def _eased(times: np.ndarray) -> np.ndarray:
    return times * times * (3 - 2 * times)


def swaying(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Bent from the foot like a rod, no longer and no shorter."""
    turn = 0.4 * size * np.sin(TAU * times) * body.level  # [T, B] of the cross-section
    half = np.sinc(turn / TAU)  # sin(turn / 2) / (turn / 2)
    length = body.height * body.level
    aside, up = length * np.sin(turn / 2) * half, length * np.sinc(turn / np.pi)
    arm = body.points - body.foot
    out = arm @ body.side
    aside, up = aside + out * np.cos(turn), up - out * np.sin(turn)
    rest = (arm @ body.across)[:, None] * body.across
    return body.foot + aside[..., None] * body.side + up[..., None] * UP + rest


def swinging(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """A pendulum that hangs from its head."""
    return _turned(body.points, 0.4 * size * np.sin(TAU * times), body.across, body.head)


def wobbling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Tilted on its foot to and fro, and a little forward and back."""
    tilted = _turned(body.points, 0.25 * size * np.sin(TAU * times), body.across, body.foot)
    return _turned(tilted, 0.1 * size * np.sin(2 * TAU * times), body.side, body.foot)


def spinning(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """One whole turn about the vertical, whatever the size."""
    return _turned(body.points, body.sense * TAU * times, UP, np.array([*body.around.mean(0)[:2], 0]))


def rolling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """One whole turn about a horizontal axis, on the spot, whatever the size: its axis of symmetry, if it has one."""
    spread, axes = np.linalg.eigh(np.cov(body.around.T))
    unlike = np.abs(np.roll(spread, -1) - np.roll(spread, 1))  # of the other two
    axis = axes[:, int(np.argmin(unlike + spread.sum() * np.abs(axes[2])))] * (1, 1, 0)
    axis = axis * np.sign(axis[np.abs(axis).argmax()]) / np.linalg.norm(axis)  # no sign of chance
    return _turned(body.points, body.sense * TAU * times, axis, body.middle)


def tumbling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Turned over and about at once, whatever the size."""
    rolled = _turned(body.points, TAU * times, body.across, body.middle)
    return _turned(rolled, body.sense * TAU * times, UP, body.middle)


def bouncing(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Two hops: it crouches, stretches as it leaves the ground, and lands."""
    part = np.where(times < 1, 2 * times % 1, 1.0)  # of a hop
    flight = ((part - CROUCH) / (1 - 2 * CROUCH)).clip(0, 1)
    ground = np.sin(np.pi * np.minimum(part, 1 - part).clip(0, CROUCH) / CROUCH)
    stretch = 0.07 * size * (np.square(np.sin(TAU * flight)) * (flight < 1) - 1.5 * ground)
    height = 0.15 * size * 4 * flight * (1 - flight)
    return _scaled(body, np.exp(stretch), body.foot) + height[..., None] * UP


def floating(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Up and down in the air or on water, and a little aslant."""
    tilted = _turned(body.points, 0.06 * size * np.sin(2 * TAU * times), body.across, body.middle)
    return tilted + (0.08 * size * np.sin(TAU * times))[..., None] * UP


def sailing(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """A boat in the swell: it rolls about its length, and rises and sinks."""
    length = _longest(body)
    rolled = _turned(body.points, 0.15 * size * np.sin(TAU * times), length, body.foot)
    pitched = _turned(rolled, 0.06 * size * np.sin(2 * TAU * times), np.cross(UP, length), body.foot)
    return pitched + (0.03 * size * np.sin(2 * TAU * times))[..., None] * UP


def riding(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """A vehicle on its springs."""
    length = _longest(body)
    pitched = _turned(body.points, 0.02 * size * np.sin(2 * TAU * times), np.cross(UP, length), body.foot)
    rolled = _turned(pitched, 0.015 * size * np.sin(3 * TAU * times), length, body.foot)
    return rolled + (0.01 * size * (np.sin(3 * TAU * times) + np.sin(5 * TAU * times)))[..., None] * UP


def trembling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Shaken to and fro, fast."""
    shaken = np.sin(5 * TAU * times)[..., None] * body.side + 0.6 * np.sin(3 * TAU * times)[..., None] * body.across
    return body.points + 0.02 * size * shaken


def jiggling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Jelly: its head goes to and fro over a foot that stays, and it grows taller and flatter."""
    aside = 0.15 * size * body.height * np.sin(2 * TAU * times) * body.level**1.5
    taller = np.exp(0.12 * size * np.sin(TAU * times) * np.sin(2 * TAU * times))
    return _scaled(body, taller, body.foot) + aside[..., None] * body.side


def pulsing(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Larger and smaller again, twice."""
    factor = 1 + 0.2 * size * np.square(np.sin(TAU * times))
    return body.middle + factor[..., None] * (body.points - body.middle)


def growing(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Larger, from the foot."""
    return body.foot + (1 + 0.4 * size * _eased(times))[..., None] * (body.points - body.foot)


def shrinking(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Smaller, toward the foot."""
    return body.foot + np.exp(-0.5 * size * _eased(times))[..., None] * (body.points - body.foot)


def stretching(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Taller and slimmer, then flatter and wider."""
    return _scaled(body, np.exp(0.25 * size * np.sin(TAU * times)), body.foot)


def squashing(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Pressed flat against the ground, and up again."""
    return _scaled(body, np.exp(-0.3 * size * np.square(np.sin(np.pi * times))), body.foot)


def melting(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Sinking into a puddle, what is high last."""
    sunk = np.exp(-0.5 * size * _eased(times))
    wider = 1 + 0.4 * (1 / sunk - 1) * (1 - body.level) ** 2
    spread = wider[..., None] * (body.points - body.foot)
    spread[..., 2] = sunk * (body.points - body.foot)[:, 2]
    return body.foot + spread


def twisting(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Wrung about the vertical, head against foot."""
    angles = 0.5 * size * body.height * np.sin(TAU * times) * (2 * body.level - 1)
    return _turned(body.points, angles, UP, body.middle)


def toppling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """Over an edge of its foot to the ground, where it bounces once, whatever the size."""
    edge = body.foot + float(np.max((body.around - body.foot) @ body.side)) * body.side
    down = np.square((times / LANDED).clip(0, 1)) - 0.05 * np.sin(np.pi * ((times - LANDED) / (1 - LANDED)).clip(0, 1))
    return _turned(body.points, np.pi / 2 * down, body.across, edge)


def drifting(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """A leaf in the air: it sinks as far as pictures show, whatever the size, glides to and fro, and tips with that."""
    glide = np.sin(2 * TAU * times)
    tipped = _turned(body.points, 0.2 * size * glide, body.across, body.middle)
    depth = min(body.low[2] + LOWEST, 0.4)
    sunk = depth * (times + 0.03 * np.sin(4 * TAU * times))  # faster between the turns
    return tipped + 0.05 * size * glide[..., None] * body.side - sunk[..., None] * UP


def rippling(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """A flag: waves run from its pole to its free end; what lies flat, such as water, rises and sinks with them."""
    length = _longest(body)
    along = body.around @ length
    start, end = along.min(), along.max()
    place, everywhere = ((points @ length - start) / max(end - start, 1e-6) for points in (body.points, body.around))
    heights = (body.around[outer, 2] for outer in (everywhere <= OUTER, everywhere >= 1 - OUTER))
    first, last = (float(np.ptp(height)) if len(height) else 0.0 for height in heights)
    if last > TALLER * first:
        place = 1 - place
    out = np.cross(UP, length)
    if body.height < np.ptp(body.around @ out):
        out = UP
    return _waves(body, times, size * (end - start), ((place - OUTER) / (1 - OUTER)).clip(0, 1), out)


def billowing(body: Body, times: np.ndarray, size: float) -> np.ndarray:
    """A curtain: waves run from where it hangs to its hem."""
    return _waves(body, times, size * body.height, 1 - body.level, np.cross(UP, _longest(body)))


def _waves(body: Body, times: np.ndarray, size: float, place: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Waves along a place [B] from 0, where nothing moves, to 1, out of the cloth."""
    waves = np.sin(TAU * (WAVES * place - times)) - np.sin(TAU * WAVES * place)
    return body.points + (0.06 * size * place * waves)[..., None] * out


def _longest(body: Body) -> np.ndarray:
    """The horizontal direction in which the body is longest."""
    level = body.around[:, :2]
    axis = np.linalg.eigh(np.cov(level.T))[1][:, 1]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    return np.array([*axis, 0.0])


NOTES = {
    **dict.fromkeys((spinning, rolling, tumbling), TURNS_ONCE),
    toppling: FALLS_OVER,
    drifting: DRIFTS_DOWN,
}
MOTIONS = {
    motion.__name__: Elementary(motion.__name__, motion, note=NOTES.get(motion, ""))
    for motion in (
        swaying, swinging, wobbling, spinning, rolling, tumbling, bouncing, floating, sailing, riding, trembling,
        jiggling, pulsing, stretching, squashing, twisting, rippling, billowing,
    )
} | {
    motion.__name__: Elementary(motion.__name__, motion, one_way=True, note=NOTES.get(motion, ""))
    for motion in (growing, shrinking, melting, toppling, drifting)
}  # fmt: skip
