# SPDX-License-Identifier: GPL-3.0-or-later
"""A kinesplat-small of a few thousand parameters, with weights of noise, and a subject that fits it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.models import kinesplat_small
from backend.models.known_motions import HARMONICS, KnownMotions
from backend.models.known_subjects import remember
from backend.models.small import SmallConfig, SmallVideoNet
from backend.models.text import Vocabulary
from backend.models.volume import VolumeConfig, VolumeNet
from backend.pipelines import diffusion4d, still_subject
from backend.splatting import surface_motion, visual_hull
from backend.splatting.config import ConstructConfig
from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras
from blender_addon.contract.requests import GENERATED_FRAMES, PRESETS
from tests.models.test_known_subjects import box

RESOLUTION = 16
SURFACE_POINTS = 500
WORDS = ("ball", "run", "dive")


def write_tiny_model(folder: Path, *, moves: bool = True) -> Path:
    """Save one to `folder`; what it invents is noise, and nothing at all where it is not to move."""
    torch.manual_seed(0)
    sizes = {"vocabulary": len(WORDS), "embedding": 16, "text_width": 8, "heads": 2}
    motion = SmallVideoNet(SmallConfig(4, 16, **sizes, vector_channels=3, widths=(8,) * 4, blocks=(0, 1, 1, 1)))
    static = VolumeNet(VolumeConfig(**sizes, widths=(8, 8, 8), blocks=1))
    for network in (motion, static):
        for parameter in network.parameters():
            if not parameter.any():  # begins at zero, and would say nothing about what goes in
                torch.nn.init.normal_(parameter, std=0.3)
    if not moves:
        torch.nn.init.zeros_(motion.exit.weight)
        torch.nn.init.zeros_(motion.exit.bias)
    parts = {"motion": motion, "static": static}
    about = {"name": "tiny 1", "licence": "CC0-1.0", "resolution": RESOLUTION, "frames": GENERATED_FRAMES}
    about["one_way"] = ["dive"]
    kinesplat_small.save(folder, parts, Vocabulary(WORDS), remember(["ball"], [box(0.6)]), hop(), about)
    return folder


def hop() -> KnownMotions:
    """The one motion that it knows: a ball that hops, once up and down."""
    points = torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(0))
    series = torch.zeros(1, 1 + 2 * HARMONICS, 32, 3)
    series[:, 1, :, 2] = -0.1  # of 1 - cos
    points = 0.5 * points / points.norm(dim=-1, keepdim=True)
    return KnownMotions(("ball",), ("hop",), torch.tensor([True]), points.half(), series.half())


def take_its_place(model: kinesplat_small.KinesplatSmall, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model instead of the shipped one, coarse pictures and surfaces, and presets with few steps."""
    monkeypatch.setattr(diffusion4d, "load", lambda **options: model)
    monkeypatch.setattr(diffusion4d, "RESOLUTION_BY_PRESET", dict.fromkeys(PRESETS, RESOLUTION))
    monkeypatch.setattr(still_subject, "PREVIEW_PIXELS", RESOLUTION)
    monkeypatch.setattr(surface_motion, "POINTS", SURFACE_POINTS)
    monkeypatch.setattr(surface_motion, "CONTROL_POINTS", 24)
    monkeypatch.setattr(visual_hull, "COARSE_CELLS", RESOLUTION)
    monkeypatch.setattr(visual_hull, "FINE_CELLS", 2 * RESOLUTION)
    for_preset = ConstructConfig.for_preset
    few = {"shape_steps": 5, "coarse_steps": 6, "fine_steps": 4, "control_points": 16, "coarse_gaussians": 100}
    monkeypatch.setattr(ConstructConfig, "for_preset", lambda *arguments: replace(for_preset(*arguments), **few))


def ball_orbit(size: int = RESOLUTION) -> tuple[np.ndarray, Cameras]:
    """Static orbit of a ball, dark on one half: pictures [T, size, size, 4] uint8 with straight alpha, and cameras."""
    cameras = orbit_cameras(Orbit(frames=GENERATED_FRAMES), size, size, moving=False)
    line = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(line, line)
    radius = 0.6
    inside = x**2 + y**2 < radius**2
    depth = np.sqrt(np.maximum(radius**2 - x**2 - y**2, 0))
    pictures = np.zeros((GENERATED_FRAMES, size, size, 4), np.uint8)
    for picture, pose in zip(pictures, cameras.camera_to_world, strict=True):
        seen = np.stack([x, -y, depth], -1) @ pose[:3, :3].T  # the visible surface in world axes
        picture[..., :3] = np.where(seen[..., :1] > 0, (220, 90, 30), (60, 40, 120))
        picture[..., 3] = np.where(inside, 255, 0)
        picture[~inside] = 0
    return pictures, cameras
