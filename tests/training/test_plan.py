# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations, plans, learning rates, and who trains on which samples."""

import os
import signal
from itertools import islice

import pytest

from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training.batches import micro_batches
from backend.training.config import CONFIGS, read_config
from backend.training.interrupts import stop_on_signals
from backend.training.plan import Plan, learning_rate, make_plan
from backend.training.trainer import TASKS

OVERLAYS = ("gpu",)


@pytest.mark.parametrize("name", sorted({file.stem for file in CONFIGS.glob("*.toml")} - {*OVERLAYS}))
def test_shipped_configurations_are_read(name):
    assert read_config(name).task in TASKS
    assert read_config(name, overlays=OVERLAYS).compile


@pytest.mark.parametrize("name", ["motion", "static", "scene_flow", "4dm"])
def test_a_size_that_no_network_has_is_told(name):
    config = read_config(f"kinesplat_small_{name}", ["network.depth=3"])
    with pytest.raises(UserError, match=r"no such network.*depth"):
        TASKS[config.task].build(config, Vocabulary(("dog",)))


def test_a_second_configuration_changes_lines_of_the_first(tmp_path):
    (tmp_path / "more.toml").write_text("batch = 5\nworkers = 2\n[network]\nembedding = 32\n")
    plain = read_config("kinesplat_small_motion")
    config = read_config("kinesplat_small_motion", ["batch=7"], [tmp_path / "more.toml"])
    assert (config.batch, config.workers, config.seed) == (7, 2, plain.seed)
    assert config.network == {**plain.network, "embedding": 32}
    with pytest.raises(UserError, match="nowhere"):
        read_config("kinesplat_small_motion", overlays=["nowhere"])


def test_published_configuration_is_the_papers():
    config = read_config("diffusion4d_published")
    assert config.batch * config.accumulate * 8 == 128
    assert (config.steps, config.learning_rate, config.decay, config.resolution) == (6000, 3e-5, 0, 256)
    plan = Plan(steps=6000)
    assert {learning_rate(config, plan, step, step / 6000) for step in (0, 3000, 5999)} == {3e-5}


def test_values_change_from_the_command_line(tmp_path):
    changes = ["batch=96", "weights=/models/i2v gen", "network.embedding=512", "betas=[0.9, 0.95]"]
    config = read_config("kinesplat_small_motion", changes)
    assert (config.batch, config.weights, config.betas) == (96, "/models/i2v gen", (0.9, 0.95))
    assert config.network["embedding"] == 512
    assert len(config.network) > 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task = ", "not valid TOML"),
        ('task = "motion"\nbatchsize = 3', "batchsize"),
        ('task = "motion"\nbatch = "three"', "kind"),
        ('task = "motion"\nbatch = 0', "1 or more"),
        ('task = "motion"\nsteps = 0', "1 or more"),
        ('task = "motion"\nseed = -1', "0 or more"),
        ('task = "motion"\nworkers = -1', "0 or more"),
        ('task = "motion"\nlearning_rate = -1.0', "0 or more"),
        ('task = "motion"\nema = 1.5', "0 to 1"),
        ('task = "motion"\nbetas = [0.9, 1.0]', "below 1"),
        ('task = "motion"\nfamilies = {fish = -1}', r"families\.fish"),
        ('task = "motion"\nprecision = "fp8"', "fp8"),
        ("batch = 3", "task"),
    ],
)
def test_bad_configurations_are_told(tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "bad.toml")


def test_unknown_configurations_are_told():
    with pytest.raises(UserError, match="nowhere") as caught:
        read_config("nowhere")
    assert "kinesplat_small_motion" in caught.value.hint


def test_learning_rate_rises_stays_and_falls(tiny):
    config = tiny(learning_rate=1.0, warmup=4, decay=0.25)
    plan = Plan(steps=100, first_step=50)
    rates = [learning_rate(config, plan, step, plan.share(step, 0)) for step in range(50, 151)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert rates[75] == 1
    assert rates[76] == pytest.approx(0.96)
    assert rates[99] == pytest.approx(0.04)
    assert rates[100] == 0


def test_plans_go_on_or_begin_anew(tiny):
    config = tiny()
    ask = {"minutes": None, "steps": None}
    with pytest.raises(UserError, match="how long"):
        make_plan(config, None, 0, **ask, anew=False)
    assert make_plan(tiny(steps=7), None, 0, **ask, anew=False) == Plan(steps=7)
    stored = Plan(minutes=30, first_step=10, seconds=900)
    assert stored.share(99, 0) == 0.5
    assert make_plan(config, stored, 99, **ask, anew=False) == stored
    assert make_plan(config, stored, 99, **ask, anew=True) == stored
    longer = make_plan(config, stored, 99, minutes=60, steps=None, anew=False)
    assert (longer.share(99, 0), longer.first_step) == (0.25, 10)
    again = make_plan(config, stored, 99, minutes=60, steps=None, anew=True)
    assert (again.share(99, 0), again.share(99, 1800), again.first_step) == (0, 0.5, 99)


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 3), (8, 2)])
def test_every_sample_is_trained_on_once(ranks, accumulate):
    steps, size = 4, 3
    taken = {
        rank: list(islice(micro_batches(30, size, rank=rank, ranks=ranks, accumulate=accumulate), steps * accumulate))
        for rank in range(ranks)
    }
    per_step = size * ranks * accumulate
    for step in range(steps):
        numbers = [
            number
            for rank in range(ranks)
            for batch in taken[rank][step * accumulate : (step + 1) * accumulate]
            for number in batch
        ]
        first = 30 + step * per_step
        assert sorted(numbers) == list(range(first, first + per_step))


def test_signals_are_a_wish_first():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as wanted:
        assert wanted() == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert wanted() == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
