"""Each figure as a function of a tidy table, in one style; `save` puts the table that it plots beside it.

Figures are as wide as one or two columns of a paper, with text of 8 points. Lines are labelled where they are; what a thing
looks like is in `names`, the same in every figure. The same table gives the same bytes.
"""

from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from scipy import stats

from repro.paper import names
from repro.paper.names import ENSEMBLE, GREY, INK, LOOKS, MEMBER, ONE_MODEL, PALE
from repro.paths import replacing
from repro.recipes import RECIPES

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
SMALL = 7  # points, for what stands beside data
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    # The first comes with matplotlib, so that a figure has the same layout everywhere; a browser without it takes the next.
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "axes.prop_cycle": cycler(color=[names.BLUE, names.VERMILION, names.GREEN, names.PURPLE, names.ORANGE, names.SKY, INK]),
    "figure.figsize": (TWO_COLUMNS, 3.6),
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text is text, which can be searched and selected
    "svg.hashsalt": "repro",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
}
plt.style.use(["default", STYLE])  # whatever the user's matplotlibrc says

UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}


def save(figure: plt.Figure, table: pd.DataFrame, results: Path | str, name: str) -> None:
    """Writes figures/name.svg, .pdf, .png and .csv (what the figure plots) into the results folder."""
    folder = Path(results) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in UNDATED.items():
        with replacing(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata)
    with replacing(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def beside(axis: Axes, labels: Iterable[tuple[float, float, str, str]], gap: float, place: float = 1.04) -> None:
    """Writes labels (x, y, text, colour) beside their points: in a column at `place`, a share of the width.

    A label is at the height of its point, or as near as its neighbours let it, with a thin line to the point. `gap` is the
    least distance between labels, as a share of the height. Call it when everything is drawn that sets the limits.
    """
    axis.set_ylim(axis.get_ylim())  # fixes them
    to_axes = axis.transScale + axis.transLimits
    entries = sorted(labels, key=lambda label: label[1])
    heights = [float(to_axes.transform((x, y))[1]) for x, y, *_ in entries]
    for _ in range(200):  # push neighbours apart, until all are far enough from one another
        for lower in range(len(heights) - 1):
            lacking = gap - (heights[lower + 1] - heights[lower])
            if lacking > 1e-6:
                heights[lower] -= lacking / 2
                heights[lower + 1] += lacking / 2
    for (x, y, text, colour), height in zip(entries, heights):
        axis.annotate(
            text,
            (x, y),
            (place, height),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.5, shrinkA=1, shrinkB=3),
        )


