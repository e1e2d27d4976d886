# SPDX-License-Identifier: GPL-3.0-or-later
"""How good generated motion is: against true clips, and whether it obeys the motion magnitude.

After the protocol of Diffusion4D (section 4.2): the moving orbit is generated from what each setting gives, at the
true clip's prompt, cameras and motion magnitude, and compared with the truth frame by frame and as a set of videos.
A generator is handed in, so that tests can bring one whose score is known.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.evaluation import motion_metrics as motion
from backend.evaluation.choice import ChosenClip
from backend.evaluation.frechet import frechet_distance, fvd_handcrafted
from backend.evaluation.generation_sheets import table, write_sheets
from backend.evaluation.generation_truth import Truth, make_truths
from backend.evaluation.metrics import alpha_iou, foreground_psnr, spearman
from backend.evaluation.networks import Networks
from backend.evaluation.sheets import SheetRow, on_white, sheet, stacked
from backend.evaluation.tables import write_results
from backend.evaluation.truth import none_usable
from backend.models.motion_magnitude import magnitude_of
from backend.pictures import over_white, premultiplied, ssim
from backend.pipelines.orbit_pictures import Views
from backend.progress import Run
from backend.versions import versions
from blender_addon.contract.arrays import atomic_file, write_json
from blender_addon.contract.orbit import Cameras, joined_cameras
from blender_addon.contract.surface import SurfaceSamples

SETTINGS = (
    "static3d",
    "image",
    "text",
)  # what is given: the static orbit; the first picture and the prompt; the prompt
LADDER = (0.5, 1.0, 2.0, 4.0, 8.0)  # motion magnitudes asked for
STAGES = {"Rendering the truth": 1.0, "Generating": 6.0, "Control of motion": 3.0, "Measuring": 0.5}


@dataclass(frozen=True)
class Sampling:
    """How a generator samples."""

    seed: int
    steps: int
    w1: float  # Eq. 3: guidance by prompt and magnitude
    w2: float  # Eq. 3: guidance away from the static model; 0 is the ablation without the third term


@dataclass(frozen=True)
class Generator:
    """What is evaluated."""

    moving: Callable[..., np.ndarray]  # the pictures of backend.pipelines.diffusion4d.generate_moving
    static: Callable[..., np.ndarray]  # as backend.pipelines.still_subject.generate_static
    version: str  # differs whenever results may


class Still(NamedTuple):
    """A still subject."""

    static: np.ndarray  # [T, H, W, 4] uint8, straight alpha
    further: Views | None  # of the same moment, from above and below
    surface: SurfaceSamples | None


@dataclass(frozen=True)
class Generated:
    """One result of a generator. Straight alpha."""

    moving: np.ndarray  # [T, H, W, 4] uint8
    static: np.ndarray  # [T, H, W, 4] uint8: what it was made from
    magnitude: float  # measured, Eq. 1
    seconds: float  # it took to generate the moving orbit
    cpu_seconds: float  # the same in CPU time, which a busy machine does not stretch


class Cache:
    """Generated frames in a folder, by all that they depend on: a run that was stopped goes on where it was."""

    def __init__(self, folder: Path, generator: Generator) -> None:
        self.folder = folder
        self.generator = generator
        folder.mkdir(parents=True, exist_ok=True)

    def static(
        self, cameras: Cameras, prompt: str, image: np.ndarray | None, sampling: Sampling, run: Run
    ) -> np.ndarray:  # [T, H, W, 4] uint8
        """A generated static orbit."""
        key = ("static", prompt, None if image is None else _digest(image), cameras.to_json())

        def make() -> np.ndarray:
            return self.generator.static(
                cameras, prompt, image, seed=sampling.seed, steps=sampling.steps, guidance=sampling.w1, run=run
            )

        return self._kept(key, sampling, make)[0]

    def moving(
        self,
        still: Still,
        cameras: Cameras,
        prompt: str,
        magnitude: float,
        sampling: Sampling,
        run: Run,
    ) -> Generated:
        """A generated moving orbit."""
        static, further, surface = still
        samples = surface and [_digest(array) for array in (surface.points, surface.normals)]
        beside = further and [_digest(further.pictures), further.cameras.to_json()]
        key = ("moving", _digest(static), beside, samples, cameras.to_json(), prompt, magnitude)

        def make() -> np.ndarray:
            return self.generator.moving(
                static, cameras, prompt, magnitude, surface=surface, further=further, **asdict(sampling), run=run
            )

        frames, seconds, cpu_seconds = self._kept(key, sampling, make)
        return Generated(frames, static, magnitude_of(frames, static), seconds, cpu_seconds)

    def _kept(self, key: tuple, sampling: Sampling, make: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
        """Frames, seconds and CPU seconds."""
        text = json.dumps([self.generator.version, key, asdict(sampling)])
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.png"
        try:
            with Image.open(path) as strip:
                frames = np.stack(np.split(np.asarray(strip), strip.width // strip.height, axis=1))
                return frames, float(strip.text["seconds"]), float(strip.text["cpu_seconds"])
        except (OSError, ValueError, KeyError):  # not there, or damaged: it is made again
            pass
        wall, cpu = time.monotonic(), time.process_time()
        frames = make()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        note = PngInfo()
        note.add_text("seconds", str(wall))
        note.add_text("cpu_seconds", str(cpu))
        with atomic_file(path) as file:
            Image.fromarray(np.concatenate(list(frames), axis=1)).save(file, format="PNG", pnginfo=note)
        return frames, wall, cpu


def evaluate_generation(
    assets: Path,
    clips: list[ChosenClip],
    out: Path,
    generator: Generator,
    *,
    settings: tuple[str, ...] = ("static3d",),
    sampling: Sampling,
    seeds: int = 1,
    renderer: str = "cycles",
    limit: int | None = None,
    control_subjects: int = 4,
    networks: Networks = Networks(),  # noqa: B008 - frozen
    run: Run,
) -> dict:
    """Evaluate a generator; returns the summary, which is written as well.

    Args:
        assets: folder of the manifest that `clips` come from.
        out: gets `summary.json`, `table.md`, `sheets/`, and what a later run can use: `truth_*/`, `generated/`.
        settings: of `SETTINGS`; the first is the one whose means stand at the top of the summary.
        sampling: of the first seed; the others count up from it.
        limit: of clips; those that are no fair test are passed over and do not count.
        seeds: samples per clip; figures are means over them.
        control_subjects: for so many assets the ladder of motion magnitudes and m = 0 are generated.

    Raises:
        UserError: no clip can be used, or what `make_truths` raises.
    """
    started = time.monotonic()
    run.plan(
        {
            stage if stage == "Rendering the truth" else _stage(stage, setting): share
            for setting in settings
            for stage, share in STAGES.items()
        }
    )
    run.begin("Rendering the truth")
    truths, left_out = make_truths(assets, clips, out / f"truth_{renderer}", renderer, run, limit)
    if not truths:
        raise none_usable(left_out)
    cache = Cache(out / "generated", generator)
    results = {
        setting: _evaluate_setting(setting, truths, cache, out, sampling, seeds, control_subjects, networks, run)
        for setting in settings
    }
    first = settings[0]
    summary = {
        "mean": results[first]["mean"],
        "assets": results[first]["assets"],
        "setting": first,
        "settings": {setting: result["mean"] for setting, result in results.items()},
        "sampling": {**asdict(sampling), "seeds": seeds},
        "preset": f"{sampling.steps} steps, w1 {sampling.w1:g}, w2 {sampling.w2:g}",
        "renderer": renderer,
        "left_out": left_out,
        "not_measured": networks.missing(),
        "generator": generator.version,
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    for setting in settings[1:]:
        write_json(out / f"summary_{setting}.json", {**summary, **results[setting], "setting": setting})
    write_results(out, summary, table(results, summary))
    run.finish()
    return summary


def _stage(stage: str, setting: str) -> str:
    return f"{stage} ({setting})"


# --- one setting -----------------------------------------------------------------------------------------------------


def _evaluate_setting(
    setting: str,
    truths: list[Truth],
    cache: Cache,
    out: Path,
    sampling: Sampling,
    seeds: int,
    control_subjects: int,
    networks: Networks,
    run: Run,
) -> dict:
    """{"mean", "assets"} of one setting; writes its sheets."""
    run.begin(_stage("Generating", setting))
    samplings = [Sampling(**{**asdict(sampling), "seed": sampling.seed + k}) for k in range(seeds)]
    generated: list[list[Generated]] = []
    for index, truth in enumerate(truths):
        own = []
        for k, one in enumerate(samplings):
            done = 2 * (index * seeds + k)
            first, second = (run.part(done + step, 2 * len(truths) * seeds) for step in range(2))
            given = _still_subject(setting, truth, cache, one, first)
            own.append(cache.moving(given, truth.cameras, truth.clip.prompt, truth.magnitude, one, second))
        generated.append(own)

    run.begin(_stage("Control of motion", setting))
    control = _control(setting, truths, cache, sampling, control_subjects, out / "sheets", run)

    run.begin(_stage("Measuring", setting))
    rows = []
    for index, (truth, own) in enumerate(zip(truths, generated, strict=True)):
        run.report(index, len(truths))
        rows.append(_row(setting, truth, own, networks) | control["by_clip"].get(truth.clip.name, {}))
    mean = _mean(rows) | control["mean"]
    if setting != "text":
        mean |= _fvd(truths, generated, networks)
    first = [own[0].moving for own in generated], [own[0].static for own in generated]
    write_sheets(out / "sheets", setting, truths, *first, rows)
    return {"mean": mean, "assets": rows}


def _still_subject(setting: str, truth: Truth, cache: Cache, sampling: Sampling, run: Run) -> Still:
    """What is to be moved, with its surface where that is known."""
    if setting == "static3d":
        return Still(truth.static, truth.further, truth.surface)
    orbit = replace(truth.cameras, times=np.zeros(len(truth.cameras.times)))
    image = truth.static[0] if setting == "image" else None
    cameras = joined_cameras([orbit, truth.further.cameras])
    pictures = cache.static(cameras, truth.clip.prompt, image, sampling, run)
    count = len(orbit.times)
    return Still(pictures[:count], Views(pictures[count:], truth.further.cameras), None)


def _row(setting: str, truth: Truth, own: list[Generated], networks: Networks) -> dict:
    """All figures of one clip; where it has several samples, their means."""
    samples = [_figures(setting, truth, one, networks) for one in own]
    row = {
        "asset": truth.clip.entry["id"],
        "family": truth.clip.entry["family"],
        "action": truth.clip.action,
        "clip": truth.clip.name,
        "prompt": truth.clip.prompt,
        "magnitude": truth.magnitude,
    }
    row |= {name: float(np.mean([sample[name] for sample in samples])) for name in samples[0]}
    if len(own) > 1 and setting != "text":
        row["motion_error_best"] = min(sample["motion_error"] for sample in samples)
    return row


def _figures(setting: str, truth: Truth, generated: Generated, networks: Networks) -> dict[str, float]:
    moving, static = premultiplied(generated.moving), premultiplied(generated.static)
    figures = {
        "magnitude_measured": generated.magnitude,
        "magnitude_ratio": generated.magnitude / truth.magnitude,
        "seconds": generated.seconds,
        "cpu_seconds": generated.cpu_seconds,
        "stray": motion.stray(moving),
    }
    if setting != "static3d":  # closed orbit: the last camera is the first
        figures["psnr_closing"] = motion.clip_psnr(static[[0, -1]], static[[0, 0]])
    if networks.clip is not None:
        reference = truth.clip.prompt if setting == "text" else over_white(premultiplied(truth.static[0]))
        cosines = networks.clip(over_white(moving), reference)
        figures |= {"clip_f": float(cosines[[0, -1]].mean()), "clip_o": float(cosines.mean())}
    if setting == "text":  # there is no one right answer to compare with
        return figures
    true, true_static = premultiplied(truth.moving), premultiplied(truth.static)
    for suffix, shown in (("", moving), ("_static", static)):
        figures |= {f"{name}{suffix}": value for name, value in _likeness(shown, true, networks).items()}
        figures[f"motion_error{suffix}"] = motion.motion_error(shown, true, true_static)
    both = (moving, static, true, true_static)
    return figures | {
        "stray_true": motion.stray(true),
        "motion_cosine": motion.motion_cosine(*both),
        "energy_error": motion.energy_error(*both),  # of "no motion": 1
        "sharpness": motion.sharpness(*both),
    }


def _likeness(shown: torch.Tensor, true: torch.Tensor, networks: Networks) -> dict[str, float]:
    """How alike two clips are, leaving out frame 0, which the static orbit gives."""
    a, b = over_white(shown)[1:], over_white(true)[1:]
    similarity = float(ssim(a, b).mean())
    values = {"psnr": motion.clip_psnr(shown, true), "ssim": similarity, "dssim": (1 - similarity) / 2}
    values["psnr_foreground"] = float(foreground_psnr(shown[1:], true[1:]).mean())
    values["iou"] = float(alpha_iou(shown[1:, ..., 3], true[1:, ..., 3]).mean())
    if networks.lpips is not None:
        values["lpips"] = float(networks.lpips(a, b).mean())
    return values


def _control(
    setting: str, truths: list[Truth], cache: Cache, sampling: Sampling, subjects: int, sheets: Path, run: Run
) -> dict:
    """Whether the measured motion magnitude follows the requested one, and whether m = 0 keeps the static orbit.

    {"mean", "by_clip"}; writes a sheet with one row per magnitude.
    """
    chosen = list({truth.clip.entry["id"]: truth for truth in reversed(truths)}.values())[::-1][:subjects]
    asked: list[float] = []
    measured: list[float] = []
    by_clip: dict[str, dict] = {}
    blocks = []
    for index, truth in enumerate(chosen):
        given = _still_subject(setting, truth, cache, sampling, run.part(index, len(chosen)))
        own = {}
        for step, magnitude in enumerate((0.0, *LADDER)):
            part = run.part(index * (len(LADDER) + 1) + step, len(chosen) * (len(LADDER) + 1))
            own[magnitude] = cache.moving(given, truth.cameras, truth.clip.prompt, magnitude, sampling, part)
        still = premultiplied(own[0.0].moving), premultiplied(given.static)
        values = [own[magnitude].magnitude for magnitude in LADDER]
        by_clip[truth.clip.name] = {
            "spearman": spearman(LADDER, values),
            "psnr_m0": motion.clip_psnr(*still),
            "stray_control": float(np.mean([motion.stray(premultiplied(own[m].moving)) for m in LADDER])),
            "ladder": {f"{magnitude:g}": one.magnitude for magnitude, one in own.items()},
        }
        asked += LADDER
        measured += values
        rows = [SheetRow(f"m {m:g} -> {one.magnitude:.2f}", on_white(one.moving)) for m, one in own.items()]
        blocks.append(sheet(f'{truth.clip.entry["id"]}: "{truth.clip.prompt}"   asked -> measured', rows))
    if not chosen:
        return {"by_clip": {}, "mean": {}}
    sheets.mkdir(parents=True, exist_ok=True)
    stacked(blocks).save(sheets / f"{setting}_control.png")
    mean = {
        "spearman": spearman(asked, measured),  # over all objects together
        "spearman_per_object": float(np.mean([one["spearman"] for one in by_clip.values()])),
        "psnr_m0": float(np.mean([one["psnr_m0"] for one in by_clip.values()])),
        "stray_control": float(np.mean([one["stray_control"] for one in by_clip.values()])),
    }
    return {"by_clip": by_clip, "mean": mean}


def _fvd(truths: list[Truth], generated: list[list[Generated]], networks: Networks) -> dict[str, float]:
    """Distances between the sets of true and of generated videos; `_static`: static orbits instead."""
    if len(truths) < 2:
        return {}

    def videos(frames: list[np.ndarray]) -> torch.Tensor:
        return over_white(premultiplied(np.stack(frames)))

    true = videos([truth.moving for truth in truths])
    shown = {
        "": videos([one.moving for own in generated for one in own]),
        "_static": videos([one.static for own in generated for one in own]),
    }
    values = {f"fvd_handcrafted{suffix}": fvd_handcrafted(clips, true) for suffix, clips in shown.items()}
    if networks.i3d is not None:
        features = networks.i3d(true)
        values |= {f"fvd{suffix}": frechet_distance(networks.i3d(clips), features) for suffix, clips in shown.items()}
    return values


def _mean(rows: list[dict]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
