"""Each table as a function of the run folders. Percentages are of test images; a mean comes with its n and spread."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from repro import ReproError, records, tidy
from repro.paths import PUBLISHED, REFERENCE, RUNS, replacing
from repro.recipes import RECIPES
from repro.scaling import steptime
from repro.schedule import IMAGENET_IMAGES, Recipe, learning_rate
from repro.tidy import KEYS

GROUP = KEYS[:-1]  # all but the seed


def published(name: str) -> pd.DataFrame:
    """A table of published numbers with their sources: claims, released_runs, peers or epochs_by_batch."""
    return pd.read_csv(PUBLISHED / f"{name}.csv")


def save(table: pd.DataFrame, results: Path | str, name: str) -> None:
    """Writes tables/name.csv into the results folder."""
    folder = Path(results) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def runs_or_reference(runs: str = "") -> Path:
    """The folder to read runs from: `runs` if given, else results/runs, else, if that has none, the reference."""
    for folder in [Path(runs)] if runs else [RUNS, REFERENCE / "runs"]:
        if records.complete_runs(folder):
            return folder
    raise ReproError(f"there are no complete runs in {runs or RUNS}: `make reproduce` makes them")


def recipes() -> pd.DataFrame:
    """Every recipe: batch, epochs, stages, and what its source reports."""
    return pd.DataFrame(
        [
            {
                "recipe": recipe.name,
                "workers": recipe.workers,
                "images per worker": recipe.images_per_worker,
                "global batch": recipe.global_batch,
                "epochs": round(recipe.epochs(), 2),
                "stages": " > ".join(stage.name for stage in recipe.stages),
                "hardware": recipe.hardware,
                "cost": recipe.cost,
                "reported top-1 / top-5": recipe.reported,
                "source": recipe.source,
            }
            for recipe in RECIPES.values()
        ]
    )


def rates(chosen: list[Recipe], points: int = 400) -> pd.DataFrame:
    """Learning rates over epochs for both formulas: recipe, formula, stage, step, epoch, rate."""
    rows = []
    for recipe in chosen:
        # Evenly spaced steps, and both sides of every joint, where stages meet or warm-up ends.
        steps = set(range(0, recipe.iterations, max(1, recipe.iterations // points)))
        for stage, start in zip(recipe.stages, recipe.starts):
            for joint in (start, start + stage.warmup_iterations, *(start + drop for drop in stage.drops)):
                steps |= {joint - 1, joint}
        for step in sorted(step for step in steps | {recipe.iterations - 1} if 0 <= step < recipe.iterations):
            for formula in ("as_released", "as_designed"):
                rows.append(
                    {
                        "recipe": recipe.name,
                        "formula": formula,
                        "stage": recipe.stage_at(step)[0].name,
                        "step": step,
                        "epoch": recipe.epochs(step),
                        "rate": learning_rate(recipe, step, formula),
                    }
                )
    return pd.DataFrame(rows)


def models(out: Path | str, folders: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per trained model and per ensemble of the complete runs in `out`: the end of each stage, then the ensembles.

    Columns: folder, recipe, shrink, model, variant, data, seed, members (the stage, or the stages whose predictions are
    averaged), average ("", softmax or logit), epochs (of all training up to there), top1, top5 (per cent), test_images. Of
    runs with equal keys the newest counts; `folders` are the names of the run folders to choose from, by default all.
    """
    ends = _counted(out, folders).groupby(["folder", "stage"], sort=False).tail(1)
    ends = ends.assign(members=ends.stage, average="", epochs=ends.epoch)
    ensembles = []
    for folder, stages in ends.groupby("folder"):
        keys, epochs = stages[["folder", *KEYS]].iloc[0].to_dict(), stages.set_index("stage").epoch
        for entry in records.ensembles(Path(out) / folder):
            ensembles.append(
                keys
                | {
                    "members": " + ".join(entry["members"]),
                    "average": entry["average"],
                    "epochs": epochs[entry["members"][-1]],
                    "top1": 100 * entry["top1"] / entry["images"],
                    "top5": 100 * entry["top5"] / entry["images"],
                    "test_images": entry["images"],
                }
            )
    table = pd.concat([ends, pd.DataFrame(ensembles)]) if ensembles else ends
    table = table.sort_values("folder", kind="stable", ignore_index=True)
    return table[["folder", *KEYS, "members", "average", "epochs", "top1", "top5", "test_images"]]


