# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape: canonical Gaussians, those of time 0, from pictures of time 0. The first stage of construction."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from backend.splatting.config import ConstructConfig
from backend.splatting.densify import densify, shake
from backend.splatting.fit import Fit, descend, generator, one_torch_thread
from backend.splatting.gaussians import GaussianParameters, discs, sample_colors, sample_track_colors
from backend.splatting.observations import Observations
from backend.splatting.scene import Pictures, Scene, draw_views, pixel_size, prepare
from backend.splatting.spread import spread_samples
from backend.splatting.visual_hull import visual_hull
from blender_addon.contract.surface import SurfaceSamples

MOVING_AGREEMENT = 0.8  # of silhouettes that moved, on what belongs to the subject
PIXEL_BLUR = 0.3**0.5  # standard deviation in pixels of the fine pictures, that of the usual rasterisers' filter
USUAL_SCALE = 0.01  # of Gaussians, clip space
DENSIFY_SPAN = 0.1, 0.8  # of the iterations, in which it densifies; what came last has the rest to settle


def start(scene: Scene, reference: Observations, still: bool, surface: SurfaceSamples | None) -> Fit:
    """Discs on the subject's surface, coloured by the pictures, that do not move."""
    config, chance = scene.config, scene.reference_chance
    rng = np.random.default_rng(config.seed)
    count = max(round((config.start_share if config.densify_times else 1.0) * config.gaussians), 1)
    if surface is not None:
        points, normals = spread_samples(surface.points, surface.normals, count, rng)
    else:
        points, normals = visual_hull(reference, chance, 1.0 if still else MOVING_AGREEMENT, count, rng)
    colors = sample_colors(points, normals, reference, chance)
    gaussians = discs(points, normals, colors, config.sh_degree).to(scene.device)
    gaussians.blur = PIXEL_BLUR * pixel_size(scene.reference[1])
    return Fit(gaussians)


def start_on_tracks(scene: Scene, sets: list[Observations]) -> Fit:
    """Discs on the tracks of the scene, coloured by the pictures of the times at which each is there.

    They move from the start.
    """
    tracks, normals = scene.tracks, scene.tracks.normals()[scene.tracks.homes, np.arange(len(scene.tracks.homes))]
    points, _ = tracks.at_home()
    colors = sample_track_colors(tracks, sets)
    gaussians = discs(points, normals, colors, scene.config.sh_degree, tracks.spacing).to(scene.device)
    gaussians.blur = PIXEL_BLUR * pixel_size(scene.reference[1])
    fit = Fit(gaussians, rest_means=gaussians.means.detach().clone())
    fit.begin_motion(scene)
    return fit


def shape_step(fit: Fit, scene: Scene) -> None:
    """One iteration; counting it is left to the caller."""
    config, rng = scene.config, generator(fit, scene.config)
    fit.set_shape_rates(1.0, harmonics=fit.step >= 0.5 * config.shape_steps)
    pictures = scene.reference[0 if fit.step < 0.3 * config.shape_steps else 1]
    loss = reference_loss(fit, scene, pictures, rng) + _shape_prior(fit, scene, pictures, rng)
    descend(loss, fit.shape_optimizer)
    _densify(fit, config, rng)


def fit_still(
    static: Observations, surface: SurfaceSamples, config: ConstructConfig, check: Callable[[], None]
) -> GaussianParameters:
    """The Gaussians of a subject that does not move, on the CPU. `check` is called after each iteration."""
    scene = prepare(static, static, config, frames=1)
    fit = start(scene, static, True, surface)
    with one_torch_thread():
        while fit.step < config.shape_steps:
            shape_step(fit, scene)
            fit.step += 1
            check()
    return fit.gaussians.picked(torch.arange(len(fit.gaussians.means)))


def reference_loss(fit: Fit, scene: Scene, pictures: Pictures, rng: np.random.Generator) -> Tensor:
    """How wrong the Gaussians of time 0 look in some pictures of it."""
    gaussians, count = fit.gaussians, scene.config.shape_frames
    views = scene.indices(draw_views(np.arange(len(pictures.images)), count, rng, scene.reference_chance))
    return pictures.loss(views, fit.in_reference(scene, views), gaussians, scene.coverage)


def _shape_prior(fit: Fit, scene: Scene, pictures: Pictures, rng: np.random.Generator) -> Tensor:
    """Against opacity and size, the regularizers of Kheradmand et al. 2024 (Eq. 10), and against rough depth."""
    config, gaussians = scene.config, fit.gaussians
    sizes = gaussians.scales.mean() / USUAL_SCALE
    prior = config.opacity_weight * gaussians.opacities.mean() + config.scale_weight * sizes
    if config.depth_weight:
        views = scene.indices(draw_views(np.arange(len(pictures.images)), config.shape_frames, rng))
        prior = prior + config.depth_weight * pictures.roughness(views, fit.in_reference(scene, views), gaussians)
    return prior


def _densify(fit: Fit, config: ConstructConfig, rng: np.random.Generator) -> None:
    """Let the Gaussians of stage 1 go where they are needed, and grow to their number (`densify`)."""
    if config.langevin:
        shake(fit.gaussians, config.langevin, rng)
    done = [_densified(step, config) for step in (fit.step, fit.step + 1)]
    if done[1] > done[0]:
        share = config.start_share ** (1 - done[1] / config.densify_times)
        densify(fit.gaussians, fit.shape_optimizer, round(share * config.gaussians), rng)


def _densified(step: int, config: ConstructConfig) -> int:
    """How many of `densify_times` lie before a step of stage 1."""
    begin, end = DENSIFY_SPAN
    return int(config.densify_times * min(max((step / config.shape_steps - begin) / (end - begin), 0.0), 1.0) + 1e-6)
