# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D: from an object, a text or an image to a moving orbit in one pass, and from there to a clip.

static orbit (given, or made from the text or image)
-> moving orbit: denoise with text, static orbit, cameras and motion magnitude (Eq. 3 steers)
-> frames to look at, or construction of the clip, coarse to fine
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.classifier_free import guide
from backend.models import motion_latents
from backend.models.diffusion import scheduler, share
from backend.models.first_guess import inflate
from backend.models.kinesplat_small import KinesplatSmall, load
from backend.models.motion_magnitude import motion_magnitude
from backend.models.precision import matrix_precision
from backend.models.volume import VOXELS, render_volume
from backend.pictures import over_white, tiled
from backend.pipelines import clips, elementary_prompts
from backend.pipelines.coherence import Coherence
from backend.pipelines.elementary import MOTIONS, Elementary
from backend.pipelines.memory_plan import chosen_device
from backend.pipelines.moved_subject import MovedSubject, make_moved_subject
from backend.pipelines.recall import recall
from backend.pipelines.subject_image import framed, read_image
from backend.progress import Run, UserError
from backend.splatting.construct import STAGE_SHARES
from backend.splatting.guide import SurfaceMotion
from backend.splatting.observations import Observations, read_observations
from backend.splatting.rasterize import warm_up
from backend.splatting.surface_motion import grown, kept_in_view
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.frames import GeneratedFrames, read_frames, write_frames
from blender_addon.contract.orbit import (
    Cameras,
    Orbit,
    SurfaceSamples,
    further_cameras,
    joined_cameras,
    orbit_cameras,
    read_surface_samples,
)
from blender_addon.contract.requests import BOUNDS, GENERATED_FRAMES, PUBLISHED

PIPELINE = "diffusion4d"
READING, STILL, MOVING = "Reading the request", "Making the still subject", "Inventing the motion"
FRAMES_NAME = "frames.npz"
AMPLITUDE_STEPS = 4  # of solving for the amplitude that has the wanted magnitude
AMPLITUDE_LIMITS = (1 / 3, 6.0)  # how far the solved amplitude may lie from the network's own
POWERS = (0.7, 2.0)  # of the size, with which the magnitude may grow
STILL_PIXELS = 96  # of static orbits that are made here; a volume has 48 voxels to a side
PREVIEW_PIXELS = 48
PREVIEW_FRAMES = 8
LEAST_COVERAGE = 0.004  # of the picture


def run_request(request: dict, blob: Callable[[str], Path], run: Run, **published: object) -> Path:
    """Do a request of kind `object`, `text` or `image` (see `blender_addon.contract.requests`), already checked.

    `blob` gives the file of a sha256; `published`: options of `diffusion4d_published.generate`. Returns the path of the
    generated frames or of the clip, in `run.folder`. Frames that were generated stay there until then, so that a retry
    does not generate them again.

    Raises:
        UserError: the inputs cannot be used, or the model cannot be loaded.
        JobCancelled: by `run`.
    """
    settings, inputs = request["settings"], request["inputs"]
    building = settings["result"] == "clip"
    run.plan(_stages(request["kind"], building, generated=bool(inputs["generated"])))
    run.begin(READING)
    try:
        frames = read_frames(blob(inputs["generated"])) if inputs["generated"] else _resumed(run.folder)
        static, further = _given_views(inputs["static"], blob) if inputs["static"] else (None, None)
        image = read_image(blob(inputs["image"])) if inputs["image"] else None
        surface = read_surface_samples(blob(inputs["surface"])) if inputs["surface"] else None
    except BadFileError as error:
        raise UserError("bad_input", str(error), "Generate again.") from error
    if building:
        clips.engine_of(run)  # a GPU that cannot be used is told before the work, not after it
    if frames is None:
        if settings.get("model") == PUBLISHED:  # imports much that the small model does not need
            from backend.pipelines import diffusion4d_published

            given = (None, None) if static is None else static
            frames = diffusion4d_published.generate(*given, image, settings, run, **published)
            frames = replace(frames, **_beside(further and resized(*further, frames.cameras.width)))
        else:
            frames = generate(static, further, image, surface, settings, run)
        write_frames(run.folder / FRAMES_NAME, frames)
    if not building:
        run.finish()
        return run.folder / FRAMES_NAME
    clip = clips.construct_clip(
        observations(frames.moving, frames.cameras),
        observations(*frames.still()),
        surface,
        settings,
        run,
        told=told_by(frames),
        remedy="less motion or another seed may keep it in view",
    )
    for sentence in frames.provenance.get("warnings", ()):
        run.note(sentence)
    provenance = {**frames.provenance, **clips.provenance(PIPELINE, settings, run), **clip.provenance}
    return clips.finish_clip(request, replace(clip, provenance=provenance), run)


