# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that reads a pickled checkpoint and writes its tensors as safetensors.

It is run as a module: one question as JSON on stdin, then lines of JSON on stdout, which are progress and at last the
answer or an error. Only tensors are accepted: torch refuses every other object without making it. And should a hole be
found in that, this process can by then neither start another one, nor use the network, nor open a file for writing.
"""

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from backend.models.checkpoints import INDEX, SINGLE, WRAPPERS

SHARD_BYTES = 2 << 30  # of one file; bounds what is in memory beside the mapped pickle
INFLATION = 1.5  # how much larger than their file tensors may be, for those that share memory
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "os.startfile", "pty.spawn"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
    *("os.remove", "os.rmdir", "shutil.rmtree", "os.chmod", "os.chown", "os.link", "os.symlink", "ctypes.dlopen"),
)


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """Code, message and hint for the user."""


def main() -> int:
    """Answer the question on stdin."""
    question = json.load(sys.stdin)
    folder = Path(question["folder"])
    try:
        say(convert(Path(question["file"]), folder, question["half"], question["strip"], question["drop"]))
    except Refused as refused:
        say({"error": refused.args})
    except (OSError, MemoryError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        full = "No space left" in str(error) or "os error 28" in str(error)
        code, hint = ("disk_full", "Free some space and try again.") if full else ("conversion_failed", "")
        say({"error": (code, f"it cannot be converted: {reason[0]}", hint)})
    return 0


def say(answer: dict) -> None:
    """One line for the process that asked."""
    print(json.dumps(answer), flush=True)


def convert(file: Path, folder: Path, half: bool, strip: list[str], drop: str) -> dict:
    """Write the tensors of `file` into `folder`, in files of about SHARD_BYTES; returns what was done."""
    open_for_writing = lock_up(folder)
    content = load(file)
    tensors, skipped = tensors_in(content)
    tensors = {stripped(name, strip): tensor for name, tensor in tensors.items()}
    dropped = sorted(name for name in tensors if drop and re.fullmatch(drop, name))
    for name in dropped:
        del tensors[name]
    if not tensors:
        raise Refused("weights_damaged", "it holds no tensors", "Look whether this is the right file.")

    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > INFLATION * file.stat().st_size:  # a few bytes, repeated without end
        message = f"it claims to hold {claimed / 1e9:.1f} GB, more than itself"
        raise Refused("weights_damaged", message, "Do not use it.")
    shards = list(sharded(tensors, half))
    whole, done, places = len(tensors), 0, {}
    for number, names in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        safetensors.torch.save_file(
            {key: own(tensors[key], half) for key in names}, folder / name, metadata={"format": "pt"}
        )
        places.update(dict.fromkeys(names, name))
        done += len(names)
        say({"done": done, "whole": whole})
    if len(shards) > 1:
        with open_for_writing(folder / INDEX) as index:
            json.dump({"metadata": {}, "weight_map": places}, index, indent=1)
    return {"tensors": len(tensors), "dropped": dropped, "not_tensors": skipped}


def load(file: Path) -> object:
    """The content of a checkpoint: tensors, mapped from the file where its format allows."""
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except safetensors.SafetensorError as error:
            raise Refused("weights_damaged", f"it is damaged: {error}", "Download it again.") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global|operand|opcode)\S* (\S+)", str(error))
        what = f" ({next(filter(None, unsafe.groups()))})" if unsafe else ""
        raise Refused(
            "weights_unsafe",
            f"it is refused, and nothing in it was run: it holds more than tensors{what}, which could run code",
            "If it comes from a place that you trust, save its state dict alone and convert that.",
        ) from error
    except (EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        said = "" if isinstance(error, KeyError) else str(error).strip()  # of a key that is missing: the key alone
        reason = f": {said.splitlines()[0]}" if said else ""
        raise Refused("weights_damaged", f"it is damaged or not a checkpoint{reason}", "Download it again.") from error


def tensors_in(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a checkpoint, and the names of what is not a tensor."""
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise Refused("weights_damaged", f"it holds a {type(content).__name__}, no tensors", "")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors, sorted(str(name) for name in content.keys() - tensors.keys())


def stripped(name: str, beginnings: list[str]) -> str:
    """A tensor's name without what a training program put before it."""
    for beginning in beginnings:
        name = name.removeprefix(beginning)
    return name


def sharded(tensors: dict[str, Tensor], half: bool) -> Iterator[list[str]]:
    """The names in order, in parts that stay under SHARD_BYTES where a tensor does."""
    names, size = [], 0
    for name, tensor in tensors.items():
        bytes_each = 2 if half and tensor.is_floating_point() else tensor.element_size()
        if names and size + tensor.numel() * bytes_each > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.numel() * bytes_each
    yield names


def own(tensor: Tensor, half: bool) -> Tensor:
    """A tensor in the form in which it is written, sharing memory with no other."""
    if half and tensor.is_floating_point():
        return tensor.half().clone() if tensor.dtype == torch.float16 else tensor.half().contiguous()
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.contiguous().clone()


def lock_up(folder: Path):
    """From now on: no other processes, no network, no writing of files. Returns what opens the one exception."""
    allowed: set[str] = set()

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"a checkpoint must not do this: {event}")
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                mode is None and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if writes and str(path) not in allowed:
                raise PermissionError(f"a checkpoint must not write {path}")

    sys.addaudithook(hook)

    def open_for_writing(path: Path):
        if path.parent != folder:
            raise PermissionError(str(path))
        allowed.add(str(path))
        return open(path, "w", encoding="utf-8")

    return open_for_writing


if __name__ == "__main__":
    sys.exit(main())
