# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the small 4DM: a base of single moments, motion modules on it, and weights that the program loads."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.data.view_samples import TIMES, VIEWS, GuessedViewStream
from backend.models import kinesplat_small_4dm
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training.config import read_config
from backend.training.ship import ship_small_fourdm
from backend.training.small_fourdm_task import build, conditions
from backend.training.small_fourdm_validation import validate
from backend.training.trainer import sample_stream, train, validation_batches

NETWORK = {"widths": [8, 8], "blocks": [1, 1], "embedding": 16, "text_width": 8, "heads": 2}


@pytest.fixture
def config(tiny):
    return lambda **changes: tiny(task="small_fourdm", network=NETWORK, times=1, **changes)


def test_samples_count_from_the_inputs_side(assets):
    stream = GuessedViewStream(assets, "train", resolution=16)
    sample = stream.sample(5)
    assert sample.video.shape == (TIMES, 16, 16, 4)
    assert sample.views.shape == sample.guess.shape == (TIMES, VIEWS, 16, 16, 4)
    np.testing.assert_array_equal(stream.sample(5).views, sample.views)
    fronts = [one for one in map(stream.sample, range(12)) if one.camera_to_world[0, 1, 3] == pytest.approx(-1.1)]
    assert fronts  # about half look from the input's side first
    for one in fronts:
        np.testing.assert_array_equal(one.views[:, 0], one.video)
        assert np.abs(one.guess[:, 0] - one.video).mean() < 0.1


def test_single_moments(assets):
    assert GuessedViewStream(assets, "train", resolution=16, times=1).sample(0).views.shape[:2] == (1, VIEWS)


@pytest.mark.slow
def test_base_then_motion_then_weights(config, assets, tmp_path):
    base = tmp_path / "base"
    assert train(config(), assets, base, steps=2)
    motion = config(base_run=str(base))
    assert train(motion.__class__(**{**vars(motion), "times": 3}), assets, tmp_path / "motion", steps=2)
    kept = load_file(next((tmp_path / "motion").glob("step_*")) / "ema.safetensors")
    assert kept
    assert all("motion" in name for name in kept)

    ship_small_fourdm(tmp_path / "motion", tmp_path / "model", name="tiny 4dm")
    model = kinesplat_small_4dm.load(tmp_path / "model", "cpu")
    trained = load_file(next(base.glob("step_*")) / "ema.safetensors")
    assert torch.equal(model.network.state_dict()["entrance.weight"], trained["entrance.weight"].half().float())
    with pytest.raises(UserError, match="no motion modules"):
        ship_small_fourdm(base, tmp_path / "other", name="x")


def test_a_base_that_does_not_fit_is_refused(config, assets, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        train(config(base_run=str(tmp_path / "nowhere")), assets, tmp_path / "motion", steps=1)
    base = tmp_path / "base"
    assert train(config(), assets, base, steps=1)
    other = config(base_run=str(base))
    with pytest.raises(UserError, match="other sizes"):
        train(
            other.__class__(**{**vars(other), "network": {**NETWORK, "widths": [8, 16]}}),
            assets,
            tmp_path / "motion",
            steps=1,
        )


def test_validation_has_figures_and_a_sheet(config, assets):
    settings = config()
    stream = sample_stream(settings, assets, "train")
    from backend.models.text import Vocabulary

    words = Vocabulary(("lever",))
    unseen, seen = validation_batches(settings, assets, stream, words, torch.device("cpu"))
    figures, sheet = validate(build(settings, words), unseen, seen, 0)
    assert figures["error_t1"] == pytest.approx(1.0)  # it begins as the inflated views
    assert figures["psnr_views"] == pytest.approx(figures["psnr_guess"], abs=0.1)
    assert sheet.shape == (4 * 3 * 16, VIEWS * 16, 3)
    assert conditions(unseen).guess.shape[2] == VIEWS


@pytest.mark.parametrize(("name", "times"), [("kinesplat_small_4dm", 1), ("kinesplat_small_4dm_motion", TIMES)])
def test_the_configurations_are_whole(name, times):
    config = read_config(name)
    assert (config.task, config.times) == ("small_fourdm", times)
    json.dumps(vars(config))


def test_motion_modules_want_a_base():
    with pytest.raises(UserError, match="none is named"):
        build(read_config("kinesplat_small_4dm_motion"), Vocabulary(("dog",)))
