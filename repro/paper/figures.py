"""Each figure as a function of a tidy table, in one seaborn style; `save` puts the table that it plots beside it."""

from pathlib import Path
from textwrap import wrap

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from scipy import stats

from repro.paper.questions import ENSEMBLE_LABEL as ENSEMBLE
from repro.paper.questions import MEMBER_LABEL as MEMBER
from repro.paper.questions import ONE_MODEL_LABEL as ONE_MODEL
from repro.paths import replacing

sns.set_theme(
    style="whitegrid",
    context="notebook",
    palette="colorblind",
    rc={"figure.dpi": 100, "savefig.bbox": "tight", "axes.titlesize": "medium", "svg.hashsalt": "repro"},
)


def save(figure: plt.Figure, table: pd.DataFrame, results: Path | str, name: str) -> None:
    """Writes figures/name.svg, .png and .csv (what the figure plots) into the results folder."""
    folder = Path(results) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("svg", "png"):
        with replacing(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
    with replacing(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def image_grid(rows: dict[str, list]) -> plt.Figure:
    """A grid of images, each (H, W, 3) in RGB or (H, W), with one named row per entry."""
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.5 * columns, 1.5 * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for row, (name, images) in zip(axes, rows.items()):
        row[0].set_ylabel(name)
        for axis, image in zip(row, images):
            axis.imshow(image, cmap="gray")
    figure.tight_layout()
    return figure


def learning_rates(rates: pd.DataFrame, columns: int = 3) -> plt.Figure:
    """The learning rate of every recipe over epochs, as released and as designed. Expects `tables.rates`."""
    grid = sns.relplot(
        rates,
        x="epoch",
        y="rate",
        hue="formula",
        style="formula",
        col="recipe",
        col_wrap=columns,
        kind="line",
        estimator=None,
        height=2.3,
        aspect=1.6,
        facet_kws={"sharex": False, "sharey": False},
    )
    grid.set_titles("{col_name}").set_axis_labels("epoch", "learning rate")
    sns.move_legend(grid, "lower center", bbox_to_anchor=(0.5, 1), ncol=2, title=None)
    grid.figure.tight_layout()
    return grid.figure


def training_curves(curves: pd.DataFrame) -> plt.Figure:
    """Test accuracy and training loss over epochs: mean over seeds, band of one standard deviation.

    Expects `tables.curves` of one data set and one shrink. A line is labelled with its recipe, with the model if there are
    several, and with the variant if it is not the default.
    """
    label = curves.recipe + (", " + curves.model if curves.model.nunique() > 1 else "")
    curves = curves.assign(label=label.where(curves.variant == "", label + ", " + curves.variant))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 7.5), sharex=True)
    tested = curves.dropna(subset="top1")
    shared = dict(
        x="epoch",
        hue="label",
        style="label",
        errorbar="sd",
        hue_order=sorted(curves.label.unique()),
        style_order=sorted(curves.label.unique()),
    )
    sns.lineplot(tested, y="top1", ax=top, markers=True, markersize=5, **shared)
    sns.lineplot(curves.assign(epoch=curves.epoch.round()), y="train_loss", ax=bottom, legend=False, **shared)
    # The first epochs are so far below that the interesting part would be a thin strip at the top.
    low = tested[tested.epoch > tested.epoch.max() / 5].top1.min()
    top.set(ylabel="test top-1, %", ylim=(low - 2, tested.top1.max() + 1))
    bottom.set(xlabel="epoch (images seen / training images)", ylabel="training loss")
    n = curves.groupby("label").seed.nunique()
    top.set_title(
        f"{curves.data.iloc[0]}: mean and standard deviation over n = {n.min()} seeds"
        if n.min() == n.max()
        else f"{curves.data.iloc[0]}: mean and standard deviation over {n.min()} to {n.max()} seeds"
    )
    sns.move_legend(top, "lower center", bbox_to_anchor=(0.5, 1.1), ncol=2, title=None, frameon=False)
    figure.tight_layout()
    return figure


VERDICTS = {"supported": "C2", "contradicted": "C3", "equivalent": "C0"}  # other verdicts are grey


