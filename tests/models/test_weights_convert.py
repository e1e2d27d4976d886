# SPDX-License-Identifier: GPL-3.0-or-later
"""Pickled checkpoints: converted by another process, refused where they hold more than tensors."""

import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from backend.interpreter import ROOT
from backend.models import checkpoints, pickle_worker, weights_convert
from backend.models.checkpoints import CARD, INDEX, locate, read_card, read_shapes, read_tensors
from backend.models.weights_convert import convert, convert_file
from backend.models.weights_registry import File, Weights
from backend.progress import JobCancelled, Run, UserError


def weights(**changes) -> Weights:
    entry = {
        "name": "toy", "title": "Toy", "needed_by": (), "licence": "MIT", "licence_page": "", "commercial": "yes",
        "files": (File("toy.ckpt"),), "keys": "toy", "strip": ("module.",), "drop": "betas|lpips\\..*",
    }  # fmt: skip
    return Weights(**{**entry, **changes})


TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.ones(3, dtype=torch.float64),
    "steps": torch.tensor(7),
}
STORED = {**{f"module.{name}": tensor for name, tensor in TENSORS.items()}, "module.betas": torch.ones(9)}


@pytest.fixture(autouse=True)
def toy_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    monkeypatch.setattr("backend.models.weights_registry.expected_shapes", lambda keys: expected)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.plan({"Converting": 1})
    run.begin("Converting")
    return run


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's work in this process, which is faster: for what the worker's process does not matter to."""

    def here(question: dict, run: Run) -> dict:
        file, folder = Path(question["file"]), Path(question["folder"])
        try:
            return pickle_worker.convert(file, folder, question["half"], question["strip"], question["drop"])
        except pickle_worker.Refused as refused:
            raise UserError(*refused.args) from refused

    monkeypatch.setattr(pickle_worker, "lock_up", lambda folder: lambda path: path.open("w"))
    monkeypatch.setattr(weights_convert, "_run_worker", here)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("content", "options"),
    [
        pytest.param({"state_dict": STORED, "epoch": 3, "note": "text"}, {}, id="wrapped", marks=pytest.mark.slow),
        pytest.param(STORED, {}, id="plain"),
        pytest.param(
            {"state_dict": STORED},
            {"_use_new_zipfile_serialization": False},
            id="format of torch before 1.6",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_pickle_becomes_safetensors(tmp_path: Path, run: Run, content: dict, options: dict) -> None:
    torch.save(content, tmp_path / "toy.ckpt", **options)
    made = convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    found = read_tensors(made)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    card = read_card(made)
    assert card["dropped"] == ["betas"]
    assert card["files"]["model.safetensors"]["bytes"] == (made / "model.safetensors").stat().st_size
    assert leftovers(tmp_path / "w") == ["toy"]
    if os.name == "posix":
        allowed = (tmp_path / "w").stat().st_mode & 0o777
        assert made.stat().st_mode & 0o777 == allowed
        assert (made / "model.safetensors").stat().st_mode & 0o777 == allowed & 0o666
    assert locate("toy", tmp_path / "w") == made


@pytest.mark.usefixtures("in_process")
def test_half_precision_leaves_whole_numbers_alone(tmp_path: Path, run: Run) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    found = read_tensors(convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run, half=True))
    assert {tensor.dtype for name, tensor in found.items() if name != "steps"} == {torch.float16}
    assert found["steps"].dtype == torch.int64
    assert torch.equal(found["a.weight"], TENSORS["a.weight"].half())


@pytest.mark.usefixtures("in_process")
def test_tied_and_transposed_tensors_are_written_apart(tmp_path: Path, run: Run) -> None:
    base = torch.arange(24.0)
    content = {"a.weight": base[:12].reshape(4, 3).T, "a.bias": base[5:8], "steps": torch.tensor(1)}
    torch.save(content, tmp_path / "toy.ckpt")
    found = read_tensors(convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run))
    assert all(torch.equal(found[name], tensor) for name, tensor in content.items())


def test_large_checkpoints_become_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(pickle_worker, "SHARD_BYTES", 40)
    monkeypatch.setattr(pickle_worker, "lock_up", lambda folder: lambda path: path.open("w"))
    torch.save(STORED, tmp_path / "toy.ckpt")
    (tmp_path / "out").mkdir()
    pickle_worker.convert(tmp_path / "toy.ckpt", tmp_path / "out", False, ["module."], "betas")
    assert (tmp_path / "out" / INDEX).is_file()
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    found = read_tensors(tmp_path / "out")
    assert found.keys() == TENSORS.keys()
    assert read_tensors(tmp_path / "out", "a.").keys() == {"weight", "bias"}
    files[1].unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002"):
        read_shapes(tmp_path / "out")
    assert [json.loads(line)["done"] for line in capsys.readouterr().out.splitlines()] == [1, 3]


class Runs:
    """A pickle that writes a file when it is loaded the careless way."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"echo run > {self.proof}",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, run: Run) -> None:
    proof = tmp_path / "proof"
    torch.save({**STORED, "evil": Runs(proof)}, tmp_path / "toy.ckpt")
    with pytest.raises(UserError, match=r"toy\.ckpt: it is refused.*system") as caught:
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert caught.value.code == "weights_unsafe"
    assert not proof.exists()
    assert leftovers(tmp_path / "w") == []
    torch.load(tmp_path / "toy.ckpt", weights_only=False)  # the trap itself works
    assert proof.exists()


