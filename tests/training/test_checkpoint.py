# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints survive a kill at any moment, and say so when they are damaged."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

from backend.progress import UserError
from backend.training import checkpoint, packed
from backend.training.trainer import channels_last


def networks(value: float) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """A network, its average and an optimizer, every number in them `value`."""
    network, ema = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for tensor in [*network.parameters(), *ema.parameters()]:
            tensor.fill_(value)
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.fill_(value)
    return network, ema, optimizer


def save(run, step: int) -> None:
    checkpoint.save_checkpoint(run, *networks(float(step)), {"step": step})


def check(run) -> int:
    """The step of the newest checkpoint, all of whose tensors belong to it."""
    newest = checkpoint.newest_checkpoint(run)
    step = checkpoint.read_state(newest)["step"]
    network, ema, optimizer = networks(-1.0)
    checkpoint.load_checkpoint(newest, network, ema, optimizer)
    values = [*network.parameters(), *ema.parameters()]
    values += [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert len(values) == 10
    assert all((tensor == step).all() for tensor in values)
    return step


def killed_at(run, moment: int) -> None:
    """Save step 3, and die before the given change of the disk."""
    changes = []

    def counted(change):
        def run_or_die(*args, **options):
            changes.append(1)
            if len(changes) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **options)

        return run_or_die

    for module, name in ((checkpoint, "save_file"), (os, "fsync"), (os, "replace"), (checkpoint.shutil, "rmtree")):
        setattr(module, name, counted(getattr(module, name)))
    save(run, 3)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_the_former_checkpoint_stays(tmp_path):
    context = multiprocessing.get_context("fork")
    found = []
    for moment in range(1, 30):
        run = tmp_path / str(moment)
        save(run, 1)
        save(run, 2)
        child = context.Process(target=killed_at, args=(run, moment))
        child.start()
        child.join()
        found.append(check(run))
        save(run, 4)  # what was left lying does no harm
        assert check(run) == 4
        assert {path.name for path in run.iterdir()} <= {f"step_{step:08d}" for step in (2, 3, 4)}
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert found == sorted(found)
    assert set(found) == {2, 3}
    assert len(found) > 8


def test_a_fused_optimizer_goes_on_in_the_memory_order_of_the_network(tmp_path):
    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(torch.linspace(-1, 1, 100).reshape(1, 4, 5, 5)).square().sum().backward()
        optimizer.step()

    def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = channels_last(nn.Conv2d(4, 6, 3))
        return network, torch.optim.AdamW(network.parameters(), 0.1, fused=True)

    whole, optimizer = begun()
    step(whole, optimizer)
    folder = checkpoint.save_checkpoint(tmp_path, whole, whole, optimizer, {"step": 1})
    parted, other = begun()
    checkpoint.load_checkpoint(folder, parted, parted, other)
    step(whole, optimizer)
    step(parted, other)
    assert torch.equal(whole.weight, parted.weight)
    # On a GPU it would refuse to go on otherwise; on the CPU it would mix the numbers up.
    assert all(state["exp_avg"].stride() == one.stride() for one, state in other.state.items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 100, 20_000_000, 3):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000100", "step_20000000"]


def test_damage_is_told(tmp_path):
    save(tmp_path, 1)
    folder = checkpoint.newest_checkpoint(tmp_path)
    data = (folder / checkpoint.EMA).read_bytes()
    (folder / checkpoint.EMA).write_bytes(data[:-7])
    with pytest.raises(UserError, match="cannot be read") as caught:
        check(tmp_path)
    assert "Delete this folder" in caught.value.hint
    (folder / checkpoint.EMA).write_bytes(data)
    with pytest.raises(UserError, match="other sizes"):
        checkpoint.load_checkpoint(
            folder, nn.Linear(3, 3), nn.Linear(3, 3), torch.optim.SGD(nn.Linear(1, 1).parameters())
        )
    (folder / checkpoint.STATE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read_state(folder)


def test_packed_files_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "FILE_BYTES", 14)
    save(tmp_path / "run", 7)
    folder = packed.pack(tmp_path / "run", tmp_path / "packed")
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == ["ema-0.safetensors", "ema-1.safetensors", "model-0.safetensors", "model-1.safetensors"]
    network, ema, _ = networks(-1.0)
    optimizer = torch.optim.AdamW(network.parameters())
    checkpoint.load_checkpoint(folder, network, ema, optimizer)
    assert all(
        (tensor == 7).all() and tensor.dtype == torch.float32 for tensor in [*network.parameters(), *ema.parameters()]
    )
    assert not optimizer.state
    averaged = checkpoint.read_average(folder)
    assert set(averaged) == {"weight", "bias"}
    assert all((tensor == 7).all() for tensor in averaged.values())
    monkeypatch.setattr(packed, "BYTES", 10)
    with pytest.raises(UserError, match="networks take"):
        packed.pack(tmp_path / "run", tmp_path / "elsewhere")


def test_a_packed_run_is_there_until_the_next_one_is(tmp_path, monkeypatch):
    def died(*_: object) -> None:
        raise SystemExit

    save(tmp_path / "run", 1)
    out = packed.pack(tmp_path / "run", tmp_path / "packed")
    save(tmp_path / "run", 2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", died)
        with pytest.raises(SystemExit):
            packed.pack(tmp_path / "run", out, renew=True)
    assert checkpoint.read_state(out)["step"] == 1
    packed.pack(tmp_path / "run", out, renew=True)
    assert checkpoint.read_state(out)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "run"]
