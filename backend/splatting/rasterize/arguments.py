# SPDX-License-Identifier: GPL-3.0-or-later
"""What `rasterize` accepts, checked once for all engines."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Name: dimensions after the leading (time) ones; None is N, "C" the cameras.
_SHAPES = {
    "means": (None, 3),
    "quats": (None, 4),
    "scales": (None, 3),
    "opacities": (None,),
    "colors": (None, 3),
    "viewmats": ("C", 4, 4),
    "Ks": ("C", 3, 3),
}
_WORDS = {None: "N", "C": "C"}


@dataclass(frozen=True)
class Scene:
    """Checked arguments. The leading dimensions are one, of size B; or 1 where all times share the tensor."""

    means: Tensor  # [B or 1, N, 3]
    quats: Tensor  # [B or 1, N, 4]
    scales: Tensor  # [B or 1, N, 3]
    opacities: Tensor  # [B or 1, N]
    colors: Tensor  # [B or 1, N, 3]
    viewmats: Tensor  # [B, C, 4, 4]
    Ks: Tensor  # [B, C, 3, 3]
    batch: torch.Size  # the leading dimensions as the caller has them; their product is B


def checked_scene(tensors: dict[str, Tensor], width: int, height: int, near_plane: float, eps2d: float) -> Scene:
    """The arguments of `rasterize` with their leading dimensions flattened.

    Raises:
        ValueError: one sentence about the first thing that does not fit.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be at least 1 pixel, not {width} x {height}.")
    if not (near_plane > 0 and eps2d > 0):
        raise ValueError(f"near_plane and eps2d must be above 0, not {near_plane} and {eps2d}.")
    sizes: dict[str | None, int] = {}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, sizes)
    device = tensors["means"].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but means is on {device}.")
    for name in ("viewmats", "Ks"):
        if tensors[name].requires_grad:
            raise ValueError(f"{name} requires a gradient, but rasterize gives none for cameras: detach it.")

    leading = {name: tensor.shape[: -len(_SHAPES[name])] for name, tensor in tensors.items()}
    try:
        batch = torch.broadcast_shapes(*leading.values())
    except RuntimeError as error:
        words = ", ".join(f"{name} {list(shape)}" for name, shape in leading.items())
        raise ValueError(f"The leading dimensions do not go together: {words}.") from error
    flat = {name: _flatten(tensor, leading[name], batch) for name, tensor in tensors.items()}
    for name in ("viewmats", "Ks"):
        flat[name] = flat[name].expand(math.prod(batch), *flat[name].shape[1:])
    return Scene(**flat, batch=batch)


def checked_backgrounds(backgrounds: Tensor, scene: Scene) -> Tensor:
    """Background colors as [B, C, 3].

    Raises:
        ValueError: the shape does not broadcast to [..., C, 3].
    """
    wanted = (*scene.batch, scene.viewmats.shape[1], 3)
    try:
        return backgrounds.expand(wanted).reshape(-1, *wanted[-2:])
    except RuntimeError as error:
        shape = list(backgrounds.shape)
        raise ValueError(
            f"backgrounds has the shape {shape}, which does not fit [..., C, 3] = {list(wanted)}."
        ) from error


def _check_tensor(name: str, tensor: Tensor, sizes: dict[str | None, int]) -> None:
    expected = _SHAPES[name]
    actual = tuple(tensor.shape[-len(expected) :])
    fits = len(actual) == len(expected)
    for size, dimension in zip(actual, expected, strict=False):
        if isinstance(dimension, int):
            fits = fits and size == dimension
        else:
            fits = fits and size == sizes.setdefault(dimension, size)
    if not fits:
        words = ", ".join(
            str(dimension) if isinstance(dimension, int) else f"{_WORDS[dimension]} = {sizes[dimension]}"
            if dimension in sizes else _WORDS[dimension]
            for dimension in expected
        )  # fmt: skip
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, but [..., {words}] is needed.")
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype}, but torch.float32 is needed.")


def _flatten(tensor: Tensor, leading: torch.Size, batch: torch.Size) -> Tensor:
    rest = tensor.shape[len(leading) :]
    if math.prod(leading) == 1:
        return tensor.reshape(1, *rest)
    return tensor.expand(*batch, *rest).reshape(math.prod(batch), *rest)
