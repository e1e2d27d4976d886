# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies between matrix products, compiled: the same numbers, and a reason where it cannot be had."""

import pytest
import torch

from backend.models import fused
from backend.models.fused import Kernels, compiled, fuse, trial
from backend.models.video_blocks import GatedGelu, GroupNorm
from backend.models.videomv import VideoMV
from tests.pipelines import published_tiny

CPU = torch.device("cpu")
PLAIN = Kernels(fused.norm, fused.gate)


def filled(network: VideoMV) -> VideoMV:
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def inputs() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    noise = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    return {
        "x": noise(2, 4, 3, 8, 8), "t": torch.tensor([5, 900]), "y": noise(2, 5, published_tiny.WIDTH),
        "camera_data": noise(2, 3, 16), "local_image": noise(2, 4, 1, 8, 8), "image": noise(2, 1, published_tiny.WIDTH),
    }  # fmt: skip


def test_the_network_says_the_same() -> None:
    network = filled(VideoMV(published_tiny.IMAGE))
    plain = network(**inputs())
    assert fuse(network, PLAIN) == sum(isinstance(one, GroupNorm | GatedGelu) for one in network.modules())
    torch.testing.assert_close(network(**inputs()), plain, rtol=1e-3, atol=1e-4)
    fuse(network, None)
    assert torch.equal(network(**inputs()), plain)


def test_the_names_of_the_weights_stay() -> None:
    network = VideoMV(published_tiny.IMAGE)
    before = list(network.state_dict())
    fuse(network, PLAIN)
    assert list(network.state_dict()) == before


def test_half_precision_keeps_statistics_in_float32() -> None:
    x = 30 + torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.ones(64), torch.zeros(64)
    found = fused.norm(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), 1e-5, False)
    assert found.dtype == torch.bfloat16
    wanted = fused.norm(x.bfloat16().float(), weight, bias, 1e-5, False)
    assert float((found.float() - wanted).abs().max()) < 0.02


@pytest.mark.slow
def test_compiling_changes_nothing_for_any_size() -> None:
    """As far as a computer without a compiler can tell: traced with free sizes, and run without one."""
    torch._dynamo.reset()
    kernels = trial(CPU, compiled("aot_eager"))
    for shape in ((1, 7, 64), (3, 20, 96)):
        x = torch.randn(shape)
        given = (x, torch.rand(shape[-1]), torch.rand(shape[-1]), 1e-6)
        torch.testing.assert_close(kernels.norm(*given, True), fused.norm(*given, True))
        torch.testing.assert_close(kernels.gate(x), fused.gate(x))


def test_a_reason_is_given_where_it_cannot_be_had() -> None:
    def fails(*_: object) -> torch.Tensor:
        raise ValueError("no C compiler\nand much more")

    with pytest.raises(RuntimeError, match=r"^no C compiler$"):
        trial(CPU, Kernels(fails, fused.gate))
    with pytest.raises(RuntimeError, match="something else"):
        trial(CPU, Kernels(fused.norm, lambda projected: 2 * fused.gate(projected)))
    with pytest.raises(RuntimeError, match="something else"):
        trial(CPU, Kernels(lambda x, *_: x * torch.nan, fused.gate))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
def test_compiled_on_a_gpu() -> None:
    assert trial(torch.device("cuda"), dtype=torch.bfloat16)
