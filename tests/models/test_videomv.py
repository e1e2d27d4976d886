# SPDX-License-Identifier: GPL-3.0-or-later
"""VideoMV's networks against numbers of the public code, and what ours add: slices, recomputed activations, types."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.models.checkpoints import expected_shapes
from backend.models.videomv import FPS, IMAGE, TEXT, VideoMV, VideoMVConfig, describe
from tests import golden

SIZES = {"width": 32, "heads": 4, "head_width": 16}
CONFIGS = {
    "unet_small": VideoMVConfig(multipliers=(1, 1, 1, 2), **SIZES),
    "unet_i2v_small": VideoMVConfig(image=True, multipliers=(1, 1, 1, 1), **SIZES),
}
CASES = [
    ("unet_small", "t2v_f1_b1_16x16"),
    ("unet_small", "t2v_f5_b1_16x24_nocam"),
    ("unet_small", "t2v_f6_b2_16x16"),
    ("unet_i2v_small", "i2v_f6_b1_16x16"),
    ("unet_i2v_small", "i2v_f6_b1_16x16_noimage"),
]
TOLERANCE = 5e-5  # of float32: noise of 1e-6 on the inputs alone moves the outputs by 5e-6
INPUTS = ("x", "t", "y", "camera_data", "image", "local_image", "fps")


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in golden.tensors(f"videomv/{name}_weights").items()}


def network(name: str, **options) -> VideoMV:
    net = VideoMV(CONFIGS[name], **options).eval()
    net.load_state_dict(weights(name))
    return net


def case(name: str, label: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs, and everything."""
    stored = golden.tensors(f"videomv/{name}_case_{label}")
    return {key: stored[key] for key in INPUTS if key in stored}, stored


@pytest.mark.parametrize(("name", "label"), CASES, ids=[label for _, label in CASES])
@torch.no_grad()
def test_outputs_are_the_public_codes(name, label):
    net, (given, stored) = network(name), case(name, label)
    seen = {}
    wanted = [key.removeprefix("inter.") for key in stored if key.startswith("inter.") and key != "inter.emb"]
    for module in wanted:
        keep = lambda _, __, out, module=module: seen.__setitem__(module, out)  # noqa: E731
        net.get_submodule(module).register_forward_hook(keep)
    out = net(**given)
    assert out.shape == given["x"].shape
    torch.testing.assert_close(out, stored["output"], atol=TOLERANCE, rtol=0)

    for module in wanted:
        expected = stored[f"inter.{module}"]
        found = seen[module].movedim(-1, 1) if expected.ndim == 5 else seen[module].flatten(0, 1).movedim(-1, 1)
        found = found[tuple(slice(size) for size in expected.shape)]  # some are stored for the first frames only
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0, msg=lambda text, at=module: f"{at}: {text}")
    if "inter.emb" in stored:
        embedding = net.embed(given["t"], given["camera_data"], given.get("fps"))
        torch.testing.assert_close(embedding.flatten(0, 1), stored["inter.emb"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("config", "name", "count"), [(TEXT, "t2v", 1484), (IMAGE, "i2v", 1513)])
def test_published_size_has_the_released_keys(config, name, count):
    with torch.device("meta"):
        net = VideoMV(config)
    released = expected_shapes(f"videomv_{name}")
    assert len(released) == count
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == released


@pytest.mark.slow
@torch.no_grad()
def test_weights_survive_a_file(tmp_path):
    net, (given, _) = network("unet_i2v_small"), case("unet_i2v_small", "i2v_f6_b1_16x16")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other = VideoMV(net.config).eval()
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(other(**given), net(**given))


@torch.no_grad()
def test_the_image_network_wants_its_image():
    net, (given, stored) = network("unet_i2v_small"), case("unet_i2v_small", "i2v_f6_b1_16x16")
    del given["fps"]
    assert int(stored["fps"]) == FPS
    assert torch.equal(net(**given), net(**given, fps=stored["fps"]))  # 8 unless told
    video = given["local_image"].repeat(1, 1, 6, 1, 1)
    video[:, :, 1:] += 1
    assert torch.equal(net(**{**given, "local_image": video}), net(**given))  # its first frame is used
    with pytest.raises(ValueError, match="local_image"):
        net(given["x"], given["t"], given["y"])


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet():
    net, (given, _) = network("unet_small"), case("unet_small", "t2v_f6_b2_16x16")
    alone = net(**{key: value[1:] for key, value in given.items()})
    torch.testing.assert_close(net(**given)[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "tokens", [pytest.param(1, marks=pytest.mark.slow), 700, pytest.param(10**9, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "label"), [("unet_small", "t2v_f6_b2_16x16"), ("unet_i2v_small", "i2v_f6_b1_16x16")])
@torch.no_grad()
def test_slices_change_nothing_but_memory(name, label, tokens):
    net, (given, _) = network(name), case(name, label)
    rows = []
    block = net.input_blocks[1][2].transformer_blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:2].numel()))
    whole = net(**given)
    net.slice_transformers(tokens)
    torch.testing.assert_close(net(**given), whole, atol=1e-5, rtol=0)
    whole_rows, *sliced = rows
    assert sum(sliced) == whole_rows
    smallest = len(given["x"]) * 6  # all frames of one pixel, of each sample
    assert max(sliced) <= max(smallest, tokens)
    net.slice_transformers(None)
    assert torch.equal(net(**given), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), [("unet_small", "t2v_f6_b2_16x16"), ("unet_i2v_small", "i2v_f6_b1_16x16")])
