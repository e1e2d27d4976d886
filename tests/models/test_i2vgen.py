# SPDX-License-Identifier: GPL-3.0-or-later
"""I2VGen-XL's network, in diffusers' layout, against ours with the same weights renamed."""

import pytest
import torch
from torch import Tensor, nn

from backend.models.checkpoints import load_strictly
from backend.models.i2vgen import videomv_from_i2vgen
from backend.models.videomv import IMAGE, VideoMV, VideoMVConfig
from backend.progress import UserError
from tests.models.i2vgen_small import small_i2vgen

SIZES = {"multipliers": (1, 2, 2), "blocks": 2, "attention_levels": 2, "head_width": 16, "context_width": 64}
SMALL = VideoMVConfig(image=True, width=32, **SIZES)
FRAMES, SIDE = 4, 16


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = small_i2vgen(SMALL)
    for parameter in made.parameters():  # what begins at zero would say nothing
        if not parameter.any() or parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return made


def renamed(network: nn.Module) -> VideoMV:
    ours = VideoMV(SMALL).eval()
    load_strictly(ours, videomv_from_i2vgen(network.state_dict(), SMALL), "It")
    return ours


@torch.no_grad()
def test_it_computes_the_same(network: nn.Module) -> None:
    ours = renamed(network)
    noise = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=noise)  # noqa: E731
    x, picture = draw(2, 4, FRAMES, SIDE, SIDE), draw(2, 4, 1, SIDE, SIDE)
    text, image, times = draw(2, 7, 64), draw(2, 1, 64), torch.tensor([3, 800])
    # Beside the picture diffusers' pipeline gives how far behind it the other frames are.
    behind = [torch.full_like(picture, frame / (FRAMES - 1)) for frame in range(1, FRAMES)]
    wanted = network(
        x,
        times,
        fps=torch.tensor([8, 8]),
        image_latents=torch.cat([picture, *behind], 2),
        image_embeddings=image,
        encoder_hidden_states=text,
    ).sample
    assert wanted.std() > 0.1
    given = {"image": image, "local_image": picture}
    torch.testing.assert_close(ours(x, times, text, **given), wanted, atol=1e-4, rtol=1e-4)
    cameras = draw(2, FRAMES, 16)
    torch.testing.assert_close(ours(x, times, text, cameras, **given), wanted, atol=1e-4, rtol=1e-4)


def test_published_size_fits_name_by_name() -> None:
    with torch.device("meta"):
        released, ours = small_i2vgen(VideoMVConfig(image=True)).state_dict(), VideoMV(IMAGE)
        made = videomv_from_i2vgen(released)
    wanted = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in made.items()} == wanted
    assert all(name.startswith("camera_embedding") for name in wanted if name not in made)


def test_another_file_is_told(network: nn.Module) -> None:
    tensors: dict[str, Tensor] = dict(network.state_dict())
    tensors["surprise.weight"] = tensors.pop("conv_in.weight")
    with pytest.raises(UserError, match=r"1 missing: input_blocks.0.0.weight; 1 extra: surprise.weight"):
        load_strictly(VideoMV(SMALL), videomv_from_i2vgen(tensors, SMALL), "It")
