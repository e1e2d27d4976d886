# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests of published size by shrunk networks of noise: what comes out, what is resumed, how memory is saved."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backend.pipelines import diffusion4d, diffusion4d_published, memory_plan, videomv_orbit
from backend.pipelines.diffusion4d_published import generate, needed, resized, static_branch
from backend.pipelines.memory_plan import PLANS, Networks
from backend.pipelines.published_needs import need
from backend.pipelines.videomv_orbit import static_cameras
from backend.progress import JobCancelled, Progress, Run, UserError
from blender_addon.contract.arrays import read_arrays
from blender_addon.contract.frames import GeneratedFrames, read_frames
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import PUBLISHED, generation_request
from tests.pipelines import published_tiny
from tests.pipelines.tiny import ball_orbit

SETTINGS = {"prompt": "a dog", "motion": 5.0, "guidance_motion": 7.0, "guidance_static": 0.5, "steps": 4, "seed": 0}
FRAMES = 8


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videomv_orbit, "PIXELS", published_tiny.PIXELS)
    monkeypatch.setattr(diffusion4d_published, "GENERATED_FRAMES", FRAMES)
    monkeypatch.setattr(videomv_orbit, "LEAST_COVERAGE", -1.0)  # noise may look like background


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return published_tiny.networks()


@pytest.fixture(scope="module")
def kept() -> dict[str, GeneratedFrames]:
    """What several tests compare with, made by the first of them."""
    return {}


@pytest.fixture
def make(networks: dict[str, nn.Module], tmp_path: Path) -> Callable[..., GeneratedFrames]:
    """`generate` with the shrunk networks, each time in a folder of its own unless one is named."""
    loaders = {name: partial(networks.__getitem__, name) for name in networks}
    count = iter(range(100))

    def made(given: str = "object", run: Run | None = None, refine: bool = False, **settings) -> GeneratedFrames:
        static, cameras, image = None, None, None
        if given == "object":
            static, cameras = still_ball()
        elif given == "image":
            image = ball_orbit(48)[0][0]
        run = run or Run(folder(tmp_path / str(next(count))))
        run.device = "cpu"
        run.plan({diffusion4d.STILL: 1, diffusion4d.MOVING: 1})
        merged = {**SETTINGS, **settings}
        return generate(static, cameras, image, merged, run, refine=refine, loaders=lambda dtype: loaders)

    return made


def still_ball(size: int = published_tiny.PIXELS) -> tuple[np.ndarray, Cameras]:
    pictures, cameras = ball_orbit(size)
    poses, matrices = cameras.camera_to_world[::3], cameras.Ks[::3]
    return pictures[::3], Cameras(poses, matrices, np.linspace(0, 1, FRAMES), size, size)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["text", "image", "object"])
def test_moving_frames_of_everything(make, given: str) -> None:
    frames = make(given)
    assert frames.moving.shape == frames.static.shape == (FRAMES, 64, 64, 4)
    assert (frames.moving != frames.static).any()
    assert frames.cameras.width == 64
    np.testing.assert_allclose(frames.cameras.times, np.linspace(0, 1, FRAMES))
    assert frames.motion_measured > 0
    sources = {model["name"] for model in frames.provenance["models"]}
    assert {"openclip-vit-h14", "sd21-vae", "videomv-i2v", "diffusion4d"} <= sources
    assert ("videomv-t2v" in sources) == (given == "text")
    if given == "object":
        np.testing.assert_array_equal(frames.static, still_ball()[0])


def test_cameras_are_those_that_videomv_was_made_for() -> None:
    for kind, elevation, distance in (("text", 15, 2.0), ("image", 5, 1.7)):
        cameras = static_cameras(kind, 24)
        places = cameras.camera_to_world[:, :3, 3]
        np.testing.assert_allclose(np.linalg.norm(places, axis=1), distance)
        np.testing.assert_allclose(np.degrees(np.arcsin(places[:, 2] / distance)), elevation)
        angles = np.degrees(np.unwrap(np.arctan2(places[:, 1], places[:, 0])))
        np.testing.assert_allclose(np.diff(angles), 15)
        assert places[0, 1] < 0  # the first stands in front
        assert abs(places[0, 0]) < 1e-9


