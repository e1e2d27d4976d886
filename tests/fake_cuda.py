# SPDX-License-Identifier: GPL-3.0-or-later
"""A CUDA device for computers without one, to find what would crash on a card.

    def test_something(card): ...          # fixture of conftest.py; or: with fake_cuda() as card: ...

Within it torch believes in one GPU. Tensors on "cuda" hold their numbers on the CPU, so whole pipelines run and say
what they would say; but what CUDA refuses is refused here too, with an error: operations on tensors of two devices,
`.numpy()`, generators of another device, products of integers, and while a CUDA graph is captured everything that waits
for the GPU. `autocast("cuda")` casts as on a card. What waits is kept in `card.waits`, with the line that asked for it.
What only kernels can get wrong (memory, speed, rounding, gsplat's compiled part) is not seen, nor does autocast reach
what a backward pass computes again (checkpoints).
"""

import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # looks at functions of torch.cuda, and has to see the real ones
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA, CPU, META = (torch.device(name) for name in ("cuda:0", "cpu", "meta"))
GIB = 2**30
ROOT = str(Path(__file__).resolve().parent.parent)
aten = torch.ops.aten

COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.mv.default}
SUMS = PRODUCTS | {aten.convolution.default, aten.convolution_backward.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
HALVES = {torch.bfloat16, torch.float16}
JOINS = {aten.cat.default, aten.stack.default}
# What takes its type from autocast, by names of torch's own lists for CUDA (aten/src/ATen/autocast_mode.h).
LOWERED = {
    "conv1d", "conv2d", "conv3d", "conv_transpose2d", "prelu", "addmm", "addmv", "addr", "matmul", "__matmul__",
    "__rmatmul__", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul", "multi_dot",
    "scaled_dot_product_attention",
}  # fmt: skip
RAISED = {
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow", "__pow__", "softplus", "layer_norm", "group_norm", "norm", "cosine_similarity", "poisson_nll_loss",
    "cosine_embedding_loss", "nll_loss", "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss",
    "mse_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp", "prod", "softmax",
    "log_softmax", "cumprod", "cumsum", "sum",
}  # fmt: skip
CAST = LOWERED | RAISED
DEVICE_OF = torch.ops.prim.device.default


class RefusedError(RuntimeError):
    """CUDA would refuse this, or fail."""


class OnCard(Tensor):
    """A tensor on the pretended GPU; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor):
        shape = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device=META)
        tensor = Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=CUDA)
        tensor.held = held.detach()
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self, **_) -> str:
        return f"OnCard({self.held!r})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy = type(self)(self.held.clone())
        copy = torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: int):
        return OnCard, (self.held,)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("numpy", "__array__"):
            raise RefusedError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if name == "tolist":
            return args[0].cpu().tolist()
        if name in ("data_ptr", "share_memory_"):
            raise RefusedError(f"{name} of a CUDA tensor")
        if function is Tensor.data.__set__:
            return _set_data(*args)
        if function in (Tensor.to, Tensor.cuda) and isinstance(args[0], OnCard):
            args, kwargs = _stay(function, args, kwargs)
            function = Tensor.to
            if len(args) == 1 and not kwargs:
                return args[0]
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _with_tensors(args[1]), *args[2:])
        args, kwargs = _autocast(name, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if _card is None:
                return function(*args, **kwargs)
            _card.inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                _card.inside -= 1

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Card(TorchDispatchMode):
    """The pretended GPU: makes tensors there, and remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str]] = []  # what waited for the GPU, and the line of ours that asked
        self.inside = 0
        self.capturing: list | None = None
        self.free = 70 * GIB
        self.capability = (9, 0)
        self.broken = False  # as where the installed torch has no kernels for the card

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep torch.compile away costs time at every operation, and nothing is compiled here

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Numbered(TorchFunctionMode):
    """Gives "cuda" its number, which C++ here cannot find."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        args = tuple([_numbered(value) if isinstance(value, NAMES) else value for value in args])
        kwargs = {name: _numbered(value) for name, value in kwargs.items()} if kwargs else {}
        if function is Tensor.cuda:
            return args[0].to(CUDA)
        if function in FROM_LISTS:  # these fill memory from C++, which modes do not see
            device = kwargs.pop("device", args[0].device if function is Tensor.new_tensor else None)
            if function is Tensor.new_tensor:
                function, args, kwargs = torch.tensor, args[1:], {"dtype": args[0].dtype, **kwargs}
            made = _made(*args, **kwargs) if function is torch.tensor else function(*args, **kwargs)
            return made if device is None else made.to(device)
        if kwargs.get("generator") is not None:
            first = args[0].device if args and isinstance(args[0], Tensor) else CPU
            where, needed = kwargs["generator"].device.type, torch.device(kwargs.get("device") or first).type
            if where != needed:
                raise RefusedError(f"Expected a {needed!r} device type for generator but found {where!r}")
        return function(*args, **kwargs)


NAMES = (str, torch.device)
FROM_LISTS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


def _numbered(value):
    named = isinstance(value, torch.device) and value.type == "cuda" and value.index is None
    return CUDA if named or (isinstance(value, str) and value == "cuda") else value


_card: _Card | None = None


def _mapped(change, value):
    """torch's tree_map for the tensors that operations take and give; that one is several times as slow."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(change, part) for part in value])
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()} if value else value
    return value


