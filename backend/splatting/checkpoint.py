# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a fit stands, kept on disk every few seconds, so that a killed one goes on instead of starting again."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blender_addon.contract.arrays import BadFileError, atomic_file, read_arrays, write_npz

INTERVAL = 5.0  # seconds between two checkpoints
MOST_TIME = 0.05  # share of the time that large ones may take


class Checkpoint:
    """One file that holds the newest state of one fit.

    `key` says what is being fitted and how; a file with another key is as good as none.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = np.frombuffer(key.encode(), np.uint8)
        self._last = time.monotonic()
        self._interval = INTERVAL

    def load(self) -> dict[str, np.ndarray] | None:
        """The state that an earlier attempt left, or None where there is none that can be used."""
        try:
            state = read_arrays(self._path)
        except (BadFileError, OSError):
            return None  # a fit from the start is always possible
        if not np.array_equal(state.pop("key", None), self._key):
            return None
        return state

    def is_due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._last >= self._interval

    def save(self, state: dict[str, np.ndarray]) -> None:
        """Put `state` in the place of the former one, in one step."""
        begun = time.monotonic()
        with atomic_file(self._path) as file:
            write_npz(file, {"key": self._key, **state}, compressed=False)
        self._last = time.monotonic()
        self._interval = max(INTERVAL, (self._last - begun) / MOST_TIME)

    def remove(self) -> None:
        """The fit is done and its result is safe."""
        self._path.unlink(missing_ok=True)


def state_key(*parts: Tensor | np.ndarray | dict | None) -> str:
    """A digest of everything that decides a fit's result."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, dict):
            data = json.dumps(part, sort_keys=True).encode()
        elif part is None:
            data = b""
        else:
            array = np.ascontiguousarray(part)
            data = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def optimizer_arrays(optimizer: torch.optim.Optimizer, name: str) -> dict[str, np.ndarray]:
    """The state of an Adam optimiser, copied, with names that begin with `name`."""
    arrays = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            arrays[f"{name}.{index}.{key}"] = np.array(value.cpu())
    return arrays


def load_optimizer(optimizer: torch.optim.Optimizer, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Give an optimiser back the state that `optimizer_arrays` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in arrays.items():
        if key.startswith(f"{name}."):
            _, index, field = key.split(".")
            state.setdefault(int(index), {})[field] = torch.from_numpy(np.array(value))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
