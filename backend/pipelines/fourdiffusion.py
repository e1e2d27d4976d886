# SPDX-License-Identifier: GPL-3.0-or-later
"""4Diffusion: from a monocular video to a clip (Zhang et al., NeurIPS 2024, arXiv 2405.20674).

frames -> 4DM: videos of four views (section 3.2)
-> dynamic radiance field under 4D-aware score distillation, the anchor loss and priors (section 3.3)
-> its renders from all sides and its surface -> clip

The last line is ours: the paper ends with the field. Ours, too, is the representation "gaussians": construction from
the views of 4DM, then the same losses on the Gaussians themselves; much faster, and a departure from the paper.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance import sds
from backend.models.lpips import find_lpips, load_lpips
from backend.nerf import losses, to_surface
from backend.pictures import on_white
from backend.pipelines import clips
from backend.pipelines.fourdiffusion_curves import Curves, preview
from backend.pipelines.fourdiffusion_draws import Draw, draw
from backend.pipelines.fourdiffusion_guidance import Guidance
from backend.pipelines.fourdiffusion_settings import Settings
from backend.pipelines.fourdiffusion_subjects import FieldSubject, GaussianSubject, Subject
from backend.pipelines.memory_plan import chosen_device
from backend.pipelines.multi_view_video import DISTANCE, FOV, MultiViewVideo
from backend.pipelines.orbit_pictures import observations
from backend.pipelines.video_model import VideoModel, load_video_model, told_of, within_memory
from backend.progress import Run, UserError
from backend.splatting.checkpoint import Checkpoint, state_key
from backend.splatting.construct import STAGE_SHARES
from backend.splatting.observations import Observations
from backend.video import intake as video_intake
from backend.video.framing import Framing
from backend.video.reading import Span
from blender_addon.contract.arrays import BadFileError, read_arrays, write_arrays
from blender_addon.contract.clip import Clip
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import BOUNDS, GAUSSIANS_BY_PRESET
from blender_addon.contract.surface import SurfaceSamples

PIPELINE = "4diffusion"
VIEWING, FITTING, RENDERING = "Inventing the other views", "Following the video model", "Looking at the field"
VIDEO_NAME, VIEWS_NAME, FIT_NAME = "video.npz", "views.npz", "fit.npz"
BEGUN_NAME = "views.key"  # of the views whose sampling the folder keeps, in `views_*.npz`
ALGORITHM = 4  # counts changes that make older checkpoints useless
FRAMES = 8, 64  # least and most that a clip has
DEPARTURE = "Gaussians were optimised in place of the paper's radiance field."

AZIMUTHS, ELEVATIONS, MANY_FRAMES = 8, (10.0, -15.0, 35.0), 16  # of the renders that a clip is constructed from
SURFACE_SAMPLES = 20_000


@dataclass(frozen=True)
class Video:
    """What a request's video has become: the subject cut out and framed, at even times."""

    frames: Tensor  # [F, 4, side, side] 0..1, premultiplied RGBA
    fps: float  # at which the frames play as fast as the video
    done: dict  # for the provenance, see `intake.VideoIntake`


@dataclass(frozen=True)
class Anchor:
    """The one video that is followed directly: of the four of 4DM that from the input's side."""

    pictures: Tensor  # [F, H, W, 4] 0..1, straight alpha
    cameras: Cameras  # of each frame

    @classmethod
    def of(cls, views: MultiViewVideo, pixels: int | None = None) -> "Anchor":
        """The first view is the input's. pixels: side that it is brought to; None: that of the views."""
        pictures, cameras = torch.from_numpy(views.pictures[0]).float() / 255, views.cameras[0]
        if pixels is None or pixels == cameras.width:
            return cls(pictures, cameras)
        alpha = pictures[..., 3:]
        planes = torch.cat([pictures[..., :3] * alpha, alpha], -1).movedim(-1, 1)
        planes = functional.interpolate(planes, (pixels, pixels), mode="bilinear", antialias=True).movedim(1, -1)
        alpha = planes[..., 3:]
        straight = torch.cat([planes[..., :3] / alpha.clamp(min=1e-6), alpha], -1).clamp(0, 1)
        scale = np.diag([pixels / cameras.width, pixels / cameras.height, 1.0])
        return cls(straight, replace(cameras, Ks=scale @ cameras.Ks, width=pixels, height=pixels))

    def camera(self, frame: int) -> Cameras:
        """Of one frame."""
        return self.cameras.picked(slice(frame, frame + 1))


