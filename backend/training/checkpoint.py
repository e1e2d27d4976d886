# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of training: whole or not there at all, and everything that a run needs to go on as if never stopped.

A checkpoint is a folder `step_N` with model, EMA and optimizer as safetensors and `trainer.json`; a base that is frozen
is not in it. Whatever is read here may be a run, one of its checkpoints, or a packed run (`packed`).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from backend.progress import UserError
from blender_addon.contract.arrays import sync_folder, write_json

KEEP = 2
STATE, CONFIG = "trainer.json", "config.json"
WEIGHTS, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"


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
        write_json(folder / STATE, state)
        return folder
    for left in Path(run).glob("step_*.part"):
        shutil.rmtree(left)
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    left_out = frozen(network)
    for name, one in ((WEIGHTS, network), (EMA, ema)):
        save_tensors(part / name, {key: tensor for key, tensor in one.state_dict().items() if key not in left_out})
    save_tensors(part / OPTIMIZER, _optimizer_tensors(network, optimizer))
    write_json(part / STATE, state)
    os.replace(part, folder)
    sync_folder(folder.parent)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def frozen(network: nn.Module) -> set[str]:
    """Names of what is not trained, which checkpoints leave out: it comes from where the base came from."""
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def found_checkpoint(folder: Path | str) -> Path:
    """`newest_checkpoint`, where there has to be one.

    Raises:
        UserError: there is none.
    """
    found = newest_checkpoint(Path(folder))
    if found is None:
        raise UserError("no_checkpoint", f"{folder} holds no checkpoint.", "Train first, or name the folder of a run.")
    return found


def read_average(folder: Path | str) -> dict[str, torch.Tensor]:
    """The averaged network, without what was frozen: name -> float32 tensor.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    checkpoint = found_checkpoint(folder)
    try:
        return read_tensors(checkpoint, EMA)
    except (OSError, SafetensorError) as error:
        raise damaged(checkpoint, error) from error


def digest_of_average(folder: Path | str) -> str:
    """SHA-256 of the averaged network in float16: that of a run is that of the same run packed.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_average(folder).items()):
        digest.update(name.encode() + tensor.half().numpy().tobytes())
    return digest.hexdigest()


def read_about(folder: Path | str) -> dict:
    """The configuration that a run was made with, and its `vocabulary`, a tuple, empty where it has none.

    Raises:
        UserError: there is no checkpoint, or nothing tells what it is of.
    """
    checkpoint = found_checkpoint(folder)
    path = next((near / CONFIG for near in (checkpoint, checkpoint.parent) if (near / CONFIG).exists()), None)
    try:
        if path is None:
            raise FileNotFoundError(f"{CONFIG} is missing")
        about = json.loads(path.read_text(encoding="utf-8"))
        return {**about, "vocabulary": tuple(about.get("vocabulary", ()))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Copy config.json of the run beside it."
        raise UserError("damaged_checkpoint", f"Nothing tells what {folder} is of: {error}.", hint) from error


def write_about(folder: Path, state: dict, about: dict) -> None:
    """What `read_state` and `read_about` find in a packed run."""
    write_json(folder / STATE, state)
    write_json(folder / CONFIG, about)


def read_tensors(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of WEIGHTS or EMA in float32, of a checkpoint or of a packed run, where they are in several files."""
    files = sorted(checkpoint.glob(name.replace(".", "-*."))) or [checkpoint / name]
    return {key: tensor.float() for file in files for key, tensor in load_file(file).items()}


def read_state(checkpoint: Path) -> dict:
    """The bookkeeping of a checkpoint.

    Raises:
        UserError: it is damaged.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(checkpoint, error) from error


def load_checkpoint(checkpoint: Path, network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill networks and optimizer, wherever they are, from a checkpoint or a packed run.

    Raises:
        UserError: it is damaged, or of another network.
    """
    try:
        weights, averaged = read_tensors(checkpoint, WEIGHTS), read_tensors(checkpoint, EMA)
        moments = load_file(checkpoint / OPTIMIZER) if (checkpoint / OPTIMIZER).exists() else {}
    except (OSError, SafetensorError) as error:
        raise damaged(checkpoint, error) from error
    kept = frozen(network)
    base = {name: tensor for name, tensor in network.state_dict().items() if name in kept}
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
            # files know no channels-last memory, and a fused optimizer wants one order in all that belongs together
            optimizer.state[parameter] = {
                key: torch.empty_like(parameter, requires_grad=False).copy_(tensor) for key, tensor in state.items()
            }
            # a fused optimizer counts on the GPU, others on the CPU
            where = parameter.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[parameter]["step"] = moments[f"step.{name}"].to(where)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file and wait until it is on the disk."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": tensor
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        for key, tensor in optimizer.state[parameter].items()
    }


def damaged(checkpoint: Path, error: Exception) -> UserError:
    """What is said of a checkpoint that cannot be read."""
    return UserError(
        "damaged_checkpoint",
        f"The checkpoint {checkpoint} cannot be read: {error}.",
        "Delete this folder; training then goes on from the one before.",
    )
