# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `weights`, as people type it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.__main__ import main
from backend.models import weights_registry
from backend.models.checkpoints import CARD
from backend.models.weights_registry import File, Weights


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Weights(
        "toy", "A toy", ("tests",), "CC-BY-NC-4.0", "https://example.org/licence", "no", (File("toy.ckpt"),),
        page="https://example.org/drive", keys="toy",
    )  # fmt: skip
    monkeypatch.setattr("backend.models.weights_registry.registry", lambda: {"toy": entry})
    monkeypatch.setattr("backend.commands.published_weights.registry", lambda: {"toy": entry})
    monkeypatch.setattr("backend.models.weights_registry.expected_shapes", lambda keys: {"a": (3,), "b": (2, 2)})


def weights(*words: object) -> int:
    return main(["weights", *map(str, words)])


@pytest.mark.slow
def test_a_file_from_disk_is_converted_listed_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "w"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, tmp_path / "toy.ckpt")
    assert weights("list", "--dir", folder, "--details") == 0
    out = capsys.readouterr().out
    assert "to be downloaded by hand" in out
    assert "NO commercial use" in out
    assert "sha256 not known: not verified" in out
    assert weights("convert", tmp_path / "toy.ckpt", "--dir", folder, "--half") == 0
    assert weights("list", "--dir", folder) == 0
    assert "here" in capsys.readouterr().out.split("toy", 2)[2]
    assert weights("verify", "--dir", folder) == 0
    out = capsys.readouterr().out
    assert "toy: good; 2 tensors compared" in out
    assert "no digest is published" in out

    save_file({"a": torch.ones(3), "c": torch.zeros(1)}, folder / "toy" / "model.safetensors")
    (folder / "toy" / "stray.txt").write_text("x")
    assert weights("verify", "toy", "--dir", folder) == 1
    out = capsys.readouterr().out
    assert "toy: NOT GOOD" in out
    assert "model.safetensors has" in out
    assert "stray.txt is not noted on the card" in out
    assert "1 missing: b; 1 extra: c" in out
    (folder / "toy" / "model.safetensors").unlink()
    assert weights("verify", "toy", "--dir", folder) == 1
    assert "model.safetensors is missing" in capsys.readouterr().out
    (folder / "toy" / CARD).write_text("not JSON")
    assert weights("verify", "toy", "--dir", folder) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_errors_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for words, said in (
        (("fetch", "toy"), "forbids commercial use"),
        (("fetch", "toy", "--accept-licence"), "https://example.org/drive"),
        (("fetch", "tyo"), "Did you mean toy?"),
        (("verify", "toy"), "not on this computer"),
        (("convert", tmp_path / "gone.ckpt"), "does not exist"),
    ):
        assert weights(*words, "--dir", tmp_path / "w") == 1
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
    assert weights("verify", "--dir", tmp_path / "w") == 0
    assert "There are no weights" in capsys.readouterr().out
    assert weights_registry.find("toy").page
