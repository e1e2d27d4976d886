# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether torch can compute on the GPU that it finds: old ones are found, but the installed build has no kernels."""

import torch


def gpu_problem() -> str | None:
    """Why the GPU that torch finds cannot be used, in a sentence; None where it can be, or where there is none."""
    if not torch.cuda.is_available():
        return None
    try:
        torch.ones(1, device="cuda").add(1).item()
    except RuntimeError as error:  # no kernels for it, a driver that is too old, its memory taken by others
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return f"PyTorch {torch.__version__} finds a GPU but cannot use it: {first}."
    return None


def usable_gpu() -> bool:
    """Whether there is a GPU that torch can use."""
    return torch.cuda.is_available() and gpu_problem() is None
