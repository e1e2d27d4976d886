# SPDX-License-Identifier: GPL-3.0-or-later
"""Construction of a clip: time-varying Gaussians from pictures of a moving orbit, one view per time.

One view per time leaves the motion open; what decides the views that nobody showed is the order of the work and the
priors. Three stages, each from what the former one found:

1. *Shape*: canonical Gaussians, those of time 0, from the static orbit.
2. *Motion, coarse*: small pictures and few Gaussians; the shape is held. Times near time 0 come first, and the window
   of times grows from there, so that each pose starts from a neighbour that is already right.
3. *Fine*: full pictures and all Gaussians, motion and shape together.

The motion is a series in time that is exactly 0 at time 0 (`motion.TimeBasis`); fast terms are held down by the
spectral prior, stretching by the rigidity of the control points. Without a static orbit the shape comes from the
moving one, its pictures near time 0 weighing most; that is a guess, and a worse start.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend.progress import Run, UserError
from backend.splatting.checkpoint import Checkpoint, load_optimizer, optimizer_arrays, state_key
from backend.splatting.control_points import ControlPoints, make_control_points
from backend.splatting.gaussians import GaussianParameters, discs, sample_colors, spread_samples
from backend.splatting.losses import image_loss, rigidity, spectral_prior
from backend.splatting.motion import (
    TimeBasis,
    blend,
    effective_coefficients,
    no_motion,
    poses_at,
    to_basis_motion,
)
from backend.splatting.observations import Observations
from backend.splatting.render import render
from backend.splatting.visual_hull import visual_hull
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import SurfaceSamples
from blender_addon.contract.requests import GAUSSIANS_BY_PRESET

ALGORITHM = 4  # counts changes that make older checkpoints useless
CHECKPOINT_NAME = "construct.npz"
SHAPE, COARSE, FINE = STAGES = ("Fitting the shape", "Fitting the motion", "Refining")
STAGE_SHARES = {SHAPE: 0.25, COARSE: 0.4, FINE: 0.35}

LOOP_TOLERANCE = 0.05  # difference of the ends of a loop, as a share of the subject's own area
SAME_CAMERA = 1e-3  # largest difference of the matrices of two cameras that count as one
MOVING_AGREEMENT = 0.8  # of silhouettes that moved, on what belongs to the subject
MINIMAL_COVERAGE = 5e-4  # of the picture; less than 8 pixels of 128 x 128 cannot be fitted
# Adam's steps for the shape; those of `GaussianParameters`, clip space and logarithms
SHAPE_RATES = {"means": 4e-4, "quats": 4e-3, "log_scales": 6e-3, "opacity_logits": 3e-2, "color_logits": 2e-2}
BETAS = (0.9, 0.99)
PIXEL_BLUR = 0.3**0.5  # standard deviation in pixels of the fine pictures, that of the usual rasterisers' filter
PREVIEW_STEPS = 5  # steps of the fit from one previewed view to the next
PREVIEW_MARGIN = 3  # pixels round the subject in previews
PREVIEW_GREY = 0.22  # background of previews, sRGB-coded


@dataclass(frozen=True)
class ConstructConfig:
    """How a clip is constructed. The figures were chosen by what they do to unseen views."""

    gaussians: int = 5_000  # how many make up the subject
    seed: int = 0  # of all that is drawn by chance
    control_points: int = 128  # rigid poses that the Gaussians follow
    harmonics: int = 6  # whole cycles per clip of the fastest term of the motion
    shape_steps: int = 250  # iterations of stage 1, one static view each
    coarse_steps: int = 500  # iterations of stage 2, `coarse_frames` pictures each
    fine_steps: int = 250  # iterations of stage 3, one picture each, and sometimes a static view
    coarse_pixels: int = 96  # longer side of the pictures of stage 2 and of the beginning of stage 1
    fine_pixels: int = 128  # longer side of the pictures otherwise, if the orbit has that many
    coarse_gaussians: int = 1_250  # that stand for all in stage 2
    coarse_frames: int = 4  # pictures per iteration of stage 2
    window_share: float = 0.6  # part of stage 2 in which the window of times grows from time 0 to all
    motion_rate: float = 2e-3  # Adam's step for the motion, clip space
    final_rate: float = 0.1  # of all rates, what is left at the end
    spectral_weight: float = 20.0  # against fast terms of the motion, at the start
    spectral_decay: float = 0.25  # what is left of that weight at the end
    rigidity_length: float = 5.0  # against stretching between control points
    rigidity_turn: float = 0.05  # against different turning of neighbours
    rigidity_times: int = 6  # times per iteration at which rigidity is asked for, beside those of the pictures
    shape_share: float = 0.25  # of the rates of stage 1, for the shape in stage 3, falling with the next
    final_shape_share: float = 0.2  # what is left of those at the end
    static_chance: float = 0.25  # of a static view in an iteration of stage 3

    @classmethod
    def for_preset(cls, preset: str, gaussians: int | None = None, seed: int = 0) -> "ConstructConfig":
        """The configuration of `draft`, `preview` or `final`.

        Raises:
            ValueError: there is no such preset.
        """
        if preset not in GAUSSIANS_BY_PRESET:
            raise ValueError(f"There is no preset {preset!r}; there are {', '.join(GAUSSIANS_BY_PRESET)}.")
        config = cls(gaussians=gaussians or GAUSSIANS_BY_PRESET[preset], seed=seed)
        if preset == "draft":
            return replace(config, shape_steps=150, coarse_steps=300, fine_steps=80, coarse_pixels=64, fine_pixels=96)
        if preset == "final":
            return replace(config, shape_steps=400, coarse_steps=700, fine_steps=500, fine_pixels=256)
        return config


@dataclass(frozen=True)
class _Pictures:
    """V pictures of one size, ready to be compared with renderings."""

    images: Tensor  # [V, H, W, 4]
    viewmats: Tensor  # [V, 4, 4]
    Ks: Tensor  # [V, 3, 3]

    def render(self, views: np.ndarray | list[int], means: Tensor, quats: Tensor, looks: GaussianParameters) -> Tensor:
        """Gaussians at means [T, N, 3] and quats [T, N, 4], otherwise as `looks`, as T of these views see them."""
        height, width = self.images.shape[1:3]
        constant = looks.scales, looks.opacities, looks.colors
        return render(means, quats, *constant, self.viewmats[views], self.Ks[views], width, height)

    def loss(
        self, views: np.ndarray, means: Tensor, quats: Tensor, looks: GaussianParameters, coverage: float
    ) -> Tensor:
        """How wrong they look there."""
        return image_loss(self.render(views, means, quats, looks), self.images[views], coverage)


@dataclass(frozen=True)
class _Scene:
    """What the fit is given: pictures in two sizes, and what follows from them."""

    config: ConstructConfig
    moving: tuple[_Pictures, _Pictures]  # coarse, fine
    reference: tuple[_Pictures, _Pictures]  # pictures that show time 0, or are taken to
    reference_chance: np.ndarray  # [R] how often each is drawn, sum 1
    times: Tensor  # [V] of the moving pictures
    age: np.ndarray  # [V] how far from time 0, round the loop if it is one, in frames
    basis: TimeBasis
    frame_times: Tensor  # [T] of the clip's frames
    coverage: float  # share of a picture that the subject fills
    has_static: bool  # whether `reference` really is of time 0


@dataclass
class _Fit:
    """What the fit changes. All of it goes into a checkpoint, so a fit that goes on ends like one that never stopped.

    What is drawn by chance needs no memory: each step draws from its own generator, seeded by its number.
    """

    gaussians: GaussianParameters
    coefficients: Tensor  # [B, 6, J] of the motion
    rest_means: Tensor  # [N, 3] means at the end of stage 1, on which the control points are placed
    stage: int = 0
    step: int = 0  # of the stage, how many are done

    def __post_init__(self) -> None:
        self.gaussians.require_grad()
        self.coefficients = self.coefficients.detach().clone().requires_grad_()
        self.shape_optimizer = self._new_shape_optimizer()
        self.motion_optimizer = torch.optim.Adam([self.coefficients], betas=BETAS)

    def end_stage(self) -> None:
        """Enter the next stage; the shape's optimiser forgets what another stage taught it."""
        self.stage, self.step = self.stage + 1, 0
        self.shape_optimizer = self._new_shape_optimizer()

    def _new_shape_optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [tensor], "name": name} for name, tensor in self.gaussians.tensors().items()]
        return torch.optim.Adam(groups, betas=BETAS, fused=True)

    def to_arrays(self) -> dict[str, np.ndarray]:
        tensors = {**self.gaussians.tensors(), "coefficients": self.coefficients, "rest_means": self.rest_means}
        return {
            **{name: tensor.detach().numpy() for name, tensor in tensors.items()},
            "progress": np.array([self.stage, self.step]),
            "blur": np.array(self.gaussians.blur),
            **optimizer_arrays(self.shape_optimizer, "shape"),
            **optimizer_arrays(self.motion_optimizer, "motion"),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "_Fit":
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if "." not in name}
        stage, step = (int(number) for number in arrays["progress"])
        parameters = {name: tensors[name] for name in SHAPE_RATES}
        gaussians = GaussianParameters(**parameters, blur=float(arrays["blur"]))
        fit = cls(gaussians, tensors["coefficients"], tensors["rest_means"], stage, step)
        load_optimizer(fit.shape_optimizer, "shape", arrays)
        load_optimizer(fit.motion_optimizer, "motion", arrays)
        return fit


