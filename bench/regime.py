"""Chooses the free numbers of the small test bed, without looking at what is asked of it later.

Only validation images are used, and seeds that no reported run has. Each number has a criterion that was fixed before, and
none of them compares two sides of a claim:

rate     the largest factor at which a small batch (2048 of ImageNet's images) is stable: within one point of the best factor.
         While that is the largest that was tried, its double is tried. Of photographs, which small batches bear at far larger
         rates than others, one model of the batch of most questions (14336) has to be stable at it, too
length   the shortest of the lengths at which twice the epochs gain one model less than one point, or the longest tried. Only of
         digits: other beds have the digits' length, so that their runs have as many steps
width    of the factors on the channels, the largest for which the declared runs fit into the hours that there are. It is chosen
         by cost alone, from the seconds that one run takes on one core. Only of photographs
noise    the standard deviation, in units of the digits' contrast, at which one model is right for about 76% of the images, as
         on ImageNet. It is part of the data (data_prep/digits.py), so it is not varied here: this script only reports it

    python -m bench.regime [--data fashion_mnist] [--out results/bench/regime_fashion_mnist]

It ends with the numbers for `SHRINKS` of repro/recipes. Each bed has the images and batches of its own shrink. Complete runs
are skipped, so the same command continues.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from repro import ReproError, recipes
from repro.evaluate import VIEWS
from repro.images.data import Images
from repro.images.packed import pack_embedded
from repro.paper import ask, questions
from repro.paper.profiles import PROFILES, Profile
from repro.paths import RESULTS, given, replacing
from repro.run import records
from repro.schedule import Recipe, due
from repro.train import train

SEEDS = 100, 101
RATES = 3.0, 6.0, 12.0, 24.0, 48.0
LENGTHS = 1 / 60, 1 / 30, 1 / 15, 2 / 15
SMALL_BATCH, ONE_MODEL = "batch_2048", "resnet50_448nodes_uncollapsed"
POINT = 1.0
DIVERGED = "the run has diverged"  # in the message of a run that did (repro/allreduce.py)
HOURS = 10.0  # of one core, for all runs of a bed's profile


class Bed(NamedTuple):
    """What is tried on a data set."""

    profile: str  # of `make reproduce`: its shrink has the images and the batches, its topics have the runs that must fit
    stable: tuple[str, ...] = (SMALL_BATCH,)  # recipes that the rate must suit
    lengths: tuple[float, ...] = ()  # empty: only its shrink's
    widths: tuple[int, ...] = ()


BEDS = {
    "digits": Bed("full", lengths=LENGTHS),
    "fashion_mnist": Bed("photographs", stable=(SMALL_BATCH, ONE_MODEL), widths=(1, 2)),
}


def trials(number: str, recipe: str, values: Iterable, data: str, out: Path, **chosen) -> pd.DataFrame:
    """Trains `recipe` with each value of the shrink's field `number`; one row per value and seed, accuracies in per cent.

    A run that diverges has no image right, and no seconds: its value is not a stable one.
    """
    rows, base = [], PROFILES[bed(data).profile].shrink
    images, validated = (len(Images(data, split)) for split in ("train", "val"))
    for value in values:
        fields = {**chosen, number: value}
        profile = replace(recipes.SHRINKS[base], name=f"{number}-{value:.4g}", **fields)
        small = recipes.shrink(recipes.find(recipe), profile, images)
        for seed in SEEDS:
            row = {"number": number, "value": value, "recipe": recipe, "seed": seed, "validation_top1": 0.0}
            try:
                folder = train(small, data=data, shrink="none", seed=seed, split="val", out=str(out), device="cpu")
            except ReproError as error:
                if DIVERGED not in str(error):
                    raise
            else:
                run = records.read(folder)
                end = run["ends"]["main"]
                row |= {
                    "validation_top1": 100 * end["top1"] / end["images"],
                    "train_top1": 100 * end["train_top1"],
                    "seconds": run["seconds"] * run["ranks"],
                    "evaluating": run["evaluating"] * run["ranks"],
                    "images": small.images(),
                    "tested": tested(recipe, small, validated),
                }
            rows.append(row)
            print(row, flush=True)
    return pd.DataFrame(rows)


def bed(data: str) -> Bed:
    """What is tried on a data set, given by its name or folder; on one that has no regime of its own, what is on digits."""
    return BEDS.get(Path(data).name, BEDS["digits"])


def rates(data: str, out: Path, epochs: float) -> pd.DataFrame:
    """The trials of the rate: of `RATES`, and of twice the largest while that is the one that `largest_stable` chooses."""

    def tried(values: Iterable[float]) -> list[pd.DataFrame]:
        return [trials("rate", recipe, values, data, out, epochs=epochs, widen=1) for recipe in bed(data).stable]

    rows = pd.concat(tried(RATES))
    while (largest := largest_stable(rows)) == rows.value.max():
        rows = pd.concat([rows, *tried([2 * largest])])
    return rows


def largest_stable(rows: pd.DataFrame) -> float:
    """The largest value at which each recipe's mean validation accuracy is within a point of its best.

    Raises ReproError if there is none.
    """
    means = rows.groupby(["value", "recipe"]).validation_top1.mean().unstack()
    stable = means.index[(means >= means.max() - POINT).all(axis=1)]
    if stable.empty:
        raise ReproError(f"no value that was tried suits all of {', '.join(means)}")
    return float(stable.max())


def levelled_off(rows: pd.DataFrame) -> float:
    """The smallest value after which the next one, twice as long, gains less than a point; the largest if there is none."""
    means = rows.groupby("value").validation_top1.mean().sort_index()
    gains = means.diff().shift(-1)
    return float(gains[~(gains >= POINT)].index.min())


def tested(name: str, small: Recipe, images: int) -> int:
    """How many images a run of a recipe made small is tested on, of a test set of so many: during it, at stages' ends, and by
    the ensembles that the questions ask about.
    """
    ensembles = ask.ensembles([side for question in questions.QUESTIONS for side in question.sides] + [*questions.GROWING])
    models = len(small.stages) + sum(len(members) for members, _ in ensembles.get(name, []))
    in_all_views = sum(min(images, most or images) for most in VIEWS.values())
    return (len(due(small, small.evaluate_every)) - len(small.stages)) * images + models * in_all_views


def core_hours(rows: pd.DataFrame, profile: Profile, images: dict[str, int], epochs: float) -> pd.DataFrame:
    """What all runs of a profile take at each width that is in `rows`: a row per topic, a column per width.

    By the seconds for which an image was trained on, or tested, there. A run that two topics share counts in the first.
    `images` are the numbers of each split's, `epochs` is the shrink's.
    """
    small = replace(recipes.SHRINKS[profile.shrink], epochs=epochs)
    runs: set[tuple[str, int]] = set()
    work = {}
    for topic, seeds in profile.seeds.items():
        wanted = {(task["recipe"], task["seed"]) for task in ask.tasks(questions.of([topic]), range(seeds))} - runs
        runs |= wanted
        work[topic] = np.zeros(2)
        for name, _ in wanted:
            made = recipes.shrink(recipes.find(name), small, images["train"])
            deep = ask.DEEP.get(recipes.find(name).model, 1)
            work[topic] += np.multiply((made.images(), tested(name, made, images["test"])), deep)
    spent = rows.assign(training=rows.seconds - rows.evaluating).groupby("value").sum(numeric_only=True)
    an_image = {width: (row.training / row.images, row.evaluating / row.tested) for width, row in spent.iterrows()}
    return pd.DataFrame({width: {topic: of @ each / 3600 for topic, of in work.items()} for width, each in an_image.items()})


def widest(hours: pd.DataFrame) -> int:
    """The largest width at which all topics fit into `HOURS`; the smallest if none does."""
    total = hours.sum()
    return int(max(total[total <= HOURS].index, default=min(total.index)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="data set (default: %(default)s)")
    parser.add_argument("--out", type=given, help="folder (default: results/bench/regime, and _DATA if it is not digits)")
    arguments = parser.parse_args()
    data, name, tried = arguments.data, Path(arguments.data).name, bed(arguments.data)
    out = arguments.out or RESULTS / "bench" / f"regime{'' if name == 'digits' else f'_{name}'}"
    pack_embedded(data)
    out.mkdir(parents=True, exist_ok=True)
    profile = PROFILES[tried.profile]
    epochs = recipes.SHRINKS[profile.shrink].epochs
    of_rates = rates(data, out, max(tried.lengths, default=epochs))
    rate = largest_stable(of_rates)
    chosen = f"rate={rate:g}"
    lengths = trials("epochs", ONE_MODEL, tried.lengths, data, out, rate=rate, widen=1)
    if len(lengths):
        epochs = levelled_off(lengths)
        chosen += f", epochs={Fraction(epochs).limit_denominator(1000)}"
    widths = trials("widen", ONE_MODEL, tried.widths, data, out, rate=rate, epochs=epochs)
    with replacing(out.with_suffix(".csv")) as temporary:
        pd.concat([of_rates, lengths, widths]).to_csv(temporary, index=False)
    if len(widths):
        hours = core_hours(widths, profile, {split: len(Images(data, split)) for split in ("train", "test")}, epochs)
        print(f"core-minutes of each topic of {tried.profile}, by width; all must fit into {60 * HOURS:.0f}:")
        print(pd.concat([hours, hours.sum().to_frame("all").T]).mul(60).round().astype(int).to_string())
        chosen += f", widen={widest(hours)}"
    print(f"for the shrink {profile.shrink} in repro/recipes/__init__.py: {chosen}")


if __name__ == "__main__":
    main()
