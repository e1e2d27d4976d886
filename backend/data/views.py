# SPDX-License-Identifier: GPL-3.0-or-later
"""From where a clip of a dataset is seen and lit, the same for both renderers."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras

FRAMES = 24
ELEVATIONS = (0.0, 10.0, 20.0, 30.0, -5.0)  # degrees; the product's is 0


@dataclass(frozen=True)
class DatasetView:
    """Where the orbit starts, and how the light of the add-on's stage is turned about the vertical. Degrees."""

    azimuth: float = 0.0
    elevation: float = 0.0
    light_turn: float = 0.0

    def cameras(self, resolution: int, video: str) -> Cameras:
        """The cameras of the "moving" orbit, the "static" orbit, or the "front" video from the orbit's first one."""
        orbit = Orbit(FRAMES, azimuth_start=self.azimuth, elevation=self.elevation)
        cameras = orbit_cameras(orbit, resolution, resolution, moving=video != "static")
        if video != "front":
            return cameras
        first = np.repeat(cameras.camera_to_world[:1], FRAMES, axis=0)
        return Cameras(first, cameras.Ks, cameras.times, resolution, resolution)

    def to_json(self) -> dict:
        """For the sample's description."""
        return asdict(self)


def views_of_clip(count: int, seed: int, name: str) -> list[DatasetView]:
    """`count` views of a clip: the product's own, then random ones that depend on seed and name alone."""
    rng = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()])
    elevations = np.resize(rng.permutation(ELEVATIONS), count)
    azimuths, turns = rng.uniform(0, 360, (2, count))
    random = [
        DatasetView(*(round(float(number), 2) for number in one))
        for one in zip(azimuths, elevations, turns, strict=True)
    ]
    return [DatasetView(), *random][:count]
