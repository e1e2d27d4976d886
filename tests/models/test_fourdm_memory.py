# SPDX-License-Identifier: GPL-3.0-or-later
"""What 4DM needs, found on the meta device."""

import pytest
import torch

from backend.models.fourdm import IMAGEDREAM, PUBLISHED, FourDM
from backend.models.fourdm_memory import FusedAttention, LiveTensors, need
from tests.models.fourdm_small import SMALL

MIB = 2**20


def test_stages_add_up_to_the_network() -> None:
    found = need(dtype=torch.bfloat16)
    with torch.device("meta"):
        net = FourDM(PUBLISHED)
    assert found.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert found.weights == 2 * sum(tensor.numel() for tensor in net.state_dict().values())
    stages = {stage.name: stage for stage in found.stages}
    assert len(stages) == len(found.stages) == 12 + 1 + 12 + 4
    # 80 rows of 32 x 32 pixels: the gated feed-forward at the top is 8 x 320 wide.
    assert stages["input_blocks.1"].largest == 80 * 32 * 32 * 8 * 320 * 2
    assert found.activations == max(stage.peak for stage in found.stages) >= 2 * stages["input_blocks.1"].largest
    assert found.total == found.weights + found.activations


def test_more_of_anything_needs_more() -> None:
    found = need(SMALL)
    assert need(SMALL, dtype=torch.float16).activations == pytest.approx(found.activations / 2, rel=0.01)
    assert need(SMALL, frames=16).activations == pytest.approx(2 * found.activations, rel=0.01)
    assert need(SMALL, height=64).activations == pytest.approx(2 * found.activations, rel=0.05)
    assert need(SMALL.base).weights < found.weights
    assert need(SMALL, motion_rows=2048).activations < found.activations
    assert need(IMAGEDREAM, frames=1, batch=2).parameters == pytest.approx(941.7e6, rel=1e-3)


def test_what_is_alive_is_counted_as_it_is() -> None:
    with torch.device("meta"), LiveTensors("first") as live, FusedAttention():
        a = torch.empty(MIB, dtype=torch.uint8)
        b = a.view(1024, 1024).t()  # no memory of its own
        c = b + 1
        del a, b
        live.begin("second")
        c + 1
        query = torch.empty(1, 1, 1024, 16)
        torch.nn.functional.scaled_dot_product_attention(query, query, query)  # 1024 x 1024 scores are not made
    assert live.seen == {"first": (MIB, 2 * MIB), "second": (MIB, 2 * MIB)}


def test_the_dry_run_counts_what_a_real_run_keeps() -> None:
    frames, views, rows = 2, 3, 6
    net = FourDM(SMALL).requires_grad_(False)
    given = (torch.randn(rows, 4, 16, 16), torch.full((rows,), 5), torch.randn(rows, 77, 16))
    extras = {
        "cameras": torch.randn(rows, 16),
        "image": torch.randn(rows, 9, 1280),
        "pixels": torch.randn(frames, 4, 16, 16),
    }
    with LiveTensors("all") as live:
        net(*given, **extras, frames=frames, views=views)
    found = need(SMALL, frames=frames, views=views, height=16, width=16, batch=1, image_features=9)
    assert live.seen["all"] == (max(stage.largest for stage in found.stages), found.activations)
