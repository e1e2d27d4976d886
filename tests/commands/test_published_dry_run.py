# SPDX-License-Identifier: GPL-3.0-or-later
"""`--dry-run` of `generate` and `train`, and `generate --model published` from the command line."""

import re
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.pipelines import diffusion4d_published
from backend.pipelines.memory_plan import PLANS
from blender_addon.contract.frames import GeneratedFrames
from tests.pipelines.tiny import ball_orbit


@pytest.mark.slow
def test_a_generation_is_told_by_each_plan(capsys) -> None:
    assert main(["generate", "--model", "published", "--image", "dog.png", "--dry-run"]) == 0
    said = capsys.readouterr().out
    places = [said.index(plan.name) for plan in PLANS]
    assert places == sorted(places)
    peaks = [float(figure) for figure in re.findall(r"takes: ([\d.]+) GiB", said)]
    assert peaks == sorted(peaks, reverse=True)
    assert 10 < peaks[0] < 12  # two video networks with 2.65 GiB each, encoders with 2.1, activations
    assert peaks[-1] < 3
    assert "2844" in said  # million parameters in the moving orbit's stage
    assert "static orbit from a text" not in said


@pytest.mark.slow
def test_a_training_step_is_told(capsys) -> None:
    arguments = ["train", "diffusion4d", "--config", "diffusion4d_published", "--dry-run"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    parts = {name.strip(): float(size) for name, size in re.findall(r"^(.+?) +([\d.]+) GiB$", said, re.MULTILINE)}
    assert parts["weights"] == pytest.approx(1422.1e6 * 4 / 2**30, abs=0.06)
    assert parts["Adam's two moments"] == pytest.approx(2 * parts["weights"], abs=0.1)
    assert said.count("output_blocks") == 12
    whole = next(size for name, size in parts.items() if name.startswith("on each GPU"))
    assert main([*arguments, "--set", "checkpoint_activations=false"]) == 0
    kept = re.findall(r"activations +([\d.]+) GiB", capsys.readouterr().out)
    assert float(kept[0]) > 3 * parts["activations"]
    assert whole == pytest.approx(sum(size for size in parts.values()) - whole, abs=0.3)


@pytest.mark.slow
def test_a_training_step_of_4dm_is_told(capsys) -> None:
    arguments = ["train", "4dm", "--config", "fourdm_published", "--dry-run"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    parts = {name.strip(): float(size) for name, size in re.findall(r"^(.+?) +([\d.]+) GiB$", said, re.MULTILINE)}
    assert parts["frozen base, bf16"] == pytest.approx(941.7e6 * 2 / 2**30, abs=0.06)
    assert parts["Adam's two moments"] == pytest.approx(2 * 454.3e6 * 4 / 2**30, abs=0.06)
    assert said.count("output_blocks") == 12


def test_each_command_trains_its_own_network(capsys) -> None:
    assert main(["train", "4dm", "--config", "diffusion4d_published", "--dry-run"]) == 1
    assert "train diffusion4d --config" in capsys.readouterr().err
    assert main(["train", "diffusion4d", "--config", "fourdm_published", "--dry-run"]) == 1
    assert "train 4dm --config" in capsys.readouterr().err


def test_a_dry_run_of_another_size_is_refused(capsys) -> None:
    assert main(["train", "diffusion4d", "--config", "kinesplat_small_motion", "--dry-run"]) == 1
    assert "published" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "diffusion4d", "--config", "kinesplat_small_motion"])
    assert "--assets" in capsys.readouterr().err


def test_options_reach_the_published_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple] = []

    def generate(static, cameras, image, settings, run, **options) -> GeneratedFrames:
        told.append((settings, options))
        pictures, cameras = ball_orbit()
        run.begin(diffusion4d_published.MOVING)
        return GeneratedFrames(pictures, pictures, cameras, provenance={"warnings": []})

    monkeypatch.setattr(diffusion4d_published, "generate", generate)
    arguments = ["generate", "--model", "published", "--text", "a dog", "--refine", "--weights", str(tmp_path)]
    assert main([*arguments, "--frames-only", str(tmp_path / "sheet.png")]) == 0
    settings, options = told[0]
    asked = (settings["steps"], settings["guidance_motion"], settings["guidance_static"], settings["motion"])
    assert asked == (50, 7.0, 0.5, 3.0)
    assert options == {"weights": tmp_path, "refine": True, "compiled": False}


def test_missing_weights_are_told_before_anything_begins(tmp_path: Path, capsys) -> None:
    arguments = ["generate", "--model", "published", "--text", "a dog", "--weights", str(tmp_path)]
    assert main([*arguments, "--frames-only", str(tmp_path / "sheet.png")]) == 1
    assert "weights fetch openclip-vit-h14 sd21-vae videomv-t2v videomv-i2v" in capsys.readouterr().err
