# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory foretold from shapes, beside what is counted by hand and what torch's profiler sees."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from backend.models.dry_run import dry_run
from backend.models.videomv import IMAGE, TEXT, VideoMVConfig, describe

SMALL = VideoMVConfig(width=32, multipliers=(1, 1, 2), blocks=1, heads=4, head_width=16)


class Steps(nn.Module):
    """Wide inside, then attention."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(10, 1000), nn.Linear(1000, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.wide(x)[:, None]
        return functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_figures_are_those_counted_by_hand():
    with torch.device("meta"):
        net, x = Steps(), torch.empty(3, 100, 10)
    cost = dry_run(net, {"x": x}, ["wide", "wide.0"])
    row, wide = 3 * 100 * 10 * 4, 3 * 100 * 1000 * 4
    assert cost.parameters == 10 * 1000 + 1000 + 1000 * 10 + 10
    assert cost.weights == 4 * cost.parameters
    assert cost.kept == 0
    assert cost.peak == wide + row  # what attention makes is smaller
    whole, first = cost.stages
    assert (whole.name, whole.output, whole.peak) == ("wide", row, wide + row)
    assert (first.parameters, first.weights, first.output, first.peak) == (11_000, 44_000, wide, wide)
    assert cost.total == cost.weights + cost.peak

    assert dry_run(net, {"x": x}, ["wide", "wide.0"]) == cost  # from shapes that are known by now
    assert dry_run(net.to(torch.float64), {"x": x.double()}, []).peak == 2 * cost.peak
    net.float()

    trained = dry_run(net, {"x": x}, [], training=True)
    assert trained.kept == wide + 2 * row + 0  # for the second layer, for attention, and its output
    assert trained.peak >= trained.kept + cost.weights / 2
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("config", "parameters"), [(TEXT, 1412.9e6), (IMAGE, 1422.1e6)])
def test_the_published_size_is_known_from_shapes(config, parameters):
    cost = describe(config)
    assert cost.parameters == pytest.approx(parameters, rel=1e-4)
    assert cost.weights == 2 * cost.parameters
    stages = {stage.name: stage for stage in cost.stages}
    assert len(stages) == 25
    assert stages["input_blocks.1"].output == 24 * 32 * 32 * 320 * 2
    # The first transformer: 512 wide, eight times that in its gate, and the half that is left.
    assert stages["input_blocks.0.1"].peak > 24 * 32 * 32 * 512 * 2 * (8 + 4 + 4)
    assert cost.peak == max(stage.peak for stage in cost.stages)
    embeddings = cost.parameters - sum(stage.parameters for stage in cost.stages)
    assert 0 < embeddings < 15e6


@pytest.mark.slow
def test_what_saves_memory_saves_it():
    told = partial(describe, replace(SMALL, multipliers=(1, 2)), frames=8)
    plain = told()
    assert told(dtype=torch.float32).weights == 2 * plain.weights
    assert told(batch=2).peak == pytest.approx(2 * plain.peak, rel=0.01)
    assert told(slice_tokens=1024).peak < 0.6 * plain.peak
    kept = told(training=True, checkpoint_activations=False)
    again = told(training=True)
    assert again.kept < 0.2 * kept.kept
    assert again.peak < 0.6 * kept.peak
    assert kept.peak > kept.kept + kept.weights / 2  # gradients come to it


@pytest.mark.slow
@torch.no_grad()
def test_the_profiler_sees_the_same():
    from torch.profiler import ProfilerActivity, profile

    from backend.models.videomv import VideoMV

    torch.manual_seed(0)
    net = VideoMV(SMALL).eval()
    given = (torch.randn(1, 4, 8, 16, 16), torch.tensor([3]), torch.randn(1, 20, 1024), torch.randn(1, 8, 16))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        net(*given)
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    foretold = describe(SMALL, frames=8, height=16, width=16, text_tokens=20, dtype=torch.float32).peak
    assert most == pytest.approx(foretold, rel=0.2)
