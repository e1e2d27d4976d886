# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of 4DM's motion modules, shrunk, on a base of noise that has to stay as it is."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.__main__ import main
from backend.guidance.schedules import linear_schedule
from backend.models.checkpoints import locate, read_card, read_tensors
from backend.models.encoders import Encoders
from backend.models.fourdm import FourDM
from backend.models.fourdm_cameras import from_orbit
from backend.models.fourdm_weights import fourdm_from, imagedream_tensors, is_motion
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training import checkpoint, fourdm_task
from backend.training.batches import ViewBatch, draw_now
from backend.training.config import TrainConfig, read_config
from backend.training.ship import ship_published
from backend.training.trainer import sample_stream, train

SIZES = {
    "model_channels": 32,
    "channel_mult": [1, 1],
    "blocks": 1,
    "attention_levels": [0],
    "head_channels": 16,
    "context_width": 8,
    "image_width": 8,
    "image_tokens": 4,
}


class Means(nn.Module):
    """Pictures -> tokens of their mean color."""

    def tokens(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3)).repeat(1, 3)[:, None, :8].expand(-1, 3, 8)


def encoders() -> Encoders:
    """Tiny stand-ins for ImageDream's; the VAE is a real one."""
    from diffusers import AutoencoderKL  # seconds, and only here

    torch.manual_seed(1)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4, **kinds).requires_grad_(
        False
    )
    text = lambda texts: torch.stack([torch.full((5, 8), len(text) / 50) for text in texts])  # noqa: E731
    return Encoders(vae, text=text, image=Means())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder with a base of noise, laid out as ImageDream's weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    base = FourDM(replace(fourdm_task.sized(TrainConfig("fourdm", SIZES)), motion=False))
    for parameter in base.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    (folder / "imagedream").mkdir()
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in base.state_dict().items()}
    save_file(tensors, folder / "imagedream" / "model.safetensors")
    (folder / "imagedream" / "card.json").write_text('{"files": {}}', encoding="utf-8")
    return folder


@pytest.fixture
def config(monkeypatch, weights) -> TrainConfig:
    """The published configuration, shrunk."""
    monkeypatch.setattr(fourdm_task, "encoders", lambda folder, device: encoders())
    changes = {"network": SIZES, "weights": str(weights), "resolution": 32, "workers": 0, "precision": "fp32"}
    return replace(read_config("fourdm_published"), **changes, accumulate=1, log_steps=1)


def batch(assets: Path, config: TrainConfig) -> ViewBatch:
    return draw_now(sample_stream(config, assets, "train"), range(2), Vocabulary(("a",)))


