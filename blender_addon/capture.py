# SPDX-License-Identifier: GPL-3.0-or-later
"""From the panel's settings to requests in the outbox: renders what is to be rendered and writes all of it to disk.

A `CaptureRun` is advanced by whoever has time: the job tracker's timer in a window, a plain loop in background mode.
"""

import contextlib
import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np

from . import orbit_render, reference_image, settings, video_source
from .capture_progress import CaptureProgress
from .client import file_problem
from .clip_space import measure_steps
from .contract.orbit import FURTHER_VIEWS, Cameras, Orbit, frame_name
from .contract.requests import (
    BOUNDS,
    GENERATED_FRAMES,
    MAX_NAME_LENGTH,
    build_request,
    file_sha256,
    generation_request,
    orbit_request,
    video_request,
)
from .job_records import JobRecord, JobRecords
from .subject import CaptureError, find_subject

SUBJECT_UUID = "kinesplat_source"  # custom property of source objects, by which a job finds its own again
STAGE_TEXTS = {
    "waiting": "Waiting for a Render to End",
    "measure": "Measuring the Motion",
    "moving": "Rendering the Motion",
    "static": "Rendering All Sides",
    "surface": "Following the Surface",
    "copy": "Copying the Video",
    "hash": "Packing",
}
MEASURE_WEIGHT = 0.1  # of a measured moment, where a rendered picture counts 1
HASHES_PER_STEP = 8  # files; a few milliseconds
HASH_BYTES = 8 << 20  # the same of one file
MADE_UP_SIZE = 2.0  # meters, longest side of what comes out of a text, an image or a video: as Blender's own primitives

Steps = Generator[CaptureProgress, None, None]
MakeRequest = Callable[[dict[Path, str], int], dict]  # sha256 by file, seed -> request


class CaptureRun:
    """One capture on its way. `step` until it says True, or `close`."""

    def __init__(self, store: JobRecords, record: JobRecord, steps: Steps, weights: dict[str, float]) -> None:
        self.record = record
        self.jobs = [record]  # grows where several candidates were asked for
        self.fraction = 0.0
        self.text = "Starting"
        self.weights = weights  # of the stages to come, in order
        self._store = store
        self._steps = steps

    def step(self) -> bool:
        """Do a little more; True when all requests lie complete in the outbox.

        Raises:
            CaptureError: it cannot go on. What was written is removed.
        """
        try:
            progress = next(self._steps)
        except StopIteration:
            self.fraction = 1.0
            return True
        except CaptureError:
            self.close()
            raise
        except OSError as error:
            self.close()
            problem = file_problem(error, error.filename or self._store.outbox(self.record.uid))
            raise CaptureError(f"{problem} {problem.hint}".strip()) from error
        except BaseException:
            self.close()
            raise
        self._show(progress)
        return False

    def finish(self) -> None:
        """All remaining steps at once, for background mode. Raises CaptureError."""
        while not self.step():
            pass

    def close(self) -> None:
        """Give up and remove what was written."""
        self._steps.close()
        for record in self.jobs:
            self._store.remove(record.uid)

    def _show(self, progress: CaptureProgress) -> None:
        self.text = STAGE_TEXTS.get(progress.stage, progress.stage)
        if progress.stage not in self.weights:
            return
        before = 0.0
        for stage, weight in self.weights.items():
            if stage == progress.stage:
                before += weight * progress.done / max(progress.total, 1)
                break
            before += weight
        self.fraction = max(self.fraction, before / sum(self.weights.values()))


def begin(context: bpy.types.Context, store: JobRecords) -> CaptureRun:
    """Check what the panel asks for and prepare its capture; nothing is rendered yet.

    Raises:
        CaptureError: the source cannot be used, or the frame range holds no motion.
    """
    beginnings = {"OBJECT": _begin_object, "TEXT": _begin_made_up, "IMAGE": _begin_made_up, "VIDEO": _begin_video}
    return beginnings[context.scene.kinesplat.kind](context, store)


