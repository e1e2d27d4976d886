# SPDX-License-Identifier: GPL-3.0-or-later
"""What a training run is: a TOML file, with single values changed from the command line."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

from backend.progress import UserError

Sizes = TypeVar("Sizes")
CONFIGS = Path(__file__).parent / "configs"
BOUNDS = {  # least, most
    **dict.fromkeys(("resolution", "batch", "accumulate", "log_steps", "steps"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "weight_decay", "clip", "warmup", "reconstruction_weight"), (0, math.inf)),
    **dict.fromkeys(("seed", "workers", "save_minutes", "sheet_minutes", "times"), (0, math.inf)),
    **dict.fromkeys(("ema", "decay", "drop_all", "drop_text", "drop_image", "drop_orbit", "static"), (0, 1)),
}


@dataclass(frozen=True)
class TrainConfig:
    """A training run; `configs/` has examples with explanations."""

    task: str  # a key of TASKS in trainer
    network: dict = field(default_factory=dict)  # sizes; empty: those of the weights that it begins from
    resolution: int = 64  # of the pictures
    seed: int = 0
    batch: int = 4  # samples at once on each process
    accumulate: int = 1  # such batches to a step
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # gradient norm
    ema: float = 0.998
    warmup: int = 100  # steps
    decay: float = 0.25  # last share of the plan in which the learning rate falls to zero; 0: it stays constant
    drop_all: float = 0.1  # samples without text and magnitude (4DM: image and cameras), for guidance
    drop_text: float = 0.1  # samples without text only
    drop_image: float = 0.5  # static network: samples without the image, those of drop_all among them
    drop_orbit: float = 0.0  # samples without the static orbit; 1: the small network never sees it, also in use
    static: float = 0.05  # samples that do not move (m = 0)
    reconstruction_weight: float = 0.3  # omega of Eq. 2
    precision: str = "auto"  # "bf16", "fp32", or bf16 where the hardware has matrix units for it
    compile: bool = False  # torch.compile: minutes at the start, faster steps on a GPU
    checkpoint_activations: bool = False  # computes activations twice instead of keeping them
    workers: int = 0  # processes that draw samples ahead; 0: a thread of this one
    steps: int | None = None  # length where the command line names none
    log_steps: int = 50
    save_minutes: float = 5.0
    sheet_minutes: float = 20.0  # between sample sheets; 0: none
    base: str = ""  # published network: weights to begin from, videomv-i2v (also if empty) or i2vgen-xl
    base_run: str = ""  # small 4DM: folder of the run whose network is frozen under motion modules; empty: no modules
    times: int = 0  # small 4DM: moments of a sample, 1 without motion modules; 0: not asked
    weights: str = ""  # folder of all published weights; empty: the usual one
    families: dict = field(default_factory=dict)  # how often relative to an equal share; 1 where not named

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))


def read_config(source: Path | str, changes: Sequence[str] = (), overlays: Sequence[Path | str] = ()) -> TrainConfig:
    """A run's configuration from a TOML file or the name of one in `configs/`.

    changes: "key=value" in TOML, such as "batch=96" or "network.embedding=512"; they come last.
    overlays: more such files, each of which changes what those before it say.

    Raises:
        UserError: there is no such file, or it is not a configuration.
    """
    path, values = found_config(source), {}
    for file in (path, *map(found_config, overlays)):
        try:
            merge(values, tomllib.loads(file.read_text(encoding="utf-8")))
        except tomllib.TOMLDecodeError as error:
            raise UserError("bad_config", f"{file} is not valid TOML: {error}.") from error
    for change in changes:
        merge(values, parse_change(change))
    kinds = {known.name: known.type for known in fields(TrainConfig)}
    for name, value in values.items():
        if name not in kinds:
            known = ", ".join(kinds)
            raise UserError("bad_config", f"{path} sets {name}, which training does not know.", f"Known are: {known}.")
        if not fits(value, kinds[name]):
            kind = getattr(kinds[name], "__name__", kinds[name])
            raise UserError("bad_config", f"{name} = {value!r} in {path} is not of the expected kind, {kind}.")
    if "task" not in values:
        raise UserError("bad_config", f"{path} does not name its task.")
    config = TrainConfig(**values)
    if config.precision not in ("auto", "bf16", "fp32"):
        raise UserError("bad_config", f"precision = {config.precision!r} is unknown.", "It is auto, bf16 or fp32.")
    for name, (least, most) in BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            bounds = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise UserError("bad_config", f"{name} = {value} must be {bounds}.")
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError("bad_config", f"betas = {list(config.betas)} must be 0 or more, and below 1.")
    for family, share in config.families.items():
        if not fits(share, float) or share < 0:
            raise UserError("bad_config", f"families.{family} = {share!r} must be a number of 0 or more.")
    return config


def found_config(source: Path | str) -> Path:
    """The file of a configuration, given by its path or its name in `configs/`.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if not path.exists() and (CONFIGS / f"{source}.toml").exists():
        path = CONFIGS / f"{source}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise UserError("bad_config", f"There is no configuration {source}.", f"Name a TOML file or one of: {known}.")
    return path


def resized(sizes: Sizes, changes: dict) -> Sizes:
    """The sizes of a network, a dataclass, with those that a configuration changes.

    Raises:
        UserError: there is no such size.
    """
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    try:
        return replace(sizes, **changes)
    except (TypeError, ValueError) as error:
        hint = f"See {type(sizes).__name__} for its sizes."
        raise UserError("bad_config", f"There is no such network: {error}.", hint) from error


def parse_change(change: str) -> dict:
    """`batch=96` -> {"batch": 96}. What is no TOML value is taken as text."""
    name, equals, value = change.partition("=")
    if not equals:
        raise UserError("bad_config", f"{change!r} changes nothing.", "Write it as name=value.")
    try:
        return tomllib.loads(f"{name} = {value}")
    except tomllib.TOMLDecodeError:
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return tomllib.loads(f'{name} = "{quoted}"')


def merge(values: dict, changes: dict) -> None:
    """Write `changes` over `values`, table by table."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            merge(values[name], value)
        else:
            values[name] = value


def fits(value: object, kind: object) -> bool:
    """Whether a value from TOML may stand in a field of this type."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int or kind == int | None:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == tuple[float, float]:
        return isinstance(value, list) and len(value) == 2 and all(fits(part, float) for part in value)
    return isinstance(value, kind)
