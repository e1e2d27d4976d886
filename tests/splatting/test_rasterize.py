# SPDX-License-Identifier: GPL-3.0-or-later
"""The rasterizer against a dense float64 oracle, and its promises: batches, determinism, threads, odd input."""

import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from backend.progress import UserError
from backend.splatting.rasterize import get_threads, rasterize, set_threads, warm_up
from backend.splatting.rasterize.threads import default_threads
from tests.splatting.oracle import bumpy_sphere, camera, rasterize_dense

ROOT = Path(__file__).resolve().parents[2]
ALL_MODES = {"sh_degree": 2, "render_mode": "RGB+D", "rasterize_mode": "antialiased"}
NAMES = ("means", "quats", "scales", "opacities", "colors")


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    warm_up()


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = get_threads()
    yield
    set_threads(before)


def single(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in tensors]


def draw(gaussians: list[Tensor], viewmat: Tensor, K: Tensor, width: int, height: int, **options) -> Tensor:  # noqa: N803
    """RGBA [H, W, 4] of one cloud in one camera."""
    colors, alphas, _ = rasterize(*gaussians, viewmat[None].float(), K[None].float(), width, height, **options)
    return torch.cat([colors, alphas], dim=-1)[0]


def noise(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).abs().max() / truth.abs().max()).item()


def compare_with_oracle(scene: list[Tensor], viewmat: Tensor, K: Tensor, width: int, height: int, **options) -> None:  # noqa: N803
    """All within 1e-5; pixels where float32 may fall on the other side of a cut-off have no say."""
    truth = [tensor.clone().requires_grad_() for tensor in scene]
    colors, alphas, margin = rasterize_dense(*truth, viewmat, K, width, height, **options)
    expected = torch.cat([colors, alphas], dim=-1)
    decided = (margin > 2e-5)[..., None].double()
    assert decided.mean() > 0.9
    weights = noise(*expected.shape) * decided

    ours = single(scene)
    picture = draw(ours, viewmat, K, width, height, **options)
    assert ((picture - expected).abs() * decided).max() <= 1e-5 * expected.abs().max()
    (expected * weights).sum().backward()
    (picture * weights.float()).sum().backward()
    for name, mine, reference in zip(NAMES, ours, truth, strict=True):
        if reference.grad is None:  # of colors where only depth is drawn
            assert not mine.grad.any(), name
        else:
            assert relative_error(mine.grad, reference.grad) <= 1e-5, name


# Against the oracle


def test_picture_and_gradients_match_the_oracle() -> None:
    compare_with_oracle(bumpy_sphere(700, 3), *camera(48, 40), 48, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 5])
def test_larger_pictures_of_more_gaussians_match(seed: int) -> None:
    compare_with_oracle(bumpy_sphere(2000, seed), *camera(72, 60), 72, 60)


def test_they_match_from_aside_with_other_near_plane_and_blur() -> None:
    viewmat, K = camera(42, 54, azimuth=1.1)  # noqa: N806
    K[0, 0] *= 1.2
    K[0, 2] += 5.3
    K[1, 2] -= 4.1
    compare_with_oracle(bumpy_sphere(600), viewmat, K, 42, 54, near_plane=2.6, eps2d=0.1)


@pytest.mark.parametrize("degrees", [20.0, 45.0])
def test_they_match_where_the_linearization_is_clamped(degrees: float) -> None:
    """Large Gaussians around and beyond the picture's edge: the clamped lanes of the projection's gradient."""
    generator = torch.Generator().manual_seed(8)
    viewmat, K = camera(64, 48, degrees=degrees)  # noqa: N806
    edge = math.tan(math.radians(degrees) / 2)
    slopes = edge * 1.8 * (2 * torch.rand(400, 2, generator=generator, dtype=torch.float64) - 1)
    slopes[:, 1] *= 48 / 64
    depths = 2 + 2 * torch.rand(400, 1, generator=generator, dtype=torch.float64)
    means = torch.cat([slopes * depths, depths], dim=1) - viewmat[:3, 3]
    _, quats, scales, opacities, colors = bumpy_sphere(400)
    scales = scales * 4
    clamped = (slopes.abs() > 1.3 * edge * torch.tensor([1, 48 / 64])).any(dim=1)
    colors = colors * (1 + clamped[:, None])  # so that they matter
    seen = single([means, quats, scales, opacities, colors])
    draw(seen, viewmat, K, 64, 48).sum().backward()
    assert (seen[0].grad[clamped].abs().sum(dim=1) > 0).sum() > 10  # the lanes are really in use
    compare_with_oracle([means, quats, scales, opacities, colors], viewmat, K, 64, 48)


