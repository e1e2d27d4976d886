# SPDX-License-Identifier: GPL-3.0-or-later
"""What Gaussians say about themselves as an asset: a description, tags, and the licences behind them."""

import re
from dataclasses import dataclass

import bpy

from . import retime, splat_object

MAX_TAG_BYTES = 63
KINDS = {  # what a clip is, by the pipeline that made it
    "orbit": "Gaussians of an animated object",
    "diffusion4d": "Gaussians with an invented motion",
    "4diffusion": "Gaussians of a video",
}
NO_TAGS = {
    *("a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "it", "its", "of", "on", "or", "over"),
    *("that", "the", "their", "then", "to", "up", "while", "with"),
}


@dataclass(frozen=True)
class About:
    """What an asset says about itself."""

    description: str
    tags: tuple[str, ...]
    license: str


def about_splats(splats: bpy.types.Object) -> About:
    """What is known about Gaussians: from their provenance, which may hold anything, their mesh and their timing."""
    provenance = _dict(splat_object.description(splats).get("provenance"))
    settings = _dict(provenance.get("settings"))
    models = [
        model for model in _list(provenance.get("models")) if isinstance(model, dict) and _text(model.get("name"))
    ]
    prompt, moves_as = _text(settings.get("prompt")), _text(provenance.get("moves_as"))
    frames, fps = splat_object.frame_count(splats.data), splat_object.clip_fps(splats)
    timing = retime.timing(splats)
    loops = frames > 1 and (provenance.get("loop") is True or (timing is not None and timing.repeat != "HOLD"))

    kind = "Gaussians that move over time" if frames > 1 else "Still Gaussians"
    facts = [KINDS.get(_text(provenance.get("pipeline")), kind)]
    facts += [f"Prompt: {prompt}"] if prompt else []
    facts += [f"Moves as: {moves_as}"] if moves_as else []
    facts += [f"Model: {', '.join(_text(model['name']) for model in models)}"] if models else []
    seed = settings.get("seed")
    facts += [f"Seed: {seed}"] if isinstance(seed, int) else []
    length = f"{frames} frames at {fps:.4g} fps{', a loop' if loops else ''}" if frames > 1 else "1 frame"
    facts += [f"{len(splats.data.vertices):,} Gaussians, {length}"]

    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", prompt.lower())
    tags = [word for word in words if word not in NO_TAGS]
    tags += [moves_as] if moves_as else []
    tags += ["gaussians", *["animated"] * (frames > 1), *["loop"] * loops]
    licences = [f"{_text(model['name'])}: {licence}" for model in models if (licence := _text(model.get("licence")))]
    return About(
        description=". ".join(facts),
        tags=tuple(dict.fromkeys(cut(tag, MAX_TAG_BYTES) for tag in tags)),
        license="; ".join(dict.fromkeys(licences)),
    )


def cut(text: str, size: int) -> str:
    """As much of a text as fits into so many bytes."""
    return text.encode()[:size].decode("utf-8", "ignore")


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
