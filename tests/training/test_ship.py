# SPDX-License-Identifier: GPL-3.0-or-later
"""Finished runs of both tasks become weights that the program loads and uses."""

import json

import pytest
import torch

from backend.models import kinesplat_small
from backend.progress import UserError
from backend.training.ship import ship
from backend.training.trainer import train

NETWORKS = {
    "motion": {},
    "static": {"network": {"widths": [8, 8, 8], "blocks": 1, "embedding": 16, "text_width": 8, "heads": 2}},
}


@pytest.fixture
def runs(tiny, assets, tmp_path):
    for task, changes in NETWORKS.items():
        assert train(tiny(task=task, **changes), assets, tmp_path / task, steps=1)
    return {task: tmp_path / task for task in NETWORKS}


@pytest.mark.slow
def test_runs_become_weights(runs, assets, tmp_path):
    ship(runs, assets, tmp_path / "whole", name="tiny 1")
    model = kinesplat_small.load(tmp_path / "whole")
    assert model.name == "tiny 1"
    assert model.static is not None
    assert set(model.memory.subjects) == {"bouncer", "lever"}  # of the training split, and of no other
    assert model.one_way == {"lever"}  # on and off
    assert set(zip(model.motions.subjects, model.motions.actions, strict=True)) >= {("lever", "on"), ("lever", "off")}
    assert model.motions.loops.tolist() == [subject == "bouncer" for subject in model.motions.subjects]
    assert len(model.memory.mesh(model.memory.nearest("a bouncer", 0)).faces) > 100

    averaged = next((runs["motion"] / "step_00000001").glob("ema*"))
    trained = kinesplat_small.load_file(averaged)["entrance.weight"]
    assert torch.equal(model.motion.state_dict()["entrance.weight"], trained.half().float())

    ship({task: run for task, run in runs.items() if task != "static"}, assets, tmp_path / "guesses", name="tiny 2")
    assert kinesplat_small.load(tmp_path / "guesses").static is None


@pytest.mark.slow
def test_runs_that_do_not_fit_together_are_refused(runs, assets, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        ship({**runs, "static": tmp_path / "nowhere"}, assets, tmp_path / "out", name="x")
    config = json.loads((runs["static"] / "config.json").read_text())
    words = ["other", *config["vocabulary"][1:]]
    (runs["static"] / "config.json").write_text(json.dumps({**config, "vocabulary": words}))
    with pytest.raises(UserError, match="different words"):
        ship(runs, assets, tmp_path / "out", name="x")
