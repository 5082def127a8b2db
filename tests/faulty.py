"""`python -m repro ...` with faults in it, for tests/test_faults.py. Nothing of this is in the package.

    FAULT=kind@rank@place,... FAULT_FILE=file python tests/faulty.py train collapsed_ensemble ...

place   step-N (N steps are done, the next one begins), work-N (a worker of that step is computed), evaluation-N (in the
        evaluation after N steps), snapshot-N (it is written), saving-N (of the checkpoint's two files the first is
        written), saved-N, ending-N (the end of the run is about to be recorded)
kind    pause   writes its process id to FAULT_FILE, then waits as long as that file is there: for a signal from outside
        raise, hang, slow (for seconds, with beats), nan, inf, flip (one bit of this rank's weights)
        versions (this rank has another torch; no place)
SAVES   seconds between checkpoints at rows and between those at any step; "0,600" if it is not set
CLOCK   a file: as soon as it is there, the clock is so many seconds off as it says
"""

import os
import re
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import torch

from repro import __main__ as program
from repro import journal, train
from repro.images.data import Images
from repro.model import Network
from repro.ranks import comm
from repro.run import checkpoint, identity, records


def run(fault: str, file: str, **parameters) -> str:
    """What engines are given to do: `train.train` with a fault in it."""
    faults[:] = [fault.split("@")]
    os.environ["FAULT_FILE"] = file
    return train.train(**parameters)


faults = [fault.split("@") for fault in os.environ.get("FAULT", "none@0@nowhere").split(",")]
rows, steps = os.environ.get("SAVES", "0,600").split(",")
journal.CHECKPOINT_SECONDS, journal.LONGEST_SECONDS = float(rows), float(steps)
spoilt = {"nan": float("nan"), "inf": float("inf")}


def arrive(what: str, network=None) -> None:
    """Does what FAULT says if this is its place; `world.at` tells the step."""
    world = comm.world()
    done = re.search(r"step (\d+)", world.at)
    done = int(done[1]) - (what in ("step", "work")) if done else 0
    now = next((kind for kind, rank, place in faults if int(rank) == world.rank and place == f"{what}-{done}"), "none")
    faults[:] = [fault for fault in faults if fault[0] != now]  # once
    if now == "pause":
        file = Path(os.environ["FAULT_FILE"])
        file.with_suffix(".new").write_text(str(os.getpid()))
        file.with_suffix(".new").rename(file)
        while file.exists():
            time.sleep(0.005)
    elif now == "raise":
        raise OSError("on purpose")
    elif now == "hang":
        time.sleep(10**6)
    elif now == "slow":
        for _ in range(25):
            time.sleep(0.2)
            world.beat()
    elif now == "flip":
        network.weights[7:8].view(torch.int32).bitwise_xor_(1 << 20)
    elif now in spoilt:
        network.contribution[7] = spoilt[now]


def before(module, name: str, *arrival) -> None:
    original = getattr(module, name)

    def patched(*arguments, **named):
        arrive(*arrival)
        return original(*arguments, **named)

    setattr(module, name, patched)


original_average, original_contribute = train.average_over_workers, Network.contribute
original_save, original_replacing = checkpoint.save, checkpoint.replacing


def average(replica, batches, workers):
    arrive("step", replica.network)
    return original_average(replica, batches, workers)


def contribute(network, *arguments):
    contribution = original_contribute(network, *arguments)
    arrive("work", network)
    return contribution


def save(path, tensors, progress):
    original_save(path, tensors, progress)
    arrive("saved" if path.parent.name == "checkpoints" else "snapshot")


def replacing(path):
    if Path(path).parent.name == "checkpoints" and Path(path).suffix == ".json":
        arrive("saving")
    return original_replacing(path)


train.average_over_workers, Network.contribute = average, contribute
checkpoint.save, checkpoint.replacing = save, replacing
before(Images, "test_batch", "evaluation")
before(records.Run, "end", "ending")

if "CLOCK" in os.environ:
    real_time, clock = time.time, Path(os.environ["CLOCK"])

    def off() -> float:
        return float(clock.read_text()) if clock.exists() else 0.0

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(seconds=off())

    time.time, identity.datetime = lambda: real_time() + off(), Clock

if any(kind == "versions" and comm.world().rank == int(rank) for kind, rank, _ in faults):
    versions = identity.package_versions()
    identity.package_versions = lambda: versions | {"torch": "0.0"}

if __name__ == "__main__":
    sys.exit(program.run())
