# SPDX-License-Identifier: GPL-3.0-or-later
"""Construction of a clip: time-varying Gaussians from pictures of a moving orbit, one view per time.

One view per time leaves the motion open; what decides the views that nobody showed is the order of the work, the
priors, and a guide where there is one. Four stages, each from what the former one found:

1. *Shape*: canonical Gaussians, those of time 0, from the static orbit.
2. *Guide*: the motion that is told (`guide`), at all times at once. No pictures; skipped without it.
3. *Motion, coarse*: small pictures and few Gaussians; the shape is held. Without a guide, times near time 0 come first,
   and the window of times grows from there, so that each pose starts from a neighbour that is already right. Several
   hypotheses are tried; where both sides move alike, pictures in the mirror show the other one (`symmetry`). (The
   motion "hexplane" moves all Gaussians here, and refines the shape with static pictures beside the moving ones.)
4. *Fine*: full pictures and all Gaussians, motion and shape together.

The motion is a series in time that is exactly 0 at time 0 (`motion.TimeBasis`); fast terms are held down by the
spectral prior, stretching by the rigidity of the control points. Without a static orbit the shape comes from the
moving one, its pictures near time 0 weighing most; that is a guess, and a worse start.
"""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from backend.progress import Run
from backend.splatting.checkpoint import Checkpoint, state_key
from backend.splatting.config import MOST_FRAMES, ConstructConfig
from backend.splatting.engine import CPU, Engine
from backend.splatting.fit import Fit, descend, generator, one_torch_thread
from backend.splatting.gaussians import GaussianParameters
from backend.splatting.guide import Guide, SceneFlow, SurfaceMotion, make_guide
from backend.splatting.hypotheses import Trial, kinds_for, lags_for, next_hypothesis
from backend.splatting.inspection import MOVE_CAMERAS, inspect
from backend.splatting.observations import Observations, joined
from backend.splatting.previews import preview_motion, preview_shape
from backend.splatting.scene import Pictures, Scene, draw_views, prepare
from backend.splatting.shape import reference_loss, shape_step, start, start_on_tracks
from backend.splatting.symmetry import Mirror, find_plane
from backend.splatting.tracks import Tracks, make_tracks
from blender_addon.contract.clip import Clip
from blender_addon.contract.surface import SurfaceSamples

ALGORITHM = 12  # counts changes that make older checkpoints useless
CHECKPOINT_NAME = "construct.npz"
SHAPE, GUIDED, COARSE, FINE = STAGES = ("Fitting the shape", "Following the guide", "Fitting the motion", "Refining")
STAGE_SHARES = {SHAPE: 0.25, GUIDED: 0.15, COARSE: 0.3, FINE: 0.3}

GPU_REPORT_STEPS = 10  # a step takes milliseconds there