def test_recomputed_activations_give_the_same_gradients(name, label):
    given, _ = case(name, label)
    gradients = []
    for recompute in (False, True):
        net = network(name, checkpoint_activations=recompute).train()  # with dropout
        runs = []
        net.middle_block[0].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(0)
        net(**given).square().mean().backward()
        assert len(runs) == 1 + recompute
        gradients.append({key: parameter.grad for key, parameter in net.named_parameters()})
    for key, plain in gradients[0].items():
        assert plain is not None, key
        torch.testing.assert_close(gradients[1][key], plain, msg=lambda text, at=key: f"{at}: {text}")


@torch.no_grad()
def test_it_begins_by_predicting_zero():
    torch.manual_seed(0)
    net, (given, _) = VideoMV(CONFIGS["unet_small"]), case("unet_small", "t2v_f1_b1_16x16")
    assert not net(**given).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_stays_near(dtype):
    net, (given, stored) = network("unet_i2v_small").to(dtype), case("unet_i2v_small", "i2v_f6_b1_16x16")
    net.weights_channels_last()
    out = net(**given)
    assert out.dtype == given["x"].dtype  # samplers stay in float32
    error = (out - stored["output"]).std() / stored["output"].std()
    assert error < (0.06 if dtype == torch.bfloat16 else 0.01)


@torch.no_grad()
def test_group_norm_survives_large_half_precision_values():
    net = network("unet_small").half()
    x = torch.full((1, 2, 16, 16, 32), 300.0, dtype=torch.float16)  # whose squares, and whose sum, have no half
    x[..., ::2] = 310.0
    found = net.input_blocks[1][0].in_layers[0](x)
    expected = net.input_blocks[1][0].in_layers[0].float()(x.float())
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_in_one_graph():
    torch.manual_seed(0)
    net = VideoMV(VideoMVConfig(image=True, multipliers=(1, 2), blocks=1, attention_levels=1, **SIZES)).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    given, _ = case("unet_i2v_small", "i2v_f6_b1_16x16")
    out = torch.compile(net, fullgraph=True, backend="eager")(**given)
    torch.testing.assert_close(out, net(**given), atol=TOLERANCE, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [TEXT, IMAGE], ids=["text", "image"])
@torch.no_grad()
def test_published_size_on_a_gpu(config):
    """24 frames of 256 x 256 pixels, in bf16 beside float32, sliced beside whole, within the memory foretold."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        net = VideoMV(config).eval()
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        given = {
            "x": torch.randn(1, 4, 24, 32, 32),
            "t": torch.tensor([500]),
            "y": torch.randn(1, 77, 1024),
            "camera_data": torch.randn(1, 24, 16),
        }
        if config.image:
            given |= {"local_image": torch.randn(1, 4, 1, 32, 32), "image": torch.randn(1, 1, 1024)}
    exact = net(**given)
    net.to(torch.bfloat16).weights_channels_last()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    half = net(**given)
    used = torch.cuda.max_memory_allocated() - held
    assert (half - exact).std() / exact.std() < 0.1
    assert used < 2 * describe(config).peak  # kernels' workspaces come on top
    net.slice_transformers(4096)
    assert (net(**given) - half).std() / exact.std() < 0.03