def test_the_clamped_lanes_alone_match() -> None:
    """Only Gaussians past the clamp, so that their error cannot hide behind the larger gradients of others."""
    viewmat, K = camera(64, 64, degrees=40)  # noqa: N806
    edge = math.tan(math.radians(20))
    slopes = torch.tensor(
        [[1.5, 0.1], [-1.6, 0.3], [0.2, 1.45], [-0.3, -1.7], [1.5, 1.5], [-1.5, 1.4], [1.4, -1.6]], dtype=torch.float64
    )
    depths = torch.linspace(2.5, 3.5, len(slopes), dtype=torch.float64)[:, None]
    means = torch.cat([edge * slopes * depths, depths], dim=1) - viewmat[:3, 3]
    _, quats, scales, opacities, colors = bumpy_sphere(len(slopes), seed=2)
    compare_with_oracle([means, quats, 0.9 * scales, opacities, colors], viewmat, K, 64, 64)


def test_saturated_gaussians_match() -> None:
    """Opacity 1: alpha is clamped at 0.999 near the middle, and pixels end early."""
    means, quats, scales, _, colors = bumpy_sphere(500)
    compare_with_oracle([means, quats, scales * 2, torch.ones(500).double(), colors], *camera(48, 48), 48, 48)


def with_harmonics(scene: list[Tensor], degree: int) -> list[Tensor]:
    """The scene with coefficients in place of colors, of which some colors are held at 0."""
    count = (degree + 1) ** 2 + 1  # one more than is used
    return [*scene[:4], torch.cat([4 * scene[4][:, None] - 2, 0.4 * noise(len(scene[4]), count - 1, 3)], dim=1)]


@pytest.mark.parametrize("degree", range(5))
def test_harmonics_match(degree: int) -> None:
    """Seen from two sides, so that no axis of the directions is small."""
    scene = with_harmonics(bumpy_sphere(300, degree), degree)
    compare_with_oracle(scene, *camera(40, 40, azimuth=0.8 * degree, distance=1.8), 40, 40, sh_degree=degree)


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D", "RGB+ED"])
def test_depth_matches(mode: str) -> None:
    """The expected depth where something is: elsewhere it is 0 / 0 in both, and its gradient has no bound."""
    scene = bumpy_sphere(300)
    scene[0] = torch.cat([scene[0], torch.tensor([[0, 0, 1.0]])])  # a wall behind
    scene[1:] = [torch.cat([tensor, tensor[-1:]]) for tensor in scene[1:]]
    scene[2][-1], scene[3][-1] = 2.0, 0.7
    compare_with_oracle(scene, *camera(40, 32), 40, 32, render_mode=mode)


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
def test_any_number_of_channels_matches(channels: int) -> None:
    scene = bumpy_sphere(300)
    compare_with_oracle([*scene[:4], noise(300, channels)], *camera(40, 32), 40, 32, render_mode="RGB+D")


def test_antialiased_gaussians_match() -> None:
    """Down to far less than a pixel, and needles."""
    scene = bumpy_sphere(400, 6)
    scene[2] = scene[2] * torch.tensor([0.02, 1, 0.3]) * torch.linspace(0.2, 1.5, 400)[:, None].double()
    compare_with_oracle(scene, *camera(48, 48), 48, 48, rasterize_mode="antialiased")


def test_all_modes_together_match() -> None:
    scene = with_harmonics(bumpy_sphere(300), 2)
    compare_with_oracle(scene, *camera(40, 32, azimuth=-0.6), 40, 32, eps2d=0.1, **ALL_MODES)


