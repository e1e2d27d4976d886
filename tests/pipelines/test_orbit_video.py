# SPDX-License-Identifier: GPL-3.0-or-later
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.evaluation.metrics import track_error
from backend.pipelines import clips, orbit_video
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import CHECKPOINT_NAME
from backend.splatting.engine import CPU, Engine
from backend.splatting.observations import Observations
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.clip import read_clip
from blender_addon.contract.orbit import frame_name, write_orbit_json
from blender_addon.contract.requests import file_sha256, orbit_request
from blender_addon.contract.surface import SurfaceSamples, write_surface_samples
from tests.contract.clips import random_clip
from tests.splatting.scenes import swinging_arm


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets with few steps: here it is about the way, not about the quality."""
    for_preset = ConstructConfig.for_preset
    few = {"shape_steps": 5, "coarse_steps": 6, "fine_steps": 4, "control_points": 16, "coarse_gaussians": 100}
    monkeypatch.setattr(ConstructConfig, "for_preset", lambda *arguments: replace(for_preset(*arguments), **few))


@pytest.fixture(scope="module")
def orbits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `moving` and `static`, and `surface.npz`."""
    folder = tmp_path_factory.mktemp("orbits")
    scene = swinging_arm()
    for name in ("moving", "static"):
        write_orbit_folder(folder / name, getattr(scene, name))
    write_surface_samples(folder / "surface.npz", scene.surface)
    return folder


def write_orbit_folder(folder: Path, views: Observations) -> None:
    folder.mkdir()
    write_orbit_json(folder, views.cameras)
    for i, image in enumerate(views.images.numpy()):
        straight = np.concatenate([image[..., :3] / np.maximum(image[..., 3:], 1e-6), image[..., 3:]], axis=-1)
        Image.fromarray((straight.clip(0, 1) * 255).round().astype(np.uint8)).save(folder / frame_name(i))


