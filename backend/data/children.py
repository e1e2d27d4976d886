# SPDX-License-Identifier: GPL-3.0-or-later
"""Child processes that answer questions: one line of JSON in, one line out. What they print besides goes to a log.

Blender may end a process at any moment; then the parent loses one answer, not its work.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from backend.interpreter import own_process


class ChildDied(Exception):  # noqa: N818 - an event, which the caller turns into words
    """The process ended before it answered."""


class Child:
    """One child process that runs `python -m module`; started at the first question."""

    def __init__(self, module: str, log: Path) -> None:
        self._module, self._log = module, log
        self._process: subprocess.Popen | None = None

    def ask(self, question: dict) -> dict:
        """The child's answer.

        Raises:
            ChildDied: it ended instead; the next question starts a new one.
        """
        process = self._process = self._process or self._start()
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = b""
        if not line:
            code = process.wait()
            self.end()
            raise ChildDied(f"code {code}")
        return json.loads(line)

    def end(self) -> None:
        """End the process, at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError, ValueError):  # half a question, or another thread reads
                    pipe.close()

    def _start(self) -> subprocess.Popen:
        # Several children share the cores: threads inside each would only be in each other's way.
        threads = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        command, environment = own_process(self._module, **threads)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children
            )


def ask_all(
    questions: dict[str, dict], module: str, workers: int, log: Path, *, fresh: bool, tick: Callable[[int], None]
) -> Iterator[tuple[str, dict]]:
    """Ask several children; yields (key, answer) as they come. A child that dies answers {"error": text}.

    `fresh` gives every question a process of its own. `tick` hears about once a second how many are answered, and may
    raise. However this ends, no child is left.
    """
    children: queue.SimpleQueue[Child] = queue.SimpleQueue()
    all_children = [Child(module, log) for _ in range(workers)]
    for child in all_children:
        children.put(child)

    def ask(question: dict) -> dict:
        child = children.get()
        try:
            return child.ask(question)
        except ChildDied as error:
            return {"error": f"the process that did it is gone: {error}; see {log.name}"}
        finally:
            if fresh:
                child.end()
            children.put(child)

    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = {pool.submit(ask, question): key for key, question in questions.items()}
            while waiting:
                done, _ = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                tick(len(questions) - len(waiting))
                for future in done:
                    yield waiting.pop(future), future.result()
            tick(len(questions))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            busy = True
            while busy:  # one that is just being started is not there yet to be ended
                for child in all_children:
                    child.end()
                busy = wait(waiting, timeout=0.1).not_done


def answer_questions(answer: Callable[[dict], dict]) -> None:
    """The other end: answer questions from standard input until it closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Blender prints to standard output past Python
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        answers.flush()
