# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding, starting and stopping the backend process; what is missing is said in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.service import paths
from blender_addon import local_backend
from blender_addon.client import BackendError
from tests.addon.fake_backend import FakeBackend

ROOT = Path(__file__).resolve().parent.parent.parent


def make_checkout(folder: Path, main: str = "") -> Path:
    (folder / "backend").mkdir(parents=True)
    (folder / "backend" / "__main__.py").write_text(main)
    return folder


def make_environment(checkout: Path, name: str, is_ready: bool = True) -> Path:
    inside = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    python = checkout / ".venv" / name / inside
    python.parent.mkdir(parents=True)
    python.touch()
    if is_ready:
        (checkout / ".venv" / name / "ready").touch()
    return python


def test_the_checkout_that_the_extension_lies_in_is_tried() -> None:
    assert local_backend.find_installation("", sys.executable).folder == ROOT


def test_the_installation_that_set_up_noted_is_found(tmp_path, monkeypatch) -> None:
    home = paths.Home(tmp_path)
    paths.note_installation(home)
    elsewhere = tmp_path / "extensions" / "kinesplat" / "blender_addon" / "local_backend.py"
    monkeypatch.setattr(local_backend, "__file__", str(elsewhere))
    assert local_backend.find_installation("", sys.executable, tmp_path).folder == ROOT
    for damaged in ('{"folder": 1}', "{", '{"folder": "/nowhere"}'):
        (tmp_path / local_backend.INSTALLATION_FILE).write_text(damaged)
        with pytest.raises(BackendError, match="not known yet"):
            local_backend.find_installation("", sys.executable, tmp_path)


def test_no_checkout(tmp_path) -> None:
    with pytest.raises(BackendError) as caught:
        local_backend.find_installation(str(tmp_path))
    assert caught.value.code == "not_installed"
    assert str(tmp_path) in str(caught.value)


def test_not_set_up(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat")
    make_environment(checkout, "interrupted", is_ready=False)
    with pytest.raises(BackendError) as caught:
        local_backend.find_installation(str(checkout))
    assert caught.value.code == "not_installed"
    assert "python run.py setup" in caught.value.hint
    assert local_backend.find_checkout(str(checkout)) == checkout
    assert not local_backend.is_set_up(checkout)
    make_environment(checkout, "whole")
    assert local_backend.is_set_up(checkout)


def test_the_newest_environment_is_taken(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat")
    make_environment(checkout, "old")
    new = make_environment(checkout, "new")
    os.utime(checkout / ".venv" / "old" / "ready", (1, 1))
    assert local_backend.find_installation(str(checkout)).python == new


def test_a_wrong_python(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat")
    with pytest.raises(BackendError) as caught:
        local_backend.find_installation(str(checkout), str(tmp_path / "no-python"))
    assert "no Python" in str(caught.value)


def test_what_a_backend_says_when_it_cannot_start(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat", "raise SystemExit('The data directory cannot be written.')")
    installation = local_backend.Installation(checkout, Path(sys.executable))
    with pytest.raises(BackendError) as caught:
        local_backend.start(installation, tmp_path / "home")
    assert caught.value.code == "start_failed"
    assert str(caught.value).endswith("The data directory cannot be written.")
    assert local_backend.LOG_FILE in caught.value.hint


def test_a_python_that_is_none(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat")
    python = tmp_path / "python"
    python.write_text("not a program")
    with pytest.raises(BackendError) as caught:
        local_backend.start(local_backend.Installation(checkout, python), tmp_path / "home")
    assert caught.value.code == "not_installed"
    assert str(caught.value).startswith(f"{python} cannot be run as Python: ")
    assert "preferences" in caught.value.hint


def test_a_python_that_lacks_what_the_backend_needs(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat", "import no_such_module")
    with pytest.raises(BackendError) as caught:
        local_backend.start(local_backend.Installation(checkout, Path(sys.executable)), tmp_path / "home")
    assert caught.value.code == "start_failed"
    assert "Leave Python empty" in caught.value.hint
    assert local_backend.LOG_FILE in caught.value.hint


def test_a_data_folder_that_is_a_file(tmp_path) -> None:
    (tmp_path / "home").touch()
    checkout = make_checkout(tmp_path / "kinesplat")
    with pytest.raises(BackendError) as caught:
        local_backend.start(local_backend.Installation(checkout, Path(sys.executable)), tmp_path / "home")
    assert caught.value.code == "file_problem"
    assert str(tmp_path / "home") in str(caught.value)


def test_blenders_python_does_not_leak_into_the_backend(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/blender/scripts")
    monkeypatch.setenv("PYTHONHOME", "")
    program = "import os, sys; print({n: v for n, v in os.environ.items() if n.startswith(('PYTHON', 'KINESPLAT'))})"
    checkout = make_checkout(tmp_path / "kinesplat", f"{program}; raise SystemExit(sys.argv[1:])")
    with pytest.raises(BackendError):
        local_backend.start(local_backend.Installation(checkout, Path(sys.executable)), tmp_path / "home", port=4711)
    log = (tmp_path / "home" / local_backend.LOG_FILE).read_text()
    assert "PYTHONPATH" not in log
    assert "PYTHONHOME" not in log
    assert f"'KINESPLAT_HOME': '{tmp_path / 'home'}'" in log
    assert f"['serve', '--home', '{tmp_path / 'home'}', '--port', '4711']" in log


def test_starting_can_be_given_up(tmp_path) -> None:
    checkout = make_checkout(tmp_path / "kinesplat", "import time; time.sleep(60)")
    with pytest.raises(BackendError) as caught:
        local_backend.start(
            local_backend.Installation(checkout, Path(sys.executable)), tmp_path / "home", is_stopped=lambda: True
        )
    assert caught.value.code == "stopped"


def test_processes(tmp_path) -> None:
    assert local_backend.process_exists(os.getpid())
    assert not local_backend.process_exists(0)
    assert not local_backend.process_exists(-1)
    process = subprocess.Popen([sys.executable, "-c", ""])
    pid = process.pid
    process.wait()
    assert not local_backend.process_exists(pid)


def test_stopping_what_does_not_run(tmp_path) -> None:
    local_backend.stop(tmp_path)


def test_stopping_one_of_another_version(tmp_path, monkeypatch) -> None:
    """It goes on while extension and backend are updated; nothing else would end it."""
    monkeypatch.setattr(local_backend, "STOP_SECONDS", 0.1)
    with FakeBackend(tmp_path) as backend:
        backend.health["api_version"] = 99
        with pytest.raises(BackendError) as caught:
            local_backend.stop(tmp_path)
        assert caught.value.code == "stop_failed"  # its process is this one, which goes on
        assert ("POST", "/shutdown") in backend.calls


def test_an_old_server_file_is_not_believed(tmp_path) -> None:
    with FakeBackend(tmp_path) as backend:
        assert local_backend.answering(tmp_path).pid == os.getpid()
        backend.announce(started=backend.health["started"] - 60)
        with pytest.raises(BackendError) as caught:
            local_backend.answering(tmp_path)
        assert caught.value.code == "not_running"


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"port": "x", "pid": 1, "started": 0})])
def test_a_damaged_server_file(tmp_path, text) -> None:
    (tmp_path / "server.json").write_text(text)
    with pytest.raises(BackendError) as caught:
        local_backend.read_server(tmp_path)
    assert caught.value.code == "not_running"


def test_an_unreadable_token(tmp_path) -> None:
    with FakeBackend(tmp_path):
        (tmp_path / "token").unlink()
        with pytest.raises(BackendError) as caught:
            local_backend.read_server(tmp_path)
        assert caught.value.code == "wrong_token"
