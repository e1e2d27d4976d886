# SPDX-License-Identifier: GPL-3.0-or-later
import math

import numpy as np
import pytest
import torch

from backend.evaluation.construction import evaluate_construction
from backend.evaluation.metrics import alpha_iou, foreground_psnr, psnr, spearman, track_error
from backend.pictures import over_white
from backend.splatting.observations import Observations
from backend.splatting.render import render_clip
from blender_addon.contract.orbit import Orbit, orbit_cameras
from tests.contract.clips import random_clip


def test_psnr_of_a_known_error() -> None:
    a = torch.full((2, 8, 8, 3), 0.5)
    b = a.clone()
    b[1] += 0.1
    values = psnr(a, b)
    assert values[0] == pytest.approx(100)
    assert values[1] == pytest.approx(20, abs=1e-4)


def test_foreground_psnr_does_not_depend_on_the_size_of_the_picture() -> None:
    small = torch.zeros(1, 8, 8, 4)
    small[:, 2:6, 2:6] = torch.tensor([0.5, 0.5, 0.5, 1.0])
    other = small.clone()
    other[..., :3] *= 0.8
    large, large_other = (torch.nn.functional.pad(image, (0, 0, 20, 20, 20, 20)) for image in (small, other))
    assert foreground_psnr(small, other) == pytest.approx(20, abs=1e-4)
    assert foreground_psnr(large, large_other) == pytest.approx(20, abs=1e-4)
    assert psnr(over_white(large), over_white(large_other)) > psnr(over_white(small), over_white(other)) + 10


def test_overlap_of_outlines() -> None:
    a, b = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    a[0, :2] = 1
    b[0, :1] = 1
    a[1] = 1
    assert alpha_iou(a, b).tolist() == [0.5, 0.0, 1.0]


def test_track_error_is_0_when_right_and_1_when_still() -> None:
    rng = np.random.default_rng(0)
    start = rng.random((200, 3)).astype(np.float32)
    shift = np.array([0.0, 0.1, 0.2], np.float32)[:, None, None] * np.array([1, 0, 0], np.float32)
    means = start + shift
    assert track_error(means, means[:, ::5]) == pytest.approx(0, abs=1e-6)
    assert track_error(np.repeat(means[:1], 3, axis=0), means[:, ::5]) == pytest.approx(1)


def test_a_clip_is_perfect_on_its_own_pictures_and_frozen_it_is_not() -> None:
    clip = random_clip(0, n=60, frames=5, bases=4)
    cameras = orbit_cameras(Orbit(5), 48, 48, moving=True)
    own = Observations(render_clip(clip, cameras), cameras)
    result = evaluate_construction(clip, own, truth=own, tracks=clip.frames().means)
    assert result["psnr_shown"] > 60
    assert result["psnr_unseen"] == result["psnr_shown"]
    assert result["psnr_unseen_frozen"] < result["psnr_unseen"] - 10
    assert result["track_error"] < 0.5


def test_spearman_with_ties() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 25, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 2, 3], [5, 5, 5]) == 0
    with pytest.raises(ValueError, match="same length"):
        spearman([1, 2], [1, 2, 3])