@pytest.mark.slow
def test_everything_asked_for_counts(make) -> None:
    first = make(steps=1).moving
    assert (make(steps=1).moving == first).all()
    changes = ({"seed": 1}, {"prompt": "a cat"}, {"motion": 15.0}, {"guidance_motion": 3.0}, {"guidance_static": 2.0})
    for change in changes:
        assert (make(**change, steps=1).moving != first).any(), change
    still = {"motion": 0.0, "steps": 2}
    static = make("text", **still).static
    assert (make("text", **still, seed=1).static != static).any()
    assert (make("text", **still, refine=True).static != static).any()


def test_the_public_values_of_videomv_are_told_to_it(networks, tmp_path: Path) -> None:
    told: list[dict] = []

    class Watched(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, latents, timestep, **conditions):
            told.append({"timestep": int(timestep[0]), **conditions})
            return self.network(latents, timestep, **conditions)

    texts: list[str] = []
    listen = networks["text_encoder"].register_forward_pre_hook(lambda _, given: texts.extend(given[0]))
    loaders = {name: partial(networks.__getitem__, name) for name in networks}
    loaders |= {kind: partial(Watched, networks[kind]) for kind in ("text", "image")}
    run = Run(tmp_path, device="cpu")
    settings = {**SETTINGS, "motion": 0.0, "steps": 10}
    generate(None, None, None, settings, run, loaders=lambda dtype: loaders)
    assert [text[:9] for text in texts] == ["a dog, 3d", "Distorted"]
    assert [call["timestep"] for call in told[::2]] == [1 + 100 * k for k in reversed(range(10))]
    assert told[0]["camera_data"].shape == (1, FRAMES, 16)
    assert told[0]["camera_data"][0, 0, 3] > 1.9  # VideoMV's orbits start at +X
    assert torch.equal(told[0]["camera_data"], told[1]["camera_data"])

    told.clear()
    texts.clear()
    (tmp_path / "image").mkdir()
    run = Run(tmp_path / "image", device="cpu")
    generate(None, None, ball_orbit(48)[0][0], {**settings, "steps": 2}, run, loaders=lambda dtype: loaders)
    assert texts[0] == ""  # the image network was trained without captions
    assert told[0]["image"].any()
    assert not told[1]["image"].any()
    assert torch.equal(told[0]["local_image"], told[1]["local_image"])
    listen.remove()


@torch.no_grad()
def test_the_static_branch_is_the_network_without_motion(networks) -> None:
    torch.manual_seed(1)
    latents, poses = torch.randn(1, 24, 4, 8, 8), torch.from_numpy(static_cameras("image", 24).camera_to_world)[None]
    given = {"text": torch.randn(1, 5, 8), "image_latents": torch.randn(1, 4, 8, 8)}
    embedding, timestep = torch.randn(1, 8), torch.tensor([500])
    branch = static_branch(networks["image"], poses=poses.float(), embedding=embedding, **given)
    own = networks["moving"](latents, timestep, poses.float(), image=embedding, **given)
    torch.testing.assert_close(branch(latents, timestep), own, atol=1e-5, rtol=0)


