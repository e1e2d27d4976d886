# SPDX-License-Identifier: GPL-3.0-or-later
"""Released weights of ImageDream and 4Diffusion -> `FourDM`.

ImageDream's checkpoint holds a whole latent diffusion model: the U-Net under `model.diffusion_model.`, beside it
encoders and schedule. `4dm.ckpt` holds the motion modules, or the whole U-Net; so do weights from our training.
"""

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from backend.models.checkpoints import load_strictly, locate, read_tensors, released_state
from backend.models.fourdm import PUBLISHED, FourDM, FourDMConfig
from backend.models.fourdm_blocks import MotionModule, PositionTable
from backend.models.video_blocks import zeroed

UNET = "diffusion_model."
BASE, MOTION = "imagedream", "4dm"  # names of the weights


def load_fourdm(folder: str | PathLike | None = None, dtype: torch.dtype = torch.float32) -> FourDM:
    """4DM of published size, on the CPU, in evaluation mode, without gradients. `folder`: of all weights.

    Raises:
        UserError: weights are missing, damaged or of another network.
    """
    base = imagedream_tensors(folder, dtype)
    motion = read_tensors(locate(MOTION, folder), "", dtype)
    return fourdm_from(base, motion, dtype=dtype).requires_grad_(False)


def imagedream_tensors(folder: str | PathLike | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The U-Net in ImageDream's released weights. `folder`: of all weights.

    Raises:
        UserError: they are missing or damaged.
    """
    return read_tensors(locate(BASE, folder), f"model.{UNET}", dtype)


def fourdm_from(
    imagedream: Mapping[str, Tensor] | None,
    motion: Mapping[str, Tensor] | None,
    config: FourDMConfig = PUBLISHED,
    *,
    dtype: torch.dtype = torch.float32,
) -> FourDM:
    """4DM from ImageDream's checkpoint and, on top of it, 4Diffusion's; with `config.base`, ImageDream itself.

    Without `motion` the motion modules begin fresh: the network is ImageDream's until they are trained. Without
    `imagedream`, `motion` must hold the whole network; where it does, `imagedream` is not looked at. Position tables
    may be left out. Weights whose type is right already are taken as they are, not copied.

    Raises:
        UserError: names are missing, unknown, or have other sizes.
    """
    with torch.device("meta"):
        net = FourDM(config)
    state: dict[str, Tensor] = {}
    if imagedream is not None:
        renamed = key_map(net)
        state = {renamed.get(name, name): tensor for name, tensor in unet_part(imagedream).items()}
    if motion is not None:
        learned = unet_part(motion)
        state = learned if any(not is_motion(name) for name in learned) else {**state, **learned}
        for name, module in net.named_modules():
            if isinstance(module, PositionTable) and f"{name}.pe" not in state:
                _, positions, channels = module.pe.shape
                state[f"{name}.pe"] = PositionTable(channels, positions).pe
    else:
        for module in net.motion_modules():
            start_fresh(module.to_empty(device="cpu"))
        state |= {name: tensor for name, tensor in net.state_dict().items() if is_motion(name)}
    what = "4Diffusion's checkpoint" if motion is not None else "ImageDream's checkpoint"
    load_strictly(net, {name: tensor.to(dtype) for name, tensor in state.items()}, what, assign=True)
    return net.eval()


def unet_part(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's tensors under its own names: out of a whole model where it is one, else all there are."""
    state, _ = released_state(checkpoint)
    inside = {name.partition(UNET)[2]: tensor for name, tensor in state.items() if UNET in name}
    return inside or state


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