def construct(
    moving: Observations,
    static: Observations | None,
    surface: SurfaceSamples | None,
    config: ConstructConfig,
    run: Run,
) -> Clip:
    """A clip of the subject that `moving` shows.

    Args:
        moving: pictures at different times, usually one per time; cameras anywhere.
        static: pictures at time 0, or None (see the module's text).
        surface: points on the subject's surface at time 0, or None: the visual hull then serves.
        config: see `ConstructConfig`.
        run: told about progress; `run.folder` keeps a checkpoint, and the next attempt with the same inputs goes on
            from there to the same result. `discard_checkpoint` removes it. Stages are announced with `run.begin`; who
            has stages of their own before or after plans with `STAGE_SHARES`.

    Returns:
        A clip with `BasisMotion` in sRGB-coded colour, one frame per time of `moving`, in clip space. Name, fps,
        to_object and provenance are left to the caller.

    Raises:
        UserError: the pictures show nothing, or no motion can be told from them.
        JobCancelled: by `run`.
    """
    with _one_torch_thread():
        scene = _prepare(moving, static, config)
        checkpoint = Checkpoint(run.folder / CHECKPOINT_NAME, _key(moving, static, surface, config))
        saved = checkpoint.load()
        if saved is None:
            run.begin(SHAPE)
            fit = _start(scene, static or moving, static is not None, surface)
        else:
            fit = _Fit.from_arrays(saved)
        if fit.stage == 0:
            _fit_shape(fit, scene, checkpoint, run)
        control = make_control_points(fit.rest_means.numpy(), config.control_points)
        if fit.stage == 1:
            _fit_motion(fit, scene, control, checkpoint, run)
        if fit.stage == 2:
            _fit_both(fit, scene, control, checkpoint, run)
        checkpoint.save(fit.to_arrays())
        return _to_clip(fit, scene, control)


