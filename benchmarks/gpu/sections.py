# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections in the order of their worth, and how they are run so that nothing measured is lost."""

import datetime
import importlib
import json
import os
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.versions import versions
from benchmarks.gpu.setting import Clock, Setting, sentence
from benchmarks.report import Figure, machine, print_report


@dataclass(frozen=True)
class Section:
    """A module of this package: `measure(setting, clock)` yields rows (dicts) and figures as they are found."""

    name: str
    module: str
    about: str
    seconds: float  # that have to be left for it to begin; a guess until it has been measured


SECTIONS = (
    Section("orbit", "orbit", "moving orbit of 24 x 256 px by each memory plan, before and after the speed-ups", 60),
    Section("sds", "sds", "4DM's views and a step of 4D-aware score distillation", 60),
    Section("profile", "profiles", "where the time of a pass goes", 30),
    Section("request", "request", "a text, an image and an object become clips", 60),
    Section("training", "training", "throughput of kinesplat-small's motion network and of the small 4DM", 60),
    Section("construction", "construction", "the paper's schedule on every engine", 60),
    Section("rasterize", "rasterize", "gsplat against the CPU kernels: parity and speed", 30),
    Section("4dm", "fourdm", "views of 8 frames x 4 views x 256 px", 30),
    Section("vae", "vae", "pictures to latents and back", 20),
)


def run_sections(setting: Setting, names: Sequence[str], minutes: float | None, out: Path) -> int:
    """Measure the sections called `names`, in the order of SECTIONS; print a table each, write all of it to `out`.

    minutes: a section, or a case within it, begins only while there is time for it.

    Returns 0 if all figures were met and nothing failed or was left out, 1 otherwise, 130 if stopped by Ctrl-C.
    """
    clock = Clock(minutes)
    report = {
        "title": "The published size on a GPU",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": minutes,
        "sections": {},
        "left_out": [],
        "machine": machine(),
        "versions": versions(),
    }
    write(report, out)
    stopped = False
    for section in (section for section in SECTIONS if section.name in names):
        if not clock.allows(section.seconds):
            report["left_out"].append(section.name)
            continue
        try:
            measure(section, setting, clock, report, out)
        except KeyboardInterrupt:
            stopped = True
        told = report["sections"][section.name]
        figures = [Figure(**{key: value for key, value in one.items() if key != "met"}) for one in told["figures"]]
        print_report(f"{section.name}: {section.about}", told["rows"], figures)
        print(*told["told"], sep="\n")
        if stopped:
            break
    if report["left_out"]:
        print(f"Left out, as the time was nearly up: {', '.join(report['left_out'])}.")
    report["seconds"] = round(clock.elapsed, 1)
    write(report, out)
    print(f"Written to {out}, after {clock.elapsed:.0f} s.")
    if stopped:
        return 130
    sections = report["sections"].values()
    failed = any(one["failed"] or any("failed" in row for row in one["rows"]) for one in sections)
    fine = not failed and all(figure["met"] for one in sections for figure in one["figures"])
    return 0 if fine and not report["left_out"] else 1


def measure(section: Section, setting: Setting, clock: Clock, report: dict, out: Path) -> None:
    """Run one section into `report`, and write that after each row; a failure becomes a row of its own."""
    told = {"rows": [], "figures": [], "told": [], "failed": None, "seconds": 0.0}
    report["sections"][section.name] = told
    start, before = time.monotonic(), len(clock.told)
    try:
        module = importlib.import_module(f"benchmarks.gpu.{section.module}")  # not before: packages may be missing
        for found in module.measure(setting, clock):
            if isinstance(found, Figure):
                told["figures"].append({**asdict(found), "met": found.met})
            else:
                told["rows"].append(found)
            told["seconds"] = round(time.monotonic() - start, 1)
            write(report, out)
    except KeyboardInterrupt:
        told["failed"] = "Stopped."
        raise
    except Exception as error:  # whatever it is: the other sections are still worth having
        traceback.print_exc()
        told["failed"] = sentence(error)
        told["rows"].append({"failed": told["failed"]})
    finally:
        told["told"] = clock.told[before:]
        told["seconds"] = round(time.monotonic() - start, 1)
        with suppress(RuntimeError):  # a GPU that has failed fails here again
            setting.free()
        write(report, out)


def write(report: dict, out: Path) -> None:
    """The report as it is now, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(part, out)
