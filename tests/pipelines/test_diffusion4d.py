# SPDX-License-Identifier: GPL-3.0-or-later
"""From requests of kind object, text and image to frames and clips, with networks of noise; then the shipped model."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backend.models import kinesplat_small
from backend.models.motion_latents import warp
from backend.models.motion_magnitude import frames_magnitude, magnitude_of
from backend.pipelines import diffusion4d, elementary
from backend.pipelines.orbit_pictures import as_pictures, as_tensor
from backend.pipelines.still_subject import generate_static
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.splatting.construct import STAGES
from backend.splatting.guide import SurfaceMotion
from backend.splatting.observations import read_orbit_folder
from backend.splatting.surface_motion import Surface
from blender_addon.contract.clip import read_clip
from blender_addon.contract.frames import read_frames
from blender_addon.contract.orbit import Cameras, Orbit, further_cameras, joined_cameras
from blender_addon.contract.requests import build_request, file_sha256, generation_request
from blender_addon.contract.surface import SurfaceSamples, write_surface_samples
from tests.pipelines.tiny import RESOLUTION, SURFACE_POINTS, ball_orbit, take_its_place, write_tiny_model

FOX = Path(__file__).parent.parent / "data" / "fox_orbit"
TO_OBJECT = np.diag([2.0, 2, 2, 1]).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> kinesplat_small.KinesplatSmall:
    return kinesplat_small.load(write_tiny_model(tmp_path_factory.mktemp("weights")))


@pytest.fixture(autouse=True)
def tiny(model, monkeypatch: pytest.MonkeyPatch) -> None:
    take_its_place(model, monkeypatch)


class Blobs:
    """Files by their sha256, as the service hands them over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, content: bytes) -> str:
        path = self.folder / "new"
        path.write_bytes(content)
        return path.rename(self.folder / file_sha256(path)).name

    def picture(self, pixels: np.ndarray) -> str:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return self.add(file.getvalue())

    def __call__(self, sha256: str) -> Path:
        return self.folder / sha256


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def ball_request(blobs: Blobs, seen: tuple[np.ndarray, Cameras] | None = None, **settings) -> dict:
    """Of kind object."""
    pictures, cameras = seen or ball_orbit()
    static = {"frames": [blobs.picture(picture) for picture in pictures], "cameras": cameras.to_json()}
    settings = {"prompt": "a ball runs", "steps": 2, "gaussians": 500, "result": "frames", **settings}
    return generation_request("object", "Ball", TO_OBJECT, static=static, **settings)


def still_ball() -> tuple[np.ndarray, Cameras]:
    """The static orbit of the ball, and views from above and below; they differ in one corner pixel."""
    pictures, cameras = ball_orbit()
    cameras = joined_cameras([cameras, further_cameras(Orbit(), cameras.width, cameras.height)])
    count = len(cameras.times)
    pictures = np.concatenate([pictures, pictures[: count - len(pictures)]])
    pictures[:, 0, 0, 0] = np.arange(count)
    pictures[:, 0, 0, 3] = 255
    return pictures, cameras


def no_generation(*_, **__) -> None:
    raise AssertionError("nothing is to be generated")


# --- requests --------------------------------------------------------------------------------------------------------


