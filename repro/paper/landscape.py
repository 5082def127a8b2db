"""The loss around trained weights: on the straight path between two models, and along random directions.

Weights are states as snapshots have them: tensors by name. At every point batch norm's statistics are computed again for the
weights there (`Surface`), because those of either end fit no point between them. What is moved are parameters; a direction
moves those of convolutions and of the classifier's matrix.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from repro import evaluate
from repro.images.data import Images, Stream
from repro.model import Network, find_device
from repro.paper.ensembles import MEMBERS, data_name, runs_of
from repro.ranks.comm import World
from repro.run import checkpoint
from repro.run.shapes import recipe_of
from repro.schedule import at

State = dict[str, torch.Tensor]

SHARES = tuple(np.linspace(0, 1, 11).round(1).tolist())  # places on a path
RADII = 0.1, 0.2, 0.3  # of filter-wise directions: shares of each filter's length
DRAWS = 2  # random directions
SEEDS = 3  # of the notebook's, at most: a landscape takes minutes a seed
HEIGHT_IMAGES = 5000  # test or training images, at most, of which a loss is the mean


class Surface:
    """The loss of a run's network at any weights, on images of one view, with batch norm's statistics of that view.

    The statistics are recomputed at each point, by `evaluate.recompute_statistics`: the means over `STATISTICS_IMAGES` training
    images, always the same, of each worker's own mean and variance. `split` says of which images the loss is: test images in
    the test view (then the statistics are of the collapse's), or training images in `view`, scale_aspect (the main stages')
    or none (the collapse's), each image in one random view, always the same.
    """

    def __init__(self, folder: Path | str, split: str = "test", view: str = "none", data: str = ""):
        self.run, _, test = evaluate.open_run(folder, data=data)
        self.folder, self.recipe, settings = Path(folder), recipe_of(self.run), self.run["settings"]
        device = find_device("auto")
        named = data or self.run["data"]["name"]
        train = Images(named, "train", normalization=settings["normalization"], size=settings["size"])
        train = train.first(self.recipe.epoch_images)
        self.network = Network(evaluate.build_again(self.run, test), device, self.recipe.images_per_worker)
        self.stream = Stream(train, settings["seed"], self.recipe.images_per_worker)
        images = (test if split == "test" else train).first(HEIGHT_IMAGES)
        batch: Callable[[int, int], tuple] = partial(images.test_batch, view="test" if split == "test" else view)
        self.requests = [(start, min(start + 250, len(images))) for start in range(0, len(images), 250)]
        self.batch = cache(batch) if images.small else batch  # the same views at every point
        if images.small:
            self.stream.batch = cache(self.stream.batch)  # type: ignore[method-assign]
        last = at(self.recipe, self.recipe.iterations - 1)
        self.now = replace(last, stage=replace(last.stage, augmentation=view))

    def state(self, stage: str) -> State:
        """The weights at the end of a stage."""
        return checkpoint.load(self.folder / "snapshots" / stage)[0]

    def height(self, state: State) -> tuple[float, float]:
        """Returns the mean cross-entropy and the top-1, per cent, at these weights."""
        network, precision = self.network, self.run["settings"]["precision"]
        network.load(state)
        evaluate.recompute_statistics(World(), network, self.stream, self.now, self.recipe.workers_per_pass, precision)
        network.model.eval()
        losses, right, number = 0.0, 0, 0
        with torch.inference_mode():
            for request in self.requests:
                batch, labels = self.batch(*request)
                logits = network.model(batch.to(network.weights.device)).double().cpu()
                losses += float(F.cross_entropy(logits, labels, reduction="sum"))
                right += int((logits.argmax(1) == labels).sum())
                number += len(labels)
        return losses / number, 100 * right / number


def between(first: State, second: State, share: float) -> State:
    """The point on the straight path from `first` (share 0) to `second` (share 1)."""
    return {name: value.lerp(second[name], share) if value.is_floating_point() else value for name, value in first.items()}


def moved(state: State, direction: State, by: float) -> State:
    """The weights moved along a direction."""
    return state | {name: state[name] + by * step for name, step in direction.items()}


def rescaled(state: State, layers: Iterable[str], factor: float) -> State:
    """The weights with those of some layers multiplied: the same function, if a batch norm follows each of them."""
    return state | {name: state[name] * factor for name in layers}


def matrices(state: State) -> list[str]:
    """The names of the weights that directions move: those of convolutions and of the classifier, not of batch norms."""
    return [name for name, value in state.items() if value.dim() > 1]


def plain(state: State, names: Iterable[str], seed: int) -> State:
    """A random direction of length 1 over the weights of these names, uniform over all directions."""
    drawn = _drawn(state, names, seed)
    length = torch.stack([step.norm() for step in drawn.values()]).norm()
    return {name: step / length for name, step in drawn.items()}


def filter_wise(state: State, names: Iterable[str], seed: int) -> State:
    """A random direction in which each filter's part is as long as the filter (Li et al., 2018, arXiv 1712.09913, section 4).

    A filter is what computes one output: a first index of a tensor. Batch norm's parameters and biases do not move.
    """
    found = {}
    for name, step in _drawn(state, names, seed).items():
        rows, weights = step.flatten(1), state[name].flatten(1)
        found[name] = (rows * (weights.norm(dim=1) / rows.norm(dim=1))[:, None]).view_as(step)
    return found


def _drawn(state: State, names: Iterable[str], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(state[name].shape, generator=generator) for name in names}


def rise(surface: Surface, state: State, direction: State, radius: float, height: float) -> float:
    """By how much the loss rises from `height`, that of the state, when weights move by `radius` along a direction.

    It is the mean of forth and back: for a small radius, half the curvature along the direction times the radius squared.
    """
    return sum(surface.height(moved(state, direction, by))[0] for by in (radius, -radius)) / 2 - height


# --- From runs ----------------------------------------------------------------------------------------------------------


def paths(out: Path | str, data: str, shrink: str, seeds: Iterable[int]) -> pd.DataFrame:
    """The straight paths between the first three members of the ensemble, and between two of three_models' models.

    A row per point: recipe, members (the two ends), seed, share (the place: 0 to 1), loss and top1 of `HEIGHT_IMAGES` test
    images. `data` as for `ensembles.analysed`.
    """
    rows = []
    for recipe, pairs in (("five_members", list(combinations(MEMBERS[:3], 2))), ("three_models", [MEMBERS[:2]])):
        folders = runs_of(out, recipe, data_name(data), shrink)
        for seed in (seed for seed in seeds if seed in folders):
            surface = Surface(folders[seed], data=data)
            for one, other in pairs:
                ends = surface.state(one), surface.state(other)
                for share in SHARES:
                    height, top1 = surface.height(between(*ends, share))
                    keys = {"recipe": recipe, "members": f"{one} + {other}", "seed": seed}
                    rows.append(keys | {"share": share, "loss": height, "top1": top1})
    return pd.DataFrame(rows)


def sharpness(out: Path | str, data: str, shrink: str, seeds: Iterable[int]) -> pd.DataFrame:
    """How much the training loss rises along random `filter_wise` directions, before and after each of three collapses.

    A row per model, view, seed, direction and radius: recipe, members (the stage at whose end the model is), view (of the loss
    and of the statistics), seed, draw, radius, loss (where the model is), rise. The loss is of `HEIGHT_IMAGES` training images.
    """
    rows = []
    folders = runs_of(out, "five_members", data_name(data), shrink)
    for seed in (seed for seed in seeds if seed in folders):
        for view in ("none", "scale_aspect"):
            surface = Surface(folders[seed], "train", view, data)
            for stage in (f"{what}{number}" for number in (1, 2, 3) for what in ("cyc", "collapse")):
                state = surface.state(stage)
                height = surface.height(state)[0]
                for draw in range(DRAWS):
                    direction = filter_wise(state, matrices(state), draw)
                    keys = {"recipe": "five_members", "members": stage, "view": view, "seed": seed, "draw": draw}
                    for radius in RADII:
                        row = {"radius": radius, "loss": height, "rise": rise(surface, state, direction, radius, height)}
                        rows.append(keys | row)
    return pd.DataFrame(rows)


def same_function(surface: Surface, stage: str, factors: Iterable[float], radius: float = 1.0) -> pd.DataFrame:
    """A model whose convolutions are multiplied by a factor: the same function, but not the same sharpness (Dinh et al.).

    Dinh et al. (2017, arXiv 1703.04933) rescale layers that ReLU joins. Here batch norm follows every convolution, and divides
    by what it was multiplied with, but for its eps. A row per factor: scaled_by, loss, top1, rise (along a `plain` direction of
    the convolutions, the same for all, by `radius`) and rise_filter_wise (by the first of `RADII`).
    """
    rows, state = [], surface.state(stage)
    convolutions = [name for name, value in state.items() if value.dim() == 4]
    for factor in factors:
        scaled = rescaled(state, convolutions, factor)
        height, top1 = surface.height(scaled)
        directions = {"rise": plain(scaled, convolutions, 0), "rise_filter_wise": filter_wise(scaled, convolutions, 0)}
        by = {"rise": radius, "rise_filter_wise": RADII[0]}
        rises = {name: rise(surface, scaled, each, by[name], height) for name, each in directions.items()}
        rows.append({"scaled_by": factor, "loss": height, "top1": top1} | rises)
    return pd.DataFrame(rows)