def answers(table: pd.DataFrame) -> plt.Figure:
    """Each question's difference with its 95% interval, and in two other views. Expects `questions.answers` of one data set."""
    table = table[(table.n > 0) & (table.n_other > 0)].iloc[::-1]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(table) + 1.5))
    margin = table.margin.iloc[0]
    axes.axvspan(-margin, margin, color="0.9", zorder=0)
    axes.axvline(0, color="0.3", linewidth=1)
    for position, row in enumerate(table.itertuples()):
        colour = VERDICTS.get(row.verdict, "0.5")
        axes.plot([row.low, row.high], [position] * 2, color=colour, linewidth=2)
        axes.plot(row.difference, position, "o", color=colour)
        axes.plot(row.difference_zoom, position, "+", color="0.3", markersize=6)
        axes.plot(row.difference_scale_aspect, position, "x", color="0.3", markersize=5)
        text = row.verdict + (" (control)" if row.control else "")
        axes.annotate(text, (1.01, position), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set_yticks(range(len(table)), ["\n".join(wrap(claim, 64)) for claim in table.claim], fontsize=8)
    n = sorted({*table.n, *table.n_other})
    axes.set_title(
        f"{table.data.iloc[0]}, {table.shrink.iloc[0]}: n = {' to '.join(map(str, dict.fromkeys((n[0], n[-1]))))} seeds"
    )
    axes.set_xlabel(
        f"difference in top-1, points (95% interval; grey: +-{margin:g}; + enlarged test view, x training view)", fontsize=9
    )
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.02)
    figure.tight_layout()
    return figure


SIZES_SHOWN = {  # stage of collapse_parts: label, colour
    "plain": ("plain end, training view", "C0"),
    "zero-crop-x1": ("collapse in the crop's view", "C3"),
}


