"""Follows a run in a notebook: curves and a bar that move, or lines of text where nobody watches.

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
from repro.run.state import find, outcome, recipe_of, step_now, trained_by
from repro.schedule import Recipe

POLL = 0.5  # seconds between two looks at the folder
REDRAW = 1.0  # seconds between two drawings, at the least; and drawing takes at most a tenth of the time


def live(folder: Path | str = RUNS) -> None:
    """Follows a run until it ends, whichever process trains it: another notebook, mpiexec or a batch job.

    `folder` is a run's folder, its name in results/runs, or a folder of runs: then the one that was started last of those
    being trained. An interrupt ends only the following. Raises ReproError if there is no run.
    """
    several = next((place for place in (Path(folder), ROOT / folder) if next(place.glob("*/run.json"), None)), None)
    if several:
        folder = several.resolve()
        running = sorted(filter(trained_by, records.all_runs(folder)), key=lambda run: records.read(run)["start"])
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
        follow(folder, lambda: not trained_by(folder), _in_notebook(), rows[-1]["step"] if rows and owner else 0)
    except KeyboardInterrupt:
        print("no longer followed; the run goes on" if trained_by(folder) else "no longer followed")
        return
    print(f"{folder.name}: {outcome(folder)[1]}")


def follow(folder: Path | str, over: Callable[[], bool], live: bool, step: int = 0) -> None:
    """Shows a run's progress from `step` on until `over()`; `live` is as for `Progress`."""
    with Progress(folder, live, step) as progress:
        while True:
            finished = over()
            progress.look()
            if finished:
                return
            time.sleep(POLL)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


class Progress:
    """Shows what is new in a run's folder at each `look`: curves and a bar that update in place, or a line per metric row.

    Leaving the block draws the end and closes the bar; if it stayed open, the next one would write each update on a new line.
    """

    def __init__(self, folder: Path | str, live: bool, step: int = 0):
        """`live`: curves and a bar, for JupyterLab; otherwise lines. `step`: how many were done before."""
        self.folder, self.live, self.step = Path(folder), live, step
        self.recipe: Recipe | None = None  # known when the run has begun
        self.display: Display | None = None
        # What an earlier attempt wrote after its last checkpoint is dropped when the run continues.
        self.told, self.beat = set(map(_identity, records.metric_rows(folder))), step_now(self.folder)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.display:
            self.display.close()

    def look(self) -> None:
        run = {} if self.recipe else records.read(self.folder)
        if run:
            self.recipe = recipe_of(run)
            self.display = Display(self.recipe, self.step) if self.live else None
        if not self.recipe:
            return
        rows = records.metric_rows(self.folder)
        new = [row for row in rows if row["step"] > self.step and _identity(row) not in self.told]
        if self.display:
            beat = step_now(self.folder)  # between two rows, if several ranks train
            at = [self.step, *(row["step"] for row in new), *([beat] if beat != self.beat else [])]
            self.display.show(rows, new, max(at))
            return
        for row in new:
            print(records.describe(row, self.recipe.epochs()), flush=True)
            self.told.add(_identity(row))


def _identity(row: dict) -> tuple:
    return row["step"], row["seconds"]


class Display:
    """The figure of a run in a notebook, and a bar below it with images per second and the time left."""

    def __init__(self, recipe: Recipe, step: int):
        from IPython.display import display

        self.recipe, self.curves = recipe, Curves(recipe)
        self.bar: Any = None
        self.state: tuple[list[dict], int] = ([], step)  # metric rows, steps done
        self.drawn, self.next = self.state, 0.0
        # The figure comes first and the bar below it: text around a figure would be split into two outputs.
        self.handle = display(self.curves.image(*self.state), display_id=True)

    def show(self, rows: list[dict], new: list[dict], step: int) -> None:
        """`rows` are all metric rows, `new` those of this attempt, `step` the number of steps done."""
        self.state = rows, step
        if not self.bar:  # it measures from here: the first drawing took a while
            self.bar = self._open(step)
        if new:
            self.bar.set_postfix_str(f"{new[-1]['stage']}, loss {new[-1]['train_loss']:.3f}", refresh=False)
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
