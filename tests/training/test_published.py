# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the published-size network, shrunk, with random weights. The network itself: tests/models."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.guidance.schedules import cosine_schedule
from backend.models import published
from backend.models.diffusion4d import Diffusion4DNet
from backend.models.encoders import Encoders
from backend.models.text import Vocabulary
from backend.models.videomv import IMAGE, NEGATIVE_PROMPT
from backend.pictures import on_white
from backend.progress import UserError
from backend.training import published_task
from backend.training.batches import Batch
from backend.training.config import read_config, resized
from backend.training.trainer import train
from tests.models.i2vgen_small import small_i2vgen

SIZES = {
    "width": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention_levels": 1,
    "heads": 2,
    "head_width": 8,
    "context_width": 8,
}


def encoders() -> Encoders:
    """Tiny stand-ins for I2VGen-XL's; the VAE is a real one."""
    from diffusers import AutoencoderKL  # seconds, and only here

    torch.manual_seed(1)
    channels = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**channels, **kinds).requires_grad_(False)
    return Encoders(
        vae,
        text=lambda texts: torch.stack([torch.full((5, 8), len(text) / 50) for text in texts]),
        image=lambda pictures: pictures.mean((2, 3)).repeat(1, 3)[:, :8],
    )


def batch() -> Batch:
    noise = torch.Generator().manual_seed(3)
    pictures = torch.rand((2, 2, 3, 4, 32, 32), generator=noise)
    pictures[:, :, :, :3] *= pictures[:, :, :, 3:]
    eye = torch.eye(4).expand(2, 3, 4, 4)
    tokens, line = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 3)
    return Batch(
        number=0,
        tokens=tokens,
        captions=("a dog runs", "a"),
        moving=pictures[0],
        static=pictures[1],
        flow=pictures[0, :, :, :3],
        camera_to_world=eye,
        viewmats=eye,
        focal=line,
        times=line,
    )


def test_the_loss_is_the_papers(monkeypatch, tiny):
    monkeypatch.setattr(published_task, "encoders", lambda weights, device: encoders())
    config = tiny(task="published", network=SIZES, weights="tiny", drop_all=0.0, reconstruction_weight=0.1)
    eye = torch.eye(4).expand(2, 3, 4, 4)
    given = batch()
    seen = []

    class Oracle(torch.nn.Module):
        """Knows v from the noisy latents, if it is told the clean ones."""

        def forward(self, noisy, timestep, cameras, text, **conditions):
            seen.append({"timestep": timestep, "cameras": cameras, "text": text, **conditions})
            schedule = cosine_schedule()
            alpha_bar = schedule.alphas_cumprod[timestep].reshape(-1, 1, 1, 1, 1)
            eps = (noisy - alpha_bar.sqrt() * self.clean) / (1 - alpha_bar).sqrt()
            return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * self.clean

    oracle = Oracle()
    oracle.clean = encoders().latents(on_white(given.moving, 2), torch.Generator().manual_seed(4))
    values = published_task.loss(oracle, given, config, torch.Generator().manual_seed(4))
    assert values["loss"] < 1e-6  # perfect noise is a perfect magnitude
    told = seen[0]
    timestep, still = told["timestep"], told["static_latents"]
    assert still.shape == (2, 3, 4, 4, 4)
    assert told["magnitude_known"].all()
    assert told["static_known"].all()
    assert told["magnitude"][0] > 1
    assert torch.equal(told["image_latents"], still[:, 0])
    assert told["image"].shape == (2, 8)
    assert torch.equal(told["cameras"], eye)
    assert told["text"][0, 0, 0] == pytest.approx(len("a dog runs") / 50)

    clean, static = oracle.clean, still
    half = oracle.clean * 0.5 + static * 0.5  # half the motion: m is a quarter
    oracle.clean = half
    values = published_task.loss(oracle, given, config, torch.Generator().manual_seed(4))
    alpha_bar = cosine_schedule().alphas_cumprod[timestep]
    true = (clean - static).square().mean((1, 2, 3, 4))
    assert values["reconstruction"] == pytest.approx(float((alpha_bar * (0.75 * true).square()).mean()), rel=1e-3)
    assert values["loss"] == pytest.approx(float(values["denoising"] + 0.1 * values["reconstruction"]), rel=1e-5)

    dropped = published_task.loss(oracle, given, replace(config, drop_all=1.0), torch.Generator().manual_seed(4))
    assert not seen[-1]["magnitude_known"].any()
    assert (seen[-1]["image"] == 0).all()
    assert (seen[-1]["text"] == len(NEGATIVE_PROMPT) / 50).all()
    assert seen[-1]["static_known"].all()
    assert dropped["loss"] > 0
    published_task.loss(oracle, given, replace(config, drop_orbit=1.0), torch.Generator().manual_seed(4))
    assert not seen[-1]["static_known"].any()
    assert seen[-1]["magnitude_known"].all()


@pytest.mark.slow
def test_a_run_of_the_shrunk_network_goes_on_bit_for_bit(tiny, assets, tmp_path, monkeypatch):
    look = encoders()
    monkeypatch.setattr(published_task, "encoders", lambda weights, device: look)
    published_config = read_config("diffusion4d_published")
    config = replace(
        published_config, network=SIZES, weights="tiny", resolution=32, accumulate=2, workers=0, precision="fp32"
    )
    before = published_task.build(config, Vocabulary(()))
    assert before.base.checkpoint_activations
    assert before.base.config.dropout > 0
    assert before.magnitude.outer.weight.abs().max() == 0
    for steps in (1, 2):  # in two parts, then in one
        assert train(config, assets, tmp_path / "parts", steps=steps)
    assert train(config, assets, tmp_path / "whole", steps=2)
    parts, whole = (load_file(tmp_path / run / "step_00000002" / "model.safetensors") for run in ("parts", "whole"))
    assert {name for name in whole if not torch.equal(parts[name], whole[name])} == set()


