# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures that numpy draws against a plain splat renderer."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("bpy")

from blender_addon import splat_picture
from tests.blender import ewa
from tests.blender.clips import twisting_ring

pytestmark = pytest.mark.blender

CAMERA = np.array([[1, 0, 0, 0.1], [0, 0.5, -0.8660254, -1.5], [0, 0.8660254, 0.5, 0.8660254], [0, 0, 0, 1]])


def pictures(gaussians, sh, focal=80.0, size=48):
    color, alpha = ewa.render(gaussians, sh, np.eye(4), CAMERA, focal, size)
    return splat_picture.draw(gaussians, sh, CAMERA, focal, size), np.concatenate([color, alpha[..., None]], axis=-1)


@pytest.mark.parametrize("degree", [0, 3])
def test_as_a_plain_renderer_draws_it(degree, monkeypatch):
    monkeypatch.setattr(splat_picture, "_PAIRS", 5_000)  # in many parts
    monkeypatch.setattr(splat_picture, "_OPAQUE", 0)
    clip = twisting_ring(300, 4, sh_degree=degree)
    drawn, expected = pictures(clip.frame(1.5), clip.sh)
    assert 0.1 < expected[..., 3].mean() < 0.9
    assert np.abs(drawn - expected).max() < 1e-5


def test_what_is_hidden_may_be_left_out():
    clip = twisting_ring(800, 2, sh_degree=0)
    gaussians = replace(clip.frame(0), opacities=np.full(800, 0.99, np.float32))
    drawn, expected = pictures(gaussians, clip.sh)
    assert np.abs(drawn - expected).max() < 2e-3


def test_nothing_to_see():
    """Behind the camera, too faint, and beside the picture."""
    clip = twisting_ring(20, 2, sh_degree=0)
    first = clip.frame(0)
    for gaussians in (
        replace(first, means=first.means + np.array([0, -9, 9], np.float32)),
        replace(first, opacities=np.full(20, 1 / 300, np.float32)),
        replace(first, means=first.means + np.array([50, 0, 0], np.float32)),
    ):
        assert not pictures(gaussians, clip.sh)[0].any()


def test_linear_pictures_as_srgb():
    picture = np.array([[0.5, 0.1, 0.0, 0.5], [0, 0, 0, 0], [0.002, 0.002, 0.002, 1]])
    srgb = splat_picture.to_srgb(picture)
    assert srgb == pytest.approx(
        np.array([[0.5, 0.2423, 0, 0.5], [0, 0, 0, 0], [0.02584, 0.02584, 0.02584, 1]]), abs=1e-4
    )
