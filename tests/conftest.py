# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which files of tests are handed to the processes that run them, and how these end; a GPU for those that
only pretend; films without a process."""

import ctypes
import gc
import json
import sys
from collections import Counter
from dataclasses import asdict

import pytest

CRASHED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported here lives to the end: the garbage collector does not look through it again and again.

    Its millions of objects cost seconds while they come, and a third of a second at each full collection after.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_configure(config):
    """All of it goes in the end, after pytest has had garbage collected; so does Blender's module, which then quits."""
    config.add_cleanup(end_without_waiting)
    config.add_cleanup(gc.unfreeze)


def end_without_waiting():
    """Where anything has kept Blender's module, such as a thread, Blender has not quit when Python has.

    glibc would then destroy what Blender's threads wait for, and wait for them forever. The process ends before that,
    with its code.
    """
    if "bpy" in sys.modules and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.fflush(None)  # what Blender has printed
        libc.on_exit(libc._exit, None)  # called with the code, before all that libraries have registered until now


def pytest_collection_modifyitems(items):
    """The window's files come first, then those with slow tests, then those with many: what began last would be waited
    for by all others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    count = Counter(item.path for item in items)
    items.sort(  # stable
        key=lambda item: (item.get_closest_marker("window") is None, item.path not in slow, -count[item.path])
    )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """One of pytest-xdist's processes has ended, with an error where it crashed."""
    if error:
        node.config.stash[CRASHED] = True


def pytest_sessionfinish(session):
    """A run is no success without the tests of a process that crashed, also where it crashed between two tests."""
    harmless = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if CRASHED in session.config.stash and session.exitstatus in harmless:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def card():
    """A pretended CUDA device (see fake_cuda)."""
    from tests.fake_cuda import fake_cuda

    with fake_cuda() as pretended:
        yield pretended


@pytest.fixture
def decoded_here(monkeypatch):
    """The decoder of films answers in this process, without limits: one of its own takes 0.3 s to begin."""
    from backend.video import decoder, reading

    def answer(question, folder, run, seconds) -> None:
        (folder / "question.json").write_text(json.dumps(asdict(question)), encoding="utf-8")
        decoder.main([str(folder / "question.json")])

    monkeypatch.setattr(decoder, "limit_process", lambda question: None)
    monkeypatch.setattr(reading, "_run_decoder", answer)
