# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend export`: which frames, which space, what is refused, and what is left when it is stopped."""

from pathlib import Path

import numpy as np
import pytest

from backend.__main__ import main
from backend.exchange import usd
from backend.exchange.webp import decode_webp
from blender_addon.contract.clip import write_clip
from blender_addon.contract.placement import UP_AXES, placed, placed_sh
from blender_addon.contract.spherical_harmonics import converted
from blender_addon.contract.splat_clip import read_splat_clip
from blender_addon.contract.splat_files import ply_writer
from tests.contract.clips import random_clip
from tests.contract.splat_files.files import DATA
from tests.exchange.readers import read_glb, read_ply

PLACE = np.array([[0, -2.0, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])


@pytest.fixture
def clip(tmp_path):
    clip = random_clip(n=20, frames=4, sh_degree=1, to_object=PLACE)
    write_clip(tmp_path / "fox.npz", clip)
    return clip


def export(folder: Path, to: str, out: str, *arguments: str) -> int:
    return main(["export", str(folder / "fox.npz"), "--to", to, "--out", str(folder / out), *arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "matrix"),
    [
        ((), PLACE),
        (("--space", "clip"), np.eye(4)),
        (("--up", "y"), UP_AXES["Y"] @ PLACE),
        (("--up", "y-down", "--space", "clip"), UP_AXES["Y_DOWN"]),
    ],
)
def test_a_ply_sequence(tmp_path, clip, capsys, arguments, matrix) -> None:
    assert export(tmp_path, "ply", "out/fox.ply", *arguments) == 0
    assert names(tmp_path / "out") == [f"fox_{number:04}.ply" for number in (1, 2, 3, 4)]
    assert "fox_0001.ply to fox_0004.ply: 20 Gaussians, 4 frames" in capsys.readouterr().out
    for t in range(4):
        read, sh, comments = read_ply(tmp_path / "out" / f"fox_{t + 1:04}.ply")
        for name, array in vars(placed(clip.frame(t), matrix)).items():
            values = getattr(read, name)
            if name == "quats":
                values = values * np.sign(np.sum(values * array, axis=-1, keepdims=True))
            np.testing.assert_allclose(values, array, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sh, placed_sh(clip.sh, matrix), atol=1e-6)
        assert "color space srgb" in comments
    comes_back, _ = read_splat_clip([tmp_path / "out" / "fox_0001.ply"], fps=1, decode_webp=decode_webp)
    assert comes_back.fps == clip.fps
    upright = clip.to_object if "clip" not in arguments else np.eye(4)
    read = placed(comes_back.frame(0), comes_back.to_object)  # turned back by what the header says
    np.testing.assert_allclose(read.means, placed(clip.frame(0), upright).means, atol=1e-5)


@pytest.mark.parametrize("folder", ["shot", "shot.v001", "shot.1001", "made.before"])
def test_a_sequence_in_a_folder(tmp_path, clip, capsys, folder) -> None:
    (tmp_path / "made.before").mkdir()
    assert export(tmp_path, "ply", folder) == 0
    assert names(tmp_path / folder)[0] == "fox_0001.ply"
    with pytest.raises(SystemExit):
        export(tmp_path, "ply", folder, "--frame", "1")


def test_some_frames_and_one_frame(tmp_path, clip, capsys) -> None:
    assert export(tmp_path, "ply", "some", "--frames", "1-2") == 0
    assert names(tmp_path / "some") == ["fox_0002.ply", "fox_0003.ply"]
    assert export(tmp_path, "ply", "single", "--frames", "2-2") == 0
    assert f"{tmp_path / 'single' / 'fox_0003.ply'}: 20 Gaussians, 1 frame\n" in capsys.readouterr().out
    assert export(tmp_path, "ply", "one.ply", "--frame", "1.5", "--space", "clip") == 0
    read, _, _ = read_ply(tmp_path / "one.ply")
    np.testing.assert_array_equal(read.means, clip.frame(1.5).means)
    assert export(tmp_path, "glb", "one.glb", "--frame", "3", "--space", "clip") == 0
    _, attributes = read_glb(tmp_path / "one.glb")
    np.testing.assert_allclose(attributes["POSITION"][:, 1], clip.frame(3).means[:, 2], atol=1e-6)


@pytest.mark.parametrize("to", ["ply", "glb"])
def test_one_moment_holds_what_is_there(tmp_path, capsys, to) -> None:
    """Whereas sequences hold all Gaussians in each file."""
    clip = random_clip(n=20, frames=4, sh_degree=1, bases=None, varying=True)
    opacities = clip.motion.frame_opacities
    opacities[:] = 0.5
    opacities[0] = opacities[1, :15] = 0
    write_clip(tmp_path / "fox.npz", clip)
    assert export(tmp_path, to, f"one.{to}", "--frame", "1", "--space", "clip") == 0
    assert f"one.{to}: 5 Gaussians, 1 frame\n" in capsys.readouterr().out
    if to == "ply":
        read, sh, _ = read_ply(tmp_path / "one.ply")
        np.testing.assert_array_equal(read.means, clip.frame(1).means[15:])
        np.testing.assert_allclose(sh, clip.sh[15:], atol=1e-6)
    assert export(tmp_path, to, f"none.{to}", "--frame", "0") == 1
    assert "shows nothing at frame 0. Choose another moment with --frame." in capsys.readouterr().err
    assert not (tmp_path / f"none.{to}").exists()


def test_usd_gets_frames_place_and_colors(tmp_path, clip, capsys, monkeypatch) -> None:
    """Writing itself is tested apart: its library does not live beside Blender's."""
    shots = []
    monkeypatch.setattr(usd, "require_usd", lambda: None)
    monkeypatch.setattr(usd, "write_usd", lambda path, shot, on_frame: shots.append((path, shot)))
    assert export(tmp_path, "usd", "fox.usdc") == 0
    assert export(tmp_path, "usd", "one.usda", "--frame", "2.5", "--space", "clip", "--color-space", "linear") == 0
    (path, shot), (_, one) = shots
    assert (path.name, list(shot.frames), shot.color_space) == ("fox.usdc", [0, 1, 2, 3], "srgb")
    np.testing.assert_array_equal(shot.matrix, PLACE)
    (moment,) = one.moments()
    np.testing.assert_array_equal(moment.means, clip.frame(2.5).means)
    assert one.color_space == "linear"
    np.testing.assert_array_equal(one.matrix, np.eye(4))
    assert "fox.usdc: 20 Gaussians, 4 frames" in capsys.readouterr().out


def test_linear_colors_become_srgb_in_ply_and_stay_in_gltf(tmp_path, capsys) -> None:
    clip = random_clip(n=20, color_space="linear")
    write_clip(tmp_path / "fox.npz", clip)
    assert export(tmp_path, "ply", "one.ply", "--frame", "0") == 0
    assert "converted from linear to srgb" in capsys.readouterr().err
    np.testing.assert_allclose(read_ply(tmp_path / "one.ply")[1], converted(clip.sh, "linear", "srgb"))
    assert export(tmp_path, "ply", "same.ply", "--frame", "0", "--color-space", "linear") == 0
    np.testing.assert_array_equal(read_ply(tmp_path / "same.ply")[1], clip.sh)
    assert export(tmp_path, "glb", "same.glb") == 0
    document, _ = read_glb(tmp_path / "same.glb")
    assert "lin_rec709_display" in str(document)
    assert export(tmp_path, "glb", "srgb.glb", "--color-space", "srgb") == 0
    document, _ = read_glb(tmp_path / "srgb.glb")
    assert "srgb_rec709_display" in str(document)


def test_files_are_replaced_only_on_request(tmp_path, clip, capsys) -> None:
    for arguments in (("ply", "a.ply"), ("glb", "a.glb"), ("ply", "b.ply", "--frame", "0")):
        assert export(tmp_path, *arguments) == 0
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert export(tmp_path, *arguments) == 1
        assert "would be replaced" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert export(tmp_path, *arguments, "--overwrite") == 0
    assert export(tmp_path, "ply", "a.ply", "--frames", "0-1", "--overwrite") == 0
    assert [name for name in names(tmp_path) if name.startswith("a_")] == ["a_0001.ply", "a_0002.ply"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ply", "x.obj"), "must end in .ply"),
        (("ply", "x.v1a"), "no dot but that of a version"),
        (("usd", "x.usdz"), "must end in .usd or .usdc or .usda"),
        (("glb", "x"), "must end in .glb"),
        (("ply", "x", "--frame", "0"), "must end in .ply where"),
        (("glb", "x.glb", "--frames", "0-2"), "no time in glTF"),
        (("usd", "x.usd", "--up", "y"), "--up goes with --to ply"),
        (("ply", "x", "--frames", "2-1"), "two frames such as"),
        (("ply", "x", "--frames", "2"), "two frames such as"),
        (("ply", "x", "--frames", "0-2", "--frame", "1"), "not allowed with"),
    ],
)
def test_wrong_options(tmp_path, clip, capsys, arguments, said) -> None:
    with pytest.raises(SystemExit) as caught:
        export(tmp_path, *arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert names(tmp_path) == ["fox.npz"]


@pytest.mark.parametrize("arguments", [("--frames", "2-4"), ("--frame", "-1"), ("--frame", "3.5"), ("--frame", "nan")])
def test_frames_that_are_not_there(tmp_path, clip, capsys, arguments) -> None:
    assert export(tmp_path, "ply", "x.ply", *arguments) == 1
    assert "has the frames 0 to 3." in capsys.readouterr().err


def test_a_bad_clip_is_one_sentence(tmp_path, capsys) -> None:
    (tmp_path / "fox.npz").write_text("no clip")
    assert export(tmp_path, "ply", "x.ply") == 1
    assert capsys.readouterr().err == "fox.npz is damaged or not a Kinesplat file.\n"
    (tmp_path / "fox.npz").unlink()
    assert export(tmp_path, "ply", "x.ply") == 1
    assert "fox.npz cannot be used: No such file" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_stopped_it_leaves_nothing(tmp_path, clip, capsys, monkeypatch) -> None:
    written = []

    def stop_at_the_third(file, *_):
        written.append(file.write(b"half"))
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ply_writer, "_write", stop_at_the_third)
    for out in ("x.ply", "new/folders/x.ply"):
        written.clear()
        assert export(tmp_path, "ply", out) == 130
        assert "Cancelled. Nothing was written." in capsys.readouterr().err
    assert names(tmp_path) == ["fox.npz"]


