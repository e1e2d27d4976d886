# SPDX-License-Identifier: GPL-3.0-or-later
"""Where bf16 is the faster arithmetic."""

import contextlib
from collections.abc import Iterator

import torch


def fast_bf16(device: torch.device | str) -> bool:
    """Whether the hardware has units for products in bf16; elsewhere it is slower than float32."""
    kind = torch.device(device).type
    if kind == "cpu":  # measured: 2.2 times as fast with AVX-512 alone, 5 times with matrix tiles
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def matrix_precision(device: torch.device) -> Iterator[None]:
    """bf16 where it is fast, float32 elsewhere."""
    with torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device)):
        yield
