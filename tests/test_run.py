# SPDX-License-Identifier: GPL-3.0-or-later
"""run.py: environments by the hash of what they are made from, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import run
from backend import interpreter

ROOT = Path(run.__file__).parent


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """Set-up in an empty folder, where making an environment only makes its folder; yields what was made."""
    made = []

    def fake_logged(command, log, echo=False):
        if command[1:3] == ["-m", "venv"]:
            made.append(Path(command[3]))
            made[-1].mkdir()

    monkeypatch.setattr(run, "ENVIRONMENTS", tmp_path / ".venv")
    monkeypatch.setattr(run, "run_logged", fake_logged)
    monkeypatch.setattr(run, "install", lambda python, requirements, log, packages: None)
    return made


def test_an_environment_is_made_once(sandbox) -> None:
    first = run.ready_python()
    assert run.ready_python() == first
    assert len(sandbox) == 1
    assert (sandbox[0] / run.STAMP).exists()


def test_other_dependencies_get_another_environment_and_the_old_one_goes(sandbox, monkeypatch) -> None:
    run.ready_python()
    monkeypatch.setattr(run, "read_requirements", lambda: ["torch==2.14.0"])
    run.ready_python()
    old, new = sandbox
    assert not old.exists()
    assert (new / run.STAMP).exists()


def test_an_environment_stays_while_something_runs_from_it(sandbox, monkeypatch, capsys) -> None:
    run.ready_python()
    (old,) = sandbox
    code = "import sys; from backend import interpreter; interpreter.ROOT = interpreter.Path(sys.argv[1])\n"
    code += "sys.prefix = sys.argv[2]\nwith interpreter.environment_held(): print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(old.parent.parent), str(old)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as backend:
        assert backend.stdout.readline() == "held\n"
        monkeypatch.setattr(run, "read_requirements", lambda: ["torch==2.14.0"])
        python = run.ready_python()
        assert (old / run.STAMP).exists()
        assert f"{old} stays" in capsys.readouterr().out
        backend.kill()  # as when it crashes: nothing cleans up
    assert run.setup(python, []) == 0
    assert not old.exists()
    assert python.parent.parent.exists()


def test_a_virtual_environment_that_is_the_users_stays(sandbox, monkeypatch) -> None:
    """`python -m venv .venv` in the checkout, from which set-up may even run."""
    for name in ("bin", "lib", "Scripts"):
        (run.ENVIRONMENTS / name).mkdir(parents=True)
    (run.ENVIRONMENTS / "0123456789ab.gone").mkdir()
    run.ready_python()
    assert {path.name for path in run.ENVIRONMENTS.iterdir() if path.is_dir()} == {
        "bin",
        "lib",
        "Scripts",
        sandbox[0].name,
    }


@pytest.mark.parametrize("by_a_link", [False, True])
def test_processes_of_one_number_hold_an_environment_together(tmp_path, monkeypatch, by_a_link) -> None:
    """As in two containers, which count processes each for itself."""
    folder = tmp_path / "here" / ".venv" / "0123456789ab"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.setattr(interpreter, "ROOT", tmp_path / "here")
    monkeypatch.setattr(
        interpreter.sys, "prefix", str(tmp_path / ("link" if by_a_link else "here") / ".venv" / folder.name)
    )
    with interpreter.environment_held():
        with interpreter.environment_held():
            assert len(list(folder.iterdir())) == 2
        assert run.in_use(folder)
    assert not list(folder.iterdir())


def test_a_full_disk_keeps_nobody_from_starting(tmp_path, monkeypatch) -> None:
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    folder = tmp_path / ".venv" / "0123456789ab"
    folder.mkdir(parents=True)
    monkeypatch.setattr(interpreter, "ROOT", tmp_path)
    monkeypatch.setattr(interpreter.sys, "prefix", str(folder))
    monkeypatch.setattr(run, "ENVIRONMENTS", folder.parent)
    monkeypatch.setattr("os.open", full)
    monkeypatch.setattr("builtins.open", full)
    with interpreter.environment_held(), run.held(folder):
        pass


def test_what_run_itself_starts_counts_as_well(sandbox) -> None:
    run.ready_python()
    (folder,) = sandbox
    with run.held(folder):
        assert run.in_use(folder)
    assert not run.in_use(folder)
    assert [path.name for path in folder.iterdir()] == [run.STAMP]


def test_what_killed_processes_have_left_goes(sandbox) -> None:
    run.ready_python()
    (folder,) = sandbox
    left, fresh = folder / "in-use-1-of-killed.lock", folder / "in-use-2-about-to-be-taken.lock"
    for path in (left, fresh):
        path.touch()
    os.utime(left, (0, 0))
    with run.held(folder):
        os.utime(folder / f"in-use-{os.getpid()}.lock", (0, 0))
        assert run.in_use(folder)
        assert not left.exists()
    assert sorted(path.name for path in folder.iterdir()) == [fresh.name, run.STAMP]


def test_an_interrupted_set_up_is_repaired_by_the_next_run(sandbox, monkeypatch) -> None:
    def interrupted(*_):
        (sandbox[-1] / "half").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.ready_python()
    assert not (sandbox[0] / run.STAMP).exists()
    run.ready_python()
    assert (sandbox[0] / run.STAMP).exists()
    assert not (sandbox[0] / "half").exists()


@pytest.mark.slow
def test_a_failed_installation_says_why_and_leaves_nothing_that_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "ENVIRONMENTS", tmp_path / ".venv")
    monkeypatch.setattr(run, "read_requirements", lambda: [str(tmp_path / "no-such-package.whl")])
    with pytest.raises(run.SetupError, match="no-such-package") as caught:
        run.ready_python()
    assert "run the same command again" in str(caught.value)
    assert not list((tmp_path / ".venv").glob(f"*/{run.STAMP}"))


def test_python_from_windows_store_is_refused_before_anything_is_fetched(tmp_path) -> None:
    store = r"C:\Users\ada\AppData\Local\Microsoft\WindowsApps\PythonSoftwareFoundation.Python.3.11_x"
    base = run.Base(rf"{store}\python.exe", "3.11")
    with pytest.raises(run.SetupError, match=r"python\.org"):
        run.make_environment(tmp_path / "new", base, [])
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_is_the_network_that_is_named(tmp_path) -> None:
    said = f"{run.RETRY} (Retry(total=4)) after connection broken by 'NewConnectionError'\n" * 10
    with open(tmp_path / "setup.log", "w+", encoding="utf-8") as log:
        log.write(said + "ERROR: No matching distribution found for numpy<2.6\n")
        text = run.failure_text(log)
    assert "check the network connection, and the proxy" in text
    assert "numpy<2.6" in text
    assert run.RETRY not in text


def test_a_checkout_that_cannot_be_written_is_told_in_a_sentence(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / ".venv").write_text("in the way")
    monkeypatch.setattr(run, "ENVIRONMENTS", tmp_path / ".venv")
    assert run.main(["setup"]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / ".venv") in said
    assert "belongs to you" in said


def test_the_environments_own_python_means_the_same_environment() -> None:
    code = "import run; print(run.environment_key(run.read_requirements(), run.base_python()))"
    keys = {
        subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for python in (sys.executable, getattr(sys, "_base_executable", sys.executable))
    }
    assert len(keys) == 1


@pytest.mark.slow
def test_relative_folders_are_the_users(tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the user')")
    (tmp_path / "orbit").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run.run_module(Path(sys.executable), "backend", ["construct", "--orbit", "orbit", "--out", "a.npz"]) == 1
    said = capfd.readouterr().err
    assert "orbit" in said
    assert "a module of the user" not in said
    calls = []
    monkeypatch.setattr(run.subprocess, "call", lambda command, **options: calls.append(command) or 0)
    monkeypatch.setattr(run.Path, "glob", lambda self, pattern: iter([Path("blender_ext.py")]))
    assert run.build(Path(sys.executable), ["--out", "here"]) == 0
    assert calls[-1][-1] == str(tmp_path / "here")


def test_what_is_compiled_is_kept_for_the_next_process(monkeypatch) -> None:
    """Also where containers set this variable: else each of the tests' processes compiles the whole project."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import sys; sys.exit(sys.dont_write_bytecode)"
    for environment, told in ((run.child_environment(), 0), (None, 1)):
        assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dance"], "no command 'dance'"),
        ([], "python run.py demo"),
        (["build", "--output", "x"], "--out DIR alone"),
        (["setup", "now"], "no options"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_set_up(words, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run, "ready_python", lambda: pytest.fail("set up"))
    assert run.main(words) == 2
    assert said in capsys.readouterr().err


def test_help_is_no_error(capsys) -> None:
    assert run.main(["--help"]) == 0
    assert "python run.py demo" in capsys.readouterr().out


def test_a_second_set_up_waits_for_the_first_on_windows_too(tmp_path, monkeypatch, capsys):
    """There the lock is asked for again and again: the system's own waiting ends after 10 s with an error."""
    answers = [PermissionError(13, "Permission denied")] * 20 + [None]

    def locking(number: int, mode: int, count: int) -> None:
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2, LK_LOCK=1))
    monkeypatch.setattr(run, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    with run.one_at_a_time(tmp_path / "lock"):
        assert not answers
    assert capsys.readouterr().out.count("waiting for it") == 1
