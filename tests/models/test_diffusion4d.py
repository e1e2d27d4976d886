# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D's network: VideoMV to the bit until it is trained, then each condition is heard where it is known."""

from functools import cache

import pytest
import torch

from backend.models.checkpoints import load_strictly
from backend.models.diffusion4d import Diffusion4DNet, videomv_cameras
from backend.models.videomv import VideoMV, VideoMVConfig
from blender_addon.contract.orbit import Orbit
from tests import golden

FRAMES = 6
# A group norm's group of one channel would swallow what is added to it: these have two.
SIZES = {"width": 64, "multipliers": (1, 1, 1), "blocks": 1, "attention_levels": 2, "heads": 2, "head_width": 16}
CONFIGS = {"text": VideoMVConfig(**SIZES), "image": VideoMVConfig(image=True, **SIZES)}
both = pytest.mark.parametrize("name", CONFIGS)


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """Of a VideoMV network all of whose layers do something."""
    torch.manual_seed(1)
    state = VideoMV(CONFIGS[name]).state_dict()
    return {key: value if value.any() else 0.05 * torch.randn_like(value) for key, value in state.items()}


def network(name: str, *, trained: bool = False, **options) -> Diffusion4DNet:
    torch.manual_seed(0)
    net = Diffusion4DNet(CONFIGS[name], **options).eval()
    load_strictly(net.base, weights(name), name)
    if trained:
        torch.nn.init.normal_(net.magnitude.outer.weight, std=0.1)
        torch.nn.init.normal_(net.static_orbit.weight, std=0.3)
    return net


def inputs(name: str) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(shape, generator=noise)  # noqa: E731
    orbit = torch.tensor(Orbit(FRAMES, elevation=5, closed=False).camera_to_world(), dtype=torch.float32)
    given = {
        "latents": draw(2, FRAMES, 4, 16, 16),
        "timestep": torch.tensor([981, 20]),
        "camera_to_world": orbit.repeat(2, 1, 1, 1),
        "text": draw(2, 7, 1024),
    }
    if CONFIGS[name].image:
        given |= {"image": draw(2, 1024), "image_latents": draw(2, 4, 16, 16)}
    return given


def added(static: bool = True) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(3)
    given = {"magnitude": torch.tensor([5.0, 15.0])}
    return given | ({"static_latents": torch.randn(2, FRAMES, 4, 16, 16, generator=noise)} if static else {})


def plain(name: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What VideoMV makes of it."""
    net = VideoMV(CONFIGS[name]).eval()
    net.load_state_dict(weights(name))
    image = {}
    if CONFIGS[name].image:
        image = {"image": given["image"][:, None], "local_image": given["image_latents"][:, :, None]}
    cameras = videomv_cameras(given["camera_to_world"])
    return net(given["latents"].transpose(1, 2), given["timestep"], given["text"], cameras, **image).transpose(1, 2)


@both
@torch.no_grad()
def test_it_is_videomv_until_it_is_trained(name):
    net, given = network(name), inputs(name)
    expected = plain(name, given)
    assert expected.std() > 0.1
    assert torch.equal(net(**given), expected)
    assert torch.equal(net(**given, **added()), expected)


@both
@torch.no_grad()
def test_a_sample_without_the_conditions_is_videomvs(name):
    net, given = network(name, trained=True), inputs(name)
    unknown = torch.tensor([True, False])
    out = net(**given, **added(), magnitude_known=unknown, static_known=unknown)
    expected = plain(name, given)
    assert torch.equal(out[1], expected[1])
    assert (out[0] - expected[0]).abs().amax((1, 2, 3)).min() > 1e-3  # heard in every frame
    assert torch.equal(net(**given), expected)


@pytest.mark.slow
@both
@torch.no_grad()
def test_each_condition_is_heard_alone(name):
    net, given, more = network(name, trained=True), inputs(name), added()
    none = torch.tensor([False, False])
    out = net(**given, **more)
    only_magnitude = net(**given, **more, static_known=none)
    only_static = net(**given, **more, magnitude_known=none)
    assert torch.equal(only_magnitude, net(**given, **added(static=False)))
    for other in (only_magnitude, only_static, plain(name, given)):
        assert (out - other).abs().amax((1, 2, 3, 4)).min() > 1e-3


@both
@torch.no_grad()
def test_static_views_go_to_their_frames(name):
    """Near the entrance, a static view is heard first in its own frame."""
    net, given, more = network(name, trained=True), inputs(name), added()
    seen = []
    net.base.input_blocks[0][0].register_forward_hook(lambda _, __, out: seen.append(out))
    if name == "text":  # the views are added after that convolution
        net.base.input_blocks[0][1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(**given, **more)
    first = seen[-1]
    more["static_latents"] = more["static_latents"].clone()
    more["static_latents"][:, 2] += 1
    net(**given, **more)
    change = (seen[-1] - first).abs().amax((0, 2, 3, 4))
    if name == "text":
        assert change.nonzero().flatten().tolist() == [2]
    else:  # the image's branch looks over time before
        assert change.argmax() == 2


@pytest.mark.slow
@both
def test_what_is_added_learns_from_the_first_step(name):
    net, given = network(name, checkpoint_activations=True), inputs(name)
    net(**given, **added()).square().mean().backward()
    for parameter in (net.magnitude.outer.weight, net.magnitude.outer.bias, net.static_orbit.weight):
        assert parameter.grad.abs().max() > 0


@pytest.mark.slow
@torch.no_grad()
def test_it_computes_in_half_precision():
    net, given = network("image", trained=True), inputs("image")
    exact = net(**given, **added())
    half = net.to(torch.bfloat16)(**given, **added(), static_known=torch.tensor([True, True]))
    assert half.dtype == torch.float32
    assert (half - exact).std() / exact.std() < 0.06


def test_the_image_network_wants_its_image():
    given = inputs("image")
    del given["image_latents"]
    with pytest.raises(ValueError, match="image_latents"):
        network("image")(**given)


@pytest.mark.parametrize(("name", "elevation", "distance"), [("t2v", 15, 2.0), ("i2v", 5, 1.7)])
def test_our_orbits_become_the_public_cameras(name, elevation, distance):
    ours = Orbit(24, elevation=elevation, distance=distance, closed=False).camera_to_world()
    expected = golden.tensors("videomv/cameras")[f"{name}.condition"]
    found = videomv_cameras(torch.tensor(ours)[None])
    torch.testing.assert_close(found, expected.to(found.dtype), atol=1e-5, rtol=0)
    x, y = found[0, 0].reshape(4, 4)[:2, 3].tolist()
    assert x > 1.6  # it starts at +X
    assert y == pytest.approx(0, abs=1e-6)
