# SPDX-License-Identifier: GPL-3.0-or-later
"""What a network costs in memory, found on the meta device: shapes flow through its own code, numbers do not."""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class StageCost:
    """One part of a network. All in bytes but `parameters`."""

    name: str
    parameters: int
    weights: int
    output: int
    peak: int  # most that is alive at once while it runs forward, with what the rest of the network holds


@dataclass(frozen=True)
class Cost:
    """A whole network. All in bytes but `parameters`."""

    parameters: int
    weights: int
    kept: int  # alive between the forward and the backward pass; 0 without one
    peak: int  # most that is alive at once beside the weights: activations, and in training gradients
    stages: tuple[StageCost, ...]

    @property
    def total(self) -> int:
        """Weights and the peak: what a device has to hold, but for kernels' workspaces and optimiser state."""
        return self.weights + self.peak


def dry_run(network: nn.Module, given: Mapping[str, object], stages: Sequence[str], *, training: bool = False) -> Cost:
    """Run a network on the meta device and watch its memory.

    given: the forward pass's arguments, not counted, tensors on the meta device; stages: names of the modules to tell
    of; training: with the backward pass. Attention is taken to be fused: it keeps no scores. What kernels use inside is
    not seen; measure that.
    """
    memory = _Memory(
        [*(value for value in given.values() if isinstance(value, Tensor)), *network.parameters(), *network.buffers()]
    )
    seen: dict[str, dict[str, int]] = {name: {} for name in stages}
    hooks = []
    for name in stages:
        module = network.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda *_: memory.begin()))
        hooks.append(module.register_forward_hook(lambda _, __, out, name=name: memory.end(seen[name], out)))
    kept = 0
    try:
        with torch.set_grad_enabled(training), _fused_attention(), memory:
            out = network(**given)
            if training:
                kept = memory.alive
                for hook in hooks:  # checkpointed stages run forward again
                    hook.remove()
                out.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        network.zero_grad(set_to_none=True)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    costs = []
    for name, figures in seen.items():
        module = network.get_submodule(name)
        count = sum(parameter.numel() for parameter in module.parameters())
        costs.append(StageCost(name, count, _bytes(module), figures["output"], figures["peak"]))
    return Cost(parameters, _bytes(network), kept, memory.peak, tuple(costs))


@dataclass
class _Watch:
    alive: int = 0
    peak: int = 0
    stage_peak: int = 0
    sizes: dict[int, int] = field(default_factory=dict)


class _Memory(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.watch = _Watch()
        self.known = [tensor.untyped_storage() for tensor in known]  # held, so that no address is used again
        self.addresses = {storage._cdata for storage in self.known}

    @property
    def alive(self) -> int:
        return self.watch.alive

    @property
    def peak(self) -> int:
        return self.watch.peak

    def begin(self) -> None:
        self.watch.stage_peak = self.watch.alive

    def end(self, figures: dict[str, int], out: Tensor) -> None:
        figures["output"] = out.numel() * out.element_size()
        figures["peak"] = self.watch.stage_peak

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = _shaped(operation, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        watch, address = self.watch, storage._cdata
        if address in self.addresses or address in watch.sizes:
            return
        size = storage.nbytes()
        watch.sizes[address] = size
        watch.alive += size
        watch.peak, watch.stage_peak = max(watch.peak, watch.alive), max(watch.stage_peak, watch.alive)
        weakref.finalize(storage, _freed, watch, address)


_forms: dict[tuple, object] = {}  # of an operation and what it is given -> of the tensors it makes; None: look again


def _shaped(operation: OpOverload, args: tuple, kwargs: dict) -> object:
    """What `operation` returns. Shapes that it works out from equal ones are equal: blocks repeat, and torch takes up
    to a millisecond for each."""
    key = (operation, _form(args), _form(tuple(kwargs.items())))
    if (form := _forms.get(key)) is not None:
        return _empty(form)
    out = operation(*args, **kwargs)
    if key not in _forms:
        _forms[key] = _form(out) if _makes_new(out, (args, kwargs)) else None
    return out


def _makes_new(out: object, given: object) -> bool:
    """Whether `out` is nothing but new tensors on the meta device, each with a storage of its own."""
    tensors = list(out) if isinstance(out, tuple) else [out]
    if not all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors):
        return False
    inputs = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    storages = {tensor.untyped_storage()._cdata for tensor in (*tensors, *inputs)}
    return len(storages) == len(tensors) + len({leaf.untyped_storage()._cdata for leaf in inputs})


def _form(value: object) -> tuple:
    """All of an argument that the shape of a result can follow from."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_form, value))
    return type(value), value


def _empty(form: tuple) -> object:
    """Tensors of such a form."""
    if form[0] is not Tensor:
        return tuple(map(_empty, form))
    _, shape, stride, dtype, device = form
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _freed(watch: _Watch, address: int) -> None:
    watch.alive -= watch.sizes.pop(address)


_patching = threading.Lock()


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention on the meta device as a fused kernel does it; torch itself would have the scores of all pairs there.

    A patch and not a mode, for modes do not reach what a backward pass computes again. Other devices are left alone.
    """
    with _patching:
        original = functional.scaled_dot_product_attention

        def attention(query: Tensor, key: Tensor, value: Tensor, *others, **options) -> Tensor:
            if query.is_meta:
                return _Attention.apply(query, key, value)
            return original(query, key, value, *others, **options)

        functional.scaled_dot_product_attention = attention
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = original


class _Attention(torch.autograd.Function):
    """Keeps queries, keys, values and the output, and nothing else."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
