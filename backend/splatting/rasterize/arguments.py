# SPDX-License-Identifier: GPL-3.0-or-later
"""What `rasterize` accepts, checked once for all engines."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
MAX_SH_DEGREE = 4

# Name: dimensions after the leading (time) ones; letters are sizes that tensors share or that are free.
_SHAPES = {
    "means": ("N", 3),
    "quats": ("N", 4),
    "scales": ("N", 3),
    "opacities": ("N",),
    "colors": ("N", "D"),
    "viewmats": ("C", 4, 4),
    "Ks": ("C", 3, 3),
}
_HARMONICS = ("N", "K", 3)  # of colors, if there is a degree


@dataclass(frozen=True)
class Options:
    """How a scene is drawn."""

    width: int  # pixels
    height: int
    near_plane: float = 0.01
    eps2d: float = 0.3
    sh_degree: int | None = None  # of `Scene.colors`; None: they are what is drawn
    render_mode: str = "RGB"  # one of RENDER_MODES
    rasterize_mode: str = "classic"  # one of RASTERIZE_MODES

    def __post_init__(self) -> None:
        """Raises ValueError: one sentence about the first thing that does not fit."""
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width and height must be at least 1 pixel, not {self.width} x {self.height}.")
        if not (self.near_plane > 0 and self.eps2d > 0):
            raise ValueError(f"near_plane and eps2d must be above 0, not {self.near_plane} and {self.eps2d}.")
        if self.sh_degree is not None and self.sh_degree not in range(MAX_SH_DEGREE + 1):
            raise ValueError(f"sh_degree must be a whole number from 0 to {MAX_SH_DEGREE}, not {self.sh_degree}.")
        for name, value, known in (
            ("render_mode", self.render_mode, RENDER_MODES),
            ("rasterize_mode", self.rasterize_mode, RASTERIZE_MODES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")

    @property
    def draws_colors(self) -> bool:
        """Whether the picture has the channels of the colors."""
        return self.render_mode.startswith("RGB")

    @property
    def draws_depth(self) -> bool:
        """Whether the picture has depth as its last channel."""
        return self.render_mode.endswith("D")

    @property
    def antialiased(self) -> bool:
        """Whether opacities are lowered by what `eps2d` adds to the area."""
        return self.rasterize_mode == "antialiased"


@dataclass(frozen=True)
class Scene:
    """Checked arguments. The leading dimensions are one, of size B; or 1 where all times share the tensor."""

    means: Tensor  # [B or 1, N, 3]
    quats: Tensor  # [B or 1, N, 4]
    scales: Tensor  # [B or 1, N, 3]
    opacities: Tensor  # [B or 1, N]
    colors: Tensor  # [B or 1, N, D]; with a degree [B or 1, N, K, 3]
    viewmats: Tensor  # [B, C, 4, 4]
    Ks: Tensor  # [B, C, 3, 3]
    batch: torch.Size  # the leading dimensions as the caller has them; their product is B


def checked_scene(tensors: dict[str, Tensor], options: Options) -> Scene:
    """The arguments of `rasterize` with their leading dimensions flattened.

    Raises:
        ValueError: one sentence about the first thing that does not fit.
    """
    shapes = _SHAPES if options.sh_degree is None else {**_SHAPES, "colors": _HARMONICS}
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, shapes[name], sizes)
    _check_channels(sizes, options)
    device = tensors["means"].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but means is on {device}.")
    for name in ("viewmats", "Ks"):
        if tensors[name].requires_grad:
            raise ValueError(f"{name} requires a gradient, but rasterize gives none for cameras: detach it.")

    leading = {name: tensor.shape[: -len(shapes[name])] for name, tensor in tensors.items()}
    try:
        # torch.broadcast_shapes brings SymPy, most of a second at the start of a process
        batch = torch.Size(np.broadcast_shapes(*leading.values()))
    except ValueError as error:
        words = ", ".join(f"{name} {list(shape)}" for name, shape in leading.items())
        raise ValueError(f"The leading dimensions do not go together: {words}.") from error
    flat = {name: _flatten(tensor, leading[name], batch) for name, tensor in tensors.items()}
    for name in ("viewmats", "Ks"):
        flat[name] = flat[name].expand(math.prod(batch), *flat[name].shape[1:])
    return Scene(**flat, batch=batch)


def checked_backgrounds(backgrounds: Tensor, scene: Scene, channels: int) -> Tensor:
    """Background colors as [B, C, channels].

    Raises:
        ValueError: the shape does not broadcast to [..., C, channels].
    """
    wanted = (*scene.batch, scene.viewmats.shape[1], channels)
    try:
        return backgrounds.expand(wanted).reshape(-1, *wanted[-2:])
    except RuntimeError as error:
        shape = list(backgrounds.shape)
        raise ValueError(
            f"backgrounds has the shape {shape}, which does not fit [..., C, D] = {list(wanted)}."
        ) from error


def _check_tensor(name: str, tensor: Tensor, expected: tuple[str | int, ...], sizes: dict[str, int]) -> None:
    actual = tuple(tensor.shape[-len(expected) :])
    fits = len(actual) == len(expected)
    for size, dimension in zip(actual, expected, strict=False):
        fits = fits and size == (dimension if isinstance(dimension, int) else sizes.setdefault(dimension, size))
    if not fits:
        words = ", ".join(
            f"{dimension} = {sizes[dimension]}" if dimension in sizes else str(dimension) for dimension in expected
        )
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, but [..., {words}] is needed.")
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype}, but torch.float32 is needed.")


def _check_channels(sizes: dict[str, int], options: Options) -> None:
    if options.sh_degree is None:
        if sizes["D"] < 1:
            raise ValueError("colors has no channels: [..., N, D] with D of at least 1 is needed.")
    elif sizes["K"] < (options.sh_degree + 1) ** 2:
        raise ValueError(
            f"colors has {sizes['K']} spherical harmonics, but degree {options.sh_degree} needs "
            f"{(options.sh_degree + 1) ** 2}."
        )


def _flatten(tensor: Tensor, leading: torch.Size, batch: torch.Size) -> Tensor:
    rest = tensor.shape[len(leading) :]
    if math.prod(leading) == 1:
        return tensor.reshape(1, *rest)
    return tensor.expand(*batch, *rest).reshape(math.prod(batch), *rest)
