# SPDX-License-Identifier: GPL-3.0-or-later
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.data.render_dataset import Settings, choose_clips, render_dataset
from backend.data.samples import FREE_LICENCES
from backend.data.shards import read_dataset
from backend.data.views import views_of_clip
from backend.progress import JobCancelled, Run, UserError
from blender_addon.contract.requests import file_sha256

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

SETTINGS = Settings("train", resolution=32)
LICENCES = {"a": "CC0-1.0", "b": "CC-BY-4.0", "c": "All rights reserved", "d": None}


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    tiny.write_assets(tmp_path / "assets", LICENCES)
    return tmp_path / "assets"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """Assets, the folder of their dataset, and its manifest."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.write_assets(folder / "assets", LICENCES)
    out = folder / "out"
    return folder / "assets", out, render_dataset(folder / "assets", out, SETTINGS, Run(out))


def test_limit_takes_families_and_assets_in_turn() -> None:
    entries = [
        {"id": name, "family": name[0], "clips": [{}] * clips} for name, clips in (("a1", 5), ("a2", 1), ("b1", 2))
    ]
    chosen = [(entry["id"], clip) for entry, clip in choose_clips(entries, 6)]
    assert chosen == [("a1", 0), ("b1", 0), ("a2", 0), ("b1", 1), ("a1", 1), ("a1", 2)]


def test_views_depend_on_seed_and_name_alone() -> None:
    assert views_of_clip(4, 0, "x") == views_of_clip(4, 0, "x")
    assert views_of_clip(2, 0, "x")[1] != views_of_clip(2, 0, "y")[1]
    first = views_of_clip(3, 0, "x")[0]
    assert (first.azimuth, first.elevation, first.light_turn) == (0, 0, 0)
    assert len({view.elevation for view in views_of_clip(6, 0, "x")}) == 5
    assert len({views_of_clip(2, 0, str(name))[1].elevation for name in range(50)}) == 5


@pytest.mark.slow
def test_a_dataset_is_whole(whole: tuple[Path, Path, dict]) -> None:
    """Samples, what is left out and why, licences, checksums; and a second run changes nothing."""
    assets, out, manifest = whole
    reasons = {(about["action"], about["reason"]) for about in manifest["rejected"]}
    assert reasons == {("Idle", "static"), ("Travel", "leaves the picture")}
    assert {entry["id"] for entry in manifest["refused"]} == {"boxes/c", "boxes/d"}
    assert all(entry["licence"] in FREE_LICENCES for entry in manifest["assets"])
    assert manifest["totals"]["unlicensed_assets"] == 0
    assert manifest["failed"] == []
    assert json.loads((out / "manifest.json").read_text()) == manifest
    for shard in manifest["shards"]:
        assert file_sha256(out / shard["file"]) == shard["sha256"]

    samples = list(read_dataset(out))
    assert len(samples) == manifest["totals"]["samples"] == 4
    assert {sample.info["licence"] for sample in samples} == {"CC0-1.0", "CC-BY-4.0"}
    for sample in samples:
        assert sample.info["caption"].endswith("swing")
        np.testing.assert_array_equal(sample.moving[0], sample.static[0])
        np.testing.assert_array_equal(sample.moving[0], sample.front[0])
        np.testing.assert_array_equal(sample.static[0], sample.static[-1])  # the orbit is closed
        assert (sample.moving[6] != sample.static[6]).any()

    times = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert render_dataset(assets, out, SETTINGS, Run(out)) == manifest
    assert times == {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}


@pytest.mark.slow
def test_an_interrupted_run_goes_on(whole: tuple[Path, Path, dict], tmp_path: Path) -> None:
    """What was finished is kept; a damaged shard is rendered again, to the same bits."""
    assets, _, manifest = whole
    out = tmp_path / "out"
    with pytest.raises(JobCancelled):
        render_dataset(assets, out, SETTINGS, Run(out, is_cancelled=lambda: any(out.glob("shards/*.json"))))
    finished = json.loads((out / "manifest.json").read_text())
    assert len(finished["shards"]) == 1
    assert finished["totals"]["shards_missing"] == 1
    (out / finished["shards"][0]["file"]).write_bytes(b"half")
    again = render_dataset(assets, out, SETTINGS, Run(out))
    assert again["shards"] == manifest["shards"]


def test_a_folder_holds_one_dataset(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(JobCancelled):
        render_dataset(assets, out, SETTINGS, Run(out, is_cancelled=lambda: True))
    with pytest.raises(UserError, match="other settings"):
        render_dataset(assets, out, replace(SETTINGS, resolution=48), Run(out))
    with pytest.raises(UserError, match="not empty"):
        render_dataset(assets, assets, SETTINGS, Run(out))


def test_no_clips(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clips"):
        render_dataset(assets, tmp_path / "out", replace(SETTINGS, split="val"), Run(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_missing_model_fails_alone(assets: Path, tmp_path: Path) -> None:
    """An asset without a bake whose model is missing is told of; the others are rendered."""
    pytest.importorskip("bpy")
    (assets / "baked24" / "boxes__b.npz").unlink()
    manifest = render_dataset(assets, tmp_path / "out", SETTINGS, Run(tmp_path))
    assert [failure["what"] for failure in manifest["failed"]] == ["boxes/b"]
    assert manifest["totals"]["samples"] == 2
