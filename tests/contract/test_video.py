# SPDX-License-Identifier: GPL-3.0-or-later
"""Which frames are taken, for any times; and what kind a file is by its bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blender_addon.contract.video import evenly_spaced, media_type


@given(
    steps=st.lists(st.floats(1e-3, 10.0), min_size=0, max_size=80),
    count=st.integers(2, 64),
)
def test_both_ends_and_no_frame_twice(steps, count):
    times = np.concatenate([[0.0], np.cumsum(steps)])
    chosen = evenly_spaced(times, count)
    assert len(chosen) == count
    assert (chosen[0], chosen[-1]) == (0, len(times) - 1)
    if len(times) >= count:
        assert (np.diff(chosen) > 0).all()
    else:
        assert set(chosen.tolist()) == set(range(len(times)))
        assert (np.diff(chosen) >= 0).all()


@given(rate=st.floats(1.0, 240.0), length=st.integers(16, 500), count=st.integers(2, 16))
def test_even_frames_are_taken_evenly(rate, length, count):
    times = np.arange(length) / rate
    taken = times[evenly_spaced(times, count)]
    assert np.abs(taken - np.linspace(0, times[-1], count)).max() <= 0.5 / rate + 1e-9 or length < 2 * count


def test_what_cannot_be_spaced():
    for times, count in (([], 8), ([0.0, 1.0], 1)):
        with pytest.raises(ValueError, match="two frames"):
            evenly_spaced(np.array(times), count)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n....", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"GIF89a", "gif"),
        (b"\x1a\x45\xdf\xa3", "webm"),
        (b"\x00\x00\x00\x20ftypisom", "mp4"), (b"\x00\x00\x00\x08wide", "mp4"), (b"#EXTM3U", None), (b"", None),
        (b"RIFF....WEBP", None), (b"ffconcat", None),
    ],
)  # fmt: skip
def test_kinds(head, kind):
    assert media_type(head) == kind