@pytest.mark.slow
def test_a_bare_pickle_is_refused(tmp_path: Path, run: Run) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "toy.ckpt").write_bytes(pickle.dumps(Runs(proof)))
    with pytest.raises(UserError, match=r"refused|not a checkpoint"):
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert not proof.exists()


@pytest.mark.slow
def test_the_worker_is_locked_up() -> None:
    """The second line of defence, in a process of its own, since it cannot be taken away again."""
    import subprocess
    import sys

    code = """
import os, socket, subprocess, sys
from pathlib import Path
from backend.models.pickle_worker import lock_up
folder = Path(sys.argv[1])
write = lock_up(folder)
def tried(action):
    try:
        action()
    except PermissionError:
        return
    sys.exit(f"not refused: {action}")
tried(lambda: os.system("true"))
tried(lambda: subprocess.run(["true"]))
tried(lambda: open(folder / "a", "w"))
tried(lambda: os.open(folder / "b", os.O_CREAT | os.O_WRONLY))
tried(lambda: socket.create_connection(("127.0.0.1", 9)))
tried(lambda: os.remove(folder))
tried(lambda: write(folder.parent / "c"))
with write(folder / "index.json") as file:
    file.write("x")
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, folder], check=True, cwd=ROOT)
        assert os.listdir(folder) == ["index.json"]


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_is_damaged(tmp_path: Path, cut: int, new_format: bool) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt", _use_new_zipfile_serialization=new_format)
    content = (tmp_path / "toy.ckpt").read_bytes()
    (tmp_path / "toy.ckpt").write_bytes(content[:cut])
    with pytest.raises(pickle_worker.Refused) as caught:
        pickle_worker.load(tmp_path / "toy.ckpt")
    assert caught.value.args[0] == "weights_damaged"


def test_what_is_no_checkpoint_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "toy.ckpt").write_text("junk\n")
    with pytest.raises(pickle_worker.Refused) as caught:
        pickle_worker.load(tmp_path / "toy.ckpt")
    assert caught.value.args[1] == "it is damaged or not a checkpoint"  # without the number that torch gives


@pytest.mark.slow
def test_a_damaged_file_leaves_nothing(tmp_path: Path, run: Run) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    (tmp_path / "toy.ckpt").write_bytes((tmp_path / "toy.ckpt").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"toy\.ckpt: it is damaged") as caught:
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert str(caught.value).endswith(".")
    assert caught.value.hint == "Download it again."
    assert leftovers(tmp_path / "w") == []


@pytest.mark.usefixtures("in_process")
def test_tensors_of_another_network_are_refused(tmp_path: Path, run: Run) -> None:
    wrong = {**STORED, "module.a.bias": torch.ones(4), "module.b.bias": torch.ones(4)}
    del wrong["module.steps"]
    torch.save(wrong, tmp_path / "toy.ckpt")
    with pytest.raises(UserError) as caught:
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert caught.value.code == "weights_mismatch"
    text = str(caught.value)
    assert "1 missing: steps" in text
    assert "1 extra: b.bias" in text
    assert "a.bias: (4,) instead of (3,)" in text
    assert leftovers(tmp_path / "w") == []


@pytest.mark.usefixtures("in_process")
def test_a_file_with_just_the_part_is_complete(tmp_path: Path, run: Run) -> None:
    torch.save({"a.weight": TENSORS["a.weight"], "a.bias": TENSORS["a.bias"]}, tmp_path / "toy.ckpt")
    convert(weights(part=r"a\..*"), tmp_path / "toy.ckpt", tmp_path / "w", run)
    torch.save({"a.weight": TENSORS["a.weight"]}, tmp_path / "toy.ckpt")
    with pytest.raises(UserError, match=r"1 missing: a\.bias"):
        convert(weights(part=r"a\..*"), tmp_path / "toy.ckpt", tmp_path / "w", run, replace=True)
    assert read_shapes(tmp_path / "w" / "toy").keys() == {"a.weight", "a.bias"}  # the former ones are still there


@pytest.mark.usefixtures("in_process")
def test_a_small_file_cannot_claim_much_memory(tmp_path: Path, run: Run) -> None:
    torch.save({"a.weight": torch.ones(1).expand(1 << 40)}, tmp_path / "toy.ckpt")
    with pytest.raises(UserError, match=r"claims to hold 4398\.0 GB"):
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert leftovers(tmp_path / "w") == []


@pytest.mark.usefixtures("in_process")
def test_weights_are_replaced_only_when_asked(tmp_path: Path, run: Run) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    with pytest.raises(UserError, match="are there already") as caught:
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert "--replace" in caught.value.hint
    made = convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run, replace=True, half=True)
    assert read_tensors(made)["a.weight"].dtype == torch.float16
    assert leftovers(tmp_path / "w") == ["toy"]


@pytest.mark.slow
def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    asked = iter([False, False])
    run = Run(tmp_path, is_cancelled=lambda: next(asked, True))
    run.plan({"Converting": 1})
    run.begin("Converting")
    run.report(0, 1)
    with pytest.raises(JobCancelled):
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert leftovers(tmp_path / "w") == []


def test_a_worker_that_dies_leaves_nothing(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    dying = "import os, sys\nif 'backend.models.pickle_worker' in sys.orig_argv:\n"
    dying += "    print('killed', file=sys.stderr, flush=True)\n    os._exit(9)\n"
    (tmp_path / "sitecustomize.py").write_text(dying)
    with pytest.raises(UserError, match=r"ended early \(killed\)") as caught:
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert "memory" in caught.value.hint
    assert leftovers(tmp_path / "w") == []


@pytest.mark.usefixtures("in_process")
def test_what_a_killed_program_left_is_cleared_away(tmp_path: Path, run: Run) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    old = tmp_path / "w" / ".converting-toy-abc"
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"half")
    convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert leftovers(tmp_path / "w") == ["toy"]


def test_a_full_disk_is_told_before(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STORED, tmp_path / "toy.ckpt")
    monkeypatch.setattr(weights_convert.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB are needed") as caught:
        convert(weights(), tmp_path / "toy.ckpt", tmp_path / "w", run)
    assert caught.value.code == "disk_full"


# ---- Files that people have


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Weights]]:
    both = {
        "toy": weights(),
        "other": weights(name="other", files=(File("deep/other.pth"),)),
    }
    monkeypatch.setattr("backend.models.weights_registry.registry", lambda: both)
    return both


@pytest.mark.usefixtures("in_process")
def test_the_files_name_tells_the_weights(tmp_path: Path, registered: dict) -> None:
    torch.save(STORED, tmp_path / "other.pth")
    assert convert_file(tmp_path / "other.pth", tmp_path / "w", Run(tmp_path)) == [tmp_path / "w" / "other"]
    torch.save(STORED, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=r"mine\.pth does not tell which") as caught:
        convert_file(tmp_path / "mine.pth", tmp_path / "w", Run(tmp_path))
    assert "--name" in caught.value.hint
    convert_file(tmp_path / "mine.pth", tmp_path / "w", Run(tmp_path), name="toy")
    with pytest.raises(UserError, match="no weights called nonsense"):
        convert_file(tmp_path / "mine.pth", tmp_path / "w", Run(tmp_path), name="nonsense")
    with pytest.raises(UserError, match="does not exist"):
        convert_file(tmp_path / "gone.pth", tmp_path / "w", Run(tmp_path))


@pytest.mark.usefixtures("in_process")
def test_safetensors_files_are_taken_too(tmp_path: Path, registered: dict) -> None:
    save_file(STORED, tmp_path / "mine.safetensors")
    [made] = convert_file(tmp_path / "mine.safetensors", tmp_path / "w", Run(tmp_path), name="toy")
    assert read_tensors(made).keys() == TENSORS.keys()


@pytest.mark.usefixtures("in_process")
def test_known_checkpoints_in_an_archive_are_converted(tmp_path: Path, registered: dict) -> None:
    torch.save(STORED, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "pretrained_models.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "x", "pretrained_models/toy.ckpt")
        archive.write(tmp_path / "x", "pretrained_models/../../other.pth")  # only its name counts
        archive.write(tmp_path / "x", "pretrained_models/stranger.pth")
        archive.writestr("readme.txt", "hello")
    made = convert_file(tmp_path / "pretrained_models.zip", tmp_path / "w", Run(tmp_path))
    assert sorted(path.name for path in made) == ["other", "toy"]
    assert leftovers(tmp_path / "w") == ["other", "toy"]
    assert not (tmp_path / "other.pth").exists()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.write(tmp_path / "x", "stranger.pth")
    with pytest.raises(UserError, match=r"no weights that are known here, but stranger\.pth"):
        convert_file(tmp_path / "empty.zip", tmp_path / "w", Run(tmp_path))


def test_a_damaged_archive_leaves_nothing(tmp_path: Path, registered: dict) -> None:
    torch.save(STORED, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(tmp_path / "x", "toy.ckpt")
    content = bytearray((tmp_path / "p.zip").read_bytes())
    content[300] ^= 255
    (tmp_path / "p.zip").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        convert_file(tmp_path / "p.zip", tmp_path / "w", Run(tmp_path))
    assert leftovers(tmp_path / "w") == []


def test_a_folder_without_card_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    with pytest.raises(UserError, match="toy are not on this computer") as caught:
        locate("toy", tmp_path)
    assert "weights fetch toy" in caught.value.hint
    (tmp_path / "toy" / CARD).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_card(tmp_path / "toy")


def test_the_weights_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINESPLAT_WEIGHTS", raising=False)
    monkeypatch.setenv("KINESPLAT_HOME", str(tmp_path))
    assert checkpoints.weights_folder() == tmp_path / "weights"
    monkeypatch.setenv("KINESPLAT_WEIGHTS", str(tmp_path / "elsewhere"))
    assert checkpoints.weights_folder() == tmp_path / "elsewhere"
    assert checkpoints.weights_folder(tmp_path / "chosen") == tmp_path / "chosen"
