# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples made on the fly from baked assets: any viewpoint, light, color, part and speed of a clip.

A sample is a pure function of (seed, number): whoever takes up training at sample n gets what an uninterrupted run
would have got.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from backend.data.baked import BakedAsset, read_baked, read_manifest
from backend.data.captions import action, caption
from backend.models.mesh_raster import rasterize_views
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras

FRAMES = 24
FREE_LICENCES = ("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0")
WHOLE = 0.8  # of the samples: what is asked for is a whole cycle, or an action from its beginning to its end
DEFAULT_LIGHT = (0.0, -0.9, -0.45, 0.75, 0.25)  # towards the light in camera axes, ambient, diffuse: near the stage's


@dataclass(frozen=True)
class OrbitSample:
    """A moving orbit, its static orbit and what is said of them. All float32."""

    moving: np.ndarray  # [T, H, W, 4] premultiplied, display-referred
    static: np.ndarray  # [T, H, W, 4]
    flow: np.ndarray  # [T, H, W, 3] scene flow of the moving orbit (see mesh_raster), weighted by coverage
    camera_to_world: np.ndarray  # [T, 4, 4]
    viewmats: np.ndarray  # [T, 4, 4]
    focal: np.ndarray  # [T] focal length / half the width
    times: np.ndarray  # [T] 0..1
    caption: str


@dataclass(frozen=True)
class View:
    """How a clip is looked at and changed. The defaults are the plain clip as the product would show it."""

    azimuth: float = 0.0
    elevation: float = 0.0
    light: tuple[float, float, float, float, float] = DEFAULT_LIGHT
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the colors
    start: float = 0.0  # share of the clip
    span: float = 1.0  # share of the clip; below 0 it plays backwards
    size: float = 1.0  # longest side at time 0
    yaw: float = 0.0  # degrees, of the subject
    mirror: bool = False


def render_sample(asset: BakedAsset, clip: int, view: View, resolution: int, frames: int = FRAMES) -> OrbitSample:
    """Draw one clip of a baked asset as moving and static orbit. The caption is left empty."""
    positions, normals = pose_clip(asset, clip, view, frames)
    orbit = Orbit(frames=frames, azimuth_start=view.azimuth, elevation=view.elevation)
    cameras = orbit_cameras(orbit, resolution, resolution, moving=True)
    light = np.tile(np.float32(view.light), (frames, 1))
    still = np.zeros(frames, int)
    static, _ = draw_views(asset, positions[still], normals[still], positions[0], cameras, light, view.gains)
    moving, flow = draw_views(asset, positions, normals, positions[0], cameras, light, view.gains)
    return OrbitSample(
        moving=moving,
        static=static,
        flow=flow,
        camera_to_world=cameras.camera_to_world.astype(np.float32),
        viewmats=cameras.viewmats().astype(np.float32),
        focal=(2 * cameras.Ks[:, 0, 0] / cameras.width).astype(np.float32),
        times=cameras.times.astype(np.float32),
        caption="",
    )


