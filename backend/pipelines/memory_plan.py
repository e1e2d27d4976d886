# SPDX-License-Identifier: GPL-3.0-or-later
"""How a generation of published size fits on a GPU: plans from the fastest to the smallest, and the way down.

Networks lie in main memory, and are on the GPU while they are used. What a plan needs is known from shapes before
anything is loaded; the fastest that fits is taken. Where the GPU's memory still does not suffice (others use it too,
and kernels have needs of their own), the work goes on by the next plan, from the last step that was finished.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from backend.models.gpu import gpu_problem
from backend.progress import Run, UserError

Result = TypeVar("Result")

GIB = 2**30
OVERHEAD = 0.8 * GIB  # CUDA's context and workspaces of its libraries
SPARE = 1.15  # the allocator cannot use every gap


@dataclass(frozen=True)
class MemoryPlan:
    """How much is on the GPU at once."""

    name: str  # for people
    resident: bool = True  # networks stay on the GPU once they are there; else only while their stage lasts
    together: bool = True  # branches of guidance through the same network are one batch; else one after another
    slice_tokens: int | None = None  # latent pixels that a transformer takes at once, see VideoMV.slice_transformers
    streamed: bool = False  # the video networks' blocks are on the GPU one at a time
    vae_chunk: int = 8  # pictures that the VAE takes at once
    vae_tiling: bool = False  # the VAE works on tiles of pictures larger than its own 512 pixels
    recorded: bool = False  # denoising steps are recorded once and replayed, see `recorded_steps`


PLANS = (
    MemoryPlan("everything on the GPU", recorded=True),
    MemoryPlan("one stage after another", resident=False, together=False, vae_chunk=4),
    MemoryPlan("in slices", resident=False, together=False, slice_tokens=4096, vae_chunk=1, vae_tiling=True),
    MemoryPlan(
        "block by block", resident=False, together=False, slice_tokens=2048, streamed=True, vae_chunk=1, vae_tiling=True
    ),
)
ON_CPU = replace(PLANS[0], name="on the CPU", together=False, vae_chunk=1, recorded=False)


@dataclass(frozen=True)
class StageNeed:
    """What one stage has on the GPU. Bytes, but for `parameters`."""

    name: str
    parameters: int  # of its networks
    weights: int  # on the GPU at once
    activations: int  # most that is alive at once beside them


@dataclass(frozen=True)
class Need:
    """What a generation by one plan needs."""

    plan: MemoryPlan
    stages: tuple[StageNeed, ...]

    @property
    def device_bytes(self) -> int:
        """On the GPU at the peak, with what CUDA itself takes."""
        if self.plan.resident:
            most = sum(stage.weights for stage in self.stages) + max(stage.activations for stage in self.stages)
        else:
            most = max(stage.weights + stage.activations for stage in self.stages)
        return int(SPARE * most + OVERHEAD)

    def sentence(self, free: int) -> str:
        """For people, before it starts."""
        parameters = sum(stage.parameters for stage in self.stages)
        return (
            f"{parameters / 1e9:.1f} billion parameters, {self.plan.name}: about {self.device_bytes / GIB:.1f} of "
            f"{free / GIB:.1f} GiB free on the GPU"
        )


def choose(plans: Sequence[MemoryPlan], need_of: Callable[[MemoryPlan], Need], free: int) -> tuple[int, Need]:
    """Index and need of the first plan, of plans from the fastest to the smallest, that fits in `free` bytes.

    Raises:
        UserError: none does.
    """
    for index, plan in enumerate(plans):
        least = need_of(plan)
        if least.device_bytes <= free:
            return index, least
    raise UserError(
        "gpu_too_small",
        f"The GPU has {free / GIB:.1f} GiB free, and the published size needs {least.device_bytes / GIB:.1f} GiB even "
        f"{least.plan.name}.",
        "Close other programs that use the GPU, use --device cpu (hours), or the small model.",
    )


def with_ladder(plans: Sequence[MemoryPlan], work: Callable[[MemoryPlan], Result], run: Run) -> Result:
    """What `work` returns by the first plan for which the GPU's memory suffices.

    `work` is called again after each failure, and has to go on from what it kept.

    Raises:
        UserError: the memory did not suffice for any plan.
    """
    for index, plan in enumerate(plans):
        try:
            return work(plan)
        except torch.OutOfMemoryError:
            if index + 1 == len(plans):
                raise UserError(
                    "out_of_memory",
                    f"The GPU's memory did not suffice, even {plan.name}.",
                    "Close other programs that use the GPU and try again: it goes on where it stopped.",
                ) from None
        # Only here is the failed attempt's frame gone, and with it the tensors that it held.
        release()
        run.note(f"The GPU's memory did not suffice for {plan.name}: it went on {plans[index + 1].name}, slower.")
    raise AssertionError("no plans")


def release() -> None:
    """Give unused memory back to the GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def chosen_device(run: Run) -> torch.device:
    """What a run's networks work on; a note says why it is not a GPU that is there.

    Raises:
        UserError: it wants a GPU, and there is none that can be used.
    """
    problem = None if run.device == "cpu" else gpu_problem()
    if run.device != "cpu" and torch.cuda.is_available() and problem is None:
        return torch.device("cuda")
    if run.device == "cuda":
        message = problem or "There is no GPU that torch can use."
        raise UserError("no_gpu", message, "See: python -m backend doctor")
    if problem:
        run.note(f"The networks ran on the CPU. {problem}")
    return torch.device("cpu")


