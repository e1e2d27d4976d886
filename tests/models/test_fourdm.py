# SPDX-License-Identifier: GPL-3.0-or-later
"""4DM and ImageDream: numbers of the public code, and what training and people need of the network."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from backend.models.fourdm import IMAGEDREAM, PUBLISHED, FourDM, describe, sinusoid
from backend.models.fourdm_weights import fourdm_from
from backend.progress import UserError
from tests import golden
from tests.models.fourdm_small import SMALL, fourdm, imagedream, imagedream_checkpoint, inputs, tensors

NEAR = {"atol": 5e-5, "rtol": 0}
CASES = golden.facts("fourdm/cases")["cases"]


@pytest.fixture(scope="module")
def net() -> FourDM:
    return fourdm().requires_grad_(False)


@pytest.fixture(scope="module")
def base() -> FourDM:
    return imagedream().requires_grad_(False)


@pytest.mark.parametrize("name", CASES)
def test_the_public_code_says_the_same(name: str, net: FourDM, base: FourDM) -> None:
    case, facts = tensors(f"case_{name}"), CASES[name]
    network = net if facts["model"] == "4dm" else base
    seen = {}

    def keep(part: str) -> None:
        network.get_submodule(part).register_forward_hook(lambda module, args, out: seen.__setitem__(part, out))

    for key in case:
        if key.startswith("inter.") and key != "inter.emb":
            keep(key.removeprefix("inter."))
    before = case["x"].clone()
    out = network(**inputs(case, facts["frames"], facts["views"]))

    torch.testing.assert_close(out[:: facts["every"]], case["output"], **NEAR)
    assert torch.equal(case["x"], before), "the caller's latents were written to"
    assert out.std() > 0.4
    for part, value in seen.items():
        torch.testing.assert_close(value, case[f"inter.{part}"], **NEAR)


def test_embeddings(net: FourDM) -> None:
    wanted = tensors("embeddings")
    torch.testing.assert_close(sinusoid(wanted["t"], 32), wanted["timestep_embedding_dim32"], **NEAR)
    torch.testing.assert_close(sinusoid(wanted["t"], 320), wanted["timestep_embedding_dim320"], **NEAR)
    torch.testing.assert_close(net.time_embed(sinusoid(wanted["t"], 32)), wanted["time_embed"], **NEAR)
    torch.testing.assert_close(net.camera_embed(wanted["camera"]), wanted["camera_embed"], **NEAR)


def small_case(name: str = "patched_f4n3_16x16") -> tuple[dict, Tensor]:
    case = tensors(f"case_{name}")
    return inputs(case, CASES[name]["frames"], CASES[name]["views"]), case["output"]


def test_height_and_width_are_alike(net: FourDM) -> None:
    """A picture that lies on its side, seen by kernels that do so, too, gives an answer that does."""
    given, _ = small_case("patched_f1n5_16x16")
    given = {**given, "latents": torch.randn(5, 4, 16, 24), "pixels": torch.randn(1, 4, 16, 24)}
    aside = copy.deepcopy(net)
    for parameter in aside.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.mT.contiguous()
    turned = {name: value.mT if name in ("latents", "pixels") else value for name, value in given.items()}
    torch.testing.assert_close(aside(**turned), net(**given).mT, **NEAR)


def test_no_cameras_add_nothing_to_the_time(net: FourDM) -> None:
    deaf = copy.deepcopy(net)
    for parameter in deaf.camera_embed[2].parameters():
        nn.init.zeros_(parameter)
    given, _ = small_case("patched_f1n5_16x16")
    assert torch.equal(net(**{**given, "cameras": None}), deaf(**given))
    assert not torch.allclose(net(**given), deaf(**given), atol=1e-3)


def test_image_weight_scales_the_prompt(net: FourDM) -> None:
    given, _ = small_case("patched_f1n5_16x16")
    deaf = copy.deepcopy(net)
    for name, parameter in deaf.named_parameters():
        if name.endswith("to_v_ip.weight"):
            parameter.zero_()
    half, full, none = (net(**given, image_weight=weight) for weight in (0.5, 1.0, 0.0))
    torch.testing.assert_close(none, deaf(**given), **NEAR)
    assert (half - none).abs().mean() < (full - none).abs().mean()


@pytest.mark.slow
def test_a_fresh_4dm_is_imagedream(base: FourDM) -> None:
    fresh = fourdm_from(imagedream_checkpoint(), None, SMALL)
    given, _ = small_case()
    with torch.no_grad():
        # Not to the bit: how sums are rounded depends on where their numbers lie in memory.
        torch.testing.assert_close(fresh(**given), base(**given), atol=1e-5, rtol=0)


def test_a_built_4dm_begins_as_its_own_base() -> None:
    torch.manual_seed(0)
    net = FourDM(SMALL)
    for module in net.motion_modules():
        x = torch.randn(6, module.temporal_transformer.proj_out.out_features, 4, 4)
        assert (module.temporal_transformer(x, 3, 2) == 0).all()


def test_only_motion_modules_train() -> None:
    net = fourdm()
    trained = net.freeze_base()
    assert len(list(net.motion_modules())) == 21
    assert {id(parameter) for parameter in net.parameters() if parameter.requires_grad} == {*map(id, trained)}
    assert len(trained) == 588 - 42  # all but the position tables
    given, _ = small_case()
    net(**given).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if "temporal" not in name)


@pytest.mark.slow
def test_gradients_are_the_same_with_checkpointing() -> None:
    net = fourdm()
    given = first_clip(small_case("patched_f2n4_b2_local_16x16")[0])
    gradients = []
    for on in (False, True):
        net.gradient_checkpointing = on
        net.zero_grad()
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = net(**given).square().mean()
        loss.backward()
        gradients.append(
            (kept, loss.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None})
        )
    (much, plain_loss, plain), (little, loss, checkpointed) = gradients
    assert torch.equal(loss, plain_loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert little < much / 4


@pytest.mark.parametrize("rows", [100, None])
def test_sliced_motion_attention_is_the_same(rows: int | None) -> None:
    net = fourdm().requires_grad_(False)
    net.slice_motion(rows)
    seen = []
    block = next(net.motion_modules()).temporal_transformer.transformer_blocks[0]
    block.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    given, wanted = small_case()
    torch.testing.assert_close(net(**given), wanted, **NEAR)
    assert seen == ([100] * 7 + [68] if rows else [3 * 16 * 16])


def test_clips_of_a_batch_do_not_see_each_other(net: FourDM) -> None:
    given, wanted = small_case("patched_f2n4_b2_local_16x16")
    torch.testing.assert_close(net(**first_clip(given)), wanted[:8], **NEAR)


def first_clip(given: dict) -> dict:
    rows = given["frames"] * given["views"]
    return {key: value[:rows] if isinstance(value, Tensor) else value for key, value in given.items()}


def test_each_clip_has_its_own_noise_level(net: FourDM) -> None:
    given, wanted = small_case("patched_f2n4_b2_local_16x16")
    times = given["timesteps"].clone()
    times[:8] = 900
    out = net(**{**given, "timesteps": times})
    torch.testing.assert_close(out[8:], wanted[8:], **NEAR)
    assert ((out[:8] - wanted[:8]).abs().flatten(1).amax(1) > 1e-2).all()


@pytest.mark.slow
def test_every_time_and_view_is_heard_by_the_others(net: FourDM) -> None:
    given, _ = small_case()  # 4 times x (2 views and the pixel view)
    given["latents"] = given["latents"].clone()
    given["pixels"] = given["pixels"].clone()
    before = net(**given)
    given["latents"][2 * 3 + 0] += 0.5  # time 2, view 0
    changed = (net(**given) - before).abs().flatten(1).amax(1)
    assert (changed > 1e-4).all()
    replaced = net(**given)
    given["latents"][2] += 1  # the pixel view's place
    assert torch.equal(net(**given), replaced)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype, net: FourDM) -> None:
    given, wanted = small_case()
    out = copy.deepcopy(net).to(dtype)(**given)
    assert out.dtype == dtype
    error = (out.float() - wanted).square().mean().sqrt()
    assert error < (0.03 if dtype == torch.bfloat16 else 0.004)


def test_time_keeps_its_digits_in_half_precision() -> None:
    net, seen = FourDM(SMALL.base).to(torch.bfloat16), []
    net.time_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    late = torch.tensor([997])  # which bf16 cannot tell from 996
    net(torch.zeros(1, 4, 8, 8), late, torch.zeros(1, 20, 16), views=1)
    assert torch.equal(seen[0], sinusoid(late, 32).bfloat16())
    assert not torch.allclose(seen[0], sinusoid(late - 1, 32).bfloat16(), atol=0.3)


@pytest.mark.slow
def test_it_is_one_graph_for_the_compiler() -> None:
    net = awake(FourDM(replace(SMALL, channel_mult=(1, 2), blocks=1, attention_levels=(0,)))).requires_grad_(False)
    given, _ = small_case("patched_f1n5_16x16")
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given), net(**given), **NEAR)


def test_more_frames_than_positions(net: FourDM) -> None:
    rows = 33
    given = {"latents": torch.zeros(rows, 4, 16, 16), "timesteps": torch.zeros(rows), "text": torch.zeros(rows, 20, 16)}
    with pytest.raises(UserError, match="33 frames") as caught:
        net(**given, frames=33, views=1)
    assert caught.value.code == "too_many_frames"
    assert "32" in caught.value.hint


def test_32_frames_are_allowed(net: FourDM) -> None:
    given = {"latents": torch.randn(32, 4, 8, 8), "timesteps": torch.full((32,), 5), "text": torch.randn(32, 20, 16)}
    assert net(**given, frames=32, views=1).isfinite().all()


def test_channels_last_latents_do_not_spread(net: FourDM) -> None:
    """torch's group norm on such memory is inexact, and crashes in training."""
    given, wanted = small_case("patched_f1n5_16x16")
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
        for module in net.modules()
        if isinstance(module, nn.GroupNorm)
    ]
    out = net(**{**given, "latents": given["latents"].contiguous(memory_format=torch.channels_last), "pixels": None})
    for hook in hooks:
        hook.remove()
    assert len(seen) == 82
    assert all(seen)
    assert out.shape == wanted.shape


