# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies between the matrix products of VideoMV's networks, compiled into one kernel each (torch.compile).

    fuse(network, trial(device))

Two things take most of a GPU's time beside matrix products: group norm with the activation after it, for which torch
copies hidden states to another memory layout and back, and the gated GELU. Only these are compiled, for all sizes at
once, as compiling whole blocks would take minutes: each of some 25 kinds of block by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_DIFFERENCE = 1e-2  # of the trial, mean absolute, relative to the mean
ATTRIBUTE = "fused"  # of modules that can use the kernels
GROUPS = 32  # of every group norm


@dataclass(frozen=True)
class Kernels:
    """`norm` and `gate` of this module, compiled."""

    norm: Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]
    gate: Callable[[Tensor], Tensor]

    def normed(self, x: Tensor, layer: nn.GroupNorm, activated: bool) -> Tensor:
        """The group norm of x [N, ..., C] over all between N and C, then SiLU if `activated`."""
        # Shapes of three axes alone: each further number of axes would be compiled by itself.
        rows = x.reshape(len(x), -1, x.shape[-1])
        return self.norm(rows, layer.weight, layer.bias, layer.eps, activated).reshape(x.shape)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, activated: bool) -> Tensor:
    """Group norm of x [N, L, C], then SiLU if `activated`. Statistics in float32."""
    rows = x.unflatten(2, (GROUPS, -1)).float()
    variance, mean = torch.var_mean(rows, (1, 3), correction=0, keepdim=True)
    scaled = ((rows - mean) * torch.rsqrt(variance + eps)).flatten(2) * weight.float() + bias.float()
    return (functional.silu(scaled) if activated else scaled).to(x.dtype)


def gate(projected: Tensor) -> Tensor:
    """[..., 2 C] -> [..., C]: the first half times the GELU of the second."""
    value, opening = projected.chunk(2, -1)
    return value * functional.gelu(opening)


def compiled(backend: str = "inductor") -> Kernels:
    """The kernels; they are compiled when first called. `backend`: of torch.compile."""
    return Kernels(*(torch.compile(function, dynamic=True, backend=backend) for function in (norm, gate)))


def trial(device: torch.device, kernels: Kernels | None = None, dtype: torch.dtype = torch.float32) -> Kernels:
    """The kernels, once they have computed the right thing on this device.

    Raises:
        RuntimeError: they cannot be compiled here (without a C compiler or Triton), or compute something else.
    """
    kernels = kernels or compiled()
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(*shape, generator=random).to(device, dtype) for shape in ((3, 30, 64), (64,), (64,))]
    pairs = []
    try:
        for activated in (False, True):
            pairs.append((kernels.norm(*given, 1e-5, activated), norm(*given, 1e-5, activated)))
        pairs.append((kernels.gate(given[0]), gate(given[0])))
    except Exception as error:  # compilers fail in ways of their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(first) from error
    for found, wanted in pairs:
        found, wanted = found.float(), wanted.float()
        if not (found - wanted).abs().mean() <= MOST_DIFFERENCE * wanted.abs().mean():
            raise RuntimeError("what was compiled computes something else")
    return kernels


def fuse(network: nn.Module, kernels: Kernels | None) -> int:
    """Let all modules of `network` that can use the kernels do so; None: none of them. Returns how many there are."""
    able = [module for module in network.modules() if hasattr(module, ATTRIBUTE)]
    for module in able:
        setattr(module, ATTRIBUTE, kernels)
    return len(able)
