# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder beside a result: it goes with the work, stays with what is half done, and serves one command at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.commands.work_folder import work_folder
from backend.progress import UserError
from tests.test_house import ROOT


class StopError(Exception):
    """Something that fails."""


def test_it_goes_when_all_is_done(tmp_path: Path) -> None:
    with work_folder(None, tmp_path / "new" / "clip.npz") as folder:
        assert folder == tmp_path / "new" / "clip.work"
        (folder / "construct.npz").write_bytes(b"half")
    assert not folder.exists()
    with work_folder(tmp_path / "chosen", tmp_path / "clip.npz") as folder:
        (folder / "construct.npz").write_bytes(b"half")
    assert (tmp_path / "chosen" / "construct.npz").exists()


def test_what_failed_leaves_what_it_had_finished_and_nothing_else(tmp_path: Path) -> None:
    def work(finish: bool) -> None:
        with work_folder(None, tmp_path / "new" / "clip.npz") as folder:
            (folder / "5f902bf84192" / "object").mkdir(parents=True)
            if finish:
                (folder / "5f902bf84192" / "frames.npz").write_bytes(b"whole")
            raise StopError

    with pytest.raises(StopError):
        work(finish=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StopError):
        work(finish=True)
    assert (tmp_path / "new" / "clip.work" / "5f902bf84192" / "frames.npz").exists()
    with work_folder(None, tmp_path / "new" / "clip.npz"):
        pass
    assert not list((tmp_path / "new").iterdir()), "it is ours also the second time"


def test_a_folder_of_the_user_by_that_name_stays(tmp_path: Path) -> None:
    (tmp_path / "clip.work" / "empty").mkdir(parents=True)
    (tmp_path / "clip.work" / "notes.txt").write_text("mine")
    with pytest.raises(StopError), work_folder(None, tmp_path / "clip.npz"):
        raise StopError
    with work_folder(None, tmp_path / "clip.npz"):
        pass
    assert (tmp_path / "clip.work" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "clip.work" / "empty").exists()


def test_a_second_command_waits_for_nobody_and_takes_nothing_away(tmp_path: Path) -> None:
    code = "import sys, pathlib; from backend.commands.work_folder import work_folder\n"
    code += "with work_folder(None, pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "a.npz"], cwd=ROOT, text=True, **pipes) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"at work in .*a\.work"), work_folder(None, tmp_path / "a.png"):
            pass
        assert (tmp_path / "a.work").exists()
        first.kill()
    with work_folder(None, tmp_path / "a.png"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_construction_that_cannot_begin_leaves_no_folder(tmp_path: Path, capsys) -> None:
    assert main(["construct", "--orbit", str(tmp_path / "no"), "--out", str(tmp_path / "new" / "clip.npz")]) == 1
    assert "is no folder of an orbit" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
