# SPDX-License-Identifier: GPL-3.0-or-later
"""The construction that the product uses, as evaluation takes it; for ablations with other settings of the fit."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace

from backend.pipelines.clips import construct_clip
from backend.progress import Run, UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import STAGE_SHARES
from backend.splatting.engine import choose_engine
from backend.splatting.observations import Observations
from backend.splatting.rasterize import warm_up
from backend.versions import code_key
from blender_addon.contract.clip import Clip
from blender_addon.contract.surface import SurfaceSamples

ROOMS = ("splatting", "models", "pipelines")  # whose code decides what comes out


@dataclass(frozen=True)
class Constructor:
    """What is evaluated."""

    construct: Callable[[Observations, Observations, SurfaceSamples | None, Run], Clip]  # plans and ends its run
    name: str  # for people
    version: str  # differs whenever results may


def shipped_constructor(
    preset: str, gaussians: int | None = None, seed: int = 0, device: str = "auto", changes: tuple[str, ...] = ()
) -> Constructor:
    """The construction as a request asks for it.

    Args:
        preset: and the next two, as in a request.
        device: that the run will have: "auto", "cpu" or "cuda".
        changes: `NAME=VALUE` of `ConstructConfig`.

    Raises:
        UserError: there is no such setting, or the device cannot be used.
    """
    settings = {"preset": preset, "gaussians": gaussians, "seed": seed}
    changed = dict(parse_change(change) for change in changes)
    engine = choose_engine(device)
    warm_up()  # compiled once per computer, so it is no part of a construction

    def construct(moving: Observations, static: Observations, surface: SurfaceSamples | None, run: Run) -> Clip:
        run.plan(STAGE_SHARES)
        clip = construct_clip(moving, static, surface, settings, run, changed)
        run.finish()
        return clip

    count = "" if gaussians is None else f", {gaussians} Gaussians"
    name = f"{preset}{count}, seed {seed}{''.join(f', {change}' for change in changes)}, {engine.name}"
    return Constructor(construct, name, f"{json.dumps({**settings, **changed})} on {engine.name}, {code_key(*ROOMS)}")


def parse_change(change: str) -> tuple[str, object]:
    """`harmonics=4` -> ("harmonics", 4), `mirrors=0,0.5` -> ("mirrors", (0.0, 0.5)).

    Raises:
        UserError: there is no such setting, or it takes no such value.
    """
    name, _, text = change.partition("=")
    known = {field.name: field.default for field in fields(ConstructConfig) if not is_dataclass(field.default)}
    if name not in known:
        raise UserError("bad_setting", f"There is no setting {name!r}.", f"Settings: {', '.join(known)}.")
    kind = type(known[name])
    try:
        value = tuple(map(type(known[name][0]), filter(None, text.split(",")))) if kind is tuple else kind(text)
        replace(ConstructConfig(), **{name: value})
    except ValueError:
        raise UserError("bad_setting", f"{name} cannot be {text!r}.", f"Its default is {known[name]}.") from None
    return name, value
