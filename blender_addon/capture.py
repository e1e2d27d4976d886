# SPDX-License-Identifier: GPL-3.0-or-later
"""From the panel's settings to a request in the outbox: renders the orbits step by step and writes all of it to disk.

A `CaptureRun` is advanced by whoever has time: the job tracker's timer in a window, a plain loop in background mode.
"""

import contextlib
import time
import uuid
from collections.abc import Generator
from pathlib import Path

import bpy
import numpy as np

from . import orbit_render, settings
from .client import file_problem
from .contract.orbit import Cameras, Orbit, frame_name
from .contract.requests import BOUNDS, MAX_NAME_LENGTH, file_sha256, orbit_request
from .job_records import JobRecord, JobRecords
from .subject import CaptureError, find_subject

SUBJECT_UUID = "kinesplat_source"  # custom property of source objects, by which a job finds its own again
STAGE_TEXTS = {
    "waiting": "Waiting for a Render to End",
    "measure": "Measuring the Motion",
    "moving": "Rendering the Motion",
    "static": "Rendering All Sides",
    "surface": "Sampling the Surface",
    "hash": "Packing",
}
MEASURE_WEIGHT = 0.1  # of a measured moment, where a rendered picture counts 1
HASHES_PER_STEP = 8  # files; a few milliseconds


class CaptureRun:
    """One capture on its way. `step` until it says True, or `close`."""

    def __init__(self, records: JobRecords, record: JobRecord, steps: Generator, weights: dict[str, float]) -> None:
        self.record = record
        self.fraction = 0.0
        self.text = "Starting"
        self._records = records
        self._steps = steps
        self._weights = weights

    def step(self) -> bool:
        """Do a little more; True when the request lies complete in the outbox.

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
            problem = file_problem(error, error.filename or self._records.outbox(self.record.uid))
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
        self._records.remove(self.record.uid)

    def _show(self, progress: orbit_render.CaptureProgress) -> None:
        self.text = STAGE_TEXTS.get(progress.stage, progress.stage)
        if progress.stage not in self._weights:
            return
        before = 0.0
        for stage, weight in self._weights.items():
            if stage == progress.stage:
                before += weight * progress.done / max(progress.total, 1)
                break
            before += weight
        self.fraction = max(self.fraction, before / sum(self._weights.values()))


def begin(context: bpy.types.Context, records: JobRecords) -> CaptureRun:
    """Check the subject and prepare its capture; nothing is rendered yet.

    Raises:
        CaptureError: the object cannot be captured, or the frame range holds no motion.
    """
    options = context.scene.kinesplat
    source = settings.source_object(context)
    find_subject(context, source)
    frame_range = settings.frame_range(context.scene)
    if frame_range[1] <= frame_range[0]:
        raise CaptureError(
            f"The frame range {frame_range[0]} to {frame_range[1]} holds no motion. Choose an end after the start."
        )
    record = JobRecord(
        uid=str(uuid.uuid4()),
        name=source.name[:MAX_NAME_LENGTH],
        subject=source.name,
        subject_uuid=_subject_uuid(source),
        frame_start=frame_range[0],
        frame_end=frame_range[1],
        created=time.time(),
    )
    folder = records.outbox(record.uid)
    orbit = Orbit(frames=options.frames, elevation=options.elevation)
    capturing = orbit_render.capture_steps(
        context,
        source,
        orbit,
        folder,
        frame_range=frame_range,
        resolution=options.resolution,
        static=options.capture_static,
        samples=options.samples,
        engine=None if options.engine == "AUTO" else options.engine,
    )
    request_options = {"preset": options.preset, "gaussians": options.gaussians, "seed": options.seed}
    weights = {"measure": MEASURE_WEIGHT * options.frames, "moving": float(options.frames)}
    if options.capture_static:
        weights["static"] = float(options.frames)
    weights |= {"surface": 1.0, "hash": 1.0}
    return CaptureRun(records, record, _steps(capturing, records, record, request_options), weights)


def _steps(
    capturing: Generator, records: JobRecords, record: JobRecord, options: dict
) -> Generator[orbit_render.CaptureProgress, None, None]:
    """Capture, hash, and seal the outbox."""
    with contextlib.closing(capturing):
        captured: orbit_render.Capture = yield from capturing
    folder = records.outbox(record.uid)
    orbits = {"moving": captured.moving, "static": captured.static}
    paths = [
        folder / kind / frame_name(index)
        for kind, cameras in orbits.items()
        if cameras is not None
        for index in range(len(cameras.times))
    ]
    if captured.surface is not None:
        paths.append(captured.surface)
    hashes: dict[Path, str] = {}
    for index, path in enumerate(paths):
        hashes[path] = file_sha256(path)
        if index % HASHES_PER_STEP == 0:
            yield orbit_render.CaptureProgress("hash", index, len(paths))

    def orbit_json(kind: str, cameras: Cameras | None) -> dict | None:
        if cameras is None:
            return None
        frames = [hashes[folder / kind / frame_name(index)] for index in range(len(cameras.times))]
        return {"frames": frames, "cameras": cameras.to_json()}

    fps = BOUNDS["fps"]
    request = orbit_request(
        record.name,
        orbit_json("moving", captured.moving),
        orbit_json("static", captured.static),
        None if captured.surface is None else hashes[captured.surface],
        captured.space.to_object.tolist(),
        fps=min(max(captured.fps, fps.minimum), fps.maximum),
        **options,
    )
    record.matrix_world = (captured.space.to_world @ np.linalg.inv(captured.space.to_object)).tolist()
    records.save(record)
    records.seal_outbox(
        record.uid, request, {sha256: path.relative_to(folder).as_posix() for path, sha256 in hashes.items()}
    )


def _subject_uuid(source: bpy.types.Object) -> str:
    """The object's own id, given to it now if it has none. Objects of libraries cannot get one."""
    known = source.get(SUBJECT_UUID)
    if isinstance(known, str) and known:
        return known
    if not source.is_editable:
        return ""
    source[SUBJECT_UUID] = str(uuid.uuid4())
    return source[SUBJECT_UUID]


def find_source(record: JobRecord) -> bpy.types.Object | None:
    """The object that a job came from, if the open file has it: by its own id, else by name."""
    same_id = [obj for obj in bpy.data.objects if record.subject_uuid and obj.get(SUBJECT_UUID) == record.subject_uuid]
    same_name = [obj for obj in same_id if obj.name == record.subject]  # a duplicate carries the same id
    return next(iter(same_name or same_id), None) or bpy.data.objects.get(record.subject)
