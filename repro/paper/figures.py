"""Each figure as a function of a tidy table, in one style; `save` puts the table that it plots beside it.

Figures are as wide as one or two columns of a paper, and no text is below 8 points. Lines are labelled where they are; what a
thing looks like is in `names`, the same in every figure. The same table gives the same bytes.
"""

import re
from collections.abc import Iterable
from os.path import commonprefix
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import SymmetricalLogLocator
from scipy import stats

from repro.paper import names
from repro.paper.names import BEDS, ENSEMBLE, GREY, INK, LOOKS, MEMBER, ONE_MODEL, PALE
from repro.paths import replacing
from repro.recipes import RECIPES
from repro.run import records

ONE_COLUMN, TWO_COLUMNS = 3.3, 7.1  # inches
LINE = 0.15  # inches, the height of a line of text
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    # The first comes with matplotlib, so that a figure has the same layout everywhere; a browser without it takes the next.
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
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
    for _ in range(200):  # push neighbours apart, until all are far enough from one another and beside the axes
        heights = [min(max(height, gap / 2), 1 - gap / 2) for height in heights]
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


def panels(number: int, height: float, **options: Any) -> tuple[plt.Figure, list[Axes]]:
    """So many panels, each about `height` inches high: up to six in one column of a paper, more in two."""
    columns = min(2, number) if number <= 6 else 4
    rows = -(-number // columns)
    size = ONE_COLUMN if number <= 6 else TWO_COLUMNS, height * rows + 0.4
    figure, axes = plt.subplots(rows, columns, layout="constrained", figsize=size, squeeze=False, **options)
    for axis in axes.flat[number:]:
        axis.remove()
    return figure, list(axes.flat[:number])


def views(pixels: pd.DataFrame) -> plt.Figure:
    """One image as it is stored, and as each view shows it. Expects `tables.views`."""
    shown = [(view, part) for (view, _), part in pixels.groupby(["view", "draw"], sort=False)]
    figure, axes = plt.subplots(1, len(shown), layout="constrained", figsize=(TWO_COLUMNS, 1.25), sharex=True, sharey=True)
    low, high = pixels.value.min(), pixels.value.max()
    for number, (axis, (view, part)) in enumerate(zip(axes, shown)):
        image = part.pivot(index="y", columns="x", values="value").to_numpy()
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, extent=(0, len(image), len(image), 0))
        axis.set(xticks=[], yticks=[], frame_on=False)
        if number == 0 or shown[number - 1][0] != view:
            axis.set_title("\n".join(wrap(view, 15)), weight="normal")
    return figure


