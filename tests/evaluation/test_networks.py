# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks with others' weights: stood in for by small TorchScript modules with the same calls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.evaluation.networks import load_networks
from backend.models.lpips import load_lpips
from backend.progress import UserError


class Perceptual(torch.nn.Module):
    """Mean colour in 0..255, as three features."""

    def forward(self, images: torch.Tensor, resize_images: bool, return_lpips: bool) -> torch.Tensor:
        assert return_lpips
        assert not resize_images
        return images.mean(dim=(2, 3)) / 255


class Video(torch.nn.Module):
    """Mean colour over space and time, and how much it changes."""

    def forward(self, videos: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        change = (videos[:, :, 1:] - videos[:, :, :-1]).abs()
        return torch.cat([videos.mean(dim=(2, 3, 4)), change.mean(dim=(2, 3, 4))], dim=1)


def saved(module: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def test_lpips_is_the_squared_distance_of_features(tmp_path: Path) -> None:
    networks = load_networks(lpips=saved(Perceptual(), tmp_path / "vgg16.pt"))
    a, b = torch.full((2, 8, 8, 3), 0.5), torch.full((2, 8, 8, 3), 0.5)
    b[1, ..., 0] = 0.9
    assert networks.lpips(a, b).tolist() == pytest.approx([0, 0.16], abs=1e-6)
    assert set(networks.missing()) == {"fvd", "clip_f, clip_o"}


def test_lpips_for_losses_has_a_gradient(tmp_path: Path) -> None:
    distance = load_lpips(saved(Perceptual(), tmp_path / "vgg16.pt"))
    seen = torch.rand(2, 8, 8, 3, requires_grad=True)
    distance(seen, torch.zeros(2, 8, 8, 3)).sum().backward()
    assert seen.grad.abs().max() > 0
    assert not load_networks(lpips=tmp_path / "vgg16.pt").lpips(seen, seen + 0.1).requires_grad


def test_i3d_gets_videos_in_its_own_order(tmp_path: Path) -> None:
    networks = load_networks(i3d=saved(Video(), tmp_path / "i3d.pt"))
    videos = torch.zeros(2, 4, 8, 8, 3)
    videos[1, 2:, ..., 1] = 1.0  # green comes on after half of the time
    features = networks.i3d(videos)
    assert isinstance(features, np.ndarray)
    assert features.tolist() == [[0] * 6, pytest.approx([0, 127.5, 0, 0, 85, 0])]


def small_clip(folder: Path) -> Path:
    """A CLIP model of two layers with random weights, as transformers keeps one."""
    transformers = pytest.importorskip("transformers")
    words = ["a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 8, "bos_token_id": 3, "eos_token_id": 4}
    image = {**size, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokens = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    square = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(**square), tokens).save_pretrained(folder)
    return folder


def test_clip_compares_pictures_with_a_picture_and_with_words(tmp_path: Path) -> None:
    clip = load_networks(clip=small_clip(tmp_path)).clip
    pictures = torch.rand(3, 20, 24, 3, generator=torch.Generator().manual_seed(1))
    cosines = clip(pictures, pictures[1])
    assert cosines.shape == (3,)
    assert cosines[1] == pytest.approx(1, abs=1e-5)
    assert cosines[0] < cosines[1]
    one, other = clip(pictures, "a b"), clip(pictures, "a c")
    assert one.abs().max() <= 1
    assert not torch.equal(one, other)


def test_what_is_not_at_hand_is_said(tmp_path: Path) -> None:
    assert set(load_networks().missing()) == {"lpips", "fvd", "clip_f, clip_o"}
    (tmp_path / "broken.pt").write_bytes(b"not a network")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_networks(lpips=tmp_path / "broken.pt")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_networks(i3d=tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match=r"transformers|no usable CLIP"):
        load_networks(clip=tmp_path)
