# SPDX-License-Identifier: GPL-3.0-or-later
"""Still subjects for training: a picture of the first view, and the subject as a colored volume."""

from dataclasses import dataclass

import numba
import numpy as np

from backend.data.baked import BakedAsset
from backend.data.captions import caption
from backend.data.samples import SampleStream, View, draw_views, pose_clip
from backend.models.volume import HALF_SIDE, VOXELS
from blender_addon.contract.orbit import Orbit, orbit_cameras

_F = np.float32
SPACING = 0.4  # voxels between two samples of a triangle


@dataclass(frozen=True)
class StillSample:
    """One moment of a clip. All float32."""

    first: np.ndarray  # [H, W, 4] premultiplied, display-referred: the view of the camera at azimuth 0
    volume: np.ndarray  # [VOXELS, VOXELS, VOXELS, 4] premultiplied RGBA, unlit; axes z, y, x
    caption: str


class StillStream(SampleStream):
    """Endless, seekable stream of still subjects."""

    def sample(self, number: int) -> StillSample:
        """Sample `number` of the stream."""
        rng = np.random.default_rng([self.seed, number])
        name, clip = self.pick(rng)
        asset, view = self.assets[name], random_still_view(rng)
        positions, normals = pose_clip(asset, clip, view, frames=1)
        cameras = orbit_cameras(Orbit(frames=1), self.resolution, self.resolution, moving=False)
        light = np.float32([[rng.uniform(-0.6, 0.6), -0.9, -rng.uniform(0.2, 0.8), rng.uniform(0.55, 0.85), 0.25]])
        first, _ = draw_views(asset, positions, normals, positions[0], cameras, light, view.gains)
        text = caption(self.entries[name], asset.clips[clip].action, rng)
        return StillSample(first[0], colored_volume(asset, positions[0], view.gains), text)


def random_still_view(rng: np.random.Generator) -> View:
    """One moment of a clip, from the front or (for images, which show any side) from anywhere."""
    return View(
        start=float(rng.choice([0.0, rng.random()], p=[0.8, 0.2])),
        span=0.0,
        size=rng.uniform(0.92, 1.0),
        yaw=float(rng.choice([0.0, 90.0, -90.0, rng.uniform(-180, 180)], p=[0.64, 0.08, 0.08, 0.2])),
        mirror=bool(rng.random() < 0.5),
        gains=tuple(rng.uniform(0.7, 1.2, 3) if rng.random() < 0.3 else (1.0, 1.0, 1.0)),
    )


def colored_volume(asset: BakedAsset, positions: np.ndarray, gains: tuple[float, float, float]) -> np.ndarray:
    """Voxels that a posed mesh [V, 3] touches or encloses, with the mesh's colors. See `StillSample.volume`."""
    sums = np.zeros((VOXELS, VOXELS, VOXELS, 4), np.float32)
    colors = (asset.colors * np.float32(gains)).clip(0, 1)
    look = (asset.faces, colors, asset.uv, asset.texture, asset.textures, asset.texture_sizes)
    splat_triangles(positions, *look, _F(HALF_SIDE), sums)
    volume = np.zeros_like(sums)
    touched = sums[..., 3] > 0
    volume[touched] = sums[touched] / sums[touched, 3:]
    fill_inside(volume)
    return volume


@numba.njit(cache=True, nogil=True, fastmath=True)
def splat_triangles(positions, faces, colors, uv, texture, textures, texture_sizes, half_side, sums):
    """Add color and 1 to each voxel of `sums` [N, N, N, 4] (z, y, x) for each of many points on the triangles."""
    count = sums.shape[0]
    scale = _F(count) / (2 * half_side)
    for f in range(faces.shape[0]):
        a, b, c = positions[faces[f, 0]], positions[faces[f, 1]], positions[faces[f, 2]]
        longest = _F(0)
        for i in range(3):
            longest = max(longest, abs(b[i] - a[i]), abs(c[i] - a[i]), abs(c[i] - b[i]))
        steps = int(longest * scale / _F(SPACING)) + 1
        image = texture[f]
        for i in range(steps + 1):
            for j in range(steps + 1 - i):
                w1, w2 = _F(i) / steps, _F(j) / steps
                w0 = _F(1) - w1 - w2
                x = int((w0 * a[0] + w1 * b[0] + w2 * c[0] + half_side) * scale)
                y = int((w0 * a[1] + w1 * b[1] + w2 * c[1] + half_side) * scale)
                z = int((w0 * a[2] + w1 * b[2] + w2 * c[2] + half_side) * scale)
                if x < 0 or y < 0 or z < 0 or x >= count or y >= count or z >= count:
                    continue
                r, g, bl = colors[f, 0], colors[f, 1], colors[f, 2]
                if image >= 0:
                    u = w0 * uv[faces[f, 0], 0] + w1 * uv[faces[f, 1], 0] + w2 * uv[faces[f, 2], 0]
                    v = w0 * uv[faces[f, 0], 1] + w1 * uv[faces[f, 1], 1] + w2 * uv[faces[f, 2], 1]
                    row = min(texture_sizes[image, 0] - 1, int((v - np.floor(v)) * texture_sizes[image, 0]))
                    column = min(texture_sizes[image, 1] - 1, int((u - np.floor(u)) * texture_sizes[image, 1]))
                    r *= textures[image, row, column, 0]
                    g *= textures[image, row, column, 1]
                    bl *= textures[image, row, column, 2]
                voxel = sums[z, y, x]
                voxel[0] += r
                voxel[1] += g
                voxel[2] += bl
                voxel[3] += 1


@numba.njit(cache=True, nogil=True)
def fill_inside(volume):
    """Occupy the empty voxels that cannot be reached from outside; they take the colors of their neighbors."""
    n = volume.shape[0]
    outside = np.zeros((n, n, n), np.bool_)
    stack = np.empty((n * n * n, 3), np.int16)
    top = 0
    for i in range(n):
        for j in range(n):
            for z, y, x in ((i, j, 0), (i, j, n - 1), (i, 0, j), (i, n - 1, j), (0, i, j), (n - 1, i, j)):
                if volume[z, y, x, 3] == 0 and not outside[z, y, x]:
                    outside[z, y, x] = True
                    stack[top] = (z, y, x)
                    top += 1
    while top:
        top -= 1
        z, y, x = stack[top]
        for dz, dy, dx in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
            k, j, i = z + dz, y + dy, x + dx
            if 0 <= k < n and 0 <= j < n and 0 <= i < n and not outside[k, j, i] and volume[k, j, i, 3] == 0:
                outside[k, j, i] = True
                stack[top] = (k, j, i)
                top += 1
    for _ in range(n):
        changed = 0
        for z in range(1, n - 1):
            for y in range(1, n - 1):
                for x in range(1, n - 1):
                    if outside[z, y, x] or volume[z, y, x, 3] > 0:
                        continue
                    known = 0
                    for dz, dy, dx in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
                        other = volume[z + dz, y + dy, x + dx]
                        if other[3] > 0:
                            known += 1
                            for k in range(3):
                                volume[z, y, x, k] += other[k]
                    if known:
                        for k in range(3):
                            volume[z, y, x, k] /= known
                        volume[z, y, x, 3] = 1
                        changed += 1
        if not changed:
            break
