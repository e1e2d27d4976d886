# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of published weights says what it must, and refers to key lists that are there."""

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

from backend.models.checkpoints import KEYS, compare, expected_shapes, listed
from backend.models.weights_registry import Weights, find, of_file, registry
from backend.progress import UserError

ALL = list(registry().values())


@pytest.mark.parametrize("weights", ALL, ids=lambda weights: weights.name)
def test_entries_say_what_they_must(weights: Weights) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", weights.name)
    assert weights.commercial in ("yes", "no", "unclear")
    assert weights.title
    assert weights.needed_by
    assert weights.licence
    assert urlparse(weights.licence_page).scheme == "https"
    assert bool(weights.sources) != bool(weights.page), "either a program fetches it, or a person"
    for source in weights.sources:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository)
        assert source.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", source.revision)
    for file in weights.files:
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert not Path(file.path).is_absolute()
        assert ".." not in Path(file.path).parts
    # Where the branch may move, the digest must hold the tensors.
    if any(source.revision == "main" for source in weights.sources):
        assert weights.verified
    assert len(weights.files) == 1 or not weights.is_pickle, "one pickle is converted into one set"
    assert weights.sources or "not verified" in weights.note
    if weights.keys:
        assert (KEYS / f"{weights.keys}.json.xz").is_file()
        assert weights.differences(expected_shapes(weights.keys)) == compare({}, {})


def test_noncommercial_bases_make_noncommercial_weights() -> None:
    assert all(w.commercial != "yes" for w in ALL if "NC" in w.licence)
    assert find("modelscope-t2v").commercial == "no"


@pytest.mark.parametrize(
    ("keys", "count", "elements"),
    [
        ("fourdm", 1361, 1_396_090_500),
        ("videomv_t2v", 1484, 1_412_895_300),
        ("videomv_i2v", 1513, 1_422_130_664),
        ("lgm", 376, 415_042_848),
        ("ldm_vae", 248, 83_653_863),
        ("open_clip_vit_h14", 686, None),
        ("imagedream", 1707, 2_011_436_204),
    ],
)
def test_key_lists_are_whole(keys: str, count: int, elements: int | None) -> None:
    shapes = expected_shapes(keys)
    assert len(shapes) == count
    total = 0
    for shape in shapes.values():
        product = 1
        for size in shape:
            product *= size
        total += product
    assert elements is None or total == elements


def test_4dms_motion_modules_alone_are_complete() -> None:
    weights = find("4dm")
    whole = expected_shapes("fourdm")
    motion = {name: shape for name, shape in whole.items() if "temporal_transformer" in name}
    assert len(motion) == 588
    assert not weights.differences(motion)
    assert not weights.differences(whole)
    lacking = dict(list(motion.items())[1:])
    assert len(weights.differences(lacking).missing) == 1
    assert weights.differences({**motion, "out.2.bias": (4,)}).missing  # neither the part nor the whole


def test_schedules_and_perceptual_losses_do_not_count() -> None:
    shapes = {**expected_shapes("imagedream"), "betas": (1000,), "sqrt_alphas_cumprod": (1000,)}
    assert not find("imagedream").differences(shapes)
    assert find("imagedream").differences({**shapes, "other": (1,)}).extra == ("other",)
    assert not find("videomv-i2v").differences({**expected_shapes("videomv_i2v"), "lgm_big.conv.bias": (14,)})


def test_names_and_files_are_found() -> None:
    assert [weights.name for weights in of_file("4dm.ckpt")] == ["4dm"]
    assert [weights.name for weights in of_file("t2v_00333000.pth")] == ["videomv-t2v"]
    with pytest.raises(UserError, match="no weights called imagedrem") as caught:
        find("imagedrem")
    assert caught.value.hint == "Did you mean imagedream?"
    with pytest.raises(UserError) as caught:
        find("zzz")
    assert "videomv-i2v" in caught.value.hint


def test_long_lists_are_shortened() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcdefgh") == "a, b, c, d, e and 3 more"
