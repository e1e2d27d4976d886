# SPDX-License-Identifier: GPL-3.0-or-later
"""Scene flow as a guide: what it says about points, and what construction makes of it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.evaluation.metrics import track_error
from backend.progress import JobCancelled
from backend.splatting.construct import construct
from backend.splatting.guide import SceneFlow, SurfaceMotion, make_guide
from backend.splatting.render import render
from tests.splatting.scenes import Scene, swinging_arm
from tests.splatting.test_construct import TINY, arrays_of, cancel_after, planned


@pytest.fixture(scope="module")
def scene() -> Scene:
    return swinging_arm(pixels=96)


def true_flow(scene: Scene) -> SceneFlow:
    """What the cameras of the moving orbit would see of the true movement at time 0."""
    views = scene.moving
    rest = torch.from_numpy(scene.tracks[0])
    maps, covers = [], []
    for view in range(len(views.times)):
        moment = int(views.times[view] * (len(scene.tracks) - 1))
        depth = rest @ views.viewmats[view, 2, :3] + views.viewmats[view, 2, 3]
        flow = (torch.from_numpy(scene.tracks[moment]) - rest) * 2 / depth[:, None]
        one = slice(view, view + 1)
        drawn = render(
            rest[None],
            torch.tensor([1.0, 0, 0, 0]).expand(1, len(rest), 4),
            torch.full((len(rest), 3), 0.025),
            torch.full((len(rest),), 0.95),
            flow,
            views.viewmats[one],
            views.Ks[one],
            views.cameras.width,
            views.cameras.height,
        )[0]
        covers.append(drawn[..., 3])
        maps.append(drawn[..., :3] / drawn[..., 3:].clamp_min(1e-3))
    flow = torch.stack(maps)
    return SceneFlow(flow, torch.full(flow.shape[:3], 0.02), torch.stack(covers), views.viewmats, views.Ks, views.times)


def test_points_are_believed_where_they_went(scene: Scene) -> None:
    guide = make_guide(true_flow(scene), scene.tracks[0])
    moments = (guide.times * (len(scene.tracks) - 1)).round().long()
    true = torch.from_numpy(scene.tracks)[moments] - torch.from_numpy(scene.tracks[0])
    seen = guide.weight > 0
    assert 0.3 < seen.float().mean() < 0.9  # the far side is hidden at each time
    moves = seen & (true.norm(dim=-1) > 0.05)
    error = (guide.movement - true).norm(dim=-1)[moves].mean() / true.norm(dim=-1)[moves].mean()
    assert error < 0.25
    assert float(guide.weight.mean()) == pytest.approx(1, abs=1e-4)
    rest = torch.from_numpy(scene.tracks[0])
    assert guide.error(rest + guide.movement, rest) < 0.01
    assert guide.error(rest.expand_as(guide.movement), rest) == pytest.approx(1, abs=0.02)


def test_the_surer_of_two_pictures_counts_more(scene: Scene) -> None:
    flow = true_flow(scene)
    wrong = replace(flow, flow=flow.flow + 0.3, spread=torch.full_like(flow.spread, 0.2))
    both = SceneFlow(*(torch.cat(pair) for pair in zip(vars(flow).values(), vars(wrong).values(), strict=True)))
    alone, together = make_guide(flow, scene.tracks[0]), make_guide(both, scene.tracks[0])
    seen = alone.weight > 0
    assert (together.movement - alone.movement)[seen].abs().max() < 0.02


def true_motion(scene: Scene) -> SurfaceMotion:
    """Every fourth point of the surface, and where it is at each time."""
    rest, times = torch.from_numpy(scene.tracks[0, ::4]), torch.linspace(0, 1, len(scene.tracks))
    return SurfaceMotion(rest, torch.from_numpy(scene.tracks[:, ::4]) - rest, times)


def test_points_move_as_those_beside_them(scene: Scene) -> None:
    told = true_motion(scene)
    guide = make_guide(told, scene.tracks[0])
    true = torch.from_numpy(scene.tracks - scene.tracks[0])
    assert (guide.movement - true).norm(dim=-1).mean() < 0.1 * true.norm(dim=-1).mean()
    torch.testing.assert_close(make_guide(told, told.points.numpy()).movement, told.movement, atol=1e-3, rtol=0)
    one = make_guide(SurfaceMotion(told.points[:1], told.movement[:, :1], told.times), scene.tracks[0])
    torch.testing.assert_close(one.movement, told.movement[:, :1].expand_as(true))


@pytest.mark.parametrize("tell", [true_flow, true_motion])
def test_a_guide_brings_the_motion_right(tell: Callable[[Scene], object], scene: Scene, tmp_path: Path) -> None:
    config = replace(TINY, guide_steps=60)
    inputs = scene.moving, scene.static, scene.surface, config
    guided = construct(*inputs, planned(tmp_path / "a"), told=tell(scene))
    without = construct(*inputs, planned(tmp_path / "b"))
    errors = [track_error(clip.frames().means, scene.tracks) for clip in (guided, without)]
    assert errors[0] < 0.5
    assert errors[0] < 0.6 * errors[1]


def test_a_guided_fit_that_was_stopped_goes_on_to_the_same_result(scene: Scene, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("backend.splatting.checkpoint.INTERVAL", 0.0)
    monkeypatch.setattr("backend.splatting.checkpoint.MOST_TIME", math.inf)
    config, flow = replace(TINY, guide_steps=10), true_flow(scene)
    inputs = scene.moving, scene.static, scene.surface, config
    whole = arrays_of(construct(*inputs, planned(tmp_path / "whole"), told=flow))
    with pytest.raises(JobCancelled):
        construct(*inputs, planned(tmp_path / "cut", is_cancelled=cancel_after(TINY.shape_steps + 7)), told=flow)
    for name, array in arrays_of(construct(*inputs, planned(tmp_path / "cut"), told=flow)).items():
        np.testing.assert_array_equal(array, whole[name])
