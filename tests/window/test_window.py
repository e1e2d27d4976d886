# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension in a real Blender window, used by a real mouse. Pictures are kept under out/window."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.films import write_video

pytestmark = [pytest.mark.window, pytest.mark.slow]

SCRIPTS = Path(__file__).resolve().parent / "scripts"
DATA = Path(__file__).resolve().parent.parent / "data"
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def play(blender, work, script, *, limit, environment=None):
    """Run a script in the window and return what it found out."""
    for path in SCRIPTS.glob("*.py"):
        shutil.copy(path, work)
    (work / "result.json").unlink(missing_ok=True)
    inside = blender.inside(work)
    code, output = blender.run(
        work,
        ["--factory-startup", "--python-exit-code", "3", "--python", f"{inside}/{script}"],
        window=True,
        limit=limit,
        environment=environment,
    )
    (work / f"{script}.txt").write_text(output)
    assert (work / "result.json").is_file(), f"Blender ended with {code} before the script did:\n{output[-4000:]}"
    result = json.loads((work / "result.json").read_text())
    assert not result["error"], f"{result['error']}\n{output[-4000:]}"
    return result


def picture(work, name):
    return np.asarray(Image.open(work / "pictures" / f"{name}.png").convert("RGB"), np.float64)


def test_blender_accepts_the_archive(blender, work, archive):
    shutil.copy(archive, work)
    path = f"{blender.inside(work)}/{archive.name}"
    code, output = blender.run(work, ["--command", "extension", "validate", path], window=False, limit=120)
    assert code == 0, output


def test_generate_and_import_by_mouse(blender, work, archive, backend_home):
    shutil.copy(archive, work)
    shutil.copy(EXAMPLES / "fox.glb", work)
    environment = {"KINESPLAT_HOME": f"{blender.inside(work)}/backend"}
    result = play(blender, work, "generate.py", limit=900, environment=environment)

    assert result["installed"] == ["bl_ext.user_default.kinesplat"]
    assert result["capture_began"]
    assert result["job"]["state"] == "succeeded", result["job"]
    assert "running" in result["job"]["seen"]
    assert result["longest_tick_job"] < 0.05, "the add-on's timer holds Blender up while a job runs"
    made = result["object"]
    assert made["in_scene"]
    assert made["in_local_view"]
    assert made["points"] > 100
    assert "NODES" in made["modifiers"]
    distance = np.linalg.norm(np.subtract(made["centre"], made["fox_centre"]))
    assert distance < 0.25 * made["fox_size"], "the Gaussians do not lie where the fox stands"
    assert result["moving"]["selected"]
    assert result["moving"]["gaussians_hidden"]
    assert result["moving"]["distance"] > 0.01 * made["fox_size"], "the mesh does not move as the Gaussians do"
    assert result["moving"]["undone"], "one undo step must take the moving mesh back, and show the Gaussians again"
    assert result["undone"], "one undo step must take the import back"
    assert "fox" in " ".join(result["left"]).lower(), "undo took more than the import"

    for name in ("1_before", "2_capture", "4_done", "5_imported", "6_gaussians_alone", "7_frame_12"):
        assert picture(work, name).std() > 10, f"the picture {name} is blank"
    still, later = picture(work, "6_gaussians_alone"), picture(work, "7_frame_12")
    viewport = np.s_[100:700, 100:700]
    assert np.abs(still[viewport] - later[viewport]).mean() > 0.05, "the Gaussians do not move with the timeline"


