# SPDX-License-Identifier: GPL-3.0-or-later
"""The published-size network and its training step, shrunk, with random weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, I2VGenXLUNet

from backend.models import published
from backend.models.encoders import Encoders
from backend.models.published import PublishedVideoNet
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training import published_task
from backend.training.batches import Batch
from backend.training.config import read_config
from backend.training.train_diffusion4d import train

SIZES = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}


def network(**options) -> PublishedVideoNet:
    torch.manual_seed(0)
    return PublishedVideoNet(I2VGenXLUNet(**SIZES), **options)


def encoders() -> Encoders:
    """Tiny stand-ins for I2VGen-XL's; the VAE is a real one."""
    torch.manual_seed(1)
    channels = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**channels, **kinds).requires_grad_(False)
    return Encoders(
        vae,
        text=lambda texts: torch.stack([torch.full((5, 8), len(text) / 50) for text in texts]),
        image=lambda pictures: pictures.mean((2, 3)).repeat(1, 3)[:, :8],
    )


def inputs(batch: int = 2, frames: int = 3) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(2)
    shapes = [(batch, frames, 4, 8, 8)] * 2 + [(batch, frames, 4, 4), (batch, 5, 8), (batch, 8)]
    latents, static, cameras, text, image = (torch.randn(shape, generator=noise) for shape in shapes)
    return [latents, static, torch.tensor([981, 20]), cameras, text, image]


def test_at_the_start_cameras_and_magnitude_change_nothing():
    net, given = network(), inputs()
    known = torch.tensor([True, True])
    with torch.no_grad():
        latents, static, timestep, _, text, image = given
        fps = torch.full((2,), published.FPS)
        frames_last = (latents.transpose(1, 2), timestep, fps, static.transpose(1, 2))
        alone = I2VGenXLUNet(**SIZES)
        alone.load_state_dict(net.base.state_dict())
        base = alone(*frames_last, image_embeddings=image, encoder_hidden_states=text).sample
        small = net(*given, torch.tensor([0.5, 0.5]), known)
        large = net(*given, torch.tensor([15.0, 15.0]), known)
    assert torch.equal(small, base.transpose(1, 2))
    assert torch.equal(small, large)
    assert small.abs().max() > 0


