# SPDX-License-Identifier: GPL-3.0-or-later
"""The data directory: checkpoints are those of this very program."""

import pytest

from backend.progress import UserError
from backend.service import paths


def test_checkpoints_of_another_program_are_not_taken_up(tmp_path, monkeypatch):
    home = paths.Home(tmp_path)
    assert not home.begin_work("job")
    kept = home.work("job") / "frames.npz"
    kept.write_bytes(b"half done")
    assert not home.begin_work("job")
    assert kept.exists()  # a retry goes on from there
    monkeypatch.setattr(paths, "program_key", lambda: "the next version")
    assert home.begin_work("job")
    assert not kept.exists()
    assert not home.begin_work("job")


def test_checkpoints_that_do_not_say_whose_they_are_are_not_taken_up(tmp_path):
    """Jobs that waited while the program learnt to say it."""
    home = paths.Home(tmp_path)
    home.work("job").mkdir(parents=True)
    (home.work("job") / "frames.npz").write_bytes(b"half done")
    assert home.begin_work("job")
    assert not (home.work("job") / "frames.npz").exists()


def test_checkpoints_of_another_program_that_cannot_be_removed_are_not_taken_up_either(tmp_path, monkeypatch):
    """As on Windows, where somebody has one open."""
    home = paths.Home(tmp_path)
    home.work("job").mkdir(parents=True)
    (home.work("job") / "frames.npz").write_bytes(b"half done")
    with monkeypatch.context() as patch:
        patch.setattr(paths.shutil, "rmtree", lambda *arguments, **options: None)
        for _ in range(2):
            with pytest.raises(UserError, match="cannot be removed"):
                home.begin_work("job")
    assert home.begin_work("job")
