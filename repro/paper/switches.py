"""Which of the release's switches can act on the small test bed at all: the first steps with each, compared bit by bit."""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd
import torch

from repro import recipes
from repro.images.data import Stream, load_ahead, requests
from repro.ranks.comm import World
from repro.recipes.released import resnet50_448nodes
from repro.replica import assemble
from repro.schedule import STRIDES, SWITCHES, Recipe, Stage, at
from repro.task import prepare
from repro.train import step

OF = resnet50_448nodes


def variants() -> dict[tuple[str, str], Recipe]:
    """The 448-node run with one switch on, by its name and value: of LARS, of which gradient the norm is."""
    values = SWITCHES | {"stride": STRIDES}
    found = {(name, str(value)): replace(OF, **{name: value}) for name, all_ in values.items() for value in all_[1:]}  # type: ignore[arg-type]
    main, collapse = OF.stages
    kept = replace(OF, stages=(main, replace(collapse, keep_momentum=True)))
    lars = {
        ("lars", norm): recipes.RECIPES[f"ablation_{name}"] for norm, name in (("plain", "lars"), ("decayed", "lars_unfused"))
    }
    return found | {("keep_momentum", "True"): kept} | lars


def acting(data: str = "digits", shrink: str = "laptop") -> pd.DataFrame:
    """Each of `variants` against the run as released: switch, value, and whether weights and statistics have other bits.

    Both are trained by one worker alone, on the small test bed's schedule, each stage for two steps after its warm-up: whatever
    a switch does to the initial weights, to the rate, to the momentum or to the network is done by then. Statistics are batch
    norm's running ones, with which models are tested.
    """
    plain = _first_steps(OF, data, shrink)
    rows = []
    for (name, value), recipe in variants().items():
        weights, statistics = (
            not torch.equal(mine, released) if mine.shape == released.shape else True
            for mine, released in zip(_first_steps(recipe, data, shrink), plain)
        )
        rows.append({"switch": name, "value": value, "weights_differ": weights, "statistics_differ": statistics})
    return pd.DataFrame(rows)


def _first_steps(recipe: Recipe, data: str, shrink: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (P,) and running statistics (S,) after the first steps of every stage, in order."""
    small = recipes.shrink(recipe, shrink)
    small = replace(small, workers=1, workers_per_pass=1, stages=tuple(_cut(small.stages)))
    task, world = prepare(small, data, world=World(), device="cpu"), World()
    replica = assemble(world, task)
    stream = Stream(task.train_images, task.settings.seed, small.images_per_worker)
    steps = [at(task.recipe, number) for number in range(small.iterations)]
    batches = load_ahead(stream, requests(steps, 1, 0, 1), threads=0)
    for now in steps:
        if now.iteration == 0:
            replica.update.begin(now.stage)
        step(replica, batches, now)
    return replica.network.weights, replica.network.statistics


def _cut(stages: Iterable[Stage]) -> Iterable[Stage]:
    """The stages, ended two steps after their warm-up; their rates stay what they were."""
    for stage in stages:
        yield replace(stage, iterations=stage.warmup_iterations + 2, horizon=stage.horizon or stage.iterations)