@pytest.mark.parametrize(
    "modes", [{}, {"sh_degree": 3, "render_mode": "RGB+D", "rasterize_mode": "antialiased"}], ids=["plain", "all"]
)
def test_gradients_match_finite_differences_of_the_oracle(modes: dict) -> None:
    """The oracle itself is right: its autograd agrees with differences of its own picture."""
    scene = with_harmonics(bumpy_sphere(12), 3) if modes else bumpy_sphere(12)
    scene = [tensor.requires_grad_() for tensor in scene]
    weights = noise(24, 24, 5)

    def loss(*gaussians: Tensor) -> Tensor:
        pictures, alphas, _ = rasterize_dense(*gaussians, *camera(24, 24), 24, 24, **modes)
        drawn = torch.cat([pictures, alphas], dim=-1)
        return (drawn * weights[..., : drawn.shape[-1]]).sum()

    loss(*scene).backward()
    step = 1e-6
    for tensor in scene:
        index = tuple(torch.tensor(tensor.shape) // 2)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                moved = [other.clone() for other in scene]
                moved[[other is tensor for other in scene].index(True)][index] += sign * step
                values.append(loss(*moved))
        slope = (values[0] - values[1]) / (2 * step)
        assert slope.item() == pytest.approx(tensor.grad[index].item(), rel=1e-3, abs=1e-4)


# What is not drawn


def test_nothing_gives_an_empty_picture() -> None:
    empty = [torch.zeros(0, size) if size else torch.zeros(0) for size in (3, 4, 3, 0, 3)]
    viewmat, K = (tensor[None].float() for tensor in camera(40, 30))  # noqa: N806
    gaussians = [tensor.requires_grad_() for tensor in empty]
    colors, alphas, meta = rasterize(*gaussians, viewmat, K, 40, 30)
    assert colors.shape == (1, 30, 40, 3)
    assert not colors.any()
    assert not alphas.any()
    assert meta["means2d"].shape == (1, 0, 2)
    (colors.sum() + alphas.sum()).backward()
    assert gaussians[0].grad.shape == (0, 3)


def test_no_cameras_give_no_pictures() -> None:
    colors, alphas, _ = rasterize(*single(bumpy_sphere(5)), torch.zeros(0, 4, 4), torch.zeros(0, 3, 3), 8, 8)
    assert colors.shape == (0, 8, 8, 3)
    assert alphas.shape == (0, 8, 8, 1)


def test_gaussians_behind_beside_and_too_faint_change_nothing() -> None:
    viewmat, K = camera(64, 64)  # noqa: N806
    seen = bumpy_sphere(200)
    hidden = bumpy_sphere(6, seed=1)
    hidden[0][0] = torch.tensor([0, 0, -3.5])  # behind the camera
    hidden[0][1] = torch.tensor([0, 0, -2.995])  # before the near plane
    hidden[0][2] = torch.tensor([500.0, 0, 0])  # beside the picture
    hidden[0][3] = torch.tensor([0, -500.0, 0])
    hidden[3][4] = 1 / 256  # fainter than what is drawn at all
    hidden[3][5] = 0
    alone, together = single(seen), single([torch.cat(pair) for pair in zip(seen, hidden, strict=True)])
    pictures = [draw(gaussians, viewmat, K, 64, 64) for gaussians in (alone, together)]
    assert torch.equal(*pictures)
    for picture in pictures:
        (picture * noise(64, 64, 4).float()).sum().backward()
    for less, more in zip(alone, together, strict=True):
        assert torch.equal(less.grad, more.grad[:200])
        assert not more.grad[200:].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_numbers_that_overflow_neither_crash_nor_spread(bad: float) -> None:
    viewmat, K = camera(64, 64)  # noqa: N806
    for field in range(4):
        gaussians = bumpy_sphere(50)
        gaussians[field][7] = -bad if field == 3 else bad  # an infinite opacity would not be a projection matter
        gaussians = single(gaussians)
        picture = draw(gaussians, viewmat, K, 64, 64)
        assert picture.isfinite().all(), NAMES[field]
        picture.sum().backward()
        rest = [tensor.grad[torch.arange(50) != 7] for tensor in gaussians]
        assert all(gradient.isfinite().all() for gradient in rest), NAMES[field]


# Batches


def moving_scene(times: int, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Means, quats, scales per time, opacities and colors of all times, two cameras per time."""
    means, quats, scales, opacities, colors = (tensor.float() for tensor in bumpy_sphere(count))
    swing = torch.linspace(0.8, 1.2, times)[:, None, None]
    views = [[camera(56, 40, azimuth=0.7 * time + camera_) for camera_ in (0.0, 1.9)] for time in range(times)]
    viewmats = torch.stack([torch.stack([view[0] for view in row]) for row in views]).float()
    Ks = torch.stack([torch.stack([view[1] for view in row]) for row in views]).float()  # noqa: N806
    return [means * swing, quats + swing - 1, scales * swing, opacities, colors], viewmats, Ks


def test_a_batch_of_times_equals_single_calls() -> None:
    moving, viewmats, Ks = moving_scene(3, 500)  # noqa: N806
    whole = single(moving)
    colors, alphas, meta = rasterize(*whole, viewmats, Ks, 56, 40)
    assert colors.shape == (3, 2, 40, 56, 3)
    assert alphas.shape == (3, 2, 40, 56, 1)
    weights = noise(3, 2, 40, 56, 4).float()
    (torch.cat([colors, alphas], dim=-1) * weights).sum().backward()

    sums = [torch.zeros_like(tensor) for tensor in whole]
    for time in range(3):
        for view in range(2):
            one = single([*(tensor[time] for tensor in moving[:3]), *moving[3:]])
            part_colors, part_alphas, part_meta = rasterize(
                *one, viewmats[time, view][None], Ks[time, view][None], 56, 40
            )
            assert torch.equal(part_colors[0], colors[time, view])
            assert torch.equal(part_alphas[0], alphas[time, view])
            for name in ("means2d", "conics", "depths", "radii"):
                assert torch.equal(part_meta[name][0], meta[name][time, view])
            (torch.cat([part_colors, part_alphas], dim=-1)[0] * weights[time, view]).sum().backward()
            for index, tensor in enumerate(one):
                (sums[index][time] if index < 3 else sums[index]).add_(tensor.grad)
    for name, tensor, expected in zip(NAMES, whole, sums, strict=True):
        assert relative_error(tensor.grad, expected.double()) <= 1e-6, name


def test_a_batch_in_all_modes_equals_single_calls() -> None:
    """Coefficients that all times share, depth and antialiasing: gradients are summed over the images."""
    moving, viewmats, Ks = moving_scene(2, 200)  # noqa: N806
    moving[4] = with_harmonics([*moving], 2)[4].float()
    whole = single(moving)
    pictures, alphas, _ = rasterize(*whole, viewmats, Ks, 56, 40, **ALL_MODES)
    assert pictures.shape == (2, 2, 40, 56, 4)
    weights = noise(2, 2, 40, 56, 4).float()
    (pictures * weights).sum().backward()
    sums = torch.zeros_like(whole[4])
    for time in range(2):
        for view in range(2):
            one = single([*(tensor[time] for tensor in moving[:3]), *moving[3:]])
            camera_ = viewmats[time, view][None], Ks[time, view][None]
            picture, alpha, _ = rasterize(*one, *camera_, 56, 40, **ALL_MODES)
            assert torch.equal(picture[0], pictures[time, view])
            assert torch.equal(alpha[0], alphas[time, view])
            (picture[0] * weights[time, view]).sum().backward()
            sums += one[4].grad
    assert relative_error(whole[4].grad, sums.double()) <= 1e-6
    assert not whole[4].grad[:, 9:].any()  # not in use


def test_leading_dimensions_broadcast() -> None:
    moving, viewmats, Ks = moving_scene(2, 60)  # noqa: N806
    shared = single([*moving[:3], moving[3], moving[4][None]])
    spread = single([*moving[:3], moving[3].expand(2, 60), moving[4].expand(2, 60, 3)])
    pictures = [rasterize(*gaussians, viewmats, Ks[:1], 56, 40)[0] for gaussians in (shared, spread)]
    assert torch.equal(*pictures)
    for picture in pictures:
        picture.square().sum().backward()
    assert relative_error(shared[3].grad, spread[3].grad.sum(dim=0).double()) <= 1e-6
    assert relative_error(shared[4].grad[0], spread[4].grad.sum(dim=0).double()) <= 1e-6

    nested = [tensor.detach()[:, None] for tensor in moving[:3]]
    colors, _, meta = rasterize(*nested, moving[3], moving[4], viewmats[:, None], Ks[:, None], 56, 40)
    assert colors.shape == (2, 1, 2, 40, 56, 3)
    assert meta["radii"].shape == (2, 1, 2, 60, 2)
    assert torch.equal(colors[:, 0], rasterize(*moving, viewmats, Ks, 56, 40)[0])


def test_backgrounds_show_through() -> None:
    moving, viewmats, Ks = moving_scene(2, 60)  # noqa: N806
    colors, alphas, _ = rasterize(*moving, viewmats, Ks, 56, 40)
    behind = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
    with_background, same_alphas, _ = rasterize(*moving, viewmats, Ks, 56, 40, backgrounds=behind)
    assert torch.equal(alphas, same_alphas)
    torch.testing.assert_close(with_background, colors + (1 - alphas) * behind)
    with_background.sum().backward()
    torch.testing.assert_close(behind.grad, (1 - alphas).sum().expand(3), rtol=1e-4, atol=1e-2)
    depths = rasterize(*moving, viewmats, Ks, 56, 40, render_mode="RGB+D")[0][..., 3:]
    with_depth = rasterize(*moving, viewmats, Ks, 56, 40, backgrounds=behind, render_mode="RGB+D")[0]
    torch.testing.assert_close(with_depth, torch.cat([with_background, depths], dim=-1))  # nothing is at depth 0
    assert torch.equal(depths, rasterize(*moving, viewmats, Ks, 56, 40, backgrounds=behind, render_mode="D")[0])
    per_camera = torch.rand(2, 2, 3)
    picture = rasterize(*moving, viewmats, Ks, 56, 40, backgrounds=per_camera)[0]
    torch.testing.assert_close(picture, colors + (1 - alphas) * per_camera[:, :, None, None])


def test_notes_describe_the_projection() -> None:
    scene = single(bumpy_sphere(50))
    scene[0].data[0] = torch.tensor([0, 0, -5.0])
    viewmat, K = camera(64, 48)  # noqa: N806
    _, _, meta = rasterize(*scene, viewmat[None].float(), K[None].float(), 64, 48)
    local = scene[0].detach().double() + viewmat[:3, 3]
    expected = (local[1:] @ K.T)[:, :2] / local[1:, 2:]
    torch.testing.assert_close(meta["means2d"][0, 1:].double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(meta["depths"][0, 1:].double(), local[1:, 2], rtol=1e-6, atol=1e-6)
    assert meta["radii"].dtype == torch.int32
    assert not meta["radii"][0, 0].any()
    assert (meta["radii"][0, 1:] > 0).all()
    assert not any(tensor.requires_grad for tensor in meta.values())


# Determinism and threads


def drawn_with_gradients(moving: list[Tensor], viewmats: Tensor, Ks: Tensor, **modes) -> list[Tensor]:  # noqa: N803
    gaussians = single(moving)
    colors, alphas, _ = rasterize(*gaussians, viewmats, Ks, 56, 40, **modes)
    (colors.square().sum() + alphas.sin().sum()).backward()
    return [colors.detach(), alphas.detach(), *(tensor.grad for tensor in gaussians)]


@pytest.mark.parametrize("modes", [{}, ALL_MODES], ids=["plain", "all"])
def test_results_are_the_same_to_the_last_bit_for_any_number_of_threads(modes: dict) -> None:
    scene = moving_scene(2, 5000)
    if modes:
        scene[0][4] = with_harmonics(scene[0], 2)[4].float()
    set_threads(1)
    first = drawn_with_gradients(*scene, **modes)
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        for before, after in zip(first, drawn_with_gradients(*scene, **modes), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize(("told", "threads"), [("1", 1), ("2,1", 2), ("9", 3), ("", 3), ("0", 3), ("all", 3)])
def test_threads_are_as_many_as_torch_may_use(told: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.splatting.rasterize.threads.available_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert default_threads() == threads


def test_several_python_threads_at_once_give_the_same_bits() -> None:
    scene = moving_scene(2, 1500)
    set_threads(2)
    first = drawn_with_gradients(*scene)
    wrong: list[str] = []

    def work() -> None:
        try:
            for _ in range(4):
                for before, after in zip(first, drawn_with_gradients(*scene), strict=True):
                    if not torch.equal(before, after):
                        wrong.append("other bits")
        except Exception as error:
            wrong.append(repr(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    set_threads(3)  # also while they run
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_rasterize() -> None:
    code = """
import os, sys, torch
from tests.splatting.test_rasterize import drawn_with_gradients, moving_scene, set_threads
set_threads(2)
scene = moving_scene(1, 500)
first = drawn_with_gradients(*scene)
child = os.fork()
if child == 0:
    same = all(torch.equal(a, b) for a, b in zip(first, drawn_with_gradients(*scene)))
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)


def test_the_number_of_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        set_threads(0)


# The kernels


@pytest.mark.slow
def test_the_inner_loops_are_vectorized() -> None:
    """One number at a time, they would be several times slower; the machine code shows it."""
    from backend.splatting.rasterize import compositing

    packed = re.compile(r"\bv?mulps\b|\bvfn?m(?:add|sub)\d+ps\b|\bfm(?:ul|la|ls)\s+v\d+\.4s|\bfm(?:ul|la|ls)\s+z\d+\.s")
    for kernel in (compositing.composite, compositing.composite_backward):
        fresh = numba.jit(**kernel.targetoptions)(kernel.py_func)  # code from the cache cannot be looked at
        fresh.compile(kernel.signatures[0])
        (code,) = fresh.inspect_asm().values()
        assert len(packed.findall(code)) >= 20, kernel.__name__


def test_every_kernel_has_one_specialization() -> None:
    from backend import compiled

    drawn_with_gradients(*moving_scene(2, 100))
    kernels = [dispatcher for dispatcher, _ in compiled._kernels if "rasterize" in dispatcher.__module__]
    assert len(kernels) == 9
    assert all(len(dispatcher.signatures) == 1 for dispatcher in kernels)
    scatter = next(kernel for kernel in kernels if kernel.__name__ == "scatter")
    doubles = np.zeros((1, 9))
    with pytest.raises(TypeError, match="No matching definition"):
        scatter(doubles, np.zeros(1, np.int32), 0, 1, doubles)


def run_warm_up(cache: Path, only: str = "") -> str:
    """What a fresh process says while it compiles or loads the kernels, or the only one of that name."""
    code = "from backend.splatting import control_points, losses, motion_kernels\n"
    code += "from backend import compiled; from backend.splatting.rasterize import cpu, warm_up\n"
    code += f"compiled._kernels[:] = [it for it in compiled._kernels if {only!r} in ('', it[0].__name__)]\n"
    code += "warm_up(print); print('ready')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=300, capture_output=True, text=True
    )
    return result.stdout + result.stderr