def test_magnitude_and_cameras_reach_every_frame_once_they_are_trained():
    net, given = network(), inputs()
    torch.nn.init.normal_(net.magnitude.outer.weight)
    with torch.no_grad():
        small = net(*given, torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
        large = net(*given, torch.tensor([15.0, 15.0]), torch.tensor([True, False]))
    differs = (small - large).abs().amax((2, 3, 4))
    assert (differs[0] > 1e-4).all()
    assert (differs[1] == 0).all()  # an unknown magnitude is none
    torch.nn.init.normal_(net.camera[2].weight)
    other = [*given]
    other[3] = given[3].clone()
    other[3][:, 1] += 1
    with torch.no_grad():
        before = net(*given, torch.tensor([1.0, 1.0]), torch.tensor([True, True]))
        after = net(*other, torch.tensor([1.0, 1.0]), torch.tensor([True, True]))
    assert not torch.equal(before[:, 1], after[:, 1])


def test_the_orbit_starts_where_videomv_starts():
    ours = torch.eye(4)
    ours[:3, 3] = torch.tensor([0.0, -2.0, 0.3])  # Blender's front
    assert (network().start @ ours)[:3, 3].tolist() == pytest.approx([2.0, 0.0, 0.3])


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        net = network(checkpoint_activations=recompute)
        net(*inputs(), torch.tensor([1.0, 2.0]), torch.tensor([True, True])).square().mean().backward()
        gradients.append([net.magnitude.outer.bias.grad, net.base.conv_in.weight.grad])
    assert gradients[0][0].abs().max() > 0
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_the_loss_is_the_papers(monkeypatch, tiny):
    monkeypatch.setattr(published_task, "encoders", lambda weights, device: encoders())
    config = tiny(task="published", network=SIZES, weights="tiny", drop_all=0.0, reconstruction_weight=0.1)
    noise = torch.Generator().manual_seed(3)
    pictures = torch.rand((2, 2, 3, 4, 32, 32), generator=noise)
    pictures[:, :, :, :3] *= pictures[:, :, :, 3:]
    eye = torch.eye(4).expand(2, 3, 4, 4)
    tokens, line = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 3)
    batch = Batch(
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
    seen = []

    class Oracle(torch.nn.Module):
        """Knows v from the noisy latents, if it is told the clean ones."""

        def forward(self, noisy, still, timestep, cameras, text, image, magnitude, known):
            seen.append((still, timestep, text, image, magnitude, known))
            schedule = published.scheduler()
            alpha_bar = schedule.alphas_cumprod[timestep].reshape(-1, 1, 1, 1, 1)
            eps = (noisy - alpha_bar.sqrt() * self.clean) / (1 - alpha_bar).sqrt()
            return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * self.clean

    oracle = Oracle()
    oracle.clean = encoders().latents(published_task.on_white(pictures[0]), torch.Generator().manual_seed(4))
    values = published_task.loss(oracle, batch, config, torch.Generator().manual_seed(4))
    assert values["loss"] < 1e-6  # perfect noise is a perfect magnitude
    still, timestep, text, _, magnitude, known = seen[0]
    assert still.shape == (2, 3, 4, 4, 4)
    assert known.all()
    assert magnitude[0] > 1
    assert text[0, 0, 0] == pytest.approx(len("a dog runs") / 50)

    clean, static = oracle.clean, still
    half = oracle.clean * 0.5 + static * 0.5  # half the motion: m is a quarter
    oracle.clean = half
    values = published_task.loss(oracle, batch, config, torch.Generator().manual_seed(4))
    alpha_bar = published.scheduler().alphas_cumprod[timestep]
    true = (clean - static).square().mean((1, 2, 3, 4))
    assert values["reconstruction"] == pytest.approx(float((alpha_bar * (0.75 * true).square()).mean()), rel=1e-3)
    assert values["loss"] == pytest.approx(float(values["denoising"] + 0.1 * values["reconstruction"]), rel=1e-5)

    dropped = published_task.loss(oracle, batch, replace(config, drop_all=1.0), torch.Generator().manual_seed(4))
    assert not seen[-1][5].any()
    assert (seen[-1][3] == 0).all()
    assert (seen[-1][2] == len(published.NEGATIVE_PROMPT) / 50).all()
    assert dropped["loss"] > 0


@pytest.mark.slow
def test_one_step_of_the_shrunk_network(tiny, assets, tmp_path, monkeypatch):
    monkeypatch.setattr(published_task, "encoders", lambda weights, device: encoders())
    published_config = read_config("diffusion4d_published")
    config = replace(
        published_config, network=SIZES, weights="tiny", resolution=32, accumulate=2, workers=0, precision="fp32"
    )
    before = published_task.build(config, Vocabulary(()))
    assert train(config, assets, tmp_path, steps=1)
    assert (tmp_path / "step_00000001" / "ema.safetensors").exists()
    assert before.magnitude.outer.weight.abs().max() == 0


def test_weights_that_are_missing_are_told(tmp_path):
    config = read_config("diffusion4d_published")
    with pytest.raises(UserError, match="nobody said where") as caught:
        published_task.build(config, Vocabulary(()))
    assert "--weights" in caught.value.hint
    with pytest.raises(UserError, match="does not exist"):
        published_task.build(replace(config, weights=str(tmp_path)), Vocabulary(()))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        published_task.build(replace(config, weights=str(tmp_path)), Vocabulary(()))


def test_weights_in_diffusers_layout_are_loaded(tmp_path):
    saved = network().base
    saved.save_pretrained(tmp_path / "unet")
    config = replace(read_config("diffusion4d_published"), weights=str(tmp_path))
    loaded = published_task.build(config, Vocabulary(())).base
    assert all(
        torch.equal(a, b) for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
