"""What a test bed's images and network would reach if a run might cost more, and what a linear model reaches: is the bed hard?

The test bed of photographs trains on 20,000 of 55,000 images, twelve times, with a small network, for its cost. This trains
the network on all of them, with more epochs, and with more channels: `one_model` with a long collapse, with a seed that
no reported run has. And for scale a linear model of the pixels (logistic regression), on the bed's images and on the
digits' bed's, as the test view shows them. All are tested on validation images; the linear model, whose penalty they
choose, on the test's, too.

    python -m bench.yardsticks [--data fashion_mnist] [--out results/bench/yardsticks]

Writes yardsticks.csv beside that folder, a row per trial. Complete runs are skipped, so the same command continues.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.regime import SEEDS
from repro import cores, recipes
from repro.images.data import Images
from repro.images.packed import pack_embedded
from repro.paper.profiles import shrink_of
from repro.paths import RESULTS, given, replacing
from repro.run import records
from repro.train import train


class Trial(NamedTuple):
    longer: int  # factor on the bed's epochs
    widen: int  # factor on the channels of its network


TRIALS = Trial(3, 1), Trial(1, 2), Trial(1, 1)  # the longest first, since each has a core
ONE_MODEL = recipes.find("one_model")
ONE_END = replace(ONE_MODEL, name="one_end", stages=ONE_MODEL.stages[:2])  # the linear decay and the long collapse
PENALTIES = 0.1, 0.01, 0.001  # inverse strengths; the best one counts, so the linear model is not behind for want of tuning


def linear(data: str) -> dict:
    """The linear model's row, of the images that the data set's bed trains on."""
    train = Images(data, "train").first(recipes.SHRINKS[shrink_of(Path(data).name)].images)
    pixels, labels = seen(train)
    validation, test = (seen(Images(data, split)) for split in ("val", "test"))
    best = {"validation_top1": 0.0}
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, tol=1e-3, max_iter=2000)).fit(pixels, labels)
        if (top1 := 100 * model.score(*validation)) > best["validation_top1"]:
            best = {
                "validation_top1": top1,
                "train_top1": 100 * model.score(pixels, labels),
                "test_top1": 100 * model.score(*test),
            }
    return {"data": Path(data).name, "model": "linear", "images": len(train), **best}


def seen(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """All images in the test view, as rows of pixels, and their labels."""
    views, labels = images.test_batch(0, len(images))
    return views.flatten(1).numpy(), labels.numpy()


def tried(trial: Trial, data: str, out: Path) -> dict:
    """Trains a trial; its row, with accuracies in per cent and seconds of one core."""
    images, bed = len(Images(data, "train")), recipes.SHRINKS[shrink_of(Path(data).name)]
    name = f"all-images-x{trial.longer}-w{trial.widen}"
    shrink = replace(bed, name=name, images=images, epochs=bed.epochs * trial.longer, widen=trial.widen)
    small = recipes.shrink(ONE_END, shrink, images)
    folder = train(small, data=data, shrink="none", seed=SEEDS[0], split="val", out=str(out), device="cpu")
    run = records.read(folder)
    end = run["ends"][ONE_END.stages[-1].name]
    return {
        "data": Path(data).name,
        "model": run["model"],
        "images": images,
        "epochs": end["epoch"],
        "seed": SEEDS[0],
        "validation_top1": 100 * end["top1"] / end["images"],
        "train_top1": 100 * end["train_top1"],
        "seconds": run["seconds"] * run["ranks"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="fashion_mnist", help="data set (default: %(default)s)")
    parser.add_argument("--out", type=given, default=RESULTS / "bench" / "yardsticks", help="folder of the runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pack_embedded("digits")
    with ProcessPoolExecutor(min(cores(), len(TRIALS)), mp_context=get_context("spawn")) as pool:
        trained = pool.map(partial(tried, data=arguments.data, out=arguments.out), TRIALS)
        rows = [*map(linear, ("digits", arguments.data)), *sorted(trained, key=lambda row: row["seconds"])]
    with replacing(arguments.out.with_suffix(".csv")) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
