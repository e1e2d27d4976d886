# SPDX-License-Identifier: GPL-3.0-or-later
"""The pretended GPU refuses what a GPU refuses, and computes what it computes."""

import pytest
import torch
from torch.nn import functional

from tests.fake_cuda import OnCard, RefusedError


def there(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to("cuda")


REFUSED = {
    "vectors of two devices": lambda: there(3) + torch.ones(3),
    "a CPU vector and a scalar there": lambda: torch.ones(3) * there(3).sum(),
    "joined with the CPU": lambda: torch.cat([there(3), torch.ones(3)]),
    "weights on the CPU": lambda: functional.conv2d(there(1, 1, 3, 3), torch.ones(1, 1, 2, 2)),
    "chosen by an index there": lambda: torch.ones(3)[torch.tensor([1], device="cuda")],
    "looked up by an index here": lambda: functional.embedding(torch.tensor([1]), there(3, 2)),
    "gathered by an index here": lambda: there(3).gather(0, torch.tensor([1])),
    "an array": lambda: there(3).numpy(),
    "noise from a generator here": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
    "noise here from a generator there": lambda: torch.randn(3, generator=torch.Generator("cuda")),
    "a product of integers": lambda: there(3, 3).long() @ there(3, 3).long(),
    "pinned there": lambda: there(3).pin_memory(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_gpu_refuses(card, what: str) -> None:
    with pytest.raises(RefusedError):
        REFUSED[what]()


def test_types_have_to_fit(card) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        there(3, 3).bfloat16() @ there(3, 3)


def test_what_a_gpu_does(card) -> None:
    layer = torch.nn.Linear(4, 2)
    given = torch.randn(3, 4)
    wanted = layer(given)
    layer = layer.cuda()
    found = layer(given.to("cuda", non_blocking=True))
    assert isinstance(found, OnCard)
    assert found.device == torch.device("cuda", 0)
    torch.testing.assert_close(found.cpu(), wanted)
    found.square().mean().backward()
    assert layer.weight.grad.is_cuda
    assert (there(3)[torch.tensor([0, 2])] + torch.tensor(1.0) + 1).shape == (2,)
    assert there(3).tolist() == pytest.approx([float(value) for value in there(3)])
    with torch.device("cuda"):
        assert torch.zeros(2).is_cuda
    layer.to("cpu")
    assert type(layer.weight.data) is torch.Tensor


def test_autocast_is_that_of_a_gpu(card) -> None:
    layer = torch.nn.Linear(4, 4).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(there(2, 4))
        assert found.dtype == torch.bfloat16
        assert functional.layer_norm(found, (4,)).dtype == torch.float32
    assert layer(there(2, 4)).dtype == torch.float32


def test_a_graph_writes_to_its_own_memory_and_refuses_to_wait(card) -> None:
    layer, given = torch.nn.Linear(4, 4).cuda(), there(2, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        found = layer(given).relu()
    given.zero_()
    graph.replay()
    torch.testing.assert_close(found[0].cpu(), layer.bias.detach().cpu().relu())
    with pytest.raises(RefusedError, match="capturing"), torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        float(layer(given).sum())
    with pytest.raises(RefusedError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones(3).to("cuda")


def test_what_waits_is_remembered_with_its_line(card) -> None:
    values = there(3)
    card.waits.clear()
    values[values > 0].sum().item()
    assert [kind for kind, _ in card.waits] == ["mask", "aten._local_scalar_dense.default"]
    assert all(line.startswith("tests/test_fake_cuda.py:") for _, line in card.waits)


def test_half_precision_is_rounded_once_at_the_end(card) -> None:
    ones, tenths = (
        torch.full(shape, value, dtype=torch.bfloat16) for shape, value in (((1, 999), 1.0), ((999, 2), 0.1))
    )
    product = ones.cuda() @ tenths.cuda()
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.cpu(), (ones.float() @ tenths.float()).bfloat16(), rtol=0, atol=0)
    picture = torch.ones(1, 1, 4, 4, dtype=torch.bfloat16, device="cuda")
    assert torch.nn.functional.conv2d(picture, picture).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        ones.cuda() @ tenths.cuda().float()
