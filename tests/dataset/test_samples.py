# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples: the same whenever they are drawn, and what they hold."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.data.baked import baked_file, model_file, read_baked, read_manifest
from backend.data.captions import action, caption, subject
from backend.data.samples import SampleStream, View, render_sample
from backend.models.motion_latents import fill, warp
from backend.models.text import words
from blender_addon.contract.arrays import BadFileError, write_arrays

ASSETS = Path(__file__).resolve().parent.parent / "data" / "assets"


@pytest.fixture(scope="module")
def stream():
    return SampleStream(ASSETS, "train", resolution=16, seed=3)


def test_a_sample_is_the_same_whenever_it_is_drawn(stream):
    again = SampleStream(ASSETS, "train", resolution=16, seed=3)
    again.sample(0)
    for number in (1_000_000, 0, 7):
        first, second = stream.sample(number), again.sample(number)
        for field in fields(first):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    other = SampleStream(ASSETS, "train", resolution=16, seed=4)
    assert not np.array_equal(second.moving, again.sample(8).moving)
    assert not np.array_equal(second.moving, other.sample(7).moving)


def test_what_a_sample_holds(stream):
    sample = stream.sample(5)
    assert sample.moving.shape == sample.static.shape == (24, 16, 16, 4)
    assert sample.flow.shape == (24, 16, 16, 3)
    assert all(getattr(sample, name).dtype == np.float32 for name in ("moving", "static", "flow", "focal", "times"))
    for pictures in (sample.moving, sample.static):
        assert pictures.min() >= 0
        assert (pictures[..., :3] <= pictures[..., 3:] + 1e-6).all()  # premultiplied
        assert 0.02 < pictures[..., 3].mean() < 0.9
    assert sample.times.tolist() == pytest.approx([i / 23 for i in range(24)])
    np.testing.assert_array_equal(sample.moving[0], sample.static[0])  # time 0
    np.testing.assert_allclose(sample.static[0], sample.static[23], atol=1e-4)  # the orbit is closed
    assert (sample.flow[0] == 0).all()
    inverse = np.linalg.inv(sample.camera_to_world) * np.float32([1, -1, -1, 1])[None, :, None]
    np.testing.assert_allclose(sample.viewmats, inverse, atol=1e-5)


def test_families_can_be_left_out():
    stream = SampleStream(ASSETS, None, resolution=8, families={"platformer": 0.0})
    assert {stream.sample(number).caption for number in range(12)} <= {"fish swim", "fish", "swim"}


def test_shares_that_leave_nothing_are_told():
    families = {entry["family"]: 0.0 for entry in read_manifest(ASSETS)}
    with pytest.raises(BadFileError, match="no clip"):
        SampleStream(ASSETS, None, families=families)


def test_a_split_without_assets_is_told():
    with pytest.raises(BadFileError, match="'test'"):
        SampleStream(ASSETS, "test")
    with pytest.raises(BadFileError, match="holds no manifest"):
        SampleStream(ASSETS / "nowhere")


@pytest.mark.parametrize(
    "asset",
    [
        {"id": "a", "split": "train", "clips": []},
        {"id": "a", "family": "f", "split": "train", "clips": [{}]},
        {"id": 3, "family": "f", "split": "train", "clips": [{"action": "Walk"}]},
        "a",
    ],
)
def test_a_manifest_of_another_form_is_told(tmp_path, asset):
    (tmp_path / "manifest.json").write_text(json.dumps({"assets": [asset]}))
    with pytest.raises(BadFileError, match="is not a manifest of animated assets"):
        read_manifest(tmp_path)


def test_a_model_that_is_baked_alone_is_told():
    entry = read_manifest(ASSETS)[0]
    with pytest.raises(BadFileError, match="its bake alone"):
        model_file(ASSETS, entry)
    assert model_file(ASSETS, {**entry, "file": "a/b.glb"}) == ASSETS / "a" / "b.glb"


def test_a_bake_that_is_damaged_is_told(tmp_path):
    entry = read_manifest(ASSETS)[0]
    good = baked_file(ASSETS, entry).read_bytes()
    path = baked_file(tmp_path, entry)
    path.parent.mkdir()
    with pytest.raises(BadFileError, match="is missing"):
        read_baked(tmp_path, entry)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(BadFileError, match=path.name):
        read_baked(tmp_path, entry)
    write_arrays(path, {"v": np.zeros((3, 3))})  # of something else
    with pytest.raises(BadFileError, match="no bake"):
        read_baked(tmp_path, entry)


