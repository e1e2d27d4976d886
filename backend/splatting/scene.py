# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fit is given: pictures in two sizes, how far they are from time 0, and what follows from them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend.splatting.config import ConstructConfig
from backend.splatting.gaussians import GaussianParameters, Moved
from backend.splatting.guide import SurfaceMotion
from backend.splatting.losses import depth_smoothness, image_loss
from backend.splatting.motion import TimeBasis
from backend.splatting.observations import Observations
from backend.splatting.render import render
from backend.splatting.symmetry import Mirror
from backend.splatting.tracks import Tracks

LOOP_SHARE = 0.3  # difference of the ends of a loop, as a share of the largest difference from time 0
LOOP_TOLERANCE = 0.05  # difference of the ends of a loop, as a share of the subject's own area
THIN_AREA = 0.1  # clip space squared
SAME_CAMERA = 1e-3  # largest difference of the matrices of two cameras that count as one


@dataclass(frozen=True)
class Pictures:
    """V pictures of one size, ready to be compared with renderings."""

    images: Tensor  # [V, H, W, 4]
    viewmats: Tensor  # [V, 4, 4]
    Ks: Tensor  # [V, 3, 3]
    colored: Tensor | None = None  # [V] bool: of the others only the outlines count; None where there are no such

    def to(self, device: torch.device) -> "Pictures":
        """The same on another device."""
        return replace(self, **{name: each.to(device) for name, each in vars(self).items() if each is not None})

    def outlines(self) -> "Pictures":
        """The same where nothing but the outlines counts."""
        return replace(self, colored=torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device))

    def and_mirrored(self, mirror: Mirror, others: "Pictures") -> "Pictures":
        """These, then the outlines of these and of `others` in the mirror.

        Outlines alone, as light and markings need not be the same on both sides.
        """
        own, more = ((pictures.images, pictures.viewmats, pictures.Ks) for pictures in (self, others))
        shown = mirror.views(*(torch.cat(pair) for pair in zip(own, more, strict=True)))
        colored = torch.arange(len(self.images) + len(shown[0]), device=self.images.device) < len(self.images)
        return Pictures(*(torch.cat(pair) for pair in zip(own, shown, strict=True)), colored=colored)

    def render(self, views: Tensor | list[int], moved: Moved, looks: GaussianParameters) -> Tensor:
        """Gaussians where they have moved to, opacities and colours those of `looks`, as T of these views see them."""
        height, width = self.images.shape[1:3]
        cameras = self.viewmats[views], self.Ks[views], width, height
        if looks.sh_degree == 0:
            return render(*moved[:3], looks.opacities_at(moved), looks.colors, *cameras)
        return render(*moved[:3], looks.opacities_at(moved), looks.sh, *cameras, sh_degree=looks.sh_degree)

    def loss(self, views: Tensor, moved: Moved, looks: GaussianParameters, coverage: float) -> Tensor:
        """How wrong they look there."""
        colored = None if self.colored is None else self.colored[views]
        return image_loss(self.render(views, moved, looks), self.images[views], coverage, colored)

    def roughness(self, views: Tensor, moved: Moved, looks: GaussianParameters) -> Tensor:
        """How rough their depth is there (`losses.depth_smoothness`)."""
        height, width = self.images.shape[1:3]
        cameras = self.viewmats[views], self.Ks[views], width, height
        drawn = render(*moved[:3], looks.opacities_at(moved), looks.colors.detach(), *cameras, depth=True)
        depth = drawn[..., 4] / drawn[..., 3].clamp(min=1e-3)
        return depth_smoothness(depth, self.images[views], pixel_size(self))


@dataclass(frozen=True)
class Scene:
    """What the fit is given: pictures in two sizes, and what follows from them."""

    config: ConstructConfig
    moving: tuple[Pictures, Pictures]  # coarse, fine
    reference: tuple[Pictures, Pictures]  # pictures that show time 0, or are taken to
    reference_times: Tensor  # [R] of these: 0, but for a surface that is larger later (`tracks`)
    reference_chance: np.ndarray  # [R] how often each is drawn, sum 1
    times: Tensor  # [V] of the moving pictures
    age: np.ndarray  # [V] how far from time 0, round the loop if it is one, in frames
    basis: TimeBasis
    frame_times: Tensor  # [T] of the clip's frames
    coverage: float  # share of a picture that the subject fills
    has_static: bool  # whether `reference` really is of time 0
    known: SurfaceMotion | None = None  # the motion, where nothing of it is left to be found
    tracks: Tracks | None = None  # the same of a surface that has not the same faces at all times

    @property
    def device(self) -> torch.device:
        """Where pictures and times are, and so where the fit is done."""
        return self.times.device

    def to(self, device: torch.device) -> "Scene":
        """The same on another device."""
        pairs = {name: tuple(half.to(device) for half in getattr(self, name)) for name in ("moving", "reference")}
        times = {name: getattr(self, name).to(device) for name in ("times", "reference_times", "frame_times")}
        return replace(self, **pairs, **times)

    def and_mirrored(self, mirror: Mirror) -> "Scene":
        """The same with all pictures in the mirror, too, at the times at which the other side is so.

        First come those of the moving pictures, then, where there are any, those of time 0.
        """
        moving = []
        for pictures, reference in zip(self.moving, self.reference, strict=True):
            still = slice(None) if self.has_static else slice(0)
            others = Pictures(*(tensor[still] for tensor in (reference.images, reference.viewmats, reference.Ks)))
            moving.append(pictures.and_mirrored(mirror, others))
        shown = torch.nn.functional.pad(self.times, (0, len(moving[0].images) - 2 * len(self.times)))
        times = torch.cat([self.times, mirror.times(shown)])
        age = ages(times, len(self.frame_times), self.basis.loop)
        return replace(self, moving=tuple(moving), times=times, age=age)

    def indices(self, views: np.ndarray) -> Tensor:  # [T] int64
        """Which views, as an index of tensors on the scene's device; nobody waits for the device."""
        return torch.from_numpy(views).to(self.device, non_blocking=True)


