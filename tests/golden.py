# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of the public code that ours has to reproduce: `tests/data/golden`."""

import json
import lzma
from pathlib import Path

import safetensors.torch
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "golden"


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of `<name>.safetensors.xz`."""
    return safetensors.torch.load(lzma.decompress((FOLDER / f"{name}.safetensors.xz").read_bytes()))


def facts(name: str) -> dict:
    """What `<name>.json`, or `<name>.json.xz`, says."""
    path = FOLDER / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    return json.loads(lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes()))
