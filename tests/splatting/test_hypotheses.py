# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypotheses of the motion are tried in order, and the one that explains the pictures best goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.splatting.config import ConstructConfig
from backend.splatting.fit import Fit
from backend.splatting.gaussians import discs
from backend.splatting.hypotheses import Hypothesis, Trial, kinds_for, lags_for, leader, next_hypothesis
from backend.splatting.scene import prepare
from tests.splatting.scenes import swinging_arm

KINDS = ["free", "jointed", "carried"]


def trials(*told: tuple) -> list[Trial]:
    return [Trial(Hypothesis(kind, lag), *errors) for kind, lag, *errors in told]


FREE = ("free", None, 1.0, 0.4)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([FREE, ("jointed", None, 0.99, 0.4)], ("free", None)),  # hardly better
        ([FREE, ("jointed", None, 0.9, 0.4)], ("jointed", None)),
        ([FREE, ("free", 0.0, 0.7, 0.4, 0.44)], ("free", 0.0)),  # the mirror explains as much
        ([FREE, ("free", 0.0, 0.7, 0.4, 0.6)], ("free", None)),  # what is seen in it is not so
        ([FREE, ("free", 0.0, 0.7, 0.6, 0.6)], ("free", None)),  # both sides wrong
        ([FREE, ("free", 0.0, 0.7, 0.4, 0.48), ("free", 0.5, 0.8, 0.42, 0.45)], ("free", 0.5)),
        ([FREE, ("free", 0.0, 0.7, 0.4, 0.42), ("free", 0.5, 0.6, 0.42, 0.5)], ("free", 0.0)),
        ([FREE, ("free", 0.0, 0.7, 0.4, 0.42), ("jointed", 0.0, 0.6, 0.3, 0.5)], ("jointed", 0.0)),
    ],
)
def test_the_leader(told: list[tuple], expected: tuple) -> None:
    assert leader(trials(*told)).hypothesis == Hypothesis(*expected)


def test_mirrors_come_first_and_what_holds_of_them_goes_on() -> None:
    told: list[tuple] = []
    tried = []
    errors = {0.0: (0.9, 0.4, 0.8), 0.5: (0.8, 0.4, 0.42), None: (1.0, 0.4)}
    while hypothesis := next_hypothesis(trials(*told), KINDS, [0.0, 0.5]):
        tried.append((hypothesis.kind, hypothesis.lag))
        told.append((*tried[-1], *errors[hypothesis.lag]))
    assert tried == [("free", None), ("free", 0.0), ("free", 0.5), ("jointed", 0.5), ("carried", 0.5)]
    assert next_hypothesis(trials(FREE), ["free"], []) is None
    assert next_hypothesis(trials(FREE), KINDS, []) == Hypothesis("jointed", None)


def test_only_a_loop_has_half_a_cycle() -> None:
    for loop, expected in ((True, [0.0, 0.5]), (False, [0.0])):
        views = swinging_arm(loop=loop)
        assert lags_for(prepare(views.moving, views.static, ConstructConfig(gaussians=300), frames=9)) == expected


def test_something_is_tried_where_no_kind_fits() -> None:
    scene = swinging_arm()  # which travels nowhere
    config = ConstructConfig(gaussians=300, hypotheses=("carried",))
    here = prepare(scene.moving, scene.static, config, frames=9)
    assert kinds_for(here, discs(scene.surface.points, scene.surface.normals, np.full((450, 3), 0.5))) == {"free": None}
    assert kinds_for(replace(here, config=replace(config, hypotheses=())), None) == {"free": None}


def test_the_leaders_motion_is_kept_and_comes_back_from_a_checkpoint() -> None:
    scene = swinging_arm()
    here = prepare(scene.moving, scene.static, ConstructConfig(gaussians=300, control_points=12), frames=9)
    fit = Fit(discs(scene.surface.points, scene.surface.normals, np.full((450, 3), 0.5)))
    fit.rest_means = fit.gaussians.means.detach().clone()
    for trial in trials(FREE, ("free", 0.0, 0.8, 0.4, 0.41), ("jointed", 0.0, 0.9, 0.4, 0.41)):
        fit.begin_motion(here, trial.hypothesis)
        with torch.no_grad():
            fit.motion.coefficients.fill_(trial.error)
        fit.end_trial(trial)
    again = Fit.from_arrays(fit.to_arrays(), here)
    assert (again.trials, again.hypothesis, again.step) == (fit.trials, Hypothesis("jointed", 0.0), 0)
    for one in (fit, again):
        one.take_best(here)
        assert one.hypothesis == Hypothesis("free", 0.0)
        assert float(one.motion.coefficients.detach().mean()) == pytest.approx(0.8)
        assert one.motion.config.spectral_weight < here.config.spectral_weight
