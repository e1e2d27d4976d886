# SPDX-License-Identifier: GPL-3.0-or-later
"""What all formats take of a clip: chosen frames one by one, and colors in the space that a file is to have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blender_addon.contract import rotations
from blender_addon.contract.clip import Clip, FrameMotion, Gaussians, clip_of_moments
from blender_addon.contract.spherical_harmonics import SHARED_DEGREE, converted


def still(clip: Clip, frame: float) -> Clip:
    """One moment of a clip, with those Gaussians alone that are there then; perhaps none."""
    moment = clip.frame(frame)
    return clip_of_moments(replace(clip, sh=clip.sh[moment.there]), [moment.picked(moment.there)])


@dataclass(frozen=True)
class Shot:
    """The frames of a clip that go into files. Frames are counted from 0 and may lie between two stored ones."""

    clip: Clip
    frames: Sequence[float]
    matrix: np.ndarray  # [4, 4] from clip space to the space of the file
    color_space: str  # of the file: "srgb" or "linear"

    def moments(self) -> Iterator[Gaussians]:
        """The Gaussians of each frame in clip space, one frame at a time; rotations continuous in sign."""
        former = None
        for frame in self.frames:
            moment = self.clip.frame(frame)
            if former is not None:
                moment = replace(moment, quats=rotations.same_side(moment.quats, former))
            former = moment.quats
            yield moment

    def sh(self) -> np.ndarray:  # [N, K, 3] float32, K at most 16
        """The colors in the file's space, without degrees that no format has. In clip space: not yet turned."""
        return converted(self.clip.sh[:, : (SHARED_DEGREE + 1) ** 2], self.clip.color_space, self.color_space)

    @property
    def moving_scales(self) -> bool:
        """Whether sizes change over time."""
        return isinstance(self.clip.motion, FrameMotion) and self.clip.motion.frame_scales is not None

    @property
    def moving_opacities(self) -> bool:
        """Whether opacities change over time."""
        return isinstance(self.clip.motion, FrameMotion) and self.clip.motion.frame_opacities is not None

    @property
    def made_of(self) -> dict:
        """Where the clip comes from, for those who keep account of assets: what is known of it, as plain JSON."""
        known = self.clip.provenance
        settings, versions = (known.get(name) or {} for name in ("settings", "versions"))
        told = {
            "clip": self.clip.name,
            "made": known.get("made"),
            "pipeline": known.get("pipeline"),
            "prompt": settings.get("prompt"),
            "seed": settings.get("seed"),
            "moves_as": known.get("moves_as"),
            "models": known.get("models"),
            "kinesplat": versions.get("kinesplat"),
        }
        return {name: value for name, value in told.items() if value not in (None, "", [])}