@pytest.mark.slow
def test_kernels_are_compiled_once_and_kept_in_the_cache_folder(tmp_path: Path) -> None:
    first = run_warm_up(tmp_path, only="scatter")
    assert "Compiling the kernels" in first
    assert list(tmp_path.rglob("*.nbc"))
    assert run_warm_up(tmp_path, only="scatter").split() == ["ready"]
    sources = ROOT / "backend" / "splatting" / "rasterize"
    assert not list(sources.rglob("*.nbc"))


def test_every_kernel_is_in_the_cache_folder() -> None:
    from backend import compiled
    from backend.models import inflation  # noqa: F401 - they have kernels as well
    from backend.nerf import kernels  # noqa: F401
    from backend.splatting import control_points, losses, motion_kernels  # noqa: F401

    warm_up()
    for dispatcher, _ in compiled._kernels:
        kept = Path(dispatcher.stats.cache_path)
        assert kept.is_relative_to(compiled._cache_folder(Path(dispatcher.py_func.__code__.co_filename)))
        assert list(kept.glob(f"*.{dispatcher.__name__}-*.nbc")), dispatcher.__name__


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    said = run_warm_up(blocked, only="scatter")
    assert "cannot be kept" in said
    assert "1 of 1\n" in said
    assert "ready" in said


