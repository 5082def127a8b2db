"""A watchdog for ranks that freeze. No torch, no MPI.

A rank that is killed or that raises ends the others, but one that hangs leaves them waiting forever. So each rank has a
thread that writes a sign of life into a file and reads that of the next rank; the last rank's next is the first. That is
one small file per rank, however many there are, and no messages, since MPI itself may hang. A single rank writes one, too,
for those who follow the run (`run.state.Pulse`).
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("repro")

LONGEST_TICK = 2.0  # seconds between two signs of life
VERDICT = "verdict"  # the file that tells all ranks to write their stacks
NO_SIGN = ["", "", "1", "a host not known", "not known", "the start"]  # of a rank that has not given one


class Watchdog:
    """Within its block, ends all ranks if the next one freezes (a stopped process, a lost node) or makes no progress.

    `world` has this rank's state: `beats` is its number of signs of progress, `waits` is whether it is in a collective, `at`
    is its position in words. `folder` is visible to all ranks; rank 0 has created it, empty. `patience` is the number of
    seconds that a rank may be silent, or compute without a beat.
    """

    def __init__(self, world, folder: Path, patience: float):
        self.world, self.folder, self.patience = world, folder, patience
        self.tick = min(patience / 10, LONGEST_TICK)
        self.over = threading.Event()
        self.left = ""  # where this rank was, in words, when it left the block
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        """Several ranks are watched until rank 0 has recorded how the run ended: one may freeze before that."""
        if self.world.size > 1:
            self.left = self.world.at
        else:
            self.over.set()
            self.thread.join()

    def _watch(self) -> None:
        rank, number = (self.world.rank + 1) % self.world.size, 0
        before = NO_SIGN  # the next rank's last sign of life: it may freeze before it has given any
        lived = progressed = woken = time.monotonic()
        told = False
        while not self.over.wait(self.tick):
            number += 1
            failed = self._write(
                str(self.world.rank),
                f"{number} {self.world.beats} {self.world.waits:d} {socket.gethostname()} {os.getpid()} {self.world.at}",
            )
            if self.left and (isinstance(failed, FileNotFoundError) or self.world.at != self.left):
                return  # a run whose end is recorded has no such folder any more; or these ranks are at another one
            if self.world.size == 1:  # it has no other to watch
                continue
            if self._read(VERDICT):
                self._write_stacks()
                return
            now, sign = time.monotonic(), self._read(str(rank)).split(" ", 5)
            if failed and not told:
                log.warning("rank %d cannot write its sign of life (%s): no rank is watched meanwhile", self.world.rank, failed)
                told = True
            # This rank was suspended itself, or cannot write, and the next one probably neither: its silence says nothing.
            if failed or now - woken > self.patience / 2:
                lived = progressed = now
            woken = now
            if len(sign) < 6:  # not there yet, or just being written
                sign = before
            if sign[0] != before[0]:
                lived = now
            if sign[1] != before[1] or sign[2] == "1":
                progressed = now
            before = sign
            if now - lived > self.patience:
                self._end(rank, before, "is frozen, or its machine is lost: it gave no sign of life")
            elif now - progressed > self.patience and now - lived < 3 * self.tick:  # otherwise it may be frozen
                self._end(rank, before, "hangs: it is alive but has made no progress")

    def _end(self, rank: int, sign: list[str], what: str) -> None:
        """Names the rank and ends all ranks."""
        _, _, _, host, process, where = sign
        verdict = (
            f"rank {rank} (process {process} on {host}) {what} for {self.patience:g} seconds, at {where}. All ranks are "
            f"ended; the stacks of the others are in {self.folder}/*.stack. The same command continues the run."
        )
        self._write(VERDICT, verdict)
        self._write_stacks()
        time.sleep(2 * self.tick)  # so that the others can write theirs
        if self.over.is_set():  # the rank has resumed
            return
        print(f"error: {verdict}", file=sys.stderr, flush=True)
        time.sleep(1)  # so that mpiexec has passed it on: what it has not when it is asked to abort is lost
        threading.Timer(2, os._exit, [1]).start()  # in case MPI itself hangs
        self.world.abort()

    def _write_stacks(self) -> None:
        # If they cannot be written, the verdict alone must be enough.
        with suppress(OSError), open(self.folder / f"{self.world.rank}.stack", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    def _write(self, name: str, text: str) -> OSError | None:
        """Returns why it could not be written: a full disk or a deleted folder, which the run itself may not notice."""
        try:
            (self.folder / name).write_text(text)
            return None
        except OSError as error:
            return error

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except OSError:
            return ""
