# SPDX-License-Identifier: GPL-3.0-or-later
"""Elementary motions do what their names say, and begin at rest."""

import numpy as np
import pytest
import torch

from backend.pipelines.elementary import MOTIONS

TIMES = np.linspace(0, 1, 25)
QUARTER, HALF = 6, 12  # frames
RIGID = [
    "swinging",
    "wobbling",
    "spinning",
    "rolling",
    "tumbling",
    "floating",
    "sailing",
    "riding",
    "trembling",
    "toppling",
    "drifting",
]
WHOLE = {"spinning", "rolling", "tumbling", "toppling"}  # as far as they go, whatever the size


@pytest.fixture(scope="module")
def tower() -> torch.Tensor:
    """Points [N, 3] of a box, 0.4 x 0.2 x 1."""
    return torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.4, 0.2, 1.0]
    ) - torch.tensor([0.2, 0.1, 0.5])


def moved(
    name: str,
    points: torch.Tensor,
    size: float = 1.0,
    *,
    loop: bool | None = None,
    seed: int = 0,
    times: np.ndarray = TIMES,
) -> np.ndarray:
    """Positions [T, N, 3]; loop: None is as the motion is meant."""
    motion = MOTIONS[name]
    loop = not motion.one_way if loop is None else loop
    return (points + motion.shifts(points, points, times, size, loop=loop, seed=seed)).numpy()


def test_what_drifts_sinks_all_the_way_and_glides_to_both_sides(tower: torch.Tensor) -> None:
    middle = moved("drifting", tower, size=3.0).mean(1)
    assert (np.diff(middle[:, 2]) < 0).all()
    assert middle[-1, 2] - middle[0, 2] == pytest.approx(-0.2, abs=0.01)  # its foot is at -0.5 at first
    flat = tower * torch.tensor([1.0, 1.0, 0.1])
    assert moved("drifting", flat, size=0.1)[-1, :, 2].mean() == pytest.approx(-0.4, abs=0.01)
    aside = middle[:, :2] @ (middle[3, :2] - middle[0, :2])
    assert aside.min() < -0.5 * aside.max() < 0


@pytest.mark.parametrize("name", MOTIONS)
def test_it_begins_at_rest_and_loops(name: str, tower: torch.Tensor) -> None:
    positions, rest = moved(name, tower), tower.numpy()
    assert np.isfinite(positions).all()
    np.testing.assert_allclose(positions[0], rest, atol=1e-6)
    farthest = np.abs(positions - rest).max()
    assert 0.01 < farthest < 1.5
    ends = np.abs(positions[-1] - rest).max()
    assert (ends < 1e-6) != MOTIONS[name].one_way
    np.testing.assert_allclose(moved(name, tower, loop=True)[-1], rest, atol=1e-6)
    slowly = moved(name, tower, times=np.linspace(0, 1, 481))
    assert np.abs(np.diff(slowly, axis=0)).max() < 0.15 * farthest  # nothing jumps


@pytest.mark.parametrize("name", MOTIONS)
def test_more_of_it_goes_farther_as_long_as_it_is_itself(name: str, tower: torch.Tensor) -> None:
    less, more, most, beyond = (
        np.linalg.norm(moved(name, tower, size) - tower.numpy()) for size in (0.5, 1.0, MOTIONS[name].most, 99.0)
    )
    assert (more > (1 if name == "drifting" else 1.3) * less and most > more) or (
        name in WHOLE and less == more == most
    )
    assert beyond == most
    assert bool(MOTIONS[name].note) == (name in (*WHOLE, "drifting"))  # the user is told


@pytest.mark.parametrize("name", RIGID)
def test_what_is_stiff_stays_stiff(name: str, tower: torch.Tensor) -> None:
    positions = moved(name, tower, 2.0)
    lengths = np.linalg.norm(positions[:, ::2] - positions[:, 1::2], axis=-1)
    np.testing.assert_allclose(lengths, np.tile(lengths[0], (len(TIMES), 1)), atol=1e-5)


def test_a_seed_chooses_the_direction(tower: torch.Tensor) -> None:
    first, other = moved("swaying", tower), moved("swaying", tower, seed=1)
    assert np.ptp((first - tower.numpy())[..., 1]) < 1e-6 < 0.1 < np.ptp((other - tower.numpy())[..., 1])
    np.testing.assert_array_equal(first, moved("swaying", tower))