class Views(NamedTuple):
    """Pictures of a subject, and from where and when they were taken."""

    pictures: np.ndarray  # [V, H, W, 4] uint8, straight alpha
    cameras: Cameras


def generate(
    static: Views | None,
    further: Views | None,
    image: np.ndarray | None,
    surface: SurfaceSamples | None,
    settings: dict,
    run: Run,
) -> GeneratedFrames:
    """The frames of one request: the still subject where it is not given, then its motion. Raises UserError.

    static: views of time 0 with the times of the moving orbit, or None; further, surface: of the same subject;
    image: [H, W, 4] uint8 or None.
    """
    model = load(device=chosen_device(run).type)
    common = {"seed": settings["seed"], "steps": settings["steps"], "run": run}
    of_words = static is None and image is None  # what it is, and not only how it moves
    if static is None:
        run.begin(STILL)
        orbit = Orbit(frames=model.frames)
        size = STILL_PIXELS, STILL_PIXELS
        cameras = joined_cameras([orbit_cameras(orbit, *size, moving=False), further_cameras(orbit, *size)])
        made = generate_static(cameras, settings["prompt"], image, guidance=settings["guidance_motion"], **common)
        static, further = _split(Views(made, cameras))
    warm_up(run.say)  # moved subjects are drawn by the CPU, whatever device the networks have
    run.begin(MOVING)
    moving = generate_moving(
        *static,
        settings["prompt"],
        settings["motion"],
        w1=settings["guidance_motion"],
        w2=settings["guidance_static"],
        loop={"yes": True, "no": False}.get(settings.get("loop")),  # jobs of earlier versions do not name these
        known=settings.get("known_motions", True),
        surface=surface,
        further=further,
        **common,
    )
    told = moving.warnings
    if of_words:  # what an elementary motion does not need to know, the still subject did
        told = told or warnings(model, settings["prompt"], elementary_prompts.is_word_of)
    if (simple := MOTIONS.get(moving.moves_as)) and simple.note:
        told = [*told, simple.note]
    return GeneratedFrames(
        moving=moving.pictures,
        static=static.pictures,
        cameras=static.cameras,
        prompt=settings["prompt"],
        motion=settings["motion"],
        motion_measured=measured_magnitude(moving.pictures, static.pictures),
        seed=settings["seed"],
        provenance={
            "models": [{"name": model.name, "licence": model.licence}],
            "warnings": told,
            "loop": moving.loop,
            "moves_as": moving.moves_as,
        },
        points=moving.points,
        movement=moving.movement,
        **_beside(further),
    )


class MovingOrbit(NamedTuple):
    """A moving orbit, and the movement of the subject's surface that it shows."""

    pictures: np.ndarray  # [T, H, W, 4] uint8, straight alpha
    points: np.ndarray  # [N, 3] float32, on the surface at time 0, clip space
    movement: np.ndarray  # [T, N, 3] float32, of these from there
    loop: bool  # it was made to end as it began
    moves_as: str  # whose known motion it is, such as "husky dog walk", or "swaying"; empty where it was invented
    warnings: list[str]  # what the user should know about the prompt


class Movement(NamedTuple):
    """How a subject moves, more or less of it."""

    shifts: Callable[[float], Tensor]  # size -> [T, B, 3] of its control points
    moves_as: str
    warnings: list[str]


