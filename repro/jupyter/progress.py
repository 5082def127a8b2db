"""Follows runs by their folders: curves and a bar in a notebook, lines of text elsewhere.

live       follows a run that any process trains
follow     shows a run until it is over
Many       shows many runs as one share of the work
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from repro import ReproError
from repro.jupyter.curves import Curves
from repro.paths import ROOT, RUNS
from repro.run import records
from repro.run.shapes import recipe_of
from repro.run.state import Pulse, attained, duration, elsewhere, find, left, living, outcome, pace, state, trained_by
from repro.schedule import Recipe

POLL = 0.5  # seconds between two looks at the folder
REDRAW = 1.0  # seconds between two drawings, at the least; and drawing takes at most a tenth of the time


# --- One run ----------------------------------------------------------------------------------------------------------


def live(folder: Path | str = RUNS) -> None:
    """Follows a run until it ends, whichever process trains it: another notebook, mpiexec or a batch job.

    `folder` is a run's folder, its name in results/runs, or a folder of runs: then the one that was started last of those
    being trained. An interrupt ends only the following. Raises ReproError if there is no run.
    """
    several = next((place for place in (Path(folder), ROOT / folder) if next(place.glob("*/run.json"), None)), None)
    if several:
        folder = several.resolve()
        known = records.all_runs(folder)
        if any(map(elsewhere, known)):
            print("looking for signs of life from other machines ...", flush=True)
        running = sorted(living(known), key=lambda run: records.read(run)["start"])
        if not running:
            print(f"no run is being trained in {folder}")
            return
        if running[1:]:
            print(f"{len(running)} runs are being trained: {', '.join(run.name for run in running)}")
        folder = running[-1]
    elif Path(folder).is_dir() and not Path(folder, "run.json").exists():
        raise ReproError(f"there is no run in {folder}: give a run's folder, its name, or a folder of runs")
    else:
        folder = find(str(folder))
    owner, run = trained_by(folder), records.read(folder)
    if owner:
        print(f"{folder.name}: trained by {owner} since {run['start'].replace('T', ' ').replace('+00:00', ' UTC')}")
    rows = records.metric_rows(folder)
    try:
        follow(folder, in_notebook(), rows[-1]["step"] if rows and owner else 0)
    except KeyboardInterrupt:
        print("no longer followed; the run goes on" if trained_by(folder) else "no longer followed")
        return
    print(f"{folder.name}: {outcome(folder)[1]}")


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def follow(
    folder: Path | str, live: bool, step: int = 0, over: Callable[[], bool] | None = None, earlier: int = 0, board: Any = None
) -> None:
    """Shows a run as `Progress` does, until `over()`, by default until nobody trains it. `board.write` also gets the rows."""
    with Progress(folder, live, step, earlier) as progress:
        over = over or progress.pulse.over
        while True:
            finished = over()  # first, so that what was written before the end is shown
            rows = progress.look()
            if board:
                board.write(rows)
            if finished:
                return
            time.sleep(POLL)


class Progress:
    """Shows what is new in a run's folder at each `look`, on a `Display` or as `Lines`; says if the run stands still.

    Leaving the block draws the end and closes the bar; if it stayed open, the next one would write each update on a new line.
    """

    def __init__(self, folder: Path | str, live: bool, step: int = 0, earlier: int = 0):
        """`live`: curves and a bar, for JupyterLab; otherwise lines. `step`: how many were done before.

        The last `earlier` of the rows that are there already count as new.
        """
        self.folder, self.live, self.step = Path(folder), live, step
        self.recipe: Recipe | None = None  # known when the run has begun
        self.display: Display | Lines | None = None
        self.pulse, self.wrong = Pulse(self.folder), ""
        self.opened: tuple[float, int] | None = None  # when there was something to show first, and the steps done by then
        self.rows = records.Rows(folder)
        rows = self.rows.look()
        # What an earlier attempt wrote after its last checkpoint is dropped when the run continues.
        self.before = set(map(_identity, rows[: max(0, len(rows) - earlier)]))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.display:
            self.display.close()

    def look(self) -> list[dict]:
        """Shows what is new; returns the run's rows."""
        run = {} if self.recipe else records.read(self.folder)
        if run:
            self.recipe = recipe_of(run)
            self.display = Display(self.recipe, self.step) if self.live else Lines(self.recipe)
        if not self.recipe or not self.display:
            return []
        rows = self.rows.look()
        new = [row for row in rows if row["step"] > self.step and _identity(row) not in self.before]
        done = max([self.step, *(row["step"] for row in new)])
        if state(self.folder) == "running":  # otherwise its signs of life are those of an attempt that is over
            self.wrong = self.pulse.look(rows)
            done = max(done, self.pulse.step)
        since, first = self.opened = self.opened or (time.monotonic(), done)  # the first drawing took a while
        speed = pace(rows, min(5, len(new))) or (done - first) / max(time.monotonic() - since, 0.001)
        self.display.show(rows, new, done, bar(self.recipe, done, speed, new), self.wrong)
        return rows