def test_a_tree_keeps_its_foot_and_its_length(tower: torch.Tensor) -> None:
    rod = torch.stack([torch.zeros(50), torch.zeros(50), torch.linspace(-0.5, 0.5, 50)], 1)
    positions = moved("swaying", rod, 2.0)
    np.testing.assert_allclose(positions[:, 0], np.tile(rod[0], (len(TIMES), 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.diff(positions, axis=1), axis=-1).sum(1), 1, atol=2e-3)
    assert positions[QUARTER, -1, 0] > 0.2 > -0.2 > positions[-1 - QUARTER, -1, 0]  # to either side


def test_a_coin_turns_once_about_the_vertical(tower: torch.Tensor) -> None:
    positions, rest = moved("spinning", tower), tower.numpy()
    axis = rest.mean(0)
    np.testing.assert_allclose(positions[HALF, :, :2] - axis[:2], axis[:2] - rest[:, :2], atol=1e-5)
    np.testing.assert_allclose(positions[..., 2], np.tile(rest[:, 2], (len(TIMES), 1)), atol=1e-6)
    np.testing.assert_allclose(moved("spinning", tower, seed=1)[QUARTER], positions[-1 - QUARTER], atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_barrel_rolls_about_its_axis(axis: int) -> None:
    turn = 2 * np.pi * np.random.default_rng(0).uniform(size=500)
    barrel = np.stack([np.linspace(-0.5, 0.5, 500), 0.2 * np.cos(turn), 0.2 * np.sin(turn)], 1)
    barrel = torch.from_numpy(np.roll(barrel, axis, 1)).float()
    positions = moved("rolling", barrel)
    drift = np.abs(positions - barrel.numpy()).max((0, 1))
    assert drift[axis] < 0.05
    assert drift[1 - axis] > 0.3
    assert drift[2] > 0.3


@pytest.mark.parametrize("pole", [-0.5, 0.5])
def test_a_flag_hangs_on_its_pole(pole: float) -> None:
    rng = np.random.default_rng(0)
    cloth = np.stack([rng.uniform(-0.5, 0.5, 600), np.zeros(600), rng.uniform(0.1, 0.5, 600)], 1)
    stick = np.stack([np.full(100, pole), np.zeros(100), rng.uniform(-0.5, 0.5, 100)], 1)
    flag = torch.from_numpy(np.concatenate([cloth, stick])).float()
    far = np.abs(moved("rippling", flag) - flag.numpy())
    assert far[:, 600:].max() < 1e-6
    assert far[..., (0, 2)].max() < 1e-6  # out of the cloth
    assert far[:, np.abs(cloth[:, 0] - pole).argmax(), 1].max() > 0.04


def test_a_curtain_hangs_from_its_head(tower: torch.Tensor) -> None:
    far = np.linalg.norm(moved("billowing", tower) - tower.numpy(), axis=-1).max(0)
    assert far[tower[:, 2].argmax()] < 0.01 < 0.04 < far[tower[:, 2].argmin()]


def test_a_ball_leaves_the_ground_twice_and_is_flat_where_it_lands() -> None:
    ball = torch.nn.functional.normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), dim=1) / 2
    positions = moved("bouncing", ball)
    foot = positions[..., 2].min(1) - float(ball[:, 2].min())
    assert foot.min() > -1e-4
    assert [frame for frame in range(1, 24) if foot[frame - 1] < foot[frame] >= foot[frame + 1]] == [
        QUARTER,
        3 * QUARTER,
    ]
    assert foot[HALF] < 1e-6
    assert np.ptp(positions[HALF - 1, :, 2]) < 0.95 * np.ptp(positions[0, :, 2])
    np.testing.assert_allclose(np.prod(np.ptp(positions, axis=1), 1), np.prod(np.ptp(positions[0], axis=0)), rtol=1e-4)


def test_a_tower_lies_on_the_ground_in_the_end(tower: torch.Tensor) -> None:
    positions = moved("toppling", tower)
    assert np.ptp(positions[-1, :, 2]) == pytest.approx(np.ptp(tower[:, 0].numpy()), abs=1e-4)
    assert positions[..., 2].min() > tower[:, 2].min() - 1e-4


def test_what_lies_flat_ripples_upward_and_is_not_sheared_off_its_foot() -> None:
    plate = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.8, 0.04])
    waves = np.abs(moved("rippling", plate) - plate.numpy())
    assert waves[..., 2].max() > 0.05
    assert waves[..., :2].max() < 1e-6
    for name in ("jiggling", "twisting"):
        assert np.abs(moved(name, plate) - plate.numpy())[..., :2].max() < 0.04, name


def test_what_lies_flat_has_no_height_to_divide_by() -> None:
    flat = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 0.0])
    for name in MOTIONS:
        assert np.isfinite(moved(name, flat)).all()
        assert np.isfinite(moved(name, flat[:1].expand(2, 3))).all()
