# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of training: whole or not there at all, and everything that a run needs to go on as if never stopped.

A checkpoint is a folder `step_N` with model, EMA and optimizer as safetensors and `trainer.json`; a base that is frozen
is not in it. A *packed* run is
smaller and made for moving: float16 weights and EMA in several files. It has no optimizer, which starts anew.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from backend.progress import UserError
from blender_addon.contract.arrays import atomic_file

KEEP = 2
STATE = "trainer.json"
WEIGHTS, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
PACKED_FILE_BYTES = 15 * 2**20
PACKED_BYTES = 64 * 2**20


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted(path for path in Path(run).glob("step_*") if path.is_dir() and not path.name.endswith(".part"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from: the newest of a run's folder, or the folder itself if it is one or a packed run."""
    if (folder / STATE).exists():
        return folder
    found = checkpoints(folder)
    return found[-1] if found else None


def save_checkpoint(
    run: Path, network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, state: dict
) -> Path:
    """Write `run/step_N` of `state["step"]`, and forget all but the newest. Killed at any moment, it leaves the former.

    state: what else is needed to go on, for JSON.
    """
    folder = Path(run) / f"step_{state['step']:08d}"
    if folder.exists():  # the same step: nothing but the bookkeeping can differ
        _write_state(folder, state)
        return folder
    for left in Path(run).glob("step_*.part"):
        shutil.rmtree(left)
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    left_out = frozen(network)
    for name, one in ((WEIGHTS, network), (EMA, ema)):
        _save(part / name, {key: tensor for key, tensor in one.state_dict().items() if key not in left_out})
    _save(part / OPTIMIZER, _optimizer_tensors(network, optimizer))
    _write_state(part, state)
    os.replace(part, folder)
    _sync_folder(folder.parent)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def frozen(network: nn.Module) -> set[str]:
    """Names of what is not trained, which checkpoints leave out: it comes from where the base came from."""
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def read_state(checkpoint: Path) -> dict:
    """The bookkeeping of a checkpoint.

    Raises:
        UserError: it is damaged.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def load_checkpoint(checkpoint: Path, network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill networks and optimizer, wherever they are, from a checkpoint or a packed run.

    Raises:
        UserError: it is damaged, or of another network.
    """
    try:
        weights, averaged = _load(checkpoint, WEIGHTS), _load(checkpoint, EMA)
        moments = load_file(checkpoint / OPTIMIZER) if (checkpoint / OPTIMIZER).exists() else {}
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error
    base = {name: tensor for name, tensor in network.state_dict().items() if name in frozen(network)}
    try:
        network.load_state_dict({**base, **weights})
        ema.load_state_dict({**base, **averaged})
    except RuntimeError as error:
        raise UserError(
            "other_network",
            f"{checkpoint} is of a network of other sizes or words than the configuration describes.",
            "Train with the configuration that it was made with, or choose another --out for a new run.",
        ) from error
    for name, parameter in network.named_parameters():
        state = {key: moments[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in moments}
        if state:
            optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in state.items()}
            optimizer.state[parameter]["step"] = moments[f"step.{name}"]


def pack(run: Path, out: Path) -> Path:
    """Write the newest checkpoint of a run for moving: float16, files of at most 15 MiB, 64 MiB in all.

    Raises:
        UserError: there is no checkpoint, it is too large, or `out` is not empty.
    """
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError("no_checkpoint", f"{run} holds no checkpoint.", "Name the folder of a run.")
    if out.exists() and any(out.iterdir()):
        raise UserError("not_empty", f"{out} is not empty.", "Choose another folder for the packed run.")
    state = read_state(checkpoint)
    parts = {name: {key: value.half() for key, value in _load(checkpoint, name).items()} for name in (WEIGHTS, EMA)}
    size = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
    if size > PACKED_BYTES:
        raise UserError(
            "too_large",
            f"{checkpoint} would take {size / 2**20:.0f} MiB; a packed run takes at most {PACKED_BYTES >> 20}.",
            "Move the folder of the checkpoint itself.",
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, tensors in parts.items():
        for number, shard in enumerate(_shards(tensors)):
            _save(out / _shard_name(name, number), shard)
    _write_state(out, state)
    return out


def _shard_name(name: str, number: int) -> str:  # "model.safetensors" -> "model-0.safetensors"
    return name.replace(".", f"-{number}.")


def _shards(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > PACKED_FILE_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _load(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    files = sorted(checkpoint.glob(name.replace(".", "-*."))) or [checkpoint / name]
    return {key: tensor.float() for file in files for key, tensor in load_file(file).items()}


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _write_state(folder: Path, state: dict) -> None:
    with atomic_file(folder / STATE) as file:
        file.write(json.dumps(state, indent=1).encode())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": tensor
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        for key, tensor in optimizer.state[parameter].items()
    }


def _damaged(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        "damaged_checkpoint",
        f"The checkpoint {checkpoint} cannot be read: {error}.",
        "Delete this folder; training then goes on from the one before.",
    )
