# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D at its published size: networks with the weights that `python -m backend weights` and training make.

The networks are VideoMV's, for images and for texts, and both with Diffusion4D's additions (see `diffusion4d`). All are
built on the meta device and take their tensors as they are read, so that no number is held twice.
"""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from backend.models.checkpoints import load_strictly, locate, read_tensors, released_state, weights_folder
from backend.models.diffusion4d import Diffusion4DNet
from backend.models.videomv import IMAGE, TEXT, VideoMV, VideoMVConfig
from backend.progress import UserError

BASES = {"text": "videomv-t2v", "image": "videomv-i2v"}  # names of the weights
CONFIGS = {"text": TEXT, "image": IMAGE}
TRAINED = "diffusion4d"  # name of the weights that `train ship --published` makes of a run
Folder = str | PathLike | None  # of all weights; None: the usual one, see `weights_folder`


def load_base(kind: str, folder: Folder = None, dtype: torch.dtype = torch.bfloat16) -> VideoMV:
    """VideoMV's network for `text` or `image`, on the CPU, in evaluation mode, without gradients.

    Raises:
        UserError: its weights are missing, damaged, or of another network.
    """
    network = empty(VideoMV, CONFIGS[kind], dtype)
    load_strictly(network, base_tensors(kind, folder, dtype), f"The weights {BASES[kind]}", assign=True)
    return network.eval().requires_grad_(False)


def load_trained(folder: Folder = None, dtype: torch.dtype = torch.bfloat16) -> Diffusion4DNet:
    """Diffusion4D's network, trained on VideoMV's for images; as `load_base` gives it.

    Raises:
        UserError: it is missing, damaged, or another network.
    """
    path = locate_trained(folder)
    network = empty(Diffusion4DNet, CONFIGS["image"], dtype)
    load_strictly(network, read_tensors(path, "", dtype), f"The weights in {path}", assign=True)
    return network.eval().requires_grad_(False)


def locate_trained(folder: Folder = None) -> Path:
    """The folder with the weights of the trained network.

    Raises:
        UserError: there is none, for nobody has published weights.
    """
    path = weights_folder(folder) / TRAINED
    if not any(path.glob("*.safetensors")):
        raise UserError(
            "weights_missing",
            f"Diffusion4D's trained weights are not on this computer: {path} does not hold them.",
            f"Nobody has published any. Train them (docs/training.md), then: python -m backend train ship --published "
            f"RUN --out {path}. Motion 0 needs none.",
        )
    return path


def empty(network: type, config: VideoMVConfig, dtype: torch.dtype) -> torch.nn.Module:
    """A network on the meta device."""
    with torch.device("meta"):
        return network(config).to(dtype)


def base_tensors(kind: str, folder: Folder = None, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """VideoMV's released weights for `text` or `image`.

    Raises:
        UserError: they are missing or damaged.
    """
    return released_state(read_tensors(locate(BASES[kind], folder), "", dtype))[0]