@pytest.fixture
def submitted(orbits: Path, tmp_path: Path):
    """A request and its blobs, as the service hands them over."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()

    def store(path: Path) -> str:
        name = file_sha256(path)
        (blobs / name).write_bytes(path.read_bytes())
        return name

    def orbit(name: str) -> dict:
        data = json.loads((orbits / name / "orbit.json").read_text())
        frames = [store(orbits / name / frame_name(i)) for i in range(len(data["times"]))]
        return {"frames": frames, "cameras": data}

    to_object = [[2.0, 0, 0, 1], [0, 2, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]
    request = orbit_request(
        "Arm", orbit("moving"), orbit("static"), store(orbits / "surface.npz"), to_object, gaussians=500, fps=30
    )
    return request, blobs.joinpath


def test_a_request_becomes_a_clip_with_its_history(submitted, tmp_path: Path) -> None:
    request, blob = submitted
    steps: list[Progress] = []
    path = orbit_video.run_request(request, blob, Run(tmp_path / "job", on_progress=steps.append))
    assert path == tmp_path / "job" / "clip.npz"
    clip = read_clip(path)
    assert (clip.name, clip.fps, clip.count, clip.frame_count) == ("Arm", 30.0, 500, 9)
    assert clip.color_space == "srgb"
    np.testing.assert_array_equal(clip.to_object, request["inputs"]["to_object"])
    assert clip.provenance["pipeline"] == "orbit"
    assert clip.provenance["settings"] == request["settings"]
    assert clip.provenance["construction"]["gaussians"] == 500
    assert set(clip.provenance["versions"]) >= {"kinesplat", "torch", "numpy"}
    assert clip.provenance["stage_seconds"]["Fitting the motion"] > 0
    assert steps[-1].fraction == 1.0
    # The checkpoint stays until the service has stored the clip: a kill in between must not repeat the work.
    assert {entry.name for entry in path.parent.iterdir()} == {"clip.npz", "construct.npz"}


def test_what_travels_has_its_way_added(submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, blob = submitted
    on_the_spot = random_clip(frames=9)
    monkeypatch.setattr(clips, "construct_clip", lambda *arguments: on_the_spot)
    way = np.linspace([0, 0, 0], [3, -2, 1], 9)
    request["inputs"]["travel"] = way.tolist()
    clip = read_clip(orbit_video.run_request(request, blob, Run(tmp_path / "job")))
    for t in range(9):
        np.testing.assert_allclose(clip.frame(t).means, on_the_spot.frame(t).means + way[t], atol=1e-5)


def test_a_gpu_that_cannot_be_used_is_a_warning_of_the_clip_or_an_error_if_asked_for(
    submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, blob = submitted
    asked = []

    def choose(wanted: str, on_message) -> Engine:
        asked.append(wanted)
        on_message("Compiling gsplat's CUDA kernels")
        if wanted == "cuda":
            raise UserError("gsplat_broken", "nvcc failed.")
        return Engine(CPU.device, CPU.name, ("Splatting ran on the CPU, not on the GPU. nvcc failed.",))

    monkeypatch.setattr(clips, "choose_engine", choose)
    steps: list[Progress] = []
    clip = read_clip(orbit_video.run_request(request, blob, Run(tmp_path / "job", on_progress=steps.append)))
    assert clip.provenance["warnings"] == ["Splatting ran on the CPU, not on the GPU. nvcc failed."]
    assert clip.provenance["engine"] == "CPU"
    assert "Compiling gsplat's CUDA kernels" in [progress.stage for progress in steps]
    with pytest.raises(UserError, match="nvcc failed"):
        orbit_video.run_request(request, blob, Run(tmp_path / "job", device="cuda"))
    assert asked == ["auto", "cuda"]


def test_static_orbit_and_surface_are_optional(submitted, tmp_path: Path) -> None:
    request, blob = submitted
    request["inputs"] |= {"static": None, "surface": None}
    assert read_clip(orbit_video.run_request(request, blob, Run(tmp_path / "job"))).frame_count == 9


def test_a_surface_that_tells_how_it_moves_is_followed(submitted, tmp_path: Path) -> None:
    request, blob = submitted
    scene = swinging_arm()
    points = scene.tracks[0]
    normals = np.tile(np.float32([0, 0, 1]), (len(points), 1))
    errors = []
    for name, samples in (
        ("followed", SurfaceSamples(points, normals, scene.tracks - points)),
        ("standing", SurfaceSamples(points, normals)),
    ):
        write_surface_samples(tmp_path / f"{name}.npz", samples)
        request["inputs"]["surface"] = name
        place = lambda sha256, path=tmp_path / f"{name}.npz": path if sha256 == name else blob(sha256)  # noqa: E731, B023
        clip = read_clip(orbit_video.run_request(request, place, Run(tmp_path / name)))
        assert clip.provenance["guided"] == (name == "followed")
        errors.append(track_error(clip.frames().means, scene.tracks))
    assert errors[0] < 0.15 < errors[1]


def test_a_request_with_an_unusable_picture_fails_with_a_sentence(submitted, tmp_path: Path) -> None:
    request, blob = submitted
    broken = blob(request["inputs"]["moving"]["frames"][2])
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read") as caught:
        orbit_video.run_request(request, blob, Run(tmp_path / "job"))
    assert caught.value.code == "bad_input"
    assert not (tmp_path / "job" / "clip.npz").exists()


def test_a_cancelled_request_leaves_no_clip(submitted, tmp_path: Path) -> None:
    request, blob = submitted
    calls = iter(range(1000))
    run = Run(tmp_path / "job", is_cancelled=lambda: next(calls) > 8)
    with pytest.raises(JobCancelled):
        orbit_video.run_request(request, blob, run)
    assert not (tmp_path / "job" / "clip.npz").exists()


def test_the_model_of_motion_is_the_one_asked_for(submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, blob = submitted
    request = {**request, "settings": {**request["settings"], "motion_model": "hexplane"}}
    asked = []

    def construct(*inputs, **_):
        asked.extend(value for value in inputs if isinstance(value, ConstructConfig))
        raise JobCancelled

    monkeypatch.setattr(clips, "construct", construct)
    with pytest.raises(JobCancelled):
        orbit_video.run_request(request, blob, Run(tmp_path / "job"))
    assert [config.motion for config in asked] == ["hexplane"]


@pytest.mark.slow
def test_folders_become_a_clip(orbits: Path, tmp_path: Path) -> None:
    clip = orbit_video.construct_folders(
        orbits / "moving",
        orbits / "static",
        orbits / "surface.npz",
        preset="draft",
        seed=3,
        fps=12,
        sh_degree=1,
        color_space="linear",
        name="Arm",
        run=Run(tmp_path),
    )
    assert (clip.name, clip.fps, clip.count) == ("Arm", 12.0, 2000)
    settings = {"preset": "draft", "gaussians": 2000, "seed": 3, "fps": 12, "sh_degree": 1}
    settings |= {"color_space": "linear", "motion_model": "bases"}
    assert clip.provenance["settings"] == settings
    assert (clip.sh_degree, clip.color_space) == (1, "linear")
    assert (tmp_path / CHECKPOINT_NAME).exists()  # until the caller has written the clip


def test_a_folder_that_is_no_orbit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"orbit\.json is missing"):
        orbit_video.construct_folders(tmp_path, None, None, run=Run(tmp_path / "work"))


@pytest.mark.slow
def test_a_clip_with_numbers_that_are_none_is_not_handed_out(
    orbits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def astray(*arguments, **named):
        clip = construct(*arguments, **named)
        clip.means[0] = np.nan
        return clip

    construct = clips.construct
    monkeypatch.setattr(clips, "construct", astray)
    with pytest.raises(UserError, match="went astray"):
        orbit_video.construct_folders(orbits / "moving", None, None, run=Run(tmp_path / "work"))
    assert not (tmp_path / "work" / CHECKPOINT_NAME).exists()