def construct(
    moving: Observations,
    static: Observations | None,
    surface: SurfaceSamples | None,
    config: ConstructConfig,
    run: Run,
    engine: Engine = CPU,
    told: SceneFlow | SurfaceMotion | None = None,
    remedy: str = MOVE_CAMERAS,
) -> Clip:
    """A clip of the subject that `moving` shows.

    Args:
        moving: pictures at different times, usually one per time; cameras anywhere.
        static: pictures at time 0, or None (see the module's text). Those of another time, of the same size, are taken
            as further moving ones, or where `surface` comes in pieces as what shows it from all sides.
        surface: points on the subject's surface at the time of `static`, or None: the visual hull then serves. Pieces
            of a surface whose faces do not stay the same tell where everything is (`tracks`).
        config: see `ConstructConfig`.
        run: told about progress; `run.folder` keeps a checkpoint, and the next attempt with the same inputs goes on
            from there to the same result. `discard_checkpoint` removes it. Stages are announced with `run.begin`; who
            has stages of their own before or after plans with `STAGE_SHARES`.
        engine: what it runs on (`engine.choose_engine`). On a GPU each iteration looks at all pictures at once. A
            checkpoint of one engine is taken up by another.
        told: what is believed about the movement of the subject's surface, or None. With it the motion is found where
            pictures alone would leave it in the wrong place, and the priors need not be strong.
        remedy: what the user can do where pictures cut off the subject, as the end of a sentence.

    Returns:
        A clip in `config.color_space` and in clip space, one frame per time of `moving`, with `BasisMotion`, or
        `FrameMotion` of a HexPlane. Its provenance tells which hypothesis of the motion won (`hypotheses`); name, fps,
        to_object and the rest of the provenance are left to the caller.

    What is doubtful about the inputs is told by `run.note` (see `inspection`).

    Raises:
        UserError: the inputs show nothing, do not fit together, or no motion can be told from them.
        JobCancelled: by `run`.
    """
    with one_torch_thread():
        checkpoint = Checkpoint(run.folder / CHECKPOINT_NAME, _key(moving, static, surface, told, config))
        frames = len(np.unique(moving.cameras.times))
        known = told if isinstance(told, SurfaceMotion) and config.motion == "bases" else None
        inspected = inspect(moving, static, surface, run, remedy, is_known=known is not None)
        moving, static = (views and views.in_color_space(config.color_space) for views in inspected)
        tracks = _tracks(surface, static, config)
        if static is not None and static.cameras.times.any() and not tracks:
            moving, static = joined([moving, static]), None  # nobody has seen time 0 from all sides
        kinds = {"is_known": known is not None or tracks is not None, "is_guided": told is not None}
        config = config.suited(len(moving.images), frames, **kinds)
        scene = replace(prepare(moving, static, config, frames), known=known, tracks=tracks)
        if engine.is_gpu:
            scene = replace(scene.to(engine.device), config=scene.config.with_whole_batches())
        saved = checkpoint.load()
        if saved is None:
            run.begin(SHAPE)
            if tracks:
                fit = start_on_tracks(scene, [views for views in (static, moving) if views])
            else:
                fit = start(scene, static or moving, static is not None, surface)
        else:
            fit = Fit.from_arrays(saved, scene)
        if fit.stage == 0:
            _fit_shape(fit, scene, checkpoint, run)
        guide = None
        if told and not known:
            guide = make_guide(told, fit.rest_means.cpu().numpy()).to(scene.device)
        if fit.stage == 1:
            _follow_guide(fit, scene, guide, checkpoint, run)
        if fit.stage == 2 and config.motion == "bases" and not (known or tracks):
            _fit_motion(fit, scene, guide, checkpoint, run)
        while fit.stage < 4:
            _fit_both(fit, scene, guide, checkpoint, run)
        checkpoint.save(fit.to_arrays())
        return _to_clip(fit, scene)


def discard_checkpoint(run: Run) -> None:
    """Remove what `construct` keeps for a next attempt; for when its result is safe elsewhere."""
    (run.folder / CHECKPOINT_NAME).unlink(missing_ok=True)


def _tracks(surface: SurfaceSamples | None, static: Observations | None, config: ConstructConfig) -> Tracks | None:
    """Where the surface's bits go, if it is told in pieces. A HexPlane finds its motion in pictures alone."""
    if surface is None or surface.pieces is None or config.motion != "bases":
        return None
    times = int(surface.pieces.times)
    if static is None:
        still = max(range(times), key=lambda time: len(surface.pieces.at(time)[0]))
    else:
        still = round(float(static.cameras.times[0]) * (times - 1))
    return make_tracks(surface.pieces, config.gaussians, still, config.seed)


def _key(
    moving: Observations,
    static: Observations | None,
    surface: SurfaceSamples | None,
    told: SceneFlow | SurfaceMotion | None,
    config: ConstructConfig,
) -> str:
    parts: list = [{"algorithm": ALGORITHM, **asdict(config)}]
    for views in (moving, static):
        cameras = views and (views.cameras.camera_to_world, views.cameras.Ks, views.cameras.times)
        parts += [views.images, *cameras] if views else [None]
    parts += [surface.points, surface.normals] if surface else [None]
    parts += vars(surface.pieces).values() if surface and surface.pieces else [None]
    parts += vars(told).values() if told else [None]
    return state_key(*parts)


# Stages


def _fit_shape(fit: Fit, scene: Scene, checkpoint: Checkpoint, run: Run) -> None:
    """Stage 1: the Gaussians of time 0, from the pictures of time 0."""
    run.begin(SHAPE)
    while fit.step < scene.config.shape_steps:
        shape_step(fit, scene)
        _end_step(fit, scene, scene.config.shape_steps, preview_shape, checkpoint, run)
    fit.end_stage()
    if not scene.tracks:
        fit.rest_means = fit.gaussians.means.detach().clone()
        fit.begin_motion(scene)


def _follow_guide(fit: Fit, scene: Scene, guide: Guide | None, checkpoint: Checkpoint, run: Run) -> None:
    """Stage 2: the motion that the guide believes in, at all its times at once; no pictures yet."""
    config = scene.config
    if guide is not None:
        run.begin(GUIDED)
        few, chosen = _few(fit, scene)
        guide = guide.of(chosen)
        while fit.step < config.guide_steps:
            done = fit.step / config.guide_steps
            share = min(1.0, (fit.step + 1) / 20) * config.final_rate ** max(0.0, 2 * done - 1)
            fit.set_motion_rates(share * config.guide_rate / config.motion_rate)
            error = guide.error(fit.motion.moved(guide.times, few, chosen).means, few.means)
            prior = fit.motion.prior(0.0, generator(fit, config))
            descend(error + config.guide_priors * prior, fit.motion_optimizer)
            _end_step(fit, scene, config.guide_steps, preview_motion, checkpoint, run)
    fit.end_stage()
    fit.renew_motion_optimizer()