def test_the_loss_is_that_of_the_noise_of_the_views(config, assets) -> None:
    given = batch(assets, config)
    told: list[dict] = []

    class Oracle(nn.Module):
        """Knows the noise, for it knows the clean latents."""

        def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, **conditions) -> Tensor:
            told.append({"timesteps": timesteps, "text": text, **conditions})
            alpha = linear_schedule().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
            return (noisy - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()

    oracle = Oracle()
    pictures = given.views[:, :, :, :3] + 1 - given.views[:, :, :, 3:]
    latents = encoders().latents(pictures, torch.Generator().manual_seed(4))  # [2, 8, 4, 4, h, w]
    oracle.clean = torch.cat([latents, torch.zeros_like(latents[:, :, :1])], 2).flatten(0, 2)
    lost = partial(fourdm_task.loss, oracle, given)
    assert lost(replace(config, drop_all=0.0), torch.Generator().manual_seed(4))["loss"] < 1e-9

    seen = told[0]
    assert (seen["frames"], seen["views"]) == (8, 5)
    times = seen["timesteps"].unflatten(0, (2, 40))
    assert (times == times[:, :1]).all()  # all of a clip at one noise level
    cameras = seen["cameras"].unflatten(0, (2, 8, 5))
    torch.testing.assert_close(cameras[:, 3, :4], from_orbit(given.camera_to_world))
    assert not cameras[:, :, 4].any()
    film = given.video[:, :, :3] + 1 - given.video[:, :, 3:]
    torch.testing.assert_close(seen["pixels"], encoders().latents(film, None).flatten(0, 1))
    tokens = seen["image"].unflatten(0, (2, 8, 5))
    torch.testing.assert_close(tokens[1, 6, :, 0, :3], film[1, 6].mean((1, 2)).expand(5, 3))
    assert seen["text"][0, 0, 0] == pytest.approx(len(given.captions[0]) / 50)

    lost(replace(config, drop_all=1.0), torch.Generator().manual_seed(4))
    seen = told[-1]
    assert not any(seen[name].any() for name in ("image", "pixels", "cameras"))
    assert seen["text"].all()
    mixed = [lost(replace(config, drop_all=0.5), torch.Generator().manual_seed(seed)) and told[-1] for seed in range(6)]
    kept = {name: [bool(rows.any()) for seen in mixed for rows in seen[name].chunk(2)] for name in ("image", "cameras")}
    assert kept["image"] == kept["cameras"]  # together
    assert {True, False} == set(kept["image"])


def test_samples_show_one_clip_from_five_sides(config, assets) -> None:
    stream = sample_stream(config, assets, "train")
    sample, again = stream.sample(7), stream.sample(7)
    assert (sample.views == again.views).all()
    assert sample.video.shape == (8, 32, 32, 4)
    assert sample.views.shape == (8, 4, 32, 32, 4)
    places = torch.from_numpy(sample.camera_to_world)[:, :3, 3]
    torch.testing.assert_close(places.norm(dim=1), torch.full((4,), 1.1))
    torch.testing.assert_close(places[:2] + places[2:], torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close((places[0] * places[1]).sum(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert not places[:, 2].abs().gt(1e-6).any()  # elevation 0
    assert (sample.views[..., 3].max((2, 3)) > 0.9).all()  # each shows the subject
    assert any((stream.sample(n).video[0] != stream.sample(n).video[-1]).any() for n in range(3))
    assert len({float(stream.sample(number).camera_to_world[0, 0, 3]) for number in range(3)}) == 3


@pytest.mark.slow
def test_motion_alone_is_kept_and_becomes_weights(config, assets, tmp_path, weights) -> None:
    config = replace(config, learning_rate=3e-3)
    assert train(config, assets, tmp_path / "run", steps=3)
    saved, averaged = (
        load_file(tmp_path / "run" / "step_00000003" / file) for file in (checkpoint.WEIGHTS, checkpoint.EMA)
    )
    assert saved.keys() == averaged.keys()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["base"] == "imagedream"
    assert all(is_motion(name) for name in saved)
    assert any((saved[name] != averaged[name]).any() for name in saved)

    assert main(["train", "ship", "--4dm", str(tmp_path / "run"), "--out", str(tmp_path / "4dm")]) == 0
    card = read_card(tmp_path / "4dm")
    assert (card["base"], card["source"]) == ("imagedream", "trained here, 3 steps")
    motion = read_tensors(locate("4dm", tmp_path))
    network = fourdm_from(imagedream_tensors(weights), motion, fourdm_task.sized(config))
    for name, tensor in network.state_dict().items():
        if is_motion(name):
            assert torch.equal(tensor, averaged[name].bfloat16().float()), name
    with pytest.raises(UserError, match="trained the task fourdm"):
        ship_published(tmp_path / "run", tmp_path / "other")


def test_the_loss_falls_and_the_base_stays(config, assets, weights) -> None:
    torch.manual_seed(0)
    network = fourdm_task.build(config, Vocabulary(()))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 2e-2)
    given, losses = draw_now(sample_stream(config, assets, "train"), range(1), Vocabulary(("a",))), []
    for _ in range(5):
        value = fourdm_task.loss(network, given, config, torch.Generator().manual_seed(0))["loss"]
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, _ in network.named_parameters() if is_motion(name)}


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(config, assets, tmp_path) -> None:
    assert train(config, assets, tmp_path / "whole", steps=2)
    assert train(config, assets, tmp_path / "parts", steps=1)
    assert train(config, assets, tmp_path / "parts", steps=2)
    folders = [tmp_path / name / "step_00000002" for name in ("whole", "parts")]
    for file in (checkpoint.WEIGHTS, checkpoint.EMA, checkpoint.OPTIMIZER):
        whole, parts = (load_file(folder / file) for folder in folders)
        assert whole.keys() == parts.keys()
        assert {name for name in whole if not torch.equal(whole[name], parts[name])} == set(), file


@pytest.mark.slow
def test_the_base_is_half_as_large_in_bf16(config, assets) -> None:
    network = fourdm_task.build(replace(config, precision="bf16"), Vocabulary(()))
    kinds = {(is_motion(name), parameter.dtype) for name, parameter in network.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        value = fourdm_task.loss(network, batch(assets, config), config, torch.Generator().manual_seed(4))["loss"]
    value.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert all(
        is_motion(name) and grad.dtype == torch.float32 and grad.isfinite().all() for name, grad in gradients.items()
    )
    assert all(gradients[name].any() for name in gradients if name.endswith("proj_out.weight"))


def test_what_is_missing_is_told(config, tmp_path) -> None:
    with pytest.raises(UserError, match="imagedream are not on this computer"):
        fourdm_task.build(replace(config, weights=str(tmp_path)), Vocabulary(()))
    with pytest.raises(UserError, match="no such network"):
        fourdm_task.build(replace(config, network={"depth": 1}), Vocabulary(()))
    with pytest.raises(UserError, match="does not fit the network"):
        fourdm_task.build(replace(config, network={**SIZES, "context_width": 16}), Vocabulary(()))


@pytest.mark.slow
def test_a_run_on_a_pretended_card(card, config, assets, tmp_path, monkeypatch):
    def on(folder: str | None, device: torch.device) -> Encoders:
        made = encoders()
        return replace(made, vae=made.vae.to(device), text=lambda texts: made.text(texts).to(device))

    monkeypatch.setattr(fourdm_task, "encoders", on)
    assert train(replace(config, precision="bf16", checkpoint_activations=False), assets, tmp_path, steps=1)
