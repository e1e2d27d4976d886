# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the networks of Diffusion4D and 4DM, on baked assets that are drawn while it trains.

Where a network stands on a base that is frozen, only what is trained is averaged and kept in checkpoints.
Samples, noise and dropout are functions of (seed, number of the sample) alone, and a checkpoint holds everything else:
a resumed run is the uninterrupted run, bit for bit on the CPU. Several GPUs: `accelerate launch -m backend train ...`.
"""

import contextlib
import copy
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from backend.data.flow_samples import FlowStream
from backend.data.samples import SampleStream
from backend.data.stills import StillStream
from backend.data.view_samples import GuessedViewStream, ViewStream
from backend.models.gpu import gpu_problem
from backend.models.precision import fast_bf16
from backend.models.text import Vocabulary, words
from backend.progress import UserError
from backend.training import (
    fourdm_task,
    motion_task,
    motion_validation,
    published_task,
    scene_flow_task,
    small_fourdm_task,
    small_fourdm_validation,
    static_task,
)
from backend.training.batches import Batch, draw, draw_now, micro_batches
from backend.training.checkpoint import (
    digest_of_average,
    found_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_about,
    read_state,
    save_checkpoint,
)
from backend.training.config import TrainConfig
from backend.training.interrupts import stop_on_signals
from backend.training.logbook import Logbook, Meter, progress_line
from backend.training.packed import check_place, pack
from backend.training.plan import Plan, learning_rate, make_plan
from backend.training.stretch import Pace, Reserve, able_to_compile, enough_memory

# A task is a module: build(config, vocabulary) -> network; loss(network, batch, config, noise) -> {"loss": ..., ...},
# where noise is a generator on the device of the batch.
TASKS = {
    "motion": motion_task,
    "static": static_task,
    "scene_flow": scene_flow_task,
    "published": published_task,
    "fourdm": fourdm_task,
    "small_fourdm": small_fourdm_task,
}
CONTIGUOUS = ("fourdm",)  # tasks whose networks must not have channels-last memory
STREAMS = {  # others: `SampleStream`
    "static": StillStream,
    "scene_flow": FlowStream,
    "fourdm": ViewStream,
    "small_fourdm": GuessedViewStream,
}
VALIDATIONS = {  # validate(network, unseen, seen, seed)
    "motion": motion_validation,
    "small_fourdm": small_fourdm_validation,
}
FAR = 1 << 40  # a sample that no training reaches


def train(
    config: TrainConfig,
    assets: Path,
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: Path | None = None,
    packed: Path | None = None,
    began: float | None = None,
) -> bool:
    """Train, writing checkpoints, figures and sheets to the folder `out`; True if the plan is done.

    Where `out` has a checkpoint of an earlier attempt, training goes on from it and `minutes` or `steps` are the
    length of the whole. `resume` names a run, a checkpoint or a packed run to go on from with a *new* plan of that
    length (see `plan.make_plan`); its learning rate warms up again.

    packed: a folder that always holds the newest checkpoint as a packed run, with log and newest sheet. Then `minutes`
    is all there is: what comes after the last step, a validation included, is done by then (see `stretch.Reserve`).
    began: when the clock of `minutes` was started, by `time.monotonic`; default: now.

    Raises:
        UserError: what was given cannot be used.
        BadFileError: the assets cannot.
    """
    start = time.monotonic() if began is None else began
    if packed is not None:
        check_place(packed, renew=True)
    if problem := gpu_problem():
        hint = "Install a PyTorch that knows this GPU, or hide it to train on the CPU: CUDA_VISIBLE_DEVICES=-1"
        raise UserError("no_gpu", problem, hint)
    use_fast_kernels()
    accelerator = Accelerator(mixed_precision=precision(config), cpu=not torch.cuda.is_available())
    say = print if accelerator.is_main_process else lambda *_, **__: None

    # 1. Where to begin.
    begin = starting_point(out, resume)
    state = read_state(begin) if begin else {"step": 0}
    step, number = state["step"], state.get("samples", state["step"] * config.batch)
    stored = Plan(**state["plan"]) if "plan" in state else None
    plan = make_plan(config, stored, step, minutes=minutes, steps=steps, anew=resume is not None)
    if plan.share(step, 0) >= 1:
        say(f"This run is finished, at step {step:,}. To train it further: --resume {out} with --minutes or --steps.")
        return True

    # 2. Samples.
    task = TASKS[config.task]
    stream = sample_stream(config, assets, "train")
    vocabulary = (
        stored_vocabulary(begin)
        or (stored_vocabulary(found_checkpoint(config.base_run)) if config.base_run else None)
        or Vocabulary(tuple(sorted({word for text in stream.captions() for word in words(text)})))
    )

    # 3. Network, its moving average, optimizer.
    torch.manual_seed(config.seed)
    if begin and config.base_run and resume is None:  # a new plan may put them on a base that has been trained on
        small_fourdm_task.check_base(config, read_about(begin))
    plain = task.build(config, vocabulary)
    plain = (plain if config.task in CONTIGUOUS else channels_last(plain)).to(accelerator.device)
    ema = average_of(plain)
    network = torch.compile(plain) if config.compile else plain
    network, wrapped = accelerator.prepare(network, make_optimizer(config, plain))
    if begin:
        load_checkpoint(begin, plain, ema, wrapped.optimizer)

    # 4. Records.
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        base = {"base": task.BASE} if hasattr(task, "BASE") else {}  # the weights of a frozen one
        base |= {"base_digest": digest_of_average(config.base_run)} if config.base_run else {}
        record = json.dumps({**asdict(config), **base, "vocabulary": vocabulary.words}, indent=1)
        (out / "config.json").write_text(record, encoding="utf-8")
    accelerator.wait_for_everyone()
    per_step = config.batch * config.accumulate * accelerator.num_processes
    parameters = sum(parameter.numel() for parameter in trained_parameters(plain)) / 1e6
    arithmetic = "bf16" if accelerator.mixed_precision == "bf16" else "float32"
    say(f"{config.task}: {parameters:.1f} M parameters to train, {arithmetic}, ", end="")
    say(f"{per_step} samples a step on {accelerator.num_processes} x {accelerator.device.type}, from step {step:,}")

    # 5. Train.
    numbers = micro_batches(
        number,
        config.batch,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        accumulate=config.accumulate,
    )
    meter, pace = Meter(), Pace(accelerator.device)
    reserve = Reserve(plan.minutes) if packed is not None and plan.minutes is not None else None
    fixed: tuple[Batch, ...] = ()  # samples of validation
    validated = -1  # the step of the last one

    def save() -> None:
        if accelerator.is_main_process:
            spent = replace(plan, seconds=plan.seconds + time.monotonic() - start)
            told = {"step": step, "samples": number, "plan": asdict(spent), "vocabulary": vocabulary.words}
            save_checkpoint(out, plain, ema, wrapped.optimizer, told)
            if packed is not None:
                pack(out, packed, renew=True)

    def validate() -> None:
        nonlocal fixed, validated
        if log and config.task in VALIDATIONS and config.sheet_minutes and validated != step:
            validated = step
            fixed = fixed or validation_batches(config, assets, stream, vocabulary, accelerator.device)
            with accelerator.autocast():
                figures, sheet = VALIDATIONS[config.task].validate(ema, *fixed, config.seed)
            log.write(step, {name: round(value, 4) for name, value in figures.items()}, "validation")
            path = log.write_sheet(step, sheet)
            say(*(f"{name} {value:.3f}  " for name, value in figures.items()), path, flush=True)

    with contextlib.ExitStack() as stack:
        signalled = stack.enter_context(stop_on_signals())
        log = stack.enter_context(Logbook(out, step)) if accelerator.is_main_process else None
        stack.enter_context(enough_memory(config.batch, config.accumulate))
        stack.enter_context(able_to_compile() if config.compile else contextlib.nullcontext())
        drawn = draw(stream, numbers, vocabulary, config.workers, accelerator.device, say)
        batches = stack.enter_context(contextlib.closing(drawn))
        first = step
        while True:
            kept = reserve.seconds if reserve else 0.0
            share, stop = agreed(accelerator, plan.share(step, time.monotonic() - start, kept), bool(signalled()))
            if share >= 1 or stop:
                break
            lap = time.monotonic()
            for group in wrapped.param_groups:
                group["lr"] = learning_rate(config, plan, step, share)
            for micro in range(config.accumulate):
                with meter.waiting():
                    batch = next(batches)
                last = micro == config.accumulate - 1
                noise = generator(config, batch, accelerator.device)
                torch.manual_seed(2**64 - 1 - noise.initial_seed())  # of dropout, whose numbers must not be the noise's
                with contextlib.nullcontext() if last else accelerator.no_sync(network):
                    with accelerator.autocast():
                        losses = task.loss(network, batch, config, noise)
                    accelerator.backward(losses["loss"] / config.accumulate)
                meter.add(losses, 1 / config.accumulate)
            meter.add({"norm": accelerator.clip_grad_norm_(network.parameters(), config.clip)})
            meter.step()
            wrapped.step()
            wrapped.zero_grad()
            step, number = step + 1, number + per_step
            update_average(ema, plain, min(config.ema, step / (step + 10)))
            pace.step()
            if reserve and step > first + 1:  # the first one compiles
                reserve.step(time.monotonic() - lap)

            if log and step % config.log_steps == 0:
                rate, means = meter.means()
                elapsed = time.monotonic() - start
                told = {"seconds": round(elapsed), "samples_per_second": round(rate * per_step, 3)}
                values = {**told, "lr": wrapped.param_groups[0]["lr"], **means}
                log.write(step, values)
                left = plan.seconds_left(step, elapsed, rate)
                say(progress_line(step, rate * per_step, values, left), flush=True)
            if packed is not None and step == first + 1:  # a rehearsal: what cannot be written fails now
                pace.wait()
                lap = time.monotonic()
                validate()
                save()
                if reserve:
                    reserve.close(time.monotonic() - lap)
            if meter.due("save", config.save_minutes):
                save()
            if meter.due("sheet", config.sheet_minutes):
                validate()
        pace.wait()
        waited = meter.waited_share()
        if packed is not None and not stop and step > first:  # who sends a signal is in a hurry
            validate()
        save()
    accelerator.wait_for_everyone()
    say(f"{waited:.0%} of the time was spent waiting for samples.")
    if stop:
        say(f"Stopped at step {step:,}, saved in {out}. The same command goes on from there.", flush=True)
    else:
        say(f"Done: step {step:,}, {number:,} samples, saved in {out}.", flush=True)
    return not stop


def starting_point(out: Path, resume: Path | None) -> Path | None:
    """The checkpoint to go on from.

    Raises:
        UserError: `resume` holds none, or `out` has gone on from it already.
    """
    if resume is None:
        return newest_checkpoint(out)
    begin = found_checkpoint(resume)
    mine = newest_checkpoint(out)
    if mine is not None and mine.resolve() != begin.resolve():
        hint = "Leave out --resume to go on with it, or choose another --out."
        raise UserError("run_exists", f"{out} holds another run already.", hint)
    return begin


def precision(config: TrainConfig) -> str:
    """`bf16` or `no` (float32), as accelerate calls them."""
    if config.precision == "auto":
        return "bf16" if fast_bf16("cuda" if torch.cuda.is_available() else "cpu") else "no"
    return "bf16" if config.precision == "bf16" else "no"


def sample_stream(config: TrainConfig, assets: Path, split: str) -> SampleStream:
    """The samples of a split."""
    kind = STREAMS.get(config.task, SampleStream)
    length = {"times": config.times} if config.times else {}
    return kind(assets, split, resolution=config.resolution, seed=config.seed, families=config.families, **length)


def stored_vocabulary(checkpoint: Path | None) -> Vocabulary | None:
    """The words that a checkpoint's network has learned: captions may have changed since."""
    if checkpoint is None:
        return None
    for state in (checkpoint / "trainer.json", checkpoint.parent / "config.json"):
        if state.exists() and (found := json.loads(state.read_text(encoding="utf-8")).get("vocabulary")):
            return Vocabulary(tuple(found))
    return None


