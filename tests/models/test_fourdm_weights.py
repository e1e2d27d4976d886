# SPDX-License-Identifier: GPL-3.0-or-later
"""Released names and files: key lists, the way from ImageDream to 4DM, and what is said about files that do not fit."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from backend.models.checkpoints import expected_shapes
from backend.models.fourdm import IMAGEDREAM, PUBLISHED, FourDM
from backend.models.fourdm_weights import fourdm_from, is_motion, key_map
from backend.progress import UserError
from tests import golden
from tests.models.fourdm_small import SMALL, imagedream_checkpoint, tensors


@pytest.fixture(scope="module")
def published() -> FourDM:
    with torch.device("meta"):
        return FourDM(PUBLISHED)


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def listed(keys: str) -> dict[str, tuple[int, ...]]:
    """The U-Net in a list of the public code's names; ImageDream's has encoders beside it."""
    found = {name.partition("diffusion_model."): shape for name, shape in expected_shapes(keys).items()}
    return {rest or name: shape for (name, within, rest), shape in found.items() if within or keys == "fourdm"}


def test_names_and_shapes_are_the_released_ones(published: FourDM) -> None:
    with torch.device("meta"):
        base = FourDM(IMAGEDREAM)
    assert shapes(published.state_dict()) == listed("fourdm")
    assert shapes(base.state_dict()) == listed("imagedream")


def test_the_map_from_imagedream(published: FourDM) -> None:
    found = key_map(published)
    assert found == golden.facts("fourdm/key_map")
    assert len(found) == 16
    with torch.device("meta"):
        base = FourDM(IMAGEDREAM)
    assert key_map(base) == {}
    renamed = {found.get(name, name): tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    rest = {name: tuple(t.shape) for name, t in published.state_dict().items() if not is_motion(name)}
    assert renamed == rest


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_4dm_on_top_of_imagedream(whole: bool) -> None:
    weights = tensors("weights")
    changed = {name: value + 1 for name, value in weights.items() if whole or is_motion(name)}
    net = fourdm_from(
        imagedream_checkpoint(), {"state_dict": {f"module.{name}": value for name, value in changed.items()}}, SMALL
    )
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name] + 1 if name in changed else weights[name]), name
    assert not net.training


def test_4dm_saved_as_a_whole_model() -> None:
    weights = tensors("weights")
    saved = {"betas": torch.zeros(3)} | {f"model.diffusion_model.{name}": value for name, value in weights.items()}
    net = fourdm_from(None, saved, SMALL)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


@pytest.mark.slow
def test_types_and_copies() -> None:
    weights = tensors("weights")
    net = fourdm_from(None, weights, SMALL)
    assert net.out[2].weight.data_ptr() == weights["out.2.weight"].data_ptr()
    half = fourdm_from(imagedream_checkpoint(), None, SMALL, dtype=torch.float16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float16}
    mixed = fourdm_from(half_of(imagedream_checkpoint()), {n: w for n, w in weights.items() if is_motion(n)}, SMALL)
    assert {tensor.dtype for tensor in mixed.state_dict().values()} == {torch.float32}
    assert mixed.out[2].weight.requires_grad


def half_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in state.items()}


def test_position_tables_may_be_left_out() -> None:
    without = {name: value for name, value in tensors("weights").items() if not name.endswith("pos_encoder.pe")}
    net = fourdm_from(None, without, SMALL)
    for name, tensor in net.state_dict().items():
        if name.endswith("pos_encoder.pe"):
            torch.testing.assert_close(tensor, tensors("weights")[name], atol=1e-6, rtol=0)


def test_there_and_back_through_a_file(tmp_path: Path) -> None:
    net = fourdm_from(None, tensors("weights"), SMALL)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "4dm.safetensors")
    again = fourdm_from(None, safetensors.torch.load_file(tmp_path / "4dm.safetensors"), SMALL).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in net.state_dict().items())


def test_names_that_are_missing_or_unknown_are_listed() -> None:
    checkpoint = imagedream_checkpoint()
    for index in range(5, 12):
        del checkpoint[f"model.diffusion_model.output_blocks.{index}.0.in_layers.0.bias"]
    checkpoint["model.diffusion_model.surprise.weight"] = torch.zeros(1)
    checkpoint["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    with pytest.raises(UserError) as caught:
        fourdm_from(checkpoint, None, SMALL)
    message = str(caught.value)
    assert caught.value.code == "weights_mismatch"
    assert "7 missing: output_blocks.10.0.in_layers.0.bias, " in message
    assert "and 2 more" in message
    assert "1 extra: surprise.weight" in message
    assert "out.2.bias: (5,) instead of (4,)" in message
    assert "ImageDream" in message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({}, "546 missing"),  # the 42 position tables can be computed
        ({"module.not.ours": torch.zeros(1)}, "1 extra"),
        ({"module.input_blocks.1.2.temporal_transformer.norm.bias": "x"}, "norm.bias"),
    ],
)
def test_a_file_that_is_not_4dm(state: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        fourdm_from(imagedream_checkpoint(), {"state_dict": state}, SMALL)


def test_motion_modules_alone_are_no_network() -> None:
    motion = {name: value for name, value in tensors("weights").items() if is_motion(name)}
    with pytest.raises(UserError, match="771 missing"):
        fourdm_from(None, motion, SMALL)
