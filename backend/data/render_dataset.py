# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend render-dataset`: from animated models to shards of moving orbits, static orbits and front videos.

One shard holds some clips of one asset. Beside each shard lies its record, written when the shard is whole; a second
run with the same settings skips what has one. The manifest is put together from the records at the end.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backend import __version__
from backend.data.baked import baked_file, model_file, read_manifest
from backend.data.blender_wheel import demand_blender
from backend.data.children import ask_all
from backend.data.curation import Limits
from backend.data.samples import FREE_LICENCES
from backend.data.shards import FORMAT, MANIFEST, MAX_SIDE, VERSION
from backend.data.views import FRAMES, views_of_clip
from backend.progress import Run, UserError
from blender_addon.contract.arrays import write_json
from blender_addon.contract.requests import file_sha256

CLIPS_PER_SHARD = 8
LARGEST = MAX_SIDE // FRAMES
NOT_FREE = f"its licence is not one of {', '.join(FREE_LICENCES)}"


@dataclass(frozen=True)
class Settings:
    """What the dataset is made of; a folder holds one dataset."""

    split: str
    renderer: str = "fast"
    resolution: int = 128
    views: int = 2  # per clip: the product's own, then random ones
    samples: int = 16  # of Cycles, per pixel
    seed: int = 0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Shard:
    """Some clips of one asset."""

    name: str
    entry: dict
    clips: list[int]


def render_dataset(
    assets: Path, out: Path, settings: Settings, run: Run, *, limit: int | None = None, workers: int = 1
) -> dict:
    """Render what `out` does not hold yet; returns the manifest, which is also written there.

    Args:
        assets: a folder with `manifest.json`; baked assets in `baked24` are used where they are.
        out: gets shards, records and the manifest, and the bakes that `assets` lacks.
        settings: of the dataset.
        run: told of the progress.
        limit: clips at most, of all families in turn.
        workers: processes.

    Raises:
        UserError: nothing to render, other settings than before, or no Blender module.
        BadFileError: the manifest of the assets is missing or wrong.
        JobCancelled: somebody wants the run to end; finished shards are kept.
    """
    if settings.resolution > LARGEST:
        raise UserError("too_large", f"Pictures of {settings.resolution} pixels are too large.", f"Up to {LARGEST}.")
    entries = read_manifest(assets, settings.split)
    refused = [entry for entry in entries if entry.get("licence") not in FREE_LICENCES]
    chosen = choose_clips([entry for entry in entries if entry.get("licence") in FREE_LICENCES], limit)
    if not chosen:
        known = sorted({entry["split"] for entry in read_manifest(assets)})
        hint = f"Splits: {', '.join(known) or 'none'}. Free licences: {', '.join(FREE_LICENCES)}."
        raise UserError("no_clips", f"Split {settings.split!r} has no clips under a free licence.", hint)
    _claim(out, settings)

    shards = _shards(chosen)
    missing = [shard for shard in shards if _read_record(out, shard) is None]
    bakes = _missing_bakes(assets, out, missing) if settings.renderer == "fast" else []
    if bakes or (missing and settings.renderer == "cycles"):
        demand_blender("This", "use assets that are baked, with --fast")
    run.plan({"Baking models": 3 * len(bakes) + 1e-3, "Rendering": len(missing) + 1e-3})
    failed: dict[str, str] = {}
    try:
        run.begin("Baking models")
        questions = {entry["id"]: _bake_question(assets, out, entry) for entry in bakes}
        for asset, answer in _ask(questions, out, workers, run, fresh=True):
            if "error" in answer:
                failed[asset] = answer["error"]
        run.begin("Rendering")
        able = [shard for shard in missing if shard.entry["id"] not in failed]
        questions = {shard.name: _shard_question(assets, out, settings, shard) for shard in able}
        for name, answer in _ask(questions, out, workers, run, fresh=settings.renderer == "cycles"):
            if "error" in answer:
                failed[name] = answer["error"]
            else:
                write_json(out / "shards" / f"{name}.json", answer)
    finally:  # the manifest tells also of what an interrupted run has finished
        manifest = _manifest(out, settings, chosen, refused, shards, failed)
        write_json(out / MANIFEST, manifest)
    run.finish()
    return manifest


def choose_clips(entries: list[dict], limit: int | None) -> list[tuple[dict, int]]:
    """At most `limit` clips, taken from the families, and in each from its assets, in turn."""

    def in_turn(groups: list[list]) -> list:
        rounds = itertools.zip_longest(*groups)
        return [item for round_ in rounds for item in round_ if item is not None]

    families: dict[str, list[list[tuple[dict, int]]]] = {}
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        clips = [(entry, clip) for clip in range(len(entry["clips"]))]
        families.setdefault(entry["family"], []).append(clips)
    return in_turn([in_turn(assets) for assets in families.values()])[:limit]


