"""Tunes the methods of the paper's references, all alike: trains what `repro.paper.choice` asks for, on validation images.

Writes results/bench/tuning.csv: recipe, number, value, seed, validation_top1, in the order in which the values were tried.

    mpiexec -n 2 python -m bench.tuning [METHOD ...] [--shrink smoke] [--count]

Complete runs are skipped, so the same command continues.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

import pandas as pd

from repro import ReproError, choose, recipes
from repro.images.packed import Packed, data_folder, pack_embedded
from repro.paper import tables
from repro.paper.ask import core_seconds
from repro.paper.choice import SEEDS, TRIES, chosen, following, means
from repro.paths import REFERENCE, RESULTS, given
from repro.ranks import comm
from repro.recipes.baselines import TUNED, Tuned
from repro.run import records
from repro.schedule import Recipe
from repro.task import prepare
from repro.train import train_all

METHODS = {method.recipe.name: method for method in TUNED}


def trial(method: Tuned, value: float) -> Recipe:
    """The method's recipe with this number, under a name that says so."""
    return replace(method.make(value), name=f"{method.recipe.name}-{value:g}")


def tune(methods: list[Tuned], out: Path, **parameters) -> pd.DataFrame:
    """Trains what the rule asks for, all methods' next values at a time: recipe, number, value, seed, validation_top1."""
    found: list[dict] = []
    columns = ["recipe", "number", "value", "seed", "validation_top1"]
    while True:
        rows = pd.DataFrame(found, columns=columns)
        wanted = [(method, value) for method in methods for value in following(means(rows, method.recipe.name), method.first)]
        if not wanted:
            return rows
        tasks = [
            dict(recipe=trial(*each), seed=seed, out=str(out), split="val", device="cpu", **parameters)
            for each in wanted
            for seed in SEEDS
        ]
        train_all(tasks, {task["recipe"]: _ensemble(task["recipe"]) for task in tasks})
        for (method, value), task in zip((each for each in wanted for _ in SEEDS), tasks):
            result = records.result(prepare(**task, world=comm.World()).run.folder)
            accuracy = round(100 * result["top1"] / result["images"], 3)  # as the table has it
            found.append(dict(zip(columns, (method.recipe.name, method.number, value, task["seed"], accuracy))))


def _ensemble(recipe: Recipe) -> list[tuple[list[str], str]]:
    return [(recipe.result, "softmax")] if recipe.result[1:] else []


def cost(methods: list[Tuned], data: str, shrink: str) -> str:
    """How much there is to train, in words; core-minutes by what an image took in the runs of the reference."""
    images = len(Packed(data_folder(data) / "train.lmdb", data, "train"))
    known = core_seconds(run for run in records.read_all(REFERENCE / "runs").values() if run["shrink"] == "laptop")
    each = median(seconds / recipes.shrink(recipes.find(name), "laptop", images).images() for name, seconds in known.items())
    small = [recipes.shrink(method.recipe, shrink, images) for method in methods]
    runs = TRIES * len(SEEDS)
    minutes = runs * sum(recipe.images() for recipe in small) * each / 60
    said = f"{runs * len(methods)} runs ({len(methods)} x {TRIES} values x {len(SEEDS)} seeds)"
    return f"{said}, {minutes:.0f} core-minutes as in the reference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="names of recipes (default: all that are tuned)")
    parser.add_argument("--out", type=given, default=RESULTS / "bench" / "tuning", help="folder (default: %(default)s)")
    parser.add_argument("--data", default="digits", help="data set (default: %(default)s)")
    parser.add_argument("--shrink", default="laptop", help="how the recipes are made small (default: %(default)s)")
    parser.add_argument("--count", action="store_true", help="only say how many runs there are and what they take")
    arguments = parser.parse_args()
    try:
        methods = [METHODS[choose("method", name, METHODS)] for name in arguments.methods or METHODS]
    except ReproError as error:
        parser.error(str(error))
    first = comm.world().rank == 0
    if first:
        pack_embedded(arguments.data)
        print(cost(methods, arguments.data, arguments.shrink), flush=True)
    if arguments.count:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = tune(methods, arguments.out, data=arguments.data, shrink=arguments.shrink)
    if first:
        tables.put(rows, arguments.out.with_suffix(".csv"), ["recipe"])
        for name in dict.fromkeys(rows.recipe):
            tried = means(rows, name)
            print(f"{name}: {chosen(tried):g} of {', '.join(f'{value:g} ({top1:.1f}%)' for value, top1 in tried.items())}")


if __name__ == "__main__":
    main()