def prepare(moving: Observations, static: Observations | None, config: ConstructConfig, frames: int) -> Scene:
    """Make of pictures, inspected and in the fit's color space, what the stages need for a clip of `frames` frames."""
    reference = moving if static is None else static
    loop = is_loop(moving, static)
    if not ages(moving.times, frames, loop).any():
        loop = False  # nothing lies between the two ends
    # No more terms than the frames can tell apart.
    basis = TimeBasis(loop, harmonics=max(1, min(config.harmonics, (frames - 1) // 2)))
    age = ages(moving.times, frames, loop)
    chance = np.ones(len(reference.images))
    if static is None:
        chance = _trust_in_moving(age)
    sizes = config.coarse_pixels, config.fine_pixels
    return Scene(
        config=config,
        moving=tuple(_at_size(moving, pixels) for pixels in sizes),
        reference=tuple(_at_size(reference, pixels) for pixels in sizes),
        reference_times=reference.times,
        reference_chance=chance / chance.sum(),
        times=moving.times,
        age=age,
        basis=basis,
        frame_times=torch.linspace(0, 1, frames),
        coverage=max(min(_coverage(moving), _coverage(reference)), _thin(moving)),
        has_static=static is not None,
    )


def ages(times: Tensor, frames: int, loop: bool) -> np.ndarray:  # [V] 0..1 -> [V] frames
    """How far from time 0, round the loop if it is one."""
    steps = times.cpu() * (frames - 1)
    return (torch.minimum(steps, frames - 1 - steps) if loop else steps).numpy()


def is_loop(moving: Observations, static: Observations | None = None) -> bool:
    """Whether the last moment looks like the first one, as far as can be told.

    A picture of the last time is compared with one of time 0 (of either orbit) from the same camera. They may differ
    by a little, or by some of the most that any picture differs from time 0: a cycle whose last step is left out is
    nearer to a loop than to a motion that ends anywhere. Where no two cameras coincide the motion counts as one that
    does not loop.
    """
    first = [views for views in (moving, static) if views is not None and _alike(views, moving)]
    last = int(moving.times.argmax())
    ends = _difference(moving, last, first)
    if moving.times[last] <= 0 or ends is None:
        return False
    difference, area = ends
    changes = [found[0] for view in range(len(moving.times)) if (found := _difference(moving, view, first))]
    return difference < max(LOOP_TOLERANCE * area, LOOP_SHARE * max(changes))


def _alike(views: Observations, others: Observations) -> bool:
    return views.images.shape[1:] == others.images.shape[1:]


def _difference(moving: Observations, view: int, first: list[Observations]) -> tuple[float, float] | None:
    """How much a moving picture differs from one of time 0 by the same camera, and the subject's area there."""
    for views in first:
        same = (views.times == 0) & (views.viewmats - moving.viewmats[view]).abs().amax(dim=(1, 2)).lt(SAME_CAMERA)
        same &= (views.Ks - moving.Ks[view]).abs().amax(dim=(1, 2)).lt(SAME_CAMERA * moving.cameras.width)
        for still in torch.nonzero(same).flatten():
            area = float(views.images[still, ..., 3].mean())
            return float((views.images[still] - moving.images[view]).abs().mean()), area
    return None


def draw_views(
    candidates: np.ndarray, count: int, rng: np.random.Generator, chance: np.ndarray | None = None
) -> np.ndarray:  # [min(count, V)]
    """`count` different views, drawn by their chance; all of them where there are no more."""
    return rng.choice(candidates, min(count, len(candidates)), replace=False, p=chance)


def _trust_in_moving(age: np.ndarray) -> np.ndarray:  # [V] frames -> [V]
    """How much each moving picture says about time 0; those of other times still show sides that none else shows."""
    return np.maximum(1 - age / max(age.max(), 1e-9), 0.1)


def _thin(views: Observations) -> float:
    """The share of a picture that a thin subject fills; seen edge-on, less, but then too its motion needs priors."""
    height, width = views.images.shape[1:3]
    return THIN_AREA / (pixel_size(views) ** 2 * height * width)


def _coverage(views: Observations) -> float:
    return float(views.images[..., 3].mean())


def _at_size(views: Observations, pixels: int) -> Pictures:
    """The pictures made smaller, if need be, so that the longer side has at most `pixels`."""
    height, width = views.images.shape[1:3]
    share = min(pixels / max(height, width), 1.0)
    new_height, new_width = max(round(height * share), 1), max(round(width * share), 1)
    images = torch.nn.functional.interpolate(views.images.permute(0, 3, 1, 2), (new_height, new_width), mode="area")
    scale = torch.tensor([new_width / width, new_height / height, 1.0])
    return Pictures(images.permute(0, 2, 3, 1).contiguous(), views.viewmats, views.Ks * scale[:, None])


def pixel_size(pictures: Pictures | Observations) -> float:
    """How large a pixel is at the subject, clip space: the median over the views."""
    distances = torch.linalg.inv(pictures.viewmats)[:, :3, 3].norm(dim=-1)
    return float((distances / pictures.Ks[:, 0, 0]).median())
