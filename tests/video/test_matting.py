# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutting out: against known outlines, and what is said where there is none to be found."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from backend.progress import UserError
from backend.video import matting
from backend.video.matting import matte, model_problem, soft_cut_out
from backend.video.reading import DecodedVideo
from benchmarks.matting import backgrounds, fox, scores, video_of

SIDE, COUNT = 144, 8
LEAST_IOU = {"white": 0.95, "gray": 0.92, "gradient": 0.95, "gradient, noise": 0.93, "texture, still": 0.9}


@pytest.fixture(scope="module")
def truth():
    return fox(COUNT, SIDE)


@pytest.fixture(scope="module")
def behind():
    return backgrounds(COUNT, SIDE)


def cut_out(video, method="background"):
    cut = matte(video, method)
    return cut, np.stack([cut.cut_out(t) for t in range(len(video.frames))])


@pytest.mark.parametrize("name", LEAST_IOU)
def test_a_fox_before(name, truth, behind):
    cut, found = cut_out(video_of(truth, behind[name]))
    measured = scores(found, truth)
    assert measured["IoU"] > LEAST_IOU[name]
    assert measured["alpha MAE, band"] < 0.1
    assert (found[..., :3] <= found[..., 3:] + 1e-6).all()
    assert "no matting model" in cut.notes[0]
    said = any("not plain" in note for note in cut.notes)
    assert said == (name == "texture, still")


def test_no_background_remains_in_the_edges(truth):
    white = np.ones((COUNT, SIDE, SIDE, 3), np.float32)
    _, found = cut_out(video_of(truth, white))
    edge = (found[..., 3] > 0.2) & (found[..., 3] < 0.8) & (truth[..., 3] > 0.1)
    straight = found[..., :3][edge] / found[..., 3:][edge]
    naive = video_of(truth, white).frames[..., :3][edge] / 255
    real = truth[..., :3][edge] / truth[..., 3:][edge]
    assert np.abs(straight - real).mean() < 0.6 * np.abs(naive - real).mean()


def opaque(frames: np.ndarray) -> DecodedVideo:
    alpha = np.full((*frames.shape[:3], 1), 255, np.uint8)
    return DecodedVideo(np.concatenate([frames, alpha], -1), np.arange(len(frames)) / 24, {}, [])


def squares(side: int, left, top=40, size=(100, 120), color=(200, 40, 40)) -> np.ndarray:
    frames = np.full((6, *size, 3), (90, 120, 90), np.uint8)
    for t in range(6):
        x = left(t)
        frames[t, max(top, 0) : top + side, max(x, 0) : max(x + side, 0)] = color
    return frames


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.full((6, 80, 80, 3), 120, np.uint8), "No subject"),
        (np.random.default_rng(0).integers(0, 256, (6, 80, 80, 3), np.uint8), "subject"),
        (squares(40, lambda t: 30, color=(91, 121, 91)), "No subject"),
    ],
    ids=["nothing", "noise", "almost the same color"],
)  # fmt: skip
def test_no_subject(frames, said):
    with pytest.raises(UserError, match=said) as caught:
        matte(opaque(frames), "background")
    assert caught.value.code == "no_subject"
    assert "transparency" in caught.value.hint


@pytest.mark.parametrize("empty", [0, 3])
def test_a_frame_without_the_subject(empty):
    """The first is what all others are built on; another is left out of what is constructed from."""
    frames = np.concatenate([squares(40, lambda t: 30), np.zeros((6, 100, 120, 1), np.uint8)], -1)
    frames[:, 40:80, 30:70, 3] = 255
    frames[empty, ..., 3] = 0
    video = DecodedVideo(frames, np.arange(6) / 24, {}, [])
    if empty == 0:
        with pytest.raises(UserError, match=r"The first frame of the video shows no subject") as caught:
            matte(video)
        assert "later start" in caught.value.hint
    else:
        assert any("some frames" in note for note in matte(video).notes)


def test_a_subject_that_is_cut_off():
    cut = matte(opaque(squares(40, lambda t: -12)), "background")
    assert any("left border" in note for note in cut.notes)
    cut = matte(opaque(squares(40, lambda t: 30 + 2 * t)), "background")
    assert not any("border" in note for note in cut.notes)


