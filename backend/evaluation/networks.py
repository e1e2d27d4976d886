# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics that need somebody else's weights: LPIPS, FVD on I3D, CLIP. Nothing is downloaded; what is not given is not
measured, and the summary says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.models.lpips import load_lpips, load_script
from backend.progress import UserError


@dataclass(frozen=True)
class Networks:
    """Networks at hand. Pictures [V, H, W, 3] in 0..1 on white."""

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None  # two sets of V pictures -> [V]
    i3d: Callable[[Tensor], np.ndarray] | None = None  # videos [N, T, H, W, 3] -> features [N, 400]
    clip: Callable[[Tensor, Tensor | str], Tensor] | None = None  # pictures, one picture or a text -> cosines [V]

    def missing(self) -> dict[str, str]:
        """What is not measured for want of weights, and what to give for it."""
        wanted = {"lpips": "--lpips FILE", "fvd": "--i3d FILE", "clip_f, clip_o": "--clip DIR"}
        given = {"lpips": self.lpips, "fvd": self.i3d, "clip_f, clip_o": self.clip}
        return {name: f"no weights given ({option})" for name, option in wanted.items() if given[name] is None}


def load_networks(lpips: Path | None = None, i3d: Path | None = None, clip: Path | None = None) -> Networks:
    """The networks whose weights are given.

    Args:
        lpips: of LPIPS, see `load_lpips`.
        i3d: TorchScript of I3D with `rescale`, `resize`, `return_features` (StyleGAN-V's `i3d_torchscript.pt`).
        clip: folder of a CLIP model as the package transformers reads it (ViT-B/32 in the field's protocol).

    Raises:
        UserError: a file cannot be used, or transformers is not installed.
    """
    return Networks(
        lpips=None if lpips is None else torch.no_grad()(load_lpips(lpips)),
        i3d=None if i3d is None else _i3d(load_script(i3d)),
        clip=None if clip is None else _clip(clip),
    )


def _i3d(network: torch.jit.ScriptModule) -> Callable[[Tensor], np.ndarray]:
    @torch.no_grad()
    def features(videos: Tensor) -> np.ndarray:
        clips = (videos.permute(0, 4, 1, 2, 3) * 255).split(1)
        return torch.cat([network(clip, rescale=True, resize=True, return_features=True) for clip in clips]).numpy()

    return features


def _clip(folder: Path) -> Callable[[Tensor, Tensor | str], Tensor]:
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise UserError(
            "no_transformers", "CLIP needs the package transformers.", "Install it, or leave --clip out."
        ) from error
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            "bad_metric_weights", f"{folder} holds no usable CLIP model.", "Give another folder."
        ) from error

    def of_pictures(pictures: Tensor) -> Tensor:
        levels = [(picture.numpy() * 255).round().astype(np.uint8) for picture in pictures]
        return _embedding(model.get_image_features(**processor(images=levels, return_tensors="pt")))

    @torch.no_grad()
    def cosines(pictures: Tensor, reference: Tensor | str) -> Tensor:
        if isinstance(reference, str):
            given = processor(text=[reference], return_tensors="pt", truncation=True)
            anchor = _embedding(model.get_text_features(**given))
        else:
            anchor = of_pictures(reference[None])
        return torch.nn.functional.cosine_similarity(of_pictures(pictures), anchor)

    return cosines


def _embedding(features) -> Tensor:  # [V, D]
    """What a CLIP model says of pictures or texts: a tensor in transformers before 5, then a field of its output."""
    return getattr(features, "pooler_output", features)
