# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panel shows of the video that somebody has picked: three frames of the range, and the range in words.

All of it is read between two draws, a frame at a time, once the choice has stood still for one beat of the tracker.
"""

import logging
from collections.abc import Generator

import bpy
import bpy.utils.previews
import numpy as np

from .subject import CaptureError
from .video_source import (
    VideoSource,
    active_strip,
    chosen_part,
    chosen_video,
    nothing_chosen,
    read_frame,
    sequencer_scene,
)

SIDE = 192  # pixels of a preview
MOVIE_CLIP_KEYS = ("name_full", "filepath", "source", "frame_duration", "frame_offset", "frame_start", "fps")
STRIP_KEYS = (
    *("name", "type", "filepath", "directory", "frame_duration", "frame_final_start", "use_reverse_frames"),
    *("frame_offset_start", "frame_offset_end", "animation_offset_start", "animation_offset_end"),
)
UNFORESEEN = "The video cannot be shown, for a reason that was not foreseen. See the system console."

log = logging.getLogger(__name__)


class VideoPreview:
    """The preview of one scene's choice. `step` it now and then; what it holds is ready to be drawn."""

    def __init__(self) -> None:
        self.text = ""
        self.problem = ""
        self.icons = (0, 0, 0)
        self.numbers = (0, 0, 0)  # of the frames, counted from 1 on
        self._previews = bpy.utils.previews.new()
        self._made = 0  # previews, ever: each has a name of its own
        self._video: VideoSource | None = None
        self._part: VideoSource | None = None
        self._asked: tuple = ()
        self._read: tuple = ()
        self._steps: Generator[None, None, None] | None = None

    def close(self) -> None:
        """Free the pictures."""
        bpy.utils.previews.remove(self._previews)

    def forget(self) -> None:
        """Read all of it anew; the files may have changed."""
        self._clear()
        self._asked = self._read = ()

    @property
    def state(self) -> tuple:
        """All that is drawn."""
        return self.text, self.problem, self.icons, self.numbers

    def step(self, scene: bpy.types.Scene) -> None:
        """Look at the choice, and read a little where it is another one: at most one frame."""
        options = scene.kinesplat
        if options.kind != "VIDEO":
            return
        asked = _choice(scene)
        if asked != self._asked:  # it may be changing still, under somebody's mouse
            if asked[:1] != self._asked[:1]:
                self._clear()
            self._asked, self._steps = asked, None
        elif asked != self._read:
            self._read, self._steps = asked, self._reading(scene)
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
            except CaptureError as error:
                self._clear(str(error))
            except Exception:
                log.exception("A video cannot be shown")
                self._clear(UNFORESEEN)
        if self._part is not None:
            self.text = range_text(self._video, self._part, options.video_frames)

    def _clear(self, problem: str = "") -> None:
        self.text, self.problem, self.icons, self.numbers = "", problem, (0, 0, 0), (0, 0, 0)
        self._video = self._part = self._steps = None
        self._previews.clear()

    def _reading(self, scene: bpy.types.Scene) -> Generator[None, None, None]:
        if nothing_chosen(scene):
            self._clear()
            return
        self._video = self._part = None
        self._video = chosen_video(scene)
        self._part = chosen_part(self._video, scene.kinesplat)
        self.problem = ""
        yield
        indices = (0, (self._part.count - 1) // 2, self._part.count - 1)
        first = self._part.first - self._video.first + 1
        for place, index in enumerate(indices):
            icon = self._icon(squared(read_frame(self._part, index, SIDE)))
            self.icons = (*self.icons[:place], icon, *self.icons[place + 1 :])
            self.numbers = (*self.numbers[:place], first + index, *self.numbers[place + 1 :])
            yield
        for name in list(self._previews)[:-3]:
            self._previews.pop(name)

    def _icon(self, picture: np.ndarray) -> int:
        self._made += 1
        preview = self._previews.new(str(self._made))
        preview.image_size = picture.shape[1], picture.shape[0]
        preview.image_pixels_float.foreach_set(np.ascontiguousarray(picture[::-1]).ravel())
        return preview.icon_id


def squared(picture: np.ndarray) -> np.ndarray:  # [H, W, 4] float32 -> [S, S, 4], transparent around the picture
    """Icons are square. The picture lies at the bottom, where its number is."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 4), np.float32)
    left = (side - width) // 2
    square[side - height :, left : left + width] = picture
    return square


def range_text(video: VideoSource, part: VideoSource, frames: int) -> str:
    """Which frames of a video are taken: `Frames 12 to 84 of 120, 3.0 s, 8 taken (every 10th)`."""
    first = part.first - video.first + 1
    text = f"Frames {first} to {first + part.count - 1} of {video.count}, {part.seconds:.1f} s, "
    if part.count < frames:
        text += f"all taken, some of them twice to make {frames}"
    elif part.count == frames:
        text += "all taken"
    else:
        step = round((part.count - 1) / (frames - 1))
        text += f"{frames} taken" + (f" (every {_ordinal(step)})" if step > 1 else "")
    return text


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _choice(scene: bpy.types.Scene) -> tuple:
    """All that the preview depends on, as far as that is known without reading a file: the video, then its range."""
    options = scene.kinesplat
    owner, keys = scene, ()
    if options.video_source == "FILE":
        video = (options.video_path, scene.render.fps / scene.render.fps_base)
    elif options.video_source == "CLIP":
        video, owner, keys = ("clip",), options.video_clip, MOVIE_CLIP_KEYS
    else:
        rate = sequencer_scene(scene).render
        video, owner, keys = ("strip", rate.fps / rate.fps_base), active_strip(scene), STRIP_KEYS
        video += (len(owner.retiming_keys),) if owner and owner.type == "MOVIE" else ()
    video += tuple(getattr(owner, key, None) for key in keys)
    span = (options.video_start, options.video_end) if not options.use_whole_video else ()
    return video, span