def test_a_mixed_precision_step_reaches_every_parameter(monkeypatch):
    monkeypatch.setattr(published_task, "encoders", lambda weights, device: encoders())
    config = replace(read_config("diffusion4d_published"), network=SIZES, weights="tiny", drop_all=0.0, drop_orbit=0.0)
    torch.manual_seed(0)
    net = published_task.build(config, Vocabulary(())).train()
    for parameter in net.parameters():  # nothing is at zero any more
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        values = published_task.loss(net, batch(), config, torch.Generator().manual_seed(4))
    values["loss"].backward()
    assert torch.isfinite(values["loss"])
    for key, parameter in net.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@pytest.fixture
def shrunk(monkeypatch):
    """The image network, so small that weights for it can be written."""
    sizes = resized(IMAGE, SIZES)
    monkeypatch.setattr(published_task, "IMAGE", sizes)
    return sizes


def write_base(folder, tensors) -> None:
    place = folder / "videomv-i2v"
    place.mkdir(exist_ok=True)
    save_file(tensors, place / "model.safetensors")
    (place / "card.json").write_text('{"files": {}}', encoding="utf-8")


def test_weights_that_are_missing_are_told(tmp_path, shrunk):
    config = replace(read_config("diffusion4d_published"), weights=str(tmp_path))
    with pytest.raises(UserError, match="are not on this computer") as caught:
        published_task.build(config, Vocabulary(()))
    assert "weights fetch videomv-i2v" in caught.value.hint
    write_base(tmp_path, {"time_embed.0.weight": torch.zeros(3)})
    with pytest.raises(UserError, match="does not fit the network"):
        published_task.build(config, Vocabulary(()))
    (tmp_path / "videomv-i2v" / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match="damaged"):
        published_task.build(config, Vocabulary(()))
    with pytest.raises(UserError, match="no such network"):
        published_task.build(replace(config, network={"depth": 3}), Vocabulary(()))


def test_training_begins_from_released_weights(tmp_path, shrunk):
    config = replace(read_config("diffusion4d_published"), weights=str(tmp_path))
    released = {key: torch.randn_like(value) for key, value in Diffusion4DNet(shrunk).base.state_dict().items()}
    write_base(
        tmp_path, {f"module.{key}": value for key, value in released.items()} | {"module.lgm_big.x": torch.ones(1)}
    )
    net = published_task.build(config, Vocabulary(()))
    assert all(torch.equal(value, released[key]) for key, value in net.base.state_dict().items())
    assert not net.static_orbit.weight.any()


def test_training_begins_from_i2vgen_xl(tmp_path, shrunk, monkeypatch):
    sizes = replace(shrunk, heads=8)  # as diffusers has it, whatever the width
    monkeypatch.setattr(published_task, "IMAGE", sizes)
    config = replace(read_config("diffusion4d_published", ["base=i2vgen-xl"]), weights=str(tmp_path))
    with pytest.raises(UserError, match="i2vgen-xl are not on this computer"):
        published_task.build(config, Vocabulary(()))
    torch.manual_seed(0)
    (tmp_path / "i2vgen-xl" / "unet").mkdir(parents=True)
    released = small_i2vgen(sizes).state_dict()
    save_file(
        {name: tensor.half() for name, tensor in released.items()}, tmp_path / "i2vgen-xl" / "unet" / "x.safetensors"
    )
    (tmp_path / "i2vgen-xl" / "card.json").write_text('{"files": {}}', encoding="utf-8")
    net = published_task.build(config, Vocabulary(()))
    wanted = released["down_blocks.0.resnets.0.conv1.weight"].half().float()
    assert torch.equal(net.base.input_blocks[1][0].in_layers[2].weight, wanted)
    assert not net.base.camera_embedding[-1].weight.any()
    with pytest.raises(UserError, match="base = 'sdxl' is unknown"):
        published_task.build(replace(config, base="sdxl"), Vocabulary(()))


@pytest.mark.slow
def test_a_run_becomes_weights_that_generation_loads(tmp_path, shrunk, monkeypatch):
    monkeypatch.setitem(published.CONFIGS, "image", shrunk)
    run = tmp_path / "run"
    (run / "step_00000007").mkdir(parents=True)
    network = Diffusion4DNet(shrunk)
    save_file(network.state_dict(), run / "step_00000007" / "ema.safetensors")
    (run / "step_00000007" / "trainer.json").write_text('{"step": 7}', encoding="utf-8")
    (run / "config.json").write_text(json.dumps({"task": "published", "network": {}}), encoding="utf-8")
    with pytest.raises(UserError, match="not on this computer") as caught:
        published.load_trained(tmp_path / "weights")
    assert "train ship --published" in caught.value.hint
    assert main(["train", "ship", "--published", str(run), "--out", str(tmp_path / "weights" / "diffusion4d")]) == 0
    loaded = published.load_trained(tmp_path / "weights", torch.float32)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float()), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
