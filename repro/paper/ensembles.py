"""What the members of an ensemble predict: how often they differ, how sure they are, and what evaluating them costs.

A run's record says which images a model was right for. Classes and probabilities are computed again from the run's snapshots
(`analysed`). The other functions take arrays of probabilities (N, classes), float64, as `predicted` returns them.
"""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro import evaluate
from repro.images import ahead
from repro.images.data import Images
from repro.model import builder, find_device
from repro.paper import answering, names, questions, tables
from repro.paper.answering import Side
from repro.paths import REFERENCE
from repro.run import checkpoint, records

BINS = 15  # of equal width, as in Guo et al. (2017)


class Made(NamedTuple):
    """Models whose predictions are analysed: the ends of some stages of a recipe's run, each alone or all as an ensemble."""

    recipe: str
    stages: tuple[str, ...]


MEMBERS = tuple(f"collapse{number}" for number in range(1, 6))
ANALYSED = (
    *(Made("five_members", (member,)) for member in MEMBERS),
    *(Made("five_members", MEMBERS[:number]) for number in range(2, 6)),
    Made("one_model", ("collapse_long",)),
    Made("one_deep_model", ("collapse_long",)),
    *(Made("three_models", (member,)) for member in MEMBERS[:3]),
    Made("three_models", MEMBERS[:3]),
    Made("snapshot_ensemble_crop", ("end1", "end2", "end3")),
)