def test_rows_that_are_no_whole_clips(net: FourDM) -> None:
    given, _ = small_case()
    with pytest.raises(ValueError, match="12 latents"):
        net(**{**given, "frames": 5})


def test_published_sizes() -> None:
    with torch.device("meta"):
        nets = {"4dm": FourDM(PUBLISHED), "imagedream": FourDM(IMAGEDREAM)}
    states = {name: net.state_dict() for name, net in nets.items()}
    millions = {name: sum(tensor.numel() for tensor in state.values()) / 1e6 for name, state in states.items()}
    assert (len(states["4dm"]), len(states["imagedream"])) == (1361, 773)
    assert millions["4dm"] == pytest.approx(1396.1, abs=0.05)
    assert millions["imagedream"] == pytest.approx(941.7, abs=0.05)


@pytest.mark.slow
def test_what_it_costs_is_told_from_shapes() -> None:
    few = replace(SMALL, channel_mult=(1, 1), blocks=1, attention_levels=(0,))
    found = describe(few, height=16, width=16, image_features=9)
    with torch.device("meta"):
        net = FourDM(few)
    assert found.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert found.weights == 2 * sum(tensor.numel() for tensor in net.state_dict().values())
    again = partial(describe, few, height=16, width=16, image_features=9)
    assert again(frames=16).peak == pytest.approx(2 * found.peak, rel=0.01)
    assert again(dtype=torch.float32).peak == pytest.approx(2 * found.peak, rel=0.01)
    assert again(motion_rows=100).peak < found.peak
    kept, checkpointed = (again(training=True, checkpoint_activations=on) for on in (False, True))
    assert checkpointed.kept < kept.kept / 4
    stages = {stage.name for stage in checkpointed.stages}
    assert {"image_embed", "input_blocks.1", "middle_block", "output_blocks.3"} <= stages


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_published_size_in_bf16() -> None:
    with torch.device("cuda"):
        torch.manual_seed(0)
        net = FourDM(PUBLISHED).to(torch.bfloat16).eval()
        awake(net)
        rows = 2 * 8 * 5
        out = net(
            torch.randn(rows, 4, 32, 32),
            torch.full((rows,), 600),
            torch.randn(rows, 77, 1024),
            frames=8,
            views=5,
            cameras=torch.randn(rows, 16),
            image=torch.randn(rows, 257, 1280),
            pixels=torch.randn(16, 4, 32, 32),
        )
    assert out.shape == (rows, 4, 32, 32)
    assert out.isfinite().all()
    assert out.float().std() > 1e-3


def awake(net: FourDM) -> FourDM:
    """The network with what begins at zero set to something."""
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net
