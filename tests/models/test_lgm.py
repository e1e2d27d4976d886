# SPDX-License-Identifier: GPL-3.0-or-later
"""The Gaussian refiner: its weights' names, its cameras as the public code has them, and what its parts do."""

import math

import pytest
import torch
from torch import Tensor

from backend.models import lgm
from backend.models.lgm import LGM, Size
from backend.progress import UserError
from tests import golden

TINY = Size(down=(32, 32, 64), down_attention=(False, True, True), up=(64, 32), up_attention=(True, False))
KNOWN = golden.tensors("sampling/videomv_refiner")
ORBITS = ("t2v", "i2v", "n8")  # distances 2.0, 1.7 and 1.5, elevations 15, 5 and 0


def tiny(**options: bool) -> LGM:
    torch.manual_seed(0)
    return LGM(TINY, **options).eval()


def views(batch: int = 1, size: int = 16) -> Tensor:
    return torch.randn(batch, lgm.VIEWS, 9, size, size, generator=torch.Generator().manual_seed(1))


def cameras(orbit: str) -> Tensor:
    return KNOWN[f"{orbit}.condition"][0].reshape(-1, 4, 4)


def wave(count: int, speed: float, start: int = 0) -> Tensor:
    """Numbers of variance 1 that look random and are the same on every computer."""
    return torch.sin(torch.arange(count, dtype=torch.float64).square() * speed + start) * math.sqrt(2)


@torch.no_grad()
def test_gaussians_are_those_of_the_public_code() -> None:
    model = tiny(rotated=True)
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        values = wave(parameter.numel(), 0.7, index).reshape(parameter.shape)
        if parameter.ndim > 1:
            values *= 0.8 / math.sqrt(parameter[0].numel())
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values *= 0.1
        parameter.copy_(values)
    splats = model(wave(2 * 4 * 9 * 16 * 16, 0.3).float().reshape(2, 4, 9, 16, 16))
    ours = torch.cat([splats.means, splats.opacities[..., None], splats.scales, splats.quats, splats.colors], dim=-1)
    known = golden.tensors("sampling/lgm_tiny")["gaussians"]
    torch.testing.assert_close(ours, known, atol=5e-5, rtol=0)


def test_weights_are_named_as_in_the_public_code() -> None:
    with torch.device("meta"):
        ours = {name: list(value.shape) for name, value in LGM().state_dict().items()}
    known = dict(golden.facts("sampling/refiner_keys")["keys"])
    assert len(known) == 376
    assert ours == known