def operations(model: nn.Module, channels: int, size: int) -> int:
    """Multiply-adds of the model for one image (channels, size, size): those of convolutions and matrix products.

    torch counts two operations for each of them.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, channels, size, size))
    return counter.get_total_flops() // 2


def predicted(model: nn.Module, images: Images, precision: str = "fp32", device: str = "cpu") -> np.ndarray:
    """The model's softmax (N, classes) for all images, float64, in the test view: what `evaluate.counts` averages."""
    size = 250 if images.small else 50
    requests = [(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    parts = []
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), autocast:
        for batch, _ in ahead.ordered(images.test_batch, requests, 0 if images.small else 2, ahead=2):
            parts.append(model.eval()(batch.to(device)).double().cpu().softmax(1).numpy())
    return np.concatenate(parts)


def disagreement(first: np.ndarray, second: np.ndarray) -> float:
    """The share of images, per cent, for which two models (N, classes) have another most probable class."""
    return 100 * float(np.mean(first.argmax(1) != second.argmax(1)))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """The reliability diagram (Guo et al., 2017, arXiv 1706.04599) of probabilities (N, classes) and labels (N,).

    A row is a bin of the largest probability, the confidence, above confidence_low and up to confidence_high: test_images, the
    number of images in it; their mean confidence and top1. All three are per cent; without images the last two are missing.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [100 * np.bincount(place, weights=each, minlength=bins) / images for each in (confidence, right)]
    edges = 100 * np.arange(bins + 1) / bins
    return pd.DataFrame(
        {
            "confidence_low": edges[:-1],
            "confidence_high": edges[1:],
            "test_images": images,
            "confidence": means[0],
            "top1": means[1],
        }
    )


def calibration_error(diagram: pd.DataFrame) -> float:
    """The expected calibration error, points: |top1 - confidence| of a `reliability`'s bins, weighted by their images."""
    gaps = (diagram.top1 - diagram.confidence).abs().fillna(0)
    return float((gaps * diagram.test_images).sum() / diagram.test_images.sum())


def loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy of probabilities (N, classes) against labels (N,)."""
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


# --- From runs ----------------------------------------------------------------------------------------------------------


def source(out: Path | str, data: str, shrink: str) -> Path:
    """The folder whose runs are analysed: `out` if it has an ensemble of this data set and shrink, else the reference's."""
    runs = [run for run in records.read_all(out).values() if run["status"] == "complete"]
    of = {(run["base"], run["data"]["name"], run["shrink"]) for run in runs}
    return Path(out) if ("five_members", data_name(data), shrink) in of else REFERENCE / "runs"


def kept(found: dict[str, pd.DataFrame], results: Path | str) -> dict[str, pd.DataFrame]:
    """Saves tables (`tables.save`), and returns them; of one without rows, since no run has what it needs, the reference's."""
    for name, table in found.items():
        if len(table):
            tables.save(table, results, name)
    if gone := [name for name, table in found.items() if table.empty]:
        print(f"no run here has what is needed: {', '.join(gone)} as the reference has it")
    return {name: table if len(table) else pd.read_csv(REFERENCE / "tables" / f"{name}.csv") for name, table in found.items()}


def runs_of(out: Path | str, recipe: str, data: str, shrink: str) -> dict[int, Path]:
    """The folders of a recipe's runs that count (`tables.models`) and still have their models, by seed."""
    models = tables.models(out)
    chosen = models[(models.recipe == recipe) & (models.data == data) & (models["shrink"] == shrink)]
    chosen = chosen[(chosen.variant == "") & chosen.default_model].drop_duplicates("folder")
    folders = {int(row.seed): Path(out) / str(row.folder) for row in chosen.sort_values("seed").itertuples()}
    return {seed: folder for seed, folder in folders.items() if any(folder.glob("snapshots/*.json"))}


def analysed(out: Path | str, data: str, shrink: str, seeds: Iterable[int]) -> dict[str, pd.DataFrame]:
    """Tables of the predictions of `ANALYSED`, of the runs in `out` that have snapshots; by the names they are saved under.

    ensemble_calibration  a row per model or ensemble, seed and bin: recipe, members, seed and the columns of `reliability`
    ensemble_predictions  a row per model or ensemble and seed: recipe, members, seed, models (how many are evaluated), top1,
                          loss, calibration_error
    ensemble_pairs        a row per pair of models and seed: kind, recipe, members, seed, disagreement, top1 (the pair's mean).
                          The kinds are the first three members of an ensemble, the three models of three_models, and the same
                          member of two runs: those of this seed and of the next one

    `data` is the name of a packed data set or its folder. No rows if there are no such runs.
    """
    diagrams, rows, pairs = [], [], []
    third: dict[int, np.ndarray] = {}  # the third member's probabilities by seed
    for recipe in dict.fromkeys(made.recipe for made in ANALYSED):
        chosen = [made for made in ANALYSED if made.recipe == recipe]
        folders = runs_of(out, recipe, data_name(data), shrink)
        for seed in (seed for seed in seeds if seed in folders):
            found, labels = _members(folders[seed], sorted({stage for made in chosen for stage in made.stages}), data)
            for made in chosen:
                mean = np.mean([found[stage] for stage in made.stages], axis=0)
                diagram = reliability(mean, labels)
                keys = {"recipe": recipe, "members": " + ".join(made.stages), "seed": seed}
                diagrams.append(diagram.assign(**keys)[[*keys, *diagram]])
                top1 = 100 * float(np.mean(mean.argmax(1) == labels))
                counted = {"models": len(made.stages), "top1": top1, "loss": loss(mean, labels)}
                rows.append(keys | counted | {"calibration_error": calibration_error(diagram)})
            if kind := {"five_members": names.MEMBERS_OF_ONE, "three_models": names.THREE_MODELS}.get(recipe):
                for one, other in combinations(MEMBERS[:3], 2):
                    pairs.append(_pair(kind, recipe, f"{one} + {other}", seed, found[one], found[other], labels))
            if recipe == "five_members":
                third[seed] = found[MEMBERS[2]]
                if seed - 1 in third:
                    two = third.pop(seed - 1), third[seed]
                    pairs.append(_pair(names.SAME_OF_TWO, recipe, f"{MEMBERS[2]} + {MEMBERS[2]}", seed - 1, *two, labels))
    return {
        "ensemble_calibration": pd.concat(diagrams) if diagrams else pd.DataFrame(),
        "ensemble_predictions": pd.DataFrame(rows),
        "ensemble_pairs": pd.DataFrame(pairs),
    }


def data_name(data: str) -> str:
    """The name under which runs record a data set that is named, or given as a folder."""
    return Path(data).name


def _members(folder: Path, stages: list[str], data: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The probabilities of the models at the ends of a run's stages, and the labels of its test images."""
    run, stages, images = evaluate.open_run(folder, stages, data)
    device, found = find_device("auto"), {}
    model = evaluate.build_again(run, images).to(device)
    for stage in stages:
        model.load_state_dict(checkpoint.load(folder / "snapshots" / stage)[0])
        found[stage] = predicted(model, images, run["settings"]["precision"], device)
    return found, np.array([images.load(number)[0] for number in range(len(images))])


def _pair(kind: str, recipe: str, members: str, seed: int, one: np.ndarray, other: np.ndarray, labels: np.ndarray) -> dict:
    right = [100 * float(np.mean(each.argmax(1) == labels)) for each in (one, other)]
    keys = {"kind": kind, "recipe": recipe, "members": members, "seed": seed}
    return keys | {"disagreement": disagreement(one, other), "top1": sum(right) / 2}


def costs(models: pd.DataFrame, images: Images) -> pd.DataFrame:
    """Top-1 over what a prediction costs: label, line (part of a line), models, operations, top1, seed.

    `models` is how many are evaluated for an image, `operations` their multiply-adds, in millions. Expects `tables.models` of
    one data set and shrink, and images of that data set. The records of runs are enough: no weights are read.
    """
    models = models[(models.variant == "") & models.default_model]
    drawn = [(names.ENSEMBLE, True, Side("five_members", *_mean(MEMBERS[:number]))) for number in range(1, 6)]
    drawn += [(names.ONE_MODEL, False, questions.ONE_MODEL), (names.ONE_DEEP, False, Side("one_deep_model", "collapse_long"))]
    drawn += [(names.recipe(side.recipe), False, side) for side in questions.OTHERS.values() if side.average]
    rows = [answering.rows_of(models, side).reset_index().assign(label=label, line=line) for label, line, side in drawn]
    table = pd.concat(rows).assign(models=lambda rows: rows.members.str.count(r"\+") + 1)
    seen = len(images.classes), images.channels, images.preprocessing.size
    one = {network: operations(builder(network, *seen)(), *seen[1:]) for network in table.model.unique()}
    table["operations"] = table.model.map(one) * table.models / 1e6
    return table[["label", "line", "models", "operations", "top1", "seed"]].reset_index(drop=True)


def _mean(stages: tuple[str, ...]) -> tuple[str, str]:
    """The members and the average of a `Side`."""
    return " + ".join(stages), "softmax" if len(stages) > 1 else ""
