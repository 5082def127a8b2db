"""Both batch scripts under a real Slurm of two nodes, with each MPI that is here, and what a cluster does to a run.

The nodes share this machine (`slurm_nodes`), so what lies between machines, their network and their file systems, is not
tested.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import slurm_nodes

from repro.run import records

from conftest import ROOT

MINE = """
import os, time
from torch import nn
from repro.schedule import Recipe, Stage

class Slow(nn.Module):
    def forward(self, images):
        if self.training:
            time.sleep(float(os.environ.get("PACE", "0")))  # the run lasts, but needs no core
        return images

def net(classes, channels):
    return nn.Sequential(Slow(), nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(32, classes))

def of(name, steps):
    return Recipe(name, (Stage("main", steps, 0.01, member=True),), workers=2, images_per_worker=4, epoch_images=16)

short, long = of("short", 8), of("long", 200)
"""
PACE = "0.1"  # seconds of a pass: the long recipe takes 20 on two ranks
END = 60  # seconds within which an undisturbed job ends


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    if reason := slurm_nodes.missing():
        pytest.skip(reason)
    with slurm_nodes.two_nodes(tmp_path_factory.mktemp("slurm")) as nodes:
        yield nodes


@pytest.fixture
def nodes(up):
    """Two idle nodes."""
    yield up
    up.clear()


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> SimpleNamespace:
    """A file of our own recipes, and a data set of noise."""
    from repro.images import packed

    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    preprocessing = packed.Preprocessing(size=14, short_side=16, mean=(127.0,), scale=(1 / 50,), mirror=False)
    for split, count in (("train", 16), ("test", 4)):

        def items(start, count=count):
            for number in range(start, count):
                noise = np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)
                yield packed.Item(number % 2, cv2.imencode(".png", noise)[1].tobytes())

        packed.write(folder / "data" / f"{split}.lmdb", "data", split, ["a", "b"], items, preprocessing=preprocessing)
    return SimpleNamespace(file=folder / "mine.py", data=folder / "data")


@pytest.fixture(scope="module")
def digest(mine, tmp_path_factory) -> Callable[[str], str]:
    """digest(recipe): of the weights after an undisturbed run in this process."""
    from repro.train import train

    found = {}

    def of(recipe: str, seed: int = 0) -> str:
        if (recipe, seed) not in found:
            out = str(tmp_path_factory.mktemp("undisturbed"))
            model = f"{mine.file}:net"
            folder = train(f"{mine.file}:{recipe}", str(mine.data), model=model, out=out, seed=seed, device="cpu")
            found[recipe, seed] = records.read(folder)["weights_sha256"]
        return found[recipe, seed]

    return of


class Job:
    """A batch job."""

    def __init__(self, nodes: slurm_nodes.Nodes, number: str, log: Path, out: Path):
        self.nodes, self.number, self._log, self.out = nodes, number, log, out

    def __getattr__(self, name: str) -> str:
        """What `scontrol show job` says of it, such as JobState."""
        return re.search(rf"\b{name}=(\S*)", self.nodes.command("scontrol", "show", "job", self.number))[1]

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = END) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                shown = self.nodes.command("scontrol", "show", "job", self.number)
                pytest.fail(f"{what} did not come in {timeout} s: {self.log}\n{shown}{self.nodes.logs()}")
            time.sleep(0.1)

    def wait_for_steps(self, number: int = 3) -> None:
        """Waits until it trains; each epoch of the small recipes writes a row."""
        self.wait_for(lambda: len(self.rows()) >= number, f"{number} rows of metrics")

    def wait_for_end(self, timeout: float = END) -> str:
        """Waits until it has ended; returns its state and exit status."""
        running = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "PREEMPTED")
        self.wait_for(lambda: self.JobState not in running, "the end", timeout)
        return f"{self.JobState} {self.ExitCode}"

    def rows(self) -> list[str]:
        return [line for file in self.out.glob("*/metrics.jsonl") for line in file.read_text().splitlines()]

    def record(self) -> dict:
        (folder,) = self.out.iterdir()
        return records.read(folder)


@pytest.fixture
def submit(nodes, mine, tmp_path):
    """submit(*options, script=..., **environment): a job on both nodes, on one rank of each unless the options differ."""

    def sbatch(*options: str, script: str = "train.sbatch", arguments=(), recipe: str = "short", **environment) -> Job:
        out = Path(environment.get("OUT", tmp_path / "runs"))
        settings = {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "RECIPE": f"{mine.file}:{recipe}",
            "DATA": str(mine.data),
            "OUT": str(out),
            "ARGS": f"--model {mine.file}:net --device cpu --patience 20",
            "PRTE_ALLOW_RUN_AS_ROOT": "1",  # of Open MPI's mpiexec
            "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        layout = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/%j.log", f"--chdir={ROOT}"]
        path = ROOT / "slurm" / script
        number = nodes.command("sbatch", "--parsable", *layout, *options, path, *arguments, **settings | environment).strip()
        return Job(nodes, number, tmp_path / f"{number}.log", out)

    return sbatch


# --- train.sbatch -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_on_two_nodes_trains_the_weights_of_one_process(submit, digest):
    job = submit()
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert "all 2 ranks see each other" in job.log
    assert job.record()["ranks"] == 2 and job.record()["weights_sha256"] == digest("short")
