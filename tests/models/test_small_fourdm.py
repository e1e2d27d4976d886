# SPDX-License-Identifier: GPL-3.0-or-later
"""The small 4DM: it begins at the inflated views, mixes views and only with motion modules times, and is kept whole."""

from pathlib import Path

import pytest
import torch

from backend.models import kinesplat_small_4dm
from backend.models.small_fourdm import (
    SmallConditions,
    SmallFourDM,
    SmallFourDMConfig,
    completed,
    decided,
    nothing,
    to_latents,
    to_pictures,
)
from backend.models.text import Vocabulary
from backend.progress import UserError

SIZES = {"widths": (8, 8), "blocks": (1, 1), "embedding": 16, "text_width": 8, "heads": 2}
FRAMES, VIEWS, SIDE = 3, 4, 16


def network(*, motion: bool, stirred: bool = True) -> SmallFourDM:
    torch.manual_seed(0)
    made = SmallFourDM(SmallFourDMConfig(vocabulary=5, motion=motion, **SIZES)).eval()
    if stirred:  # what begins at zero has no effect
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def conditions(batch: int = 1, frames: int = FRAMES) -> SmallConditions:
    torch.manual_seed(1)
    return SmallConditions(
        to_latents(torch.rand(batch, frames, 4, SIDE, SIDE)),
        to_latents(torch.rand(batch, frames, VIEWS, 4, SIDE, SIDE)),
        torch.randn(batch, VIEWS, 4, 4),
        torch.tensor([[1, 2, 0]]).expand(batch, -1),
    )


def noisy(batch: int = 1, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(batch, frames, VIEWS, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def changed(made: SmallFourDM, where: tuple[int, int]) -> torch.Tensor:  # [F, N] bool
    """Which pictures another input of one frame and view makes different."""
    given, latents, t = conditions(), noisy(), torch.tensor([0.5])
    other = latents.clone()
    other[0, where[0], where[1]] += 1
    return ((made(latents, t, given) - made(other, t, given)).abs().amax((0, 3, 4, 5)) > 1e-6).detach()


def test_it_begins_at_the_inflated_views() -> None:
    given = conditions()
    assert torch.equal(network(motion=True, stirred=False)(noisy(), torch.tensor([1.0]), given), given.guess)


def test_the_base_mixes_views_and_not_times() -> None:
    assert torch.equal(changed(network(motion=False), (1, 2)), torch.tensor([[False] * 4, [True] * 4, [False] * 4]))


def test_motion_modules_mix_times() -> None:
    assert changed(network(motion=True), (1, 2)).all()


def test_motion_modules_begin_without_effect() -> None:
    base, whole = network(motion=False), network(motion=True, stirred=False)
    lacking, unknown = whole.load_state_dict(base.state_dict(), strict=False)
    assert not unknown
    assert lacking
    assert all("motion" in name for name in lacking)
    given, t = conditions(), torch.tensor([0.3])
    torch.testing.assert_close(whole(noisy(), t, given), base(noisy(), t, given))
    whole.freeze_base()
    trained = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert trained == set(lacking)


def test_clips_of_a_batch_do_not_meet() -> None:
    made, given, latents = network(motion=True), conditions(2), noisy(2)
    t = torch.tensor([0.2, 0.9])
    both = made(latents, t, given)
    for k in range(2):
        alone = SmallConditions(*(getattr(given, name)[k : k + 1] for name in SmallConditions.__annotations__))
        torch.testing.assert_close(made(latents[k : k + 1], t[k : k + 1], alone)[0], both[k], rtol=1e-4, atol=1e-5)


def test_what_is_not_known_has_no_effect() -> None:
    made, given = network(motion=True), conditions()
    other = SmallConditions(given.video * 0, given.guess * 0, given.camera_to_world * 2, given.tokens)
    t = torch.tensor([0.5])
    without = made(noisy(), t, given.without())
    torch.testing.assert_close(without, made(noisy(), t, other.without()))
    assert not torch.allclose(without, made(noisy(), t, given))
    assert torch.equal(given.without(torch.tensor([True])).guess, given.guess)


def test_pictures_go_to_latents_and_back() -> None:
    alpha = torch.rand(2, 1, 8, 8)
    pictures = torch.cat([torch.rand(2, 3, 8, 8) * alpha, alpha], 1)
    torch.testing.assert_close(to_pictures(to_latents(pictures)), pictures)
    assert not to_pictures(nothing(pictures)).any()
    wild = to_pictures(torch.randn(2, 4, 8, 8) * 3)
    assert (wild >= 0).all()
    assert (wild[:, :3] <= wild[:, 3:]).all()
    assert (wild <= 1).all()


def test_what_the_input_shows_is_there() -> None:
    """Where the views are less opaque than the inflated input, that fills the difference; elsewhere they stay."""
    guess = torch.zeros(1, 4, 2, 2)
    guess[..., 0, :] = torch.tensor([0.2, 0.0, 0.0, 1.0])[None, :, None]  # dark red, in the upper row
    views = torch.zeros(1, 4, 2, 2)
    views[..., 0] = torch.tensor([0.0, 0.3, 0.0, 0.5])[None, :, None]  # half seen green, in the left column
    made = to_pictures(completed(to_latents(views), to_latents(guess)))
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([0.1, 0.3, 0.0, 1.0]))
    torch.testing.assert_close(made[0, :, 0, 1], guess[0, :, 0, 1])
    torch.testing.assert_close(made[0, :, 1], views[0, :, 1])
    torch.testing.assert_close(to_pictures(completed(to_latents(guess), to_latents(guess))), guess)


def test_outlines_are_decided() -> None:
    """Opacities move away from a half, and colors stay what they are."""
    pictures = torch.tensor([0.6, 0.2, 0.1, 1.0])[:, None, None] * torch.tensor([[0.0, 0.2, 0.4], [0.5, 0.7, 1.0]])
    hard = to_pictures(decided(to_latents(pictures)))
    torch.testing.assert_close(hard[3], torch.tensor([[0.0, 0.0, 0.3], [0.5, 0.9, 1.0]]))
    torch.testing.assert_close(hard[:3], torch.tensor([0.6, 0.2, 0.1])[:, None, None] * hard[3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = Vocabulary(("dog", "fox", "run", "walk", "whale"))
    about = {"name": "tiny 1", "licence": "CC0-1.0", "resolution": SIDE}
    kinesplat_small_4dm.save(tmp_path / "model", network(motion=True), words, about)
    return tmp_path / "model"


def test_what_is_saved_is_loaded(folder: Path) -> None:
    model = kinesplat_small_4dm.load(folder, "cpu")
    assert (model.name, model.resolution, model.vocabulary.words[0]) == ("tiny 1", SIDE, "dog")
    mine, given, t = network(motion=True), conditions(), torch.tensor([0.5])
    with torch.no_grad():
        torch.testing.assert_close(model.network(noisy(), t, given), mine(noisy(), t, given), rtol=0.02, atol=0.02)


def test_a_damaged_file_is_refused(folder: Path) -> None:
    path = next(folder.glob("views-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        kinesplat_small_4dm.load(folder, "cpu")


def test_the_shipped_weights_are_whole() -> None:
    model = kinesplat_small_4dm.load(device="cpu")
    assert model.network.config.motion
    size = sum(file.stat().st_size for file in kinesplat_small_4dm.FOLDER.iterdir())
    assert size < 24 * 2**20
