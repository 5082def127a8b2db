"""Each table as a function of the run folders. Percentages are of test images; a mean comes with its n and spread."""

import dataclasses
import json
import logging
from collections.abc import Iterable
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from repro import ReproError
from repro.images.views import DRAWS, crop_view, scale_aspect_view, test_view
from repro.paper import answering, names, questions
from repro.paper.answering import Side
from repro.paths import PUBLISHED, REFERENCE, RESULTS, replacing
from repro.recipes import RECIPES, shrink
from repro.recipes.baselines import GROUP_IMAGES, GROUPS
from repro.recipes.controls import BATCHES, LENGTHS
from repro.run import records, tidy
from repro.run.identity import code_digest
from repro.run.shapes import recipe_of
from repro.run.tidy import KEYS
from repro.scaling import accuracy as reaching
from repro.scaling import steptime
from repro.schedule import IMAGENET_IMAGES, Recipe, joints, learning_rate

GROUP = KEYS[:-1]  # all but the seed
ALIKE = (  # runs with equal values in the first columns are compared, so they must be alike in the others
    (["data", "shrink", "variant"], ["code", "train_sha256", "test_sha256"]),
    (GROUP, ["recipe_sha256"]),
)

log = logging.getLogger("repro")


def published(name: str) -> pd.DataFrame:
    """A table of published numbers with their sources: claims, released_runs, peers, baselines or epochs_by_batch."""
    return pd.read_csv(PUBLISHED / f"{name}.csv")


def save(table: pd.DataFrame, results: Path | str, name: str) -> None:
    """Writes tables/name.csv into the results folder."""
    folder = Path(results) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def put(rows: pd.DataFrame, file: Path, keys: list[str]) -> None:
    """Writes the rows into a table in place of those that have the same values in the columns `keys`; its others stay."""
    if file.exists():
        before = pd.read_csv(file)
        rows = pd.concat([before[~before.set_index(keys).index.isin(rows.set_index(keys).index)], rows])
    with replacing(file) as temporary:
        rows.to_csv(temporary, index=False)


def shown(table: pd.DataFrame, columns: Iterable[str] = ()) -> Styler:
    """A table, or these columns of it, for a notebook: headings with units, and numbers with the digits that matter."""
    table = table[list(columns) or list(table)].reset_index(drop=True)
    headings = [names.COLUMNS[name].heading if name in names.COLUMNS else name.replace("_", " ") for name in table]
    ends = dict.fromkeys(("low", "high"), "difference") if "difference" in table else {}  # with the digits of what they are of
    texts = {name: partial(names.written, name=ends.get(name, name)) for name in table}
    cells = {"text-align": "left", "vertical-align": "top", "padding": "0.2em 0.6em", "white-space": "normal"}
    look = [{"selector": "th, td", "props": list((cells | {"max-width": "18em"}).items())}]
    styled = table.style.format(texts).hide(axis="index").set_table_styles(look)  # type: ignore[arg-type]
    return styled.relabel_index(headings, axis="columns")


def runs_or_reference(runs: Path | str = "", results: Path | str = RESULTS) -> Path:
    """The folder to read runs from: `runs` if given, else that in `results`, or the reference's if none there is `of_size`."""
    if runs and not records.complete_runs(runs):
        raise ReproError(f"there are no complete runs in {runs}: `make reproduce` makes them")
    own = Path(results) / "runs"
    return Path(runs) if runs else own if of_size(own) else REFERENCE / "runs"


