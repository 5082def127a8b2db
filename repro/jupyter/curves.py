"""A run's curves and a recipe's learning rate, as pictures for a notebook; stages that show another view are shaded.

    Curves     loss, test top-1 and learning rate of one run over epochs
    schedule   the learning rate of recipes, before anything is trained: all stages, in the order in which they run
    lineages   the learning rates that lead to the results of recipes, on one axis

Without pyplot: its import takes longer than the first picture, and it would keep every figure.
"""

import math
from contextlib import contextmanager
from io import BytesIO

from repro.run import records
from repro.schedule import Recipe, Stage, joints, learning_rate

TRUNK, COLLAPSE, HERE = "0.3", "#d55e00", "#0072b2"
NOTE = "collapse: another view of the images, so the loss changes at once"
POINTS = 400  # about, of a drawn learning rate
SLANT = 40  # degrees, of the name of a stage that is too narrow for it
LETTER = 0.08  # inches, at the most, per letter of such a name


@contextmanager
def _defaults():
    """Context in which the user's own settings of matplotlib, such as a matplotlibrc, do not apply."""
    from matplotlib import style

    with style.context("default"):
        yield


class Curves:
    """The figure of one run: loss, test top-1 and learning rate over epochs, with its stages; collapses are shaded."""

    @_defaults()
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

    @_defaults()
    def image(self, rows: list[dict], step: int):
        """The figure with these metric rows, and a dot on the learning rate after this many steps."""
        recorded = records.loss_rows(rows)
        for colour, line in self.losses.items():
            shown = [row["train_loss"] if self._colour(row) == colour else math.nan for row in recorded]
            line.set_data([row["epoch"] for row in recorded], shown)
        tested = [(row, 100 * row["top1"] / row["images"]) for row in rows if "top1" in row]
        for colour, line in self.tested.items():
            points = [(row["epoch"], percent) for row, percent in tested if self._colour(row) == colour]
            line.set_data([epoch for epoch, _ in points], [percent for _, percent in points])
        at = min(step, self.recipe.iterations - 1)
        self.here.set_data([self.recipe.epochs(at)], [learning_rate(self.recipe, at)])
        losses = [row["train_loss"] for row in recorded if math.isfinite(row["train_loss"])] or [0.0, 2.0]
        low = max(0.0, 2 * min(losses) - max(losses)) if max(losses) > min(losses) else 0.0
        self.loss.set_ylim(low, max(losses) + 0.25 * (max(losses) - low))  # room for the note
        found = [percent for _, percent in tested] or [0, 100]
        self.top1.set_ylim(max(0, min(found) - 3), min(100, max(found) + 3))
        return _image(self.figure)

    def _colour(self, row: dict) -> str:
        return COLLAPSE if row["stage"] in self.views else TRUNK


@_defaults()
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


@_defaults()
def lineages(*recipes: Recipe):
    """The learning rates that lead to each recipe's result (`Recipe.result`), over the epochs of that training alone.

    What other stages of the recipe train is left out, and a stage begins where the one ends whose weights it starts from. A
    stage that shows another view than the first has a thick line. A picture for a notebook's cell.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9), dpi=144, layout="constrained")
    axis, thick = figure.subplots(), False
    for number, recipe in enumerate(recipes):
        colour, line = ((TRUNK, "-"), (HERE, "--"), (COLLAPSE, ":"))[number % 3]
        label = f"{recipe.name}: {' + '.join(recipe.result)}"
        for stage in recipe.lineage(recipe.result):
            steps, before = _drawn(recipe, stage), recipe.places[stage.name].images
            first = recipe.starts[recipe.stages.index(stage)]
            epochs = [(before + (step - first) * recipe.batch(stage)) / recipe.epoch_images for step in steps]
            width = 3 if stage.name in other_views(recipe) else 1.5
            thick = thick or width > 2
            axis.plot(epochs, [learning_rate(recipe, step) for step in steps], line, color=colour, linewidth=width, label=label)
            label = ""  # of its first stage only
    axis.set(xlabel="epochs that lead to the result" + " (thick: in another view)" * thick, ylabel="learning rate")
    axis.set_xlim(0, None)
    axis.set_ylim(0, None)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return _image(figure)


def _drawn(recipe: Recipe, stage: Stage) -> list[int]:
    """The steps of a stage through which its learning rate is drawn."""
    start, sides = recipe.starts[recipe.stages.index(stage)], {step for joint in joints(recipe) for step in (joint - 1, joint)}
    within = range(start, start + stage.iterations)
    return sorted({*within[:: max(1, recipe.iterations // POINTS)], *sides, within[-1]} & set(within))


def other_views(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """The stages that show images in another view than the first stage, as collapses do: {name: (first epoch, last epoch)}."""
    return {
        stage.name: (recipe.epochs(start), recipe.epochs(start + stage.iterations))
        for stage, start in zip(recipe.stages, recipe.starts)
        if stage.augmentation != recipe.stages[0].augmentation
    }


def draw_rate(axis, recipe: Recipe) -> None:
    """Draws the learning rate, stage by stage."""
    views = other_views(recipe)
    for stage in recipe.stages:
        steps = _drawn(recipe, stage)
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
