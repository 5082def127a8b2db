"""The ratios by which a shrunk recipe compares with the one at ImageNet's size, and those that a shrink does not keep."""

from pathlib import Path

import numpy as np
import pandas as pd

from repro.images.packed import PHOTOGRAPHS, Preprocessing
from repro.images.views import ATTEMPTS, scale_aspect_boxes
from repro.paper.profiles import shrink_of
from repro.recipes import RECIPES, shrink
from repro.run import records
from repro.schedule import Recipe, learning_rate

COMPARED = "resnet50_448nodes", "collapsed_ensemble"
FACTOR = 2.0  # a ratio within this factor of the recipe's is kept

# Steps = epochs x images / batch, and the horizon of momentum is ten steps. With batch and images divided alike, a run that is
# affordable has few epochs; then everything that counts steps is short, and each step has to do more.
DEPARTURES = {
    "epochs": "the cost of a run",
    "steps": "follows from the epochs",
    "warm-up, in horizons of momentum": "follows from the epochs: its share of the run is kept",
    "last collapse, in horizons of momentum": "follows from the epochs: its share of the run is kept",
    "largest rate for every 256 images of the batch": "chosen on validation images: each of fewer steps has to do more",
    "last collapse, in horizons of batch norm's averages": "follows from the epochs; over fewer steps, too few images",
    "largest weight decay of a step": "follows from the epochs: its sum over the run is kept",
    "smallest share of the area in the training view": "a twelfth of a digit cannot be read",
    "entropy of the training view, bits": "follows from the images' size",
}


def of(recipe: Recipe) -> dict[str, float]:
    """The ratios of one recipe. Decay is rate x weight decay / (1 - momentum), by which weights shrink."""
    path = recipe.lineage([recipe.stages[-1].name])
    starts = dict(zip(recipe.stages, recipe.starts))
    steps = [(stage, starts[stage] + iteration) for stage in path for iteration in range(stage.iterations)]
    decays = [learning_rate(recipe, step) * stage.weight_decay / (1 - recipe.momentum) for stage, step in steps]
    horizon = 1 / (1 - recipe.momentum)
    return {
        "batch, share of the training images": recipe.global_batch / recipe.epoch_images,
        "images per worker": recipe.images_per_worker,
        "largest rate for every 256 images of the batch": max(256 * stage.base_rate / recipe.batch(stage) for stage in path),
        "weight decay, sum over the run": float(np.sum(decays)),
        "largest weight decay of a step": float(np.max(decays)),
        "warm-up, share of the run": path[0].warmup_iterations / len(steps),
        "warm-up, in horizons of momentum": path[0].warmup_iterations / horizon,
        "last collapse, share of the run": path[-1].iterations / len(steps),
        "last collapse, in horizons of momentum": path[-1].iterations / horizon,
        "last collapse, in horizons of batch norm's averages": path[-1].iterations * recipe.bn_momentum,
        "steps": len(steps),
        "epochs": recipe.epochs(len(steps)),
    }


def of_view(seen: Preprocessing, draws: int = 2**17) -> dict[str, float]:
    """The ratios of the main stages' view of square images, from random `draws` of it.

    The enlargement is that of an object against the test view. The entropy is of the box that is cut out and of mirroring.
    """
    numbers = np.random.default_rng(0).random((draws, 5 * ATTEMPTS))
    height, width = scale_aspect_boxes(numbers, seen.short_side, seen, ATTEMPTS).T[2:]
    counts = np.unique(height * seen.short_side + width, return_counts=True)[1] / draws
    places = (seen.short_side - height + 1) * (seen.short_side - width + 1)  # each as probable as the others
    bits = -(counts * np.log2(counts)).sum() + np.log2(places).mean() + seen.mirror
    return {
        "seen, share of the stored side": seen.size / seen.short_side,
        "median enlargement by the training view": (enlargement := float(np.median(seen.size / np.sqrt(height * width)))),
        "the same, less one": enlargement - 1,
        "entropy of the training view, bits": float(bits),
        "smallest share of the area in the training view": seen.smallest_area,
    }


def table(seen: Preprocessing, profile: str = "laptop") -> pd.DataFrame:
    """One row per recipe and ratio: recipe, ratio, imagenet, small, factor (small / imagenet), kept, reason (if not kept).

    `seen` is the small data set's. Ratios of views hold for every recipe: their rows name none.
    """
    pairs = {"": (of_view(PHOTOGRAPHS), of_view(seen))}
    pairs |= {name: (of(RECIPES[name]), of(shrink(RECIPES[name], profile))) for name in COMPARED}
    rows = []
    for name, (large, small) in pairs.items():
        for ratio, value in large.items():
            factor = small[ratio] / value
            kept = 1 / FACTOR <= factor <= FACTOR
            reason = "" if kept else DEPARTURES.get(ratio, "not explained")
            rows.append(
                {
                    "recipe": name,
                    "ratio": ratio,
                    "imagenet": value,
                    "small": small[ratio],
                    "factor": factor,
                    "kept": kept,
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows)


def of_runs(out: Path | str) -> pd.DataFrame:
    """`table` of each data set that has complete runs in `out`, made small as its profiles are; data is its first column."""
    runs = [run["data"] for run in records.read_all(out).values() if run["status"] == "complete"]
    seen = {data["name"]: Preprocessing(**data["preprocessing"]) for data in runs}
    return pd.concat({data: table(each, shrink_of(data)) for data, each in seen.items()}, names=["data"]).reset_index("data")