def discard_checkpoint(run: Run) -> None:
    """Remove what `construct` keeps for a next attempt; for when its result is safe elsewhere."""
    (run.folder / CHECKPOINT_NAME).unlink(missing_ok=True)


# Preparation


def _prepare(moving: Observations, static: Observations | None, config: ConstructConfig) -> _Scene:
    frame_times = torch.unique(moving.times)  # sorted
    if len(frame_times) < 2:
        raise UserError(
            "orbit_without_time",
            "The pictures are all of the same time, so there is no motion to construct.",
            "Give a moving orbit, whose pictures have different times.",
        )
    reference = moving if static is None else static
    coverage = min(_coverage(moving), _coverage(reference))
    if coverage < MINIMAL_COVERAGE:
        raise UserError(
            "orbit_empty",
            "The pictures of the orbit show nothing: they are transparent all over.",
            "Check that the object is visible in renders and stands where the cameras look.",
        )
    loop = is_loop(moving, static)
    frames = len(frame_times)
    # No more terms than the frames can tell apart.
    basis = TimeBasis(loop, harmonics=max(1, min(config.harmonics, (frames - 1) // 2)))
    steps = moving.times * (frames - 1)
    age = (torch.minimum(steps, frames - 1 - steps) if loop else steps).numpy()
    chance = np.ones(len(reference.images))
    if static is None:
        chance = _trust_in_moving(age)
    sizes = config.coarse_pixels, config.fine_pixels
    return _Scene(
        config=config,
        moving=tuple(_at_size(moving, pixels) for pixels in sizes),
        reference=tuple(_at_size(reference, pixels) for pixels in sizes),
        reference_chance=chance / chance.sum(),
        times=moving.times,
        age=age,
        basis=basis,
        frame_times=torch.linspace(0, 1, frames),
        coverage=coverage,
        has_static=static is not None,
    )


def is_loop(moving: Observations, static: Observations | None = None) -> bool:
    """Whether the last moment looks like the first one, as far as can be told.

    A picture of the last time is compared with one of time 0 (of either orbit) from the same camera. Where no two
    cameras coincide the motion counts as one that does not loop.
    """
    last = int(moving.times.argmax())
    if moving.times[last] <= 0:
        return False
    for views in (moving, static):
        if views is None or views.images.shape != (len(views.images), *moving.images.shape[1:]):
            continue
        same = (views.times == 0) & (views.viewmats - moving.viewmats[last]).abs().amax(dim=(1, 2)).lt(SAME_CAMERA)
        same &= (views.Ks - moving.Ks[last]).abs().amax(dim=(1, 2)).lt(SAME_CAMERA * moving.cameras.width)
        for first in torch.nonzero(same).flatten():
            area = float(views.images[first, ..., 3].mean())
            difference = float((views.images[first] - moving.images[last]).abs().mean())
            return difference < LOOP_TOLERANCE * area
    return False


def _trust_in_moving(age: np.ndarray) -> np.ndarray:  # [V] frames -> [V]
    """How much each moving picture says about time 0; those of other times still show sides that none else shows."""
    return np.maximum(1 - age / max(age.max(), 1e-9), 0.1)


def _coverage(views: Observations) -> float:
    return float(views.images[..., 3].mean())


def _at_size(views: Observations, pixels: int) -> _Pictures:
    """The pictures made smaller, if need be, so that the longer side has at most `pixels`."""
    height, width = views.images.shape[1:3]
    share = min(pixels / max(height, width), 1.0)
    new_height, new_width = max(round(height * share), 1), max(round(width * share), 1)
    images = torch.nn.functional.interpolate(views.images.permute(0, 3, 1, 2), (new_height, new_width), mode="area")
    scale = torch.tensor([new_width / width, new_height / height, 1.0])
    return _Pictures(images.permute(0, 2, 3, 1).contiguous(), views.viewmats, views.Ks * scale[:, None])


def _pixel_size(pictures: _Pictures) -> float:
    """How large a pixel is at the subject, clip space: the median over the views."""
    distances = torch.linalg.inv(pictures.viewmats)[:, :3, 3].norm(dim=-1)
    return float((distances / pictures.Ks[:, 0, 0]).median())


def _key(
    moving: Observations, static: Observations | None, surface: SurfaceSamples | None, config: ConstructConfig
) -> str:
    parts: list = [{"algorithm": ALGORITHM, **asdict(config)}]
    for views in (moving, static):
        cameras = views and (views.cameras.camera_to_world, views.cameras.Ks, views.cameras.times)
        parts += [views.images, *cameras] if views else [None]
    parts += [surface.points, surface.normals] if surface else [None]
    return state_key(*parts)


def _start(scene: _Scene, reference: Observations, still: bool, surface: SurfaceSamples | None) -> _Fit:
    """Discs on the subject's surface, coloured by the pictures, that do not move."""
    config, chance = scene.config, scene.reference_chance
    rng = np.random.default_rng(config.seed)
    if surface is not None:
        points, normals = spread_samples(surface.points, surface.normals, config.gaussians, rng)
    else:
        points, normals = visual_hull(reference, chance, 1.0 if still else MOVING_AGREEMENT, config.gaussians, rng)
    gaussians = discs(points, normals, sample_colors(points, normals, reference, chance))
    gaussians.blur = PIXEL_BLUR * _pixel_size(scene.reference[1])
    bases = min(config.control_points, config.gaussians)
    return _Fit(gaussians, no_motion(bases, scene.basis), gaussians.means)


# Stages


def _fit_shape(fit: _Fit, scene: _Scene, checkpoint: Checkpoint, run: Run) -> None:
    """Stage 1: the Gaussians of time 0, from the pictures of time 0."""
    config, gaussians = scene.config, fit.gaussians
    run.begin(SHAPE)
    _set_shape_rates(fit, share=1.0)
    while fit.step < config.shape_steps:
        rng = _generator(fit, config)
        pictures = scene.reference[0 if fit.step < 0.3 * config.shape_steps else 1]
        _descend(_reference_loss(fit, scene, pictures, rng), fit.shape_optimizer)
        fit.step += 1
        run.report(fit.step, config.shape_steps, lambda: _preview_shape(fit, scene))
        if checkpoint.is_due():
            checkpoint.save(fit.to_arrays())
    fit.end_stage()
    fit.rest_means = gaussians.means.detach().clone()


def _fit_motion(fit: _Fit, scene: _Scene, control: ControlPoints, checkpoint: Checkpoint, run: Run) -> None:
    """Stage 2: the motion of a few large Gaussians, from time 0 outwards."""
    config, pictures = scene.config, scene.moving[0]
    run.begin(COARSE)
    few, chosen = fit.gaussians.thinned(config.coarse_gaussians, np.random.default_rng((config.seed, 1)))
    index, weights = control.index[chosen], control.weights[chosen]
    while fit.step < config.coarse_steps:
        rng = _generator(fit, config)
        views = _views_in_window(scene, fit.step, rng)
        poses, priors = _poses_and_priors(fit, scene, control, views, rng)
        means, quats = blend(poses, few.means, few.quats, index, weights)
        fit.motion_optimizer.param_groups[0]["lr"] = _motion_rate(fit, config)
        _descend(pictures.loss(views, means, quats, few, scene.coverage) + priors, fit.motion_optimizer)
        fit.step += 1
        run.report(fit.step, config.coarse_steps, lambda: _preview_motion(fit, scene, control))
        if checkpoint.is_due():
            checkpoint.save(fit.to_arrays())
    fit.end_stage()


def _fit_both(fit: _Fit, scene: _Scene, control: ControlPoints, checkpoint: Checkpoint, run: Run) -> None:
    """Stage 3: motion and shape together, all Gaussians."""
    config, pictures, gaussians = scene.config, scene.moving[1], fit.gaussians
    run.begin(FINE)
    candidates = np.flatnonzero(scene.age > 0) if scene.has_static else np.arange(len(scene.age))
    while fit.step < config.fine_steps:
        rng = _generator(fit, config)
        views = rng.choice(candidates, 1)
        poses, priors = _poses_and_priors(fit, scene, control, views, rng)
        means, quats = blend(poses, gaussians.means, gaussians.quats, control.index, control.weights)
        loss = pictures.loss(views, means, quats, gaussians, scene.coverage) + priors
        if scene.has_static and rng.random() < config.static_chance:
            loss = loss + 0.5 * _reference_loss(fit, scene, scene.reference[1], rng)
        fit.motion_optimizer.param_groups[0]["lr"] = _motion_rate(fit, config)
        _set_shape_rates(fit, config.shape_share * config.final_shape_share ** _progress(fit, config))
        _descend(loss, fit.motion_optimizer, fit.shape_optimizer)
        fit.step += 1
        run.report(fit.step, config.fine_steps, lambda: _preview_motion(fit, scene, control))
        if checkpoint.is_due():
            checkpoint.save(fit.to_arrays())
    fit.end_stage()


# Parts of a step


def _generator(fit: _Fit, config: ConstructConfig) -> np.random.Generator:
    return np.random.default_rng((config.seed, fit.stage, fit.step))


def _descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def _reference_loss(fit: _Fit, scene: _Scene, pictures: _Pictures, rng: np.random.Generator) -> Tensor:
    """How wrong the Gaussians of time 0 look in one picture of it."""
    gaussians = fit.gaussians
    views = rng.choice(len(scene.reference_chance), 1, p=scene.reference_chance)
    return pictures.loss(views, gaussians.means[None], gaussians.quats[None], gaussians, scene.coverage)


def _poses_and_priors(
    fit: _Fit, scene: _Scene, control: ControlPoints, views: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Poses at the times of `views`, and what the motion as a whole costs; rigidity is asked for at times by chance."""
    config = scene.config
    effective = effective_coefficients(fit.coefficients, scene.basis)
    other_times = torch.from_numpy(rng.random(config.rigidity_times, np.float32))
    poses = poses_at(effective, scene.basis, torch.cat([scene.times[views], other_times]), control)
    spectral_weight = config.spectral_weight * config.spectral_decay ** _progress(fit, config)
    priors = spectral_weight * spectral_prior(effective, scene.basis)
    priors = priors + rigidity(poses[len(views) :], control, config.rigidity_length, config.rigidity_turn)
    return poses[: len(views)], priors


def _views_in_window(scene: _Scene, step: int, rng: np.random.Generator) -> np.ndarray:
    """Moving pictures for one step of stage 2: none older than the window, its newest twice as often."""
    config, age = scene.config, scene.age
    opened = min(step / max(config.window_share * config.coarse_steps, 1), 1.0)
    window = max(1 + opened * (age.max() - 1), age[age > 0].min())
    candidates = np.flatnonzero((age > 0) & (age <= window + 1e-3))
    chance = np.where((age[candidates] > window - 2) & (opened < 1), 2.0, 1.0)
    count = config.coarse_frames
    return rng.choice(candidates, count, replace=len(candidates) < count, p=chance / chance.sum())


def _progress(fit: _Fit, config: ConstructConfig) -> float:
    """Share of stages 2 and 3 together that is done."""
    done = fit.step + (config.coarse_steps if fit.stage == 2 else 0)
    return done / (config.coarse_steps + config.fine_steps)


def _motion_rate(fit: _Fit, config: ConstructConfig) -> float:
    """Rises over 30 steps, stays until the window is open, then falls to `final_rate`."""
    open_at = config.window_share * config.coarse_steps / (config.coarse_steps + config.fine_steps)
    falling = max(0.0, _progress(fit, config) - open_at) / (1 - open_at)
    rising = min(1.0, fit.step / 30) if fit.stage == 1 else 1.0
    return config.motion_rate * rising * config.final_rate**falling


def _set_shape_rates(fit: _Fit, share: float) -> None:
    for group in fit.shape_optimizer.param_groups:
        group["lr"] = share * SHAPE_RATES[group["name"]]


# Pictures and results


@torch.no_grad()
def _preview_shape(fit: _Fit, scene: _Scene) -> np.ndarray:  # [h, w, 3] uint8
    """A picture of time 0 beside how it is drawn now."""
    pictures, gaussians = scene.reference[1], fit.gaussians
    view = [fit.step // PREVIEW_STEPS % len(pictures.images)]
    drawn = pictures.render(view, gaussians.means[None], gaussians.quats[None], gaussians)
    return _side_by_side(pictures, view[0], drawn[0])


@torch.no_grad()
def _preview_motion(fit: _Fit, scene: _Scene, control: ControlPoints) -> np.ndarray:  # [h, w, 3] uint8
    """A moving picture beside how it is drawn now."""
    pictures, gaussians = scene.moving[1], fit.gaussians
    view = [fit.step // PREVIEW_STEPS % len(pictures.images)]
    effective = effective_coefficients(fit.coefficients, scene.basis)
    poses = poses_at(effective, scene.basis, scene.times[view], control)
    means, quats = blend(poses, gaussians.means, gaussians.quats, control.index, control.weights)
    return _side_by_side(pictures, view[0], pictures.render(view, means, quats, gaussians)[0])


def _side_by_side(pictures: _Pictures, view: int, drawn: Tensor) -> np.ndarray:  # [h, w, 3] uint8
    """One of the pictures and what is drawn of it, cut to where the subject is in any of them.

    Tall subjects stand beside each other, wide ones lie above each other.
    """
    seen = pictures.images[..., 3].amax(dim=0) > 0.02
    lines = [torch.nonzero(seen.any(dim=axis)).flatten() for axis in (1, 0)]  # rows, columns
    part = tuple(slice(max(int(line[0]) - PREVIEW_MARGIN, 0), int(line[-1]) + 1 + PREVIEW_MARGIN) for line in lines)
    cut = [picture[part] for picture in (pictures.images[view], drawn)]
    height, width = cut[0].shape[:2]
    both = torch.cat(cut, dim=0 if width > height else 1)
    on_grey = both[..., :3] + PREVIEW_GREY * (1 - both[..., 3:])
    return (on_grey.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


@torch.no_grad()
def _to_clip(fit: _Fit, scene: _Scene, control: ControlPoints) -> Clip:
    gaussians = fit.gaussians
    effective = effective_coefficients(fit.coefficients, scene.basis)
    quats = torch.nn.functional.normalize(gaussians.quats, dim=-1)
    arrays = (gaussians.means, quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    return Clip(
        *(array.numpy().astype(np.float32).copy() for array in arrays),
        motion=to_basis_motion(effective, scene.basis, scene.frame_times, control),
        color_space="srgb",
    )


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The tensors here are small: more threads of torch's own would spin beside the rasteriser's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
