# SPDX-License-Identifier: GPL-3.0-or-later
"""What a forward pass of 4DM needs, found without weights: on the meta device, tensors have shapes and no numbers."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from backend.models.fourdm import PUBLISHED, FourDM, FourDMConfig


@dataclass(frozen=True)
class StageNeed:
    """One part of the network."""

    name: str  # as in the state dict: input_blocks.4, middle_block, image_embed, ...
    parameters: int
    weights: int  # bytes, with buffers
    largest: int  # bytes of the largest tensor made in it
    peak: int  # bytes of all tensors alive at once during it, weights and inputs left out


@dataclass(frozen=True)
class Need:
    """The whole network, without gradients."""

    stages: tuple[StageNeed, ...]  # in the order of the forward pass

    @property
    def parameters(self) -> int:
        """How many numbers there are to learn."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def weights(self) -> int:
        """Bytes of all weights and buffers."""
        return sum(stage.weights for stage in self.stages)

    @property
    def activations(self) -> int:
        """Bytes of the most tensors alive at once."""
        return max(stage.peak for stage in self.stages)

    @property
    def total(self) -> int:
        """Bytes to have free; what convolutions and libraries take for themselves comes on top."""
        return self.weights + self.activations


def need(
    config: FourDMConfig = PUBLISHED,
    *,
    frames: int = 8,
    views: int = 5,
    height: int = 32,
    width: int = 32,
    batch: int = 2,
    text_tokens: int = 77,
    image_features: int = 257,
    dtype: torch.dtype = torch.float32,
    motion_rows: int | None = None,
) -> Need:
    """Parameters and memory of each stage.

    height, width: of the latents (an eighth of the picture's); views: with the pixel view; batch: clips at once, 2 for
    guidance; motion_rows: see `FourDM.slice_motion`. Attention counts as the fused kernels do it, which keep no
    matrix of scores.
    """
    with torch.device("meta"):
        net = FourDM(config).to(dtype).requires_grad_(False)
        net.slice_motion(motion_rows)
        rows = batch * frames * views
        arguments = {
            "latents": torch.empty(rows, config.latent_channels, height, width, dtype=dtype),
            "timesteps": torch.empty(rows, dtype=torch.int64),
            "text": torch.empty(rows, text_tokens, config.context_width, dtype=dtype),
            "cameras": torch.empty(rows, config.camera_width, dtype=dtype),
            "image": torch.empty(rows, image_features, config.image_width, dtype=dtype),
            "pixels": torch.empty(batch * frames, config.latent_channels, height, width, dtype=dtype),
        }
        live = LiveTensors("time_embed")
        stages = dict(net.named_children())
        for blocks in ("input_blocks", "output_blocks"):
            stages |= {f"{blocks}.{index}": stage for index, stage in enumerate(stages.pop(blocks))}
        for name, module in stages.items():
            module.register_forward_pre_hook(partial(lambda name, *_: live.begin(name), name))
        with torch.no_grad(), live, FusedAttention():
            net(**arguments, frames=frames, views=views)
    return Need(tuple(_stage_need(name, stages[name], *live.seen[name]) for name in live.seen))


def _stage_need(name: str, module: nn.Module, largest: int, peak: int) -> StageNeed:
    parameters = list(module.parameters())
    weights = sum(tensor.nbytes for tensor in (*parameters, *module.buffers()))
    return StageNeed(name, sum(parameter.numel() for parameter in parameters), weights, largest, peak)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of what is made while it is on, until it is let go."""

    def __init__(self, first_stage: str) -> None:
        super().__init__()
        self.seen: dict[str, tuple[int, int]] = {}  # stage -> (largest, peak)
        self._bytes = 0
        self._known: set[int] = set()
        self.begin(first_stage)

    def begin(self, stage: str) -> None:
        """What follows belongs to this stage."""
        self._stage = stage
        self.seen[stage] = (0, self._bytes)

    def __torch_dispatch__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in args if isinstance(tensor, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known | given:  # otherwise a view
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self._bytes += storage.nbytes()
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())
        largest, peak = self.seen[self._stage]
        self.seen[self._stage] = (max(largest, storage.nbytes()), max(peak, self._bytes))

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size


class FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it: nothing but the result is made."""

    def __torch_function__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))
