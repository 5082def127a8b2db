"""Requests to stop, as signals from outside, and the signs of life that ranks write."""

import signal
import sys
import time

from conftest import launch, python

LISTEN = """
import logging, signal, sys
from repro.ranks import watch
logging.basicConfig(level=logging.INFO, format="%(message)s")
"""


def test_a_request_in_the_middle_of_a_write_is_taken_and_told(tmp_path):
    """The pipe is full, so the process waits within a write to standard error when the signal comes."""
    code = LISTEN + (
        "watch.listen(signal.SIGUSR1); print('ready', flush=True)\n"
        "sys.stderr.write('x' * 10**6 + '\\n'); sys.stderr.flush(); print(watch.asked.is_set())"
    )
    process = launch(sys.executable, "-c", code, PYTHONUNBUFFERED="")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    told, said = process.communicate(timeout=20)
    assert (process.returncode, told) == (0, "True\n"), said[-500:]
    assert "asked to stop by SIGUSR1: after this step" in said


def test_a_request_while_another_is_dropped_does_not_wait_for_it():
    code = LISTEN + (
        "logging.disable()\nsignal.alarm(20)\n"  # ends the process if it hangs
        "watch.listen(signal.SIGUSR1)\nwatch.ONE = 1e9\n"
        "import os, threading\n"
        "over = threading.Event()\n"
        "def ask():\n    while not over.is_set(): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "thread = threading.Thread(target=ask); thread.start()\n"
        "for _ in range(300_000): watch.asked.clear()\n"
        "over.set(); thread.join(); print('done')"
    )
    said = python("-c", code, timeout=40)
    assert said.stdout == "done\n", said.returncode
