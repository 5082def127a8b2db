"""All runs in a folder as two tidy tables, for your own figures and statistics. No torch, no MPI.

runs, evaluations = repro.runs()
seaborn.relplot(evaluations.dropna(subset="top1"), x="epoch", y="top1", hue="recipe", style="variant", kind="line")
"""

import hashlib
import json
from pathlib import Path

import pandas as pd

from repro import ReproError
from repro.paths import RUNS
from repro.run import identity, own, records
from repro.run.shapes import recipe_of

KEYS = ["recipe", "shrink", "model", "variant", "data", "seed"]  # what was run; if equal, training code or data differ
IN_VIEWS = [f"top1_{view}" for view in records.OTHER_VIEWS]
EVALUATION = [
    "step",
    "epoch",
    "stage",
    "rate",
    "train_loss",
    "train_top1",
    "test_loss",
    "top1",
    "top5",
    "test_images",
    *IN_VIEWS,
    "seconds",
]
NONE = float("nan")


def runs(out: Path | str = RUNS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables, `runs` and `evaluations`, of all runs in the folder `out`; accuracies are in per cent.

    All runs of the current format are included, complete or not: the column `status` is complete, running, stopped or failed.

    runs: one row per run. Its folder's name; recipe (the name before it was made small), shrink, model, variant ("" for default
    settings, else such as "lr_formula=as_designed"), data; every field of `Settings`, seed among them; every scalar of the
    recipe as it ran, with global_batch, iterations and epochs; ranks, seconds of training, status, start, end; code (a digest
    of the training code), version, Python's and torch's versions; host, cores, processor; digests of the recipe's numbers and
    of the sources of your own model and rule, of the training and test images and of the weights (recipe_sha256, train_sha256,
    test_sha256, weights_sha256); result (the stage whose end the recipe is trained for, or several whose softmax are averaged),
    and its test_images, top1 and top5. What an incomplete run does not have is missing, as is the accuracy of an ensemble until
    `python -m repro ensemble` evaluates it. The ends of the other stages are in `repro.models`.

    evaluations: one row per metric row, so several per run. The folder and the six keys of its run; step, epoch, stage, rate;
    train_loss and train_top1 since the row before; test_loss, top1, top5 and test_images, missing if the row has no evaluation;
    top1_zoom and top1_scale_aspect, in other views than the test's (`evaluate.VIEWS`), of stages' ends only; seconds since the
    run's start.

    Raises ReproError if there are no runs in `out`.
    """
    return tables(out, records.read_all(out))


def tables(out: Path | str, known: dict[Path, dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`runs` of the runs in `out`, for those who have read them already (`records.read_all`)."""
    of_runs, of_evaluations = [], []
    for folder, run in known.items():
        row = _run(folder, run)
        of_runs.append(row)
        keys = {"folder": row["folder"]} | {key: row[key] for key in KEYS}
        of_evaluations += [keys | _evaluation(metrics) for metrics in records.metric_rows(folder)]
    if not of_runs:
        raise ReproError(
            f"there are no runs in {out}: `python -m repro train` makes one, `make reproduce` those of its profile"
        )
    return pd.DataFrame(of_runs), pd.DataFrame(of_evaluations, columns=["folder", *KEYS, *EVALUATION])


def _run(folder: Path, run: dict) -> dict:
    recipe, result = run["recipe"], records.result(folder, run)
    images = result.get("images", NONE)
    numbers = {
        name: value
        for name, value in recipe.items()
        if isinstance(value, (str, int, float)) and name not in ("name", "model", *identity.TEXTS)
    }
    planned = recipe_of(run)
    return {
        "folder": folder.name,
        "recipe": run["base"],
        "shrink": run["shrink"],
        "model": run["model"],
        "variant": run["variant"],
        "data": run["data"]["name"],
        **run["settings"],
        **numbers,
        "global_batch": planned.global_batch,
        "iterations": planned.iterations,
        "epochs": planned.epochs(),
        "ranks": run["ranks"],
        "seconds": run.get("seconds", NONE),
        **{fact: run[fact] for fact in ("status", "start", "end", "code", "version")},
        "python": run["packages"]["python"],
        "torch": run["packages"]["torch"],
        **{fact: run[fact] for fact in ("host", "cores", "processor")},
        "recipe_sha256": _digest(run),
        "train_sha256": run["data"]["train"],
        "test_sha256": run["data"]["test"],
        "weights_sha256": run.get("weights_sha256", ""),
        "result": " + ".join(planned.result),
        "test_images": images,
        "top1": 100 * result.get("top1", NONE) / images,
        "top5": 100 * result.get("top5", NONE) / images,
    }


def _digest(run: dict) -> str:
    numbers = {name: value for name, value in run["recipe"].items() if name not in identity.TEXTS}
    for part in ("model", "update"):  # wherever the files are
        numbers[part] = own.short(numbers[part]), run.get(f"{part}_source", "")
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def _evaluation(row: dict) -> dict:
    images = row.get("images", NONE)
    return {
        **{name: row[name] for name in ("step", "epoch", "stage", "rate", "train_loss", "seconds")},
        "train_top1": 100 * row["train_top1"],
        "test_loss": row.get("loss", NONE),
        "top1": 100 * row.get("top1", NONE) / images,
        "top5": 100 * row.get("top5", NONE) / images,
        "test_images": images,
        **in_views(row),
    }


def in_views(result: dict) -> dict:
    """top1_VIEW, per cent, of a metric row or an ensemble, for each view besides the test's that it was evaluated in."""
    return {f"top1_{view}": 100 * found["top1"] / found["images"] for view, found in result.get("views", {}).items()}
