# SPDX-License-Identifier: GPL-3.0-or-later
"""What names the program that made something."""

import pytest

from backend import versions


@pytest.mark.parametrize(
    "changed",
    ["splatting/fit.py", "training/a.toml", "weights/small/motion.safetensors", "../blender_addon/contract/a.py"],
)
def test_programs_differ_by_sources_and_by_what_the_weights_hold(tmp_path, monkeypatch, changed):
    backend = tmp_path / "backend"
    file = backend / changed
    for folder in ("splatting", "training", "weights/small", "../blender_addon/contract"):
        (backend / folder).mkdir(parents=True)
    monkeypatch.setattr(versions, "__file__", str(backend / "versions.py"))
    file.write_bytes(b"as it was")
    before = versions.program_key.__wrapped__()
    assert before == versions.program_key.__wrapped__()
    file.write_bytes(b"trained n")  # of the same size, as weights that were trained anew
    assert before != versions.program_key.__wrapped__()