def _tensors(value, found: list[Tensor]) -> list[Tensor]:
    """All tensors within `value`, put after those in `found`."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _tensors(part, found)
    elif isinstance(value, dict):
        _tensors(list(value.values()), found)
    return found


def _held(value: Tensor) -> Tensor:
    return value.held if isinstance(value, OnCard) else value


def _run(operation, args: tuple, kwargs: dict):
    if operation is DEVICE_OF:
        return META  # what C++ is told, as it has no CUDA here
    tensors = _tensors(args, [])
    if kwargs:
        _tensors(kwargs, tensors)
    there = any(isinstance(tensor, OnCard) for tensor in tensors)
    target = _target(kwargs.get("device"), there)
    if there:
        _refuse_mixtures(operation, args, tensors)
    if target is None and not there:
        return operation(*args, **kwargs)
    to_card = target == CUDA if target is not None else there and not _copies_to_cpu(operation, args)
    if to_card and _card is not None and _card.broken:
        raise RefusedError("CUDA error: no kernel image is available for execution on the device")
    _wait(operation, args, tensors, target)
    asked = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    asked |= {} if target is None else {"device": CPU}
    held, asked = _mapped(_held, args), _mapped(_held, asked)
    found = _computed(operation, held, asked)
    if _card is not None and _card.capturing is not None:
        _card.capturing.append((operation, held, asked, found))
    if not to_card:
        return return_and_correct_aliasing(operation, args, kwargs, found) if _plain(args) else found
    wrapped = _mapped(OnCard, found)
    if operation is aten._to_copy.default or not there:
        return wrapped
    return return_and_correct_aliasing(operation, args, kwargs, wrapped)


def _computed(operation, args: tuple, kwargs: dict):
    """Products in half precision are summed in float32, as on a card; most CPUs take twenty times as long without."""
    if operation not in SUMS:
        return operation(*args, **kwargs)
    kinds = {tensor.dtype for tensor in _tensors(args, [])}
    if len(kinds) != 1 or not kinds <= HALVES:  # mixtures are refused by the operation itself
        return operation(*args, **kwargs)
    found = operation(*_mapped(Tensor.float, args), **kwargs)
    return _mapped(lambda tensor: tensor.to(*kinds), found)


def _plain(args: tuple) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and not isinstance(args[0], OnCard)


def _target(asked, there: bool) -> torch.device | None:
    if asked is None:
        return None
    kind = torch.device(asked).type
    if kind == "meta":  # C++ asks for a tensor beside one of ours
        ours = _card is not None and (_card.inside > 0 or there or torch._C._current_graph_task_id() != -1)
        return CUDA if ours else None
    return CUDA if kind == "cuda" else CPU


def _copies_to_cpu(operation, args: tuple) -> bool:
    return operation in (aten.copy_.default, aten.copy.default) and not isinstance(args[0], OnCard)


def _refuse_mixtures(operation, args: tuple, tensors: list[Tensor]) -> None:
    if operation in PRODUCTS and not tensors[0].dtype.is_floating_point and not tensors[0].dtype.is_complex:
        raise RefusedError(f"{operation} is not implemented for {tensors[0].dtype} on CUDA")
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnCard)]
    assert not any(tensor.is_meta for tensor in strangers), f"fake_cuda does not know how {operation} came here"
    if not strangers or operation in COPIES:
        return
    if operation in INDEXING and isinstance(args[0], OnCard):
        strangers = [value for value in args[2:3] if isinstance(value, Tensor) and not isinstance(value, OnCard)]
    scalars = all(tensor.dim() == 0 for tensor in strangers) and operation not in JOINS
    written = operation._schema.is_mutable and not isinstance(args[0], (OnCard, list))
    if not scalars or written or not _elementwise(operation):
        shapes = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RefusedError(f"Expected all tensors to be on the same device: {operation} of {shapes}")


def _elementwise(operation) -> bool:
    pointwise = torch.Tag.pointwise in operation.tags or operation in INDEXING
    return pointwise or operation.overloadpacket in (aten.where, aten.masked_fill, aten.masked_fill_, aten.fill_)


def _wait(operation, args: tuple, tensors: list[Tensor], target: torch.device | None) -> None:
    masks = operation in INDEXING and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and isinstance(index, OnCard)
        for index in args[1]
    )
    from_card = (operation is aten._to_copy.default and target == CPU) or _copies_to_cpu(operation, args)
    loads = (
        (operation is aten._to_copy.default and target == CUDA and not isinstance(args[0], OnCard))
        or (operation is aten.copy_.default and isinstance(args[0], OnCard) and not isinstance(args[1], OnCard))
        or (operation in INDEXING and any(not isinstance(tensor, OnCard) for tensor in tensors))
    )
    if not (operation in WAITING or masks or from_card or loads) or _card is None:
        return
    kind = "upload" if loads else "mask" if masks else str(operation)
    _card.waits.append((kind, _asked_by()))
    if _card.capturing is not None and not (loads and all(tensor.dim() == 0 for tensor in tensors)):
        raise RefusedError(f"CUDA error: operation not permitted when stream is capturing: {kind} at {_asked_by()}")


def _asked_by() -> str:
    frame = sys._getframe(1)  # a traceback would read the sources of all frames
    while frame is not None:
        path = frame.f_code.co_filename
        # An environment may lie below the project.
        if path.startswith(ROOT) and path != __file__ and "site-packages" not in path:
            return f"{path.removeprefix(ROOT)[1:]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def _stay(function, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments of `Tensor.to` of a tensor on the card, without the device where it is the card's."""
    first, *rest = args
    if function is Tensor.cuda:
        return (first,), {}
    if rest and isinstance(rest[0], Tensor):  # .to(other)
        kwargs = {**kwargs, "device": rest[0].device, "dtype": rest[0].dtype}
    elif rest:  # .to(device, dtype, ...) or .to(dtype, ...)
        names = ("device", "dtype") if rest[0] is None or isinstance(rest[0], (str, torch.device)) else ("dtype",)
        kwargs |= dict(zip(names, rest, strict=False))
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
        del kwargs["device"]
    kwargs.pop("non_blocking", None)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    return (first,), kwargs


