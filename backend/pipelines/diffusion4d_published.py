# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D at its published size (NeurIPS 2024): 24 views at 24 times, 256 x 256 pixels, in one pass.

static orbit (given, or by VideoMV from the text or image) -> moving orbit by the trained network, with 3D-aware
classifier-free guidance (Eq. 3) against the unconditional branch and against the static network -> cut out

Networks come from `python -m backend weights`; nobody has published the trained one, so it comes from `train`. Motion 0
needs none: it is the static orbit.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.guidance.classifier_free import guide, guide_plain
from backend.guidance.sampling import Network, batched, begin, joined, one_by_one, sample
from backend.guidance.schedules import cosine_schedule, set_timesteps
from backend.models import encoders, fused, published
from backend.models.checkpoints import load_strictly, locate, read_tensors
from backend.models.diffusion4d import Diffusion4DNet, videomv_cameras
from backend.models.lgm import LGM, refiner_weights
from backend.models.motion_magnitude import magnitude_of
from backend.models.videomv import LATENT_CHANNELS, NEGATIVE_PROMPT, VideoMV
from backend.pictures import on_white
from backend.pipelines import videomv_orbit
from backend.pipelines.diffusion4d import MOVING, STILL
from backend.pipelines.matte import cut_out
from backend.pipelines.memory_plan import MemoryPlan, Networks, chosen_device, computing_type, with_ladder
from backend.pipelines.orbit_pictures import as_tensor, resized
from backend.pipelines.published_needs import demand_weights, licences, plans
from backend.pipelines.recorded_steps import recorded
from backend.pipelines.subject_image import FRAMED_SHARE, framed
from backend.pipelines.videomv_orbit import LATENT_PIXEL, STYLES, decode, encode, encode_texts, encode_view
from backend.progress import Run
from blender_addon.contract.arrays import BadFileError, read_arrays, write_arrays
from blender_addon.contract.frames import GeneratedFrames
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import GENERATED_FRAMES

VIDEO_NETWORKS = ("text", "image", "moving")
STATIC_NAME, STATE_NAME = "static.npz", "moving_state.npz"
Loaders = Mapping[str, Callable[[], nn.Module]]


def generate(
    static: np.ndarray | None,
    cameras: Cameras | None,
    image: np.ndarray | None,
    settings: dict,
    run: Run,
    *,
    weights: Path | None = None,
    refine: bool = False,
    compiled: bool = False,
    loaders: Callable[[torch.dtype], Loaders] | None = None,
) -> GeneratedFrames:
    """The frames of one request: the still subject where it is not given, then its motion.

    static: [T, H, W, 4] uint8, straight alpha, or None; cameras: of `static`; image: [H, W, 4] uint8 or None;
    weights: folder of all published weights, by default the usual one; refine: VideoMV's 3D-aware refinement of the
    still subject; compiled: see `with_kernels`; loaders: of networks, in the place of those from `weights`.

    Raises:
        UserError: weights are missing, the GPU is too small, or the inputs cannot be used.
        JobCancelled: by `run`.
    """
    device = chosen_device(run)
    dtype = computing_type(device)
    names = needed(static is None, image is not None, settings["motion"], settings["guidance_static"], refine)
    if loaders is None:
        demand_weights([SOURCES[name] for name in names if name in SOURCES], weights)
        if "moving" in names:
            published.locate_trained(weights)
    made = loaders(dtype) if loaders else weight_loaders(weights, dtype, device)
    if compiled:
        made = with_kernels(made, device, dtype, run)
    networks = Networks(made, device, run.check)

    def work(plan: MemoryPlan) -> GeneratedFrames:
        networks.follow(plan)
        return _generate(static, cameras, image, settings, networks, dtype, refine, run)

    frames = with_ladder(plans(device, names, dtype, run), work, run)
    models = licences([SOURCES[name] for name in names if name in SOURCES])
    models += [{"name": published.TRAINED, "licence": "not published"}] if "moving" in names else []
    told = {"models": models, "memory_plan": networks.plan.name, "warnings": list(run.notes)}
    return replace(frames, provenance=told)