@torch.no_grad()
def generate_moving(
    static: np.ndarray,
    cameras: Cameras,
    prompt: str,
    magnitude: float,
    *,
    seed: int = 0,
    steps: int = int(BOUNDS["steps"].default),
    w1: float = 1.0,
    w2: float = 0.25,
    sampler: str = "ddim",
    loop: bool | None = None,
    known: bool = True,
    surface: SurfaceSamples | None = None,
    further: Views | None = None,
    run: Run | None = None,
    model: KinesplatSmall | None = None,
) -> MovingOrbit:
    """The moving orbit of a static orbit (Diffusion4D, section 3; guidance: Eq. 3).

    Beyond the paper, each estimate of the clean latents is brought into line with one movement of the subject's surface
    (`Coherence`), and a motion of the training set takes the place of the invented one where it fits (`recall`), or an
    elementary one that the prompt names (`elementary`).

    Args:
        static: [T, H, W, 4] uint8, straight alpha, all at time 0, H = W; more pixels than the network has are kept.
        cameras: of both orbits; their times are those of the moving one.
        prompt: what the subject is and does; words that the model does not know are left out.
        magnitude: motion magnitude m (Eq. 1) that the result is to have.
        seed: of the noise.
        steps: denoising steps.
        w1, w2: weights of Eq. 3. The network at m = 0 is the static model.
        sampler: "ddim" or "dpm".
        loop: the motion is to end as it began; None: where the prompt names none that ends elsewhere.
        known: known and elementary motions may take the place of invented ones.
        surface: points on the subject's surface; without them the visual hull serves.
        further: of time 0 and of the same size, from above and below: they show what the static orbit does not.
        run: told after each step, and may cancel there.
        model: instead of the one that comes with the program.

    Raises:
        UserError: the static orbit shows nothing that all its views agree on.
    """
    model = model or load()
    known = known and magnitude > 0
    simple = elementary_prompts.named_in(prompt, model.motions) if known else None
    if loop is None:
        loop = not simple.one_way if simple else model.loops(prompt)
    still = observations(static, replace(cameras, times=np.zeros_like(cameras.times)))
    check = run.check if run is not None else lambda: None
    seen = further and observations(*further)
    subject = make_moved_subject(still, cameras.times, surface, check, loop=loop, further=seen)
    if simple:
        movement = _elementary(simple, subject, cameras.times, loop=loop, seed=seed)
        if run is not None:
            run.report(1, 1, preview=lambda: _sketch(subject, movement.shifts(1.0)))
    else:
        guidance = {"seed": seed, "steps": steps, "w1": w1, "w2": w2, "sampler": sampler, "run": run}
        motion = {"loop": loop, "known": known, **guidance}
        movement = _invented(model, subject, static, cameras, prompt, magnitude, **motion)

    def sized(size: float) -> Tensor:  # [1, T, 4, H, W]
        return subject.pictures(movement.shifts(size))[None]

    size = size_of_magnitude(magnitude, as_tensor(static), sized)
    return MovingOrbit(
        pictures=as_pictures(sized(size)),
        points=subject.surface.points.numpy(),
        movement=subject.movement(movement.shifts(size)).numpy(),
        loop=loop,
        moves_as=movement.moves_as,
        warnings=movement.warnings,
    )


def _elementary(motion: Elementary, subject: MovedSubject, times: np.ndarray, *, loop: bool, seed: int) -> Movement:
    """An elementary motion; no network has a part in it."""
    surface = subject.surface

    def shifts(size: float) -> Tensor:  # [T, B, 3]
        moved = motion.shifts(surface.control.points, surface.points, times, size, loop=loop, seed=seed)
        return kept_in_view(surface, moved)

    return Movement(shifts, motion.name, [])


def _sketch(subject: MovedSubject, shifts: Tensor) -> np.ndarray:
    """Some of its pictures, to look at while more is to come."""
    few = torch.linspace(0, len(shifts) - 1, PREVIEW_FRAMES).round().long()
    return picture(subject.sketch(shifts, few)[None])


