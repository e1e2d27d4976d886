# SPDX-License-Identifier: GPL-3.0-or-later
"""Child processes that answer questions: none is left, whenever somebody has enough of them."""

import time
from pathlib import Path

import pytest

from backend.data import children
from backend.data.children import Child, ask_all


class Enough(Exception):  # noqa: N818 - a wish
    """Somebody wants it to end."""


def test_a_child_that_is_just_being_started_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(10)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start, started = Child._start, []

    def late(child: Child):
        time.sleep(0.5)  # a busy machine
        started.append(start(child))
        return started[-1]

    monkeypatch.setattr(Child, "_start", late)
    wait = children.wait
    monkeypatch.setattr(children, "wait", lambda waiting, **_: wait(waiting, timeout=0.05))  # tells soon

    def tick(answered: int) -> None:
        raise Enough

    begun = time.monotonic()
    with pytest.raises(Enough):
        list(ask_all({"one": {}}, "sleeper", 1, tmp_path / "log", fresh=False, tick=tick))
    assert time.monotonic() - begun < 5
    assert [process.poll() is not None for process in started] == [True]