def run_request(
    request: dict,
    blob: Callable[[str], Path],
    run: Run,
    *,
    video_model: VideoModel | None = None,
    weights: Path | None = None,
) -> Path:
    """Do a request of kind `video` (see `blender_addon.contract.requests`), already checked against its schema.

    `blob` gives the file of a sha256. Returns the path of the clip, in `run.folder`. What each stage has made stays
    there, so that a retry goes on from it.

    video_model: in the place of the one that the request names; weights: folder of all published weights, by default
    the usual one, where LPIPS is looked for, too.

    Raises:
        UserError: weights are missing, the video cannot be used or shows no subject, or the fit went astray.
        JobCancelled: by `run`.
    """
    asked, settings = Settings.of_request(request["settings"]), request["settings"]
    run.plan({**_shares(video_intake.STAGE_SHARES, 0.05), **_shares(stages(asked), 0.94), clips.WRITING: 0.01})
    clips.engine_of(run)  # a GPU that cannot be used is told before the work, not after it
    model = video_model or load_video_model(settings["model"], run, weights=weights)
    lpips = lpips_of(asked, run, weights)
    video = taken_in(request, blob, model.framing, run)
    clip = within_memory(model, lambda: generate(video.frames, settings["prompt"], model, asked, run, lpips=lpips), run)
    played = float(np.clip(video.fps, BOUNDS["fps"].minimum, BOUNDS["fps"].maximum))
    shown = {**settings, "fps": played if settings["fps"] is None else settings["fps"]}
    told = {**told_of(model), "video": video.done, **clips.provenance(PIPELINE, shown, run), **clip.provenance}
    return clips.finish_clip({**request, "settings": shown}, replace(clip, provenance=told), run)


def views_of_request(
    request: dict,
    blob: Callable[[str], Path],
    run: Run,
    *,
    video_model: VideoModel | None = None,
    weights: Path | None = None,
) -> tuple[Video, MultiViewVideo]:
    """The video of a request, and the four views that `run_request` begins with; arguments and errors as there.

    They are kept in `run.folder`, where `run_request` finds them.
    """
    asked, settings = Settings.of_request(request["settings"]), request["settings"]
    run.plan({**_shares(video_intake.STAGE_SHARES, 0.1), VIEWING: 0.9})
    model = video_model or load_video_model(settings["model"], run, weights=weights)
    video = taken_in(request, blob, model.framing, run)
    run.begin(VIEWING)
    views = within_memory(model, lambda: _kept_views(video.frames, settings["prompt"], model, asked, run), run)
    run.finish()
    return video, views


