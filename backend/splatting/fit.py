# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fit changes, and how it is kept on disk."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

import numpy as np
import torch
from torch import Tensor

from backend.splatting.bases import BasesMotion
from backend.splatting.checkpoint import load_optimizer, optimizer_arrays
from backend.splatting.config import ConstructConfig
from backend.splatting.followed import FollowedMotion
from backend.splatting.gaussians import GaussianParameters, Moved
from backend.splatting.hexplane import HexPlaneMotion
from backend.splatting.hypotheses import Hypothesis, Trial, leader
from backend.splatting.placed import PlacedMotion
from backend.splatting.scene import Scene

# Adam's steps for the shape; those of `GaussianParameters`, clip space and logarithms
SHAPE_RATES = {
    "means": 4e-4,
    "quats": 4e-3,
    "log_scales": 6e-3,
    "opacity_logits": 3e-2,
    "color_logits": 2e-2,
    "harmonics": 2e-3,
    "weight_offsets": 2e-2,
}
BETAS = (0.9, 0.99)
DEFAULT = Hypothesis()


@dataclass
class Fit:
    """What the fit changes. All of it goes into a checkpoint, so a fit that goes on ends like one that never stopped.

    What is drawn by chance needs no memory: each step draws from its own generator, seeded by its number.
    """

    gaussians: GaussianParameters
    rest_means: Tensor | None = None  # [N, 3] means at the end of stage 1, on which the motion is built
    motion: BasesMotion | FollowedMotion | HexPlaneMotion | PlacedMotion | None = None  # after stage 1
    stage: int = 0
    step: int = 0  # of the stage, or in stage 3 of the hypothesis, how many are done
    hypothesis: Hypothesis = DEFAULT  # of the motion
    trials: list[Trial] = field(default_factory=list)  # of other hypotheses before it, in stage 3
    best: dict[str, Tensor] = field(default_factory=dict)  # the motion that the leader of the trials found

    def __post_init__(self) -> None:
        self.gaussians.require_grad()
        self.shape_optimizer = _optimizer(self.gaussians.tensors())

    def end_stage(self) -> None:
        """Enter the next stage; the shape's optimiser forgets what another stage taught it."""
        self.stage, self.step = self.stage + 1, 0
        self.shape_optimizer = _optimizer(self.gaussians.tensors())

    def begin_motion(self, scene: Scene, hypothesis: Hypothesis = DEFAULT, path: Tensor | None = None) -> None:
        """From here on the Gaussians move, by a model that is built on `rest_means`; see `hypotheses`."""
        self.hypothesis, config = hypothesis, scene.config
        if scene.tracks:
            self.motion = PlacedMotion(scene.tracks, scene.device)
        elif scene.known:
            self.motion = FollowedMotion(
                self.rest_means, scene.known, torch.cat([scene.times, scene.frame_times]), config
            )
        elif config.motion == "hexplane":
            self.motion = HexPlaneMotion(self.rest_means, len(scene.frame_times), scene.basis.loop, config)
        else:
            config = config if hypothesis.lag is None else config.with_mirror()
            jointed = {"jointed": hypothesis.kind != "free", "shift": path}
            self.motion = BasesMotion(self.rest_means, scene.basis, config, **jointed)
        self.renew_motion_optimizer()

    def end_trial(self, trial: Trial) -> None:
        """The motion explains the pictures so well: keep it if none before did better."""
        self.trials.append(trial)
        if leader(self.trials) is trial:
            self.best = {name: tensor.detach().clone() for name, tensor in self.motion.parameters().items()}
        self.step = 0

    def take_best(self, scene: Scene) -> None:
        """Go on with the best of the hypotheses."""
        self.begin_motion(scene, leader(self.trials).hypothesis)
        self.motion.load(self.best)
        self.best = {}

    def in_reference(self, scene: Scene, views: Tensor) -> Moved:
        """The Gaussians as some of the reference pictures show them: those of time 0, or moving along tracks."""
        if scene.tracks:
            return self.motion.moved(scene.reference_times[views], self.gaussians)
        return self.gaussians.at_rest(len(views))

    def renew_motion_optimizer(self) -> None:
        """Let the motion's optimiser forget what it has learned."""
        self.motion_optimizer = _optimizer(self.motion.parameters())

    def set_shape_rates(self, share: float, *, harmonics: bool = True) -> None:
        """Let the shape change at this share of its rates; without `harmonics`, colours stay the same from all sides.

        Harmonics come after the constants: before, they would explain by the view what is a matter of the place.
        """
        for group in self.shape_optimizer.param_groups:
            waits = group["name"] == "harmonics" and not harmonics
            group["lr"] = 0.0 if waits else share * SHAPE_RATES[group["name"]]

    def set_motion_rates(self, share: float) -> None:
        """Let the motion change at this share of its rates."""
        rates = self.motion.rates()
        for group in self.motion_optimizer.param_groups:
            group["lr"] = share * rates.get(group["name"], 0.0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a checkpoint, which may be taken up on another device."""
        tensors = self.gaussians.tensors()
        arrays = optimizer_arrays(self.shape_optimizer, "shape")
        if self.motion is not None:
            motion = {f"motion_{name}": tensor for name, tensor in self.motion.parameters().items()}
            best = {f"best_{name}": tensor for name, tensor in self.best.items()}
            tensors = {**tensors, **motion, **best, "rest_means": self.rest_means}
            arrays |= optimizer_arrays(self.motion_optimizer, "motion")
        return {
            **{name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
            "progress": np.array([self.stage, self.step]),
            "hypotheses": np.array(json.dumps([astuple(self.hypothesis), *(astuple(trial) for trial in self.trials)])),
            "blur": np.array(self.gaussians.blur),
            **arrays,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], scene: Scene) -> "Fit":
        """What `to_arrays` gave, on the scene's device."""
        tensors = {
            name: torch.from_numpy(array).to(scene.device)
            for name, array in arrays.items()
            if "." not in name and array.dtype.kind != "U"
        }
        stage, step = (int(number) for number in arrays["progress"])
        parameters = {name: tensors[name] for name in SHAPE_RATES}
        fit = cls(GaussianParameters(**parameters, blur=float(arrays["blur"])), stage=stage, step=step)
        hypothesis, *trials = json.loads(str(arrays["hypotheses"]))
        fit.trials = [Trial(Hypothesis(*of), *errors) for of, *errors in trials]
        fit.best = {name.removeprefix("best_"): tensor for name, tensor in tensors.items() if name.startswith("best_")}
        load_optimizer(fit.shape_optimizer, "shape", arrays)
        if "rest_means" in tensors:
            fit.rest_means = tensors["rest_means"]
            fit.begin_motion(scene, Hypothesis(*hypothesis))
            fit.motion.load({name: tensors[f"motion_{name}"] for name in fit.motion.parameters()})
            load_optimizer(fit.motion_optimizer, "motion", arrays)
        return fit


def generator(fit: Fit, config: ConstructConfig) -> np.random.Generator:
    """What is drawn by chance in a step of a stage."""
    return np.random.default_rng((config.seed, fit.stage, fit.step))


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """One step of the optimizers."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """The tensors here are small: more threads of torch's own would spin beside the rasteriser's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _optimizer(tensors: dict[str, Tensor]) -> torch.optim.Optimizer:
    """Adam with one rate for each of the tensors, to be set before the first step."""
    groups = [{"params": [tensor], "name": name} for name, tensor in tensors.items()]
    nothing = [{"params": [torch.zeros(0)], "name": ""}]  # Adam refuses to have none
    return torch.optim.Adam(groups or nothing, betas=BETAS, fused=True)
