# SPDX-License-Identifier: GPL-3.0-or-later
"""Random but valid clips and generated frames."""

import numpy as np

from blender_addon.contract import rotations
from blender_addon.contract.clip import BasisMotion, Clip, FrameMotion
from blender_addon.contract.frames import GeneratedFrames
from blender_addon.contract.orbit import Orbit, orbit_cameras


def random_clip(
    seed: int = 0,
    n: int = 20,
    frames: int = 5,
    bases: int | None = 3,
    sh_degree: int = 0,
    varying: bool = False,
    **fields,
) -> Clip:
    """A clip of `n` Gaussians; `bases=None` gives motion per frame, `varying` also scales and opacities per frame."""
    random = np.random.default_rng(seed)

    def unit_quats(*shape: int) -> np.ndarray:
        return rotations.normalize(random.normal(size=(*shape, 4))).astype(np.float32)

    if bases is None:
        motion = FrameMotion(
            frame_means=random.normal(size=(frames, n, 3)).astype(np.float32),
            frame_quats=unit_quats(frames, n),
            frame_scales=random.uniform(0.01, 0.1, (frames, n, 3)).astype(np.float32) if varying else None,
            frame_opacities=random.uniform(0, 1, (frames, n)).astype(np.float32) if varying else None,
        )
    else:
        weights = random.dirichlet(np.ones(4), size=n).astype(np.float32)
        motion = BasisMotion(
            basis_quats=unit_quats(frames, bases),
            basis_translations=random.normal(size=(frames, bases, 3)).astype(np.float32),
            basis_index=random.integers(0, bases, (n, 4)).astype(np.int32),
            basis_weights=weights,
        )
    return Clip(
        means=random.uniform(-0.5, 0.5, (n, 3)).astype(np.float32),
        quats=unit_quats(n),
        scales=random.uniform(0.01, 0.1, (n, 3)).astype(np.float32),
        opacities=random.uniform(0, 1, n).astype(np.float32),
        sh=random.normal(size=(n, (sh_degree + 1) ** 2, 3)).astype(np.float32),
        motion=motion,
        **fields,
    )


def random_frames(seed: int = 0, size: int = 16, count: int = 24, **fields) -> GeneratedFrames:
    """Generated frames of noise."""
    random = np.random.default_rng(seed)
    moving, static = random.integers(0, 256, (2, count, size, size, 4), np.uint8)
    description = {
        "prompt": "a fox runs", "motion": 3.0, "motion_measured": 2.5, "seed": seed,
        "provenance": {"warnings": ["The word flurb is not known."]},
    }  # fmt: skip
    cameras = orbit_cameras(Orbit(frames=count), size, size, moving=True)
    points, movement = (random.normal(size=size).astype(np.float32) for size in ((7, 3), (count, 7, 3)))
    movement = {"points": points, "movement": movement}
    return GeneratedFrames(moving, static, cameras, **{**description, **movement, **fields})
