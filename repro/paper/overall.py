"""How far a reproduction is: a line for each run that becomes complete, and all of them as one share with the time left.

Reads the records of the runs only, so it does not matter which process trains them.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from repro import ReproError
from repro.images.packed import Packed, data_folder
from repro.jupyter.progress import Line
from repro.paper import questions
from repro.paper.profiles import DISTRIBUTED, Profile
from repro.recipes import RECIPES, shrink
from repro.run import identity, records
from repro.run.state import duration, state

DEEP = 3.0  # the cost of an image of the deep network, in images of the other
NOT_TRAINING = {"11-scaling": 60.0, "20-tables": 40.0}  # seconds that notebooks take, besides training and measuring
LOOK = 1.0  # seconds between two looks


class Planned(NamedTuple):
    """A run that a profile needs."""

    recipe: str
    seed: int
    prefix: str  # of its folder's name, which ends in a digest
    steps: int
    epochs: float
    cost: float  # of a step, in images of the smaller network


def planned(profile: Profile, images: int) -> list[Planned]:
    """The runs that a profile needs on a data set of so many training images."""
    wanted = [(DISTRIBUTED, 0)]
    for topic, seeds in profile.seeds.items():
        wanted += [(task["recipe"], task["seed"]) for task in questions.tasks("", "", list(range(seeds)), [topic])]
    found = []
    for name, seed in dict.fromkeys(wanted):
        small, deep = shrink(RECIPES[name], profile.shrink, images), RECIPES[name].model == "resnet152"
        cost = small.global_batch * (DEEP if deep else 1)
        found.append(Planned(name, seed, f"{small.name}-{profile.data}-seed{seed}-", small.iterations, small.epochs(), cost))
    return found


class Overall:
    """The progress of a reproduction of `profile`, whose data set is packed; `runs` is the folder of the runs."""

    def __init__(self, profile: Profile, runs: Path | str):
        train = Packed(data_folder(profile.data) / "train.lmdb", profile.data, "train")
        self.runs, self.planned = Path(runs), planned(profile, len(train))
        self.code, self.data = identity.code_digest(), train.manifest["sha256"]  # runs of other code or data do not count
        self.total = sum(run.steps * run.cost for run in self.planned)
        self.left = NOT_TRAINING | {"11-scaling": NOT_TRAINING["11-scaling"] + profile.scaling.get("seconds", 60)}
        self.line, self.looked, self.pace = Line(), 0.0, 0.0  # pace: work per second
        self.complete, self.new, self.training = set(), [], []
        self.began = time.monotonic(), self._look()

    def begin(self, name: str) -> None:
        """A notebook begins. How fast it trains is measured anew: not all notebooks share out the ranks alike."""
        self.line.print(name)
        self.began = time.monotonic(), self._look()

    def end(self, name: str) -> None:
        """It has ended."""
        self.left.pop(name, None)
        self.looked = 0.0
        self.show()
        self.line.clear()

    def show(self) -> None:
        """Prints what is new since the last look, and, on a terminal, the line that moves. Looks every `LOOK` seconds."""
        if time.monotonic() - self.looked < LOOK:
            return
        work = self._look()
        outlook = self._outlook(work)
        for run, folder in self.new:
            record = records.read(folder)
            top1, took = 100 * record["top1"] / record["images"], duration(record["seconds"])
            number = len(self.complete) - len(self.new) + self.new.index((run, folder)) + 1
            self.line.print(
                f"run {number} of {len(self.planned)}: {run.recipe}, seed {run.seed}: top-1 {top1:.2f}% after {took}; {outlook}"
            )
        self.line.update(", ".join([f"{len(self.complete)} of {len(self.planned)} runs, {outlook}", *self.training]))

    def _outlook(self, work: float) -> str:
        since, before = self.began
        if work > before:
            self.pace = (work - before) / max(time.monotonic() - since, 0.001)
        share = f"{work / self.total:.0%}"
        if not self.pace:
            return share
        return f"{share}, about {duration((self.total - work) / self.pace + sum(self.left.values()))} left"

    def _look(self) -> float:
        """Looks at all runs: sets `complete`, `new` (since the last look) and `training` (in words); returns the work done."""
        self.looked, self.new, self.training = time.monotonic(), [], []
        names, work = sorted(path.name for path in self.runs.glob("*")), 0.0
        for run in self.planned:
            if run not in self.complete and (folder := self._folder(run, names)):
                now, rows = state(folder), records.metric_rows(folder)
                if now == "complete":
                    self.complete.add(run)
                    self.new.append((run, folder))
                elif rows:
                    work += rows[-1]["step"] * run.cost
                if now == "running":
                    at = rows[-1]["epoch"] if rows else 0
                    self.training.append(f"{run.recipe} seed {run.seed} at epoch {at:.0f} of {run.epochs:.0f}")
            if run in self.complete:
                work += run.steps * run.cost
        return work

    def _folder(self, run: Planned, names: list[str]) -> Path | None:
        """The folder of a run, among those with these names; None if it was not begun."""
        for name in names:
            with suppress(ReproError):  # an earlier version's run, or a damaged one: training says what to do
                record = records.read(self.runs / name) if name.startswith(run.prefix) else {}
                if record and (record["code"], record["data"]["train"]) == (self.code, self.data):
                    return self.runs / name
        return None
