# SPDX-License-Identifier: GPL-3.0-or-later
"""Soft outlines: how much of each pixel is subject, and its color without the background that shines through."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from backend.progress import UserError
from backend.video.reading import DecodedVideo
from backend.video.segmentation import find_subject, judge_outline

METHODS = ("auto", "alpha", "model", "background")
MODEL = "u2net"  # of rembg
BAND_SHARE = 1 / 130  # of the longer side: half the width of the band in which an outline is soft


@dataclass(frozen=True)
class Matte:
    """The subject of a video, frame by frame, made when asked for: full frames are large."""

    frames: np.ndarray  # [T, H, W, 4] uint8 sRGB, straight alpha
    masks: np.ndarray  # [T, h, w] bool, coarse
    method: str  # "alpha", "model u2net", or how the background was told
    notes: list[str]
    alphas: np.ndarray | None = None  # [T, H, W] uint8, where a model made them
    plate: np.ndarray | None = None  # [H, W, 3] float32 0..255, the empty background where `plate_known`
    plate_known: np.ndarray | None = None  # [H, W] bool
    noise: float = field(default=1.0)  # of the background, 0..255

    def cut_out(self, t: int) -> np.ndarray:  # [H, W, 4] float32 0..1
        """Frame `t` without its background: color multiplied by alpha, sRGB-coded."""
        if self.method == "alpha":
            picture = self.frames[t].astype(np.float32) / 255
            picture[..., :3] *= picture[..., 3:]
            return picture
        given = None if self.alphas is None else self.alphas[t].astype(np.float32) / 255
        known = None if self.plate is None else (self.plate, self.plate_known)
        return soft_cut_out(self.frames[t, ..., :3], self.masks[t], given, known, self.noise)


def matte(video: DecodedVideo, method: str = "auto", tick: Callable[[], None] = lambda: None) -> Matte:
    """Tell the subject from the background.

    Args:
        video: its frames.
        method: "alpha": by the transparency that the video has; "model": by rembg's network, which must be installed
            with its weights, as nothing is downloaded; "background": by the background's colors; "auto": the first of
            these that can be had.
        tick: called several times a second; may raise.

    Raises:
        UserError: the method cannot be had, or finds no subject.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}")
    if method == "alpha" and not video.has_alpha:
        raise UserError("no_alpha", "The video has no transparency.", "Choose another way to cut out the subject.")
    if method in ("auto", "alpha") and video.has_alpha:
        masks = np.stack([_shrunk(alpha) >= 128 for alpha in video.frames[..., 3]])
        return Matte(video.frames, masks, "alpha", judge_outline(masks))
    opaque = over_white(video.frames)
    if method == "model" or (method == "auto" and model_problem() is None):
        if problem := model_problem():
            raise UserError("no_matting_model", problem, "See the user guide, or cut out by the background.")
        alphas = model_alphas(opaque, tick)
        masks = np.stack([_shrunk(alpha) >= 128 for alpha in alphas])
        return Matte(opaque, masks, f"model {MODEL}", judge_outline(masks), alphas)
    found = find_subject(opaque, tick)
    notes = ["The subject was cut out by the colors of the background, as no matting model is installed.", *found.notes]
    plate, known = (None, None)
    if found.is_still and len(opaque) > 1:
        plate, known = _plate(opaque, found.masks, tick)
    return Matte(opaque, found.masks, found.method, notes, None, plate, known, found.noise)


def over_white(frames: np.ndarray) -> np.ndarray:  # [T, H, W, 4] uint8
    """Frames without any transparency."""
    if frames[..., 3].min() == 255:
        return frames
    out = frames.copy()
    for frame in out:
        alpha = frame[..., 3:].astype(np.float32) / 255
        frame[..., :3] = np.rint(frame[..., :3] * alpha + 255 * (1 - alpha))
        frame[..., 3] = 255
    return out