@pytest.mark.parametrize("orbit", ORBITS)
def test_released_poses_and_rays(orbit: str) -> None:
    poses = lgm.refiner_poses(cameras(orbit), as_released=True)
    torch.testing.assert_close(poses, KNOWN[f"{orbit}.lgm_cam_poses"], atol=2e-6, rtol=0)
    rays = lgm.plucker_rays(poses[[0, len(poses) // 4]], 256)[:, :, ::32, ::32].permute(0, 2, 3, 1)
    torch.testing.assert_close(rays, KNOWN[f"{orbit}.lgm_pluecker_views_0_quarter_8x8"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("orbit", ORBITS)
def test_poses_see_the_object_in_the_middle(orbit: str) -> None:
    given = cameras(orbit)
    poses = lgm.refiner_poses(given)
    distance = given[0, :3, 3].norm()
    first = torch.eye(4)
    first[2, 3] = distance
    torch.testing.assert_close(poses[0], first, atol=1e-6, rtol=0)
    ahead = poses[:, :3, 3] - distance * poses[:, :3, 2]  # by the distance along each camera's axis
    torch.testing.assert_close(ahead, torch.zeros_like(ahead), atol=2e-6, rtol=0)
    between = torch.linalg.inv(poses[0]) @ poses  # as between the cameras that were given
    torch.testing.assert_close(between, torch.linalg.inv(given[0]) @ given, atol=2e-6, rtol=0)


def test_the_frame_of_the_cameras_does_not_matter() -> None:
    given = cameras("t2v")
    turned = torch.eye(4)
    turned[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turned[:3, :3] *= torch.linalg.det(turned[:3, :3]).sign()
    torch.testing.assert_close(lgm.refiner_poses(turned @ given), lgm.refiner_poses(given), atol=2e-6, rtol=0)


def test_rays_meet_where_the_cameras_look() -> None:
    """The ray of the middle goes through the origin: its moment is 0. Those of the edges span the field of view."""
    rays = lgm.plucker_rays(lgm.refiner_poses(cameras("i2v")), 5, fov=60.0)
    assert rays[:, :3, 2, 2].abs().max() < 1e-5
    torch.testing.assert_close(rays[:, 3:].norm(dim=1), torch.ones(24, 5, 5))
    left, right = rays[0, 3:, 2, 0], rays[0, 3:, 2, 4]
    assert torch.arccos(left @ right).item() == pytest.approx(2 * math.atan(0.8 * math.tan(math.radians(30))), rel=1e-5)
    assert left[0] < 0 < right[0]
    assert rays[0, 4, 0, 2] > 0 > rays[0, 4, 4, 2]  # the first row is the upper one


@torch.no_grad()
def test_gaussians_are_within_their_bounds() -> None:
    splats = tiny(rotated=True)(views(2))
    count = lgm.VIEWS * 8 * 8  # the network comes up one level less than it goes down
    assert splats.means.shape == (2, count, 3)
    assert splats.opacities.shape == (2, count)
    assert all(torch.isfinite(part).all() for part in splats)
    assert splats.means.abs().max() <= 1
    assert splats.scales.min() > 0
    assert 0 < splats.opacities.min() < splats.opacities.max() < 1
    assert 0 < splats.colors.min() < splats.colors.max() < 1
    torch.testing.assert_close(splats.quats.norm(dim=-1), torch.ones(2, count))


@torch.no_grad()
def test_channels_become_what_they_stand_for() -> None:
    """The last convolution set to constants: position, opacity, scales, quaternion, color, in this order."""
    model = tiny(rotated=True)
    model.conv.weight.zero_()
    raw = [0.5, -3.0, 0.25, 1.0, -1.0, 0.0, 2.0, 0.0, 3.0, 4.0, 0.0, -0.5, 0.0, 0.5]
    model.conv.bias.copy_(torch.tensor(raw))
    splat = [part[0, 7].tolist() for part in model(views())]
    means, quats, scales, opacity, colors = splat
    assert means == pytest.approx([0.5, -1.0, 0.25])
    assert quats == pytest.approx([0.0, 0.6, 0.8, 0.0])
    assert scales == pytest.approx([0.1 * math.log1p(math.exp(x)) for x in (-1.0, 0.0, 2.0)])
    assert opacity == pytest.approx(1 / (1 + math.exp(-1)))
    assert colors == pytest.approx([0.5 - 0.5 * math.tanh(0.5), 0.5, 0.5 + 0.5 * math.tanh(0.5)])


@torch.no_grad()
def test_weights_without_rotations_turn_nothing() -> None:
    quats = tiny(rotated=False)(views()).quats
    assert torch.equal(quats, torch.tensor([1.0, 0, 0, 0]).expand_as(quats))


@torch.no_grad()
def test_views_attend_to_each_other_but_objects_do_not() -> None:
    model, seen = tiny(), views(2)
    changed = seen.clone()
    changed[0, 2] += 1.0
    before, after = model(seen).means.unflatten(1, (lgm.VIEWS, -1)), model(changed).means.unflatten(1, (lgm.VIEWS, -1))
    moved = (after - before).abs().amax((2, 3))
    assert moved[0].min() > 1e-5  # all views of the object
    assert moved[1].max() < 1e-6  # none of the other


@torch.no_grad()
def test_attention_is_softmax_of_sixteen_heads() -> None:
    torch.manual_seed(0)
    attention, tokens = lgm.Attention(32), torch.randn(2, 5, 32)
    queries, keys, values = attention.qkv(tokens).split(32, dim=-1)
    heads = []
    for head in range(16):
        part = slice(2 * head, 2 * head + 2)
        weights = (queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(2)).softmax(-1)
        heads.append(weights @ values[..., part])
    torch.testing.assert_close(attention(tokens), attention.proj(torch.cat(heads, -1)))


def test_pictures_are_normalised() -> None:
    grey = torch.full((2, 3, 1, 1), 0.5)
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    assert lgm.normalised(grey)[1, :, 0, 0].tolist() == pytest.approx(expected)


def test_weights_are_found_in_either_file() -> None:
    own = tiny().state_dict()
    beside = {"input_blocks.0.0.weight": torch.zeros(1), "lgm_big.lpips_loss.net.0.weight": torch.zeros(1)}
    inside = {f"lgm_big.{name}": value for name, value in own.items()} | beside
    for state in (own, inside, {**own, "lpips_loss.net.0.weight": torch.zeros(1)}):
        assert LGM(TINY).load_state_dict(lgm.refiner_weights(state)).missing_keys == []
    with pytest.raises(UserError, match="no Gaussian refiner"):
        lgm.refiner_weights({"input_blocks.0.0.weight": torch.zeros(1)})