def apparent_size(table: pd.DataFrame, median: float) -> plt.Figure:
    """Top-1 over the size of what is tested: mean and 95% interval over seeds. Expects the table of `bench.apparent_size`.

    `median` is the size at which the training view shows the median object.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    titles = {"drawn": "only the size changes (drawn again)", "scaled": "size and noise change (scaled)"}
    for axes, (how, title) in zip(panels, titles.items()):
        for stage, (label, colour) in SIZES_SHOWN.items():
            rows = table[(table.how == how) & (table.stage == stage)]
            shared = dict(x="size", y="top1", ax=axes, color=colour, label=label, legend=how == "scaled")
            sns.lineplot(rows, errorbar=("ci", 95), marker="o", **shared)
        for size, text in ((1, "test view"), (median, "training view,\nmedian")):
            axes.axvline(size, color="0.6", linewidth=1, zorder=0)
            axes.annotate(text, (size, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="0.4", ha="left")
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="size of the digits, test set = 1", ylabel="top-1, %")
    panels[1].legend(fontsize=9, loc="upper right", frameon=False)
    panels[0].set_ylim(table[table["size"] >= 0.9].top1.min() - 2, table.top1.max() + 4)
    figure.suptitle(
        f"Digits: the collapse moves the size at which a model is best, n = {table.seed.nunique()} seeds", fontsize=12
    )
    figure.tight_layout()
    return figure


def budget(points: pd.DataFrame) -> plt.Figure:
    """Top-1 over the epochs of all training that led to a model or an ensemble. Expects `questions.budget`."""
    figure, axes = plt.subplots(figsize=(9, 5))
    colours = dict(zip(dict.fromkeys(points.label), sns.color_palette(n_colors=points.label.nunique())))
    for label, part in points.groupby("label", sort=False):
        found = part.groupby("epochs").top1
        mean, half = found.mean(), found.sem() * stats.t.ppf(0.975, found.count() - 1)
        line = dict(fmt="o-" if part.line.iloc[0] else "D", color=colours[label], capsize=3, label=label)
        axes.errorbar(mean.index, mean, half, **line)
    axes.set(xlabel="epochs of all training that led to it", ylabel="test top-1, %")
    axes.set_title(f"{points.data.iloc[0]}: mean and 95% interval over n = {points.seed.nunique()} seeds")
    axes.legend(title=None, fontsize=9, loc="lower right")
    figure.tight_layout()
    return figure


def time_to_train(table: pd.DataFrame) -> plt.Figure:
    """Published minutes to train on ImageNet-1K, one line per run, with its top-1. Expects `tables.time_to_train`."""
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(table) + 1.2))
    ours = table.run.str.startswith("Codreanu")
    for position, (row, own) in enumerate(zip(table.itertuples(), ours)):
        colour = "C3" if own else "0.35"
        axes.plot(row.minutes, position, "o", color=colour)
        accuracy = (
            ""
            if pd.isna(row.top1)
            else f"{row.top1}%"
            if str(row.top1)[-1].isdigit()
            else f"{str(row.top1).replace(' ', '% ')}"
        )
        text = f"{row.minutes:.3g} min" + (f", {accuracy}" if accuracy else "")
        axes.annotate(text, (row.minutes, position), (8, 0), textcoords="offset points", va="center", fontsize=9, color=colour)
    labels = [f"{row.run}, {row.year}" + ("" if pd.isna(row.hardware) else f": {row.hardware}") for row in table.itertuples()]
    axes.set_yticks(range(len(table)), labels, fontsize=9)
    for label, own in zip(axes.get_yticklabels(), ours):
        label.set_color("C3" if own else "0.2")
    axes.set(xscale="log", xlabel="minutes to train on ImageNet-1K, and top-1 (published)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(table.minutes.min() / 1.5, table.minutes.max() * 25)
    axes.grid(axis="y", visible=False)
    figure.tight_layout()
    return figure


def ratios(rows: pd.DataFrame) -> plt.Figure:
    """The ratios ours / peer of `make bench` beside their goals: one point per round, a bar for the ratio of the medians.

    Expects columns label, round, ratio (of that round), of_medians, sign (">=" or "<=") and bound of the goal, met (bool).
    """
    labels = list(dict.fromkeys(rows.label))
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(labels) + 1.2))
    for position, label in enumerate(reversed(labels)):
        shown = rows[rows.label == label]
        colour = "C2" if shown.met.iloc[0] else "C3"
        axes.plot(shown.ratio, [position] * len(shown), ".", color="0.6")
        axes.plot(shown.of_medians.iloc[0], position, "|", color=colour, markersize=18, markeredgewidth=3)
        axes.plot(shown.bound.iloc[0], position, shown.sign.iloc[0][0], color="0.3", markersize=7)  # the marker > or <
        axes.annotate(
            f"{shown.of_medians.iloc[0]:.3g}", (1.01, position), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    axes.set_yticks(range(len(labels)), ["\n".join(wrap(label, 60)) for label in reversed(labels)], fontsize=9)
    axes.set(xscale="log", xlabel="ours / peer  (points: rounds; bar: medians, green where the goal is met; triangle: goal)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    figure.tight_layout()
    return figure


def step_parts(table: pd.DataFrame) -> plt.Figure:
    """MODEL: where the time of a step goes on the paper's nodes, without and with overlap; at each bar's end the efficiency.

    Expects `tables.on_the_papers_nodes`. The parts are medians over what was not published, so they need not add up exactly.
    """
    figure, all_axes = plt.subplots(1, 2, figsize=(9, 2.9), sharey=True)
    parts = (("compute", "0.35", "computing"), ("waiting", "C1", "waiting for the slowest"), ("allreduce", "C0", "allreduce"))
    for axes, (images, rows) in zip(all_axes, table.groupby("images")):
        names = []
        for position, row in enumerate(rows.itertuples()):
            names.append(f"{row.nodes} nodes, " + ("overlapped" if row.buckets > 1 else "nothing hidden"))
            left = 0.0
            for part, colour, _ in parts:
                axes.barh(position, 1000 * getattr(row, part), left=left, color=colour, height=0.7)
                left += 1000 * getattr(row, part)
            axes.annotate(f" {row.efficiency:.0f}%", (left, position), va="center", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set(xlabel="ms per step (MODEL), and efficiency", title=f"{images} images per process")
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.16)
        axes.grid(axis="y", visible=False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour, _ in parts]
    figure.legend(handles, [name for _, _, name in parts], ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.94), fontsize=9)
    figure.tight_layout()
    return figure


def scaling(measured: pd.DataFrame, model: pd.DataFrame, published: pd.DataFrame) -> plt.Figure:
    """Measured steps beside the model; efficiency, minutes and minutes to an accuracy over nodes, with 5 to 95% bands.

    Expects `tables.measured_throughput`, `tables.extrapolated` and `tables.published_points`, which ran on other nodes.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    steps, efficiency, minutes, accuracy = axes.flat
    for colour, (ranks, part) in zip(("C0", "C1", "C2", "C3"), measured.groupby("ranks")):
        name = f"{ranks} rank" + "s" * (ranks > 1)
        steps.errorbar(
            part.images,
            part.seconds,
            [part.seconds - part.low, part.high - part.seconds],
            fmt="o",
            color=colour,
            capsize=3,
            label=f"{name}, measured (median, 5 to 95%)",
        )
        steps.plot(part.images, part.seconds_MODEL, "--", color=colour, label=f"{name}, MODEL")
    steps.set(
        xlabel="images per rank",
        ylabel="seconds per step",
        ylim=(0, None),
        title=f"{measured.model[0]}, {measured['size'][0]} px: one machine",
    )
    looks = {("weak", False): "C0", ("weak", True): "C2", ("strong", False): "C1", ("strong", True): "C3"}
    for (regime, buckets), part in model.groupby(["scaling", "buckets"], sort=False):
        name = f"{regime}, " + ("nothing hidden" if buckets == 1 else f"{buckets} buckets overlapped")
        for axis, column in ((efficiency, "efficiency"), (minutes, "minutes"), (accuracy, "minutes_to_accuracy")):
            axis.plot(part.nodes, part[column], color=looks[regime, buckets > 1], label=name)
            axis.fill_between(
                part.nodes,
                part[f"{column}_low"],
                part[f"{column}_high"],
                color=looks[regime, buckets > 1],
                alpha=0.15,
                linewidth=0,
            )
    efficiency.axhline(90, color="0.3", linewidth=1, linestyle=":")
    efficiency.annotate("abstract: above 90%", (model.nodes.min(), 90), (2, -11), textcoords="offset points", fontsize=9)
    few = "" if model.n.min() >= 3 else f" (no bands: timed steps n = {model.n.min()})"
    efficiency.set(ylabel="efficiency, % (of nodes without allreduce)", ylim=(0, 105), title=f"MODEL: efficiency{few}")
    minutes.plot(
        published.nodes, published.minutes, "D", color="0.2", markersize=5, zorder=3, label="published, on other nodes"
    )
    for number, row in enumerate(published.itertuples()):
        minutes.annotate(
            row.run.split(",")[0],
            (row.nodes, row.minutes),
            (6, -9 if number % 2 else 4),
            textcoords="offset points",
            fontsize=8,
        )
    for axis in (minutes, accuracy):
        axis.axhline(28, color="0.3", linewidth=1, linestyle=":")
        axis.annotate(
            "abstract: 28 minutes, on other nodes", (model.nodes.min(), 28), (2, 3), textcoords="offset points", fontsize=9
        )
        axis.set(yscale="log", ylim=(10, None))
    minutes.set(ylabel="minutes for 90 epochs", title="MODEL: 90 epochs of ImageNet-1K")
    accuracy.set(ylabel="minutes to 75.9%", title="MODEL, with published epochs to 75.9% at each batch")
    for axis in (efficiency, minutes, accuracy):
        axis.set_xscale("log", base=2)
        axis.set(xlabel=f"nodes like this one, {model.interconnect[0]} assumed", xlim=(model.nodes.min(), model.nodes.max()))
        axis.set_xticks([1, 8, 64, 448, 1536, 4096], ["1", "8", "64", "448", "1536", "4096"], fontsize=9)
    steps.legend(fontsize=9)
    efficiency.legend(fontsize=9, loc="lower left")
    minutes.legend(*(entries[-1:] for entries in minutes.get_legend_handles_labels()), fontsize=9)
    figure.tight_layout()
    return figure


