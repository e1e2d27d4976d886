# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of clips: colour by direction, what changes per frame, channels beside RGB."""

import numpy as np
import pytest
import torch

from backend.splatting.render import render, render_clip
from blender_addon.contract.clip import Clip, FrameMotion
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

PIXELS = 25  # odd: one is in the middle


def cameras(*views: tuple[float, float]) -> Cameras:
    """One for each azimuth and time."""
    return Cameras(
        camera_to_world=np.stack([orbit_camera(azimuth, 0.0, 2.0) for azimuth, _ in views]),
        Ks=np.repeat(intrinsics(39.6, PIXELS, PIXELS)[None], len(views), axis=0),
        times=np.array([time for _, time in views]),
        width=PIXELS,
        height=PIXELS,
    )


def one_gaussian(sh: np.ndarray, **motion: np.ndarray) -> Clip:
    """A ball at the origin, of two frames."""
    return Clip(
        means=np.zeros((1, 3), np.float32),
        quats=np.array([[1, 0, 0, 0]], np.float32),
        scales=np.full((1, 3), 0.1, np.float32),
        opacities=np.full(1, 0.8, np.float32),
        sh=sh.astype(np.float32),
        motion=FrameMotion(np.zeros((2, 1, 3), np.float32), np.tile(np.float32([1, 0, 0, 0]), (2, 1, 1)), **motion),
    )


def middle(pictures: torch.Tensor) -> torch.Tensor:  # [V, 4]
    return pictures[:, PIXELS // 2, PIXELS // 2]


def test_the_color_depends_on_the_side_one_looks_from() -> None:
    """The harmonic that grows along -Y lights what is seen from +Y, where one looks along -Y, and dims the other."""
    sh = np.zeros((1, 4, 3))
    sh[0, 1] = [0.5, 0.25, 0.0]
    front, back, side = middle(render_clip(one_gaussian(sh), cameras((0, 0), (180, 0), (90, 0))))
    tilt = 0.4886025 * torch.tensor([0.5, 0.25, 0.0])
    for seen, expected in ((front, 0.5 - tilt), (back, 0.5 + tilt), (side, torch.full((3,), 0.5))):
        torch.testing.assert_close(seen[:3] / seen[3], expected, rtol=1e-3, atol=1e-3)


def test_scales_and_opacities_of_each_frame_are_drawn() -> None:
    scales = np.float32([[[0.1] * 3], [[0.2] * 3]])
    clip = one_gaussian(np.zeros((1, 1, 3)), frame_scales=scales, frame_opacities=np.float32([[0.8], [0.4]]))
    pictures = render_clip(clip, cameras((0, 0), (0, 1), (0, 0.5)))
    torch.testing.assert_close(middle(pictures)[:, 3], torch.tensor([0.8, 0.4, 0.6]), rtol=0.02, atol=0)
    spread = (pictures[..., 3] > 0.5 * pictures[..., 3].amax(dim=(1, 2), keepdim=True)).sum(dim=(1, 2))
    assert spread[0] < spread[2] < spread[1]
    frozen = render_clip(clip, cameras((0, 0), (0, 1)), frozen=True)
    assert torch.equal(frozen[0], pictures[0])
    assert torch.equal(frozen[1], pictures[0])


@pytest.mark.parametrize("shared", [True, False])
def test_further_channels_and_depth_come_after_alpha(shared: bool) -> None:
    views = cameras((0, 0), (90, 0))
    colors = torch.tensor([[0.1, 0.2, 0.3, -4.0, 5.0]])
    drawn = render(
        torch.zeros(2, 1, 3),
        torch.tensor([1.0, 0, 0, 0]).expand(2, 1, 4),
        torch.full((1, 3), 0.1),
        torch.full((1,), 0.8),
        colors if shared else colors.expand(2, 1, 5),
        torch.from_numpy(views.viewmats()).float(),
        torch.from_numpy(views.Ks).float(),
        PIXELS,
        PIXELS,
        depth=True,
    )
    assert drawn.shape == (2, PIXELS, PIXELS, 7)
    seen = middle(drawn)
    straight = seen / seen[:, 3:4]
    torch.testing.assert_close(straight, torch.tensor([[0.1, 0.2, 0.3, 1.0, -4.0, 5.0, 2.0]]).expand(2, -1))