def test_a_flat_clip_is_one_sentence(tmp_path, capsys) -> None:
    write_clip(tmp_path / "fox.npz", random_clip(to_object=np.diag([1.0, 1.0, 1e-12, 1.0])))
    assert export(tmp_path, "ply", "x.ply") == 1
    assert capsys.readouterr().err == "The Gaussians would become flat: one of the scales is 0. Try --space clip.\n"
    assert names(tmp_path) == ["fox.npz"]


def test_ply_files_of_other_programs(tmp_path, clip, capsys, monkeypatch) -> None:
    """A folder of numbered files is a clip with its frames; where they do not say it, Y points down in them."""
    folder = tmp_path / "captured"
    for t in range(3):
        ply_writer.write_ply(folder / f"walk_{t}.ply", clip.frame(t), clip.sh, comments=[])
    shots = []
    monkeypatch.setattr(usd, "require_usd", lambda: None)
    monkeypatch.setattr(usd, "write_usd", lambda path, shot, on_frame: shots.append(shot))
    for source, *arguments in ((folder,), (folder / "walk_1.ply", "--from-up", "z", "--fps", "12")):
        assert main(["export", str(source), "--to", "usd", "--out", str(tmp_path / "walk.usd"), *arguments]) == 0
    whole, still = shots
    assert (list(whole.frames), whole.clip.fps, list(still.frames), still.clip.fps) == ([0, 1, 2], 24, [0], 12)
    turned = np.linalg.inv(UP_AXES["Y_DOWN"])
    for shot, t, matrix in ((whole, 2, turned), (still, 0, np.eye(4))):
        wanted = placed(clip.frame(t if shot is whole else 1), matrix).means
        np.testing.assert_allclose(placed(shot.clip.frame(t), shot.matrix).means, wanted, atol=1e-5)
    assert main(["export", str(folder), "--to", "ply", "--out", str(tmp_path / "again")]) == 0
    assert names(tmp_path / "again") == [f"captured_{number:04}.ply" for number in (1, 2, 3)]
    (folder / "walk_2.ply").rename(folder / "walk_3.ply")
    capsys.readouterr()
    assert main(["export", str(folder), "--to", "ply", "--out", str(tmp_path / "gap")]) == 0
    assert "Number 2 is missing: its frame is interpolated." in capsys.readouterr().err
    assert names(tmp_path / "gap") == [f"captured_{number:04}.ply" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["st.compressed.ply", "st_3.spz", "st.sog", "st.glb"])