def headline(rates: pd.DataFrame, points: pd.DataFrame) -> plt.Figure:
    """The Collapsed Ensemble at a glance: its learning rate with the collapses in colour, and its result.

    Expects `tables.rates` of collapsed_ensemble with one formula, and `questions.budget` of one data set.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.7), width_ratios=(1.6, 1))
    trunk, member = "0.3", "C3"
    for stage, part in rates.groupby("stage", sort=False):
        start, end, rate = part.epoch.min(), part.epoch.max(), part.rate.iloc[0]
        if not stage.startswith("collapse"):
            left.plot(part.epoch, part.rate, color=trunk)
            continue
        left.plot(part.epoch, part.rate, color=member, linewidth=3)
        left.plot(end, 0, "o", color=member)
        left.annotate(f"member {stage[-1]}", (end, -0.06), ha="center", va="top", fontsize=10, color=member)
        if end < rates.epoch.max():
            left.plot([start, end], [rate, rate], ":", color=trunk)
    left.text(31, 1.6, "A collapse takes the rate to zero\nand leaves a member.", color=member, va="top", fontsize=10)
    left.text(31, 1.27, "The next cycle starts from before it.", color=trunk, va="top", fontsize=10)
    left.set_title("The Collapsed Ensemble's learning rate\nas for ImageNet, over epochs", loc="left", fontsize=11)
    left.set(xlabel="epochs, including those of the collapses", ylim=(-0.25, 1.7), xlim=(-2, 93), yticks=(0, 0.5, 1, 1.5))

    rows = {MEMBER: ("a member", member), ENSEMBLE: ("the ensemble", "C0"), ONE_MODEL: ("one model,\nas many images", "C2")}
    points = points[points.label.isin(rows) & (points.members <= 3)]
    points = points[points.epochs == points.groupby("label").epochs.transform("max")]
    for position, (label, (_, colour)) in enumerate(rows.items()):
        top1 = points[points.label == label].top1
        right.plot(top1, [position] * len(top1), "o", color=colour, alpha=0.5)
        right.plot(top1.mean(), position, "|", color="0.2", markersize=20, markeredgewidth=2)
        right.annotate(f"{top1.mean():.1f}", (1.02, position), xycoords=("axes fraction", "data"), va="center", fontsize=10)
    right.set_yticks(range(len(rows)), [shown for shown, _ in rows.values()])
    right.set_title(f"Its result on {points.data.iloc[0]}, n = {points.seed.nunique()}", loc="left", x=-0.52, fontsize=11)
    right.set(xlabel="test top-1, %  (one point per seed; bar: mean)", ylim=(len(rows) - 0.5, -0.5))
    for axis in (left, right):
        axis.tick_params(labelsize=10)
        axis.xaxis.label.set_fontsize(10)
    right.grid(axis="y", visible=False)
    figure.tight_layout()
    return figure