def of_size(runs: Path | str) -> bool:
    """Whether a folder has complete runs other than tiny ones, such as the tour's, which answer nothing."""
    return any(run["status"] == "complete" and run["shrink"] != "smoke" for _, run in records.each(runs))


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
        # Evenly spaced steps, and both sides of every joint.
        steps = {*range(0, recipe.iterations, max(1, recipe.iterations // points)), recipe.iterations - 1}
        steps |= {step for joint in joints(recipe) for step in (joint - 1, joint) if step >= 0}
        for step in sorted(steps):
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

    Columns: folder, recipe, shrink, model, variant, data, seed; members (the stage, or the stages that are averaged),
    average (of what: "", softmax, logit or weights); epochs (of all training that led to them), top1, top5 (per cent),
    test_images, top1_zoom and top1_scale_aspect (in other views), originals (of the test images), default_model (not
    another one by --model). `that_count` says which runs count; `folders` are the names of the run folders to choose from,
    by default all.
    """
    known = records.read_all(out)
    counted = _counted(*tidy.tables(out, known), folders)
    ends = counted.groupby(["folder", "stage"], sort=False).tail(1).sort_values("folder", kind="stable")
    columns, rows = ["members", "average", "epochs", "top1", "top5", "test_images", *tidy.IN_VIEWS], []
    for folder, stages in groupby(ends.to_dict("records"), key=itemgetter("folder")):
        record = known[Path(out) / folder]
        recipe = recipe_of(record)
        of_run = {"originals": record["data"]["originals"], "default_model": record["model"] == _default_model(record)}
        found = [stage | {"members": stage["stage"], "average": ""} for stage in stages]
        for entry in records.ensembles(Path(out) / folder):
            accuracy = {name: 100 * entry[name] / entry["images"] for name in ("top1", "top5")}
            members = {"members": " + ".join(entry["members"]), "average": entry["average"], "test_images": entry["images"]}
            found.append({key: found[0][key] for key in ("folder", *KEYS)} | members | accuracy | tidy.in_views(entry))
        for row in found:
            path = recipe.lineage(row["members"].split(" + "))
            epochs = sum(stage.iterations * recipe.batch(stage) for stage in path) / recipe.epoch_images
            rows.append(row | {"epochs": epochs} | of_run)
    return pd.DataFrame(rows)[["folder", *KEYS, *columns, "originals", "default_model"]]


def _default_model(record: dict) -> str:
    """The model that a run has if no other was asked for."""
    recipe = RECIPES.get(record["base"])
    return shrink(recipe, record["shrink"]).model if recipe else record["model"]


def curves(out: Path | str) -> pd.DataFrame:
    """`repro.run.tidy.runs`'s evaluations of the runs in `out` `that_count`."""
    return _counted(*tidy.runs(out))


def _counted(runs: pd.DataFrame, evaluations: pd.DataFrame, folders: Iterable[str] | None = None) -> pd.DataFrame:
    counted = that_count(runs if folders is None else runs[runs.folder.isin(list(folders))])
    return evaluations[evaluations.folder.isin(counted.folder)]


def that_count(runs: pd.DataFrame) -> pd.DataFrame:
    """Of `repro.run.tidy.runs`'s runs those that count: complete ones, no seed twice, and those that are compared alike.

    In each data set, shrink and variant they are by this code, or, if it has trained none there, by the code of the
    newest run, on the same images, and all seeds of a recipe have the same numbers: those of the newest run. Of runs with
    equal keys the newest counts.
    """
    complete = runs[runs.status == "complete"]
    counted = complete.assign(at_hand=complete.code == code_digest()).sort_values(["at_hand", "end"], kind="stable")
    for keys, columns in ALIKE:
        newest = counted.groupby(keys)[columns].transform("last")
        counted = counted[(counted[columns] == newest).all(axis=1)]
    if others := len(complete) - len(counted):
        _say(f"{others} complete runs are left out: they are by other code, on other images or of another version of a recipe")
    return counted.drop_duplicates(KEYS, keep="last").sort_index().drop(columns="at_hand")


@cache  # once, however many tables are made
def _say(text: str) -> None:
    log.warning(text)


def only(table: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows that have these values in the columns of these names; raises ReproError if there are none."""
    for column, value in values.items():
        table = table[table[column] == value]
    if table.empty:
        wanted = ", ".join(f"{column} {value or 'default'}" for column, value in values.items())
        raise ReproError(
            f"there are no complete runs of {wanted}: `make reproduce` trains those of its profile, notebook 10-train others; "
            "the reference's are in results/reference/runs"
        )
    return table


def accuracy(models: pd.DataFrame) -> pd.DataFrame:
    """Top-1 of every model over the seeds, in per cent: n, mean, standard deviation, smallest and largest; mean top-5.

    One row per recipe, shrink, model, variant, data, members and average.
    """
    grouped = models.groupby([*GROUP, "members", "average"], sort=False)
    return grouped.agg(
        epochs=("epochs", "first"),
        n=("top1", "count"),
        top1=("top1", "mean"),
        sd=("top1", "std"),
        smallest=("top1", "min"),
        largest=("top1", "max"),
        top5=("top5", "mean"),
    ).reset_index()


def budget(models: pd.DataFrame) -> pd.DataFrame:
    """The points that `figures.budget` draws: accuracy over the epochs of all training that led to a model or an ensemble.

    Expects `models` of one data set and shrink. Columns: label, line (part of a line), members (their number; of a single one,
    which one it is), epochs, top1, seed, data.
    """
    stages = [f"collapse{number}" for number in range(1, 6)]
    drawn = [(names.MEMBER, True, n, Side("five_members", stage)) for n, stage in enumerate(stages, start=1)]
    drawn += [(names.ENSEMBLE, True, n, Side("five_members", " + ".join(stages[:n]), "softmax")) for n in range(2, 6)]
    drawn += [(names.ONE_AT_4096, True, 1, Side(f"epochs_{n}_batch_4096", "collapse")) for n in LENGTHS]
    drawn += [(names.ONE_MODEL, False, 1, questions.ONE_MODEL)]
    for recipe in ("snapshot_ensemble", "snapshot_ensemble_crop", "three_models"):
        side = next(question.other for question in questions.ENSEMBLES if question.other.recipe == recipe)
        drawn.append((names.recipe(recipe), False, 3, side))
    return _points(models, drawn)


def anytime(models: pd.DataFrame) -> pd.DataFrame:
    """The same of collapses along a constant rate, and of what is planned for one length: what does a run have at any time?

    `names.PLANNED` and the collapses have equal images and views; the runs of `names.ONE_AT_4096` end in shorter collapses.
    """
    drawn = [(names.CONSTANT_TRUNK, True, tenth, Side("constant_trunk", f"collapse{tenth}")) for tenth in range(1, 11)]
    drawn += [(names.PLANNED, True, tenth, Side(f"planned_{tenth}_tenths", "collapse")) for tenth in (3, 7)]
    drawn += [(names.PLANNED, True, 10, Side("tuned_one_model", "collapse"))]
    drawn += [(names.ONE_AT_4096, True, 1, Side(f"epochs_{n}_batch_4096", "collapse")) for n in LENGTHS]
    drawn += [(names.MEMBER, True, n, Side("tuned_ensemble", f"collapse{n}")) for n in (1, 2, 3)]
    return _points(models, drawn)


def _points(models: pd.DataFrame, drawn: list[tuple[str, bool, int, Side]]) -> pd.DataFrame:
    models = models[(models.variant == "") & models.default_model]
    rows = []
    for label, line, number, side in drawn:
        rows.append(answering.rows_of(models, side).reset_index().assign(label=label, line=line, members=number))
    return pd.concat(rows)[["label", "line", "members", "epochs", "top1", "seed", "data"]]


def batches(models: pd.DataFrame, lines: dict[str, str] = names.WARMUP) -> pd.DataFrame:
    """Top-1 of each run of some recipes over the batch: line (its label), batch, seed, top1.

    `lines` has the recipes' names by their label, with {} for the batch: by default those of the questions about warm-up.
    Expects `models` of one data set and shrink.
    """
    models = models[(models.variant == "") & models.default_model]
    sides = [(label, batch, Side(recipe.format(batch), "main")) for label, recipe in lines.items() for batch in BATCHES]
    rows = [answering.rows_of(models, side).reset_index().assign(line=label, batch=batch) for label, batch, side in sides]
    return pd.concat(rows)[["line", "batch", "seed", "top1"]]


def groups(models: pd.DataFrame) -> pd.DataFrame:
    """Top-1 of each run of synchronous and asynchronous groups: line, groups, seed, top1. One group is sequential SGD.

    Expects `models` of one data set and shrink.
    """
    models = models[(models.variant == "") & models.default_model]
    drawn = [(line, 1, "sequential") for line in (names.SYNCHRONOUS, names.ASYNCHRONOUS)]
    drawn += [(names.SYNCHRONOUS, GROUPS[-1], f"synchronous_{GROUPS[-1]}_groups")]
    drawn += [(names.ASYNCHRONOUS, number, f"asynchronous_{number}_groups") for number in GROUPS]
    drawn += [(names.WITHOUT_MOMENTUM, GROUPS[-1], f"asynchronous_{GROUPS[-1]}_groups_without_momentum")]
    drawn += [(names.COMPENSATED, GROUPS[-1], f"delay_compensation_{GROUPS[-1]}_groups")]
    drawn += [(names.ADAPTIVE, GROUPS[-1], f"adaptive_delay_compensation_{GROUPS[-1]}_groups")]
    rows = [answering.rows_of(models, Side(recipe, "main")).assign(line=line, groups=number) for line, number, recipe in drawn]
    return pd.concat(row.reset_index() for row in rows)[["line", "groups", "seed", "top1"]]


def seconds_of_groups(draws: int = 500) -> pd.DataFrame:
    """MODEL: seconds in which 8 groups have each given a gradient, over how much ranks differ; see `steptime.of_groups`.

    Groups are of nodes like R3's, as many as the recipes' groups with 16 images per process have; a twentieth of the ranks are
    backup ranks.
    """
    r3, images = published_runs()[0], 16
    nodes, spreads = GROUP_IMAGES // images // r3.per_node, [each / 20 for each in range(9)]
    return pd.DataFrame(steptime.of_groups(r3, nodes, GROUPS[-1], images, 0.05, spreads, draws))


def views(data: str, original: int = 2, seed: int = 0) -> pd.DataFrame:
    """The pixels of a test image of a data set, as it is stored and in each view: view, draw, y, x, value (grey).

    Where the images are noisy drawings of few originals, it is the mean of all drawings of one, which has little noise. The
    training view and the collapse's are drawn at random, here three times and twice.
    """
    from repro.images.data import ZOOM, Images  # loads torch, which no other table needs

    images = Images(data, "test")
    drawings = [images.load(number)[1] for number in range(original, len(images), images.originals)]
    image = np.mean(drawings, axis=0).round().astype(np.uint8)
    seen, random = images.preprocessing, np.random.default_rng(seed)
    shown = [("stored", image)]
    shown += [("training view", scale_aspect_view(image, seen, list(random.random(DRAWS)))) for _ in range(3)]
    shown += [("collapse's view", crop_view(image, seen, list(random.random(DRAWS)))) for _ in range(2)]
    shown += [("test view", test_view(image, seen)), ("enlarged test view", test_view(image, seen, ZOOM))]
    parts = []
    for draw, (view, pixels) in enumerate(shown):
        grey = pixels.mean(-1).round().astype(int) if pixels.ndim == 3 else pixels
        y, x = np.indices(grey.shape)
        parts.append(pd.DataFrame({"view": view, "draw": draw, "y": y.ravel(), "x": x.ravel(), "value": grey.ravel()}))
    return pd.concat(parts)


def predictions(out: Path | str) -> pd.DataFrame:
    """Predicted and measured minutes of the runs `that_count` and have a forecast for as many ranks, in recipe order.

    Columns: recipe, shrink, model, variant, data, n (runs), predicted, measured (sums over the runs), error (per cent). The
    last row is all of them together.
    """
    runs, _ = tidy.runs(out)
    recorded = records.predictions(out)
    rows = []
    for run in that_count(runs).to_dict("records"):
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


def extrapolated(probe: dict, images: int, batch: int, between: steptime.Interconnect = steptime.OMNI_PATH) -> pd.DataFrame:
    """MODEL: `steptime.extrapolate` of a probe's machine to many nodes, weak and strong, with nothing hidden and overlapped.

    Weak: `images` per worker, one worker per rank. Strong: a global batch of `batch` in workers of `images`. Includes the
    minutes for 90 epochs of ImageNet-1K, and for as many epochs as the published runs with that batch needed to reach
    75.9% (by LARS; not ours).
    """
    points = list(published("epochs_by_batch")[["global_batch", "mean_epochs_to_75.9"]].itertuples(index=False, name=None))
    rows = []
    for load in (steptime.Load("weak", images), steptime.Load("strong", images, batch // images)):
        for buckets in (1, probe["buckets"]):
            layout = steptime.Layout(per_node=probe["ranks"], buckets=buckets)
            rows += steptime.extrapolate(probe["rows"], load, NODES, layout, between)
    table = pd.DataFrame(rows)
    epochs_to_accuracy = table.global_batch.map(lambda size: reaching.published_epochs(points, size))
    # The highest throughput takes the least time.
    for point, rate in (("", "images_per_s"), ("_low", "images_per_s_high"), ("_high", "images_per_s_low")):
        minutes_per_epoch = IMAGENET_IMAGES / table[rate] / 60
        table[f"minutes{point}"] = 90 * minutes_per_epoch
        table[f"minutes_to_accuracy{point}"] = epochs_to_accuracy * minutes_per_epoch
    return table


def held_back(bench: Path | str) -> pd.DataFrame:
    """The checks that `make bench-scaling` wrote into the folder `bench`; no rows if there are none."""
    path = Path(bench) / "scaling.json"
    checks = json.loads(path.read_text())["checks"] if path.exists() else []
    columns = ["model", "check", "ranks", "images", "n", "predicted", "measured", "error_percent", "allowed_percent", "state"]
    return pd.DataFrame(checks, columns=columns)


NINETY = 90 * IMAGENET_IMAGES / 60  # 90 epochs: images/s times minutes


def time_to_train() -> pd.DataFrame:
    """Published runs on ImageNet-1K by their minutes: this paper, its releases and its peers; no number is ours.

    Columns: run, year, hardware, nodes, global_batch, epochs, minutes, images_per_s, per_node (images/s of a node), computed
    (True where images/s are epochs over minutes, not published), top1, source. The paper's reference 21 is not in it: no number
    of it is known to this project.
    """
    released, peers = published("released_runs"), published("peers")
    hardware = released.nodes.astype(str) + " nodes of 2 Xeon Platinum 8160"
    released = released.assign(run="Codreanu et al., release " + released.id, year=2018, hardware=hardware)
    table = pd.concat([released, peers.rename(columns={"work": "run"})], ignore_index=True)
    epochs = table.epochs * IMAGENET_IMAGES / 60 / table.minutes
    table = table.assign(computed=table.images_per_s.isna() & epochs.notna(), images_per_s=table.images_per_s.fillna(epochs))
    table["per_node"] = table.images_per_s / table.nodes
    columns = [
        "hardware",
        "nodes",
        "global_batch",
        "epochs",
        "minutes",
        "images_per_s",
        "per_node",
        "computed",
        "top1",
        "source",
    ]
    return table.sort_values("minutes", ascending=False)[["run", "year", *columns]].reset_index(drop=True)


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


def published_checks() -> pd.DataFrame:
    """MODEL: the model fitted to one of `published_runs`, predicting another one on the same hardware."""
    r3, r1, paper, you = published_runs()
    return pd.DataFrame([*steptime.infer(r3, [r1]), *steptime.infer(r1, [r3]), *steptime.infer(you, [paper])])


def on_the_papers_nodes(draws: int = 500) -> pd.DataFrame:
    """MODEL: efficiency and minutes on nodes like R3's, to which it is fitted; see `steptime.on_known_nodes`.

    16 images per process as in R1, and 32 as in R3. The abstract does not say how many epochs its 28 minutes are, so there are
    minutes for 60, 64, 75 and 90 epochs. Its 1536 nodes were different (Xeon Phi), so their minutes are not A2's.

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


# --- Time to accuracy ---------------------------------------------------------------------------------------------------


def published_time_to_accuracy(draws: int = 200) -> pd.DataFrame:
    """MODEL: minutes to 75.9% on ImageNet-1K over nodes like R3's, by the epochs that published runs took at each batch.

    Those are MLPerf's reference points, by LARS, in other codes (results/published/epochs_by_batch.csv): no number is ours.
    Columns: method, epochs_of, target, then those of `accuracy.over_nodes`.
    """
    points = published("epochs_by_batch")
    epochs = dict(zip(points.global_batch, points["mean_epochs_to_75.9"]))
    rows = reaching.over_nodes(epochs, published_runs()[0], NODES, IMAGENET_IMAGES, draws=draws)
    return pd.DataFrame(rows).assign(method=names.PUBLISHED_LARS, epochs_of="ImageNet-1K, published", target=75.9)


def reached(models: pd.DataFrame) -> pd.DataFrame:
    """Measured: after how many epochs the runs at each batch reach one accuracy, that of the smallest batch less half a point.

    Expects `models` of one data set and shrink. A method is one of `names.OVER_BATCH`, with runs of one length, or
    `names.COLLAPSED`, with several. Columns: method, batch, lengths (their number), n (the least of a length), top1 (of the
    longest), target, epochs (`accuracy.epochs_to`, of the means over seeds), state. Empty without runs of the smallest batch.
    """
    models = models[(models.variant == "") & models.default_model]
    sides = [
        (method, batch, Side(name.format(batch), "main")) for method, name in names.OVER_BATCH.items() for batch in BATCHES
    ]
    sides += [
        (names.COLLAPSED, batch, Side(f"epochs_{epochs}_batch_{batch}", "collapse"))
        for batch in (4096, 14336)
        for epochs in LENGTHS
    ]
    runs = [answering.rows_of(models, side).assign(method=method, batch=batch) for method, batch, side in sides]
    grouped = pd.concat(runs).groupby(["method", "batch", "recipe"], sort=False)
    means = grouped.agg(epochs=("epochs", "first"), top1=("top1", "mean"), n=("top1", "count")).reset_index()
    smallest = means[means.recipe == f"batch_{BATCHES[0]}"].top1
    if smallest.empty:
        return pd.DataFrame(columns=["method", "batch", "lengths", "n", "top1", "target", "epochs", "state"])
    target, rows = smallest.iloc[0] - answering.HALF_A_POINT, []
    for (method, batch), part in means.groupby(["method", "batch"], sort=False):
        epochs = reaching.epochs_to(zip(part.epochs, part.top1), target)
        row = {"method": method, "batch": batch, "lengths": len(part), "n": part.n.min()}
        row |= {"top1": part.sort_values("epochs").top1.iloc[-1], "target": target, "epochs": epochs}
        rows.append(row | {"state": "not reached" if np.isnan(epochs) else "reached"})
    return pd.DataFrame(rows)


def time_to_accuracy(measured: pd.DataFrame, draws: int = 200) -> pd.DataFrame:
    """MODEL: how many times sooner nodes like R3's reach the accuracy of `reached` than one of them does at the smallest batch.

    Epochs are those of small runs, a step's time is that of the release's ResNet-50 on ImageNet at the same batch. So this is
    what the trade would be if epochs depended on the batch there as they do here; `minutes` would mean nothing, and are left
    out. Columns: those of `published_time_to_accuracy` without minutes and node_hours, and speedup.
    """
    tables = []
    for method, part in measured.groupby("method", sort=False):
        epochs = dict(zip(part.batch, part.epochs))
        rows = reaching.over_nodes(epochs, published_runs()[0], NODES, IMAGENET_IMAGES, draws=draws)
        tables.append(pd.DataFrame(rows).assign(method=method, epochs_of="small runs, measured", target=part.target.iloc[0]))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["method", "batch", "nodes", "minutes"])
    one = table[(table.method == names.LINEAR) & (table.batch == BATCHES[0]) & (table.nodes == 1)].minutes
    table["speedup"] = (one.iloc[0] if len(one) else np.nan) / table.minutes
    return table.drop(columns=["minutes", "minutes_low", "minutes_high", "node_hours"], errors="ignore")