def _identity(row: dict) -> tuple:
    return row["step"], row["seconds"]


def bar(recipe: Recipe, step: int, speed: float, rows: list[dict]) -> str:
    """How far a run is, as one line: epochs, images per second and the time left at a speed in steps per second."""
    text = f"{hashes(step / recipe.iterations)}  epoch {recipe.epochs(step):.1f} of {recipe.epochs():.4g}"
    if speed:
        text += f", {speed * recipe.global_batch:.3g} images/s{left(recipe.iterations - step, speed)}"
    return f"{text}  ({rows[-1]['stage']}, loss {rows[-1]['train_loss']:.3f})" if rows else text


def hashes(share: float) -> str:
    """A bar of text for a share of the work: [##########..........]  50%."""
    return f"[{'#' * round(20 * share):.<20}] {share:4.0%}"


class Lines:
    """A line for each metric row; on a terminal, a bar below them."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.line = recipe, Line()
        self.told, self.wrong = set(), ""

    def show(self, rows: list[dict], new: list[dict], step: int, bar: str, wrong: str) -> None:
        """As for `Display`."""
        for row in new:
            if _identity(row) not in self.told:
                self.line.print(records.describe(row, self.recipe.epochs()))
                self.told.add(_identity(row))
        if bool(wrong) != bool(self.wrong):
            self.line.print(wrong or "goes on")
        self.wrong = wrong
        self.line.update(f"{bar}; {wrong}" if wrong else bar)

    def close(self) -> None:
        self.line.clear()


class Display:
    """The figure of a run in a notebook, and a bar below it."""

    def __init__(self, recipe: Recipe, step: int):
        from IPython.display import display

        self.curves, self.line = Curves(recipe), Line(live=True)
        self.state: tuple[list[dict], int] = ([], step)  # metric rows, steps done
        self.drawn, self.next = self.state, 0.0
        # The figure comes first and the bar below it: text around a figure would be split into two outputs.
        self.handle = display(self.curves.image(*self.state), display_id=True)

    def show(self, rows: list[dict], new: list[dict], step: int, bar: str, wrong: str) -> None:
        """`rows` are all metric rows, `new` those of this attempt; `step` steps are done; `wrong` is what `Pulse.look` says."""
        self.state = rows, step
        self.line.update(f"{bar}; {wrong}" if wrong else bar)
        if time.monotonic() > self.next and self.state != self.drawn:
            self._draw()

    def close(self) -> None:
        if self.state != self.drawn:
            self._draw()
        self.line.end()

    def _draw(self) -> None:
        began = time.monotonic()
        self.handle.update(self.curves.image(*self.state))
        ended = time.monotonic()
        self.drawn, self.next = self.state, ended + max(REDRAW, 9 * (ended - began))


# --- Many runs --------------------------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """One of many runs that are to be trained."""

    recipe: str
    seed: int
    folder: Path  # of the run; or without the digest in which its name ends
    steps: int
    epochs: float
    cost: float  # of a step, in any unit
    variant: str = ""  # as in the run's record


class Many:
    """Many runs: a line for each that becomes complete, and all of them as one share of the work, with the time left.

    Reads the runs' records only, so it does not matter which process trains them.
    """

    def __init__(self, planned: list[Planned], line: "Line"):
        self.planned, self.line = planned, line
        self.total = sum(run.steps * run.cost for run in planned)
        self.besides: dict[str, float] = {}  # seconds that anything but training will take
        self.complete, self.new, self.training = set(), [], []  # new: since the last look; training: in words
        self.pace = 0.0  # work per second
        self.measure()

    def measure(self) -> None:
        """Measures the pace from now on: from the first progress, since what trains has to start first."""
        self._look()
        self.before, self.began = self.work, 0.0

    @property
    def share(self) -> float:
        return self.work / self.total

    def follow(self, over: Callable[[], bool]) -> None:
        """Shows the progress until `over()`."""
        while not over():
            self.show()
            time.sleep(POLL)

    def show(self) -> None:
        """Prints what is new since the last look, and the line that moves."""
        self._look()
        if self.work > self.before and not self.began:
            self.before, self.began = self.work, time.monotonic()
        elif self.work > self.before:
            self.pace = (self.work - self.before) / max(time.monotonic() - self.began, 0.001)
        rest = left(self.total - self.work, self.pace, sum(self.besides.values()))
        for number, (run, folder) in enumerate(self.new, start=len(self.complete) - len(self.new) + 1):
            which = f"run {number} of {len(self.planned)}: {run.recipe}, seed {run.seed}"
            took = duration(records.read(folder)["seconds"])
            self.line.print(f"{which}: {attained(folder)} after {took}; {self.share:.0%}{rest}")
        complete = f"{len(self.complete)} of {len(self.planned)} runs"
        self.line.update(", ".join([f"{hashes(self.share)}  {complete}{rest}", *self.training]))

    def close(self) -> None:
        """Shows the end."""
        self.show()
        self.line.clear()

    def find(self, run: Planned) -> Path | None:
        """The folder of a run; None if it was not begun."""
        return run.folder if (run.folder / "run.json").exists() else None

    def _look(self) -> None:
        self.work, self.new, self.training = 0.0, [], []
        for run in self.planned:
            if run not in self.complete and (folder := self.find(run)):
                now, rows = state(folder), records.metric_rows(folder)
                if now == "complete":
                    self.complete.add(run)
                    self.new.append((run, folder))
                elif rows:
                    self.work += rows[-1]["step"] * run.cost
                if now == "running":
                    recipe, at = recipe_of(records.read(folder)), rows[-1]["epoch"] if rows else 0
                    leading = {stage.name for stage in recipe.lineage(recipe.result)}  # other stages are side branches
                    last = next((row for row in reversed(rows) if "top1" in row and row["stage"] in leading), {})
                    top1 = f" (top-1 {100 * last['top1'] / last['images']:.2f}% in {last['stage']})" if last else ""
                    self.training.append(f"{run.recipe} seed {run.seed} at epoch {at:.0f} of {run.epochs:.0f}{top1}")
            if run in self.complete:
                self.work += run.steps * run.cost


# --- Lines of text ----------------------------------------------------------------------------------------------------


class Line:
    """A line that is written over and over, and others above it; on a terminal, or in a notebook if `live`.

    Elsewhere there are only the others, and this one every `every` seconds.
    """

    def __init__(self, live: bool = False, every: float = float("inf")):
        self.live, self.every, self.shown = live or sys.stdout.isatty(), every, ""
        self.next = time.monotonic() + every

    def print(self, text: str) -> None:
        self.clear()
        print(text, flush=True)

    def update(self, text: str) -> None:
        if self.live and text != self.shown:
            if sys.stdout.isatty():
                text = text[: (os.get_terminal_size(sys.stdout.fileno()).columns or 80) - 1]
            print(f"\r{text.ljust(len(self.shown))}", end="", flush=True)
            self.shown = text
        elif not self.live and time.monotonic() > self.next:
            self.next = time.monotonic() + self.every
            print(text, flush=True)

    def clear(self) -> None:
        if self.shown:
            print(f"\r{' ' * len(self.shown)}\r", end="", flush=True)
            self.shown = ""

    def end(self) -> None:
        """Leaves the line as it is, and what follows begins below it."""
        if self.shown:
            print(flush=True)
            self.shown = ""
