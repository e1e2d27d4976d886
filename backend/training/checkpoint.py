# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of training: whole or not there at all, and everything that a run needs to go on as if never stopped."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

KEEP = 2


def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders in `out`, oldest first."""
    return sorted(path for path in Path(out).glob("step_*") if path.is_dir() and not path.name.endswith(".part"))


def save_checkpoint(out: Path, network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Path:
    """Write `out/step_N`, atomically, and forget all but the newest."""
    folder = Path(out) / f"step_{step:08d}"
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, part / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in ema.state_dict().items()}, part / "ema.safetensors")
    save_file(_optimizer_tensors(network, optimizer), part / "optimizer.safetensors")
    (part / "trainer.json").write_text(json.dumps({"step": step}))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    for old in checkpoints(out)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(out: Path, network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take up the newest checkpoint of `out`; returns its step, 0 where there is none (the EMA is the network then)."""
    found = checkpoints(out)
    if not found:
        ema.load_state_dict(network.state_dict())
        return 0
    folder = found[-1]
    network.load_state_dict(load_file(folder / "model.safetensors"))
    ema.load_state_dict(load_file(folder / "ema.safetensors"))
    tensors = load_file(folder / "optimizer.safetensors")
    for name, parameter in network.named_parameters():
        state = {
            key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
        }
        if state:
            optimizer.state[parameter] = state
    return json.loads((folder / "trainer.json").read_text())["step"]


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    plain = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return {
        f"{key}.{name}": tensor.contiguous()
        for name, parameter in network.named_parameters()
        for key, tensor in plain.state[parameter].items()
    }
