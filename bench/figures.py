"""The figures of the benchmarks, each as a function of a tidy table, in the style of the paper's figures."""

from textwrap import wrap

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

from repro.paper.figures import ONE_COLUMN, TWO_COLUMNS, beside, interval, thousands
from repro.paper.names import GREY, INK, LOOKS, MEMBER

matplotlib.use("agg")  # figures are only saved, so no display is needed that the user's matplotlibrc may ask for

SIZES_SHOWN = {  # stage of collapse_parts, which differ in the view alone: label, look
    "zero-main-x1": ("ended in the training view", LOOKS["trunk"]._replace(marker="s")),
    "zero-crop-x1": ("ended in the collapse's view", LOOKS[MEMBER]),
}


def apparent_size(table: pd.DataFrame, medians: dict[str, float]) -> plt.Figure:
    """Top-1 over the size of what is tested: mean and 95% interval over seeds. Expects the table of `bench.apparent_size`.

    `medians` are the sizes at which each data set's training view shows the median object.
    """
    drawn = list(table.groupby(["data", "how"], sort=False))
    figure, panels = plt.subplots(
        len(drawn), 1, layout="constrained", figsize=(ONE_COLUMN, 2 * len(drawn)), sharex=True, squeeze=False
    )
    said = {"drawn": "drawn again (size alone)", "scaled": "scaled (size, sharpness)"}
    for axes, ((data, how), part) in zip(panels[:, 0], drawn):
        ends = []
        for stage, (label, look) in SIZES_SHOWN.items():
            mean, half = interval(part[part.stage == stage].groupby("size").top1)
            axes.errorbar(mean.index, mean, half, fmt=look.marker, linestyle=look.line, color=look.colour)
            ends.append((mean.index[-1], mean.iloc[-1], "\n".join(wrap(label, 16)), look.colour))
        axes.set(title=f"{data}: {said[how]}", ylabel="top-1, %")
        beside(axes, ends, 0.3)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - 0.15 * (top - bottom), top)  # room for the two words
        for size, text in ((1, "test\nview"), (medians[data], "training\nview")):
            axes.axvline(size, color=GREY, linewidth=0.8, zorder=0)
            axes.annotate(text, (size, 0.02), (3, 0), ("data", "axes fraction"), "offset points")
    panels[-1, 0].set_xlabel("size of what is tested, test set = 1")
    return figure


def ratios(rows: pd.DataFrame) -> plt.Figure:
    """The ratios ours / peer of `make bench` beside their goals: one point per round, a bar for the ratio of the medians.

    Expects columns label, round, ratio (of that round), of_medians, sign (">=" or "<=") and bound of the goal, met (bool).
    """
    labels = list(dict.fromkeys(rows.label))
    figure, axes = plt.subplots(layout="constrained", figsize=(TWO_COLUMNS, 0.36 * len(labels) + 0.7))
    for position, label in enumerate(reversed(labels)):
        shown = rows[rows.label == label]
        met = shown.met.iloc[0]
        axes.plot(shown.ratio, [position] * len(shown), ".", color=GREY, markersize=3)
        colour = LOOKS["supported" if met else "contradicted"].colour
        axes.plot(shown.of_medians.iloc[0], position, "|", color=colour, markersize=12, markeredgewidth=2.5)
        axes.plot(shown.bound.iloc[0], position, shown.sign.iloc[0][0], color=INK, markersize=5)  # the marker > or <
        axes.annotate(
            f"{shown.of_medians.iloc[0]:.3g}, goal {'met' if met else 'missed'}",
            (1.02, position),
            xycoords=("axes fraction", "data"),
            va="center",
        )
    axes.set_yticks(range(len(labels)), ["\n".join(wrap(label, 52)) for label in reversed(labels)])
    axes.set(xscale="log", xlabel="ours / peer (points: rounds; bar: ratio of the medians; triangle: goal)")
    low, high = rows[["ratio", "bound", "of_medians"]].stack().agg(["min", "max"])
    axes.set_xlim(low / 1.1, high * 1.1)
    thousands(
        axes.xaxis,
        [tick for tick in (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 3, 5, 10, 20, 50, 100) if low / 1.1 <= tick <= high * 1.1],
    )
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    return figure