def taken_in(request: dict, blob: Callable[[str], Path], framing: Framing, run: Run) -> Video:
    """The video of a request as a video model takes it, or what a former attempt has made of it.

    The stages are those of `intake.STAGE_SHARES`, which the caller has planned.

    Raises:
        UserError: the video cannot be read, or shows no subject that can be told from its background.
        JobCancelled: by `run`.
    """
    settings, inputs = request["settings"], request["inputs"]
    path = run.folder / VIDEO_NAME
    key = state_key({**inputs, "frames": settings["frames"], "cutout": settings["cutout"], **asdict(framing)})
    try:
        kept = read_arrays(path)
        told = json.loads(kept["told"].tobytes())
        if told["key"] == key:
            for sentence in told["done"]["notes"]:
                run.note(sentence)
            return Video(torch.from_numpy(kept["frames"]), told["fps"], told["done"])
    except (BadFileError, FileNotFoundError, KeyError, ValueError):
        pass  # it can be read again
    files = blob(inputs["video"]) if inputs["video"] else [blob(sha256) for sha256 in inputs["pictures"]]
    found = video_intake.take_in(
        files,
        run,
        count=settings["frames"],
        span=Span(inputs["start"], inputs["end"]),
        fps=inputs["pictures_fps"] or BOUNDS["fps"].default,
        framing=framing,
        method=settings["cutout"],
    )
    frames = np.ascontiguousarray(np.moveaxis(found.frames, -1, 1))
    told = json.dumps({"key": key, "fps": found.fps, "done": found.done})
    write_arrays(path, {"told": np.frombuffer(told.encode(), np.uint8), "frames": frames})
    return Video(torch.from_numpy(frames), found.fps, found.done)


