# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C and SIGTERM as a wish that the loop grants between two steps; the second one ends the process at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], str]]:
    """Yields a function that names the signal that came, "" while none has."""
    came: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield lambda: ""
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def remember(number: int, frame: object) -> None:
        came.append(signal.Signals(number).name)
        for other in SIGNALS:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield lambda: came[0] if came else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
