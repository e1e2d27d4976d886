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
from backend.models.diffusion import denoise
from backend.models.kinesplat_small import KinesplatSmall, load
from backend.models.motion_magnitude import frames_magnitude, magnitude_of
from backend.models.precision import matrix_precision
from backend.pipelines import clips, elementary_prompts
from backend.pipelines.coherence import Coherence
from backend.pipelines.elementary import MOTIONS, Elementary
from backend.pipelines.memory_plan import chosen_device
from backend.pipelines.moved_subject import MovedSubject, make_moved_subject
from backend.pipelines.orbit_pictures import (
    PREVIEW_FRAMES,
    Views,
    as_pictures,
    as_tensor,
    observations,
    preview_of,
    resized,
)
from backend.pipelines.recall import recall
from backend.pipelines.still_subject import generate_static
from backend.pipelines.subject_image import read_image
from backend.progress import Run, UserError
from backend.splatting.construct import STAGE_SHARES
from backend.splatting.guide import SurfaceMotion
from backend.splatting.observations import read_observations
from backend.splatting.rasterize import warm_up
from backend.splatting.surface_motion import grown, kept_in_view
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.frames import GeneratedFrames, read_frames, write_frames
from blender_addon.contract.orbit import Cameras, Orbit, further_cameras, joined_cameras, orbit_cameras
from blender_addon.contract.requests import BOUNDS, GENERATED_FRAMES, PUBLISHED, RESOLUTION_BY_PRESET
from blender_addon.contract.surface import SurfaceSamples, read_surface_samples

PIPELINE = "diffusion4d"
READING, STILL, MOVING = "Reading the request", "Making the still subject", "Inventing the motion"
FRAMES_NAME = "frames.npz"
AMPLITUDE_STEPS = 4  # at most, of solving for the amplitude that has the wanted magnitude
AMPLITUDE_NEAR = 0.02  # relative error from which one more correction is right without being measured
AMPLITUDE_LIMITS = (1 / 3, 6.0)  # how far the solved amplitude may lie from the network's own
POWERS = (0.7, 2.0)  # of the size, with which the magnitude may grow


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
        surface = read_surface_samples(blob(inputs["surface"])) if inputs["surface"] else None
    except BadFileError as error:
        raise UserError("bad_input", str(error), "Generate again.") from error
    image = _read_image(blob(inputs["image"])) if inputs["image"] else None
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
    common = {"seed": settings["seed"], "steps": settings["steps"], "run": run, "model": model}
    of_words = static is None and image is None  # what it is, and not only how it moves
    if static is None:
        run.begin(STILL)
        orbit = Orbit(frames=model.frames)
        size = (RESOLUTION_BY_PRESET[settings["preset"]],) * 2
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
        motion_measured=magnitude_of(moving.pictures, static.pictures),
        seed=settings["seed"],
        provenance={
            "models": [{"name": model.name, "licence": model.licence}],
            "warnings": [*run.notes, *told],
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

    shifts = movement.shifts(size_of_magnitude(magnitude, as_tensor(static), sized))
    return MovingOrbit(
        pictures=as_pictures(subject.pictures(shifts)[None]),
        points=subject.surface.points.numpy(),
        movement=subject.movement(shifts).numpy(),
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
    return preview_of(subject.sketch(shifts, few)[None])


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
    if known:
        told = recall(model.motions, prompt, subject.surface, cameras.times, cohere.told, loop=loop, seed=seed)

    def shifts(size: float) -> Tensor:  # [T, B, 3]
        if told is None:
            cohere(latents, size)
            return cohere.in_view()
        size = size * float(cohere.told.norm() / told.shifts.norm())  # what was invented knows about how far
        return kept_in_view(subject.surface, grown(subject.surface.control, told.shifts, size))

    moves_as = "" if told is None else f"{told.subject} {told.action}".strip()
    return Movement(shifts, moves_as, warnings(model, prompt))


def size_of_magnitude(magnitude: float, static: Tensor, decode: Callable[[float], Tensor]) -> float:
    """What latents are to be multiplied by, so that their frames have the wanted motion magnitude.

    What moves, and how, is the network's; how far is solved for, as the size of latents is all that amplitude is.

    decode: the frames [1, T, 4, H, W], premultiplied, of latents of a size.
    """
    size, power, tried = 1.0, 2.0, None
    for _ in range(AMPLITUDE_STEPS):
        found = float(frames_magnitude(decode(size), static))
        if magnitude <= 0 or found < 1e-6 or (tried is not None and found == tried[1]):  # a whole turn is one
            return size
        if tried is not None and tried[0] != size:  # large movements add less: what has moved off moves off once
            power = float(np.clip(np.log(found / tried[1]) / np.log(size / tried[0]), *POWERS))
        tried = size, found
        size = float(np.clip(size * (magnitude / found) ** (1 / power), *AMPLITUDE_LIMITS))
        if abs(found / magnitude - 1) < AMPLITUDE_NEAR:
            break
    return size


def warnings(model: KinesplatSmall, prompt: str, heeded: Callable[[str], bool] = lambda word: False) -> list[str]:
    """What the user should know about the prompt; heeded: which words were, although the model does not know them."""
    unknown = [word for word in model.vocabulary.unknown(prompt) if not heeded(word)]
    if not unknown:
        return []
    return [f"The model does not know: {', '.join(unknown)}. It went by the other words and by what it saw."]


def told_by(frames: GeneratedFrames) -> SurfaceMotion | None:
    """The movement that generated frames show, where it is known."""
    known = frames.points, frames.movement, frames.cameras.times
    if frames.points is None:
        return None
    return SurfaceMotion(*(torch.from_numpy(array).float() for array in known))


def _stages(kind: str, building: bool, *, generated: bool) -> dict[str, float]:
    """The stages of a request, by their share of the time."""
    stages = {READING: 0.02}
    if not generated:
        stages |= {STILL: 0.5} if kind != "object" else {}
        stages |= {MOVING: 0.7}
    return stages | ({**STAGE_SHARES, clips.WRITING: 0.03} if building else {})


def _read_image(path: Path) -> np.ndarray:  # [H, W, 4] uint8
    try:
        return read_image(path)
    except BadFileError as error:
        raise UserError("bad_input", str(error), "Choose another one, or save it as PNG, JPEG or WebP.") from error


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
