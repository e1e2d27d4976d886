# SPDX-License-Identifier: GPL-3.0-or-later
"""4Diffusion: from a monocular video to a clip (Zhang et al., NeurIPS 2024, arXiv 2405.20674).

frames -> 4DM: videos of four views (section 3.2)
-> dynamic radiance field under 4D-aware score distillation, the anchor loss and priors (section 3.3)
-> its renders from all sides and its surface -> clip

The last line is ours: the paper ends with the field. Ours, too, is the representation "gaussians": construction from
the views of 4DM, then the same losses on the Gaussians themselves; much faster, and a departure from the paper.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend.guidance import sds
from backend.guidance.schedules import linear_schedule
from backend.nerf import losses, to_surface
from backend.nerf.field import PUBLISHED, SMALL
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.rendering import Quality
from backend.pipelines import clips
from backend.pipelines.diffusion4d import observations
from backend.pipelines.fourdiffusion_draws import Draw, draw
from backend.pipelines.fourdiffusion_guidance import FourDMGuidance, Guidance, conditions_of
from backend.pipelines.fourdiffusion_subjects import FieldSubject, GaussianSubject, Subject
from backend.pipelines.memory_plan import Networks
from backend.pipelines.multi_view_video import DISTANCE, FOV, STEPS, VIEWS, MultiViewVideo, generate_views
from backend.progress import Run, UserError
from backend.splatting.checkpoint import Checkpoint, state_key
from backend.splatting.construct import STAGE_SHARES
from backend.splatting.observations import Observations
from blender_addon.contract.arrays import BadFileError, read_arrays, write_arrays
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import Cameras, SurfaceSamples
from blender_addon.contract.requests import GAUSSIANS_BY_PRESET

PIPELINE = "4diffusion"
VIEWING, FITTING, RENDERING = "Inventing the other views", "Following the video model", "Looking at the field"
VIEWS_NAME, FIT_NAME = "views.npz", "fit.npz"
ALGORITHM = 1  # counts changes that make older checkpoints useless
REPRESENTATIONS = ("nerf", "gaussians")
FRAMES = 8, 64  # least and most that a clip has
DEPARTURE = "Gaussians were optimised in place of the paper's radiance field."

PUBLISHED_ITERATIONS = losses.ITERATIONS
ANNEALED = sds.ANNEALED / PUBLISHED_ITERATIONS  # all milestones are shares of the iterations, so that fewer scale
MILESTONES = (0.0, 5_000 / PUBLISHED_ITERATIONS, 10_000 / PUBLISHED_ITERATIONS)  # of the renders' resolution

AZIMUTHS, ELEVATIONS, MANY_FRAMES = 8, (10.0, -15.0, 35.0), 16  # of the renders that a clip is constructed from
SURFACE_SAMPLES = 20_000
CURVE_POINTS = 200  # of each loss in the provenance


@dataclass(frozen=True)
class Settings:
    """How a clip is made. The defaults are the paper's and its code's."""

    representation: str = "nerf"  # one of REPRESENTATIONS
    iterations: int = PUBLISHED_ITERATIONS  # of the fit; 0: construction from the views of 4DM, no distillation
    seed: int = 0
    steps: int = STEPS  # of 4DM's sampling
    elevation: float = 0.0  # of the views of 4DM, degrees
    pixels: tuple[int, int, int] = (64, 192, 256)  # side of the renders, from each of MILESTONES on
    guidance: float = sds.GUIDANCE
    rescale: float = sds.RESCALE
    sds_weight: float = 1.0  # 0: an ablation
    anchor_weight: float = 1.0  # 0: an ablation
    grid: HashGridConfig = PUBLISHED
    quality: Quality = Quality()  # noqa: RUF009 - frozen
    grid_pixels: int = 192  # of the renders that a clip is constructed from
    construction: str = "final"  # preset
    gaussians: int | None = None  # None: as many as the preset has

    @classmethod
    def for_preset(cls, preset: str, representation: str = "nerf", seed: int = 0) -> "Settings":
        """The settings of `draft`, `preview`, `final` or `published`.

        Raises:
            ValueError: there is no such preset or representation.
        """
        if preset not in PRESETS or representation not in REPRESENTATIONS:
            raise ValueError(f"there is no preset {preset!r} of {representation!r}")
        settings = replace(PRESETS[preset], representation=representation, seed=seed)
        if representation == "gaussians":  # begins where the views of 4DM have led it
            settings = replace(settings, iterations=settings.iterations // 10)
        return settings

    @property
    def annealed(self) -> int:
        """Iterations until the diffusion times are in their final range; Gaussians begin there, having a shape."""
        return 1 if self.representation == "gaussians" else max(round(ANNEALED * self.iterations), 1)

    def pixels_at(self, iteration: int) -> int:
        """Side of the renders of an iteration."""
        passed = sum(iteration >= share * self.iterations for share in MILESTONES)
        return self.pixels[max(passed, 1) - 1]


PRESETS = {
    "draft": Settings(iterations=0, steps=30, construction="draft"),
    "preview": Settings(
        iterations=2_000, steps=50, pixels=(48, 64, 96), grid=SMALL, grid_pixels=96, construction="preview"
    ),
    "final": Settings(iterations=10_000, pixels=(64, 128, 192)),
    "published": Settings(),
}


@dataclass(frozen=True)
class Anchor:
    """The one video that is followed directly: of the four of 4DM that from the input's side."""

    pictures: Tensor  # [F, H, W, 4] 0..1, straight alpha
    cameras: Cameras  # of each frame

    @classmethod
    def of(cls, views: MultiViewVideo) -> "Anchor":
        """The first view is the input's."""
        return cls(torch.from_numpy(views.pictures[0]).float() / 255, views.cameras[0])

    def camera(self, frame: int) -> Cameras:
        """Of one frame."""
        one, cameras = slice(frame, frame + 1), self.cameras
        return Cameras(cameras.camera_to_world[one], cameras.Ks[one], cameras.times[one], cameras.width, cameras.height)


