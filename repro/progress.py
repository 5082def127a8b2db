"""The progress of a run, read from its folder: curves and a bar in a notebook, or lines of text. No torch, no MPI.

    live       follows a run that any process trains
    follow     shows a run until it is over
    schedule   the learning rate of recipes, before anything is trained

Only files are read, so a run can be followed from any process that sees its folder.
"""

import math
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from repro import ReproError, monitor, records
from repro.monitor import recipe_of, saved_step
from repro.paths import ROOT, RUNS
from repro.schedule import Recipe, learning_rate

POLL = 0.5  # seconds between two looks at the folder
REDRAW = 1.0  # seconds between two drawings, at the least; and drawing takes at most a tenth of the time
SILENT = 600.0  # seconds after which a run on another machine counts as ended, if it gives no sign of life
TRUNK, COLLAPSE, HERE = "0.3", "#d55e00", "#0173b2"
NOTE = "collapse: another view of the images, so the loss changes at once"
SLANT = 40  # degrees, of the name of a stage that is too narrow for it
LETTER = 0.08  # inches, at the most, per letter of such a name


# --- Following a run --------------------------------------------------------------------------------------------------


def live(folder: Path | str = RUNS) -> None:
    """Follows a run until it ends, whichever process trains it: another notebook, mpiexec or a batch job.

    `folder` is a run's folder, its name in results/runs, or a folder of runs: then the one that was started last of those
    being trained. An interrupt ends only the following. Raises ReproError if there is no run.
    """
    folder = _find(folder)
    if not (folder / "run.json").exists():
        running = sorted(filter(trained_by, records.all_runs(folder)), key=lambda run: records.read(run)["start"])
        if not running:
            print(f"no run is being trained in {folder}")
            return
        if running[1:]:
            print(f"{len(running)} runs are being trained: {', '.join(run.name for run in running)}")
        folder = running[-1]
    owner, run = trained_by(folder), records.read(folder)
    if owner:
        print(f"{folder.name}: trained by {owner} since {run['start'].replace('T', ' ').replace('+00:00', ' UTC')}")
    rows = records.metric_rows(folder)
    try:
        follow(folder, lambda: not trained_by(folder), _in_notebook(), rows[-1]["step"] if rows and owner else 0)
    except KeyboardInterrupt:
        print("no longer followed; the run goes on" if trained_by(folder) else "no longer followed")
        return
    print(f"{folder.name}: {_outcome(folder)}")


def follow(folder: Path | str, over: Callable[[], bool], live: bool, step: int = 0) -> None:
    """Shows a run's progress from `step` on until `over()`; `live` is as for `Progress`."""
    with Progress(folder, live, step) as progress:
        while True:
            finished = over()
            progress.look()
            if finished:
                return
            time.sleep(POLL)


def trained_by(folder: Path | str) -> str:
    """The process that trains a run, such as "process 12 on node3"; "" if none does.

    A process on another machine counts as long as something in the folder is less than `SILENT` seconds old.
    """
    folder = Path(folder)
    if monitor.state(folder) != "running" or not (folder / "run.json").exists():
        return ""
    with suppress(OSError):
        owner = (folder / "lock").read_text()
        signs = [folder / "run.json", folder / "metrics.jsonl", *folder.glob("heartbeats/*")]
        newest = max(sign.stat().st_mtime for sign in signs if sign.exists())
        here = owner.endswith(f" on {platform.node()}")
        return owner if here or time.time() - newest < SILENT else ""
    return ""


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def _find(folder: Path | str) -> Path:
    for place in (Path(folder), RUNS / folder, ROOT / folder):
        if (place / "run.json").exists() or next(place.glob("*/run.json"), None):
            return place.resolve()
    raise ReproError(
        f"there is no run in {folder}: repro.live() without an argument follows what is being trained in results/runs"
    )


def _outcome(folder: Path) -> str:
    """What has become of a run that is no longer trained, in words."""
    run = records.read(folder)
    if run["status"] == "complete":
        return f"complete, after {run['seconds']:.0f} seconds of training: top-1 {100 * run['top1'] / run['images']:.2f}%"
    recipe = recipe_of(run)
    reached = f"epoch {recipe.epochs(saved_step(folder)):.1f} of {recipe.epochs():.1f}"
    ended = {"stopped": "stopped", "failed": f"failed ({run.get('error')})"}.get(run["status"], "its process has ended")
    return f"{ended}; {reached} is saved, and the same command continues from there"


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
        self.told, self.beat = set(map(_identity, records.metric_rows(folder))), monitor.step_now(self.folder)

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
            beat = monitor.step_now(self.folder)  # between two rows, if several ranks train
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


# --- Drawing ----------------------------------------------------------------------------------------------------------
# Without pyplot: its import takes longer than the first picture, and it would keep every figure.


