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
from backend.pipelines import multi_view_video, video_model, videomv_orbit
from backend.pipelines.memory_plan import PLANS, Networks
from backend.pipelines.multi_view_video import MultiViewVideo, generate_views, runs_of
from backend.pipelines.published_needs import stage_need
from backend.pipelines.video_model import PublishedVideoModel
from backend.progress import JobCancelled, Progress, Run, UserError
from tests.models.fourdm_small import SMALL, ring
from tests.pipelines import published_tiny

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_cameras_have_the_size_of_their_pictures() -> None:
    found = MultiViewVideo.standing(np.zeros((4, 2, 24, 24, 4), np.uint8), np.array([0.0, 1.0]), 0.0)
    assert [(one.width, one.height) for one in found.cameras] == [(24, 24)] * 4
    np.testing.assert_allclose(found.cameras[0].Ks[0, :2, 2], 12)


@pytest.mark.slow
def test_out_of_memory_goes_down_the_ladder(loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_model, "plans", lambda *_: PLANS)
    loaders = {name: partial(loaded.__getitem__, name) for name in loaded}
    calls: list[int] = []

    def fail(*_) -> None:
        calls.append(1)
        if len(calls) in (2, 4):  # the second step in one batch; the second branch of it
            raise torch.OutOfMemoryError("CUDA out of memory")

    def made(name: str) -> tuple[Run, PublishedVideoModel]:
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, device="cpu")
        model = PublishedVideoModel.load(run, loaders=lambda dtype: loaders)
        video = torch.cat([brightening(8), torch.ones(8, 1, 64, 64)], 1)
        settings = {"seed": 0, "steps": 2, "elevation": 0.0, "run": run}
        model.within_memory(lambda: model.views(video, "a fox", **settings), run)
        return run, model

    plain, _ = made("plain")
    hook = loaded["fourdm"].register_forward_pre_hook(fail)
    run, model = made("run")
    hook.remove()
    assert model.plan == "in slices"
    assert sum("did not suffice" in note for note in run.notes) == 2
    assert len(calls) == 1 + 1 + 2 + 2
    np.testing.assert_allclose(latents(run.folder), latents(plain.folder), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 3])
def test_on_a_pretended_card(card, index: int, tmp_path: Path) -> None:
    made = {"text_encoder": Letters(), "image_encoder": Tokens(), "vae": published_tiny.networks()["vae"]}
    made["fourdm"] = network().to(torch.bfloat16)
    networks = Networks({name: partial(made.__getitem__, name) for name in made}, torch.device("cuda"), lambda: None)
    networks.follow(PLANS[index])
    run = Run(tmp_path)
    given = np.linspace(0, 1, 2), "a fox", networks
    found = generate_views(brightening(2), *given, steps=2, dtype=torch.bfloat16, run=run)
    assert found.pictures.shape == (4, 2, 64, 64, 4)
    assert not [note for note in run.notes if "record" in note]