@dataclass(frozen=True)
class Curves:
    """How the losses went, each with its weight; 0 where it had no part."""

    names: tuple[str, ...]
    values: np.ndarray  # [iterations, K] float32

    def thinned(self, points: int = CURVE_POINTS) -> dict[str, list[float]]:
        """Means over at most `points` equal parts of the iterations, and the iterations that these end at."""
        parts = [part for part in np.array_split(self.values, min(points, max(len(self.values), 1))) if len(part)]
        means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, len(self.names))
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return {"iteration": ends} | {
            name: [float(f"{value:.4g}") for value in means[:, index]] for index, name in enumerate(self.names)
        }


def generate(
    video: Tensor,
    prompt: str,
    networks: Networks,
    settings: Settings,
    run: Run,
    *,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """The clip of a video.

    Args:
        video: [F, 3, PIXELS, PIXELS] 0..1 on white, F in FRAMES, at even times.
        prompt: what is seen.
        networks: text_encoder, image_encoder (ImageDream's), vae, fourdm; following a plan.
        settings: see there.
        run: gets stages, progress with both losses and previews, and may cancel at each step; its folder keeps what a
            next attempt goes on from, to the same result.
        lpips: of the anchor loss, see `losses.anchor`.
        dtype: that 4DM computes in.

    Returns:
        A clip of F frames. Name, fps and to_object are left to the caller; the provenance has the losses.

    Raises:
        UserError: too few or too many frames, or the fit went astray.
        JobCancelled: by `run`.
    """
    if not FRAMES[0] <= len(video) <= FRAMES[1]:
        raise UserError(
            "frame_count",
            f"4Diffusion makes clips of {FRAMES[0]} to {FRAMES[1]} frames, not {len(video)}.",
            "Choose another number of frames.",
        )
    run.plan(_stages(settings))

    # 1. Four views.
    run.begin(VIEWING)
    views = _kept_views(video, prompt, networks, settings, run, dtype)
    if not settings.iterations:
        networks.forget("text_encoder", "image_encoder", "vae", "fourdm")
        return _clip_of_views(views, settings, run)
    conditions = conditions_of(video, prompt, networks) if settings.sds_weight else None
    networks.forget("text_encoder", "image_encoder")

    # 2. What is optimised.
    if settings.representation == "gaussians":
        subject = GaussianSubject(_clip_of_views(views, settings, run), clips.engine_of(run).device)
    else:
        subject = FieldSubject(settings.grid, settings.quality, settings.seed, networks.device, run.check)

    # 3. Score distillation, anchor loss, priors.
    anchor = Anchor.of(views)
    asked = {"algorithm": ALGORITHM, "prompt": prompt, "lpips": lpips is not None, **asdict(settings)}
    key = state_key(asked, video, views.pictures)
    rest = {"lpips": lpips, "key": key}
    if conditions is None:
        curves = fit(subject, None, anchor, settings, run, **rest)
    else:
        with networks.using("vae", "fourdm") as [vae, network]:
            guidance = FourDMGuidance(vae, network, conditions, networks.plan, networks.device, dtype, run.check)
            curves = fit(subject, guidance, anchor, settings, run, **rest)
    networks.forget("vae", "fourdm")

    # 4. The clip.
    if isinstance(subject, GaussianSubject):
        clip, departures = subject.to_clip(), [DEPARTURE]
    else:
        clip, departures = clip_of_field(subject, len(video), settings, run), []
    made = {"losses": curves.thinned(), "settings": asdict(settings), "departures": departures}
    return replace(clip, provenance={**clip.provenance, "fit": made})


def fit(
    subject: Subject,
    guidance: Guidance | None,
    anchor: Anchor,
    settings: Settings,
    run: Run,
    *,
    key: str = "",
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Curves:
    """Optimise `subject`, in place, for `settings.iterations`.

    guidance: None where `sds_weight` is 0; key: what has to be the same for a checkpoint to be taken up.

    Raises:
        UserError: the fit went astray.
        JobCancelled: by `run`.
    """
    if settings.anchor_weight and lpips is None:
        run.note(losses.WITHOUT_LPIPS)
    run.begin(FITTING)
    names = ("sds", "anchor", *subject.PRIORS)
    curves = Curves(names, np.zeros((settings.iterations, len(names)), np.float32))
    checkpoint = Checkpoint(run.folder / FIT_NAME, key)
    saved = checkpoint.load()
    start = 0 if saved is None else int(saved["iteration"])
    if saved is not None:
        subject.load(saved)
        curves.values[:start] = saved["losses"]
    for iteration in range(start, settings.iterations):
        found, pictures = step(subject, guidance, anchor, settings, iteration, lpips)
        curves.values[iteration] = [found[name] for name in names]
        if not np.isfinite(curves.values[iteration]).all():
            checkpoint.remove()
            raise UserError("fit_diverged", "The fit went astray.", "Try again with another seed.")
        done = iteration + 1
        if checkpoint.is_due() or done == settings.iterations:
            checkpoint.save({**subject.to_arrays(), "iteration": np.array(done), "losses": curves.values[:done].copy()})
        detail = f"distillation {found['sds']:.3g}, anchor {found['anchor']:.3g}"
        run.report(done, settings.iterations, lambda pictures=pictures: _preview(pictures), detail)
    return curves


def step(
    subject: Subject,
    guidance: Guidance | None,
    anchor: Anchor,
    settings: Settings,
    iteration: int,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[dict[str, float], Tensor]:
    """One iteration: the weighted losses by name, and the pictures [V, H, W, 4] that the network saw."""
    looked = draw(iteration, len(anchor.pictures), settings.pixels_at(iteration), settings.annealed, settings.seed)
    generator = looked.generator()
    subject.begin(iteration, generator)
    subject.optimizer.zero_grad()

    # Eq. 10 on 8 times x 4 views, and the priors on what is seen there.
    pictures = subject.render(looked.cameras, generator)
    found = {"sds": _distillation(pictures, guidance, looked, settings, generator)}
    found |= subject.priors(looked, pictures[..., 3], iteration / settings.iterations, generator)
    torch.stack(list(found.values())).sum().backward()

    # The anchor video at one frame; on its own, so that not both graphs are alive.
    found["anchor"] = pictures.new_zeros(())
    if settings.anchor_weight:
        seen = subject.render(anchor.camera(looked.anchor), generator)
        target = anchor.pictures[looked.anchor, None].to(seen.device)
        white = torch.ones_like(target[..., :3])
        found["anchor"] = settings.anchor_weight * losses.anchor(
            on_white(seen), losses.over_background(target, white), lpips
        )
        found["anchor"].backward()

    subject.optimizer.step()
    return {name: float(loss.detach()) for name, loss in found.items()}, pictures.detach()


def on_white(pictures: Tensor) -> Tensor:  # [..., 4] premultiplied -> [..., 3]
    """The background of the public code, of its network's training data, and of the input."""
    return pictures[..., :3] + 1 - pictures[..., 3:]


def clip_of_field(subject: FieldSubject, frames: int, settings: Settings, run: Run) -> Clip:
    """A clip of a field that has been fitted; ours.

    Its renders from many sides at every time leave construction nothing to guess, and its surface at time 0 is where
    the Gaussians begin.
    """
    run.begin(RENDERING)
    elevations = ELEVATIONS if frames <= MANY_FRAMES else ELEVATIONS[:1]
    cameras = to_surface.camera_grid(frames, AZIMUTHS, elevations, DISTANCE, FOV, settings.grid_pixels)
    seen = []
    for view in range(len(cameras.times)):
        one = slice(view, view + 1)
        camera = Cameras(
            cameras.camera_to_world[one], cameras.Ks[one], cameras.times[one], cameras.width, cameras.height
        )
        seen.append(to_surface.pictures(subject.field, subject.occupancy, camera, settings.quality))
        run.report(view + 1, len(cameras.times))
    moving = Observations(torch.cat(seen), cameras)
    found = to_surface.surface(subject.field, subject.occupancy, SURFACE_SAMPLES, settings.seed, settings.quality)
    return _constructed(moving, SurfaceSamples(found.points, found.normals), settings, run)


def _distillation(
    pictures: Tensor, guidance: Guidance | None, looked: Draw, settings: Settings, generator: torch.Generator
) -> Tensor:
    if not settings.sds_weight:
        return pictures.new_zeros(())
    latents = guidance.encode(on_white(pictures).movedim(-1, 1))
    loss = sds.distillation_loss(
        latents,
        torch.randn(latents.shape, generator=generator).to(latents.device),
        looked.timestep,
        guidance.branches(looked.poses, looked.frames),
        linear_schedule(),
        settings.guidance,
        settings.rescale,
        guidance.dtype,
    )
    return settings.sds_weight * loss.to(pictures.device)  # Gaussians may be drawn on the CPU beside a GPU


def _kept_views(
    video: Tensor, prompt: str, networks: Networks, settings: Settings, run: Run, dtype: torch.dtype
) -> MultiViewVideo:
    """The views of 4DM: those of a former attempt, or new ones."""
    times = np.linspace(0, 1, len(video))
    path = run.folder / VIEWS_NAME
    asked = {"prompt": prompt, "seed": settings.seed, "steps": settings.steps, "elevation": settings.elevation}
    key = np.frombuffer(state_key(asked, video).encode(), np.uint8)
    try:
        kept = read_arrays(path)
        if np.array_equal(kept["key"], key):
            return MultiViewVideo.standing(kept["pictures"], times, settings.elevation)
    except (BadFileError, FileNotFoundError, KeyError):
        pass  # they can be made again
    views = generate_views(
        video,
        times,
        prompt,
        networks,
        elevation=settings.elevation,
        seed=settings.seed,
        steps=settings.steps,
        dtype=dtype,
        run=run,
    )
    write_arrays(path, {"key": key, "pictures": views.pictures})
    return views


def _clip_of_views(views: MultiViewVideo, settings: Settings, run: Run) -> Clip:
    """Construction from four views of each time alone."""
    return _constructed(observations(*views.together()), None, settings, run)


def _constructed(moving: Observations, surface: SurfaceSamples | None, settings: Settings, run: Run) -> Clip:
    static = moving.subset(np.flatnonzero(moving.cameras.times == 0))
    count = settings.gaussians or GAUSSIANS_BY_PRESET[settings.construction]
    asked = {"preset": settings.construction, "gaussians": count, "seed": settings.seed}
    return clips.construct_clip(moving, static, surface, asked, run, guided=False)


def _stages(settings: Settings) -> dict[str, float]:
    """The stages in order, with their shares of the time."""
    construction = {stage: 0.2 * share for stage, share in STAGE_SHARES.items()}
    if not settings.iterations:
        return {VIEWING: 0.5, **construction}
    if settings.representation == "gaussians":
        return {VIEWING: 0.2, **construction, FITTING: 0.6}
    return {VIEWING: 0.1, FITTING: 0.7, RENDERING: 0.05, **construction}


def _preview(pictures: Tensor) -> np.ndarray:  # [2 H, V H, 3] uint8
    """First and last of the times, from all sides."""
    shown = on_white(torch.stack([pictures[:VIEWS], pictures[-VIEWS:]])).clamp(0, 1)
    rows = shown.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    return (rows * 255).round().byte().cpu().numpy()
