# SPDX-License-Identifier: GPL-3.0-or-later
"""4DM's pipeline with a shrunk network of noise: pairing of frames and tokens, runs, cameras, what is resumed."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backend.models.fourdm import FourDM
from backend.models.fourdm_cameras import ring
from backend.pipelines import multi_view_video, videomv_orbit
from backend.pipelines.memory_plan import PLANS, Networks
from backend.pipelines.multi_view_video import MultiViewVideo, generate_views, runs_of, shares_of
from backend.pipelines.published_needs import stage_need
from backend.progress import JobCancelled, Progress, Run, UserError
from tests.models.fourdm_small import SMALL
from tests.pipelines import published_tiny
from tests.video.films import write_video

CPU = torch.device("cpu")
SIZES = replace(SMALL, channel_mult=(1, 1), blocks=1, attention_levels=(0,))


class Letters(nn.Module):
    def forward(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.full((20, SMALL.context_width), sum(map(ord, text)) % 97 / 50) for text in texts])


class Tokens(nn.Module):
    """Tokens that tell how bright a picture is."""

    def tokens(self, pictures: Tensor) -> Tensor:
        return pictures.mean((1, 2, 3))[:, None, None].expand(-1, 3, SMALL.image_width)


def network() -> FourDM:
    """Of noise, with what begins at zero set to something."""
    torch.manual_seed(0)
    made = FourDM(SIZES).eval().requires_grad_(False)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture(scope="module")
def loaded() -> dict[str, nn.Module]:
    vae = published_tiny.networks()["vae"]
    return {"text_encoder": Letters(), "image_encoder": Tokens(), "vae": vae, "fourdm": network()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videomv_orbit, "PIXELS", published_tiny.PIXELS)


def brightening(frames: int) -> Tensor:
    return torch.linspace(0.1, 0.9, frames)[:, None, None, None].expand(-1, 3, 64, 64)


def views(loaded, folder: Path, frames: int = 3, run: Run | None = None, **settings) -> MultiViewVideo:
    networks = Networks({name: partial(loaded.__getitem__, name) for name in loaded}, CPU, lambda: None)
    networks.follow(settings.pop("plan", PLANS[1]))
    folder.mkdir(exist_ok=True)
    times = np.linspace(0, 1, frames)
    settings = {"steps": 2, **settings}
    return generate_views(brightening(frames), times, "a fox", networks, run=run or Run(folder), **settings)


def latents(folder: Path, index: int = 0) -> np.ndarray:
    return np.load(folder / f"views_{index}.npz")["latents"]


def test_four_videos_with_cameras_and_times(loaded, tmp_path: Path) -> None:
    told: list[Progress] = []
    found = views(loaded, tmp_path, run=Run(tmp_path, told.append), elevation=10.0)
    assert found.pictures.shape == (4, 3, 64, 64, 4)
    assert found.pictures.dtype == np.uint8
    assert len(found.cameras) == 4
    for index, cameras in enumerate(found.cameras):
        cameras.check()
        np.testing.assert_allclose(cameras.times, [0, 0.5, 1])
        assert (cameras.camera_to_world == cameras.camera_to_world[0]).all()  # stands still
        place = cameras.camera_to_world[0, :3, 3]
        angle = np.radians(90 * index)  # in front first, then counter-clockwise from above
        level = 1.1 * np.cos(np.radians(10))
        wanted = [level * np.sin(angle), -level * np.cos(angle), 1.1 * np.sin(np.radians(10))]
        np.testing.assert_allclose(place, wanted, atol=1e-9)
    pictures, cameras = found.together()
    assert pictures.shape == (12, 64, 64, 4)
    assert cameras.times.tolist() == [0, 0.5, 1] * 4
    assert [(step.step, step.total) for step in told] == [(1, 2), (2, 2)]


def test_the_network_hears_what_the_papers_code_tells_it(loaded, tmp_path: Path) -> None:
    heard: list[dict] = []
    listen = loaded["fourdm"].register_forward_pre_hook(
        lambda _, given, named: heard.append({"rows": given[0], "t": given[1], "text": given[2], **named}),
        with_kwargs=True,
    )
    views(loaded, tmp_path / "right", steps=100 // 10)
    conditional, plain = heard[:2]
    assert conditional["rows"].shape == (3 * 5, 4, 8, 8)
    assert [int(call["t"][0]) for call in heard[::2]] == [901 - 100 * k for k in range(10)]
    torch.testing.assert_close(conditional["cameras"].unflatten(0, (3, 5))[0, :4], ring(4), atol=1e-5, rtol=0)
    assert not conditional["cameras"].unflatten(0, (3, 5))[:, 4].any()
    brightness = conditional["image"][:, 0, 0].unflatten(0, (3, 5))
    wanted = brightening(3)[:, 0, 0, 0]
    torch.testing.assert_close(brightness, wanted[:, None].expand(3, 5))  # each time the tokens of its own frame
    assert not plain["image"].any()
    assert not plain["pixels"].any()
    assert not torch.equal(plain["text"], conditional["text"])

    heard.clear()
    views(loaded, tmp_path / "demo", compat=True)
    torch.testing.assert_close(heard[0]["image"][:, 0, 0], wanted.repeat(5))
    assert not np.allclose(latents(tmp_path / "demo"), latents(tmp_path / "right"))
    listen.remove()


def test_longer_videos_are_done_in_runs(loaded, tmp_path: Path) -> None:
    assert runs_of(5) == [slice(0, 5)]
    assert runs_of(8) == [slice(0, 8)]
    assert runs_of(16) == [slice(0, 8), slice(8, 16)]
    assert runs_of(19) == [slice(0, 8), slice(8, 16), slice(11, 19)]
    assert runs_of(9) == [slice(0, 8), slice(1, 9)]
    told: list[Progress] = []
    found = views(loaded, tmp_path, frames=9, run=Run(tmp_path, told.append), steps=1)
    assert found.pictures.shape[:2] == (4, 9)
    assert [(step.step, step.total) for step in told] == [(1, 2), (2, 2)]
    short = views(loaded, tmp_path / "short", frames=8, steps=1)
    assert short.pictures.shape[:2] == (4, 8)
    assert latents(tmp_path, 1).shape == latents(tmp_path, 0).shape == (32, 4, 8, 8)


def test_seeds_guidance_and_plans(loaded, tmp_path: Path) -> None:
    def made(name: str, **settings) -> np.ndarray:
        views(loaded, tmp_path / name, **settings)
        return latents(tmp_path / name)

    first = made("first")
    np.testing.assert_array_equal(made("again"), first)
    assert np.abs(made("seed", seed=1) - first).max() > 0.1
    assert np.abs(made("guidance", guidance=1.0) - first).max() > 1e-3
    for number, plan in enumerate(PLANS[::2]):
        np.testing.assert_allclose(made(f"plan{number}", plan=plan), first, atol=1e-2)


def test_cancelled_and_resumed_exactly(loaded, tmp_path: Path) -> None:
    class Impatient(Run):
        def report(self, step: int, total: int, preview=None) -> None:
            super().report(step, total, preview)
            if step == 3:
                raise JobCancelled

    whole = views(loaded, tmp_path / "whole", frames=9)
    place = tmp_path / "stopped"
    place.mkdir()
    with pytest.raises(JobCancelled):
        views(loaded, place, frames=9, run=Impatient(place))
    again = views(loaded, place, frames=9)
    np.testing.assert_array_equal(again.pictures, whole.pictures)
    np.testing.assert_array_equal(latents(place, 1), latents(tmp_path / "whole", 1))


@pytest.mark.slow
def test_what_it_needs_is_known() -> None:
    needs = [stage_need("fourdm", plan, torch.bfloat16) for plan in PLANS]
    assert needs[0].parameters == pytest.approx(1396.1e6, rel=2e-3)
    assert needs[0].weights == pytest.approx(2 * 1396.1e6, rel=0.01)
    assert needs[1].activations < needs[0].activations
    assert needs[3].weights < 0.2 * needs[0].weights


def test_missing_weights_are_told(tmp_path: Path) -> None:
    loaders = multi_view_video.weight_loaders(tmp_path, torch.float32)
    for name in ("vae", "fourdm"):
        with pytest.raises(UserError, match="imagedream are not on this computer"):
            loaders[name]()
    with pytest.raises(UserError, match="imagedream, 4dm") as caught:
        multi_view_video.views_of_video(tmp_path / "film.mp4", "", run_of(tmp_path), weights=tmp_path)
    assert "weights fetch imagedream 4dm" in caught.value.hint
    assert "By hand (docs/weights.md): 4dm" in caught.value.hint


# --- from a video file -----------------------------------------------------------------------------------------------


def run_of(folder: Path, **options) -> Run:
    folder.mkdir(exist_ok=True)
    run = Run(folder, device="cpu", **options)
    run.plan(multi_view_video.STAGE_SHARES)
    return run


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.webm", "libvpx-vp9", "yuva420p", alpha=True)


@pytest.fixture
def of_film(loaded, film):
    """`views_of_video` of a square that moves to the right."""
    loaders = {name: partial(loaded.__getitem__, name) for name in loaded}
    made = partial(multi_view_video.views_of_video, film, "a box", steps=2, loaders=lambda dtype: loaders)
    return lambda run, **options: made(run, **options)


def test_a_video_becomes_four_views(of_film, loaded, tmp_path: Path) -> None:
    told: list[Progress] = []
    heard: list[Tensor] = []
    listen = loaded["vae"].encoder.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    found = of_film(run_of(tmp_path / "run", on_progress=told.append), frames=8)
    listen.remove()
    assert found.pictures.shape == (4, 8, 64, 64, 4)
    assert found.video.shape == (8, 64, 64, 4)
    assert list(dict.fromkeys(one.stage for one in told)) == list(multi_view_video.STAGE_SHARES)
    np.testing.assert_allclose(found.cameras[0].times, np.linspace(0, 1, 8), atol=0.03)
    assert found.fps == pytest.approx(7 / (23 / 24), rel=0.05)
    frames = torch.cat(heard) / 2 + 0.5
    wanted = torch.from_numpy(found.video).movedim(-1, 1) / 255
    torch.testing.assert_close(frames, wanted[:, :3] * wanted[:, 3:] + 1 - wanted[:, 3:], atol=0.02, rtol=0)
    middles = [np.average(np.arange(64), weights=alpha.sum(0)) for alpha in found.video[..., 3].astype(float)]
    assert (np.diff(middles) > 1).all()  # framed once for all
    assert found.provenance["video"]["method"] == "alpha"
    assert [model["name"] for model in found.provenance["models"]] == ["imagedream", "4dm"]
    assert any("hours" in note for note in found.provenance["warnings"])

    run = run_of(tmp_path / "run")
    again = of_film(run, frames=8)  # it is finished: nothing is loaded, nothing is read
    np.testing.assert_array_equal(again.pictures, found.pictures)
    assert again.provenance == found.provenance
    assert run.notes == found.provenance["warnings"]
    assert again.cameras[2].camera_to_world.tolist() == found.cameras[2].camera_to_world.tolist()


@pytest.mark.slow
def test_out_of_memory_goes_down_the_ladder(of_film, loaded, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(multi_view_video, "plans", lambda *_: PLANS)
    calls: list[int] = []

    def fail(*_) -> None:
        calls.append(1)
        if len(calls) in (2, 4):  # the second step in one batch; the second branch of it
            raise torch.OutOfMemoryError("CUDA out of memory")

    plain = of_film(run_of(tmp_path / "plain"))
    hook = loaded["fourdm"].register_forward_pre_hook(fail)
    found = of_film(run_of(tmp_path / "run"))
    hook.remove()
    assert found.provenance["memory_plan"] == "in slices"
    assert sum("did not suffice" in note for note in found.provenance["warnings"]) == 2
    assert len(calls) == 1 + 1 + 2 + 2
    np.testing.assert_allclose(latents(tmp_path / "run"), latents(tmp_path / "plain"), atol=0.02)
    assert plain.provenance["memory_plan"] == PLANS[0].name


def test_a_picture_that_stands_still_has_times_all_the_same() -> None:
    np.testing.assert_allclose(shares_of(np.full(3, 2.0)), [0, 0.5, 1])
    np.testing.assert_allclose(shares_of(np.array([1.0, 2.0, 5.0])), [0, 0.25, 1])