def free_bytes(device: torch.device) -> int:
    """Memory of the GPU that this process can still get."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def computing_type(device: torch.device) -> torch.dtype:
    """Of the large networks: bf16 where the GPU has it, else fp16; float32 on the CPU."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class Networks:
    """The networks of a generation by name: loaded when first needed, on the device while they are used."""

    def __init__(
        self, loaders: Mapping[str, Callable[[], nn.Module]], device: torch.device, on_block: Callable[[], None]
    ) -> None:
        """`on_block` is called before each block of a video network runs, and may cancel by raising."""
        self._loaders, self.device, self._on_block = loaders, device, on_block
        self._loaded: dict[str, nn.Module] = {}
        self._streams: dict[str, _Stream] = {}
        self.plan = PLANS[0]

    def follow(self, plan: MemoryPlan) -> None:
        """Work by this plan from now on."""
        for name in self._loaded:
            self._put_back(name)
        if self._loaded:
            release()
        self.plan = plan

    def rest(self) -> None:
        """None is needed for a while: all that are loaded lie in main memory."""
        self.follow(self.plan)

    @contextmanager
    def using(self, *names: str) -> Iterator[list[nn.Module]]:
        """These networks on the device."""
        with ExitStack() as stack:
            found = []
            for name in names:
                if not self.plan.resident:
                    stack.callback(self._put_back, name)
                found.append(self._on_device(name))
                for block in _blocks(found[-1]):
                    stack.callback(block.register_forward_pre_hook(lambda *_: self._on_block()).remove)
            yield found

    def forget(self, *names: str) -> None:
        """These are not needed any more."""
        for name in [name for name in names if name in self._loaded]:
            self._put_back(name)
            del self._loaded[name]
            release()

    def _on_device(self, name: str) -> nn.Module:
        if name not in self._loaded:
            self._loaded[name] = self._loaders[name]()
        network = self._loaded[name]
        for slicing in ("slice_transformers", "slice_motion"):  # VideoMV's networks; 4DM
            if hasattr(video := _video_network(network), slicing):
                getattr(video, slicing)(self.plan.slice_tokens)
        if self.device.type == "cpu":
            return network
        if self.plan.streamed and _blocks(network):
            self._streams[name] = self._streams.get(name) or _Stream(network, _blocks(network), self.device)
        else:
            network.to(self.device)
        return network

    def _put_back(self, name: str) -> None:
        if (stream := self._streams.pop(name, None)) is not None:
            stream.end()
        elif name in self._loaded and self.device.type != "cpu":
            self._loaded[name].to("cpu")


class _Stream:
    """A network on the device, but for its blocks, each of which comes there when it runs and goes after it.

    What is on the device is a copy, so that nothing has to be copied back.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        streamed = {module for block in blocks for module in block.modules()}
        self._rest = [slot for module in network.modules() if module not in streamed for slot in _slots(module)]
        self._hooks = []
        for slot in self._rest:
            _bring(slot, device)
        for block in blocks:
            slots = [_pinned(slot) for module in block.modules() for slot in _slots(module)]
            come, go = (lambda *_, slots=slots: self._bring(slots)), (lambda *_, slots=slots: self._send_away(slots))
            self._hooks.append(block.register_forward_pre_hook(come))
            self._hooks.append(block.register_forward_hook(go, always_call=True))

    def _bring(self, slots: list["_Slot"]) -> None:
        for slot in slots:
            _bring(slot, self._device)

    def _send_away(self, slots: list["_Slot"]) -> None:
        for tensors, name, stored in slots:
            tensors[name] = stored

    def end(self) -> None:
        """All of it is in main memory, and stays there."""
        for hook in self._hooks:
            hook.remove()
        self._send_away(self._rest)


_Slot = tuple[dict, str, torch.Tensor]  # where a module has a tensor, and the tensor as it is in main memory


def _slots(module: nn.Module) -> list[_Slot]:
    """Of a module's own parameters and buffers."""
    places = (module._parameters, module._buffers)
    return [(place, name, tensor) for place in places for name, tensor in place.items() if tensor is not None]


def _bring(slot: _Slot, device: torch.device) -> None:
    tensors, name, stored = slot
    copy = stored.detach().to(device, non_blocking=True)
    tensors[name] = nn.Parameter(copy, requires_grad=False) if isinstance(stored, nn.Parameter) else copy


def _pinned(slot: _Slot) -> _Slot:
    """In main memory from which a GPU reads fast, where it can be had."""
    _, _, stored = slot
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # the system limits how much of it there is
            stored.data = stored.data.pin_memory()
    return slot


def _video_network(network: nn.Module) -> nn.Module:
    return getattr(network, "base", network)  # Diffusion4D's has VideoMV's within


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a video network in order; none of another network."""
    network = _video_network(network)
    if not hasattr(network, "input_blocks"):
        return []
    first, *others = network.input_blocks
    return [*first, *others, network.middle_block, *network.output_blocks]
