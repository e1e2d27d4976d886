# SPDX-License-Identifier: GPL-3.0-or-later
"""3D-aware refinement at tiny size: random weights from end to end, and known Gaussians where what is seen matters."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.guidance.classifier_free import guide_plain
from backend.guidance.sampling import Refinement, begin, one_by_one, sample
from backend.guidance.schedules import cosine_schedule, set_timesteps
from backend.models.lgm import FOV, IMAGE_MEAN, IMAGE_STD, LGM, Size, Splats, plucker_rays, refiner_poses
from backend.pipelines.refine3d import BACKGROUND, look, refiner
from blender_addon.contract.orbit import Orbit

FRAMES, LATENT, PIXELS = 8, 8, 16
TINY = Size(down=(32, 32), down_attention=(False, True), up=(32, 32), up_attention=(True, False))
CAMERAS = torch.from_numpy(Orbit(frames=FRAMES, elevation=15.0, closed=False).camera_to_world()).float()


def enlarge(latents: Tensor) -> Tensor:
    """A decoder: latents -1..1 as they are."""
    return functional.interpolate(latents[:, :3], scale_factor=PIXELS / LATENT, mode="nearest") * 0.5 + 0.5


def shrink(pictures: Tensor) -> Tensor:
    """An encoder."""
    small = functional.interpolate(pictures * 2 - 1, (LATENT, LATENT), mode="area")
    return torch.cat([small, small.mean(1, keepdim=True)], dim=1)


class Blob(nn.Module):
    """In the place of the network: one red Gaussian and one green, wherever it is said to be."""

    def __init__(self, *means: list[float]) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means))
        self.views: list[Tensor] = []

    def forward(self, views: Tensor) -> Splats:
        self.views.append(views)
        batch, count = len(views), len(self.means)
        return Splats(
            self.means.expand(batch, -1, -1),
            torch.tensor([1.0, 0, 0, 0]).expand(batch, count, 4),
            torch.full((batch, count, 3), 0.05),
            torch.full((batch, count), 0.95),
            torch.eye(3)[:count].expand(batch, -1, -1),
        )


def center(picture: Tensor) -> Tensor:  # [H, W] -> x, y
    """Where its brightness is, in pixels."""
    across = torch.arange(len(picture)) + 0.5
    return torch.stack([(picture.sum(0) * across).sum(), (picture.sum(1) * across).sum()]) / picture.sum()


def test_all_frames_see_the_same_object() -> None:
    """A red and a green dot beside the axis: each frame has them where its camera must see them."""
    means = [[0.3, 0.1, 0.1], [-0.2, -0.1, 0.3]]
    poses = refiner_poses(CAMERAS)
    pictures = look(Blob(*means)(torch.zeros(1)), poses, 96, background=0.0)[0]
    focal = 48 / math.tan(math.radians(FOV / 2))
    for picture, pose in zip(pictures, poses, strict=True):
        for channel, mean in zip(picture, means, strict=False):
            x, y, z = (torch.linalg.inv(pose) @ torch.tensor([*mean, 1.0]))[:3]
            expected = torch.stack([48 - focal * x / z, 48 + focal * y / z])
            torch.testing.assert_close(center(channel), expected, atol=0.6, rtol=0)
    centers = torch.stack([center(picture[0]) for picture in pictures])
    assert (centers.amax(0) - centers.amin(0))[0] > 20  # it goes round


def test_what_is_encoded_is_drawn_large_and_thinned_out() -> None:
    """Every frame by its own camera, at twice the resolution, of which each second row and column is kept."""
    model, encoded = Blob([0.3, 0.1, 0.1]), []

    def encode(pictures: Tensor) -> Tensor:
        encoded.append(pictures)
        return shrink(pictures)

    refined = refiner(model, enlarge, encode, CAMERAS, 0.5)(torch.zeros(2, 4, FRAMES, LATENT, LATENT))
    drawn = look(model(torch.zeros(2)), refiner_poses(CAMERAS), 2 * PIXELS, background=0.5)[..., ::2, ::2]
    torch.testing.assert_close(encoded[0], drawn.flatten(0, 1))
    assert (drawn[:, 1:] - drawn[:, :-1]).abs().amax((0, 2, 3, 4)).min() > 0.1  # no two frames alike
    expected = torch.stack([shrink(pictures) for pictures in drawn])  # [B, T, 4, h, w]
    torch.testing.assert_close(refined, expected.transpose(1, 2))


def test_small_gaussians_are_blurred_to_a_pixel() -> None:
    """By 0.3 pixel^2, as in the rasteriser that the network was trained with."""
    splats = Blob([0.0, 0.0, 0.0])(torch.zeros(1))._replace(scales=torch.full((1, 1, 3), 1e-5))
    dot = look(splats, refiner_poses(CAMERAS)[:1], 33, background=0.0)[0, 0, 0]
    assert dot.max().item() == pytest.approx(0.95, rel=1e-3)
    assert dot[16, 17].item() == pytest.approx(0.95 * math.exp(-0.5 / 0.3), rel=1e-3)


def test_the_background_is_the_networks() -> None:
    far = Blob([0.9, 0.9, 0.9])(torch.zeros(2))
    for grey in BACKGROUND.values():
        pictures = look(far, refiner_poses(CAMERAS), 32, background=grey)
        assert pictures.shape == (2, FRAMES, 3, 32, 32)
        torch.testing.assert_close(pictures[:, 0, :, 16, 16], torch.full((2, 3), grey))


def test_the_network_sees_four_views_with_their_rays() -> None:
    model = Blob([0.0, 0.0, 0.0])
    clean = torch.rand(2, 4, FRAMES, LATENT, LATENT, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    refiner(model, enlarge, shrink, CAMERAS, 0.5)(clean)
    (views,) = model.views
    assert views.shape == (2, 4, 9, PIXELS, PIXELS)
    for object_index, view, frame in ((0, 0, 0), (0, 1, 2), (1, 3, 6)):
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        shown = views[object_index, view, :3] * std + mean
        expected = enlarge(clean[object_index, None, :, frame]).clamp(0, 1)[0]
        torch.testing.assert_close(shown, expected)
        rays = plucker_rays(refiner_poses(CAMERAS), PIXELS)[frame]
        torch.testing.assert_close(views[object_index, view, 3:], rays)


def test_only_the_four_views_matter_and_they_matter_to_all() -> None:
    torch.manual_seed(0)
    refine = refiner(LGM(TINY).eval(), enlarge, shrink, CAMERAS, 0.5)
    clean = torch.randn(1, 4, FRAMES, LATENT, LATENT).clamp(-0.9, 0.9)
    refined = refine(clean)
    unseen, seen = clean.clone(), clean.clone()
    unseen[:, :, [1, 3, 5, 7]] = 0.0
    seen[:, :, 2] = 0.0
    assert torch.equal(refine(unseen), refined)
    assert (refine(seen) - refined).abs().amax((0, 1, 3, 4)).min() > 1e-4


def test_sampling_from_end_to_end() -> None:
    """A real autoencoder and refiner, both with random weights, inside the sampling loop."""
    from diffusers import AutoencoderKL  # seconds, and only here

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    scale = vae.config.scaling_factor
    noise = torch.Generator().manual_seed(0)
    calls = []

    def decode(latents: Tensor) -> Tensor:
        calls.append(tuple(latents.shape))
        return vae.decode(latents / scale).sample * 0.5 + 0.5

    def encode(pictures: Tensor) -> Tensor:
        calls.append(tuple(pictures.shape))
        return vae.encode(pictures * 2 - 1).latent_dist.sample(noise) * scale

    refine = refiner(LGM(TINY).eval(), decode, encode, CAMERAS, BACKGROUND["image"])
    scheduler = cosine_schedule()
    times = set_timesteps(scheduler, 5)
    branches = one_by_one(lambda latents, t: latents.tanh(), lambda latents, t: 0.5 * latents.tanh())
    run = partial(
        sample, begin((1, 4, FRAMES, LATENT, LATENT), 0), times, scheduler, branches, partial(guide_plain, scale=2.0)
    )
    refined, plain = run(refinement=Refinement.as_published(refine, 5)), run()
    assert refined.shape == plain.shape == (1, 4, FRAMES, LATENT, LATENT)
    assert torch.isfinite(refined).all()
    assert (refined - plain).abs().max() > 1e-2
    assert calls == [(4, 4, LATENT, LATENT), (FRAMES, 3, PIXELS, PIXELS)] * 2 * 3  # branches, refined steps


def test_refinement_may_be_in_half_precision() -> None:
    torch.manual_seed(0)
    model, clean = LGM(TINY).eval(), torch.rand(1, 4, FRAMES, LATENT, LATENT) - 0.5
    full = refiner(model, enlarge, shrink, CAMERAS, 0.5)(clean)
    half = refiner(model.bfloat16(), enlarge, shrink, CAMERAS, 0.5)(clean)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.02


def test_orbits_without_quarters_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        refiner(Blob([0.0, 0.0, 0.0]), enlarge, shrink, CAMERAS[:6], 0.5)
