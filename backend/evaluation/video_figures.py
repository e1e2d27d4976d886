# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a clip of a video is: against true views from other sides, and, where there is no truth, by itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from backend.evaluation.construction import likeness
from backend.evaluation.frechet import frechet_distance, handcrafted_distance, handcrafted_features
from backend.evaluation.motion_metrics import stray
from backend.evaluation.networks import Networks
from backend.evaluation.video_truth import AZIMUTHS, ORTHOGONAL, cameras, resized
from backend.pictures import over_white
from backend.pipelines.multi_view_video import MultiViewVideo
from backend.splatting.render import render_clip
from blender_addon.contract.clip import Clip

NOVEL = slice(1, len(ORTHOGONAL))  # of AZIMUTHS: orthogonal, and not the input's
BETWEEN = slice(len(ORTHOGONAL), len(AZIMUTHS))
LEAST_CLIPS = 8  # of a distance between sets of videos
I3D_FRAMES = 16  # fewer are too few for the network
TOO_FEW = f"needs {LEAST_CLIPS} clips or more"
TOO_SHORT = f"needs {I3D_FRAMES} frames or more (--frames {I3D_FRAMES})"


def drawn_from_all_sides(clip: Clip, frames: int, pixels: int, frozen: bool = False) -> Tensor:  # [8, F, H, W, 4]
    """The clip from AZIMUTHS at its times, colour multiplied by alpha; `frozen` shows the first frame at all times."""
    pictures = render_clip(clip, cameras(frames, pixels), frozen)
    return pictures.unflatten(0, (len(AZIMUTHS), frames))


def views_of(video: MultiViewVideo, pixels: int) -> Tensor:  # [4, F, H, W, 4]
    """The model's own views, colour multiplied by alpha."""
    pictures = torch.from_numpy(video.pictures).float() / 255
    pictures[..., :3] *= pictures[..., 3:]
    return resized(pictures, pixels)


def figures_of(drawn: Tensor, frozen: Tensor, true: Tensor, networks: Networks) -> dict[str, float]:
    """All figures of a clip against the truth. drawn, frozen, true: [8, F, H, W, 4], colour multiplied by alpha.

    Names end in `_novel` (the three orthogonal views that are not the input's), `_novel_frozen` (the same of the clip
    held at its first frame), `_between` or `_input`.
    """
    lpips = networks.lpips
    figures = likeness(drawn[NOVEL].flatten(0, 1), true[NOVEL].flatten(0, 1), "novel", lpips)
    figures |= _some(likeness(frozen[NOVEL].flatten(0, 1), true[NOVEL].flatten(0, 1), "novel_frozen"), "psnr", "iou")
    between = likeness(drawn[BETWEEN].flatten(0, 1), true[BETWEEN].flatten(0, 1), "between", lpips)
    figures |= _some(between, "psnr", "ssim", "dssim", "lpips", "iou")
    figures |= _some(likeness(drawn[0], true[0], "input"), "psnr", "ssim", "iou")
    return figures | _of_clip(drawn[: len(ORTHOGONAL)], true[: len(ORTHOGONAL)], networks)


def figures_of_views(views: Tensor, true: Tensor, networks: Networks) -> dict[str, float]:
    """The same of the model's own views [4, F, H, W, 4], before construction; names begin with `views_`."""
    found = likeness(views[NOVEL].flatten(0, 1), true[NOVEL].flatten(0, 1), "novel", networks.lpips)
    return {f"views_{name}": value for name, value in found.items() if not name.endswith("_worst")}


def figures_without_truth(drawn: Tensor, video: Tensor, views: Tensor | None, networks: Networks) -> dict[str, float]:
    """What can be told of a clip whose other sides nobody knows.

    Args:
        drawn: [8, F, H, W, 4], colour multiplied by alpha.
        video: [F, H, W, 4], the input, framed.
        views: [4, F, H, W, 4], the model's own, where the clip was made of them.
    """
    figures = _some(likeness(drawn[0], video, "input", networks.lpips), "psnr", "ssim", "iou", "lpips")
    if views is not None:
        followed = likeness(drawn[NOVEL].flatten(0, 1), views[NOVEL].flatten(0, 1), "model_views")
        figures |= _some(followed, "psnr", "iou")
    figures["stray"] = float(np.mean([stray(one) for one in drawn]))
    return figures | _of_clip(drawn[: len(ORTHOGONAL)], video.expand(len(ORTHOGONAL), *video.shape), networks)


@dataclass
class VideoSets:
    """True and made videos of novel views, as features; for the distance between the two sets."""

    networks: Networks
    features: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)  # by name: made, true

    def add(self, made: Tensor, true: Tensor) -> None:
        """The novel views of one clip: each [3, F, H, W, 4], colour multiplied by alpha."""
        shown, right = over_white(made), over_white(true)
        self._append("fvd_handcrafted", handcrafted_features, shown, right)
        if self.networks.i3d is not None and made.shape[1] >= I3D_FRAMES:
            self._append("fvd", self.networks.i3d, shown, right)

    def distances(self) -> dict[str, float]:
        """By name; none where there are too few clips for one."""
        found = {}
        for name, pairs in self.features.items():
            if len(pairs) >= LEAST_CLIPS:
                made, true = (np.concatenate([pair[k] for pair in pairs]) for k in range(2))
                found[name] = (handcrafted_distance if name == "fvd_handcrafted" else frechet_distance)(made, true)
        return found

    def _append(self, name: str, look: Callable[[Tensor], np.ndarray], made: Tensor, true: Tensor) -> None:
        self.features.setdefault(name, []).append((look(made), look(true)))


def not_measured(networks: Networks, clips: int, frames: int, with_truth: bool = True) -> dict[str, str]:
    """What is left out, and why."""
    why = {"clip_i, clip_c" if name.startswith("clip") else name: told for name, told in networks.missing().items()}
    if not with_truth:
        return {name: told for name, told in why.items() if name != "fvd"}
    if networks.i3d is not None and frames < I3D_FRAMES:
        why["fvd"] = TOO_SHORT
    if clips < LEAST_CLIPS:
        why["fvd_handcrafted"] = TOO_FEW
        why.setdefault("fvd", TOO_FEW)
    return why


def _some(figures: dict[str, float], *names: str) -> dict[str, float]:
    """Only those called NAME_LABEL, without `psnr_LABEL_worst`."""
    return {
        name: value
        for name, value in figures.items()
        if name.split("_")[0] in names and not name.endswith("_worst") and not name.startswith("psnr_foreground")
    }


def _of_clip(drawn: Tensor, right: Tensor, networks: Networks) -> dict[str, float]:
    """Cosines of CLIP, where there is one, of [4, F, H, W, 4].

    `clip_i`: of each picture that is not the input's with the picture of `right` in its place. `clip_c`: of each
    picture with that of the same view at the next time.
    """
    if networks.clip is None:
        return {}
    shown, true = over_white(drawn), over_white(right)
    alike = [networks.clip(a[None], b) for a, b in zip(shown[1:].flatten(0, 1), true[1:].flatten(0, 1), strict=True)]
    steady = [
        networks.clip(a[None], b) for a, b in zip(shown[:, 1:].flatten(0, 1), shown[:, :-1].flatten(0, 1), strict=True)
    ]
    return {"clip_i": float(torch.cat(alike).mean()), "clip_c": float(torch.cat(steady).mean())}