def test_a_request_of_the_service_reaches_it(networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders = {name: partial(networks.__getitem__, name) for name in networks}
    settings = {**SETTINGS, "model": PUBLISHED, "result": "frames"}
    settings["motion"] = 0.0
    request = generation_request("text", "Dog", np.eye(4).tolist(), **settings)
    told: list[Progress] = []
    run = Run(tmp_path, told.append, device="cpu")
    path = diffusion4d.run_request(request, None, run, loaders=lambda dtype: loaders)
    frames = read_frames(path)
    assert (frames.moving == frames.static).all()
    assert "hours" in frames.provenance["warnings"][0]
    assert any(step.preview is not None and step.preview.shape == (64, 128, 3) for step in told)
    assert told[-1].fraction == 1.0

    with pytest.raises(UserError, match="openclip-vit-h14, sd21-vae, videomv-t2v") as caught:
        diffusion4d.run_request(request, None, Run(folder(tmp_path / "x"), device="cpu"), weights=tmp_path / "none")
    assert "weights fetch" in caught.value.hint


def test_only_what_is_needed_is_loaded() -> None:
    assert needed(True, False, 0.0, 0.5, False) == ("text_encoder", "vae", "text")
    assert needed(True, True, 0.0, 0.5, True) == ("text_encoder", "image_encoder", "vae", "image", "refiner")
    assert needed(False, False, 3.0, 0.0, False) == ("text_encoder", "image_encoder", "vae", "moving")
    assert needed(True, False, 3.0, 0.5, False) == (
        *("text_encoder", "vae", "text", "image_encoder", "moving", "image"),
    )


def test_orbits_of_another_size_are_resized() -> None:
    pictures, cameras = still_ball(128)
    small, seen = resized(pictures, cameras, 64)
    assert small.shape == (FRAMES, 64, 64, 4)
    np.testing.assert_allclose(seen.Ks[:, 0, 0] * 2, cameras.Ks[:, 0, 0])
    np.testing.assert_allclose(seen.Ks[:, 2, 2], 1)
    expected = still_ball()[0]
    assert np.abs(small[..., 3].astype(int) - expected[..., 3]).mean() < 3
    inside = expected[..., 3] > 250
    assert np.abs(small[inside].astype(int) - expected[inside]).mean() < 10  # not darkened at the rim


# --- stopped, and gone on --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("calls", [3, 40, 95])
def test_cancelled_within_a_step_and_resumed_exactly(make, kept, tmp_path: Path, calls: int) -> None:
    """A shrunk network has 6 blocks, a step of the still subject runs it twice, one of the moving runs it 3 times."""
    whole = kept.get("whole") or kept.setdefault("whole", make("text"))
    left = iter(range(calls))

    class Impatient(Run):
        def check(self) -> None:
            if self._fraction > 0 and next(left, None) is None:
                raise JobCancelled

    place = folder(tmp_path / "stopped")
    with pytest.raises(JobCancelled):
        make("text", Impatient(place))
    kept = sorted(path.name for path in place.iterdir())
    assert kept
    again = make("text", Run(place))
    np.testing.assert_array_equal(again.static, whole.static)
    np.testing.assert_array_equal(again.moving, whole.moving)


def test_steps_that_are_done_are_not_done_again(make, networks, tmp_path: Path) -> None:
    stopped_at = 3
    calls: list[int] = []
    hook = networks["moving"].register_forward_hook(lambda *_: calls.append(1))

    class Impatient(Run):
        def report(self, step: int, total: int, preview=None) -> None:
            if self._stage == diffusion4d.MOVING and step == stopped_at:
                raise JobCancelled
            super().report(step, total, preview)

    place = folder(tmp_path / "stopped")
    with pytest.raises(JobCancelled):
        make(run=Impatient(place))
    assert len(calls) == 2 * stopped_at
    make(run=Run(place))
    assert len(calls) == 2 * SETTINGS["steps"]
    hook.remove()


@pytest.mark.slow
def test_out_of_memory_goes_down_the_ladder_from_the_last_step(
    make, networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, run = Run(folder(tmp_path / "plain")), Run(folder(tmp_path / "run"))
    make(run=plain)
    monkeypatch.setattr(diffusion4d_published, "plans", lambda *_: PLANS)
    failing = {2, 5}  # calls of the trained network: the second step of a batch, the third of one after another
    calls: list[int] = []

    def fail(*_) -> None:
        calls.append(1)
        if len(calls) in failing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = networks["moving"].register_forward_pre_hook(fail)
    frames = make(run=run)
    hook.remove()
    assert frames.provenance["memory_plan"] == "in slices"
    notes = [note for note in frames.provenance["warnings"] if "did not suffice" in note]
    assert [("one stage after another" in note, "in slices" in note) for note in notes] == [(True, False), (True, True)]
    # One step in a batch, one of two calls each, then two, each with one call that failed before the last two.
    assert len(calls) == 1 + 1 + 2 + 1 + 2 * 2
    found, expected = (read_arrays(each.folder / diffusion4d_published.STATE_NAME)["latents"] for each in (run, plain))
    np.testing.assert_allclose(found, expected, atol=0.05)  # by other kernels, and guidance makes much of it


@pytest.mark.slow
def test_out_of_memory_to_the_end_is_told(make, networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion4d_published, "plans", lambda *_: PLANS)

    def fail(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = networks["moving"].register_forward_pre_hook(fail)
    with pytest.raises(UserError, match="even block by block") as caught:
        make()
    assert "goes on where it stopped" in caught.value.hint
    hook.remove()


# --- plans -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.slow
def test_each_plan_gives_the_same(make, networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan) -> None:
    runs = [Run(folder(tmp_path / name)) for name in ("plain", "planned")]
    make("text", runs[0], steps=2)
    monkeypatch.setattr(diffusion4d_published, "plans", lambda *_: (plan,))
    found = make("text", runs[1], steps=2)
    assert found.provenance["memory_plan"] == plan.name
    for name in (videomv_orbit.STATE_NAME, diffusion4d_published.STATE_NAME):
        expected, latents = (read_arrays(run.folder / name)["latents"] for run in runs)
        np.testing.assert_allclose(latents, expected, atol=5e-3)
        if name == videomv_orbit.STATE_NAME:  # what follows sees its pictures, whose outlines may tip over
            shutil.copy(runs[0].folder / diffusion4d_published.STATIC_NAME, runs[1].folder)
            (runs[1].folder / diffusion4d_published.STATE_NAME).unlink()
            make("text", runs[1], steps=2)
    networks["image"].slice_transformers(None)
    networks["moving"].base.slice_transformers(None)
    networks["text"].slice_transformers(None)
    networks["vae"].disable_tiling()


@torch.no_grad()
def test_a_streamed_network_is_on_the_device_block_by_block() -> None:
    """The meta device stands for a GPU: numbers that were there would be lost."""
    network = published_tiny.networks()["moving"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    device = torch.device("meta")
    held = Networks({"moving": lambda: network}, device, lambda: None)
    held.follow(PLANS[-1])
    most: list[int] = []
    blocks = memory_plan._blocks(network)

    def look(*_) -> None:
        within = [parameter for block in blocks for parameter in block.parameters()]
        most.append(sum(parameter.numel() for parameter in within if parameter.device == device))

    given = {"latents": torch.empty(1, 4, 4, 8, 8), "timestep": torch.empty(1, dtype=torch.int64)}
    given |= {"camera_to_world": torch.empty(1, 4, 4, 4), "text": torch.empty(1, 5, 8)}
    given |= {"image": torch.empty(1, 8), "image_latents": torch.empty(1, 4, 8, 8)}
    with held.using("moving") as [streamed]:
        for block in blocks:  # after the hooks that bring it
            block.register_forward_pre_hook(look)
        assert streamed.magnitude.inner.weight.device == device
        streamed(**{name: tensor.to(device) for name, tensor in given.items()})
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    assert most == sizes  # each alone, and each once
    stored = dict(network.named_parameters())
    for name, parameter in stored.items():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.slow
def test_the_plan_follows_the_free_memory() -> None:
    names = needed(True, True, 3.0, 0.5, True)
    need_of = lambda plan: need(plan, names, torch.bfloat16)  # noqa: E731
    needs = [need_of(plan).device_bytes for plan in PLANS]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] < 24e9  # a card with 24 GB
    assert needs[1] < 12e9
    for index, bytes_needed in enumerate(needs):
        assert memory_plan.choose(PLANS, need_of, bytes_needed)[0] == index
    sentence = need_of(PLANS[1]).sentence(int(12e9))
    assert "one stage after another" in sentence
    assert "of 11.2 GiB" in sentence
    with pytest.raises(UserError, match="even block by block"):
        memory_plan.choose(PLANS, need_of, needs[-1] - 1)


# --- on a card -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("index", "given", "refine"), [(0, "object", False), (1, "image", True)])
def test_on_a_pretended_card(card, index: int, given: str, refine: bool, monkeypatch, tmp_path: Path) -> None:
    """In bf16. What mixes devices or types fails, and so does a recorded step that waits for the card."""
    monkeypatch.setattr(diffusion4d_published, "plans", lambda *_: PLANS[index : index + 1])

    def loaders(dtype: torch.dtype) -> dict[str, Callable[[], nn.Module]]:
        assert dtype == torch.bfloat16
        made = published_tiny.networks()
        for name in ("text", "image", "moving", "refiner"):
            made[name] = made[name].to(dtype)
        for name in ("text", "image", "moving"):
            getattr(made[name], "base", made[name]).weights_channels_last()
        return {name: lambda network=network: network for name, network in made.items()}

    orbit = still_ball() if given == "object" else (None, None)
    image = ball_orbit(48)[0][0] if given == "image" else None
    run = Run(tmp_path, device="cuda")
    run.plan({diffusion4d.STILL: 1, diffusion4d.MOVING: 1})
    frames = generate(*orbit, image, {**SETTINGS, "steps": 2}, run, refine=refine, loaders=loaders)
    assert frames.moving.shape == (FRAMES, 64, 64, 4)
    assert frames.provenance["memory_plan"] == PLANS[index].name
    assert not [note for note in run.notes if "record" in note]
    steps = [line for kind, line in card.waits if "sampling.py" in line and "upload" not in kind]
    assert len(steps) == 2 * (2 if given == "image" else 1)  # the state that is kept after each
