# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped model's files: written, read, and refused where they are not what the card says."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from backend.models import kinesplat_small, shipped
from backend.models.diffusion import add_noise, scheduler, share
from backend.progress import UserError
from tests.pipelines.tiny import RESOLUTION, WORDS, write_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def test_what_is_saved_is_loaded(folder: Path) -> None:
    model = kinesplat_small.load(folder)
    assert (model.name, model.licence, model.resolution, model.frames) == ("tiny 1", "CC0-1.0", RESOLUTION, 24)
    assert model.vocabulary.words == WORDS
    assert model.device.type == "cpu"
    parameters = [*model.motion.parameters(), *model.static.parameters()]
    assert all(p.dtype == torch.float32 and not p.requires_grad and p.isfinite().all() for p in parameters)
    again = kinesplat_small.load(write_tiny_model(folder.parent / "again"))
    for a, b in zip(model.motion.parameters(), again.motion.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, a.half().float())  # as they lie in the file


def test_words_tell_what_loops() -> None:
    model = kinesplat_small.load()
    for prompt in ("a dog walks", "eagle flying", "a fish", "", "a flurb flurbs", "a robot walks forward"):
        assert model.loops(prompt), prompt
    for prompt in ("the spider dies", "rat death", "a man sits down", "a knight falls", "a rogue dodges backwards"):
        assert not model.loops(prompt), prompt


def test_large_networks_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 8_000
    monkeypatch.setattr(shipped, "MAX_FILE_BYTES", limit)
    folder = write_tiny_model(tmp_path / "model")
    card = json.loads((folder / kinesplat_small.CARD).read_text())
    assert len(card["files"]["motion"]) > 1
    assert len(card["sha256"]) == len(list(folder.glob("*.safetensors")))
    whole = kinesplat_small.load(write_tiny_model(tmp_path / "whole"))
    for a, b in zip(kinesplat_small.load(folder).motion.parameters(), whole.motion.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "static-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"static-0\.safetensors is missing") as caught:
        kinesplat_small.load(folder)
    assert (caught.value.code, "Install" in caught.value.hint) == ("weights_missing", True)


def test_a_damaged_file_is_named(folder: Path) -> None:
    path = folder / "motion-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"motion-0\.safetensors is damaged") as caught:
        kinesplat_small.load(folder)
    assert caught.value.code == "weights_damaged"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda card: card | {"version": 99}, "weights_version"),
        (lambda card: card | {"vocabulary": card["vocabulary"] * 2, "networks": {}}, "weights_damaged"),
        (
            lambda card: card | {"networks": {"motion": card["networks"]["motion"] | {"embedding": 12}}},
            "weights_version",
        ),
        (lambda card: [], "weights_damaged"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(folder: Path, change, code: str) -> None:
    path = folder / kinesplat_small.CARD
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError) as caught:
        kinesplat_small.load(folder)
    assert caught.value.code == code
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("steps", [4, 24])
def test_samplers_follow_the_noise_schedule(sampler: str, steps: int) -> None:
    """With a network that knows the answer they pass through its noised versions and end at it."""
    clean, noise = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    schedule = scheduler(sampler)
    schedule.set_timesteps(steps)
    times = [float(share(step)) for step in schedule.timesteps]
    assert len(times) == steps
    assert times[0] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(times))
    tolerance = 1e-3
    latents = noise
    for time, step in zip(times, schedule.timesteps, strict=True):
        torch.testing.assert_close(latents, add_noise(clean, noise, torch.tensor([time])), atol=tolerance, rtol=0)
        latents = schedule.step(clean, step, latents).prev_sample
    torch.testing.assert_close(latents, clean, atol=tolerance, rtol=0)


@pytest.mark.slow
def test_the_shipped_model_is_whole_and_small() -> None:
    model = kinesplat_small.load()
    assert (model.resolution, model.frames) == (64, 24)
    assert 100 < len(model.vocabulary.words) < 1_000
    assert not model.vocabulary.unknown("a dog walks, a fish swims and a bird flies")
    files = list(kinesplat_small.FOLDER.glob("*"))
    card = json.loads((kinesplat_small.FOLDER / kinesplat_small.CARD).read_text())
    assert {path.name for path in files if path.suffix == ".safetensors"} == set(card["sha256"])
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert all(path.stat().st_size < 16 * 2**20 for path in files)
