# SPDX-License-Identifier: GPL-3.0-or-later
"""The encoders against the numbers of the public code, and their full-size key lists against the released layouts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backend.models import encoders
from backend.models.checkpoints import CARD, expected_shapes
from backend.models.encoders import Encoders, ImageEncoder, TextEncoder
from backend.progress import UserError
from tests import golden

SIZES = golden.facts("encoders/encoders_small")["open_clip"]
CLOSE = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(scope="module")
def vae_case() -> dict[str, Tensor]:
    return golden.tensors("encoders/vae_small_case")


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    weights = golden.tensors("encoders/vae_small_weights")
    return encoders.ldm_vae({name: tensor.float() for name, tensor in weights.items()})


@pytest.fixture(scope="module")
def clip_case() -> dict[str, Tensor]:
    return golden.tensors("encoders/open_clip_small")


def clip_tensors(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("w.model."): tensor for name, tensor in case.items() if name.startswith("w.model.")}


@pytest.fixture(scope="module")
def clip(clip_case: dict[str, Tensor]) -> tuple[TextEncoder, ImageEncoder]:
    heads = SIZES["vision"]["width"] // SIZES["vision"]["head_width"]
    text, image = encoders.open_clip(clip_tensors(clip_case), text_heads=SIZES["text"]["heads"], image_heads=heads)
    return TextEncoder(text), ImageEncoder(image)


@torch.no_grad()
def test_vae_encodes_as_latent_diffusion(vae: nn.Module, vae_case: dict[str, Tensor]) -> None:
    found = vae.encode(vae_case["image"]).latent_dist
    torch.testing.assert_close(found.parameters, vae_case["moments"], **CLOSE)
    torch.testing.assert_close(found.mean, vae_case["mean"], **CLOSE)
    torch.testing.assert_close(found.mean + found.std * vae_case["sample_noise"], vae_case["sample"], **CLOSE)


@torch.no_grad()
def test_vae_decodes_as_latent_diffusion(vae: nn.Module, vae_case: dict[str, Tensor]) -> None:
    torch.testing.assert_close(vae.decode(vae_case["latent_in"]).sample, vae_case["decoded"], **CLOSE)


def test_latents_and_pictures_are_scaled_and_chunks_do_not_matter(vae: nn.Module, vae_case: dict[str, Tensor]) -> None:
    both = Encoders(vae, text=None, image=None)
    pictures = (vae_case["image"] / 2 + 0.5)[None]  # [1, 2, 3, H, W]
    mean = both.latents(pictures, None, chunk=1)
    assert mean.shape == (1, 2, 4, 8, 12)
    torch.testing.assert_close(mean[0], vae_case["mean"] * 0.18215, **CLOSE)
    drawn = [both.latents(pictures, torch.Generator().manual_seed(7), chunk=chunk) for chunk in (1, 2)]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-5)
    noise = torch.randn(vae_case["mean"].shape, generator=torch.Generator().manual_seed(7))
    expected = vae_case["mean"] + (vae_case["logvar"] / 2).exp() * noise
    torch.testing.assert_close(drawn[0][0], expected * 0.18215, **CLOSE)
    decoded = both.pictures((vae_case["latent_in"] * 0.18215)[None], chunk=1)
    torch.testing.assert_close(decoded[0], (vae_case["decoded"] / 2 + 0.5).clamp(0, 1), **CLOSE)


def test_text_is_the_second_to_last_block_normed(
    clip: tuple[TextEncoder, ImageEncoder], clip_case: dict[str, Tensor]
) -> None:
    torch.testing.assert_close(clip[0].encode(clip_case["tokens"]), clip_case["text_features"], **CLOSE)


def test_image_tokens_are_the_second_to_last_blocks(
    clip: tuple[TextEncoder, ImageEncoder], clip_case: dict[str, Tensor]
) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    pictures = clip_case["image"] * std + mean  # the case holds what comes after normalisation
    torch.testing.assert_close(clip[1].tokens(pictures), clip_case["image_features"], **CLOSE)


def test_the_embedding_is_the_normed_class_token_projected(
    clip: tuple[TextEncoder, ImageEncoder], clip_case: dict[str, Tensor]
) -> None:
    weights = clip_tensors(clip_case)
    image = clip[1].model
    with torch.no_grad():
        last = image(clip_case["image"], output_hidden_states=True).hidden_states[-1][:, 0]
        normed = torch.nn.functional.layer_norm(
            last, last.shape[-1:], weights["visual.ln_post.weight"], weights["visual.ln_post.bias"]
        )
        mean, std = (torch.tensor(values)[:, None, None] for values in (encoders.CLIP_MEAN, encoders.CLIP_STD))
        found = clip[1](clip_case["image"] * std + mean)
    torch.testing.assert_close(found, normed @ weights["visual.proj"], **CLOSE)


def test_nothing_is_left_without_values(clip: tuple[TextEncoder, ImageEncoder]) -> None:
    for part in clip:
        assert not any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not part.model.training


def test_half_precision_stays_near(clip_case: dict[str, Tensor]) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in clip_tensors(clip_case).items()}
    text, image = encoders.open_clip(halves, text_heads=4, image_heads=4)
    found = TextEncoder(text).encode(clip_case["tokens"])
    assert found.dtype == torch.float32
    assert (found - clip_case["text_features"]).abs().mean() < 0.05
    assert ImageEncoder(image)(torch.rand(1, 3, 40, 60)).shape == (1, 32)


def test_pictures_are_cut_to_the_middle_square() -> None:
    wide = torch.zeros(1, 3, 32, 96)
    wide[..., 32:64] = 1  # the middle third
    pixels = encoders.clip_pixels(wide, 16, "bicubic")
    white = (1 - torch.tensor(encoders.CLIP_MEAN)) / torch.tensor(encoders.CLIP_STD)
    torch.testing.assert_close(pixels[0, :, 4:12, 4:12], white[:, None, None].expand(3, 8, 8))
    same = torch.rand(1, 3, 16, 16)
    there = encoders.clip_pixels(same, 16, "bilinear")
    back = there * torch.tensor(encoders.CLIP_STD)[:, None, None] + torch.tensor(encoders.CLIP_MEAN)[:, None, None]
    torch.testing.assert_close(back, same)


@pytest.mark.parametrize("resizing", encoders.RESIZING)
def test_resizing_is_pillows(resizing: str) -> None:
    from PIL import Image

    noise = torch.Generator().manual_seed(0)
    picture = (torch.rand((90, 90, 3), generator=noise) * 255).byte()
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resizing]
    small = Image.fromarray(picture.numpy()).resize((28, 28), resample)
    expected = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(28, 28, 3) / 255
    pixels = encoders.clip_pixels((picture / 255).permute(2, 0, 1)[None], 28, resizing)[0].permute(1, 2, 0)
    found = pixels * torch.tensor(encoders.CLIP_STD) + torch.tensor(encoders.CLIP_MEAN)
    assert (found - expected).abs().max() < 1.6 / 255  # Pillow rounds after each of its two passes


# ---- The published sizes, without values


def on_meta(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    found = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    return {name: torch.empty(shape, device="meta") for name, shape in found.items()}


def test_every_tensor_of_the_full_vae_is_taken() -> None:
    own, inside = on_meta(expected_shapes("ldm_vae")), on_meta(expected_shapes("imagedream"), "vae_model.")
    assert len(own) == 248
    assert own.keys() == inside.keys()
    vae = encoders.ldm_vae(own)  # strict: none missing, none extra, each of its shape
    assert len(vae.state_dict()) == 248
    assert vae.config.block_out_channels == (128, 256, 512, 512)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863


def test_every_tensor_of_the_full_clip_is_taken() -> None:
    given = on_meta(expected_shapes("imagedream"), "clip_model.model.")
    assert {name: tuple(tensor.shape) for name, tensor in given.items()} == expected_shapes("open_clip_vit_h14")
    assert len(given) == 686
    text, image = encoders.open_clip(given)
    assert (text.config.num_hidden_layers, image.config.num_hidden_layers) == (23, 32)
    assert (image.config.image_size, image.config.patch_size, image.config.projection_dim) == (224, 14, 1024)
    unused = {"text_projection", "logit_scale"} | {
        name for name in given if name.startswith("transformer.resblocks.23.")
    }
    taken = sum(tensor.numel() for name, tensor in given.items() if name not in unused)
    assert sum(parameter.numel() for half in (text, image) for parameter in half.parameters()) == taken
    assert len(unused) == 14


# ---- What does not fit


def test_a_missing_vae_tensor_is_named() -> None:
    shapes = expected_shapes("ldm_vae")
    del shapes["decoder.up.3.block.0.conv1.weight"], shapes["quant_conv.bias"]
    with pytest.raises(UserError, match=r"x\.ckpt does not fit.*2 missing: .*quant_conv\.bias") as caught:
        encoders.ldm_vae(on_meta(shapes), "x.ckpt")
    assert caught.value.code == "weights_mismatch"


def test_tensors_of_another_network_are_refused() -> None:
    shapes = expected_shapes("open_clip_vit_h14")
    for change in ({"lora.down": (4, 4)}, {"visual.proj": (1280, 768)}):
        with pytest.raises(UserError, match="clip") as caught:
            encoders.open_clip(on_meta({**shapes, **change, "visual.ln_pre.bias": (1281,)}), "clip")
        assert caught.value.code == "weights_mismatch"
    for load in (encoders.ldm_vae, encoders.open_clip):
        with pytest.raises(UserError, match="not laid out as expected"):
            load({"unet.conv.weight": torch.zeros(1)})


# ---- From files


def write(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    (folder / CARD).write_text(json.dumps({"name": folder.name, "files": {}}))


def test_the_copies_inside_imagedream_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_case: dict[str, Tensor], vae_case: dict[str, Tensor]
) -> None:
    monkeypatch.setattr(encoders.open_clip, "__kwdefaults__", {"text_heads": 4, "image_heads": 4})
    vae_weights = {f"vae_model.{name}": x for name, x in golden.tensors("encoders/vae_small_weights").items()}
    clip_weights = {f"clip_model.model.{name}": x for name, x in clip_tensors(clip_case).items()}
    unet = {"model.diffusion_model.out.0.bias": torch.zeros(3)}
    write(tmp_path / "imagedream", {**vae_weights, **clip_weights, **unet})
    loaded = encoders.load_imagedream_encoders(tmp_path)
    torch.testing.assert_close(loaded.text.encode(clip_case["tokens"]), clip_case["text_features"], **CLOSE)
    pictures = (vae_case["image"] / 2 + 0.5)[None]
    torch.testing.assert_close(loaded.latents(pictures, None)[0], vae_case["mean"] * 0.18215, **CLOSE)
    assert loaded.image.resizing == "bicubic"
    half = encoders.load_imagedream_encoders(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for part in (half.vae, half.text, half.image) for p in part.parameters()} == {torch.bfloat16}


def test_videomvs_encoders_come_from_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_case: dict[str, Tensor], vae: nn.Module
) -> None:
    monkeypatch.setattr(encoders.open_clip, "__kwdefaults__", {"text_heads": 4, "image_heads": 4})
    write(tmp_path / "openclip-vit-h14", clip_tensors(clip_case))
    with pytest.raises(UserError, match="sd21-vae are not on this computer") as caught:
        encoders.load_videomv_encoders(tmp_path)
    assert "weights fetch sd21-vae" in caught.value.hint
    vae.save_pretrained(tmp_path / "sd21-vae" / "vae", variant="fp16")
    (tmp_path / "sd21-vae" / CARD).write_text('{"files": {}}')
    loaded = encoders.load_videomv_encoders(tmp_path)
    assert loaded.image.resizing == "bilinear"
    assert all(
        torch.equal(a, b) for a, b in zip(vae.state_dict().values(), loaded.vae.state_dict().values(), strict=True)
    )


def test_pictures_are_encoded_by_parts_and_words_told_apart() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    text = encoders.TextEncoder(CLIPTextModel(CLIPTextConfig(**small, hidden_act="gelu")))
    found = text(["a dog runs", "Two dogs"])
    assert found.shape == (2, 77, 32)
    assert not torch.allclose(found[0], found[1])
    config = CLIPVisionConfig(**small, projection_dim=16, image_size=28, patch_size=14, hidden_act="gelu")
    image = encoders.ImageEncoder(CLIPVisionModelWithProjection(config).bfloat16())
    pictures = torch.rand(3, 3, 28, 28)
    assert image(pictures).shape == (3, 16)
    assert image(pictures).dtype == torch.float32
    assert image.tokens(pictures).shape == (3, 5, 32)
    image.chunk = 1
    torch.testing.assert_close(image(pictures), torch.cat([image(one[None]) for one in pictures]))


def test_a_missing_or_damaged_part_is_told(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL  # seconds, and only here

    with pytest.raises(UserError, match="does not exist") as caught:
        encoders.load_pretrained(AutoencoderKL, tmp_path / "sd21-vae", "vae")
    assert "weights fetch sd21-vae" in caught.value.hint
    (tmp_path / "sd21-vae" / "vae").mkdir(parents=True)
    (tmp_path / "sd21-vae" / "vae" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        encoders.load_pretrained(AutoencoderKL, tmp_path / "sd21-vae", "vae")


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="The package transformers is missing") as caught:
        encoders.open_clip({})
    assert ".[published]" in caught.value.hint