def learning_rates(rates: pd.DataFrame) -> plt.Figure:
    """The learning rate of each recipe over epochs, as released and as designed. Expects `tables.rates`.

    A recipe for which the two formulas differ has a panel; the end of the first one's warm-up is enlarged in another. The
    recipes for which they do not differ are together in the last panel.
    """
    curves = {
        recipe: group.pivot_table(index="epoch", columns="formula", values="rate")
        for recipe, group in rates.groupby("recipe", sort=False)
    }
    alike = [recipe for recipe, rate in curves.items() if np.allclose(rate.as_released, rate.as_designed)]
    apart = [recipe for recipe in curves if recipe not in alike]
    shown = [[recipe] for recipe in [*apart[:1], *apart]] + ([alike] if alike else [])
    figure, axes = panels(len(shown), 1.15)
    for number, (axis, together) in enumerate(zip(axes, shown)):
        for recipe in together:
            for formula in ("as_released", "as_designed"):
                look, label = LOOKS[formula], formula.replace("_", " ")
                axis.plot(curves[recipe].index, curves[recipe][formula], look.line, color=look.colour, label=label)
        axis.set(xlim=(0, None), ylim=(0, None))
        called = list(map(names.recipe, together))
        title = called[0] if len(called) == 1 else f"{commonprefix(called).rstrip(', ')} ({len(called)} recipes)".strip()
        if apart and number == 1:
            title = _enlarge(axis, curves[together[0]])
        axis.set_title("\n".join(wrap(title, 22)), weight="normal")
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("learning rate", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _enlarge(axis: Axes, rate: pd.DataFrame) -> str:
    """Shows only where warm-up ends, with an arrow from the rate before to the rate after; returns what is to be seen."""
    end = rate.as_released.idxmax()
    before, after = rate.as_released[end], rate.as_released[rate.index > end].iloc[0]
    around = 0.06 * rate.index.max()
    axis.set(xlim=(max(0, end - around), end + around), ylim=(2.5 * after - 1.5 * before, 1.5 * before - 0.5 * after))
    axis.annotate("", (end, after), (end, before), arrowprops=dict(arrowstyle="->", color=INK, shrinkA=0, shrinkB=0))
    axis.text(end - 0.25 * around, after, f"{100 * (after / before - 1):.1f}%".replace("-", "\u2212"), va="center", ha="right")
    return "the same: the end of warm-up, enlarged"


def training_curves(curves: pd.DataFrame, column: str = "top1") -> plt.Figure:
    """Test top-1, or `column` "train_loss", over epochs: the median over seeds.

    Expects `tables.curves` of one data set and one shrink. A panel is a recipe, with a band from the smallest to the largest
    seed, or several recipes that differ in one number (`names.TOGETHER`). Its title has the network if it is not that of most
    runs, and the variant if it is not the default. A line is a stage, which starts where the stage ends whose weights it starts
    from, so epochs are those that lead to a model. A stage that ends at the rate zero, as a collapse does, has the colour of
    the members.
    """
    usual = curves.groupby("model").folder.nunique().idxmax()
    title = curves.recipe.map(names.panel)
    title = title.where(curves.model == usual, title + ", " + curves.model)
    curves = curves.assign(title=title.where(curves.variant == "", title + ", " + curves.variant))
    titles = sorted(curves.title.unique(), key=lambda each: names.order(curves[curves.title == each].recipe.iloc[0]))
    figure, axes = panels(len(titles), 1.5, sharey="row")
    ends: dict[Axes, list] = {}
    for axis, name in zip(axes, titles):
        panel = curves[curves.title == name]
        together = sorted(panel.recipe.unique(), key=names.order)
        for number, recipe in enumerate(together):
            faint = 1 - 0.75 * number / len(together)  # the last of several recipes is the palest
            end = _stages(axis, panel[panel.recipe == recipe], column, faint, band=len(together) == 1)
            if len(together) > 1:
                ends.setdefault(axis, []).append((*end, names.in_panel(recipe), INK))
        n = panel.groupby("recipe").seed.nunique()
        axis.set_title("\n".join(wrap(f"{name} (n\u00a0=\u00a0{n.min()})", 22)), weight="normal")
        axis.set_xlim(0, None)
    for axis, labels in ends.items():  # now that every panel of a row has set their limits
        beside(axis, labels, 0.13)
    figure.supxlabel("epochs of the runs that lead to a model", fontsize=8)
    figure.supylabel({"top1": "test top-1, %", "train_loss": "training loss"}[column], fontsize=8)
    return figure


def _stages(axis: Axes, runs: pd.DataFrame, column: str, strength: float, band: bool) -> tuple[float, float]:
    """Draws the stages of one recipe's runs; returns the last point."""
    recipe = runs.recipe.iloc[0]
    epochs = runs.groupby("stage", sort=False).epoch.max()
    computed = dict(zip(epochs.index, epochs.shift(fill_value=0.0)))  # at a stage's start: epochs of all that was computed
    if column == "train_loss":
        recorded = runs[["folder", "step", "epoch", "stage", "train_loss"]].groupby("folder")
        rows = pd.DataFrame(row for _, run in recorded for row in records.loss_rows(run.to_dict("records")))
    else:
        rows = runs.dropna(subset=column)
    before: dict[str, tuple[float, float]] = {}  # the end of each stage: epochs that lead to it, median
    for stage, part in rows.groupby("stage", sort=False):
        over = part.groupby("epoch")[column].agg(["median", "min", "max"])
        zero = runs[runs.stage == stage].rate.iloc[-1] < 0.01 * runs.rate.max()
        look = LOOKS[MEMBER if zero else "trunk"]
        start = before.get(_origin(recipe, stage, list(before)))
        at = over.index - computed[stage] + (start[0] if start else 0.0)
        path = [*([start] if start else []), *zip(at, over["median"])]
        axis.plot(*zip(*path), "-", color=look.colour, linewidth=1, alpha=strength)
        axis.plot(*path[-1], look.marker, color=look.colour, markersize=3, alpha=strength)
        if band:
            axis.fill_between(at, over["min"], over["max"], color=look.colour, alpha=0.2, linewidth=0)
        before[stage] = path[-1]
    return path[-1]


def _origin(recipe: str, stage: str, before: list[str]) -> str:
    """The stage from whose end a stage starts, "" for new weights; of a recipe that is not ours, the one before."""
    if recipe not in RECIPES:
        return before[-1] if before else ""
    known = RECIPES[recipe]
    found = known.origin(next(each for each in known.stages if each.name == stage))
    return found.name if found else ""


def batches(runs: pd.DataFrame) -> plt.Figure:
    """Top-1 of every run over the batch, a line for each of a few labels, which joins the medians. Expects `tables.batches`."""
    figure, axes = plt.subplots(layout="constrained", figsize=(ONE_COLUMN, 2.4))
    sizes, labels = sorted(runs.batch.unique()), list(runs.line.unique())
    for label, shift in zip(labels, np.linspace(-0.1, 0.1, len(labels))):
        part, look = runs[runs.line == label], LOOKS[label]
        at = part.batch.map(sizes.index) + shift
        axes.plot(at, part.top1, look.marker, color=look.colour, fillstyle="none", markersize=4, label=label)
        middle = part.groupby("batch").top1.median()
        axes.plot([sizes.index(batch) + shift for batch in middle.index], middle, look.line, color=look.colour, linewidth=1)
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set(xlabel="images of a step", ylabel="test top-1, %", ylim=(0, 100))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower left")
    return figure


def groups(runs: pd.DataFrame, seconds: pd.DataFrame) -> plt.Figure:
    """Top-1 of every run over the groups; and seconds of as many images by MODEL, over how much ranks differ, with their bands.

    Expects `tables.groups` and `tables.seconds_of_groups`.
    """
    figure, (accuracy, time) = plt.subplots(2, 1, layout="constrained", figsize=(ONE_COLUMN, 5))
    numbers = sorted(runs.groups.unique())
    for line, part in runs.groupby("line", sort=False):
        look, middle = LOOKS[line], part.groupby("groups").top1.median()
        accuracy.plot(part.groups.map(numbers.index), part.top1, look.marker, color=look.colour, fillstyle="none", markersize=4)
        accuracy.plot([numbers.index(each) for each in middle.index], middle, look.line, color=look.colour, linewidth=1)
    accuracy.set(xlabel="groups", ylabel="test top-1, %", title="accuracy after as many images")
    accuracy.set_xticks(range(len(numbers)), numbers)
    for line, part in seconds.groupby("line", sort=False):
        look, spread = LOOKS[line], 100 * part.spread
        time.plot(spread, part.seconds, look.marker + look.line, color=look.colour, markersize=4, linewidth=1)
        time.fill_between(spread, part.seconds_low, part.seconds_high, color=look.colour, alpha=0.1, linewidth=0)
    time.set(xlabel="standard deviation between ranks, %", ylabel="seconds of as many images", ylim=(0, None))
    time.set_title(f"{seconds.label.iloc[0]}: {seconds.groups.iloc[0]} groups, {seconds.nodes.iloc[0]:,} nodes")
    lines = dict.fromkeys([*runs.line, *seconds.line])
    handles = [Line2D([], [], color=LOOKS[line].colour, marker=LOOKS[line].marker) for line in lines]
    for handle, line in zip(handles, lines):
        handle.set(linestyle=LOOKS[line].line)
    figure.legend(handles, lines, loc="outside lower left")
    return figure


TEXT = 52  # letters in a line of one column, about
SPACE = 0.06  # inches between questions
LANE, OTHER = 0.28, 0.1  # inches, of an interval with its two lines of text beside it, and between those of two views
VIEWS = {"zoom": ("the same, test images enlarged", "^"), "scale_aspect": ("the same, images cut as in training", "v")}
WIDE = 20.0  # points of difference; an axis of more is linear only around zero


def answers(table: pd.DataFrame) -> plt.Figure:
    """Each question with its difference, 95% interval and verdict, as wide as one column; several topics take two.

    Expects a table of answers of one data set. Needed are its columns claim, n, n_other, difference, low, high, margin and
    verdict; where they are there, topic, control, better and other (the sides, in words), not_worse_by, failed, failed_other
    and difference_VIEW, low_VIEW and high_VIEW are shown, too. If differences are far apart, the axis is logarithmic
    beyond one point.
    """
    table = table[(table.n > 0) & (table.n_other > 0)]
    topics = [part for _, part in table.groupby("topic", sort=False)] if "topic" in table else [table]
    several = len(topics) > 1
    differ = len({*table.n, *table.n_other}) > 1
    blocks = [[_said(row, differ) for row in part.to_dict("records")] for part in topics]
    views = [view for view in VIEWS if f"low_{view}" in table]
    lane = max(LANE, OTHER * (len(views) + 1.6))
    heights = [sum(LINE * len(text) + lane + SPACE for text in block) for block in blocks]  # of the axes
    columns: list[list[int]] = [[], []]
    for number in sorted(range(len(topics)), key=lambda number: -heights[number]):  # the longest first, to the shorter column
        columns[int(_sum(heights, columns[0]) > _sum(heights, columns[1]))].append(number)
    columns = [sorted(column) for column in columns]
    key = _key(table, views)
    above, below = 0.32 * several, 0.25 + 2 * LINE  # inches, of a topic's title and its axis
    height = max(_sum(heights, column) + (above + below) * len(column) for column in columns) + (len(key) + 0.5) * LINE
    width = TWO_COLUMNS if several else ONE_COLUMN
    figure = plt.figure(figsize=(width, height))
    for column, left in zip(columns, (0.1, TWO_COLUMNS - ONE_COLUMN + 0.1)):
        top, drawn = height, []
        for number in column:
            top -= above + heights[number]
            axes = figure.add_axes((left / width, top / height, 2.1 / width, heights[number] / height))
            _lanes(axes, topics[number], blocks[number], views, lane)
            drawn.append(axes.get_xscale())
            if several:
                topic = topics[number].topic.iloc[0]
                axes.set_title("\n".join(wrap(names.TOPICS.get(topic, topic), TEXT - 4)))
            top -= below
        if column:
            far = "; log beyond 1" if "symlog" in drawn else ""
            label = f"points of top-1: the side that the claim is for\nminus the other (right of 0: it is better{far})"
            axes.set_xlabel(label, loc="left")
    figure.legend(
        *zip(*key),
        loc="lower left",
        bbox_to_anchor=(0.03 / width, 0.1 * LINE / height),
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        handlelength=3.5,
        handletextpad=0.5,
        labelspacing=LINE * 9 - 1,  # lines of 8 points in LINE
        borderaxespad=0,
        borderpad=0,
    )
    return figure


def _key(table: pd.DataFrame, views: list[str]) -> list[tuple[Any, str]]:
    """What is drawn, and what it means: the lines of a legend. Verdicts stand beside their points."""
    n = sorted({*table.n, *table.n_other})
    seeds = " to ".join(map(str, dict.fromkeys((n[0], n[-1]))))
    looks = [LOOKS[verdict] for verdict in dict.fromkeys(table.verdict)]
    marks = tuple(Line2D([], [], color=look.colour, marker=look.marker, linewidth=1.6) for look in looks)
    key: list[tuple[Any, str]] = [(marks, f"test view, 95% interval; n = {seeds} seeds a side")]
    look: dict[str, Any] = dict(color=INK, fillstyle="none", linewidth=0.8, markersize=4, markeredgewidth=0.8)
    key += [(Line2D([], [], marker=VIEWS[view][1], **look), VIEWS[view][0]) for view in views]
    allowed = table.not_worse_by if "not_worse_by" in table else 0 * table.margin
    said = [f"within \u00b1{margin:g}: too small to count" for margin in table.margin[allowed == 0].unique()]
    said += [f"\u2212{most:g} to 0: allowed by the claim" for most in allowed[allowed > 0].unique()]
    return key + [(Patch(color=PALE, alpha=0.6, linewidth=0), text) for text in said]


def beds(table: pd.DataFrame) -> plt.Figure:
    """Each claim with its difference and 95% interval on every data set, and whether these agree. Expects `beds.table`."""
    data = list(dict.fromkeys(table.data))
    below, lane = 0.45, 0.15  # inches, of the axis below; of an interval
    blocks = []
    for claim, rows in table.groupby("claim", sort=False):
        tuned = f" ({rows.numbers.iloc[0]})" if rows.numbers.iloc[0] else ""
        text = wrap(f"{claim}{tuned}: {rows.agreement.iloc[0]}", TEXT)
        blocks.append((text, rows, max(LINE * len(text), lane * len(rows)) + SPACE))
    total = sum(height for *_, height in blocks)
    figure = plt.figure(figsize=(TWO_COLUMNS, total + below + 2 * LINE))
    axes = figure.add_axes((0.5, below / figure.get_figheight(), 0.35, total / figure.get_figheight()))
    y = 0.0
    for text, rows, height in blocks:
        axes.text(-1.38, y, "\n".join(text), va="top", transform=axes.get_yaxis_transform(), linespacing=1.25)
        for place, row in enumerate(rows.itertuples()):
            look, at = BEDS[data.index(row.data)], y + lane * (place + 0.5)
            axes.plot([row.low, row.high], [at, at], look.line, color=look.colour)
            axes.plot(row.difference, at, look.marker, color=look.colour)
            axes.text(1.03, at, row.verdict, va="center", transform=axes.get_yaxis_transform())
        y += height
    axes.axvline(0, color=GREY, linewidth=0.8)
    # Differences are of tenths of a point and of tens: linear up to one point, logarithmic beyond.
    axes.set_xscale("symlog", linthresh=1, linscale=1)
    axes.set(ylim=(y, 0), yticks=[], xlabel="difference in top-1, points, with 95% interval; logarithmic beyond \u00b11")
    ticks = [tick for tick in (-10, -1, 0, 1, 10) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick}".replace("-", "\u2212") for tick in ticks])
    axes.xaxis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=range(2, 10)))
    axes.spines["left"].set_visible(False)
    for each, look in zip(data, BEDS):
        axes.plot([], [], look.line, color=look.colour, marker=look.marker, label=each)
    figure.legend(loc="upper left", ncols=len(data), bbox_to_anchor=(0.01, 1), borderaxespad=0)
    return figure