def curves(out: Path | str) -> pd.DataFrame:
    """`repro.tidy.runs`'s evaluations of the complete runs in `out`; of runs with equal keys the newest counts."""
    return _counted(out)


def _counted(out: Path | str, folders: Iterable[str] | None = None) -> pd.DataFrame:
    runs, evaluations = tidy.runs(out)
    complete = runs[(runs.status == "complete") & (folders is None or runs.folder.isin(list(folders)))]
    newest = complete.sort_values("end", kind="stable").drop_duplicates(KEYS, keep="last")  # so that no seed counts twice
    return evaluations[evaluations.folder.isin(newest.folder)]


def only(table: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows that have these values in the columns of these names; raises ReproError if there are none."""
    for column, value in values.items():
        table = table[table[column] == value]
    if table.empty:
        wanted = ", ".join(f"{column} {value or 'default'}" for column, value in values.items())
        raise ReproError(
            f"there are no complete runs of {wanted}: `make reproduce` trains those of its profile, notebook 10-train others"
        )
    return table


def ensemble_points(models: pd.DataFrame) -> pd.DataFrame:
    """The points that `figures.ensemble` draws: one model, the members, the ensembles; one row per seed.

    Expects `models` of one data set, shrink, model and variant. Columns: label, group, data, seed, top1, epochs.
    """
    labels = {
        ("one_model", "collapse", ""): ("one model, collapsed", "one model, same images seen"),
        **{
            ("collapsed_ensemble", f"{kind}{n}", ""): (f"{what} {n}", f"single {what}s")
            for kind, what in (("cyc", "cycle end"), ("collapse", "collapsed member"))
            for n in (1, 2, 3)
        },
        ("collapsed_ensemble", SNAPSHOTS, "softmax"): ("ensemble of the cycle ends", "ensembles"),
        ("collapsed_ensemble", ENSEMBLE, "logit"): ("Collapsed Ensemble, logit mean", "ensembles"),
        ("collapsed_ensemble", ENSEMBLE, "softmax"): ("Collapsed Ensemble", "ensembles"),
    }
    rows = []
    for (recipe, members, average), (label, group) in labels.items():
        chosen = _of(models, recipe, members, average)
        rows.append(chosen.assign(label=label, group=group)[["label", "group", "data", "seed", "top1", "epochs"]])
    return pd.concat(rows)


def accuracy(models: pd.DataFrame) -> pd.DataFrame:
    """Top-1 of every model over the seeds, in per cent: n, mean, standard deviation, smallest and largest; mean top-5.

    One row per recipe, shrink, model, variant, data, members and average.
    """
    grouped = models.groupby([*GROUP, "members", "average"], sort=False)
    table = grouped.agg(
        epochs=("epochs", "first"),
        n=("top1", "count"),
        top1=("top1", "mean"),
        sd=("top1", "std"),
        smallest=("top1", "min"),
        largest=("top1", "max"),
        top5=("top5", "mean"),
    ).reset_index()
    return table.round({"epochs": 2, "top1": 2, "sd": 2, "smallest": 2, "largest": 2, "top5": 2})


def predictions(out: Path | str) -> pd.DataFrame:
    """Predicted and measured minutes of the complete runs that have a forecast for the same number of ranks, in recipe order.

    Columns: recipe, shrink, model, variant, data, n (runs), predicted, measured (sums over the runs), error (per cent). The
    last row is all of them together.
    """
    runs, _ = tidy.runs(out)
    recorded = records.predictions(out)
    rows = []
    for run in runs[runs.status == "complete"].to_dict("records"):
        plan = recorded.get(run["folder"])
        if plan and plan["ranks"] == run["ranks"]:
            times = {"n": 1, "predicted": plan["seconds"] / 60, "measured": run["seconds"] / 60}
            rows.append({key: run[key] for key in GROUP} | times)
    table = pd.DataFrame(rows, columns=[*GROUP, "n", "predicted", "measured"])
    table = table.groupby(GROUP, sort=False, as_index=False).sum()
    if len(table):
        together = table[["n", "predicted", "measured"]].sum()
        table.loc[len(table)] = dict.fromkeys(GROUP, "") | {"recipe": "all", **together}
    return table.assign(error=100 * (table.predicted / table.measured - 1))


# --- Scaling: measurements and the model ------------------------------------------------------------------------------
NODES = 1, 2, 4, 8, 16, 32, 64, 128, 256, 448, 512, 1024, 1536, 2048, 4096  # 64, 448: released runs; 1536: 104,448 / 68 cores


def measured_throughput(probe: dict) -> pd.DataFrame:
    """Measured steps of a probe beside the model's: ranks, images, images/s, efficiency. All times are in seconds.

    One rank is compared by its computation alone, several by whole steps. Efficiency is images/s per rank over that of one rank
    alone with as many images; n is the number of steps, low and high are their 5 and 95% points.
    """
    fitted, rows = steptime.fit(probe["rows"]), []
    for row in probe["rows"]:
        if row["kind"] == ("step" if row["ranks"] > 1 else "compute") and row["workers"] == 1:
            times = np.array(row["seconds"]).max(0)
            model = dataclasses.replace(steptime.fit(probe["rows"], row["ranks"]), link=fitted.link)
            predicted = steptime.step(model, steptime.Layout(per_node=row["ranks"]), row["images"])["total"]
            rows.append(
                {
                    "label": steptime.MEASURED,
                    "model": probe["model"],
                    "size": probe["size"],
                    "ranks": row["ranks"],
                    "images": row["images"],
                    "n": len(times),
                    "seconds": np.median(times),
                    "low": np.percentile(times, 5),
                    "high": np.percentile(times, 95),
                    "images_per_s": row["ranks"] * row["images"] / np.median(times),
                    f"seconds_{steptime.MODEL}": predicted,
                    "error": 100 * (predicted / np.median(times) - 1),
                }
            )
    table = pd.DataFrame(rows).sort_values(["ranks", "images"], ignore_index=True)
    alone = table[table.ranks == 1].set_index("images").images_per_s
    return table.assign(efficiency=100 * table.images_per_s / table.ranks / table.images.map(alone))


def extrapolated(
    probe: dict,
    images: int,
    batch: int,
    between: steptime.Interconnect = steptime.OMNI_PATH,
    epochs: float = 90,
    draws: int = 200,
) -> pd.DataFrame:
    """MODEL: `steptime.extrapolate` of a probe's machine to many nodes, weak and strong, with nothing hidden and overlapped.

    Weak: `images` per worker, one worker per rank. Strong: a global batch of `batch` in workers of `images`. Includes the
    minutes for `epochs` epochs of ImageNet-1K, and for as many epochs as the published runs with that batch needed to reach
    75.9% (by LARS; not ours).
    """
    points = list(published("epochs_by_batch")[["global_batch", "mean_epochs_to_75.9"]].itertuples(index=False, name=None))
    rows = []
    for load in (steptime.Load("weak", images), steptime.Load("strong", images, batch // images)):
        for buckets in (1, probe["buckets"]):
            layout = steptime.Layout(per_node=probe["ranks"], buckets=buckets)
            rows += steptime.extrapolate(probe["rows"], load, NODES, layout, between, draws)
    table = pd.DataFrame(rows)
    epochs_to_accuracy = table.global_batch.map(lambda size: steptime.epochs_to(points, size))
    # The highest throughput takes the least time.
    for point, rate in (("", "images_per_s"), ("_low", "images_per_s_high"), ("_high", "images_per_s_low")):
        minutes_per_epoch = IMAGENET_IMAGES / table[rate] / 60
        table[f"minutes{point}"] = epochs * minutes_per_epoch
        table[f"minutes_to_accuracy{point}"] = epochs_to_accuracy * minutes_per_epoch
    return table


def held_back(bench: Path | str) -> pd.DataFrame:
    """The checks that `make bench-scaling` wrote into the folder `bench`; no rows if there are none."""
    path = Path(bench) / "scaling.json"
    checks = json.loads(path.read_text())["checks"] if path.exists() else []
    return pd.DataFrame(checks, columns=["model", "check", "ranks", "images", "n", "predicted", "measured", "error_percent"])


NINETY = 90 * IMAGENET_IMAGES / 60  # 90 epochs: images/s times minutes


def published_runs() -> list[steptime.Published]:
    """R3, R1, the abstract's 28 minutes, You et al.: published runs on many nodes of x86 cores; none is ours.

    The throughputs of R1, of You et al. and of the abstract's 28 minutes are computed: 90 epochs over the minutes. It is
    assumed that the last ran 90 epochs with 16 images per node, as You et al. did.
    """
    released, peers = published("released_runs").set_index("id"), published("peers")

    def run(name: str) -> steptime.Published:
        row = released.loc[name]
        rate = row.images_per_s if row.images_per_s > 0 else NINETY / row.minutes
        return steptime.Published(name, int(row.nodes), int(row.processes_per_node), int(row.images_per_process), rate)

    you = peers[(peers.work == "You et al.") & (peers.epochs == 90)].iloc[0]
    return [
        run("R3"),
        run("R1"),
        steptime.Published("A2, 1536 nodes in 28 minutes", 1536, 1, 16, NINETY / 28),
        steptime.Published("You et al., 2048 nodes", 2048, 1, you.global_batch / 2048, NINETY / you.minutes),
    ]


def published_points() -> pd.DataFrame:
    """Nodes, images/s and minutes for 90 epochs of each of `published_runs`."""
    return pd.DataFrame(
        [
            {
                "label": "published",
                "run": run.name,
                "nodes": run.nodes,
                "images_per_s": run.images_per_s,
                "minutes": NINETY / run.images_per_s,
            }
            for run in published_runs()
        ]
    )


def published_checks() -> pd.DataFrame:
    """MODEL: the model fitted to one of `published_runs`, predicting another one on the same hardware."""
    r3, r1, paper, you = published_runs()
    return pd.DataFrame([*steptime.infer(r3, [r1]), *steptime.infer(r1, [r3]), *steptime.infer(you, [paper])])


def on_the_papers_nodes(draws: int = 500) -> pd.DataFrame:
    """MODEL: efficiency and minutes on nodes like R3's, to which it is fitted; see `steptime.on_known_nodes`.

    16 images per process as in R1, and 32 as in R3. The abstract does not say how many epochs its 28 minutes are, so there are
    minutes for 60, 64, 75 and 90 epochs. Its 1536 nodes were other ones (Xeon Phi), so their minutes are not A2's.

    `efficiency` is against a node with the same 44 computing cores. The release leaves 4 of 48 cores to communication (two
    servers for each of two processes): `efficiency_48_cores` is
    against a node that computes on all 48, taken as 48/44 as fast.
    """
    r3 = published_runs()[0]
    rows = [row for images in (16, 32) for row in steptime.on_known_nodes(r3, (64, 448, 1536), images, draws=draws)]
    table = pd.DataFrame(rows)
    return table.assign(
        efficiency_48_cores=table.efficiency * 44 / 48,
        **{f"minutes_{epochs}": epochs * IMAGENET_IMAGES / 60 / table.images_per_s for epochs in (60, 64, 75, 90)},
    )


# --- Effects of the paper's method, on the runs at hand ---------------------------------------------------------------
ENSEMBLE = "collapse1 + collapse2 + collapse3"
SNAPSHOTS = "cyc1 + cyc2 + cyc3"
# On these data sets the main stages see the whole image scaled down, the collapse and the test an unscaled crop. A model that
# was trained last, or longer, on the crop is then ahead on it whatever the method does: such a comparison tests the views.
VIEWS_DIFFER_IN_SCALE = {"digits"}
VIEWS_DIFFER = "not a test of the claim: the views differ in scale"


class Claim(NamedTuple):
    """A claim: its text, the side that it says is better, and the other; each side is a (recipe, members, average)."""

    text: str
    better: tuple[str, str, str]
    other: tuple[str, str, str]
    of_the_collapse: bool = True  # the two sides saw different amounts of the collapse's view


CLAIMS = (
    Claim(
        "Large batch needs warm-up",
        ("resnet50_448nodes", "collapse", ""),
        ("resnet50_448nodes_no_warmup", "collapse", ""),
        of_the_collapse=False,
    ),
    Claim(
        "The collapse helps: against the plain end of the decay, same images seen",
        ("resnet50_448nodes", "collapse", ""),
        ("resnet50_448nodes_uncollapsed", "main", ""),
    ),
    Claim(
        "The collapse helps: after the last cycle, against before",
        ("collapsed_ensemble", "collapse3", ""),
        ("collapsed_ensemble", "cyc3", ""),
    ),
    Claim(
        "The Collapsed Ensemble beats one model of the same number of images seen",
        ("collapsed_ensemble", ENSEMBLE, "softmax"),
        ("one_model", "collapse", ""),
    ),
    Claim(
        "The Collapsed Ensemble beats its own last member",
        ("collapsed_ensemble", ENSEMBLE, "softmax"),
        ("collapsed_ensemble", "collapse3", ""),
    ),
    Claim(
        "Collapsed members make a better ensemble than un-collapsed snapshots",
        ("collapsed_ensemble", ENSEMBLE, "softmax"),
        ("collapsed_ensemble", SNAPSHOTS, "softmax"),
    ),
    Claim(
        "Averaging softmax beats averaging logits",
        ("collapsed_ensemble", ENSEMBLE, "softmax"),
        ("collapsed_ensemble", ENSEMBLE, "logit"),
        of_the_collapse=False,
    ),
)


def effects(models: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in top-1 over the seeds, with a paired t-test, for each data set, shrink, model and variant at hand.

    Only runs that agree in all four are compared. A difference is `supported` or `contradicted` if its 95% confidence
    interval (Student's t over seeds) excludes zero, and `not resolved` otherwise, which includes n < 3; a claim without runs
    is `not run`. On digits the rows about the collapse and the ensemble have no such verdict (`VIEWS_DIFFER`). There is no
    correction for multiple comparisons.
    """
    alike = ["data", "shrink", "model", "variant"]
    groups = list(models.groupby(alike, sort=False))
    groups.sort(key=lambda group: group[0][-1] != "")  # default settings first
    rows = []
    for claim in CLAIMS:
        compared_rows = []
        for values, group in groups:
            pair = [_of(group, *which).set_index("seed").top1 for which in (claim.better, claim.other)]
            paired = pd.concat(pair, axis=1, join="inner").dropna()
            if len(paired):
                compared = compare(paired.iloc[:, 0], paired.iloc[:, 1])
                if values[0] in VIEWS_DIFFER_IN_SCALE and claim.of_the_collapse:
                    compared["verdict"] = VIEWS_DIFFER
                compared_rows.append({"claim": claim.text, **dict(zip(alike, values)), **compared})
        nothing = pd.Series(dtype=float)
        rows += compared_rows or [{"claim": claim.text, **dict.fromkeys(alike, ""), **compare(nothing, nothing)}]
    return pd.DataFrame(rows)


def _of(models: pd.DataFrame, recipe: str, members: str, average: str) -> pd.DataFrame:
    return models[(models.recipe == recipe) & (models.members == members) & (models.average == average)]


def compare(better: pd.Series, other: pd.Series) -> dict:
    """n, both means, mean paired difference, its 95% interval, the paired t-test's p (two-sided), and the verdict."""
    difference = better - other
    n, mean = len(difference), difference.mean()
    low = high = p = float("nan")
    verdict = "not run" if n == 0 else "not resolved"
    if n >= 3:
        if difference.std() == 0:  # without spread the interval is a point
            low = high = mean
            p = 1.0 if mean == 0 else 0.0
        else:
            test = stats.ttest_rel(better, other)
            p, (low, high) = test.pvalue, test.confidence_interval(0.95)
        verdict = "supported" if low > 0 else "contradicted" if high < 0 else verdict
    return {
        "n": n,
        "top1": better.mean(),
        "against": other.mean(),
        "difference": mean,
        "low": low,
        "high": high,
        "p": p,
        "verdict": verdict,
    }