def validation_batches(
    config: TrainConfig, assets: Path, stream: SampleStream, vocabulary: Vocabulary, device: torch.device
) -> tuple[Batch, Batch]:
    """Samples of the val split and of the training split, the same at every validation, and none trained on."""
    count = VALIDATIONS[config.task].SAMPLES
    unseen = draw_now(sample_stream(config, assets, "val"), range(count), vocabulary)
    seen = draw_now(stream, range(FAR, FAR + count), vocabulary)
    return unseen.to(device), seen.to(device)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with the kernels of its 2D convolutions in channels-last order, which is faster everywhere."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All but those of a frozen base."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def use_fast_kernels() -> None:
    """On a GPU: TF32 where something is in float32, and the convolutions that are fastest at these sizes."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """AdamW, on a GPU in one kernel."""
    trained = trained_parameters(network)
    told = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": trained[0].is_cuda or None}
    return torch.optim.AdamW(trained, config.learning_rate, **told)


def average_of(network: nn.Module) -> nn.Module:
    """The beginning of the moving average: a copy which shares the frozen base."""
    shared = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
    ema = copy.deepcopy(network, shared)
    for parameter in ema.parameters():
        parameter.requires_grad_(False)
    return ema


def generator(config: TrainConfig, batch: Batch, device: torch.device) -> torch.Generator:
    """The noise of a micro-batch: the same whoever draws it, and whenever, on this kind of device.

    A large batch takes more noise than a processor makes while a GPU trains.
    """
    return torch.Generator(device).manual_seed(config.seed * 1_000_003 + batch.number // config.batch)


def agreed(accelerator: Accelerator, share: float, stop: bool) -> tuple[float, bool]:
    """How far the plan is by the first process's clock, and whether any process was told to stop."""
    if accelerator.num_processes == 1:
        return share, stop
    told = accelerator.gather(torch.tensor([[share, float(stop)]], device=accelerator.device, dtype=torch.float64))
    return float(told[0, 0]), bool(told[:, 1].any())


@torch.no_grad()
def update_average(ema: nn.Module, network: nn.Module, rate: float) -> None:
    """ema = rate * ema + (1 - rate) * network, for what is trained."""
    pairs = zip(ema.parameters(), network.parameters(), strict=True)
    averaged, trained = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
    torch._foreach_lerp_(averaged, trained, 1 - rate)
