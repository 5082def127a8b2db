"""Follows runs by their folders: curves and a bar in a notebook, lines of text elsewhere.

live       follows a run that any process trains
follow     shows a run until it is over
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro import ReproError
from repro.jupyter.curves import Curves
from repro.paths import ROOT, RUNS
from repro.run import records
from repro.run.state import Pulse, elsewhere, find, left, living, outcome, pace, recipe_of, state, trained_by
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
        follow(folder, _in_notebook(), rows[-1]["step"] if rows and owner else 0)
    except KeyboardInterrupt:
        print("no longer followed; the run goes on" if trained_by(folder) else "no longer followed")
        return
    print(f"{folder.name}: {outcome(folder)[1]}")


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def follow(
    folder: Path | str, live: bool, step: int = 0, over: Callable[[], bool] | None = None, earlier: int = 0, board: Any = None
) -> None:
    """Shows a run as `Progress` does, until `over()`, by default until nobody trains it. `board.write` gets the rows, too."""
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
        rows = records.metric_rows(folder)
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
        if not self.display:
            return []
        rows = records.metric_rows(self.folder)
        new = [row for row in rows if row["step"] > self.step and _identity(row) not in self.before]
        done = max([self.step, *(row["step"] for row in new)])
        if state(self.folder) == "running":  # otherwise its signs of life are those of an attempt that is over
            self.wrong = self.pulse.look(rows)
            done = max(done, self.pulse.step)
        self.display.show(rows, new, done, self.wrong)
        return rows


def _identity(row: dict) -> tuple:
    return row["step"], row["seconds"]


class Lines:
    """A line for each metric row; on a terminal, a bar below them."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.line = recipe, Line()
        self.told, self.wrong = set(), ""

    def show(self, rows: list[dict], new: list[dict], step: int, wrong: str) -> None:
        """As for `Display`."""
        for row in new:
            if _identity(row) not in self.told:
                self.line.print(records.describe(row, self.recipe.epochs()))
                self.told.add(_identity(row))
        if bool(wrong) != bool(self.wrong):
            self.line.print(wrong or "goes on")
        self.wrong = wrong
        self.line.update(bar(rows, self.recipe, step) + (f"; {wrong}" if wrong else ""))

    def close(self) -> None:
        self.line.clear()


def bar(rows: list[dict], recipe: Recipe, step: int = 0) -> str:
    """A bar, the epoch, and, by the pace of the last rows, images per second and the time left."""
    step = max(step, rows[-1]["step"] if rows else 0)
    text = f"{hashes(step / recipe.iterations)}  epoch {recipe.epochs(step):.1f} of {recipe.epochs():.4g}"
    if steps := pace(rows):
        text += f", {steps * recipe.global_batch:.3g} images/s{left(recipe.iterations - step, steps)}"
    return f"{text}  ({rows[-1]['stage'] if rows else 'begins'})"


def hashes(share: float) -> str:
    """A bar of text for a share of the work: [##########..........]  50%."""
    return f"[{'#' * round(20 * share):.<20}] {share:4.0%}"


class Display:
    """The figure of a run in a notebook, and a bar below it with images per second and the time left."""

    def __init__(self, recipe: Recipe, step: int):
        from IPython.display import display

        self.recipe, self.curves = recipe, Curves(recipe)
        self.bar: Any = None
        self.wrong = ""
        self.state: tuple[list[dict], int] = ([], step)  # metric rows, steps done
        self.drawn, self.next = self.state, 0.0
        # The figure comes first and the bar below it: text around a figure would be split into two outputs.
        self.handle = display(self.curves.image(*self.state), display_id=True)

    def show(self, rows: list[dict], new: list[dict], step: int, wrong: str) -> None:
        """`rows` are all metric rows, `new` those of this attempt; `step` steps are done; `wrong` is what `Pulse.look` says."""
        self.state = rows, step
        if not self.bar:  # it measures from here: the first drawing took a while
            self.bar = self._open(step)
        if new or wrong != self.wrong:
            where = f"{new[-1]['stage']}, loss {new[-1]['train_loss']:.3f}" if new else ""
            self.bar.set_postfix_str(wrong or where, refresh=wrong != self.wrong)  # a bar that stands still is not written anew
            self.wrong = wrong
        self.bar.update(step * self.recipe.global_batch - self.bar.n)
        if time.monotonic() > self.next and self.state != self.drawn:
            self._draw()

    def close(self) -> None:
        if self.state != self.drawn:
            self._draw()
        if self.bar:
            self.bar.close()

    def _open(self, step: int):
        from tqdm import tqdm

        batch, total = self.recipe.global_batch, self.recipe.iterations
        images = dict(total=total * batch, initial=step * batch, unit=" images", unit_scale=True, smoothing=0.1)
        return tqdm(desc=self.recipe.name, file=sys.stdout, **images)

    def _draw(self) -> None:
        began = time.monotonic()
        self.handle.update(self.curves.image(*self.state))
        ended = time.monotonic()
        self.drawn, self.next = self.state, ended + max(REDRAW, 9 * (ended - began))


# --- Lines of text ----------------------------------------------------------------------------------------------------


class Line:
    """A line of a terminal that is written over and over, and others above it; where there is no terminal, only the others."""

    def __init__(self):
        self.live = sys.stdout.isatty()

    def print(self, text: str) -> None:
        self.clear()
        print(text, flush=True)

    def update(self, text: str) -> None:
        if self.live:
            width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
            print(f"\r\x1b[K{text[: width - 1]}", end="", flush=True)

    def clear(self) -> None:
        if self.live:
            print("\r\x1b[K", end="", flush=True)
