# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D's Eq. 3 and plain guidance, by numbers made by hand."""

import pytest
import torch

from backend.guidance.classifier_free import guide, guide_plain

CONDITIONAL, UNCONDITIONAL, STATIC = torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([2.0])


@pytest.mark.parametrize(("w1", "w2", "guided"), [(0, 0, 3), (7, 0, 17), (0, 0.5, 3.5), (7, 0.5, 17.5)])
def test_each_branch_has_its_weight(w1: float, w2: float, guided: float) -> None:
    assert guide(CONDITIONAL, UNCONDITIONAL, STATIC, w1, w2) == guided


def test_without_the_static_model_it_is_plain_guidance() -> None:
    conditional, unconditional, static = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    for w1 in (0.0, 1.0, 6.5):
        plain = guide_plain(conditional, unconditional, scale=1 + w1)
        torch.testing.assert_close(guide(conditional, unconditional, static, w1, 0.0), plain)


@pytest.mark.parametrize(("scale", "guided"), [(0, 1), (1, 3), (9, 19)])
def test_plain_guidance(scale: float, guided: float) -> None:
    assert guide_plain(CONDITIONAL, UNCONDITIONAL, scale) == guided


def test_the_weights_add_up_to_one() -> None:
    """So that whatever all branches agree on stays: a guided clean latent is one as well."""
    same = torch.tensor([0.7, -2.0])
    torch.testing.assert_close(guide(same, same, same, 7.0, 0.5), same)