def _claim(out: Path, settings: Settings) -> None:
    """Make `out` the folder of this dataset, or see that it is."""
    path = out / "settings.json"
    wanted = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(settings)}
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != wanted:
            raise UserError("other_settings", f"{out} holds a dataset with other settings.", "Choose another folder.")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError("not_empty", f"{out} is not empty.", "Choose an empty folder.")
    write_json(path, wanted)


def _shards(chosen: list[tuple[dict, int]]) -> list[Shard]:
    """Clips of one asset go together. A shard is named after its clips, so that a larger limit adds shards."""
    by_asset: dict[str, tuple[dict, list[int]]] = {}
    for entry, clip in chosen:
        by_asset.setdefault(entry["id"], (entry, []))[1].append(clip)
    shards = []
    for entry, clips in by_asset.values():
        for k in range(0, len(clips), CLIPS_PER_SHARD):
            some = clips[k : k + CLIPS_PER_SHARD]
            shards.append(Shard(f"{entry['id'].replace('/', '__')}_{some[0]:03d}-{some[-1]:03d}", entry, some))
    return shards


def _missing_bakes(assets: Path, out: Path, shards: list[Shard]) -> list[dict]:
    entries = {shard.entry["id"]: shard.entry for shard in shards}
    return [
        entry for entry in entries.values() if not any(baked_file(folder, entry).exists() for folder in (assets, out))
    ]


def _bake_question(assets: Path, out: Path, entry: dict) -> dict:
    clips = [{name: clip[name] for name in ("action", "time_range")} for clip in entry["clips"]]
    file, made = model_file(assets, entry), baked_file(out, entry)
    return {"do": "bake", "file": str(file.resolve()), "clips": clips, "out": str(made.resolve())}


def _shard_question(assets: Path, out: Path, settings: Settings, shard: Shard) -> dict:
    entry = shard.entry
    clips = [
        (clip, [view.to_json() for view in views_of_clip(settings.views, settings.seed, f"{entry['id']} {clip}")])
        for clip in shard.clips
    ]
    baked = settings.renderer == "fast" and not baked_file(assets, entry).exists()
    return {
        "do": "shard",
        "renderer": settings.renderer,
        "assets": str((out if baked else assets).resolve()),
        "entry": entry,
        "clips": clips,
        "resolution": settings.resolution,
        "samples": settings.samples,
        "limits": dataclasses.asdict(settings.limits),
        "file": str((out / "shards" / f"{shard.name}.tar").resolve()),
    }


def _ask(questions: dict[str, dict], out: Path, workers: int, run: Run, *, fresh: bool) -> Iterator[tuple[str, dict]]:
    tick = lambda done: run.report(done, len(questions))  # noqa: E731
    return ask_all(questions, "backend.data.worker", workers, out / "log.txt", fresh=fresh, tick=tick)


def _read_record(out: Path, shard: Shard) -> dict | None:
    """What a whole shard holds; None where there is none, or not as it was written."""
    try:
        record = json.loads((out / "shards" / f"{shard.name}.json").read_text(encoding="utf-8"))
        whole = "sha256" not in record or file_sha256(out / "shards" / f"{shard.name}.tar") == record["sha256"]
    except (OSError, ValueError):
        return None
    return record if whole else None


def _manifest(
    out: Path,
    settings: Settings,
    chosen: list[tuple[dict, int]],
    refused: list[dict],
    shards: list[Shard],
    failed: dict[str, str],
) -> dict:
    """What the dataset holds, what was left out and why, and where all of it comes from."""
    records = {shard.name: record for shard in shards if (record := _read_record(out, shard)) is not None}
    rejected = [about for record in records.values() for about in record["rejected"]]
    held = [
        {"file": f"shards/{name}.tar", **{key: record[key] for key in ("sha256", "bytes", "samples")}}
        for name, record in records.items()
        if "sha256" in record
    ]
    origin = ("id", "licence", "author", "source_repo", "source_path", "sha256", "family")
    used = {entry["id"]: {key: entry.get(key) for key in origin} for entry, _ in chosen}
    return {
        "format": FORMAT,
        "version": VERSION,
        "program": __version__,
        "settings": dataclasses.asdict(settings),
        "frames": FRAMES,
        "totals": {
            "samples": sum(len(shard["samples"]) for shard in held),
            "bytes": sum(shard["bytes"] for shard in held),
            "rejected": dict(Counter(about["reason"] for about in rejected)),
            "shards_missing": len(shards) - len(records),
            "unlicensed_assets": sum(entry["licence"] not in FREE_LICENCES for entry in used.values()),
        },
        "assets": list(used.values()),
        "refused": [{"id": entry["id"], "licence": entry.get("licence"), "reason": NOT_FREE} for entry in refused],
        "shards": held,
        "rejected": rejected,
        "failed": [{"what": what, "reason": reason} for what, reason in sorted(failed.items())],
    }