def _fit_motion(fit: Fit, scene: Scene, guide: Guide | None, checkpoint: Checkpoint, run: Run) -> None:
    """Stage 3: the motion of a few large Gaussians; without a guide, from time 0 outwards, for each hypothesis."""
    config = scene.config
    run.begin(COARSE)
    few, chosen = _few(fit, scene)
    kinds, lags = kinds_for(scene, few), lags_for(scene)
    plane = find_plane(fit.rest_means.cpu().numpy()) if lags else None
    while hypothesis := next_hypothesis(fit.trials, list(kinds), lags):
        if fit.step == 0 and fit.trials:
            fit.begin_motion(scene, hypothesis, kinds[hypothesis.kind])
        seen = scene if hypothesis.lag is None else scene.and_mirrored(Mirror(plane, hypothesis.lag))
        while fit.step < config.coarse_steps:
            rng = generator(fit, config)
            views = scene.indices(_views_in_window(seen, fit.step, rng))
            moved = fit.motion.moved(seen.times[views], few, chosen)
            fit.set_motion_rates(_motion_share(fit, config))
            loss = seen.moving[0].loss(views, moved, few, scene.coverage)
            loss = loss + fit.motion.prior(_progress(fit, config), rng) + _guide_loss(fit, scene, guide, rng)
            descend(loss, fit.motion_optimizer)
            _end_step(fit, scene, config.coarse_steps, preview_motion, checkpoint, run, len(kinds) + len(lags))
        fit.end_trial(_tried(fit, seen, len(scene.times), few, chosen))
    fit.take_best(scene)
    fit.end_stage()


def _fit_both(fit: Fit, scene: Scene, guide: Guide | None, checkpoint: Checkpoint, run: Run) -> None:
    """Motion and shape together, all Gaussians: stage 4, and for a HexPlane stage 3 as well.

    With a HexPlane it is as in Diffusion4D: static and moving pictures in the coarse stage, moving ones alone in the
    fine one. The paper has no growing window, but without it unseen views lose most of what the motion gains them.
    """
    config, gaussians, coarse = scene.config, fit.gaussians, fit.stage == 2
    pictures, steps = (scene.moving[0], config.coarse_steps) if coarse else (scene.moving[1], config.fine_steps)
    static_chance = float(coarse) if config.motion == "hexplane" else config.static_chance
    run.begin(COARSE if coarse else FINE)
    repeated = scene.has_static and not scene.tracks  # by a moving picture of time 0
    candidates = np.flatnonzero(scene.age > 0) if repeated else np.arange(len(scene.age))
    while fit.step < steps:
        rng = generator(fit, config)
        drawn = _views_in_window(scene, fit.step, rng) if coarse else draw_views(candidates, config.fine_frames, rng)
        views = scene.indices(drawn)
        moved = fit.motion.moved(scene.times[views], gaussians)
        loss = pictures.loss(views, moved, gaussians, scene.coverage)
        loss = loss + fit.motion.prior(_progress(fit, config), rng) + _guide_loss(fit, scene, guide, rng)
        if config.refine_weights:
            loss = loss + config.weight_prior * gaussians.weight_offsets.square().mean()
        if scene.has_static and rng.random() < static_chance:
            loss = loss + 0.5 * reference_loss(fit, scene, scene.reference[1], rng)
        fit.set_motion_rates(_motion_share(fit, config))
        fit.set_shape_rates(config.shape_share * config.final_shape_share ** _progress(fit, config))
        descend(loss, fit.motion_optimizer, fit.shape_optimizer)
        _end_step(fit, scene, steps, preview_motion, checkpoint, run)
    fit.end_stage()


# Parts of a step


def _few(fit: Fit, scene: Scene) -> tuple[GaussianParameters, Tensor]:
    """The Gaussians that stand for all while the motion is fitted alone, and which they are."""
    few, chosen = fit.gaussians.thinned(scene.config.coarse_gaussians, np.random.default_rng((scene.config.seed, 1)))
    return few, scene.indices(chosen)


