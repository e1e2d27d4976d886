# SPDX-License-Identifier: GPL-3.0-or-later
"""LPIPS (Zhang et al. 2018) by weights that somebody has at hand; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from backend.models.checkpoints import weights_folder
from backend.progress import UserError

FILE = Path("lpips") / "vgg16.pt"  # within the folder of all weights; put there by hand (docs/weights.md)


def find_lpips(folder: Path | None = None) -> Path | None:
    """The file for `load_lpips` where somebody has put it; folder: of all weights, by default the usual one."""
    path = weights_folder(folder) / FILE
    return path if path.is_file() else None


def load_lpips(path: Path, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """From two sets of V pictures [V, H, W, 3] 0..1 to [V]; differentiable in both.

    path: TorchScript of VGG16 with `resize_images` and `return_lpips` arguments (StyleGAN2's `vgg16.pt`), whose
    squared distance is LPIPS.

    Raises:
        UserError: the file cannot be used.
    """
    network = load_script(path).to(device)
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def features(pictures: Tensor) -> Tensor:
        return network(pictures.permute(0, 3, 1, 2) * 255, resize_images=False, return_lpips=True)

    return lambda a, b: (features(a) - features(b)).square().sum(dim=1)


def load_script(path: Path) -> torch.jit.ScriptModule:
    """A TorchScript network in main memory.

    Raises:
        UserError: the file is none.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            "bad_metric_weights", f"{path} cannot be loaded as TorchScript.", "Give another file or leave it out."
        ) from error