def test_splat_files_of_each_format(tmp_path, name) -> None:
    for file in ("source.ply", name):
        up = ("--from-up", "y-down") if file.endswith(".spz") else ()  # its program keeps the axes of the PLY file
        out = str(tmp_path / f"{file}.ply")
        assert main(["export", str(DATA / file), "--to", "ply", "--frame", "0", "--out", out, *up]) == 0
    read, wanted = (read_ply(tmp_path / f"{file}.ply")[0].means for file in (name, "source.ply"))
    nearest = np.linalg.norm(read[:, None] - wanted, axis=-1).min(axis=1)
    assert nearest.max() < 0.003


def test_a_folder_that_is_not_one_clip_is_refused(tmp_path, clip, capsys) -> None:
    folder = tmp_path / "captured"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert main(["export", str(folder), "--to", "glb", "--out", str(tmp_path / "fox.glb")]) == 1
    assert "holds no splat files" in capsys.readouterr().err
    for name in ("walk_1.ply", "walk_2.ply", "run_1.ply"):
        ply_writer.write_ply(folder / name, clip.frame(0), clip.sh, comments=[])
    assert main(["export", str(folder), "--to", "glb", "--out", str(tmp_path / "fox.glb")]) == 1
    assert "several clips, which begin with run_1.ply, walk_1.ply" in capsys.readouterr().err