class Curves:
    """The figure of one run: loss, test top-1 and learning rate over epochs, with its stages; collapses are shaded."""

    def __init__(self, recipe: Recipe):
        from matplotlib.figure import Figure

        self.recipe, self.views = recipe, other_views(recipe)
        self.figure = Figure(figsize=(9, 4.6), dpi=144)
        axes = self.figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1.2, 0.9))
        self.figure.subplots_adjust(left=0.075, right=0.95, top=1 - (above(recipe) + 0.05) / 4.6, bottom=0.1, hspace=0.12)
        for axis in axes:
            _prepare(axis, recipe)
        self.loss, self.top1, rate = axes
        name_stages(self.loss, recipe)
        draw_rate(rate, recipe)
        self.losses = {colour: self.loss.plot([], [], ".-", color=colour, clip_on=False)[0] for colour in (TRUNK, COLLAPSE)}
        self.tested = {colour: self.top1.plot([], [], "o", color=colour, clip_on=False)[0] for colour in (TRUNK, COLLAPSE)}
        self.here = rate.plot([], [], "o", color=HERE, markersize=7, clip_on=False)[0]
        self.loss.set(ylabel="training loss")
        self.top1.set(ylabel="test top-1, %")
        rate.set(xlabel="epoch", ylabel="rate")
        self.figure.align_ylabels()
        if self.views:
            self.loss.text(0.99, 0.95, NOTE, transform=self.loss.transAxes, ha="right", va="top", fontsize=8, color=COLLAPSE)

    def image(self, rows: list[dict], step: int):
        """The figure with these metric rows, and a dot on the learning rate after so many steps."""
        for colour, line in self.losses.items():
            shown = [row["train_loss"] if self._colour(row) == colour else math.nan for row in rows]
            line.set_data([row["epoch"] for row in rows], shown)
        tested = [(row, 100 * row["top1"] / row["images"]) for row in rows if "top1" in row]
        for colour, line in self.tested.items():
            points = [(row["epoch"], percent) for row, percent in tested if self._colour(row) == colour]
            line.set_data([epoch for epoch, _ in points], [percent for _, percent in points])
        at = min(step, self.recipe.iterations - 1)
        self.here.set_data([self.recipe.epochs(at)], [learning_rate(self.recipe, at)])
        losses = [row["train_loss"] for row in rows if math.isfinite(row["train_loss"])] or [0.0, 2.0]
        low = max(0.0, 2 * min(losses) - max(losses)) if max(losses) > min(losses) else 0.0
        self.loss.set_ylim(low, max(losses) + 0.25 * (max(losses) - low))  # room for the note
        found = [percent for _, percent in tested] or [0, 100]
        self.top1.set_ylim(max(0, min(found) - 3), min(100, max(found) + 3))
        return _image(self.figure)

    def _colour(self, row: dict) -> str:
        return COLLAPSE if row["stage"] in self.views else TRUNK


def schedule(*recipes: Recipe):
    """The learning rate of each recipe over epochs, with its stages; a picture for a notebook's cell."""
    from matplotlib.figure import Figure

    top = max(map(above, recipes)) + 0.3
    figure = Figure(figsize=(9, 2.3 + top), dpi=144)
    figure.subplots_adjust(left=0.065, right=0.95, top=1 - top / (2.3 + top), bottom=0.45 / (2.3 + top), wspace=0.24)
    for axis, recipe in zip(figure.subplots(1, len(recipes), squeeze=False)[0], recipes):
        _prepare(axis, recipe)
        name_stages(axis, recipe)
        draw_rate(axis, recipe)
        axis.set(xlabel="epoch", ylabel="learning rate")
        axis.set_title(recipe.name, loc="left", fontsize=10, pad=72 * (top - 0.3))
    return _image(figure)


def other_views(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """The stages that show images in another view than the first stage, as collapses do: {name: (first epoch, last epoch)}."""
    return {
        stage.name: (recipe.epochs(start), recipe.epochs(start + stage.iterations))
        for stage, start in zip(recipe.stages, recipe.starts)
        if stage.augmentation != recipe.stages[0].augmentation
    }


def draw_rate(axis, recipe: Recipe, points: int = 400) -> None:
    """Draws the learning rate, stage by stage."""
    views = other_views(recipe)
    for stage, start in zip(recipe.stages, recipe.starts):
        end = start + stage.iterations
        joints = {start, start + stage.warmup_iterations, end - 1, *(start + drop for drop in stage.drops)}
        joints |= {joint - 1 for joint in joints}
        steps = sorted({*range(start, end, max(1, recipe.iterations // points)), *joints} & set(range(start, end)))
        colour = COLLAPSE if stage.name in views else TRUNK
        axis.plot(list(map(recipe.epochs, steps)), [learning_rate(recipe, step) for step in steps], color=colour, linewidth=1.5)
    axis.set_ylim(0, None)


def name_stages(axis, recipe: Recipe) -> None:
    """Writes the stages' names above the axis, slanted where a stage is too narrow for its name."""
    views, width = other_views(recipe), axis.figure.get_figwidth() * axis.get_position().width
    for stage, start in zip(recipe.stages, recipe.starts):
        slanted = LETTER * len(stage.name) > width * stage.iterations / recipe.iterations
        axis.annotate(
            stage.name,
            (recipe.epochs(start + stage.iterations / 2), 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=SLANT if slanted else 0,
            ha="left" if slanted else "center",
            rotation_mode="anchor",
            fontsize=8,
            color=COLLAPSE if stage.name in views else TRUNK,
        )


def above(recipe: Recipe) -> float:
    """The height that the stages' names take above an axis, in inches."""
    return 0.15 + LETTER * math.sin(math.radians(SLANT)) * max(len(stage.name) for stage in recipe.stages)


def _prepare(axis, recipe: Recipe) -> None:
    """Shades collapses, and marks where stages meet."""
    for first, last in other_views(recipe).values():
        axis.axvspan(first, last, color=COLLAPSE, alpha=0.12, linewidth=0)
    for start in recipe.starts[1:-1]:
        axis.axvline(recipe.epochs(start), color="0.85", linewidth=0.8, zorder=0)
    axis.set_xlim(0, recipe.epochs())
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _image(figure):
    from IPython.display import Image

    file = BytesIO()
    figure.savefig(file, format="png")
    return Image(file.getvalue(), width=round(90 * figure.get_figwidth()))