# Wrong arguments


def arguments() -> dict:
    viewmat, K = camera(32, 32)  # noqa: N806
    gaussians = dict(zip(NAMES, (tensor.float() for tensor in bumpy_sphere(10)), strict=True))
    return {**gaussians, "viewmats": viewmat[None].float(), "Ks": K[None].float(), "width": 32, "height": 32}


BAD: list[tuple[str, Callable[[dict], object], str]] = [
    ("means", lambda a: a["means"][:, :2], r"means has the shape \[10, 2\].*\[\.\.\., N = 10, 3\]"),
    ("quats", lambda a: a["quats"][:9], r"quats has the shape \[9, 4\].*N = 10"),
    ("quats", lambda a: a["quats"][:, :3], r"quats has the shape \[10, 3\]"),
    ("scales", lambda a: a["scales"][0], r"scales has the shape \[3\]"),
    ("opacities", lambda a: a["opacities"][:, None], r"opacities has the shape \[10, 1\]"),
    ("colors", lambda a: torch.rand(9, 4), r"colors has the shape \[9, 4\].*N = 10, D"),
    ("colors", lambda a: torch.rand(10, 0), "colors has no channels"),
    ("viewmats", lambda a: a["viewmats"][0], r"viewmats has the shape \[4, 4\]"),
    ("Ks", lambda a: a["Ks"].expand(2, 3, 3), r"Ks has the shape \[2, 3, 3\].*C = 1"),
    ("means", lambda a: a["means"].double(), "means is torch.float64"),
    ("colors", lambda a: a["colors"].to("meta"), "colors is on meta"),
    ("means", lambda a: a["means"].to("meta"), "is on cpu, but means is on meta"),
    ("viewmats", lambda a: a["viewmats"].clone().requires_grad_(), "viewmats requires a gradient"),
    ("Ks", lambda a: a["Ks"] + torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]), "skew"),
    ("Ks", lambda a: -a["Ks"], "focal lengths"),
    ("width", lambda a: 0, "at least 1 pixel"),
    ("near_plane", lambda a: 0.0, "near_plane"),
    ("eps2d", lambda a: math.nan, "eps2d"),
    ("sh_degree", lambda a: 5, "sh_degree must be"),
    ("sh_degree", lambda a: 0, r"colors has the shape \[10, 3\].*N = 10, K, 3"),
    ("render_mode", lambda a: "RGBD", "render_mode must be one of RGB, D, ED"),
    ("rasterize_mode", lambda a: "smooth", "rasterize_mode must be one of classic, antialiased"),
    ("backgrounds", lambda a: torch.zeros(4), r"backgrounds has the shape \[4\]"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(BAD)])
