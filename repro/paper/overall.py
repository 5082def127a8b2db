"""How far a reproduction is: the runs that its profile needs, and the seconds that its notebooks spend on other things."""

import time
from contextlib import suppress
from pathlib import Path

from repro import ReproError
from repro.images.packed import Packed, data_folder
from repro.jupyter.progress import Line, Many, Planned
from repro.paper import ask, questions
from repro.paper.profiles import DISTRIBUTED, Profile
from repro.paths import REFERENCE
from repro.recipes import RECIPES, shrink
from repro.run import identity, kept, records

NOT_TRAINING = {"11-scaling": 60.0, "20-tables": 40.0}  # seconds that notebooks take, besides training and measuring


def planned(profile: Profile, images: int, runs: Path) -> list[Planned]:
    """The runs that a profile needs on a data set of `images` training images, in the folder `runs`.

    A run costs what the same recipe took in the reference, in core-seconds: the machines differ, but by about the same
    factor for all recipes. Where the reference has none, it costs its images, as if each took what one takes there.
    """
    wanted = [(DISTRIBUTED, 0, "")]
    for topic, seeds in profile.seeds.items():
        asked = questions.of([topic])
        variants = {side.training: side.variant for question in asked for side in question.sides}
        wanted += [(training[0], seed, variant) for seed in range(seeds) for training, variant in variants.items()]
    reference = [run for run in records.read_all(REFERENCE / "runs").values() if run["shrink"] == profile.shrink]
    smalls = {name: shrink(RECIPES[name], profile.shrink, images) for name, *_ in wanted}
    work = {name: small.images() * ask.DEEP.get(RECIPES[name].model, 1) for name, small in smalls.items()}
    costs, found = ask.costs(work, ask.core_seconds(reference)) or work, []
    for name, seed, variant in dict.fromkeys(wanted):
        small, cost = smalls[name], costs[name]
        folder = runs / f"{small.name}-{profile.data}-seed{seed}-"
        found.append(Planned(name, seed, folder, small.iterations, small.epochs(), cost / small.iterations, variant))
    return found


class Overall(Many):
    """The progress of a reproduction of `profile`, whose data set is packed; `runs` is the folder of the runs."""

    def __init__(self, profile: Profile, runs: Path | str):
        train = Packed(data_folder(profile.data) / "train.lmdb", profile.data, "train")
        self.code, self.data = identity.code_digest(), train.manifest["sha256"]  # runs of other code or data do not count
        self.profile = profile
        super().__init__(planned(profile, len(train), Path(runs)), Line())
        self.fresh = not any(map(self.find, self.planned))
        self.at: tuple[str, float] = ("", 0.0)  # what began last, and when
        self.spent: dict[str, float] = {}  # seconds of what has ended
        self.besides = NOT_TRAINING | {"11-scaling": NOT_TRAINING["11-scaling"] + profile.scaling.get("seconds", 60)}

    @property
    def cost(self) -> str:
        """What the runs that are left take by those of the reference, in words; "" if none is. Known better after the first."""
        left = [run for run in self.planned if run not in self.complete]
        if not left:
            return ""
        runs = [run for run in records.read_all(REFERENCE / "runs").values() if run["shrink"] == self.profile.shrink]
        machines = sorted({run["processor"] for run in runs if run["data"]["name"] == self.profile.data})
        if not machines:
            return "the time left is known after the first run"
        minutes = sum(run.steps * run.cost for run in left) / 60
        which = "the others" if self.complete else "all runs"
        return (
            f"{which} take about {minutes:.0f} core-minutes if an image takes as long as in the reference "
            f"({' and '.join(machines)}); the time left here is known after the first"
        )

    def begin(self, name: str) -> None:
        """A notebook begins. How fast it trains is measured again, since notebooks use the ranks differently."""
        self.line.print(name)
        self.measure()
        self.at = name, time.monotonic()

    def end(self, name: str) -> None:
        """It has ended."""
        self.besides.pop(name, None)
        begun, when = self.at
        self.spent[begun] = time.monotonic() - when
        self.close()

    def _look(self) -> None:
        runs = self.planned[0].folder.parent  # listed once for all of them: it may have hundreds of folders
        found = {*runs.iterdir()} if runs.is_dir() else set()
        self.folders = sorted(found | {runs / name for name in kept.names(runs)})
        super()._look()

    def account(self, seconds: float, ranks: int) -> str:
        """Where the `seconds` of a reproduction went, in words; `ranks` trained at once. Empty if it continued one."""
        if not self.fresh:
            return ""
        runs = [records.read(folder) for folder in map(self.find, self.planned) if folder]
        walls = [(run, 1 if run["ranks"] > 1 else 1 / ranks) for run in runs]  # one run on all ranks, the others one each
        evaluating, training = (sum(run[name] * part for run, part in walls) for name in ("evaluating", "seconds"))
        probing = self.spent.get("11-scaling", 0.0)
        drawing = sum(spent for begun, spent in self.spent.items() if "20-tables" in begun)
        parts = {
            "training steps": training - evaluating,
            "evaluations and checkpoints": evaluating,
            "measuring steps": probing,
            "tables and figures": drawing,
            "the rest": seconds - training - probing - drawing,
        }
        return "where the time went: " + ", ".join(f"{name} {part / seconds:.0%}" for name, part in parts.items())

    def find(self, run: Planned) -> Path | None:
        wanted = self.code, self.data, run.variant
        for folder in (folder for folder in self.folders if folder.name.startswith(run.folder.name)):
            with suppress(ReproError):  # an earlier version's run, or a damaged one: training says what to do
                record = records.read(folder)
                if record and (record["code"], record["data"]["train"], record["variant"]) == wanted:
                    return folder
        return None
