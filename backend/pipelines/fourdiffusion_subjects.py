# SPDX-License-Identifier: GPL-3.0-or-later
"""What 4Diffusion optimises: the dynamic radiance field of the paper, or Gaussians (our departure from it).

Both are rendered with a gradient, have priors by name, are kept in a checkpoint, and can become a clip.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from backend.nerf import losses
from backend.nerf.field import BETAS, EPSILON, Field, SpaceTimeHash
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.occupancy import Occupancy
from backend.nerf.rendering import Quality, rays_of, render
from backend.pipelines.fourdiffusion_draws import Draw
from backend.splatting.checkpoint import load_optimizer, optimizer_arrays
from backend.splatting.refinement import RefinableClip
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import Cameras

# Of Gaussians, beside losses as large as score distillation's; those of construction are about a hundredth.
RIGID_WEIGHT, JERK_WEIGHT = 100.0, 100.0


class Subject(Protocol):
    """What is optimised."""

    PRIORS: tuple[str, ...]  # names of its priors
    optimizer: torch.optim.Optimizer

    def begin(self, iteration: int, done: float, generator: torch.Generator) -> None:
        """Called before each iteration; `done`: 0..1 of all."""

    def render(self, cameras: Cameras, generator: torch.Generator) -> Tensor:  # [V, H, W, 4]
        """Colour times alpha, and alpha, with a gradient."""

    def priors(self, draw: Draw, opacity: Tensor, done: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted priors. opacity [V, H, W]: of the renders of `draw`; done: 0..1 of all iterations."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that an exact continuation needs."""

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up what `to_arrays` gave."""


class FieldSubject:
    """The paper's: hash grids over space and time, volume rendering."""

    PRIORS = ("orientation", "sparsity", "opaqueness")

    def __init__(
        self,
        config: HashGridConfig,
        quality: Quality,
        seed: int,
        device: torch.device | str = "cpu",
        on_chunk: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_chunk` is called whenever the field is looked up, at most for a chunk of rays; may cancel by raising."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.field = Field(SpaceTimeHash(config)).to(device)
        self.field.encoding.register_forward_pre_hook(lambda *_: on_chunk())  # densities alone are looked up as well
        self.occupancy, self.quality = Occupancy().to(device), quality
        self.optimizer = torch.optim.AdamW(self.field.parameter_groups(), betas=BETAS, eps=EPSILON)
        self._device = device

    def begin(self, iteration: int, done: float, generator: torch.Generator) -> None:
        """Find out where there is something."""
        self.occupancy.update(self.field, iteration, generator)

    def render(self, cameras: Cameras, generator: torch.Generator) -> Tensor:  # [V, H, W, 4]
        """See `Subject`."""
        rays = rays_of(cameras).to(self._device)
        rendered = render(self.field, self.occupancy, rays, self.quality, jitter=True, generator=generator)
        pictures = torch.cat([rendered.colors, rendered.opacity[:, None]], dim=-1)
        return pictures.view(len(cameras.times), cameras.height, cameras.width, 4)

    def priors(self, draw: Draw, opacity: Tensor, done: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Orientation from the views of one time, as in the public code; the others from all."""
        weights = losses.weights_at(done, 1)
        rays = rays_of(draw.detailed_cameras()).to(self._device)
        detailed = render(
            self.field, self.occupancy, rays, self.quality, with_normals=True, jitter=True, generator=generator
        )
        return {"orientation": weights.orient * losses.orientation(detailed), **_of_opacity(opacity, weights)}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See `Subject`."""
        modules = {"field": self.field, "occupancy": self.occupancy}
        arrays = {
            f"{name}.{key}": tensor.detach().cpu().numpy()
            for name, module in modules.items()
            for key, tensor in module.state_dict().items()
        }
        return {**arrays, **optimizer_arrays(self.optimizer, "adam")}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """See `Subject`."""
        for name, module in {"field": self.field, "occupancy": self.occupancy}.items():
            state = {key: torch.from_numpy(np.array(arrays[f"{name}.{key}"])) for key in module.state_dict()}
            module.load_state_dict(state)
        load_optimizer(self.optimizer, "adam", arrays)


class GaussianSubject:
    """Ours: Gaussians that the views of 4DM have already been fitted to, and their motion, under the same losses.

    Gaussians have no normals to orient; rigidity and smoothness of the motion stand in their place.
    """

    PRIORS = ("rigidity", "smoothness", "sparsity", "opaqueness")

    def __init__(self, clip: Clip, device: torch.device | str = "cpu") -> None:
        self._refined = RefinableClip(clip, device)
        self.optimizer = self._refined.optimizer()
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def begin(self, iteration: int, done: float, generator: torch.Generator) -> None:
        """From the middle on steps become smaller: each iteration pulls elsewhere, and in the end it is to rest."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * min(1.0, 2 * (1 - done))

    def render(self, cameras: Cameras, generator: torch.Generator) -> Tensor:  # [V, H, W, 4]
        """See `Subject`."""
        return self._refined.render(cameras)

    def priors(self, draw: Draw, opacity: Tensor, done: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Motion at the times of the draw and over all."""
        return {
            "rigidity": RIGID_WEIGHT * self._refined.rigidity(draw.cameras.times),
            "smoothness": JERK_WEIGHT * self._refined.jerkiness(),
            **_of_opacity(opacity, losses.weights_at(done, 1)),
        }

    def to_clip(self) -> Clip:
        """As it is now."""
        return self._refined.to_clip()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See `Subject`."""
        tensors = self._refined.parameters()
        arrays = {f"clip.{name}": tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return {**arrays, **optimizer_arrays(self.optimizer, "adam")}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """See `Subject`."""
        with torch.no_grad():
            for name, tensor in self._refined.parameters().items():
                tensor.copy_(torch.from_numpy(np.array(arrays[f"clip.{name}"])))
        load_optimizer(self.optimizer, "adam", arrays)


def _of_opacity(opacity: Tensor, weights: losses.Weights) -> dict[str, Tensor]:
    opaque = losses.opaqueness(opacity) if weights.opaque else opacity.new_zeros(())
    return {"sparsity": weights.sparse * losses.sparsity(opacity), "opaqueness": weights.opaque * opaque}
