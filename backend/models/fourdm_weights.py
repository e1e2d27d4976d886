# SPDX-License-Identifier: GPL-3.0-or-later
"""Released weights of ImageDream and 4Diffusion -> `FourDM`. Takes state dicts; files are read elsewhere.

ImageDream's checkpoint holds a whole latent diffusion model: the U-Net under `model.diffusion_model.`, beside it
encoders and schedule. `4dm.ckpt` holds `state_dict` with `module.` before every name: the motion modules, or the
whole U-Net.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backend.models.fourdm import IMAGEDREAM, PUBLISHED, FourDM, FourDMConfig
from backend.models.fourdm_blocks import MotionModule, PositionTable, zeroed
from backend.progress import UserError

UNET = "model.diffusion_model."
PARALLEL = "module."  # left by the training's DistributedDataParallel
SHOWN = 5  # names in a message


def imagedream_from(checkpoint: Mapping[str, Tensor], config: FourDMConfig = IMAGEDREAM, **options) -> FourDM:
    """ImageDream's network from its checkpoint; `options` as of `fourdm_from`."""
    return fourdm_from(checkpoint, None, config.base, **options)


def fourdm_from(
    imagedream: Mapping[str, Tensor] | None,
    motion: Mapping[str, Tensor] | None,
    config: FourDMConfig = PUBLISHED,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FourDM:
    """4DM from ImageDream's checkpoint and, on top of it, 4Diffusion's.

    Without `motion` the motion modules begin fresh: the network is ImageDream's until they are trained. Without
    `imagedream`, `motion` must hold the whole network. Weights whose type and device are right already are taken as
    they are, not copied.

    Raises:
        UserError: names are missing, unknown, or have other sizes.
    """
    with torch.device("meta"):
        net = FourDM(config)
    if imagedream is not None:
        load_imagedream(net, imagedream, dtype=dtype, device=device)
    if motion is not None:
        load_fourdm(net, motion, whole=imagedream is None, dtype=dtype, device=device)
    elif imagedream is None:
        raise ValueError("there is no checkpoint to load from")
    elif config.motion:
        for module in net.motion_modules():
            start_fresh(module.to_empty(device=device).to(dtype))
    return net.eval()


def load_imagedream(
    net: FourDM,
    checkpoint: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Put ImageDream's weights into `net`, with or without motion modules; those are left as they are.

    Takes its checkpoint (see `unet_part`; what is not `model.diffusion_model.*` is passed over).
    `dtype`, `device`: of the weights, where `net` is still on the meta device; otherwise they become what `net` has.

    Raises:
        UserError: names are missing, unknown, or have other sizes.
    """
    shifted = key_map(net)
    state = {shifted.get(name, name): value for name, value in unet_part(checkpoint).items()}
    wanted = [name for name in net.state_dict() if not is_motion(name)]
    assign(net, state, wanted, "ImageDream's checkpoint", dtype, device)


def load_fourdm(
    net: FourDM,
    checkpoint: Mapping[str, Tensor],
    *,
    whole: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Put 4Diffusion's weights (`4dm.ckpt`) into `net`, which has motion modules.

    The file may hold the motion modules alone, or all of the U-Net (`whole`: it must). Position tables that it lacks
    are computed. `dtype`, `device` as in `load_imagedream`.

    Raises:
        UserError: names are missing, unknown, or have other sizes.
    """
    state = unet_part(checkpoint)
    whole = whole or any(not is_motion(name) for name in state)
    wanted = [name for name in net.state_dict() if whole or is_motion(name)]
    tables = {
        f"{name}.pe": module.pe.shape for name, module in net.named_modules() if isinstance(module, PositionTable)
    }
    absent = [name for name in tables if name not in state]
    for name in absent:
        _, positions, channels = tables[name]
        state[name] = PositionTable(channels, positions).pe
    assign(net, state, wanted, "4Diffusion's checkpoint", dtype, device)


def unet_part(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's tensors under its own names: out of a whole model where it is one, else all there are."""
    state = {name.removeprefix(PARALLEL): value for name, value in checkpoint.get("state_dict", checkpoint).items()}
    inside = {name.removeprefix(UNET): value for name, value in state.items() if name.startswith(UNET)}
    return inside or state


def assign(
    net: nn.Module,
    state: Mapping[str, Tensor],
    wanted: list[str],
    what: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    """Load exactly the `wanted` names out of `state`; weights that are still on the meta device are replaced.

    Raises:
        UserError: names are missing, unknown, or have other sizes; lists the first few.
    """
    own, known = net.state_dict(), set(wanted)
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in known]
    sizes = [
        f"{name} {size(state[name])} instead of {size(own[name])}"
        for name in wanted
        if name in state and size(state[name]) != size(own[name])
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for names, kind in ((missing, "are missing"), (unknown, "are unknown"), (sizes, "have another size"))
        if names
    ]
    if problems:
        raise UserError(
            "wrong_weights",
            f"{what} does not fit the network: of {len(wanted)} tensors, {'; '.join(problems)}.",
            "Check that it is the file for this network (ImageDream: sd-v2.1-base-4view-ipmv.pt; 4Diffusion: "
            "4dm.ckpt), and that it was downloaded to its end.",
        )
    modules = dict(net.named_modules())
    with torch.no_grad():
        for name in wanted:
            path, _, leaf = name.rpartition(".")
            tensor = getattr(modules[path], leaf)
            if not tensor.is_meta:
                tensor.copy_(state[name])
                continue
            value = state[name].to(device=device, dtype=dtype)
            if isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, requires_grad=tensor.requires_grad)
            setattr(modules[path], leaf, value)


def size(value: object) -> str:
    """Of a tensor, for people."""
    return str(list(value.shape)) if isinstance(value, Tensor) else "no tensor"


def key_map(net: FourDM) -> dict[str, str]:
    """ImageDream's names -> those of `net`, only where they differ.

    A motion module in the middle of a stage pushes the layers behind it one place on.
    """
    stages = {
        **{f"input_blocks.{index}": stage for index, stage in enumerate(net.input_blocks)},
        "middle_block": net.middle_block,
        **{f"output_blocks.{index}": stage for index, stage in enumerate(net.output_blocks)},
    }
    renamed = {}
    for stage, layers in stages.items():
        kept = (place for place, layer in enumerate(layers) if not isinstance(layer, MotionModule))
        for before, after in enumerate(kept):
            if before != after:
                names = layers[after].state_dict()
                renamed |= {f"{stage}.{before}.{name}": f"{stage}.{after}.{name}" for name in names}
    return renamed


def is_motion(name: str) -> bool:
    """Whether a state dict's name belongs to a motion module."""
    return ".temporal_transformer." in name


@torch.no_grad()
def start_fresh(module: MotionModule) -> None:
    """Begin anew as when constructed: what it adds is zero."""
    for part in module.modules():
        if isinstance(part, PositionTable):
            part.reset()
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
    zeroed(module.temporal_transformer.proj_out)