def test_a_subject_that_fills_everything():
    frames = np.zeros((6, 64, 64, 4), np.uint8)
    frames[..., 3] = 255
    frames[:, 20:24, 20:44, 3] = 0
    frames[:, 40:44, 20:44, 3] = 0
    with pytest.raises(UserError, match="border on all sides"):
        matte(DecodedVideo(frames, np.arange(6) / 24, {}, []), "alpha")


def test_an_outline_that_jumps():
    frames = squares(40, lambda t: 30)
    frames[3] = squares(14, lambda t: 40, top=50)[3]
    assert any("jumps" in note for note in matte(opaque(frames), "background").notes)


def test_only_one_subject_is_followed():
    frames = squares(40, lambda t: 10 + 3 * t)
    frames[:, 4:20, 100:116] = (240, 240, 40)  # something else, smaller, that stands still
    cut = matte(opaque(frames), "background")
    assert not cut.masks[:, :20, 98:].any()
    assert cut.masks[0, 50:70, 15:45].all()


def test_alpha_comes_first():
    frames = np.concatenate([squares(40, lambda t: 30 + t), np.zeros((6, 100, 120, 1), np.uint8)], -1)
    frames[:, 40:80, 30:60, 3] = 255
    frames[:, 40:80, 60:62, 3] = 128
    cut, found = cut_out(DecodedVideo(frames, np.arange(6) / 24, {}, []), "auto")
    assert (cut.method, cut.notes) == ("alpha", [])
    assert found[0, 50, 61] == pytest.approx(
        [200 / 255 * 128 / 255, 40 / 255 * 128 / 255, 40 / 255 * 128 / 255, 128 / 255]
    )
    with pytest.raises(UserError, match="no transparency"):
        matte(opaque(squares(40, lambda t: 30)), "alpha")


def test_a_known_alpha_is_decontaminated():
    alpha = np.zeros((40, 60), np.float32)
    alpha[10:30, 20:40], alpha[10:30, 40] = 1.0, 0.5
    subject, ground = np.array([0.8, 0.2, 0.2]), np.array([0.2, 0.4, 0.8])
    image = alpha[..., None] * subject + (1 - alpha[..., None]) * ground
    found = soft_cut_out(np.rint(255 * image).astype(np.uint8), alpha > 0.5, alpha)
    assert found[20, 40] == pytest.approx([0.4, 0.1, 0.1, 0.5], abs=0.01)
    assert not found[5].any()


# --- a matting model -------------------------------------------------------------------------------------------------


@pytest.fixture
def rembg(tmp_path, monkeypatch):
    """A stand-in with rembg's own calls: everything red is the subject."""
    module, runtime = types.ModuleType("rembg"), types.ModuleType("onnxruntime")
    for stand_in in (module, runtime):
        stand_in.__spec__ = types.SimpleNamespace()
    sessions = []

    def remove(image, session, only_mask):
        assert session in sessions
        assert only_mask
        pixels = np.asarray(image).astype(int)
        return Image.fromarray((255 * (pixels[..., 0] > 150)).astype(np.uint8))

    def new_session(name):
        sessions.append(name)
        return name

    module.remove, module.new_session = remove, new_session
    monkeypatch.setitem(sys.modules, "rembg", module)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    return tmp_path


def test_a_model_without_its_weights_is_not_used(rembg):
    assert "weights" in model_problem()
    assert matte(opaque(squares(40, lambda t: 30)), "auto").method == "background surface"
    with pytest.raises(UserError, match="weights") as caught:
        matte(opaque(squares(40, lambda t: 30)), "model")
    assert caught.value.code == "no_matting_model"


def test_a_model_that_is_there_is_used(rembg):
    (rembg / "u2net.onnx").write_bytes(b"weights")
    assert model_problem() is None
    cut, found = cut_out(opaque(squares(40, lambda t: 30 + t)), "auto")
    assert (cut.method, cut.notes) == ("model u2net", [])
    assert (found[0, 45:75, 35:65, 3] == 1).all()
    assert not found[0, :30].any()


def test_a_model_that_does_not_load_is_said(rembg, monkeypatch):
    (rembg / "u2net.onnx").write_bytes(b"weights")

    def broken(name):
        raise RuntimeError("protobuf parsing failed")

    monkeypatch.setattr(sys.modules["rembg"], "new_session", broken)
    with pytest.raises(UserError, match="cannot be loaded"):
        matte(opaque(squares(40, lambda t: 30)), "model")


def test_nothing_is_installed_here(monkeypatch):
    monkeypatch.setattr(matting.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in model_problem()