def _with_tensors(index):
    """Lists become tensors here, as C++ would make them on a device of its own."""
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    return torch.tensor(index) if isinstance(index, (list, np.ndarray)) else index


def _set_data(tensor: Tensor, value: Tensor) -> None:
    """`tensor.data = value` across kinds of tensors: the tensor stays who it is."""
    fresh = OnCard(value.held) if isinstance(value, OnCard) else value.detach()
    if isinstance(tensor, torch.nn.Parameter):
        fresh = torch.nn.Parameter(fresh, tensor.requires_grad)
    torch.utils.swap_tensors(tensor, fresh)


def _autocast(name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if not torch.is_autocast_enabled("cuda") or name not in CAST:
        return args, kwargs
    wanted = torch.get_autocast_dtype("cuda") if name in LOWERED else torch.float32

    def cast(value):
        if isinstance(value, OnCard) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(wanted)
        return value

    return _mapped(cast, args), _mapped(cast, kwargs)


class Generator(torch.Generator):
    """torch.Generator, which may be on the card."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.kind = torch.device(device)
        return made

    device = property(lambda self: self.kind)


class Graph:
    """torch.cuda.CUDAGraph: remembers operations, and does them again into the same memory."""

    def __init__(self) -> None:
        self._steps: list = []

    def replay(self) -> None:
        with torch.no_grad():
            for operation, args, kwargs, kept in self._steps:
                again = _computed(operation, args, kwargs)
                for old, new in zip(_tensors(kept, []), _tensors(again, []), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@contextmanager
def _capture(graph: Graph, **_) -> Iterator[None]:
    _card.capturing = graph._steps
    try:
        yield
    finally:
        _card.capturing = None


class Event:
    """torch.cuda.Event."""

    def __init__(self, **_) -> None: ...
    def record(self, stream=None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


_made = torch.tensor


def _tensor(data, *, device=None, **options) -> Tensor:
    """torch.tensor for torch's own Python, whose calls modes do not see."""
    if device is None or torch.device(device).type != "cuda":
        return _made(data, **options) if device is None else _made(data, device=device, **options)
    return _made(data, device=CPU, **options).to(CUDA)


def _pinned(tensor: Tensor, device=None) -> Tensor:
    if tensor.is_cuda:
        raise RefusedError("cannot pin a tensor of the GPU")
    return tensor.clone()


def _patches(card: _Card) -> dict[str, object]:
    """What stands in for torch's own, by name."""
    properties = types.SimpleNamespace(
        name="Pretended", total_memory=80 * GIB, major=9, minor=0, multi_processor_count=132, uuid="0"
    )
    nothing = lambda *_, **__: None  # noqa: E731
    figures = dict.fromkeys(
        ("memory_reserved", "memory_allocated", "max_memory_allocated", "max_memory_reserved"), lambda *_: 0
    )
    quiet = dict.fromkeys(
        ("_lazy_init", "init", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_device"), nothing
    )
    return {
        **{f"torch.cuda.{name}": value for name, value in {**figures, **quiet}.items()},
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_initialized": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_name": lambda device=None: properties.name,
        "torch.cuda.get_device_capability": lambda device=None: card.capability,
        "torch.cuda.get_device_properties": lambda device=None: properties,
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: including_emulation or card.capability[0] >= 8,
        "torch.cuda.mem_get_info": lambda device=None: (card.free, 80 * GIB),
        "torch.cuda.set_per_process_memory_fraction": lambda fraction, device=None: None,
        "torch.cuda.get_rng_state": lambda device=None: torch.get_rng_state(),
        "torch.cuda.set_rng_state": nothing,
        "torch.cuda.get_rng_state_all": lambda: [torch.get_rng_state()],
        "torch.cuda.set_rng_state_all": nothing,
        "torch.cuda.manual_seed_all": nothing,
        "torch.cuda.manual_seed": nothing,
        "torch.cuda.CUDAGraph": Graph,
        "torch.cuda.graph": _capture,
        "torch.cuda.Event": Event,
        "torch.Generator": Generator,
        "torch.tensor": _tensor,
        "torch.Tensor.pin_memory": _pinned,
    }


def _rasterization(signature: inspect.Signature):
    """gsplat.rasterization: its arguments are checked as gsplat does (1.5.3), then the CPU kernels draw."""

    def rasterization(*args, **kwargs):
        from backend.splatting.rasterize import rasterize

        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        asked = given.arguments
        batch, count, cameras = asked["means"].shape[:-2], asked["means"].shape[-2], asked["viewmats"].shape[-3]
        shapes = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,)}
        shapes |= {"viewmats": (cameras, 4, 4), "Ks": (cameras, 3, 3)}
        tensors = {name: asked[name] for name in (*shapes, "colors")}
        for name, tensor in tensors.items():
            assert tensor.is_cuda, name  # CHECK_INPUT of its kernels
            assert tensor.is_contiguous(), name
            assert tensor.dtype == torch.float32, name
            assert name == "colors" or tensor.shape == (*batch, *shapes[name]), (name, tensor.shape)
        degree, colors = asked["sh_degree"], asked["colors"]
        if degree is None:
            assert colors.shape[:-1] == (*batch, count)
        else:
            assert colors.shape[:-2] == (*batch, count)
            assert colors.shape[-1] == 3
            assert (degree + 1) ** 2 <= colors.shape[-2]
        assert asked["render_mode"] in ("RGB", "D", "RGB+D")  # the rest is done by the caller
        assert asked["backgrounds"] is None
        assert not asked["packed"]
        same = ("width", "height", "near_plane", "eps2d", "sh_degree", "render_mode", "rasterize_mode")
        options = {name: asked[name] for name in same}
        pictures, alphas, notes = rasterize(**{name: tensor.cpu() for name, tensor in tensors.items()}, **options)
        return pictures.to(CUDA), alphas.to(CUDA), {name: note.to(CUDA) for name, note in notes.items()}

    return rasterization


@contextmanager
def _gsplat() -> Iterator[None]:
    import gsplat.rendering

    from backend.splatting.rasterize import cuda, gsplat_kernels

    here = replace(gsplat_kernels.surroundings(), gpu="Pretended", capability=(9, 0), cuda="13.0")
    with (
        mock.patch.object(
            gsplat.rendering, "rasterization", _rasterization(inspect.signature(gsplat.rendering.rasterization))
        ),
        mock.patch.object(cuda, "load_kernels"),
        mock.patch.object(gsplat_kernels, "load_kernels"),
        mock.patch.object(gsplat_kernels, "surroundings", return_value=here),
    ):
        yield


@contextmanager
def fake_cuda() -> Iterator[_Card]:
    """A pretended CUDA device within the context; yields it."""
    global _card
    with ExitStack() as stack:
        card = _Card()
        for name, value in _patches(card).items():
            stack.enter_context(mock.patch(name, value))
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.enter_context(_gsplat())
        # Accelerate keeps what it has found once for the life of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        _card = card
        try:
            with _Numbered(), card:
                yield card
        finally:
            _card = None
