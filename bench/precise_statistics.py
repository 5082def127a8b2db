"""Asks the questions of the same weights again, with batch norm's statistics recomputed from training images.

Running statistics are averages over the last steps of training. Where the rate is still high, as at a kept rate or with a
large batch, the weights move faster than the averages follow, and a model is tested with statistics that are not its own.
What a question finds because of that says nothing about weights.

    python -m bench.precise_statistics [--results results] [--topics growing tuned]

Needs the runs of `make reproduce` with their snapshots. Writes bench/precise_runs.csv, the top-1 of each model and ensemble
with the statistics of the run and with recomputed ones, and bench/precise_statistics.csv, the answers by the latter. In both,
rows of topics and recipes that have no such runs stay as they are: a reference may be trained in parts.
"""

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from repro import cores, evaluate
from repro.images.data import Stream
from repro.images.packed import pack_embedded
from repro.model import Network
from repro.paper import answering, questions, tables
from repro.paper.answering import Question
from repro.paths import RESULTS, given, writable_folder
from repro.ranks import comm
from repro.run import checkpoint, records
from repro.run.shapes import recipe_of
from repro.schedule import Place, at


def tested(folder: Path, data: str = "") -> list[dict]:
    """A row per model and ensemble of a run that the questions compare: top1 with the recomputed statistics, in per cent.

    `data` is the data set's folder, if it is not under data/.
    """
    torch.set_num_threads(1)
    base = records.read(folder)["base"]
    sides = [side for question in questions.QUESTIONS for side in question.sides if side.recipe == base]
    compared = sorted({(side.members, side.average) for side in sides})  # of several precisions, too
    names = sorted({name for members, _ in compared for name in members.split(" + ")})
    run, names, images = evaluate.open_run(folder, names, data)
    recipe, seed, precision = recipe_of(run), run["settings"]["seed"], run["settings"]["precision"]
    train = evaluate.training_images(run, data)
    stream = Stream(train.first(recipe.epoch_images), seed, recipe.images_per_worker)
    after = Place(recipe.iterations, recipe.images())  # of these steps no model has seen the drawing of images
    model = evaluate.build_again(run, images)
    network = Network(model, images_per_worker=recipe.images_per_worker)
    states = {}
    for name in names:
        network.load(checkpoint.load(folder / "snapshots" / name)[0])
        now = replace(at(recipe, recipe.starts[[stage.name for stage in recipe.stages].index(name)]), place=after)
        evaluate.recompute_statistics(comm.World(), network, stream, now, now.workers, precision)
        states[name] = {key: value.clone() for key, value in model.state_dict().items()}
    rows = []
    for named, average in compared:
        stages = named.split(" + ")
        members, mean = [states[name] for name in stages], average or "softmax"
        if average == "weights":  # whose statistics are computed again in any case
            members, mean = [evaluate.mean_of_weights(comm.World(), run, stages, members, network, train)], "softmax"
        found = evaluate.counts(comm.World(), [(model, state) for state in members], images, mean, precision=precision)
        counted = found["ensemble"] if len(members) > 1 else found["members"][0]
        row = {"folder": folder.name, "members": named, "average": average}
        rows.append(row | {"precise": 100 * counted["top1"] / found["images"]})
    return rows


def answered(models: pd.DataFrame, asked: Iterable[Question]) -> pd.DataFrame:
    """The answers of `tables.models` of one data set and shrink by their column `precise`, of the questions that have runs."""
    rows = []
    for question in asked:
        sides = (answering.rows_of(models, side).precise for side in (question.better, question.other))
        rows.append(answering.compare(question, *sides))
    table = answering.verdicts(pd.DataFrame(rows))
    table = table[(table.n > 0) & (table.n_other > 0)]
    return table[["topic", "claim", "n", "n_other", "difference", "low", "high", "p_holm", "verdict"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=given, default=RESULTS, help="folder of the results (default: %(default)s)")
    parser.add_argument(
        "--topics", nargs="+", default=questions.TOPICS, help="whose runs (default: all; minutes for each topic)"
    )
    arguments = parser.parse_args()
    results, chosen = arguments.results, questions.of(arguments.topics)
    asked = {side.recipe for question in chosen for side in question.sides}
    found = [path for path in records.complete_runs(results / "runs") if (path / "snapshots").is_dir()]
    found = [path for path in found if records.read(path)["base"] in asked]
    for data in {records.read(path)["data"]["name"] for path in found}:
        pack_embedded(data)
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        precise = pd.DataFrame([row for rows in pool.map(tested, found) for row in rows])
    models = tables.models(results / "runs").merge(precise, on=["folder", "members", "average"])
    table = pd.concat([answered(part, chosen).assign(data=data) for data, part in models.groupby("data")])
    print(table.to_string(index=False, float_format="{:.2f}".format))
    folder = writable_folder(results / "bench")
    tables.put(table, folder / "precise_statistics.csv", ["data", "topic"])
    of_runs = models[["data", "recipe", "seed", "members", "average", "top1", "precise"]]
    tables.put(of_runs, folder / "precise_runs.csv", ["data", "recipe"])


if __name__ == "__main__":
    main()
