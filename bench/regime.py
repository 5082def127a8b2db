"""Chooses the free numbers of the small test bed, without looking at what is asked of it later.

Only validation images are used, and seeds that no reported run has. Each number has a criterion that was fixed before, and
none of them compares two sides of a claim:

rate     the largest factor at which a small batch (2048 of ImageNet's images) is stable: within one point of the best factor
length   the shortest of the lengths at which twice the epochs gain one model less than one point, or the longest tried
width    of the factors on the channels, the largest for which the declared runs fit into the hours that there are. It is chosen
         by cost alone: `seconds` are those of one run on one core. Only where widths are asked for (photographs)
noise    the standard deviation, in units of the digits' contrast, at which one model is right for about 76% of the images, as
         on ImageNet. It is part of the data (data_prep/digits.py), so it is not varied here: this script only reports it

    python -m bench.regime [--data fashion_mnist --widths 1 2 4] [--out results/bench/regime]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from repro import recipes
from repro.images.data import Images
from repro.images.packed import pack_embedded
from repro.paths import RESULTS, given, replacing
from repro.run import records
from repro.train import train

SEEDS = 100, 101
RATES = 3.0, 6.0, 12.0, 24.0, 48.0
LENGTHS = 1 / 60, 1 / 30, 1 / 15, 2 / 15
SMALL_BATCH, ONE_MODEL = "batch_2048", "resnet50_448nodes_uncollapsed"
POINT = 1.0


def trials(number: str, recipe: str, values, data: str, out: Path, **chosen) -> pd.DataFrame:
    """Trains `recipe` with each value of the shrink's field `number`; one row per value and seed, accuracies in per cent."""
    rows, images = [], len(Images(data, "train"))
    for value in values:
        fields = {**chosen, number: value}
        profile = replace(recipes.SHRINKS["laptop"], name=f"{number}-{value:.4g}", **fields)
        small = recipes.shrink(recipes.find(recipe), profile, images)
        for seed in SEEDS:
            folder = train(small, data=data, shrink="none", seed=seed, split="val", out=str(out), device="cpu")
            run = records.read(folder)
            end = run["ends"]["main"]
            rows.append(
                {
                    "number": number,
                    "value": value,
                    "recipe": recipe,
                    "seed": seed,
                    "validation_top1": 100 * end["top1"] / end["images"],
                    "train_top1": 100 * end["train_top1"],
                    "seconds": run["seconds"] * run["ranks"],
                }
            )
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def largest_stable(rows: pd.DataFrame) -> float:
    """The largest value whose mean validation accuracy is within a point of the best."""
    means = rows.groupby("value").validation_top1.mean()
    return float(means[means >= means.max() - POINT].index.max())


def levelled_off(rows: pd.DataFrame) -> float:
    """The smallest value after which the next one, twice as long, gains less than a point; the largest if there is none."""
    means = rows.groupby("value").validation_top1.mean().sort_index()
    gains = means.diff().shift(-1)
    return float(gains[~(gains >= POINT)].index.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given, default=RESULTS / "bench" / "regime", help="folder (default: %(default)s)")
    parser.add_argument("--data", default="digits", help="data set (default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="*", default=[], help="factors on the channels of the small network")
    arguments = parser.parse_args()
    pack_embedded(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rates = trials("rate", SMALL_BATCH, RATES, arguments.data, arguments.out)
    print(f"rate: {largest_stable(rates):g}")
    lengths = trials("epochs", ONE_MODEL, LENGTHS, arguments.data, arguments.out, rate=largest_stable(rates))
    print(f"epochs: {levelled_off(lengths):.4g}")
    chosen = dict(rate=largest_stable(rates), epochs=levelled_off(lengths))
    widths = trials("widen", ONE_MODEL, arguments.widths, arguments.data, arguments.out, **chosen)
    with replacing(arguments.out.with_suffix(".csv")) as temporary:
        pd.concat([rates, lengths, widths]).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