def test_a_still_fox_gets_a_motion(blender, work, archive, swaying_home):
    """Candidates play side by side, open as an image sequence, and the one that is chosen is built."""
    shutil.copy(archive, work)
    shutil.copy(EXAMPLES / "fox.glb", work)
    environment = {"KINESPLAT_HOME": f"{blender.inside(work)}/backend"}
    result = play(blender, work, "choose.py", limit=900, environment=environment)

    assert result["suggested"] == "fox, sneak"
    assert [caption.split("\n")[0] for caption in result["captions"]] == ["Seed 1", "Seed 2"]
    assert result["warnings"] == ["The model does not know: wonderfully."] * 2
    assert result["group"] == 1
    assert not result["alike"], "other seeds sway at another pace"
    assert result["icons"] >= 5, "the candidates do not play"
    assert result["longest_tick_playing"] < 0.05, "playing holds Blender up"
    name = "Armature, the fox sways wonderfully, Seed 1"
    assert result["image"] == {"name": name, "frames": 24, "shown_1": "frame_000.png", "shown_24": "frame_023.png"}
    assert result["built"]["state"] == "succeeded", result["built"]
    assert result["built"]["name"] == name
    distance = np.linalg.norm(np.subtract(result["centre"], result["fox_centre"]))
    assert distance < 0.25 * result["fox_size"], "the Gaussians do not lie where the fox stands"
    still, later = picture(work, "6_imported"), picture(work, "7_frame_8")
    viewport = np.s_[100:700, 100:700]
    assert np.abs(still[viewport] - later[viewport]).mean() > 0.05, "the Gaussians do not move with the timeline"


def test_the_log_of_a_failed_job_opens(blender, work, archive, swaying_home):
    shutil.copy(archive, work)
    environment = {"KINESPLAT_HOME": f"{blender.inside(work)}/backend"}
    result = play(blender, work, "log.py", limit=300, environment=environment)

    assert result["hint"].startswith("The job's log says more.")
    assert "ZeroDivisionError: as the prompt asks" in result["log"]
    assert result["editor"] == result["text"], "the text editor shows something else"
    assert result["windows"] == [1, 2, 2], "it opens in one new window, and again in the same"
    assert result["tops"][0] == 0, "the beginning of a short log is out of sight"
    assert result["tops"][1] > 200, "the end of a long log is out of sight"


def test_a_film_is_looked_at_and_sent(blender, work, archive, swaying_home):
    """The panel shows frames of the range, says what is wrong with a bad file, and the film becomes a clip."""
    shutil.copy(archive, work)
    pictures = [Image.open(path) for path in sorted((DATA / "fox_orbit" / "moving").glob("frame_*.png"))]
    around = [*range(len(pictures)), *range(len(pictures) - 2, 0, -1)]
    write_video(work / "fox.mp4", count=len(around), size=(320, 180), frame=partial(on_stage, pictures, around))
    (work / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"x" * 1000)
    environment = {"KINESPLAT_HOME": f"{blender.inside(work)}/backend"}
    result = play(blender, work, "film.py", limit=900, environment=environment)

    count = len(around)
    assert result["whole"] == f"Frames 1 to {count} of {count}, {(count - 1) / 24:.1f} s, 8 taken (every 6th)"
    assert result["part"] == f"Frames 13 to 37 of {count}, 1.0 s, 8 taken (every 3rd)"
    assert result["numbers"] == [13, 25, 37]
    assert result["strip"] == result["part"]
    assert "cannot be read" in result["problem"]
    assert result["longest_tick_reading"] < 0.1, "reading the frames holds Blender up"
    assert result["job"]["state"] == "succeeded", result["job"]
    assert result["job"]["detail"][0].startswith("distillation 0.")
    assert result["distance"] < 0.02, "the foot of the result does not stand on the 3D cursor"
    assert result["played"] == pytest.approx([1, 25])  # one second of the film at 24 frames a second


def on_stage(pictures, order, index, size, alpha):
    """A frame of the film: one of the pictures in the middle of a plain backdrop."""
    frame = Image.new("RGBA", size, (150, 165, 185, 255))
    subject = pictures[order[index]].convert("RGBA").resize((size[1], size[1]))
    frame.alpha_composite(subject, ((size[0] - size[1]) // 2, 0))
    return np.asarray(frame)


def test_leave_in_mid_job_and_come_back(blender, work, archive, backend_home):
    """The backend owns the job: another file, or no Blender at all, does it no harm."""
    shutil.copy(archive, work)
    shutil.copy(EXAMPLES / "fox.glb", work)
    environment = {"KINESPLAT_HOME": f"{blender.inside(work)}/backend"}
    left = play(blender, work, "leave.py", limit=400, environment=environment)
    assert left["jobs_after_cancel"] == 0
    assert left["scene_as_before"]
    assert left["state_in_new_file"] in ("running", "succeeded")

    back = play(blender, work, "come_back.py", limit=900, environment=environment)
    assert back["state_at_first"] in ("running", "succeeded")
    assert back["state"] == "succeeded"
    assert back["points"] > 100
