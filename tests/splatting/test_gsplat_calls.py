# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of gsplat is what gsplat understands: its own Python, above a stand-in for its compiled part.

The stand-in draws densely with gsplat's torch functions, so shapes, options and their meaning are checked where there
is no GPU. `test_gsplat_on_cuda_gives_the_same` compares the compiled part itself, where there is one.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from backend.splatting.rasterize import rasterize
from backend.splatting.rasterize.arguments import Options, checked_scene
from backend.splatting.rasterize.cuda import rasterize_cuda
from tests.splatting.oracle import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, bumpy_sphere, camera

WIDTH, HEIGHT, COUNT = 40, 24, 150


class Compiled:
    """gsplat's compiled functions, as its Python calls them."""

    CameraModelType = PINHOLE = 0

    def projection_ewa_3dgs_fused_fwd(
        self, means, covars, quats, scales, opacities, viewmats, Ks, width, height, eps2d, near, far, clip, compensate, model  # noqa: E501, N803
    ):  # fmt: skip
        from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

        assert covars is None
        assert opacities.shape == means.shape[:-1]
        assert (clip, model) == (0.0, self.PINHOLE)
        covars, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
        found = _fully_fused_projection(means, covars, viewmats, Ks, width, height, eps2d, near, far, compensate)
        self.depths, self.near = found[2], near
        return *found[:4], found[4] if compensate else torch.empty(0)

    def spherical_harmonics_fwd(self, degree, dirs, coeffs, masks):
        from gsplat.cuda._torch_impl import _spherical_harmonics

        return _spherical_harmonics(degree, dirs, coeffs) * masks[..., None]

    def intersect_tile(self, means2d, radii, depths, image_ids, gaussian_ids, images, size, columns, rows, *order):
        assert image_ids is None
        assert gaussian_ids is None
        assert depths.numel() == images * COUNT
        return (torch.zeros_like(radii[..., 0]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32))

    def intersect_offset(self, ids, images, columns, rows):
        return torch.zeros(images, rows, columns, dtype=torch.int32)

    def rasterize_to_pixels_3dgs_fwd(
        self, means2d, conics, colors, opacities, backgrounds, masks, width, height, tile, offsets, ids
    ):
        assert backgrounds is None
        assert masks is None
        flat = (tensor.flatten(0, means2d.dim() - 3) for tensor in (means2d, conics, colors, opacities, self.depths))
        images = [self._image(*one, width, height) for one in zip(*flat, strict=True)]
        shape = (*means2d.shape[:-2], height, width)
        pictures, alphas = (torch.stack(part).view(*shape, -1) for part in zip(*images, strict=True))
        return pictures, alphas, torch.zeros(shape, dtype=torch.int32)

    def _image(self, means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, depths: Tensor, width, height):
        order = torch.argsort(depths, stable=True)
        order = order[depths[order] > self.near]
        means2d, conics, colors, opacities = (tensor[order] for tensor in (means2d, conics, colors, opacities))
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        dx, dy = x.reshape(-1, 1) - means2d[:, 0], y.reshape(-1, 1) - means2d[:, 1]
        sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
        alpha = (opacities * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
        alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0)
        alpha = torch.where(torch.cumprod(1 - alpha, 1) > MIN_TRANSMITTANCE, alpha, 0)
        after = torch.cumprod(1 - alpha, 1)
        weights = alpha * torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
        return weights @ colors, weights.sum(1, keepdim=True)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import gsplat.cuda

    module = ModuleType("gsplat.cuda._backend")
    module._C = Compiled()
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", module)
    monkeypatch.setattr(gsplat.cuda, "_backend", module, raising=False)


def scene() -> SimpleNamespace:
    """Two moments, two cameras each."""
    means, quats, scales, opacities, colors = (tensor.float() for tensor in bumpy_sphere(COUNT))
    cameras = [camera(WIDTH, HEIGHT, azimuth=azimuth) for azimuth in (0.0, 0.9, 2.0, 3.0)]
    viewmats, intrinsics = (torch.stack(part).float().unflatten(0, (2, 2)) for part in zip(*cameras, strict=True))
    return SimpleNamespace(
        means=torch.stack([means, means + torch.tensor([0.2, 0, 0])]),
        quats=quats,
        scales=1.5 * scales,
        opacities=opacities,
        colors=colors,
        viewmats=viewmats,
        Ks=intrinsics,
    )


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {}),
        (3, {"near_plane": 2.9, "eps2d": 0.02}),
        (7, {"render_mode": "RGB+D"}),
        (3, {"render_mode": "D"}),
        (3, {"rasterize_mode": "antialiased", "eps2d": 1.0}),
        (None, {"sh_degree": 2, "render_mode": "RGB+ED"}),
    ],
)
def test_gsplat_is_asked_for_what_the_cpu_draws(channels: int | None, options: dict) -> None:
    arguments = scene()
    random = torch.Generator().manual_seed(1)
    shape = (COUNT, 9, 3) if channels is None else (COUNT, channels)
    arguments.colors = torch.randn(shape, generator=random) * 0.4
    ours, alphas, notes = rasterize(**vars(arguments), width=WIDTH, height=HEIGHT, **options)
    asked = Options(WIDTH, HEIGHT, **options)
    theirs, their_alphas, their_notes = rasterize_cuda(checked_scene(vars(arguments), asked), asked)
    if asked.render_mode.endswith("ED"):  # left to the caller
        theirs = torch.cat([theirs[..., :-1], theirs[..., -1:] / their_alphas.clamp_min(1e-10)], dim=-1)
    assert ours.shape == theirs.shape
    for mine, other in ((ours, theirs), (alphas, their_alphas)):
        assert (mine - other).abs().mean() < 2e-4 * other.abs().mean()
    for name, note in notes.items():
        assert note.shape == their_notes[name].shape, name
