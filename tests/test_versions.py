# SPDX-License-Identifier: GPL-3.0-or-later
"""What names the program that made something."""

import pytest

from backend import versions


@pytest.fixture
def backend(tmp_path, monkeypatch):
    folder = tmp_path / "backend"
    for room in ("splatting", "training", "service", "weights/small", "../blender_addon/contract"):
        (folder / room).mkdir(parents=True)
    for leaf in versions.LEAVES:
        (folder / leaf).write_bytes(b"as it was")
    monkeypatch.setattr(versions, "BACKEND", folder)
    return folder


@pytest.mark.parametrize(
    "changed",
    ["splatting/fit.py", "training/a.toml", "weights/small/motion.safetensors", "../blender_addon/contract/a.py"],
)
def test_programs_differ_by_sources_and_by_what_the_weights_hold(backend, changed):
    file = backend / changed
    file.write_bytes(b"as it was")
    before = versions.program_key.__wrapped__()
    assert before == versions.program_key.__wrapped__()
    file.write_bytes(b"trained n")  # of the same size, as weights that were trained anew
    assert before != versions.program_key.__wrapped__()


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("splatting/fit.py", True),
        ("pictures.py", True),
        ("weights/small/model.json", True),
        ("../blender_addon/contract/clip.py", True),
        ("service/api.py", False),
    ],
)
def test_results_of_rooms_stand_as_long_as_what_they_are_made_with(backend, changed, matters):
    (backend / changed).write_bytes(b"as it was")
    before = versions.code_key("splatting")
    (backend / changed).write_bytes(b"otherwise")
    assert (before != versions.code_key("splatting")) == matters