def _invented(
    model: KinesplatSmall,
    subject: MovedSubject,
    static: np.ndarray,
    cameras: Cameras,
    prompt: str,
    magnitude: float,
    *,
    loop: bool,
    known: bool,
    seed: int,
    steps: int,
    w1: float,
    w2: float,
    sampler: str,
    run: Run | None,
) -> Movement:
    """What the network invents for a subject, or the known motion that fits best; arguments as of `generate_moving`."""
    small = functional.interpolate(as_tensor(static, model.device)[0], (model.resolution,) * 2, mode="area")
    branches = 3  # conditional, unconditional, static model
    tokens = model.vocabulary.batch([prompt, "", prompt]).to(model.device)
    asked = torch.tensor([magnitude], device=model.device)
    condition = functional.pixel_unshuffle(small, 2)[None] * 2 - 1
    given = (
        torch.from_numpy(cameras.times).float()[None].expand(branches, -1).to(model.device),
        torch.from_numpy(cameras.camera_to_world).float()[None].expand(branches, -1, -1, -1).to(model.device),
        tokens,
        torch.tensor([magnitude, magnitude, 0.0], device=model.device),
        torch.tensor([True, False, True], device=model.device),
    )
    condition = condition.expand(branches, -1, -1, -1, -1)
    cohere = Coherence(subject.surface, motion_latents.latent_unit(asked))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with matrix_precision(model.device):
            out = model.motion(latents.expand(branches, -1, -1, -1, -1), condition, timestep, *given).float()
        return cohere(guide(out[:1], out[1:2], out[2:], w1, w2))

    def preview(_: Tensor) -> np.ndarray:
        return _sketch(subject, cohere.in_view())

    side = model.resolution // 2
    shape = (1, len(static), motion_latents.CHANNELS, side, side)
    latents = denoise(shape, predict, sampler, steps, seed, run, preview, model.device)
    told = None
    if known and model.motions is not None:
        told = recall(model.motions, prompt, subject.surface, cameras.times, cohere.told, loop=loop, seed=seed)

    def shifts(size: float) -> Tensor:  # [T, B, 3]
        if told is None:
            cohere(latents, size)
            return cohere.in_view()
        size = size * float(cohere.told.norm() / told.shifts.norm())  # what was invented knows about how far
        return kept_in_view(subject.surface, grown(subject.surface.control, told.shifts, size))

    moves_as = "" if told is None else f"{told.subject} {told.action}".strip()
    return Movement(shifts, moves_as, warnings(model, prompt))