def test_wrong_arguments_are_named(name: str, spoil: Callable[[dict], object], message: str) -> None:
    wrong = arguments()
    wrong[name] = spoil(wrong)
    with pytest.raises(ValueError, match=message):
        rasterize(**wrong)


def test_leading_dimensions_that_do_not_go_together_are_named() -> None:
    wrong = arguments()
    wrong["means"] = wrong["means"].expand(3, 10, 3)
    wrong["quats"] = wrong["quats"].expand(2, 10, 4)
    with pytest.raises(ValueError, match=r"leading dimensions.*means \[3\], quats \[2\]"):
        rasterize(**wrong)


def test_a_tensor_changed_before_the_backward_pass_is_noticed() -> None:
    gaussians = single(bumpy_sphere(20))
    picture = draw(gaussians, *camera(32, 32), 32, 32)
    with torch.no_grad():
        gaussians[0] += 1
    with pytest.raises(RuntimeError, match="inplace"):
        picture.sum().backward()


# The other engine


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["RGB", "ED", "RGB+D"])
def test_gsplat_on_cuda_gives_the_same(mode: str) -> None:
    """Compared in the mean: CUDA's fast math may fall on the other side of a cut-off in single pixels."""
    moving, viewmats, Ks = moving_scene(2, 3000)  # noqa: N806
    modes = {} if mode == "RGB" else {**ALL_MODES, "render_mode": mode}
    if modes:
        moving[4] = with_harmonics(moving, 2)[4].float()
    results = []
    for device in ("cpu", "cuda"):
        gaussians = [tensor.detach().to(device).requires_grad_() for tensor in moving]
        behind = torch.full((3,), 0.3, device=device)
        pictures, alphas, meta = rasterize(
            *gaussians, viewmats.to(device), Ks.to(device), 56, 40, backgrounds=behind, **modes
        )
        seen = alphas > 0.05  # an expected depth of almost nothing has gradients without bound
        ((pictures * seen).square().sum() + alphas.sin().sum()).backward()
        assert meta["means2d"].shape == (2, 2, 3000, 2)
        gradients = [torch.zeros_like(g) if g.grad is None else g.grad for g in gaussians]
        results.append([tensor.cpu() for tensor in ((pictures * seen).detach(), alphas.detach(), *gradients)])
    for name, mine, theirs in zip(("picture", "alpha", *NAMES), *results, strict=True):
        difference = (mine - theirs).abs().mean() / theirs.abs().mean().clamp_min(1e-12)
        assert difference < 1e-3, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gsplat_without_cuda_is_a_clear_error() -> None:
    from backend.splatting.rasterize.arguments import Options, checked_scene
    from backend.splatting.rasterize.cuda import rasterize_cuda

    valid = arguments()
    options = Options(valid.pop("width"), valid.pop("height"))
    with pytest.raises(UserError, match=r"gsplat|CUDA") as caught:
        rasterize_cuda(checked_scene(valid, options), options)
    assert "CPU" in caught.value.hint