def _begin_object(context: bpy.types.Context, store: JobRecords) -> CaptureRun:
    """An object: its own motion is captured, or it is captured as it stands and a motion is invented for it."""
    options = context.scene.kinesplat
    source = settings.source_object(context)
    find_subject(context, source)
    invents = options.motion_source == "INVENT"
    may_invent = invents or (options.motion_source == "AUTO" and not settings.looks_animated(source))
    now = context.scene.frame_current
    first, last = (now, now) if invents else settings.frame_range(context.scene)
    if last <= first and not may_invent:
        raise CaptureError(f"The frame range {first} to {last} holds no motion. Choose an end after the start.")
    last = max(first, last)
    record = _record(
        source.name, "orbit", subject=source.name, subject_uuid=_subject_uuid(source), blend_file=bpy.data.filepath,
        frame_start=first, frame_end=last,
    )  # fmt: skip
    folder = store.outbox(record.uid)
    orbit = Orbit(frames=options.frames, elevation=options.elevation)
    how = {"samples": options.samples, "engine": None if options.engine == "AUTO" else options.engine}
    how_moving = {"resolution": options.resolution, "static": options.capture_static, **how}
    how_still = {"resolution": options.resolution, "fps": BOUNDS["fps"].default, **how}
    generation, quality, seeds = _generation_options(options), _quality(options), _seeds(options)

    def steps() -> Steps:
        space = yield from measure_steps(context, source, (first, last), frames=orbit.frames)
        if may_invent and not space.moves:
            run.weights.pop("moving", None)
            record.kind, record.result_kind = "object", generation["result"]
            record.name = _name(record.name, generation["prompt"])
            still_orbit = replace(orbit, frames=GENERATED_FRAMES)
            capturing = orbit_render.capture_still_steps(space, still_orbit, folder, **how_still)
        else:
            capturing = orbit_render.capture_motion_steps(space, orbit, folder, **how_moving)
        with contextlib.closing(capturing):
            captured = yield from capturing
        record.matrix_world = (captured.space.to_world @ np.linalg.inv(captured.space.to_object)).tolist()
        paths = [
            folder / kind / frame_name(index)
            for kind in ("moving", "static")
            if (cameras := getattr(captured, kind)) is not None
            for index in range(len(cameras.times))
        ]
        if captured.surface is not None:
            paths.append(captured.surface)

        def request(hashes: dict[Path, str], seed: int) -> dict:
            moving = _orbit_json(folder / "moving", captured.moving, hashes)
            static = _orbit_json(folder / "static", captured.static, hashes)
            surface = hashes.get(captured.surface)
            to_object = captured.space.to_object.tolist()
            fps = min(max(captured.fps, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum)
            shared = {"seed": seed, "fps": fps, **quality}
            if moving is None:
                shared |= {"static": static, "surface": surface, **generation}
                return generation_request("object", record.name, to_object, **shared)
            space = captured.space
            travel = (space.travel / space.scale).tolist() if space.travels else None
            return orbit_request(record.name, moving, static, surface, to_object, travel, **shared)

        yield from _seal_steps(run, store, paths, seeds if captured.moving is None else seeds[:1], request)

    weights = {"measure": MEASURE_WEIGHT * orbit.frames}
    weights |= {} if invents else {"moving": float(orbit.frames)}
    weights |= {"static": float(orbit.frames + FURTHER_VIEWS)} if may_invent or options.capture_static else {}
    weights |= {"surface": 1.0 if invents else MEASURE_WEIGHT * orbit.frames, "hash": 1.0}
    run = CaptureRun(store, record, steps(), weights)
    return run


def _begin_made_up(context: bpy.types.Context, store: JobRecords) -> CaptureRun:
    """Text or an image: there is nothing to render."""
    options = context.scene.kinesplat
    generation, quality, seeds = _generation_options(options), _quality(options), _seeds(options)
    if options.kind == "TEXT" and not generation["prompt"]:
        raise CaptureError("There is no prompt. Describe what to make, such as: a fox runs.")
    if options.kind == "IMAGE" and (problem := reference_image.image_problem(options.image)):
        raise CaptureError(f"{problem}.")
    image = options.image.name_full if options.kind == "IMAGE" else ""
    start = context.scene.frame_start
    name = _name(Path(image).stem, generation["prompt"]) if image else generation["prompt"]
    record = _record(name, options.kind.lower(), frame_start=start, frame_end=start + GENERATED_FRAMES - 1)
    record.result_kind = generation["result"]
    folder = store.outbox(record.uid)
    to_object = _made_up_place(context.scene)

    def steps() -> Steps:
        folder.mkdir(parents=True)
        picture = folder / "image.png" if image else None
        if picture:
            reference_image.write_image(image, picture)

        def request(hashes: dict[Path, str], seed: int) -> dict:
            shared = {"image": hashes.get(picture), "seed": seed, **quality, **generation}
            return generation_request(record.kind, record.name, to_object, **shared)

        yield from _seal_steps(run, store, [picture] if picture else [], seeds, request)

    run = CaptureRun(store, record, steps(), {"hash": 1.0})
    return run


def _begin_video(context: bpy.types.Context, store: JobRecords) -> CaptureRun:
    """A video: its file, or the pictures of its sequence, are copied."""
    options = context.scene.kinesplat
    source = video_source.chosen_part(video_source.chosen_video(context.scene), options)
    # The clip plays as long as the video does, and begins where the scene shows it.
    fps = video_source.stored_fps(source, options.video_frames)
    start = context.scene.frame_start if source.scene_frame is None else round(source.scene_frame)
    end = start + round(source.seconds * context.scene.render.fps / context.scene.render.fps_base)
    record = _record(_name(source.name, _prompt(options)), "video", frame_start=start, frame_end=end)
    folder, seed = store.outbox(record.uid), options.seed
    to_object = _made_up_place(context.scene)
    asked = {
        "frames": options.video_frames,
        "cutout": options.cutout,
        "prompt": _prompt(options),
        "model": options.model,
        "representation": options.representation,
        "fps": fps,
        **_quality(options),
    }

    def steps() -> Steps:
        packing = video_source.pack_steps(source, folder)
        try:
            while True:
                yield CaptureProgress("copy", *next(packing))
        except StopIteration as stop:
            packed = stop.value

        def request(hashes: dict[Path, str], seed: int) -> dict:
            return video_request(record.name, to_object, **packed.inputs(hashes), seed=seed, **asked)

        yield from _seal_steps(run, store, packed.paths, [seed], request)

    run = CaptureRun(store, record, steps(), {"copy": 1.0, "hash": 1.0})
    return run


def _seal_steps(
    run: CaptureRun, store: JobRecords, paths: list[Path], seeds: list[int], make_request: MakeRequest
) -> Steps:
    """Hash the files and seal an outbox for each seed; all of them hold the same files."""
    first = run.record
    folder = store.outbox(first.uid)
    hashes: dict[Path, str] = {}
    for index, path in enumerate(paths):
        if index % HASHES_PER_STEP == 0:
            yield CaptureProgress("hash", index, len(paths))
        hashes[path] = yield from _hash_steps(path, index, len(paths))
    blobs = {sha256: path.relative_to(folder).as_posix() for path, sha256 in hashes.items()}
    if first.result_kind == "frames":
        first.group = first.uid
        # The list shows the newest on top: the later candidates are made to look older, so that they stand below.
        run.jobs += [
            replace(first, uid=str(uuid.uuid4()), created=first.created - 1e-3 * i) for i in range(1, len(seeds))
        ]
    requests = [make_request(hashes, seed) for seed in seeds]
    for record, request, seed in zip(run.jobs, requests, seeds, strict=True):
        if record.result_kind == "frames" or seed != BOUNDS["seed"].default:  # of several tries, each is to be known
            record.name = request["name"] = _seed_name(record.name, seed)
        if record is not first:
            shutil.copytree(folder, store.outbox(record.uid))
        if record.result_kind == "frames":
            record.request = request
        store.save(record)
    for record, request in zip(run.jobs, requests, strict=True):  # the last thing: what is sealed is sent
        store.seal_outbox(record.uid, request, blobs)


def _hash_steps(path: Path, done: int, total: int) -> Generator[CaptureProgress, None, str]:
    """The sha256 of the file that comes after `done` of `total` others; yields where it is large."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_BYTES):
            if file.tell() > HASH_BYTES:
                yield CaptureProgress("hash", done, total)
            sha256.update(chunk)
    return sha256.hexdigest()


def build(store: JobRecords, candidate: JobRecord, frames: Path, *, preset: str, gaussians: int) -> JobRecord:
    """Put the construction of a candidate into the outbox.

    Args:
        store: where records and outboxes lie.
        candidate: of the job that has made the frames.
        frames: their file.
        preset, gaussians: how much work goes into the construction.

    Raises:
        OSError: the frames cannot be read, or the request cannot be written. Nothing is left behind.
    """
    request = build_request(candidate.request, file_sha256(frames))
    request["settings"] = {**request["settings"], "preset": preset, "gaussians": gaussians}
    record = replace(
        candidate, uid=str(uuid.uuid4()), job_id="", state="queued", created=time.time(),
        imported=0, result_kind="clip", group="", request={}, warnings=[],
    )  # fmt: skip
    folder = store.outbox(record.uid)
    try:
        folder.mkdir(parents=True)
        shutil.copyfile(frames, folder / "generated.npz")
        store.save(record)
        store.seal_outbox(record.uid, request, {request["inputs"]["generated"]: "generated.npz"})
    except OSError:
        store.remove(record.uid)
        raise
    return record


def _made_up_place(scene: bpy.types.Scene) -> list[list[float]]:
    """From clip space to the scene: so large in its own unit, such as centimeters."""
    units = scene.unit_settings
    size = MADE_UP_SIZE if units.system == "NONE" else MADE_UP_SIZE / units.scale_length
    return np.diag([size] * 3 + [1.0]).tolist()


def _record(name: str, kind: str, **fields) -> JobRecord:
    return JobRecord(uid=str(uuid.uuid4()), name=name[:MAX_NAME_LENGTH], kind=kind, created=time.time(), **fields)


def _name(subject: str, prompt: str) -> str:
    """Of a job: what it is made of, and what that is to do, so that several of one subject can be told apart."""
    return f"{subject}, {prompt}"[:MAX_NAME_LENGTH] if prompt else subject


def _seed_name(name: str, seed: int) -> str:
    ending = f", Seed {seed}"
    return name[: MAX_NAME_LENGTH - len(ending)] + ending


def _seeds(options: settings.KINESPLAT_PG_scene) -> list[int]:
    """One seed, or where frames are to be chosen from, as many in a row as there are candidates."""
    count = options.candidates if options.preview_frames else 1
    return [(options.seed + index) % int(BOUNDS["seed"].maximum + 1) for index in range(count)]


def _generation_options(options: settings.KINESPLAT_PG_scene) -> dict:
    """What the panel says about the invented motion."""
    numbers = {name: round(getattr(options, name), 4) for name in ("motion", "guidance_motion", "guidance_static")}
    result = "frames" if options.preview_frames else "clip"
    chosen = {name: getattr(options, name) for name in ("loop", "known_motions", "steps")}
    return {"prompt": _prompt(options), "result": result, **chosen, **numbers}


def _prompt(options: settings.KINESPLAT_PG_scene) -> str:
    """The prompt in one line of letters that can be printed."""
    return "".join(letter for letter in " ".join(options.prompt.split()) if letter.isprintable())


def _quality(options: settings.KINESPLAT_PG_scene) -> dict:
    return {
        "preset": options.preset,
        "gaussians": options.gaussians,
        "sh_degree": options.sh_degree,
        "color_space": options.color_space,
        "motion_model": options.motion_model,
    }


def _orbit_json(folder: Path, cameras: Cameras | None, hashes: dict[Path, str]) -> dict | None:
    if cameras is None:
        return None
    frames = [hashes[folder / frame_name(index)] for index in range(len(cameras.times))]
    return {"frames": frames, "cameras": cameras.to_json()}


def _subject_uuid(source: bpy.types.Object) -> str:
    """The object's own id, given to it now if it has none. Objects of libraries cannot get one."""
    known = source.get(SUBJECT_UUID)
    if isinstance(known, str) and known:
        return known
    if not source.is_editable:
        return ""
    source[SUBJECT_UUID] = str(uuid.uuid4())
    return source[SUBJECT_UUID]


def give_ids(sources: dict[str, str]) -> None:
    """Give objects of these names their ids back, where they have none any more."""
    for name, uid in sources.items():
        source = bpy.data.objects.get(name)
        if source is not None and source.is_editable and SUBJECT_UUID not in source:
            source[SUBJECT_UUID] = uid


def find_source(record: JobRecord) -> bpy.types.Object | None:
    """The object that a job came from, if the open file has it: by its own id, else, in the same file, by name.

    In another file, an object of that name is another object: `Cube` and `Armature` are everywhere. So it is in a file
    that was never saved, which has no name to be known by.
    """
    same_id = [obj for obj in bpy.data.objects if record.subject_uuid and obj.get(SUBJECT_UUID) == record.subject_uuid]
    same_name = [obj for obj in same_id if obj.name == record.subject]  # a duplicate carries the same id
    is_same_file = record.blend_file == bpy.data.filepath and (bpy.data.filepath or not record.subject_uuid)
    by_name = bpy.data.objects.get(record.subject) if is_same_file else None
    return next(iter(same_name or same_id), by_name)