def test_a_view_says_how_large_and_which_way():
    asset = read_baked(ASSETS, read_manifest(ASSETS)[2])
    half = render_sample(asset, 0, View(size=0.5), 32, frames=2).static[0, ..., 3].sum()
    full = render_sample(asset, 0, View(), 32, frames=2).static[0, ..., 3].sum()
    assert 2.8 < full / half < 5.2
    plain = render_sample(asset, 0, View(light=(0, 0, -1, 0.4, 0.6)), 32, frames=2).static[0]
    mirrored = render_sample(asset, 0, View(light=(0, 0, -1, 0.4, 0.6), mirror=True), 32, frames=2).static[0]
    np.testing.assert_allclose(mirrored[..., 3], plain[:, ::-1, 3], atol=0.51)
    assert np.abs(mirrored[..., 3] - plain[:, ::-1, 3]).mean() < 0.01
    turned = render_sample(asset, 0, View(yaw=90), 32, frames=2).static[0]
    seen_from_there = render_sample(asset, 0, View(azimuth=-90), 32, frames=2).static[0]
    assert np.abs(turned[..., 3] - seen_from_there[..., 3]).mean() < 0.01


@pytest.mark.parametrize(
    ("asset", "family", "clip", "expected"),
    [
        ("quaternius_animals_2016/red_fox", "animals_2016", "ArmatureAction", "red fox"),
        ("quaternius_fish_pack/fish2", "fish_pack", "Armature|Swim.001", "fish swim"),
        ("quaternius_cute_fish_pack/koi", "cute_fish", "Fish_Armature|Swimming_Fast", "koi fish swimming fast"),
        ("kaykit_adventurers/rogue_hooded", "kaykit", "1H_Melee_Attack_Chop", "hooded rogue 1h melee attack chop"),
        ("quaternius_platformer_game_pack/bouncer", "platformer", "Bouncer_Bounce", "bouncer bounce"),
        ("mesh2motion/fox_animations", "mesh2motion", "HitReact", "fox hit react"),
        ("quaternius_men/male_suit", "people_2019", "Man_No", "suit man shake head"),
        ("quaternius_animals_2016/whale", "animals_2016", "ArmatureAction", "whale swim"),
    ],
)
def test_captions(asset, family, clip, expected):
    assert caption({"id": asset, "family": family}, clip) == expected


def test_captions_are_shortened_now_and_then():
    entry = {"id": "mesh2motion/fox_animations", "family": "mesh2motion"}
    rng = np.random.default_rng(0)
    told = [caption(entry, "Walk", rng) for _ in range(300)]
    assert set(told) == {"fox walk", "fox", "walk"}
    assert 0.6 < told.count("fox walk") / 300 < 0.8
    assert (subject(entry), action("Walk", entry)) == ("fox", "walk")


def test_prompts_meet_the_captions():
    assert words("a fox that is walking") == words("fox walk")


@pytest.mark.parametrize(("number", "gain"), [(1, 4), (2, 6)])
def test_the_flow_carries_the_static_orbit_to_the_moving_one(number, gain):
    entry = read_manifest(ASSETS)[number]
    view = View(elevation=15.0, span=0.7, light=(0, 0, -1, 1, 0))  # the same color from wherever it is seen
    sample = render_sample(read_baked(ASSETS, entry), 0, view, 48, frames=6)
    moving, static, flow = (
        torch.from_numpy(value).permute(0, 3, 1, 2)[None] for value in (sample.moving, sample.static, sample.flow)
    )
    padded = [torch.nn.functional.pad(value[0], (8, 8, 8, 8)) for value in (flow, moving[:, :, 3:])]
    whole = fill(*padded)[None, :, :, 8:-8, 8:-8]
    viewmats, focal = torch.from_numpy(sample.viewmats)[None], torch.from_numpy(sample.focal)[None]
    warped = warp(static, whole, viewmats, focal)
    seen = moving[0, 1:, 3] > 0.99
    before = (static - moving)[0, 1:].abs().mean(1)[seen].mean()
    after = (warped - moving)[0, 1:].abs().mean(1)[seen].mean()
    assert before > 0.01
    assert after < before / gain