def soft_cut_out(
    rgb: np.ndarray,
    mask: np.ndarray,
    alpha: np.ndarray | None = None,
    plate: tuple[np.ndarray, np.ndarray] | None = None,
    noise: float = 1.0,
) -> np.ndarray:  # [H, W, 4] float32 0..1, premultiplied
    """A frame's subject with soft edges, and in them the subject's own color.

    In a band round the outline a pixel I is taken as alpha F + (1 - alpha) B, where F and B are the colors of the sure
    subject and of the sure background close by: alpha = (I - B)(F - B) / |F - B|^2. The premultiplied color of the
    subject is then I - (1 - alpha) B, wherever alpha comes from.

    Args:
        rgb: [H, W, 3] uint8.
        mask: [h, w] bool, coarse.
        alpha: [H, W] float 0..1, where it is known; else it is found from the mask.
        plate: the empty background [H, W, 3] 0..255, and where it is known [H, W].
        noise: standard deviation of the background, 0..255.
    """
    image = rgb.astype(np.float32) / 255
    height, width = image.shape[:2]
    radius = max(3, round(BAND_SHARE * max(height, width)))
    if alpha is None:
        soft = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        shape = soft > 0.5
    else:
        soft, shape = alpha, alpha > 0.5
    inner, outer = _grown(shape, -radius), _grown(shape, radius)
    near = ndimage.find_objects(_grown(outer, 3 * radius).astype(np.uint8))
    out = np.zeros((height, width, 4), np.float32)
    if not near:
        return out
    box = near[0]
    image, soft, inner, outer = image[box], soft[box], inner[box], outer[box]
    subject = _spread(image, inner if inner.any() else shape[box], radius)
    behind = _spread(image, ~outer, radius)
    if plate is not None:
        color, known = plate[0][box] / 255, plate[1][box][..., None]
        behind = np.where(known, color, behind)
    if alpha is None:
        apart = subject - behind
        strength = (apart**2).sum(axis=-1)
        projected = ((image - behind) * apart).sum(axis=-1) / np.maximum(strength, 1e-6)
        sure = strength / (strength + 3 * (4 * noise / 255) ** 2)
        alpha_near = sure * projected + (1 - sure) * ndimage.gaussian_filter(shape[box].astype(np.float32), 1.0)
        alpha_near = np.where(inner, 1.0, np.where(outer, alpha_near, 0.0)).clip(0, 1)
        alpha_near = np.where(alpha_near < 0.02, 0.0, alpha_near)
    else:
        alpha_near = soft
    a = alpha_near[..., None]
    color = np.where(a >= 1, image, (image - (1 - a) * behind).clip(0, a))
    out[box] = np.concatenate([color, a], axis=-1)
    return out


def _spread(image: np.ndarray, where: np.ndarray, radius: int) -> np.ndarray:
    """The colors of some pixels carried on to all others: a mean of those close by, else those nearest."""
    if not where.any():
        return np.zeros_like(image)
    weight = ndimage.gaussian_filter(where.astype(np.float32), radius, truncate=3)
    blurred = (
        np.stack([ndimage.gaussian_filter(image[..., k] * where, radius, truncate=3) for k in range(3)], axis=-1)
        / np.maximum(weight, 1e-6)[..., None]
    )
    close = weight > 1e-3
    if close.all():
        return blurred
    index = ndimage.distance_transform_edt(~close, return_distances=False, return_indices=True)
    return blurred[tuple(index)]


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask with `radius` pixels more all round, or less where that is below 0. What lies outside is as the border."""
    if radius >= 0:
        return ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask
    return ndimage.distance_transform_edt(mask) > -radius if not mask.all() else mask


def _plate(frames: np.ndarray, masks: np.ndarray, tick: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each pixel while the subject is elsewhere, and where it ever is."""
    height, width = frames.shape[1:3]
    total, count = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for frame, mask in zip(frames, masks, strict=True):
        wide = ndimage.binary_dilation(mask, iterations=2 + round(BAND_SHARE * max(mask.shape)))
        free = np.asarray(Image.fromarray(~wide).convert("L").resize((width, height), Image.Resampling.NEAREST)) > 0
        total += frame[..., :3] * free[..., None]
        count += free
        tick()
    return total / np.maximum(count, 1)[..., None], count >= max(2, len(frames) // 6)


def _shrunk(alpha: np.ndarray, side: int = 240) -> np.ndarray:
    scale = min(1.0, side / max(alpha.shape))
    size = (max(round(alpha.shape[1] * scale), 1), max(round(alpha.shape[0] * scale), 1))
    return np.asarray(Image.fromarray(np.ascontiguousarray(alpha)).resize(size, Image.Resampling.BOX))


# --- a matting network, where the user has installed one -------------------------------------------------------------


def model_problem() -> str | None:
    """Why rembg's network cannot be used; None where it can. Nothing is imported or downloaded."""
    try:
        if importlib.util.find_spec("rembg") is None or importlib.util.find_spec("onnxruntime") is None:
            return "The matting model is not installed (rembg with onnxruntime)."
    except (ImportError, ValueError):
        return "The matting model is not installed properly (rembg with onnxruntime)."
    home = os.environ.get("U2NET_HOME") or Path(os.environ.get("XDG_DATA_HOME", "~")) / ".u2net"
    weights = Path(home).expanduser() / f"{MODEL}.onnx"
    return None if weights.is_file() else f"The weights of the matting model are missing ({weights.name})."


def model_alphas(frames: np.ndarray, tick: Callable[[], None]) -> np.ndarray:  # [T, H, W] uint8
    """What rembg's network takes for the subject.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        import rembg

        session = rembg.new_session(MODEL)
    except Exception as error:  # rembg's own, onnxruntime's, or a broken installation
        raise UserError("no_matting_model", f"The matting model cannot be loaded: {type(error).__name__}.",
                        "Install rembg again, or cut out by the background.") from error  # fmt: skip
    alphas = []
    for frame in frames:
        alphas.append(
            np.asarray(rembg.remove(Image.fromarray(frame[..., :3]), session=session, only_mask=True).convert("L"))
        )
        tick()
    return np.stack(alphas)
