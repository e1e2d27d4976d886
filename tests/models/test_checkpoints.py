# SPDX-License-Identifier: GPL-3.0-or-later
"""Released weights with and without wrapping, and what is said when they do not fit."""

import pytest
import torch
from torch import nn

from backend.models.checkpoints import load_strictly, released_state
from backend.progress import UserError


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "step": 333_000},
        lambda state: {"step": 1, "model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"state_dict.module.{key}": value for key, value in state.items()},
        lambda state: (
            {"state_dict": {f"module.lgm_big.{key}": value + 1 for key, value in state.items()}}
            | {
                "state_dict": {
                    f"module.{a}{key}": value + bool(a) for a in ("", "lgm_big.") for key, value in state.items()
                }
            }
        ),
    ],
    ids=["bare", "beside a step", "in a model's module", "prefixes", "with LGM"],
)
def test_wrapping_comes_off(wrap):
    expected = layers().state_dict()
    wrapped = wrap(expected)
    state, lgm = released_state(wrapped)
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    if lgm:
        assert list(lgm) == list(expected)
        assert torch.equal(lgm["0.weight"], expected["0.weight"] + 1)
    assert bool(lgm) == any("lgm_big" in key for key in wrapped.get("state_dict", {}))


def test_weights_that_fit_are_loaded():
    net, state = layers(), {key: value + 1 for key, value in layers().state_dict().items()}
    load_strictly(net, state, "The weights")
    assert torch.equal(net[3].weight, state["3.weight"])
    with torch.device("meta"):
        empty = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    load_strictly(empty, {key: value.half() for key, value in state.items()}, "The weights", assign=True)
    assert empty[3].weight.dtype == torch.float16
    assert torch.equal(empty[3].weight, state["3.weight"].half())


def test_all_that_does_not_fit_is_told_in_short():
    net = layers()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = {key: value + 1 for key, value in before.items() if not key.startswith(("0.", "1.", "2.", "4."))}
    state |= {"extra": torch.zeros(1), "3.weight": torch.zeros(3, 2)}
    with pytest.raises(UserError) as caught:
        load_strictly(net, state, "views.safetensors")
    message = str(caught.value)
    assert message.startswith("views.safetensors does not fit the network Sequential: ")
    assert "8 missing: 0.bias, 0.weight, 1.bias, 1.weight, 2.bias and 3 more" in message
    assert "1 extra: extra" in message
    assert "1 of another shape: 3.weight: (3, 2) instead of (2, 2)" in message
    assert caught.value.hint
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())  # nothing half-loaded
