"""Tests finished models on images of other sizes: is a model best at the size at which objects appeared in its training?

The training view enlarges objects, and scaling also smooths the noise of the pixels. So each size is made in two ways:

drawn    of digits alone: the test drawings again, larger or smaller, with the noise of the test images: only the size changes
scaled   the test images, scaled to a whole number of pixels near that size (`true_size` in the table): size and noise change
         together, as in the training view

    python -m bench.apparent_size [--results results]

Needs complete runs of collapse_parts with their snapshots, as `make reproduce` leaves them, on one data set or several.
"""

import argparse
import sys

import numpy as np
import pandas as pd
import torch

from bench import figures
from repro import ReproError, evaluate
from repro.images.data import Images
from repro.images.packed import Preprocessing
from repro.images.views import test_view
from repro.paper import ratios, tables
from repro.paper.figures import save
from repro.paths import RESULTS, ROOT, given, writable_folder
from repro.run import checkpoint, records, tidy

sys.path.insert(0, str(ROOT / "data_prep"))

import digits  # noqa: E402

import drawing  # noqa: E402

RECIPE = "collapse_parts"
STAGES = "plain", "zero-main-x1", "zero-crop-x1", "zero-crop-x2"
SIZES = 0.8, 0.86, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5
NUMBER = 5000  # of test images, the first ones


def drawn(images: Images, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test digits drawn again at `size` times their size, in the test view: (N, C, H, W) and labels (N,)."""
    ink, labels = digits.originals()["test"]
    chosen = np.arange(NUMBER) % len(ink)
    pixels = drawing.draw(ink[chosen], "digits test", 0, digits.NOISE, size)
    return images.tensors(labels[chosen], [test_view(image, images.preprocessing) for image in pixels])


def scaled(images: Images, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test images scaled to `size` times their size, their centre cut out: (N, C, H, W) and labels (N,)."""
    loaded = [images.load(index) for index in range(NUMBER)]
    views = [test_view(image, images.preprocessing, size) for _, image in loaded]
    return images.tensors([label for label, _ in loaded], views)


def sized(images: Images) -> dict[tuple[str, float], tuple[torch.Tensor, torch.Tensor]]:
    """The first test images at each of `SIZES`, in each way that there is, by (way, size).

    They are scaled only to sizes at which the centre of a stored image still fills the view.
    """
    seen = images.preprocessing
    fills = [size for size in SIZES if round(size * seen.short_side) >= seen.size]
    found = {("scaled", size): scaled(images, size) for size in fills}
    if images.name != "digits":
        return found
    if not torch.equal(drawn(images, 1)[0], images.test_batch(0, NUMBER)[0]):
        raise ReproError("the digits drawn here are not those of the test set: data_prep/digits.py was changed after packing")
    return {("drawn", size): drawn(images, size) for size in SIZES} | found


def true_size(how: str, size: float, side: int) -> float:
    """The size of digits that are wanted at `size` times theirs, in images of `side` pixels."""
    return size if how == "drawn" else round(size * side) / side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=given, default=RESULTS, help="folder of the results (default: %(default)s)")
    results = parser.parse_args().results
    runs = tables.that_count(tidy.runs(results / "runs")[0]).query("recipe == @RECIPE")
    found = [folder for name in runs.folder if ((folder := results / "runs" / name) / "snapshots").is_dir()]
    if not found:
        raise ReproError(f"{results} has no complete run of {RECIPE} with its snapshots: `make reproduce` trains it")
    rows, seen = [], {}
    for folder in found:
        run, stages, images = evaluate.open_run(folder, list(STAGES))
        data = run["data"]["name"]
        if data not in seen:
            seen[data] = sized(images)
        model = evaluate.build_again(run, images).eval()
        for stage in stages:
            model.load_state_dict(checkpoint.load(folder / "snapshots" / stage)[0])
            for (how, size), (batch, labels) in seen[data].items():
                with torch.inference_mode():
                    right = torch.cat([model(part).argmax(1) for part in batch.split(250)]) == labels
                row = {
                    "data": data,
                    "recipe": RECIPE,
                    "seed": run["settings"]["seed"],
                    "stage": stage,
                    "how": how,
                    "size": size,
                }
                row["true_size"] = true_size(how, size, images.preprocessing.short_side)
                rows.append(row | {"images": NUMBER, "top1": 100 * float(right.double().mean())})
    file = writable_folder(results / "bench") / "apparent_size.csv"
    tables.put(pd.DataFrame(rows), file, ["data"])
    table = pd.read_csv(file)
    means = table.pivot_table(index=["data", "how", "size"], columns="stage", values="top1")[list(STAGES)]
    print(means.to_string(float_format="{:.2f}".format))
    views = {
        run["data"]["name"]: Preprocessing(**run["data"]["preprocessing"])
        for run in records.read_all(results / "runs").values()
    }
    medians = {data: ratios.of_view(views[data])["median enlargement by the training view"] for data in table.data.unique()}
    save(figures.apparent_size(table, medians), table, results, "bench-apparent_size")


if __name__ == "__main__":
    main()