def generate(
    video: Tensor,
    prompt: str,
    model: VideoModel,
    settings: Settings,
    run: Run,
    *,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Clip:
    """The clip of a video.

    Args:
        video: [F, 4, side, side] 0..1, premultiplied RGBA, F in FRAMES, at even times.
        prompt: what is seen.
        model: that invents the other views and judges renders; `side` is its own.
        settings: see there.
        run: gets the stages of `stages`, which the caller has planned, progress with both losses and previews, and may
            cancel at each step; its folder keeps what a next attempt goes on from, to the same result.
        lpips: of the anchor loss, see `losses.anchor`; on the device of the fit.

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

    # 1. Four views.
    run.begin(VIEWING)
    views = _kept_views(video, prompt, model, settings, run)
    if not settings.iterations:
        return _clip_of_views(views, settings, run)

    # 2. What is optimised.
    device = _fitting_device(settings, run)
    if settings.refines_gaussians:
        subject = GaussianSubject(_clip_of_views(views, settings, run), device)
    else:
        subject = FieldSubject(settings.grid, settings.quality, settings.seed, device, run.check)

    # 3. Score distillation, anchor loss, priors.
    anchor = Anchor.of(views, settings.anchor_pixels)
    asked = {
        "algorithm": ALGORITHM, "model": model.name, "prompt": prompt, "lpips": lpips is not None, **asdict(settings)
    }  # fmt: skip
    rest = {"lpips": lpips, "key": state_key(asked, video, views.pictures)}
    if settings.sds_weight:
        with model.guidance(video, prompt, run) as guidance:
            curves = fit(subject, guidance, anchor, settings, run, **rest)
    else:
        curves = fit(subject, None, anchor, settings, run, **rest)

    # 4. The clip.
    if isinstance(subject, GaussianSubject):
        clip, departures = subject.to_clip(), [DEPARTURE]
    else:
        clip, departures = clip_of_field(subject, len(video), settings, run), []
    made = {"losses": curves.thinned(), "settings": asdict(settings), "departures": departures}
    return replace(clip, provenance={**clip.provenance, "fit": made})


def stages(settings: Settings) -> dict[str, float]:
    """The stages of `generate` in order, with their shares of the time."""
    construction = _shares(STAGE_SHARES, 0.2)
    if not settings.iterations:
        return {VIEWING: 0.2, **construction}
    if settings.representation == "gaussians":
        return {VIEWING: 0.2, **construction, FITTING: 0.6}
    return {VIEWING: 0.1, FITTING: 0.65, RENDERING: 0.05, **construction}


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
        run.report(done, settings.iterations, partial(preview, pictures, curves, done), curves.told(done))
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
    looked = draw(
        iteration,
        len(anchor.pictures),
        settings.pixels_at(iteration),
        settings.annealed,
        settings.seed,
        settings.final_times,
    )
    generator, done = looked.generator(), iteration / settings.iterations
    subject.begin(iteration, done, generator)
    subject.optimizer.zero_grad()

    # Eq. 10 on 8 times x 4 views, and the priors on what is seen there.
    pictures = subject.render(looked.cameras, generator)
    found = {"sds": _distillation(pictures, guidance, looked, settings, generator)}
    found |= subject.priors(looked, pictures[..., 3], done, generator)
    torch.stack(list(found.values())).sum().backward()

    # The anchor video at one frame, on white as in the public code; on its own, so that not both graphs are alive.
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
        camera = cameras.picked(slice(view, view + 1))
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
    latents = guidance.encode(pictures.movedim(-1, 1))
    loss = sds.distillation_loss(
        latents,
        torch.randn(latents.shape, generator=generator).to(latents.device),
        looked.timestep,
        guidance.branches(looked.poses, looked.frames),
        guidance.schedule,
        guidance.scale,
        guidance.rescale,
        guidance.dtype,
    )
    return settings.sds_weight * loss.to(pictures.device)  # Gaussians may be drawn on the CPU beside a GPU


def _kept_views(video: Tensor, prompt: str, model: VideoModel, settings: Settings, run: Run) -> MultiViewVideo:
    """The views of the video model: those of a former attempt, or new ones."""
    path, begun = run.folder / VIEWS_NAME, run.folder / BEGUN_NAME
    how = {"seed": settings.seed, "steps": settings.steps, "elevation": settings.elevation}
    key = state_key({"model": model.name, "prompt": prompt, **how}, video)
    try:
        kept = read_arrays(path)
        told = json.loads(kept["told"].tobytes())
        if told["key"] == key:
            for sentence in told["notes"]:
                run.note(sentence)
            return MultiViewVideo.standing(kept["pictures"], np.linspace(0, 1, len(video)), settings.elevation)
    except (BadFileError, FileNotFoundError, KeyError, ValueError):
        pass  # they can be made again
    if not (begun.is_file() and begun.read_text() == key):  # what was begun were other views
        for state in run.folder.glob("views_*.npz"):
            state.unlink()
        begun.write_text(key)
    before = len(run.notes)
    views = model.views(video, prompt, **how, run=run)
    told = json.dumps({"key": key, "notes": run.notes[before:]})
    write_arrays(path, {"told": np.frombuffer(told.encode(), np.uint8), "pictures": views.pictures})
    return views


def _fitting_device(settings: Settings, run: Run) -> torch.device:
    """What the fit works on: Gaussians where they are drawn, a field where networks work."""
    return clips.engine_of(run).device if settings.refines_gaussians else chosen_device(run)


def lpips_of(settings: Settings, run: Run, weights: Path | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS where its weights are at hand and it is asked for."""
    found = find_lpips(weights) if settings.iterations and settings.anchor_weight else None
    return found and load_lpips(found, _fitting_device(settings, run))


def _clip_of_views(views: MultiViewVideo, settings: Settings, run: Run) -> Clip:
    """Construction from four views of each time alone."""
    return _constructed(observations(*views.together()), None, settings, run)


def _constructed(moving: Observations, surface: SurfaceSamples | None, settings: Settings, run: Run) -> Clip:
    static = moving.subset(np.flatnonzero(moving.cameras.times == 0))
    count = settings.gaussians or GAUSSIANS_BY_PRESET[settings.construction]
    asked = {"preset": settings.construction, "gaussians": count, "seed": settings.seed}
    asked |= {name: getattr(settings, name) for name in ("sh_degree", "color_space", "motion_model")}
    remedy = "another seed or another range of the video may keep it in view"
    return clips.construct_clip(moving, static, surface, asked, run, guided=False, remedy=remedy)


def _shares(shares: dict[str, float], whole: float) -> dict[str, float]:
    """The same stages, which together take another share of the time."""
    return {stage: whole * share / sum(shares.values()) for stage, share in shares.items()}
