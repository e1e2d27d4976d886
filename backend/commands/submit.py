# SPDX-License-Identifier: GPL-3.0-or-later
"""The request that `jobs submit` sends: the one that the add-on sends for the same subject."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from backend.options import fit_options, motion_options, one_line, video_inputs, video_options
from blender_addon.contract.orbit import frame_name, read_orbit_json
from blender_addon.contract.requests import (
    BOUNDS,
    MAX_NAME_LENGTH,
    RESOLUTION_BY_PRESET,
    generation_request,
    orbit_request,
    video_request,
)

IDENTITY = np.eye(4).tolist()  # object space is clip space


def request_of(options: argparse.Namespace, client) -> dict:
    """The request of what the options name, whose blobs have been sent.

    Raises:
        UserError: an input cannot be used, or the backend does not take it.
        BadFileError, OSError: an input cannot be read.
    """
    if options.orbit:
        return request_of_orbit(options, client)
    if options.video:
        return request_of_video(options, client)
    settings = {"prompt": one_line(options.text), "model": options.model, **motion_options(options)}
    settings |= {**fit_options(options), "fps": options.fps or BOUNDS["fps"].default}
    if options.image:
        name = name_of(options, options.image.resolve().stem)
        return generation_request("image", name, IDENTITY, image=client.upload(options.image), **settings)
    if not options.object:
        return generation_request("text", name_of(options, ""), IDENTITY, **settings)
    with tempfile.TemporaryDirectory(prefix="kinesplat-") as folder:
        captured = capture(options.object, Path(folder), options.preset)
        cameras = read_orbit_json(captured.static)
        frames = [client.upload(captured.static / frame_name(index)) for index in range(len(cameras.times))]
        return generation_request(
            "object",
            name_of(options, options.object.resolve().stem),
            captured.to_object,
            static={"frames": frames, "cameras": cameras.to_json()},
            surface=client.upload(captured.surface),
            **settings,
        )


def capture(file: Path, folder: Path, preset: str):
    """A model file seen from all around, with a progress bar; see `capture_object`."""
    from backend.console import progress_bar
    from backend.data.object_capture import capture_object
    from backend.progress import Run

    with progress_bar() as show:
        run = Run(folder, on_progress=show)
        return capture_object(file, folder, run, resolution=RESOLUTION_BY_PRESET[preset])  # as the add-on captures


def request_of_orbit(options: argparse.Namespace, client) -> dict:
    """A request of kind `orbit`."""
    from backend.splatting.orbit_folders import OrbitFiles, find_orbits

    def sent(orbit: OrbitFiles) -> dict:
        return {"frames": [client.upload(path) for path in orbit.frames], "cameras": orbit.cameras.to_json()}

    moving, static = (orbit and sent(orbit) for orbit in find_orbits(options.orbit, options.static))
    surface = client.upload(options.surface) if options.surface else None
    name, fps = name_of(options, options.orbit.resolve().name), options.fps or BOUNDS["fps"].default
    return orbit_request(name, moving, static, surface, IDENTITY, fps=fps, **fit_options(options))


def request_of_video(options: argparse.Namespace, client) -> dict:
    """A request of kind `video`."""
    said = video_options(options)
    inputs = video_inputs(options.video, said.pop("start", 0.0), said.pop("end", None), options.fps, client.upload)
    settings = {"prompt": one_line(options.text), "model": options.model, **said, **fit_options(options)}
    return video_request(name_of(options, options.video.resolve().stem), IDENTITY, **inputs, **settings)


def name_of(options: argparse.Namespace, subject: str) -> str:
    """What the job is called: as the add-on calls it, if nobody said anything else."""
    return (options.name or ", ".join(filter(None, (subject, one_line(options.text)))))[:MAX_NAME_LENGTH]