def _generate(
    static: np.ndarray | None,
    cameras: Cameras | None,
    image: np.ndarray | None,
    settings: dict,
    networks: Networks,
    dtype: torch.dtype,
    refine: bool,
    run: Run,
) -> GeneratedFrames:
    first = None if image is None else first_view(image)
    common = {"seed": settings["seed"], "steps": settings["steps"], "dtype": dtype, "run": run}
    if static is None:
        run.begin(STILL)
        kind = "text" if first is None else "image"
        cameras = videomv_orbit.static_cameras(kind, GENERATED_FRAMES)
        static = _kept(run.folder / STATIC_NAME)
        if static is None:
            make = partial(videomv_orbit.generate_static, cameras, settings["prompt"], first, networks)
            static = make(refine=refine, **common)
            write_arrays(run.folder / STATIC_NAME, {"static": static})
        if kind == "text":
            networks.forget("text")
    else:
        static, cameras = resized(static, cameras, videomv_orbit.PIXELS)
    run.begin(MOVING)
    moving = static
    if settings["motion"] > 0:
        moving = generate_moving(
            static,
            cameras,
            settings["prompt"],
            settings["motion"],
            networks,
            first=first,
            w1=settings["guidance_motion"],
            w2=settings["guidance_static"],
            **common,
        )
    return GeneratedFrames(
        moving=moving,
        static=static,
        cameras=cameras,
        prompt=settings["prompt"],
        motion=settings["motion"],
        motion_measured=magnitude_of(moving, static),
        seed=settings["seed"],
    )


@torch.no_grad()
def generate_moving(
    static: np.ndarray,
    cameras: Cameras,
    prompt: str,
    magnitude: float,
    networks: Networks,
    *,
    first: Tensor | None = None,
    seed: int = 0,
    steps: int = 50,
    w1: float = 7.0,
    w2: float = 0.5,
    dtype: torch.dtype = torch.float32,
    run: Run,
) -> np.ndarray:
    """The moving orbit of a static orbit (sections 3.3 and 3.4).

    Args:
        static: [T, PIXELS, PIXELS, 4] uint8, straight alpha, all at time 0.
        cameras: of both orbits.
        prompt: what the subject is and does.
        magnitude: motion magnitude m (Eq. 1), above 0.
        networks: text_encoder, image_encoder, vae, moving, and image unless w2 is 0.
        first: [3, PIXELS, PIXELS] 0..1 on white: the first view, where there is a better one than that of `static`.
        seed: of the noise.
        steps: denoising steps.
        w1, w2: weights of Eq. 3.
        dtype: that the networks compute in.
        run: told after each step; its folder keeps the last one.

    Returns:
        [T, PIXELS, PIXELS, 4] uint8, straight alpha.

    Raises:
        JobCancelled: by `run`.
    """
    plan, device = networks.plan, networks.device

    # 1. Conditions.
    views = on_white(as_tensor(static)[0], 1)  # as the image networks were trained
    text, negative = encode_texts([prompt, NEGATIVE_PROMPT], networks).split(1)
    embedding, image_latents = encode_view(views[0] if first is None else first, networks)
    static_latents = encode(views, networks)[None]
    poses = torch.from_numpy(cameras.camera_to_world).float().to(device)[None]
    shared = {"camera_to_world": poses, "static_latents": static_latents, "image_latents": image_latents}
    asked = {"magnitude": torch.tensor([magnitude], device=device)}
    conditional = {**shared, **asked, "text": text, "image": embedding, "magnitude_known": _flag(True, device)}
    unconditional = {
        **shared, **asked, "text": negative, "image": torch.zeros_like(embedding),
        "magnitude_known": _flag(False, device),
    }  # fmt: skip
    still = {"poses": poses, "text": text, "embedding": embedding, "image_latents": image_latents}

    # 2. Denoise (Eq. 3): with all conditions; without text, image and magnitude; by the static network.
    names = ("moving", "image") if w2 else ("moving",)
    with networks.using(*names) as (network, *base):
        if plan.together:
            branches = batched(network, [conditional, unconditional])
        else:
            branches = one_by_one(partial(network, **conditional), partial(network, **unconditional))
        rule = partial(guide_plain, scale=1 + w1)
        if base:
            branches = joined(branches, one_by_one(static_branch(base[0], **still)))
            rule = partial(guide, w1=w1, w2=w2)
        schedule = cosine_schedule()
        times = set_timesteps(schedule, steps)
        side = videomv_orbit.PIXELS // LATENT_PIXEL
        shape = (1, len(static), LATENT_CHANNELS, side, side)
        with recorded(branches, plan, device, run) as branches:
            clean = sample(
                videomv_orbit.kept_state(run.folder / STATE_NAME, device) or begin(shape, seed, device),
                times,
                schedule,
                branches,
                rule,
                dtype=dtype,
                on_step=videomv_orbit.on_step(
                    run, STATE_NAME, len(times), lambda latents: videomv_orbit.preview(latents[0])
                ),
            )

    # 3. Pictures, cut out.
    pictures, unplain = cut_out(decode(clean[0], networks))
    if unplain > 0.25:
        run.note("The model painted more than a plain background: parts of it may have become part of the subject.")
    return pictures


