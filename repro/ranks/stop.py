"""Requests to stop a run after its step. No torch, no MPI.

A request is a signal: SIGINT (Ctrl-C) or SIGUSR1 (a batch system's warning before the time limit). The first one only
sets `asked`: the run ends after the current step, with a checkpoint. A second one stops at once.
"""

import logging
import os
import signal
import time
from contextlib import contextmanager, suppress

log = logging.getLogger("repro")

ONE = 1.0  # seconds: a launcher forwards a signal that the terminal has already sent to the ranks; both are one request


class Request:
    """Whether this process was asked to stop after the step.

    A threading.Event has a lock, for which a signal handler would wait forever if it interrupted whoever holds it.
    """

    def __init__(self):
        self._made = False

    def is_set(self) -> bool:
        return self._made

    def set(self) -> None:
        self._made = True

    def clear(self) -> None:
        self._made = False


asked = Request()  # of this process


def listen(*signals: int) -> None:
    """Treats these signals as requests to stop for the rest of this process's life; nothing is restored."""
    since = None

    def ask(number, frame):
        nonlocal since
        now = time.monotonic()
        if not asked.is_set():
            since = now
            asked.set()
            if log.isEnabledFor(logging.INFO):  # not by logging, since a write to the same stream may be interrupted
                again = "after this step, with a checkpoint; again to stop at once"
                with suppress(OSError):
                    os.write(2, f"asked to stop by {signal.Signals(number).name}: {again}\n".encode())
        elif since is None or now - since > ONE:
            raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, ask)


@contextmanager
def listening(*signals: int):
    """`listen` for as long as the block runs; a signal that the process was started to ignore stays ignored."""
    previous = {number: signal.getsignal(number) for number in signals}
    listen(*(number for number, handler in previous.items() if handler is not signal.SIG_IGN))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