def pose_clip(asset: BakedAsset, clip: int, view: View, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and normals [T, V, 3] float32 of a clip in the clip space of its first frame, changed as `view` says."""
    last = len(asset.matrices[clip]) - 1
    stored = last * (view.start + view.span * np.arange(frames) / max(frames - 1, 1))
    positions, normals = asset.poses(clip, stored)
    if asset.clips[clip].recentre:
        middle = (positions.min(1, keepdims=True) + positions.max(1, keepdims=True)) / 2
        positions = positions - (middle - middle[:1])
    low, high = positions[0].min(0), positions[0].max(0)
    scale = view.size / max(float((high - low).max()), 1e-6)
    turn = np.radians(view.yaw)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    if view.mirror:
        matrix = matrix @ np.diag([-1.0, 1.0, 1.0])
    matrix = matrix.astype(np.float32)
    positions = np.ascontiguousarray(((positions - (low + high) / 2) * scale) @ matrix.T, np.float32)
    return positions, np.ascontiguousarray(normals @ matrix.T, np.float32)


def draw_views(
    asset: BakedAsset,
    positions: np.ndarray,
    normals: np.ndarray,
    rest: np.ndarray,
    cameras: Cameras,
    light: np.ndarray,
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [T, H, W, 4] and flow [T, H, W, 3] of T poses, each seen by its own camera; see `rasterize_views`.

    light: [T, 5] direction of any length in camera axes, ambient, diffuse; pictures are square.
    """
    size = cameras.width
    light = np.array(light, np.float32)
    light[:, :3] /= np.linalg.norm(light[:, :3], axis=1, keepdims=True)
    rgba = np.empty((len(positions), size, size, 4), np.float32)
    flow = np.empty((len(positions), size, size, 3), np.float32)
    colors = (asset.colors * np.float32(gains)).clip(0, 1)
    viewmats = np.ascontiguousarray(cameras.viewmats(), np.float32)
    look = (asset.faces, colors, asset.uv, asset.texture, asset.textures, asset.texture_sizes, light)
    rasterize_views(positions, normals, rest, viewmats, cameras.Ks[0, 0, 0], *look, size, rgba, flow)
    return rgba, flow


class SampleStream:
    """Endless, seekable stream of random samples of the clips of one split.

    Families are drawn evenly, then kinds of motion within the family, then clips: what repeats in the data (one
    skeleton with many skins) does not rule the training. `families` raises or lowers the share of a family.

    It is pickled as what it was made of: a process that gets it reads the assets itself, and does not keep the sender.
    """

    def __new__(cls, *args: object, **options: object) -> "SampleStream":
        """Remember what it is made of."""
        made = super().__new__(cls)
        made._made_of = args, options
        return made

    def __reduce__(self) -> tuple:
        args, options = self._made_of
        return _make, (type(self), args, options)

    def __init__(
        self,
        assets: Path,
        split: str | None = "train",
        *,
        resolution: int = 64,
        seed: int = 0,
        families: dict[str, float] | None = None,
    ) -> None:
        self.resolution, self.seed = resolution, seed
        entries = [entry for entry in read_manifest(assets, split) if entry.get("licence") in FREE_LICENCES]
        if not entries:
            raise BadFileError(f"{assets} has no assets of the split {split!r} under a free licence.")
        self.entries = {entry["id"]: entry for entry in entries}
        self.assets = {entry["id"]: read_baked(assets, entry) for entry in entries}
        groups: dict[str, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
        for entry in entries:
            for clip, info in enumerate(entry["clips"]):
                kind = re.sub(r"[_\d]|left|right|\b[a-d]\b", " ", action(info["action"], entry)).split()
                groups[entry["family"]][kind[0] if kind else ""].append((entry["id"], clip))
        self._groups = {family: list(kinds.values()) for family, kinds in groups.items()}
        # A family with one kind of motion and one asset would be seen as often as one with hundreds of clips.
        sizes = {family: sum(map(len, kinds)) for family, kinds in self._groups.items()}
        shares = families or {}
        weights = np.array([min(sizes[family], 60) ** 0.5 * shares.get(family, 1.0) for family in self._groups])
        if not weights.any():
            raise BadFileError(f"The shares of families leave no clip of {assets} to be drawn.")
        self._families, self._weights = list(self._groups), weights / weights.sum()

    def captions(self) -> list[str]:
        """The full caption of every clip."""
        return [caption(entry, clip["action"]) for entry in self.entries.values() for clip in entry["clips"]]

    def sample(self, number: int) -> OrbitSample:
        """Sample `number` of the stream."""
        rng = np.random.default_rng([self.seed, number])
        name, clip = self.pick(rng)
        asset = self.assets[name]
        drawn = render_sample(asset, clip, random_view(rng, loop=asset.clips[clip].loop), self.resolution)
        text = caption(self.entries[name], asset.clips[clip].action, rng)
        return replace(drawn, caption=text)

    def pick(self, rng: np.random.Generator) -> tuple[str, int]:
        """A clip: the id of its asset, and its number there."""
        kinds = self._groups[self._families[rng.choice(len(self._families), p=self._weights)]]
        clips = kinds[rng.integers(len(kinds))]
        return clips[rng.integers(len(clips))]


def _make(kind: type[SampleStream], args: tuple, options: dict) -> SampleStream:
    return kind(*args, **options)


def random_view(rng: np.random.Generator, *, loop: bool) -> View:
    """A way of looking at a clip. Most subjects face the front, as most assets do."""
    span = 1.0 if rng.random() < WHOLE else rng.uniform(0.35, 1.0)
    start = rng.random() if loop else rng.uniform(0, 1 - span)
    direction = np.array([rng.uniform(-1, 1), rng.uniform(-1, 0.2), -rng.uniform(0.2, 1)])
    ambient = rng.uniform(0.35, 0.85)
    return View(
        azimuth=float(rng.choice([0.0, rng.uniform(0, 360)])),
        elevation=float(rng.choice([0.0, rng.uniform(-5, 30)])),
        light=(*direction, ambient, rng.uniform(0.9, 1.15) - ambient),
        gains=tuple(rng.uniform(0.6, 1.3, 3) if rng.random() < 0.5 else (1.0, 1.0, 1.0)),
        start=start,
        span=span,
        size=rng.uniform(0.8, 1.0),
        yaw=rng.uniform(-180, 180) if rng.random() < 0.15 else rng.uniform(-10, 10),
        mirror=bool(rng.random() < 0.5),
    )
