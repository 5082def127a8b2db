"""Requests to stop, as signals from outside, and the signs of life that ranks write."""

import os
import signal
import sys
import time
from contextlib import suppress

import pytest

from repro.ranks import watchdog
from repro.ranks.comm import World

from conftest import launch, python

LISTEN = """
import logging, signal, sys
from repro.ranks import stop, watchdog
logging.basicConfig(level=logging.INFO, format="%(message)s")
"""


def test_a_request_in_the_middle_of_a_write_is_taken_and_told(tmp_path):
    """The pipe is full, so the process waits within a write to standard error when the signal comes."""
    code = LISTEN + (
        "stop.listen(signal.SIGUSR1); print('ready', flush=True)\n"
        "sys.stderr.write('x' * 10**6 + '\\n'); sys.stderr.flush(); print(stop.asked.is_set())"
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
        "stop.listen(signal.SIGUSR1)\nstop.ONE = 1e9\n"
        "import os, threading\n"
        "over = threading.Event()\n"
        "def ask():\n    while not over.is_set(): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "thread = threading.Thread(target=ask); thread.start()\n"
        "for _ in range(300_000): stop.asked.clear()\n"
        "over.set(); thread.join(); print('done')"
    )
    said = python("-c", code, timeout=40)
    assert said.stdout == "done\n", said.returncode


def test_a_single_rank_gives_signs_of_life_and_is_not_ended_by_itself(tmp_path, monkeypatch):
    """Whoever follows the run from another machine sees nothing else; and a step of many workers may take long."""
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda *_: pytest.fail("it has no other rank to judge it"))
    world, seen = World(), []
    world.at = "step 7 of 80"
    with watchdog.Watchdog(world, tmp_path, patience=0.5):
        for beat in range(2):
            deadline = time.monotonic() + 5
            while len(set(seen)) < 3 * (beat + 1) and time.monotonic() < deadline:
                time.sleep(0.02)
                seen += [(tmp_path / "0").read_text()] if (tmp_path / "0").exists() else []
            world.beat()
        time.sleep(1)  # without a beat
    numbers, beats, waits, hosts, processes, where = zip(*(sign.split(" ", 5) for sign in dict.fromkeys(seen) if sign))
    assert list(map(int, numbers)) == sorted(map(int, numbers)) and set(beats) == {"0", "1"}
    assert set(waits) == {"0"} and set(processes) == {str(os.getpid())} and set(where) == {"step 7 of 80"}


RANK = """
import os, sys, time
from pathlib import Path
from repro.ranks.comm import World
from repro.ranks.watchdog import Watchdog

class Rank(World):
    rank, size = int(sys.argv[1]), 2
    def abort(self):
        os._exit(9)

rank = Rank()
with Watchdog(rank, Path(sys.argv[2]), patience=1):
    while True:
        time.sleep(0.05)
        rank.beat()
"""


@pytest.mark.parametrize("pause", [0, 0.3])
def test_ranks_that_were_suspended_together_go_on(tmp_path, pause):
    """A batch system or a container stops all of them, and continues one after the other."""
    ranks = [launch(sys.executable, "-c", RANK, rank, tmp_path) for rank in range(2)]
    try:
        deadline = time.monotonic() + 20
        while not all((tmp_path / str(rank)).exists() for rank in range(2)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(3):
            time.sleep(0.5)
            for rank in ranks:
                rank.send_signal(signal.SIGSTOP)
            time.sleep(2)
            for rank in ranks:
                rank.send_signal(signal.SIGCONT)
                time.sleep(pause)
        time.sleep(1.5)
        assert [rank.poll() for rank in ranks] == [None, None] and not (tmp_path / "verdict").exists()
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_ranks_that_cannot_write_their_signs_do_not_take_each_other_for_frozen(tmp_path, monkeypatch, caplog):
    """Somebody removes their folder, or the disk is full: the run goes on, and says so."""
    ended, folder = [], tmp_path / "heartbeats"
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self, rank, *_: ended.append(rank))
    folder.mkdir()
    ranks = [World(), World()]
    for number, rank in enumerate(ranks):
        rank.rank, rank.size, rank.waits = number, 2, True
    with watchdog.Watchdog(ranks[0], folder, patience=0.5), watchdog.Watchdog(ranks[1], folder, patience=0.5):
        time.sleep(0.3)
        folder.rename(tmp_path / "gone")
        time.sleep(1.5)
    assert ended == [] and caplog.text.count("cannot write its sign of life") == 2


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("error", [None, OSError("no space left")])
def test_ranks_are_watched_until_the_end_of_the_run_is_recorded(tmp_path, monkeypatch, caplog, error, frozen):
    ended, folder = [], tmp_path / "heartbeats"
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self, rank, _, what: (ended.append((rank, what)), self.over.set()))
    folder.mkdir()
    ranks = [World(), World()]
    for number, rank in enumerate(ranks):
        rank.rank, rank.size, rank.waits, rank.at = number, 2, True, "step 80 of 80"
    with (
        suppress(OSError),
        watchdog.Watchdog(ranks[0], folder, patience=0.5) as first,
        watchdog.Watchdog(ranks[1], folder, patience=0.5) as second,
    ):
        time.sleep(0.3)
        if error:
            raise error
    if frozen:
        second.over.set()
        first.thread.join(timeout=20)
        assert [(rank, what[:9]) for rank, what in ended] == [(1, "is frozen")]
    else:
        time.sleep(1)
        folder.rename(tmp_path / "gone")  # as when rank 0 has recorded the end
        for each in (first, second):
            each.thread.join(timeout=20)
            assert not each.thread.is_alive()
        assert ended == [] and caplog.text == ""


def test_a_rank_that_freezes_before_its_first_sign_of_life_is_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self, *what: (said.append(what), self.over.set()))
    rank = World()
    rank.rank, rank.size, rank.waits = 0, 2, True
    with watchdog.Watchdog(rank, tmp_path, patience=0.5) as alone:
        alone.thread.join(timeout=20)
    assert [(number, what[:9]) for number, _, what in said] == [(1, "is frozen")]