def _sum(heights: list[float], chosen: list[int]) -> float:
    return sum(heights[number] for number in chosen)


def _said(row: dict, counts: bool) -> list[str]:
    """A question's lines of text: the claim, its sides if they have names, and how many runs failed if some did.

    With `counts`, each side's number of seeds; without, the legend has the one that all share.
    """
    lines = wrap(row["claim"] + (" (control)" if row.get("control") else ""), TEXT)
    if "better" in row:
        seeds = (f", n\xa0=\xa0{row['n']},", f", n\xa0=\xa0{row['n_other']}") if counts else ("", "")
        lines += wrap(f"{row['better']}{seeds[0]} minus {row['other']}{seeds[1]}", TEXT)
    if row.get("failed", 0) + row.get("failed_other", 0):
        lines.append(f"{row['failed']} of {row['n']} runs failed, against {row['failed_other']} of {row['n_other']}")
    return lines


def _lanes(axes: Axes, table: pd.DataFrame, texts: list[list[str]], views: list[str], lane: float) -> None:
    """The questions of one axis, whose height is in inches: of each its text, and below it the intervals with the verdict."""
    low, high = _limits(table, views)
    y = 0.0
    for row, text in zip(table.to_dict("records"), texts):
        look = LOOKS[row["verdict"]]
        axes.text(0, y, "\n".join(text), va="top", transform=axes.get_yaxis_transform(), linespacing=1.25)
        y += LINE * len(text)
        bottom, allowed = y + lane, row.get("not_worse_by", 0)
        edges = (-allowed, 0) if allowed else (-row["margin"], row["margin"])
        axes.fill_between(edges, y, bottom, color=PALE, alpha=0.6, linewidth=0)
        axes.vlines(0, y, bottom, color=GREY, linewidth=0.8)
        first = y + (0.8 * OTHER if views else lane / 2)
        drawn = [("", first, look.colour, look.marker, 1.6)]
        drawn += [(f"_{view}", first + OTHER * n, INK, VIEWS[view][1], 0.8) for n, view in enumerate(views, start=1)]
        for view, at, colour, marker, width in drawn:
            middle, beyond = row[f"difference{view}"], dict(color=colour, linewidth=width, shrinkA=0, shrinkB=0)
            for end in (row[f"low{view}"], row[f"high{view}"]):
                arrow = beyond | {"arrowstyle": "-" if low <= end <= high else "->"}
                if not pd.isna(end):
                    axes.annotate("", (min(max(end, low), high), at), (middle, at), arrowprops=arrow)
            hollow: dict[str, Any] = dict(fillstyle="none", markersize=3.5, markeredgewidth=0.8) if view else {}
            axes.plot(middle, at, marker, color=colour, **hollow)
        number = f"{row['difference']:+.2f}".replace("-", "\u2212")
        axes.annotate(f"{number}\n{row['verdict']}", (1.03, y + LANE / 2), xycoords=("axes fraction", "data"), va="center")
        y = bottom + SPACE
    if high - low > WIDE:
        axes.set_xscale("symlog", linthresh=1)
        ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick}".replace("-", "\u2212") for tick in ticks])
        axes.xaxis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=range(2, 10)))
    axes.set(xlim=(low, high), ylim=(y, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)


def _limits(table: pd.DataFrame, views: list[str]) -> tuple[float, float]:
    """An axis for all differences, and for those intervals that are not many times as wide as the others."""
    ends = [pd.Series([0.0]), -table.margin, table.margin]
    for view in ("", *(f"_{each}" for each in views)):
        half = (table[f"high{view}"] - table[f"low{view}"]) / 2
        usual = half <= 5 * half.median()
        ends += [table[f"difference{view}"], table[f"low{view}"][usual], table[f"high{view}"][usual]]
    everything = pd.concat(ends)
    room = 0.05 * (everything.max() - everything.min())
    return everything.min() - room, everything.max() + room


def interval(groups) -> tuple[pd.Series, pd.Series]:
    """Mean and half of the 95% interval (Student's t) of a grouped column; with one value the half is nan, and not drawn."""
    n = groups.count()
    return groups.mean(), groups.sem() * np.where(n > 1, stats.t.ppf(0.975, np.maximum(n - 1, 1)), np.nan)


def budget(points: pd.DataFrame, over: str = "epochs") -> plt.Figure:
    """Top-1 over the epochs of all training that led to a model or an ensemble. Expects `tables.budget` or `anytime`.

    Or over its cost of inference: then expects `ensembles.costs`, with its column "operations".
    """
    figure, axes = plt.subplots(layout="constrained", figsize=(TWO_COLUMNS, 3.6))
    lines, single, means = [], [], []
    for label, part in points.groupby("label", sort=False):
        look, line = LOOKS[label], part.line.iloc[0]
        mean, half = interval(part.groupby(over).top1)
        means += [(top1, place) for place, top1 in mean.items()]
        axes.errorbar(mean.index, mean, half, fmt=look.marker, linestyle=look.line if line else "", color=look.colour)
        entry = (mean.index[-1], mean.iloc[-1], "\n".join(wrap(label, 24 if line else 30)), look.colour)
        (lines if line else single).append(entry)
    what = {"epochs": "epochs of all training that led to it", "operations": "multiply-adds for an image, millions"}
    axes.set(xlabel=what[over], ylabel="test top-1, %")
    (lowest, at), (second, _), *others = sorted(means) if len(means) > 5 else [(0.0, 0.0)] * 2
    if others and second - lowest > 2 * (others[-1][0] - second):  # alone far below: in words, so the others can be told apart
        axes.set_ylim(bottom=second - 1)
        axes.annotate(
            f"\u2193 {lowest:.1f}",
            (at, 0),
            (0, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
        )
    beside(axes, lines, 0.11)
    for place in sorted({entry[0] for entry in single}):  # beside their points: what has the same budget stands in a column
        at = axes.transLimits.transform((place, 0))[0]
        beside(axes, [entry for entry in single if entry[0] == place], 0.1, at + 0.03)
    return figure


def disagreement(pairs: pd.DataFrame) -> plt.Figure:
    """How often two models predict different classes, a point per pair and seed. Expects `ensembles.analysed`'s pairs."""
    kinds = [kind for kind in (names.MEMBERS_OF_ONE, names.SAME_OF_TWO, names.THREE_MODELS) if kind in set(pairs.kind)]
    figure, axes = plt.subplots(layout="constrained", figsize=(ONE_COLUMN, 0.8 * len(kinds) + 0.5))
    for position, kind in enumerate(kinds):
        look, part = LOOKS[kind], pairs[pairs.kind == kind]
        axes.plot(part.disagreement, [position] * len(part), look.marker, color=look.colour, alpha=0.6, markeredgewidth=0)
        axes.plot(part.disagreement.mean(), position, "|", color=INK, markersize=16, markeredgewidth=1.5)
        error = 100 - part.top1.mean()
        said = f"{part.disagreement.mean():.1f}%; a model errs on {error:.1f}%"
        axes.annotate(
            f"{kind}:\n{said}", (0, position), (0, 13), textcoords="offset points", xycoords=("axes fraction", "data")
        )
    axes.set(xlabel="images with different classes, %", ylim=(len(kinds) - 0.6, -0.8), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    return figure


def reliability(diagrams: pd.DataFrame, titles: dict[tuple[str, str], str]) -> plt.Figure:
    """Accuracy over confidence of each model, and how many test images have that confidence; all seeds together.

    Expects `ensembles.analysed`'s calibration. `titles` has the models to show: (recipe, members) and their names.
    """
    figure, axes = plt.subplots(
        2, len(titles), layout="constrained", figsize=(TWO_COLUMNS, 3.2), sharex=True, sharey="row", height_ratios=(2, 1)
    )
    for (upper, lower), ((recipe, members), title) in zip(axes.T, titles.items()):
        part = diagrams[(diagrams.recipe == recipe) & (diagrams.members == members)]
        seeds = part.seed.nunique()
        sums = part.assign(confidence=part.confidence * part.test_images, top1=part.top1 * part.test_images)
        bins = sums.groupby("confidence_low")[["test_images", "confidence", "top1"]].sum()
        filled = bins[bins.test_images > 0]
        confidence, top1 = filled.confidence / filled.test_images, filled.top1 / filled.test_images
        upper.plot([0, 100], [0, 100], ":", color=GREY, linewidth=1)
        upper.plot(confidence, top1, LOOKS[MEMBER].marker, color=names.BLUE, linestyle="-", linewidth=1)
        gap = ((top1 - confidence).abs() * filled.test_images).sum() / filled.test_images.sum()
        upper.set_title(f"{title}\n(n = {seeds}; error {gap:.1f} points)", weight="normal")
        width = 100 / len(bins)
        lower.bar(bins.index, bins.test_images / seeds, width, align="edge", color=names.BLUE, edgecolor="white", linewidth=0.3)
        lower.set_yscale("log")
    axes[0, 0].set(ylabel="test top-1, %", xlim=(0, 100), ylim=(0, 100))
    axes[1, 0].set(ylabel="images of a seed")
    figure.supxlabel("confidence: the largest probability, %", fontsize=8)
    return figure


def paths(table: pd.DataFrame) -> plt.Figure:
    """Loss and top-1 on straight paths between models: mean over seeds, and the band of all. Expects `landscape.paths`.

    Members of one run are on the left, models of separate beginnings on the right: each with its own axis.
    """
    figure, panels = plt.subplots(2, 2, layout="constrained", figsize=(TWO_COLUMNS, 3.6), sharex=True)
    lines = dict(zip([("five_members", pair) for pair in ("1 2", "2 3", "1 3")] + [("three_models", "1 2")], names.PAIRS))
    for place, recipe in enumerate(("five_members", "three_models")):
        for axes, column in zip(panels[:, place], ("loss", "top1")):
            for members, part in table[table.recipe == recipe].groupby("members", sort=False):
                label = lines[recipe, " ".join(re.findall(r"\d", str(members)))]
                look, over = LOOKS[label], part.groupby("share")[column]
                axes.plot(
                    over.mean(), look.marker, linestyle=look.line, color=look.colour, markersize=3, linewidth=1, label=label
                )
                axes.fill_between(over.mean().index, over.min(), over.max(), color=look.colour, alpha=0.15, linewidth=0)
        panels[0, place].legend()
        panels[1, place].set_xlabel("share of the second model's weights")
    panels[0, 0].set(ylabel="test loss", title=f"n = {table.seed.nunique()}")
    panels[1, 0].set_ylabel("test top-1, %")
    return figure


def sharpness(table: pd.DataFrame) -> plt.Figure:
    """The rise of the training loss along random directions, before and after a collapse. Expects `landscape.sharpness`.

    A panel per view: mean over collapses, seeds and directions, and the band of all models' means over directions.
    """
    shown = {"none": "loss in the collapse's view", "scale_aspect": "loss in the main stages' view"}
    figure, panels = plt.subplots(1, 2, layout="constrained", figsize=(TWO_COLUMNS, 2.3), sharey=True)
    for axes, (view, title) in zip(panels, shown.items()):
        for label, begins in ((names.BEFORE, "cyc"), (names.AFTER, "collapse")):
            part = table[(table["view"] == view) & table.members.str.startswith(begins)]
            model = part.groupby(["radius", "members", "seed"]).rise.mean().groupby("radius")
            look = LOOKS[label]
            axes.plot(model.mean(), look.marker, linestyle=look.line, color=look.colour, label=label)
            axes.fill_between(model.mean().index, model.min(), model.max(), color=look.colour, alpha=0.15, linewidth=0)
        axes.set_title(title, weight="normal")
        axes.set(xlabel="length of the step, share of each filter's", xlim=(0, None), ylim=(0, None))
    panels[0].set_ylabel("rise of the training loss")
    panels[0].legend(loc="upper left")
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
        axes.annotate(text, (row.minutes, position), (6, 0), textcoords="offset points", va="center", weight=weight)
    labels = [f"{row.run}, {row.year}" + ("" if pd.isna(row.hardware) else f": {row.hardware}") for row in table.itertuples()]
    axes.set_yticks(range(len(table)), labels)
    for label, own in zip(axes.get_yticklabels(), ours):
        label.set_fontweight("bold" if own else "normal")
    axes.set_xscale("log")
    axes.set_xlabel("published minutes to train on ImageNet-1K, and top-1", loc="right")
    axes.set_xlim(table.minutes.min() / 1.5, table.minutes.max() * 400)
    thousands(axes.xaxis, [0.1, 1, 10, 100, 1000])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(table) - 0.4)
    return figure


def step_parts(table: pd.DataFrame) -> plt.Figure:
    """MODEL: where the time of a step goes on the paper's nodes, with averages after or during the backward pass.

    At each bar's end is the efficiency. Expects `tables.on_the_papers_nodes`. The parts are medians over what was not
    published, so they need not add up exactly.
    """
    figure, all_axes = plt.subplots(2, 1, layout="constrained", figsize=(ONE_COLUMN, 3.8))
    parts = {"compute": "computing", "waiting": "waiting", "allreduce": "averaging"}
    for axes, (images, rows) in zip(all_axes, table.groupby("images")):
        labels = []
        for position, row in enumerate(rows.itertuples()):
            labels.append(f"{row.nodes:,} nodes, " + ("during" if row.buckets > 1 else "after"))
            left = 0.0
            for part, label in parts.items():
                look, width = LOOKS[part], 1000 * getattr(row, part)
                axes.barh(
                    position, width, left=left, color=look.colour, hatch=look.marker, edgecolor="white", height=0.7, label=label
                )
                left += width
            axes.annotate(f" {row.efficiency:.0f}%", (left, position), va="center")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(title=f"{images} images per process")
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.margins(x=0.16)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    all_axes[1].set_xlabel("milliseconds of a step, by MODEL")
    figure.legend(*(entries[:3] for entries in all_axes[0].get_legend_handles_labels()), loc="outside lower right", ncols=3)
    return figure


def scaling(measured: pd.DataFrame, model: pd.DataFrame) -> plt.Figure:
    """Measured steps beside the model; then efficiency, minutes and minutes to an accuracy over nodes, with 5 to 95% bands.

    Expects `tables.measured_throughput` and `tables.extrapolated`.
    """
    figure, (steps, efficiency, minutes, accuracy) = plt.subplots(4, 1, layout="constrained", figsize=(ONE_COLUMN, 6.3))
    ends = []
    for look, (ranks, part) in zip(names.RANKS, measured.groupby("ranks")):
        spread = [part.seconds - part.low, part.high - part.seconds]
        steps.errorbar(part.images, part.seconds, spread, fmt=look.marker, color=look.colour)
        steps.plot(part.images, part.seconds_MODEL, "--", color=look.colour, linewidth=0.8)
        ends.append((part.images.iloc[-1], part.seconds.iloc[-1], f"{ranks} rank" + "s" * (ranks > 1), look.colour))
    steps.set_xticks(sorted(measured.images.unique()))
    steps.set(
        xlabel="images of a rank",
        ylabel="seconds of a step",
        ylim=(0, None),
        title=f"{measured.model[0]}, {measured['size'][0]} px: measured\n(points) and MODEL (dashed)",
    )
    beside(steps, ends, 0.13)
    few = "" if model.n.min() >= 3 else f" (no bands: n = {model.n.min()})"
    efficiency.set(ylabel="efficiency, %", ylim=(0, 105), title=f"MODEL: efficiency{few}")
    minutes.set(ylabel="minutes", yscale="log", title="MODEL: 90 epochs of ImageNet-1K")
    accuracy.set(ylabel="minutes", yscale="log", title="MODEL: epochs of published runs to 75.9%")
    accuracy.set_xlabel(f"nodes like this one, {model.interconnect[0]} assumed")
    for axis, column in ((efficiency, "efficiency"), (minutes, "minutes"), (accuracy, "minutes_to_accuracy")):
        ends = []
        for (regime, buckets), part in model.groupby(["scaling", "buckets"], sort=False):
            part, look, line = part.dropna(subset=column), LOOKS[regime], "--" if buckets == 1 else "-"
            axis.plot(part.nodes, part[column], line, color=look.colour, linewidth=1)
            band = part[f"{column}_low"], part[f"{column}_high"]
            axis.fill_between(part.nodes, *band, color=look.colour, alpha=0.15, linewidth=0)
            if len(part):
                text = f"{regime}, " + ("after" if buckets == 1 else "during")
                ends.append((part.nodes.iloc[-1], part[column].iloc[-1], text, look.colour))
        axis.set_xscale("log", base=2)
        axis.set(xlim=(model.nodes.min(), model.nodes.max()))
        thousands(axis.xaxis, [1, 8, 64, 512, 4096])
        beside(axis, ends, 0.13)
    return figure


FEWEST_NODES = 64  # that are drawn: on fewer, the smallest batch is the best, and all times fall as the nodes grow


def time_to_accuracy(published: pd.DataFrame, small: pd.DataFrame) -> plt.Figure:
    """Minutes to an accuracy over nodes, by batch and at the best one; beside it, the speed-up of each method's best batch.

    Expects `tables.published_time_to_accuracy` and `tables.time_to_accuracy`; without rows of the latter it is left out.
    """
    published, small = (table[table.nodes >= FEWEST_NODES] for table in (published, small))
    both = len(small) > 0
    figure, axes = plt.subplots(
        1, 1 + both, layout="constrained", figsize=(TWO_COLUMNS if both else ONE_COLUMN, 2.9), squeeze=False
    )
    left, ends = axes[0, 0], []
    best = published[published["first"]].sort_values("nodes")
    for batch, part in published.groupby("batch"):
        left.plot(part.nodes, part.minutes, color=GREY, linewidth=0.6)
        if batch in {published.batch.min(), *best.batch, published.batch.max()}:
            ends.append((part.nodes.iloc[-1], part.minutes.iloc[-1], f"{batch:,}", GREY))
    look = LOOKS[best.method.iloc[0]]
    left.plot(best.nodes, best.minutes, color=look.colour, linewidth=2)
    left.fill_between(best.nodes, best.minutes_low, best.minutes_high, color=look.colour, alpha=0.15, linewidth=0)
    left.set(ylabel="minutes", yscale="log", title=f"MODEL: {best.target.iloc[0]:g}% on ImageNet-1K, by batch")
    thousands(left.yaxis, [3, 10, 30, 100])
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.set(xlim=(FEWEST_NODES, published.nodes.max()), xlabel="nodes like those of R3")
        thousands(axis.xaxis, [64, 256, 1024, 4096])
    beside(left, ends, 0.08)
    if both:
        right, nodes = axes[0, 1], published.nodes.unique()
        for method, part in small[small["first"]].groupby("method", sort=False):
            part, look = part.sort_values("nodes"), LOOKS[method]
            right.plot(part.nodes, part.speedup, look.line, marker=look.marker, color=look.colour, markersize=3, label=method)
        right.plot(nodes, nodes, color=PALE, zorder=0)
        right.set(
            ylabel="speed-up over one node", yscale="log", title=f"MODEL: {small.target.iloc[0]:.1f}%, epochs of small runs"
        )
        thousands(right.yaxis, [30, 100, 300, 1000, 3000])
        figure.legend(loc="outside lower right")
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
    rows = {MEMBER: "a member", ENSEMBLE: "the ensemble", ONE_MODEL: "one model,\nas many images,\nas many in the\ntest's view"}
    points = points[points.label.isin(rows) & (points.members <= 3)]
    points = points[points.epochs == points.groupby("label").epochs.transform("max")]
    for position, label in enumerate(rows):
        look, top1 = LOOKS[label], points[points.label == label].top1
        right.plot(top1, [position] * len(top1), look.marker, color=look.colour, alpha=0.6, markeredgewidth=0)
        right.plot(top1.mean(), position, "|", color=INK, markersize=16, markeredgewidth=1.5)
        right.annotate(f"{top1.mean():.1f}", (1.02, position), xycoords=("axes fraction", "data"), va="center")
    right.set_yticks(range(len(rows)), rows.values())
    right.tick_params(axis="y", length=0)
    right.set_title(f"Its result\non {points.data.iloc[0]}, n = {points.seed.nunique()}")
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
            axis.annotate(text, (shown.loc[part.rate.idxmax()], part.rate.max()), (2, 3), textcoords="offset points")
    for stage, end in ends.items():
        axis.annotate(
            f"member {stage[-1]}" if stage == "collapse1" else stage[-1],
            (end, 0),
            (0, -6),
            textcoords="offset points",
            ha="center",
            va="top",
        )
    top = rates.rate.max()
    said = (
        (1.28, member.colour, "A collapse takes the rate to zero, on images\nas in the test's view, and leaves a member."),
        (1.06, INK, "The next cycle starts from before it.\nThe ensemble is the mean of the\nmembers' predictions."),
    )
    for height, colour, text in said:
        axis.text(29, height * top, text, color=colour, va="top")
    axis.annotate("Jumps: as in\nthe release.", (6, 0.32 * top), color=GREY, va="top")
    for place in ((5, 0.94 * top), (25, 0.6 * top)):
        line = dict(arrowstyle="-", color=GREY, linewidth=0.5, shrinkA=0, shrinkB=3)
        axis.annotate("", place, (9, 0.33 * top), arrowprops=line)
    axis.grid(visible=False)
    axis.set_title("The Collapsed Ensemble's learning rate, as for ImageNet")
    axis.set(xlabel="epochs that lead to a model", ylabel="learning rate", yticks=(0, 0.5, 1, 1.5))
    axis.set(xlim=(-2, 80), ylim=(-0.19 * top, 1.32 * top))
