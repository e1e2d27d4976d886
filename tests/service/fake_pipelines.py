# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelines for tests of the service: a few small steps each, checkpointed, no torch.

What one does stands in its job's name as words: `steps=20 seconds=0.02 poison=5 ...`.
"""

import contextlib
import hashlib
import importlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from backend.progress import Run, UserError
from blender_addon.contract.arrays import BadFileError, atomic_file
from blender_addon.contract.requests import KINDS


def options(name: str) -> dict[str, str]:
    """`a=1 b=2` -> {"a": "1", "b": "2"}."""
    return dict(word.split("=", 1) for word in name.split() if "=" in word)


def expected_result(request: dict, inputs: list[bytes]) -> bytes:
    """The bytes that a run of this request must end with, whatever happened in between."""
    steps = int(options(request["name"]).get("steps", 5))
    state = hashlib.sha256(b"".join(inputs) + request["name"].encode()).digest()
    for step in range(steps):
        state = advance(state, step)
    return b"PK" + state * 1000


def advance(state: bytes, step: int) -> bytes:
    """One step of the work."""
    return hashlib.sha256(state + step.to_bytes(4, "big")).digest()


def run_steps(request: dict, blob, run: Run) -> Path:
    """The work: a chain of hashes over the inputs; the state is a checkpoint after each step."""
    wish = options(request["name"])
    steps, seconds = int(wish.get("steps", 5)), float(wish.get("seconds", 0.02))
    run.plan({"Reading": 0.05, "Working": 0.95})
    run.begin("Reading")
    inputs = [blob(sha256).read_bytes() for sha256 in request["inputs"]["moving"]["frames"]]
    checkpoint = run.folder / "state"
    if checkpoint.exists():
        data = checkpoint.read_bytes()
        first, state = int.from_bytes(data[:4], "big"), data[4:]
    else:
        first, state = 0, hashlib.sha256(b"".join(inputs) + request["name"].encode()).digest()
    run.begin("Working")
    with open(run.folder.parent / "trace", "a") as trace:
        for step in range(first, steps):
            misbehave(wish, step, run)
            time.sleep(seconds)
            state = advance(state, step)
            print(step, file=trace, flush=True)
            with atomic_file(checkpoint) as file:
                file.write((step + 1).to_bytes(4, "big") + state)
            run.report(step + 1, steps, lambda: np.full((600, 300, 3), 128, np.uint8), f"loss {step + 1}")
    if "die" in wish:
        die_once(wish["die"], run.folder.parent / "died")
    result = run.folder / "clip.npz"
    result.write_bytes(b"PK" + state * 1000)
    run.finish()
    return result


def misbehave(wish: dict[str, str], step: int, run: Run) -> None:
    """Do what the job's name wishes at this step."""
    if step == int(wish.get("poison", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    if step == int(wish.get("once", -1)) and not (marker := run.folder.parent / "died").exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if step == int(wish.get("lost", -1)):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if step == int(wish.get("user", -1)):
        raise UserError("no_subject", "The pictures are empty.", "Select an object with a surface.")
    if step == int(wish.get("bad", -1)):
        raise BadFileError("orbit.json is missing.")
    if step == int(wish.get("bug", -1)):
        raise KeyError("secret of the code")
    if step == int(wish.get("memory", -1)):
        raise MemoryError
    if step == int(wish.get("full", -1)):
        raise OSError(28, "No space left on device")
    if step in (int(wish.get("stuck", -1)), int(wish.get("deaf", -1))):
        (run.folder.parent / "stands").touch()
    if step == int(wish.get("stuck", -1)):  # never reports, yet Python code runs
        while True:
            time.sleep(0.01)
    if step == int(wish.get("deaf", -1)):  # not even a signal gets through
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(3600)


def die_once(where: str, marker: Path) -> None:
    """Let this process be killed at a point of the product's code: `module:Class.function:before` (or `after`)."""
    if marker.exists():
        return
    module, name, when = where.split(":")
    *owners, function = name.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, function)

    def deadly(*arguments, **options):
        if when == "after":
            real(*arguments, **options)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, function, deadly)


def words(request: dict, run: Run) -> Path:
    """A result at once, of whichever kind."""
    run.plan({"Working": 1.0})
    run.begin("Working")
    run.finish()
    result = run.folder / "clip.npz"
    result.write_bytes(b"PK" + json.dumps(request).encode())
    return result


PIPELINES = {
    "orbit": run_steps,
    "text": "tests.service.no_such_module:run_request",  # only jobs of its own kind suffer
}
ANYTHING = dict.fromkeys(KINDS, lambda request, blob, run: words(request, run))
