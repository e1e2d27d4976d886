# SPDX-License-Identifier: GPL-3.0-or-later
"""Packed runs: what has to travel to train on, to train on top, or to ship elsewhere, in a few small files.

A folder with weights and EMA in float16 (`model-0.safetensors` ..., `ema-0.safetensors` ...), `trainer.json`,
`config.json`, and what one wants to see: `log.jsonl` and the newest sheet. There is no optimizer, which starts anew;
and no base that was frozen, which travels as a packed run of its own.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from backend.models.shipped import shards
from backend.progress import UserError
from backend.training.checkpoint import (
    CONFIG,
    EMA,
    STATE,
    WEIGHTS,
    damaged,
    found_checkpoint,
    read_tensors,
    save_tensors,
)

LOG = "log.jsonl"
FILES = 8  # at most
FILE_BYTES = 15 * 2**20  # of each at most
BYTES = 60 * 2**20  # of all tensors at most
LOG_BYTES = 2**20  # of the end of the log
SHEET_BYTES = 2 * 2**20


def pack(run: Path, out: Path, *, renew: bool = False) -> Path:
    """Write the newest checkpoint of a run for moving: at most 8 files of at most 15 MiB, 64 MiB in all.

    renew: replace an earlier packed run there. Killed at any moment, it leaves that or the new one, at worst
        beside it, as `.old` and `.part`.

    Raises:
        UserError: there is no checkpoint, it is damaged or too large, or `out` holds something else.
    """
    checkpoint = found_checkpoint(run)
    check_place(out, renew=renew)
    try:
        parts = {
            name: {key: one.half() for key, one in read_tensors(checkpoint, name).items()} for name in (WEIGHTS, EMA)
        }
    except (OSError, SafetensorError) as error:
        raise damaged(checkpoint, error) from error
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    files = write_parts(part, parts)
    for source in _companions(checkpoint, FILES - files):
        if source.name == LOG:
            (part / LOG).write_bytes(_tail(source, LOG_BYTES))
        else:
            shutil.copyfile(source, part / source.name)
    former = out.with_name(out.name + ".old")
    shutil.rmtree(former, ignore_errors=True)
    if out.exists():
        os.replace(out, former)
    os.replace(part, out)
    shutil.rmtree(former, ignore_errors=True)
    return out


def write_parts(folder: Path, parts: dict[str, dict[str, torch.Tensor]]) -> int:
    """Write float16 tensors of WEIGHTS and EMA to a new folder, in files that are small enough; returns how many.

    Raises:
        UserError: they are too large.
    """
    size = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
    files = {shard_name(name, k): shard for name in parts for k, shard in enumerate(shards(parts[name], FILE_BYTES))}
    if size > BYTES or len(files) + 2 > FILES:
        raise UserError(
            "too_large",
            f"The networks take {size / 2**20:.0f} MiB; a packed run takes at most {BYTES >> 20}.",
            "Move the folder of the checkpoint itself.",
        )
    folder.mkdir(parents=True)
    for name, shard in files.items():
        save_tensors(folder / name, shard)
    return len(files)


def check_place(out: Path, *, renew: bool = False) -> None:
    """Whether a packed run may be written to a folder.

    Raises:
        UserError: there is something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError("not_empty", f"{out} is a file.", "Choose a folder for the packed run.")
    if out.exists() and any(out.iterdir()) and not (renew and (out / STATE).exists() and any(out.glob("ema-*"))):
        raise UserError("not_empty", f"{out} is not empty.", "Choose another folder for the packed run.")


def shard_name(name: str, number: int) -> str:
    """`model.safetensors` -> `model-0.safetensors`."""
    return name.replace(".", f"-{number}.")


def _companions(checkpoint: Path, most: int) -> list[Path]:
    """Files that go along, the most needed first: state, configuration, log, newest sheet."""
    around = checkpoint if (checkpoint / CONFIG).exists() else checkpoint.parent  # packed already, or a run's
    sheets = sorted([*around.glob("sheets/step_*.png"), *around.glob("step_*.png")], key=lambda path: path.name)
    found = [checkpoint / STATE, around / CONFIG, around / LOG]
    found += [sheet for sheet in sheets[-1:] if sheet.stat().st_size <= SHEET_BYTES]
    return [path for path in found if path.exists()][:most]


def _tail(path: Path, most: int) -> bytes:
    """The last whole lines of a file."""
    data = path.read_bytes()
    return data if len(data) <= most else data[-most:].partition(b"\n")[2]