@torch.no_grad()
def generate_static(
    cameras: Cameras,
    prompt: str,
    image: np.ndarray | None = None,
    *,
    seed: int = 0,
    steps: int = int(BOUNDS["steps"].default),
    guidance: float = 1.0,
    sampler: str = "ddim",
    run: Run | None = None,
    model: KinesplatSmall | None = None,
) -> np.ndarray:
    """The static orbit of a text, of an image of the first view, or of both: a volume, seen from all sides.

    The volume is denoised by the model's static network. Where the weights have none it is a first guess: the image
    inflated, or the known subject that the text names.

    image: [H, W, 4] uint8, straight alpha or on a plain background: the subject as the first camera sees it.
    `guidance` is the w1 of Eq. 3. Returns [T, H, W, 4] uint8, straight alpha, H and W as `cameras` say.

    Raises:
        UserError: the image cannot be used, the text names nothing that is known, or nothing visible came out.
    """
    model = model or load()
    first = None
    if image is not None:
        cut = as_tensor(framed(image)[None], model.device)[0]
        first = functional.interpolate(cut, (model.resolution,) * 2, mode="area")
    poses = torch.from_numpy(cameras.camera_to_world)
    focal = torch.from_numpy(2 * cameras.Ks[:, 0, 0] / cameras.width)

    def look(volume: Tensor, size: int, views: slice = slice(None)) -> Tensor:
        return render_volume(volume, poses[views], focal[views], size)[None]

    def preview(volume: Tensor) -> np.ndarray:
        return picture(look(volume, PREVIEW_PIXELS, slice(None, None, max(len(poses) // 8, 1))))

    if model.static is None:
        volume = first_guess(model, prompt, first, seed)
        if run is not None:
            run.report(1, 1, preview=lambda: preview(volume))
    else:
        volume = denoised_volume(model, prompt, first, seed, steps, guidance, sampler, run, preview)
    frames = look(volume, cameras.width)
    if float(frames[:, :, 3].mean()) < LEAST_COVERAGE:
        hint = (
            "Try another seed, or words for the things it knows: animals, people, fish."
            if image is None
            else "Choose an image of a subject that is not as thin as a line."
        )
        raise UserError("nothing_made", "The model made nothing that could be seen of this.", hint)
    return as_pictures(frames)


def first_guess(model: KinesplatSmall, prompt: str, first: Tensor | None, seed: int) -> Tensor:  # [N, N, N, 4]
    """A still subject without a network: the first view [1, 4, H, W] inflated, or the known subject of the text."""
    if first is not None:
        return inflate(first[0].cpu()).to(model.device)
    subject = model.memory.nearest(prompt, seed)
    if subject is None:
        known = ", ".join(sorted(set(model.memory.subjects))[::8])
        hint = f"It knows, for example: {known}. Or start from an image or an object."
        raise UserError("unknown_subject", "The prompt names no subject that the model knows.", hint)
    return model.memory.volume(subject).to(model.device)


def denoised_volume(
    model: KinesplatSmall,
    prompt: str,
    first: Tensor | None,
    seed: int,
    steps: int,
    guidance: float,
    sampler: str,
    run: Run | None,
    preview: Callable[[Tensor], np.ndarray],
) -> Tensor:  # [N, N, N, 4]
    """A still subject by the static network, of a text, of the first view [1, 4, H, W], or of both."""
    shown = float(first is not None)
    blank = torch.zeros(1, 4, model.resolution, model.resolution, device=model.device)
    given = ((blank if first is None else first).expand(2, -1, -1, -1), torch.tensor([shown, 0.0], device=model.device))
    tokens = model.vocabulary.batch([prompt, ""]).to(model.device)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with matrix_precision(model.device):
            out = model.static(latents.expand(2, -1, -1, -1, -1), *given, timestep.expand(2), tokens).float()
        return guide(out[:1], out[1:], out[:1], guidance, 0.0)

    def colored(latents: Tensor) -> Tensor:
        return (latents[0] / 2 + 0.5).clamp(0, 1)

    shape = (1, VOXELS, VOXELS, VOXELS, 4)
    show = lambda clean: preview(colored(clean))  # noqa: E731
    return colored(denoise(shape, predict, sampler, steps, seed, run, show, model.device))


def denoise(
    shape: tuple[int, ...],
    predict: Callable[[Tensor, Tensor], Tensor],
    sampler: str,
    steps: int,
    seed: int,
    run: Run | None,
    preview: Callable[[Tensor], np.ndarray],
    device: torch.device,
) -> Tensor:
    """Sample clean latents with one of diffusers' samplers; `predict` gives clean latents from noisy ones."""
    schedule = scheduler(sampler)
    schedule.set_timesteps(steps)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    for number, step in enumerate(schedule.timesteps):
        clean = predict(latents, share(step).expand(1).to(device))
        latents = schedule.step(clean, step, latents).prev_sample
        if run is not None:
            run.report(number + 1, steps, preview=lambda clean=clean: preview(clean))
    return clean


def size_of_magnitude(magnitude: float, static: Tensor, decode: Callable[[float], Tensor]) -> float:
    """What latents are to be multiplied by, so that their frames have the wanted motion magnitude.

    What moves, and how, is the network's; how far is solved for, as the size of latents is all that amplitude is.

    decode: the frames [1, T, 4, H, W], premultiplied, of latents of a size.
    """
    size, power, tried = 1.0, 2.0, None
    for _ in range(AMPLITUDE_STEPS):
        found = float(magnitude_of(decode(size), static))
        if magnitude <= 0 or found < 1e-6 or (tried is not None and found == tried[1]):  # a whole turn is one
            return size
        if tried is not None and tried[0] != size:  # large movements add less: what has moved off moves off once
            power = float(np.clip(np.log(found / tried[1]) / np.log(size / tried[0]), *POWERS))
        tried = size, found
        size = float(np.clip(size * (magnitude / found) ** (1 / power), *AMPLITUDE_LIMITS))
    return size


def magnitude_of(moving: Tensor, static: Tensor) -> Tensor:  # [B, T, 4, H, W] premultiplied -> [B]
    """Eq. 1."""
    return motion_magnitude(moving.permute(0, 1, 3, 4, 2), static.permute(0, 1, 3, 4, 2))


def measured_magnitude(moving: np.ndarray, static: np.ndarray) -> float:
    """Eq. 1 of pictures [T, H, W, 4] uint8, straight alpha."""
    return float(magnitude_of(as_tensor(moving), as_tensor(static)))


def warnings(model: KinesplatSmall, prompt: str, heeded: Callable[[str], bool] = lambda word: False) -> list[str]:
    """What the user should know about the prompt; heeded: which words were, although the model does not know them."""
    unknown = [word for word in model.vocabulary.unknown(prompt) if not heeded(word)]
    if not unknown:
        return []
    return [f"The model does not know: {', '.join(unknown)}. It went by the other words and by what it saw."]


def as_tensor(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:  # [1, T, 4, H, W]
    """Pictures [T, H, W, 4] uint8 with straight alpha -> premultiplied, 0..1."""
    values = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).float() / 255
    return torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], -1).permute(0, 3, 1, 2)[None]


def as_pictures(frames: Tensor) -> np.ndarray:  # [T, H, W, 4] uint8
    """The reverse of `as_tensor`."""
    values = frames[0].permute(0, 2, 3, 1).cpu()
    color = values[..., :3] / values[..., 3:].clamp_min(1e-3)
    return (torch.cat([color, values[..., 3:]], -1).clamp(0, 1) * 255).round().byte().numpy()


def told_by(frames: GeneratedFrames) -> SurfaceMotion | None:
    """The movement that generated frames show, where it is known."""
    known = frames.points, frames.movement, frames.cameras.times
    if frames.points is None:
        return None
    return SurfaceMotion(*(torch.from_numpy(array).float() for array in known))


def resized(pictures: np.ndarray, cameras: Cameras, pixels: int) -> Views:
    """Views [V, H, W, 4] uint8 with H = W at another size."""
    if cameras.width == pixels:
        return Views(pictures, cameras)
    values = functional.interpolate(as_tensor(pictures)[0], (pixels, pixels), mode="bilinear", antialias=True)
    scale = np.diag([pixels / cameras.width, pixels / cameras.height, 1.0])
    return Views(as_pictures(values[None]), replace(cameras, Ks=scale @ cameras.Ks, width=pixels, height=pixels))


def observations(pictures: np.ndarray, cameras: Cameras) -> Observations:
    """Pictures [T, H, W, 4] uint8 as construction takes them."""
    return Observations(as_tensor(pictures)[0].permute(0, 2, 3, 1).contiguous(), cameras)


def picture(frames: Tensor) -> np.ndarray:  # [2 H, 4 W, 3] uint8
    """Eight of the frames [1, T, 4, H, W] on white, to look at while more is to come."""
    chosen = torch.linspace(0, frames.shape[1] - 1, PREVIEW_FRAMES).round().long()
    return tiled(over_white(frames[0, chosen].movedim(1, -1)).unflatten(0, (2, -1)))


def _stages(kind: str, building: bool, *, generated: bool) -> dict[str, float]:
    """The stages of a request, by their share of the time."""
    stages = {READING: 0.02}
    if not generated:
        stages |= {STILL: 0.5} if kind != "object" else {}
        stages |= {MOVING: 0.7}
    return stages | ({**STAGE_SHARES, clips.WRITING: 0.03} if building else {})


def _resumed(folder: Path) -> GeneratedFrames | None:
    """What a former attempt at the same job has generated."""
    path = folder / FRAMES_NAME
    return read_frames(path) if path.exists() else None


def _given_views(still: dict, blob: Callable[[str], Path]) -> tuple[Views, Views | None]:
    """Static orbit and further views of a request; see `_split`."""
    seen = read_observations([blob(name) for name in still["frames"]], Cameras.from_json(still["cameras"]))
    return _split(Views(as_pictures(seen.images.permute(0, 3, 1, 2)[None]), seen.cameras))


def _split(still: Views) -> tuple[Views, Views | None]:
    """Views of time 0 as the static orbit, with the times of the moving orbit that is to come, and further ones."""
    orbit, further = (
        Views(still.pictures[part], still.cameras.picked(part))
        for part in (slice(GENERATED_FRAMES), slice(GENERATED_FRAMES, None))
    )
    times = np.linspace(0, 1, len(orbit.pictures))
    orbit = orbit._replace(cameras=replace(orbit.cameras, times=times))
    return orbit, further if len(further.pictures) else None


def _beside(further: Views | None) -> dict:
    """Further views as fields of `GeneratedFrames`."""
    return {} if further is None else {"further": further.pictures, "further_cameras": further.cameras}