def _guide_loss(fit: Fit, scene: Scene, guide: Guide | None, rng: np.random.Generator) -> Tensor | float:
    """How far the Gaussians are from where the guide believes them, at some of its times."""
    if guide is None:
        return 0.0
    config = scene.config
    moments = scene.indices(rng.choice(len(guide.times), min(config.guide_times, len(guide.times)), replace=False))
    chosen = scene.indices(rng.choice(len(fit.rest_means), min(config.coarse_gaussians, len(fit.rest_means)), False))
    still, guide = fit.gaussians.picked(chosen), guide.of(chosen, moments)
    error = guide.error(fit.motion.moved(guide.times, still, chosen).means, still.means)
    return config.guide_weight * config.guide_decay ** _progress(fit, config) * error


def _tried(fit: Fit, seen: Scene, given: int, few: GaussianParameters, chosen: Tensor) -> Trial:
    """How wrong the moving pictures look, of which so many are `given`; as many more are these in the mirror."""
    mirrored = fit.hypothesis.lag is not None
    outlines = seen.moving[0].outlines()
    views = torch.arange((2 if mirrored else 1) * given, device=seen.device)

    @torch.no_grad()
    def mean(pictures: Pictures, views: Tensor) -> float:
        errors = []
        for part in views.split(MOST_FRAMES):
            moved = fit.motion.moved(seen.times[part], few, chosen)
            errors.append(float(pictures.loss(part, moved, few, seen.coverage)) * len(part))
        return sum(errors) / len(views)

    own = mean(outlines, views[:given])
    other = mean(outlines, views[given:]) if mirrored else 0.0
    return Trial(fit.hypothesis, mean(seen.moving[0], views), own, other)


def _views_in_window(scene: Scene, step: int, rng: np.random.Generator) -> np.ndarray:
    """Moving pictures for one step of stage 2: none older than the window, its newest twice as often."""
    config, age = scene.config, scene.age
    opened = min(step / max(config.window_share * config.coarse_steps, 1), 1.0)
    window = max(1 + opened * (age.max() - 1), age[age > 0].min())
    candidates = np.flatnonzero((age > 0) & (age <= window + 1e-3))
    if config.coarse_frames >= len(age):
        return candidates
    chance = np.where((age[candidates] > window - 2) & (opened < 1), 2.0, 1.0)
    count = config.coarse_frames
    return rng.choice(candidates, count, replace=len(candidates) < count, p=chance / chance.sum())


def _end_step(
    fit: Fit,
    scene: Scene,
    steps: int,
    preview: Callable[[Fit, Scene], np.ndarray],
    checkpoint: Checkpoint,
    run: Run,
    hypotheses: int = 1,
) -> None:
    """Count a step of a stage with so many `steps` for each of `hypotheses`; tell of it, and save if it is time."""
    fit.step += 1
    if scene.device.type == "cpu" or fit.step % GPU_REPORT_STEPS == 0 or fit.step == steps:
        before = len(fit.trials) * steps if hypotheses > 1 else 0
        run.report(before + fit.step, hypotheses * steps, lambda: preview(fit, scene))
        if checkpoint.is_due():
            checkpoint.save(fit.to_arrays())


def _progress(fit: Fit, config: ConstructConfig) -> float:
    """Share of stages 3 and 4 together that is done."""
    done = fit.step + (config.coarse_steps if fit.stage == 3 else 0)
    return done / (config.coarse_steps + config.fine_steps)


def _motion_share(fit: Fit, config: ConstructConfig) -> float:
    """Of the motion's rates: rises over 30 steps, stays until the window is open, then falls to `final_rate`."""
    open_at = config.window_share * config.coarse_steps / (config.coarse_steps + config.fine_steps)
    falling = max(0.0, _progress(fit, config) - open_at) / (1 - open_at)
    rising = min(1.0, fit.step / 30)  # the optimiser knows nothing yet
    return rising * config.final_rate**falling


@torch.no_grad()
def _to_clip(fit: Fit, scene: Scene) -> Clip:
    gaussians = fit.gaussians
    first = gaussians.at_rest(1)
    if scene.tracks:
        first = fit.motion.moved(scene.frame_times[:1], gaussians)
    quats = torch.nn.functional.normalize(first.quats[0], dim=-1)
    scales = first.scales.expand(1, -1, -1)[0]
    arrays = (first.means[0], quats, scales, gaussians.opacities, gaussians.sh)
    return Clip(
        *(array.cpu().numpy().astype(np.float32).copy() for array in arrays),
        motion=fit.motion.to_clip(scene.frame_times, gaussians),
        color_space=scene.config.color_space,
        provenance={"hypothesis": asdict(fit.hypothesis)},
    )