def static_branch(
    network: VideoMV, *, poses: Tensor, text: Tensor, embedding: Tensor, image_latents: Tensor
) -> Network:
    """The pretrained static network (eps_bar of Eq. 3) as a branch: latents [B, T, 4, h, w]."""
    given = {
        "y": text,
        "camera_data": videomv_cameras(poses).flatten(2),
        "image": embedding[:, None],
        "local_image": image_latents[:, :, None],
    }
    return lambda latents, timestep: network(latents.transpose(1, 2), timestep, **given).transpose(1, 2)


def needed(still: bool, image: bool, motion: float, w2: float, refine: bool) -> tuple[str, ...]:
    """Names of the networks that a generation needs, in the order in which it needs them.

    still: the static orbit has to be made, of an image or else of a text.
    """
    names = ["text_encoder"]
    if still:
        names += ["image_encoder", "vae", "image"] if image else ["vae", "text"]
        names += ["refiner"] if refine else []
    if motion > 0:
        names += ["image_encoder", "vae", "moving"]
        names += ["image"] if w2 else []
    return tuple(dict.fromkeys([*names, "vae"]))


SOURCES = {  # name of a network -> the weights that it comes from
    "text_encoder": "openclip-vit-h14",
    "image_encoder": "openclip-vit-h14",
    "vae": "sd21-vae",
    "refiner": "lgm",
    **published.BASES,
}


def weight_loaders(folder: Path | None, dtype: torch.dtype, device: torch.device) -> Loaders:
    """How each network is loaded to main memory, from the folder of all weights."""
    clip = cache(lambda: encoders.load_videomv_clip(folder, dtype))

    def fast(network: VideoMV | Diffusion4DNet) -> nn.Module:
        if device.type == "cuda":
            getattr(network, "base", network).weights_channels_last()
        return network

    return {
        "text_encoder": lambda: clip()[0],
        "image_encoder": lambda: clip()[1],
        "vae": lambda: encoders.load_videomv_vae(folder),  # in float32 always: it is small, and fp16 overflows in it
        "text": lambda: fast(published.load_base("text", folder, dtype)),
        "image": lambda: fast(published.load_base("image", folder, dtype)),
        "moving": lambda: fast(published.load_trained(folder, dtype)),
        "refiner": lambda: load_refiner(folder, dtype),
    }


def with_kernels(
    loaders: Loaders, device: torch.device, dtype: torch.dtype, run: Run, kernels: fused.Kernels | None = None
) -> Loaders:
    """The same networks, with what lies between matrix products compiled (see `models.fused`).

    Where that does not work a note says why, and they are as they were. kernels: in the place of those compiled here.
    """
    run.say("Compiling for this GPU")
    try:
        tried = fused.trial(device, kernels, dtype)
    except RuntimeError as error:
        run.note(f"Nothing could be compiled for this device, so that it ran without, slower: {error}")
        return loaders

    def load(name: str) -> nn.Module:
        network = loaders[name]()
        fused.fuse(network, tried)
        return network

    return {name: partial(load, name) if name in VIDEO_NETWORKS else given for name, given in loaders.items()}


def load_refiner(folder: Path | None, dtype: torch.dtype) -> LGM:
    """LGM with its own weights, which know of rotations.

    Raises:
        UserError: they are missing, damaged or of another network.
    """
    with torch.device("meta"):
        model = LGM(rotated=True).to(dtype)
    path = locate("lgm", folder)
    load_strictly(model, refiner_weights(read_tensors(path, "", dtype)), f"The weights in {path}", assign=True)
    return model.eval().requires_grad_(False)


def first_view(image: np.ndarray) -> Tensor:  # [3, PIXELS, PIXELS] 0..1
    """A picture [H, W, 4] of the subject as VideoMV's image network takes it: framed for its cameras, on white.

    Raises:
        UserError: there is nothing to see, or no background to tell the subject from.
    """
    share = FRAMED_SHARE * 2.0 / STYLES["image"].distance  # FRAMED_SHARE is for cameras at distance 2
    pixels = (videomv_orbit.PIXELS,) * 2
    values = as_tensor(framed(image, share)[None])[0]
    small = functional.interpolate(values, pixels, mode="bilinear", antialias=True)[0]
    return on_white(small, 0)


def _flag(value: bool, device: torch.device) -> Tensor:
    return torch.tensor([value], device=device)


def _kept(path: Path) -> np.ndarray | None:
    """The static orbit of a former attempt."""
    try:
        return read_arrays(path)["static"]
    except (FileNotFoundError, BadFileError, KeyError):
        return None