def thousands(axis, ticks: list[float]) -> None:
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def image_grid(rows: dict[str, list]) -> plt.Figure:
    """A grid of images, each (H, W, 3) in RGB or (H, W), with one named row per entry."""
    columns = max(map(len, rows.values()))
    side = min(1.2, TWO_COLUMNS / columns)
    figure, axes = plt.subplots(
        len(rows), columns, layout="constrained", figsize=(side * columns, side * len(rows)), squeeze=False
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for row, (name, images) in zip(axes, rows.items()):
        row[0].set_ylabel(name)
        for axis, image in zip(row, images):
            axis.imshow(image, cmap="gray")
    return figure


def learning_rates(rates: pd.DataFrame, columns: int = 3) -> plt.Figure:
    """The learning rate of every recipe over epochs, as released and as designed. Expects `tables.rates`."""
    groups = list(rates.groupby("recipe", sort=False))
    rows = -(-len(groups) // columns)
    size = TWO_COLUMNS if columns > 1 else ONE_COLUMN, 1.55 * rows + 0.3
    figure, axes = plt.subplots(rows, columns, layout="constrained", figsize=size, squeeze=False)
    for axis, (recipe, group) in zip(axes.flat, groups):
        for formula, part in group.groupby("formula", sort=False):
            look = LOOKS[formula]
            axis.plot(part.epoch, part.rate, look.line, color=look.colour, label=formula.replace("_", " "))
        axis.set_title(names.recipe(recipe), fontsize=SMALL)
        axis.set(ylim=(0, None), xlim=(0, None))
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("learning rate", fontsize=8)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def training_curves(curves: pd.DataFrame, column: str = "top1") -> plt.Figure:
    """Test top-1, or `column` "train_loss", over epochs, a panel per recipe: mean over seeds, band of one standard deviation.

    Expects `tables.curves` of one data set and one shrink. A panel is named after its recipe, with the network if there are
    several, and with the variant if it is not the default. A line is a stage; one that ends at the rate zero, as a collapse
    does, has the colour of the members.
    """
    label = curves.recipe.map(names.recipe) + (", " + curves.model if curves.model.nunique() > 1 else "")
    curves = curves.assign(label=label.where(curves.variant == "", label + ", " + curves.variant)).dropna(subset=column)
    panels = list(curves.groupby("label", sort=False))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    size = TWO_COLUMNS if columns > 1 else ONE_COLUMN, 1.5 * rows + 0.5
    figure, axes = plt.subplots(rows, columns, layout="constrained", figsize=size, squeeze=False, sharey=True)
    for axis, (name, panel) in zip(axes.flat, panels):
        before: dict[str, tuple[float, float]] = {}  # the end of each stage: epoch, mean
        for stage, part in panel.groupby("stage", sort=False):
            over = part.groupby("step").agg(epoch=("epoch", "mean"), mean=(column, "mean"), sd=(column, "std")).fillna(0)
            look = LOOKS[MEMBER if part.rate.iloc[-1] < 0.01 * panel.rate.max() else "trunk"]
            start = before.get(_origin(panel.recipe.iloc[0], stage, list(before)))
            epochs, means = over.epoch.tolist(), over["mean"].tolist()
            path = [start, *zip(epochs, means)] if start else [*zip(epochs, means)]
            axis.plot(*zip(*path), "-", color=look.colour, linewidth=1)
            axis.plot(epochs[-1], means[-1], look.marker, color=look.colour, markersize=3)
            axis.fill_between(epochs, means - over.sd, means + over.sd, color=look.colour, alpha=0.2, linewidth=0)
            before[stage] = epochs[-1], means[-1]
        n = panel.seed.nunique()
        axis.set_title("\n".join(wrap(f"{name} (n\u00a0=\u00a0{n})", 26)), fontsize=SMALL, weight="normal")
        axis.set_xlim(0, None)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    if column == "top1":  # the first epochs are so far below that the interesting part would be a thin strip at the top
        low = curves[curves.epoch > curves.epoch.max() / 5].top1.min()
        axes[0, 0].set_ylim(low - 2, curves.top1.max() + 1)
    figure.supxlabel("epoch (images seen / training images)", fontsize=8)
    figure.supylabel({"top1": "test top-1, %", "train_loss": "training loss"}[column], fontsize=8)
    return figure


def _origin(recipe: str, stage: str, before: list[str]) -> str:
    """The stage from whose end a stage starts, "" for new weights; of a recipe that is not ours, the one before."""
    if recipe not in RECIPES:
        return before[-1] if before else ""
    known = RECIPES[recipe]
    found = known.origin(next(each for each in known.stages if each.name == stage))
    return found.name if found else ""


def answers(table: pd.DataFrame) -> plt.Figure:
    """Each question's difference with its 95% interval, and in two other views. Expects `questions.answers` of one data set."""
    table = table[(table.n > 0) & (table.n_other > 0)].iloc[::-1]
    figure, axes = plt.subplots(layout="constrained", figsize=(TWO_COLUMNS, 0.33 * len(table) + 0.75))
    margin = table.margin.iloc[0]
    axes.axvspan(-margin, margin, color=PALE, alpha=0.6, zorder=0, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for position, row in enumerate(table.itertuples()):
        look = LOOKS[row.verdict]
        axes.plot([row.low, row.high], [position] * 2, "-", color=look.colour, linewidth=1.6)
        axes.plot(row.difference, position, look.marker, color=look.colour)
        axes.plot(row.difference_zoom, position, "+", color=GREY, markersize=5)
        axes.plot(row.difference_scale_aspect, position, "x", color=GREY, markersize=4)
        text = row.verdict + (" (control)" if row.control else "")
        axes.annotate(text, (1.02, position), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
    axes.set_yticks(range(len(table)), ["\n".join(wrap(claim, 48)) for claim in table.claim])
    n = sorted({*table.n, *table.n_other})
    seeds = " to ".join(map(str, dict.fromkeys((n[0], n[-1]))))
    axes.set_xlabel(f"difference in top-1, points: 95% interval, n = {seeds} seeds;\n+ enlarged test view, x training view")
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.tick_params(axis="y", length=0)
    return figure


def interval(groups) -> tuple[pd.Series, pd.Series]:
    """Mean and half of the 95% interval (Student's t) of a grouped column; with one value the half is nan, and not drawn."""
    n = groups.count()
    return groups.mean(), groups.sem() * np.where(n > 1, stats.t.ppf(0.975, np.maximum(n - 1, 1)), np.nan)


def budget(points: pd.DataFrame) -> plt.Figure:
    """Top-1 over the epochs of all training that led to a model or an ensemble. Expects `tables.budget`."""
    figure, axes = plt.subplots(layout="constrained", figsize=(TWO_COLUMNS, 3.6))
    lines, single = [], []
    for label, part in points.groupby("label", sort=False):
        look, line = LOOKS[label], part.line.iloc[0]
        mean, half = interval(part.groupby("epochs").top1)
        axes.errorbar(mean.index, mean, half, fmt=look.marker, linestyle=look.line if line else "", color=look.colour)
        entry = (mean.index[-1], mean.iloc[-1], "\n".join(wrap(label, 24)) if line else label, look.colour)
        (lines if line else single).append(entry)
    axes.set(xlabel="epochs of all training that led to it", ylabel="test top-1, %")
    beside(axes, lines, 0.11)
    for epochs in sorted({entry[0] for entry in single}):  # beside their points: what has the same budget stands in a column
        at = axes.transLimits.transform((epochs, 0))[0]
        beside(axes, [entry for entry in single if entry[0] == epochs], 0.05, at + 0.03)
    return figure


def time_to_train(table: pd.DataFrame) -> plt.Figure:
    """Published minutes to train on ImageNet-1K, one line per run, with its top-1. Expects `tables.time_to_train`."""
    figure, axes = plt.subplots(layout="constrained", figsize=(TWO_COLUMNS, 0.21 * len(table) + 0.6))
    ours = table.run.str.startswith("Codreanu")
    for position, (row, own) in enumerate(zip(table.itertuples(), ours)):
        look = LOOKS["this paper" if own else "published"]
        axes.plot(row.minutes, position, look.marker, color=look.colour, fillstyle="full" if own else "none")
        accuracy = "" if pd.isna(row.top1) else f", {'% '.join(str(row.top1).split(' ', 1))}"
        text = f"{row.minutes:.3g} min{accuracy}{'' if ' ' in accuracy[2:] or not accuracy else '%'}"
        weight = "bold" if own else "normal"
        axes.annotate(
            text, (row.minutes, position), (6, 0), textcoords="offset points", va="center", fontsize=SMALL, weight=weight
        )
    labels = [f"{row.run}, {row.year}" + ("" if pd.isna(row.hardware) else f": {row.hardware}") for row in table.itertuples()]
    axes.set_yticks(range(len(table)), labels)
    for label, own in zip(axes.get_yticklabels(), ours):
        label.set_fontweight("bold" if own else "normal")
    axes.set(xscale="log", xlabel="published minutes to train on ImageNet-1K, and top-1")
    axes.set_xlim(table.minutes.min() / 1.5, table.minutes.max() * 40)
    thousands(axes.xaxis, [0.1, 1, 10, 100, 1000])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(table) - 0.4)
    return figure


def step_parts(table: pd.DataFrame) -> plt.Figure:
    """MODEL: where the time of a step goes on the paper's nodes, without and with overlap; at each bar's end the efficiency.

    Expects `tables.on_the_papers_nodes`. The parts are medians over what was not published, so they need not add up exactly.
    """
    figure, all_axes = plt.subplots(1, 2, layout="constrained", figsize=(TWO_COLUMNS, 2.3), sharey=True)
    parts = {"compute": "computing", "waiting": "waiting", "allreduce": "allreduce"}
    for axes, (images, rows) in zip(all_axes, table.groupby("images")):
        labels = []
        for position, row in enumerate(rows.itertuples()):
            labels.append(f"{row.nodes} nodes, " + ("overlapped" if row.buckets > 1 else "nothing hidden"))
            left = 0.0
            for part, label in parts.items():
                look, width = LOOKS[part], 1000 * getattr(row, part)
                axes.barh(position, width, left=left, color=look.colour, hatch=look.marker, edgecolor="white", height=0.7)
                if position == 0:  # where nothing is hidden, all parts are to be seen
                    place, side, gap = (left + width, "right", -2) if part == "waiting" else (left, "left", 2)
                    axes.annotate(label, (place, -0.55), (gap, 0), textcoords="offset points", ha=side, fontsize=SMALL)
                left += width
            axes.annotate(f" {row.efficiency:.0f}%", (left, position), va="center", fontsize=SMALL)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="ms a step, and efficiency (MODEL)", title=f"{images} images per process")
        axes.set_ylim(len(labels) - 0.4, -1.1)
        axes.margins(x=0.16)
        axes.grid(axis="y", visible=False)
    return figure


def scaling(measured: pd.DataFrame, model: pd.DataFrame, published: pd.DataFrame) -> plt.Figure:
    """Measured steps beside the model; efficiency, minutes and minutes to an accuracy over nodes, with 5 to 95% bands.

    Expects `tables.measured_throughput`, `tables.extrapolated` and `tables.published_points`, which ran on other nodes.
    """
    figure, axes = plt.subplots(2, 2, layout="constrained", figsize=(TWO_COLUMNS, 5.8))
    steps, efficiency, minutes, accuracy = axes.flat
    ends = []
    for look, (ranks, part) in zip(names.RANKS, measured.groupby("ranks")):
        spread = [part.seconds - part.low, part.high - part.seconds]
        steps.errorbar(part.images, part.seconds, spread, fmt=look.marker, color=look.colour)
        steps.plot(part.images, part.seconds_MODEL, "--", color=look.colour, linewidth=0.8)
        ends.append((part.images.iloc[-1], part.seconds.iloc[-1], f"{ranks} rank" + "s" * (ranks > 1), look.colour))
    steps.set(
        xlabel="images a rank (points: measured, median, 5 to 95%;\ndashed: MODEL)",
        ylabel="seconds a step",
        ylim=(0, None),
        title=f"Measured on one machine:\n{measured.model[0]}, {measured['size'][0]} px",
    )
    beside(steps, ends, 0.08)
    ends = []
    for (regime, buckets), part in model.groupby(["scaling", "buckets"], sort=False):
        look, line = LOOKS[regime], "--" if buckets == 1 else "-"
        for axis, column in ((efficiency, "efficiency"), (minutes, "minutes"), (accuracy, "minutes_to_accuracy")):
            axis.plot(part.nodes, part[column], look.marker + line, color=look.colour, markersize=2.5)
            axis.fill_between(
                part.nodes, part[f"{column}_low"], part[f"{column}_high"], color=look.colour, alpha=0.15, linewidth=0
            )
        name = f"{regime}, " + ("nothing hidden" if buckets == 1 else "overlapped")
        ends.append((part.nodes.iloc[-1], part.efficiency.iloc[-1], "\n".join(wrap(name, 14)), look.colour))
    for axis in (efficiency, minutes, accuracy):
        axis.set_xscale("log", base=2)
        axis.set(xlabel=f"nodes like this one, {model.interconnect[0]} assumed", xlim=(model.nodes.min(), model.nodes.max()))
        thousands(axis.xaxis, [1, 8, 64, 448, 4096])
    few = "" if model.n.min() >= 3 else f"\n(no bands: timed steps n = {model.n.min()})"
    efficiency.axhline(90, color=INK, linewidth=0.8, linestyle=":")
    efficiency.annotate("published: above 90%", (model.nodes.min(), 90), (3, -9), textcoords="offset points", fontsize=SMALL)
    efficiency.set(ylabel="efficiency, %", ylim=(0, 105), title=f"MODEL: efficiency, of nodes\nwithout allreduce{few}")
    beside(efficiency, ends, 0.13)
    look = LOOKS["published"]
    minutes.plot(published.nodes, published.minutes, look.marker, color=look.colour, markersize=4, zorder=3)
    for number, row in enumerate(published.sort_values("nodes").itertuples()):
        left = number % 2  # alternately on each side, so that neighbours do not meet
        minutes.annotate(
            row.run.split(",")[0],
            (row.nodes, row.minutes),
            (-5, -3) if left else (5, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if left else "bottom",
            fontsize=SMALL,
        )
    for axis in (minutes, accuracy):
        axis.axhline(28, color=INK, linewidth=0.8, linestyle=":")
        axis.annotate("published: 28", (model.nodes.min(), 28), (3, -9), textcoords="offset points", fontsize=SMALL)
        axis.set(yscale="log", ylim=(10, None))
    minutes.set(ylabel="minutes for 90 epochs", title="MODEL: 90 epochs of ImageNet-1K\n(diamonds: published, other nodes)")
    accuracy.set(ylabel="minutes to 75.9%", title="MODEL, with the epochs that published\nruns took to 75.9% at each batch")
    return figure


def headline(rates: pd.DataFrame, points: pd.DataFrame) -> plt.Figure:
    """The Collapsed Ensemble at a glance: its learning rate with the collapses in colour, and its result, if there is one.

    Expects `tables.rates` of collapsed_ensemble with one formula, and `tables.budget` of one data set, or no rows.
    """
    if points.empty:
        figure, left = plt.subplots(layout="constrained", figsize=(TWO_COLUMNS, 2.9))
        _branches(left, rates)
        return figure
    figure, (left, right) = plt.subplots(1, 2, layout="constrained", figsize=(TWO_COLUMNS, 2.9), width_ratios=(1.75, 1))
    _branches(left, rates)
    rows = {MEMBER: "a member", ENSEMBLE: "the ensemble", ONE_MODEL: "one model,\nas many\nimages"}
    points = points[points.label.isin(rows) & (points.members <= 3)]
    points = points[points.epochs == points.groupby("label").epochs.transform("max")]
    for position, label in enumerate(rows):
        look, top1 = LOOKS[label], points[points.label == label].top1
        right.plot(top1, [position] * len(top1), look.marker, color=look.colour, alpha=0.6, markeredgewidth=0)
        right.plot(top1.mean(), position, "|", color=INK, markersize=16, markeredgewidth=1.5)
        right.annotate(f"{top1.mean():.1f}", (1.02, position), xycoords=("axes fraction", "data"), va="center")
    right.set_yticks(range(len(rows)), rows.values())
    right.tick_params(axis="y", length=0)
    right.set_title(f"Its result on {points.data.iloc[0]}, n = {points.seed.nunique()}")
    right.set(xlabel="test top-1, %\n(a point per seed; bar: mean)", ylim=(len(rows) - 0.5, -0.5))
    right.grid(axis="y", visible=False)
    return figure


def _branches(axis: Axes, rates: pd.DataFrame) -> None:
    """The rate over the epochs that lead to it: a collapse leaves the trunk where its cycle ends, as the next cycle does."""
    trunk, member = LOOKS["trunk"], LOOKS[MEMBER]
    epoch, ends = 0.0, {}  # of the trunk
    for stage, part in rates.groupby("stage", sort=False):
        start = epoch
        shown = start + part.epoch - part.epoch.min()
        if stage.startswith("collapse"):
            axis.plot(shown, part.rate, "-", color=member.colour, linewidth=2)
            axis.plot(shown.iloc[-1], part.rate.iloc[-1], member.marker, color=member.colour)
            ends[stage] = shown.iloc[-1]
        else:
            axis.plot(shown, part.rate, "-", color=trunk.colour)
            epoch = shown.iloc[-1]
            text = {"init": "start", "cyc1": "cycle 1", "cyc2": "cycle 2", "cyc3": "cycle 3"}[stage]
            axis.annotate(
                text, (shown.loc[part.rate.idxmax()], part.rate.max()), (2, 3), textcoords="offset points", fontsize=SMALL
            )
    for stage, end in ends.items():
        axis.annotate(
            f"member {stage[-1]}", (end, 0), (0, -6), textcoords="offset points", ha="center", va="top", fontsize=SMALL
        )
    top = rates.rate.max()
    said = (
        (1.28, member.colour, "A collapse takes the rate to zero, on images\nas in the test's view, and leaves a member."),
        (1.06, INK, "The next cycle starts from before it.\nThe ensemble is the mean of the\nmembers' predictions."),
    )
    for height, colour, text in said:
        axis.text(29, height * top, text, color=colour, va="top", fontsize=SMALL)
    axis.grid(visible=False)
    axis.set_title("The Collapsed Ensemble's learning rate, as for ImageNet")
    axis.set(xlabel="epochs that lead to a model", ylabel="learning rate", yticks=(0, 0.5, 1, 1.5))
    axis.set(xlim=(-2, 80), ylim=(-0.19 * top, 1.32 * top))
