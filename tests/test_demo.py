# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo as a whole: what the README promises, of a still model and of an animated one."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest
from PIL import Image
from rich.console import Console

from blender_addon.contract.clip import read_clip
from examples import demo

ROOT = Path(__file__).parent.parent
# The still model goes the whole way as a user starts it; rendering as much once more would say nothing new.
FEWER_PICTURES = """
import sys
from examples import demo
whole = demo.open_model
def open_model(bpy, model):
    subject = whole(bpy, model)
    bpy.context.scene.kinesplat.samples = 4
    return subject
demo.open_model, demo.PREVIEW_STEPS = open_model, 1
sys.exit(demo.main())
"""


@pytest.mark.parametrize("mine", ["backend/jobs.sqlite3", "render/shot.png", "clip.npz"])
def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(demo.DemoFailed, match="Choose another folder"):
        demo.clear(tmp_path)
    assert (tmp_path / mine).read_text() == "mine"
    (tmp_path / demo.LOG).touch()  # of a demo that was stopped in the middle
    demo.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [demo.LOG]


def test_ctrl_c_is_heard_though_blender_swallows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "cancelled", threading.Event())
    with (
        demo.steps(Console(file=io.StringIO()), {}) as step,
        pytest.raises(KeyboardInterrupt),
        step("Rendering"),
        contextlib.suppress(KeyboardInterrupt),  # as Blender does while it renders
    ):
        demo.cancel(signal.SIGINT, None)


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.parametrize("animated", [False, True], ids=["still", "animated"])
def test_the_demo_goes_the_whole_way(tmp_path: Path, animated: bool) -> None:
    pytest.importorskip("bpy")
    command = [sys.executable, *(("-c", FEWER_PICTURES, "--animated") if animated else ("-m", "examples.demo"))]
    command += ["--preset", "draft", "--width", "64", "--out", str(tmp_path), *(() if animated else ("--motion", "2"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["psnr_mean"] > (28 if animated else 21)  # invented frames agree less with each other
    assert report["frames"] == len(report["psnr_per_frame"]) == 24
    assert read_clip(tmp_path / "clip.npz").count == report["gaussians"] == 2_000
    assert ("generated" in report) != animated
    if not animated:
        assert report["generated"]["motion_asked"] == 2.0
        assert 1.0 < report["generated"]["motion_measured"] < 3.0
        assert report["generated"]["warnings"] == []
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 0
    with av.open(str(tmp_path / "preview.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 2 * (23 if animated else 46)
    assert (tmp_path / "demo.blend").stat().st_size > 100_000
    assert str(tmp_path / "preview.mp4") in done.stdout.replace("\n", "")