def test_views_from_above_and_below_are_kept_for_the_construction(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, cameras = still_ball()
    frames = read_frames(diffusion4d.run_request(ball_request(blobs, (pictures, cameras)), blobs, Run(tmp_path)))
    assert len(frames.moving) == len(frames.static) == 24
    seen, seen_from = frames.still()
    np.testing.assert_array_equal(seen, pictures)
    np.testing.assert_allclose(seen_from.camera_to_world, cameras.camera_to_world)

    given = []

    def construct(moving, static, *_, **__):
        given.extend([moving, static])
        raise UserError("enough", "It was seen.")

    monkeypatch.setattr("backend.pipelines.clips.construct_clip", construct)
    generated = blobs.add((tmp_path / diffusion4d.FRAMES_NAME).read_bytes())
    request = build_request(ball_request(blobs, (pictures, cameras), result="clip"), generated)
    with pytest.raises(UserError, match="It was seen"):
        diffusion4d.run_request(request, blobs, Run(tmp_path / "clip"))
    moving, static = given
    assert (len(moving.images), len(static.images)) == (24, 32)
    assert (moving.times.max(), static.times.max()) == (1, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_frames_that_want_a_gpu_do_not_do_without(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no GPU"):
        diffusion4d.run_request(ball_request(blobs), blobs, Run(tmp_path, device="cuda"))


def test_an_object_gets_moving_frames(blobs: Blobs, tmp_path: Path) -> None:
    pictures, cameras = ball_orbit()
    told: list[Progress] = []
    request = ball_request(blobs, seed=3, motion=2.0)
    path = diffusion4d.run_request(request, blobs, Run(tmp_path, on_progress=told.append))
    frames = read_frames(path)
    assert (frames.prompt, frames.motion, frames.seed) == ("a ball runs", 2.0, 3)
    np.testing.assert_array_equal(frames.static, pictures)
    assert frames.moving.shape == pictures.shape
    assert (frames.moving != pictures).any()
    np.testing.assert_allclose(frames.cameras.times, np.linspace(0, 1, 24))
    np.testing.assert_allclose(frames.cameras.camera_to_world, cameras.camera_to_world)
    assert frames.motion_measured == pytest.approx(magnitude_of(frames.moving, pictures))
    assert frames.provenance["models"] == [{"name": "tiny 1", "licence": "CC0-1.0"}]
    assert frames.provenance["warnings"] == []
    assert (len(frames.points), np.abs(frames.points).max() < 1) == (SURFACE_POINTS, True)  # of the visual hull
    assert [step.stage for step in told if step.stage == diffusion4d.MOVING] == [diffusion4d.MOVING] * 3  # with its end
    assert any(step.preview is not None and step.preview.shape == (32, 64, 3) for step in told)
    assert told[-1].fraction == 1.0


def test_the_surface_of_an_object_is_what_moves(blobs: Blobs, tmp_path: Path) -> None:
    normals = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    write_surface_samples(tmp_path / "surface.npz", SurfaceSamples(0.3 * normals, normals))
    request = ball_request(blobs, surface=blobs.add((tmp_path / "surface.npz").read_bytes()))
    frames = read_frames(diffusion4d.run_request(request, blobs, Run(tmp_path)))
    np.testing.assert_array_equal(frames.points[:400], 0.3 * normals)


@pytest.mark.parametrize(
    ("loop", "prompt", "loops"),
    [
        ("auto", "a ball runs", True),
        ("auto", "", True),
        ("auto", "the ball dives", False),
        ("yes", "a ball dives", True),
        ("no", "a ball runs", False),
        ("auto", "a ball is growing", False),
        ("yes", "a ball grows", True),
    ],
)
def test_a_loop_ends_as_it_began(loop: str, prompt: str, loops: bool, blobs: Blobs, tmp_path: Path) -> None:
    path = diffusion4d.run_request(ball_request(blobs, loop=loop, prompt=prompt, motion=4.0), blobs, Run(tmp_path))
    frames = read_frames(path)
    assert frames.provenance["loop"] is loops
    ends, farthest = (np.abs(moved).max() for moved in (frames.movement[-1], frames.movement))
    assert (ends < 1e-3 * farthest) == loops
    assert (frames.moving[-1] == frames.static[-1]).all() == loops


@pytest.mark.parametrize(
    ("prompt", "settings", "moves_as"),
    [
        ("a ball hops", {}, "ball hop"),
        ("a ball hops", {"known_motions": False}, ""),
        ("a ball runs", {}, ""),  # not known
        ("a ball hops", {"motion": 0.0}, ""),
        ("a ball floats", {}, "floating"),
        ("a ball floats", {"known_motions": False}, ""),
    ],
)
def test_a_known_motion_takes_the_place_of_an_invented_one(
    prompt: str, settings: dict, moves_as: str, blobs: Blobs, tmp_path: Path
) -> None:
    request = ball_request(blobs, **{"prompt": prompt, "motion": 2.0, **settings})
    frames = read_frames(diffusion4d.run_request(request, blobs, Run(tmp_path)))
    assert frames.provenance["moves_as"] == moves_as
    upwards = np.square(frames.movement[..., 2]).sum() / max(np.square(frames.movement).sum(), 1e-9)
    assert (upwards > 0.95) == bool(moves_as)
    if moves_as:
        assert frames.motion_measured == pytest.approx(2.0, rel=0.1)


def test_a_job_that_an_earlier_version_queued_goes_by_its_prompt(blobs: Blobs, tmp_path: Path) -> None:
    request = ball_request(blobs)
    del request["settings"]["loop"], request["settings"]["known_motions"]
    assert read_frames(diffusion4d.run_request(request, blobs, Run(tmp_path))).provenance["loop"]


def test_the_movement_guides_construction(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[SurfaceMotion | None] = []
    construct = diffusion4d.clips.construct
    spy = lambda *given, **named: (told.append(given[-1]), construct(*given, **named))[1]  # noqa: E731
    monkeypatch.setattr(diffusion4d.clips, "construct", spy)
    (tmp_path / "a").mkdir()
    clip = read_clip(diffusion4d.run_request(ball_request(blobs, result="clip"), blobs, Run(tmp_path / "a")))
    assert clip.provenance["guided"]
    frames = read_frames(tmp_path / "a" / diffusion4d.FRAMES_NAME)
    np.testing.assert_array_equal(told[0].movement, frames.movement)
    np.testing.assert_array_equal(told[0].times, np.linspace(0, 1, 24, dtype=np.float32))


def test_words_that_the_model_does_not_know_are_told(blobs: Blobs, tmp_path: Path) -> None:
    path = diffusion4d.run_request(ball_request(blobs, prompt="the ball Flurbs"), blobs, Run(tmp_path))
    (warning,) = read_frames(path).provenance["warnings"]
    assert "flurb" in warning
    assert "ball" not in warning


def test_no_size_is_sought_for_what_moves_as_far_at_any() -> None:
    pictures, _ = ball_orbit()
    sizes = []
    still = as_tensor(pictures)
    diffusion4d.size_of_magnitude(5.0, still, lambda size: sizes.append(size) or still.flip(1))
    assert len(sizes) == 2


@pytest.mark.parametrize(("verb", "moves_as"), [("sways", "swaying"), ("spins", "spinning")])
def test_of_a_text_that_names_an_elementary_motion_the_subject_may_be_unknown(
    verb: str, moves_as: str, model, blobs: Blobs, tmp_path: Path
) -> None:
    settings = {"prompt": f"a flurb ball {verb} in the wind", "steps": 2, "result": "frames"}
    path = diffusion4d.run_request(generation_request("text", "Ball", TO_OBJECT, **settings), blobs, Run(tmp_path))
    frames = read_frames(path)
    assert frames.provenance["moves_as"] == moves_as
    warning, *notes = frames.provenance["warnings"]
    assert notes == ([elementary.TURNS_ONCE] if moves_as == "spinning" else [])
    assert "flurb" in warning
    assert verb not in warning
    assert "wind" not in warning


class Incoherence:
    """Takes flows as they are: those of an untrained network have no movement in common."""

    def __init__(self, surface: Surface, unit: torch.Tensor) -> None:
        self.surface, self.unit = surface, unit[0, :, :3]

    def __call__(self, latents: torch.Tensor, size: float = 1.0) -> torch.Tensor:
        whole = (size * latents[0, :, :3] * self.unit).mean((2, 3), keepdim=True)[..., 0]
        self.told = whole.transpose(1, 2).repeat(1, len(self.surface.control.points), 1)
        return size * latents

    def in_view(self) -> torch.Tensor:
        return self.told


@pytest.mark.slow
def test_everything_asked_for_counts(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion4d, "Coherence", Incoherence)
    pictures, cameras = ball_orbit()

    def moving(prompt: str = "a ball runs", magnitude: float = 2.0, **settings) -> np.ndarray:
        given = pictures, cameras, prompt, magnitude
        return diffusion4d.generate_moving(*given, steps=4, model=model, **settings).pictures

    first = moving()
    assert (moving() == first).all()
    for other in ({"seed": 1}, {"prompt": "a ball dives"}, {"magnitude": 6.0}, {"w1": 4.0}, {"w2": 2.0}):
        assert (moving(**other) != first).any(), other
    assert (moving(sampler="dpm") != first).any()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_text_and_images_get_a_static_orbit_of_their_own(kind: str, blobs: Blobs, tmp_path: Path) -> None:
    settings = {"prompt": "a ball", "steps": 4, "result": "frames"}
    if kind == "image":
        settings["image"] = blobs.picture(ball_orbit(40)[0][0])
    request = generation_request(kind, "Ball", TO_OBJECT, **settings)
    told: list[Progress] = []
    frames = read_frames(diffusion4d.run_request(request, blobs, Run(tmp_path, on_progress=told.append)))
    assert frames.static.shape == frames.moving.shape == (24, RESOLUTION, RESOLUTION, 4)
    assert (frames.static != frames.static[0]).any()
    assert frames.static.std() > 0
    stages = list(dict.fromkeys(step.stage for step in told))
    assert stages == [diffusion4d.READING, diffusion4d.STILL, diffusion4d.MOVING, "Done"]


@pytest.mark.slow
def test_chosen_frames_become_a_clip(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ball_request(blobs, fps=30.0)
    chosen = diffusion4d.run_request(request, blobs, Run(tmp_path)).read_bytes()
    (tmp_path / "next").mkdir()
    monkeypatch.setattr(diffusion4d, "load", no_generation)
    path = diffusion4d.run_request(build_request(request, blobs.add(chosen)), blobs, Run(tmp_path / "next"))
    clip = read_clip(path)
    assert (clip.name, clip.fps, clip.count, clip.frame_count) == ("Ball", 30.0, 500, 24)
    np.testing.assert_array_equal(clip.to_object, TO_OBJECT)
    assert clip.provenance["pipeline"] == "diffusion4d"
    assert clip.provenance["settings"]["prompt"] == "a ball runs"
    assert clip.provenance["models"][0]["name"] == "tiny 1"


@pytest.mark.slow
def test_a_killed_job_does_not_generate_again(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(progress: Progress) -> None:
        if progress.stage == STAGES[0]:
            raise ConnectionAbortedError

    request = ball_request(blobs, result="clip")
    with pytest.raises(ConnectionAbortedError):
        diffusion4d.run_request(request, blobs, Run(tmp_path, on_progress=die))
    kept = (tmp_path / diffusion4d.FRAMES_NAME).read_bytes()
    monkeypatch.setattr(diffusion4d, "load", no_generation)
    clip = read_clip(diffusion4d.run_request(request, blobs, Run(tmp_path)))
    assert clip.count == 500
    assert (tmp_path / diffusion4d.FRAMES_NAME).read_bytes() == kept


@pytest.mark.parametrize("kind", ["object", "text"])
def test_cancelling_takes_effect_within_a_step(kind: str, blobs: Blobs, tmp_path: Path) -> None:
    said: list[Progress] = []

    def wanted_until_two_steps() -> bool:
        return bool(said) and said[-1].step >= 2

    request = ball_request(blobs, steps=50)
    if kind == "text":
        request = generation_request("text", "Ball", TO_OBJECT, prompt="a ball", steps=50)
    with pytest.raises(JobCancelled):
        diffusion4d.run_request(request, blobs, Run(tmp_path, said.append, wanted_until_two_steps))
    assert said[-1].step == 2
    assert said[-1].stage == (diffusion4d.MOVING if kind == "object" else diffusion4d.STILL)
    assert not (tmp_path / diffusion4d.FRAMES_NAME).exists()


@pytest.mark.parametrize(
    ("which", "hint"),
    [("generated", "Generate again."), ("image", "save it as PNG, JPEG or WebP."), ("surface", "Generate again.")],
)
def test_damaged_inputs_are_the_users_to_put_right(which: str, hint: str, blobs: Blobs, tmp_path: Path) -> None:
    request = ball_request(blobs)
    request["inputs"][which] = blobs.add(b"nonsense")
    with pytest.raises(UserError) as caught:
        diffusion4d.run_request(request, blobs, Run(tmp_path))
    assert caught.value.code == "bad_input"
    assert caught.value.hint.endswith(hint)


def test_the_model_is_loaded_once_on_the_device_of_the_run(
    model, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(diffusion4d, "load", lambda **options: loaded.append(options) or model)
    request = generation_request("text", "Ball", TO_OBJECT, prompt="ball", steps=1, result="frames")
    diffusion4d.run_request(request, blobs, Run(tmp_path, device="cpu"))
    assert loaded == [{"device": "cpu"}]


def test_missing_weights_say_so(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion4d, "load", lambda **options: kinesplat_small.load(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere.model\.json is missing"):
        diffusion4d.run_request(ball_request(blobs), blobs, Run(tmp_path))


# --- motion magnitude ------------------------------------------------------------------------------------------------


@pytest.fixture
def warped() -> tuple[torch.Tensor, Callable[[float], torch.Tensor]]:
    """The ball's pictures, and these warped by a smooth flow times a size."""
    pictures, cameras = ball_orbit(32)
    static = as_tensor(pictures)
    viewmats = torch.from_numpy(cameras.viewmats()).float()[None]
    focal = torch.from_numpy(2 * cameras.Ks[:, 0, 0] / cameras.width).float()[None]
    coarse = torch.randn(len(pictures), 3, 3, 3, generator=torch.Generator().manual_seed(0))
    flow = 0.04 * torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")[None]
    return static, lambda size: warp(static, size * flow, viewmats, focal)


@pytest.mark.parametrize("magnitude", [1.0, 3.0, 8.0])
def test_the_amplitude_is_solved_for(magnitude: float, warped) -> None:
    static, sized = warped
    found = float(frames_magnitude(sized(diffusion4d.size_of_magnitude(magnitude, static, sized)), static))
    assert found == pytest.approx(magnitude, rel=0.1)


def test_an_amplitude_that_is_near_is_not_measured_again() -> None:
    still = as_tensor(ball_orbit()[0])
    sizes = []
    found = diffusion4d.size_of_magnitude(3.0, still, lambda size: sizes.append(size) or still * (1 + 0.2 * size))
    assert sizes == [1, pytest.approx(found, rel=1e-3)]


def test_the_amplitude_stays_within_limits(warped) -> None:
    static, sized = warped
    low, high = diffusion4d.AMPLITUDE_LIMITS
    assert diffusion4d.size_of_magnitude(1e-4, static, sized) == pytest.approx(low)
    assert diffusion4d.size_of_magnitude(1e4, static, sized) == pytest.approx(high)
    assert diffusion4d.size_of_magnitude(3.0, static, lambda size: static) == 1


def test_what_does_not_move_stays_as_it_is(tmp_path: Path) -> None:
    pictures, cameras = ball_orbit(48)
    still = kinesplat_small.load(write_tiny_model(tmp_path, moves=False))
    moving = diffusion4d.generate_moving(pictures, cameras, "ball", 0.0, steps=4, w2=1.0, model=still).pictures
    assert np.abs(moving.astype(int) - pictures).max() <= 1  # finer pixels than the network's are kept


# --- the shipped model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fox() -> tuple[np.ndarray, Cameras]:
    """A still fox, seen from all around."""
    seen = read_orbit_folder(FOX / "static")
    times = np.linspace(0, 1, len(seen.images))
    return as_pictures(seen.images.permute(0, 3, 1, 2)[None]), replace(seen.cameras, times=times)


@pytest.mark.slow
def test_the_shipped_model_moves_as_much_as_it_is_told(fox) -> None:
    pictures, cameras = fox
    asked = [0.0, 2.0, 8.0]
    model = kinesplat_small.load()
    moving = [diffusion4d.generate_moving(pictures, cameras, "a fox runs", m, steps=3, model=model) for m in asked]
    measured = [magnitude_of(one.pictures, pictures) for one in moving]
    assert measured[0] < measured[1] < measured[2]
    assert measured[2] > 2.0
    on_white = [as_tensor(images) for images in (pictures, moving[0].pictures)]
    on_white = [images[:, :, :3] + 1 - images[:, :, 3:] for images in on_white]
    assert -10 * torch.log10((on_white[0] - on_white[1]).square().mean()) >= 28, "what is not to move moves"


@pytest.mark.slow
def test_the_small_model_on_a_pretended_card(card, tmp_path: Path) -> None:
    model = kinesplat_small.load(write_tiny_model(tmp_path))
    assert model.device.type == "cuda"
    pictures, cameras = ball_orbit()
    told: list[Progress] = []
    run = Run(tmp_path, told.append)
    run.plan({"Moving": 1.0})
    run.begin("Moving")
    for prompt in ("ball dives", "a ball hops"):
        moving = diffusion4d.generate_moving(pictures, cameras, prompt, 3.0, steps=2, model=model, run=run)
        assert moving.pictures.shape == pictures.shape
    for image in (None, pictures[0]):
        for one in (model, replace(model, static=None)):
            still = generate_static(cameras, "ball", image, steps=2, model=one)
            assert still[..., 3].any()
