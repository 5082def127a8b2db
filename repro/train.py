"""The algorithm: for each step, every worker's forward and backward, one average over all workers, one update.

    train     the loop
    step      one step of it
    prepare   checks all parameters before anything runs

All its inputs are values or pure functions: the learning rate (`schedule`), the sample stream and its augmentation
(`data`), the batch statistics (`model`). So a checkpoint consists of weights, momentum, running statistics and one
integer (besides the losses since the last metric row), and the weights are bit-identical on any number of ranks
(`allreduce`). `journal` writes, evaluates and saves while a run trains.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import nn

from repro import ReproError, checkpoint, choose, comm, evaluate, own, recipes, records, watch, whole_number
from repro.allreduce import Mean
from repro.data import Images, Stream, load_ahead
from repro.journal import Journal
from repro.labels import compare_labels
from repro.model import builder, find_device, find_precision
from repro.packed import pack_embedded
from repro.paths import RUNS
from repro.replica import Replica, assemble
from repro.schedule import NEW_WEIGHTS, SWITCHES, Recipe, Stage, corrected_from, learning_rate
from repro.settings import MOST_THREADS, Settings, non_default

log = logging.getLogger("repro")

SHARED_SECONDS = 10.0  # within which a shared file system shows a file of one node to another


# --- The loop -----------------------------------------------------------------------------------------------------------


def _train(world, task: "Task") -> dict:
    recipe = task.recipe
    replica = assemble(world, task)
    journal = Journal(task, replica)  # restores the newest checkpoint, if there is one
    batches = _batches(world, task, journal.step)
    for number in range(journal.step, recipe.iterations):
        world.at = f"step {number + 1} of {recipe.iterations}"
        stage, iteration = recipe.stage_at(number)
        if iteration == 0:
            _begin_stage(task, stage, replica)
        rate, previous_rate = learning_rate(recipe, number), corrected_from(recipe, number)
        journal.ask()
        mean = step(replica, batches, rate, stage.weight_decay, recipe.bn_momentum, previous_rate)
        journal.enter(rate, mean)
    return journal.facts()


def step(
    replica: Replica, batches: Iterator, rate: float, weight_decay: float, bn_momentum: float, previous_rate: float = 0.0
) -> Mean:
    """One step of synchronous SGD over all workers. Collective.

    `batches` yields (images, labels) of this rank's workers, one after the other; a nonzero `previous_rate` enables the
    momentum correction (see `optim.SGD`). Returns the mean over workers, whose gradient the update has overwritten.
    """
    mean = average_over_workers(replica, batches)
    replica.optimizer.step(mean.gradient, rate, weight_decay, previous_rate)
    replica.network.update_statistics(mean.statistics, bn_momentum)
    return mean


def average_over_workers(replica: Replica, batches: Iterator) -> Mean:
    """Averages one step's gradient, batch statistics, loss and correct predictions over all workers. Collective.

    This rank computes its share of the passes, one after the other. If this fails on a rank, all ranks raise at this step.
    """
    world, average, error = replica.world, replica.average, None
    try:
        for _ in range(average.mine):
            images, labels = next(batches)
            average.add(replica.network.contribute(images, labels, replica.precision))
            world.beat()
    except Exception as caught:  # of any kind: the other ranks are about to enter the collective below
        error = caught
        average.fail()
    mean = average.mean()
    if mean.failed:
        world.check(error)
    return mean


def _begin_stage(task: "Task", stage: Stage, replica: Replica) -> None:
    """Sets momentum to zero, and loads the weights and statistics that the stage starts from, if not the current ones."""
    replica.optimizer.history.zero_()
    if stage.starts_from == NEW_WEIGHTS:
        # torch's generator uses 32 bits of a seed: of (seed, stage), mixed, so that no other run starts from the same weights.
        mixed = np.random.SeedSequence([task.settings.seed, task.recipe.stages.index(stage)])
        torch.manual_seed(int(mixed.generate_state(1)[0]))
        replica.network.load(task.build().state_dict())
    elif stage.starts_from:
        with replica.world.together():
            replica.network.load(checkpoint.load(task.run.snapshot(stage.starts_from))[0])


def _batches(world, task: "Task", first: int) -> Iterator:
    """The batches of this rank's passes, one after the other, step after step, from step `first` on."""
    recipe = task.recipe
    stream = Stream(task.train, task.settings.seed, recipe.workers, recipe.images_per_worker)
    starts = range(0, recipe.workers, recipe.workers_per_pass)[world.rank :: world.size]
    requests = (
        (
            recipe.sample_step(number),
            start,
            recipe.stage_at(number)[0].augmentation,
            min(recipe.workers_per_pass, recipe.workers - start),
        )
        for number in range(first, recipe.iterations)
        for start in starts
    )
    return load_ahead(stream, requests, task.decoders)


# --- Runs ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One run, with checked parameters."""

    recipe: Recipe
    build: Callable[[], nn.Module]  # a model with its initial weights, from torch's generator
    train: Images
    test: Images
    settings: Settings
    decoders: int  # threads that decode images ahead of the step
    steps: int  # steps to stop after, counted from this call's start; 0: train to the recipe's end
    patience: int  # seconds that a rank may be without a sign of life
    run: records.Run


def prepare(
    recipe: str | Recipe,
    data: str = "digits",
    shrink: str = "",
    model: str = "",
    out: str = str(RUNS),
    decoders: int = 2,
    steps: int = 0,
    patience: int = 600,
    **options,
) -> Task:
    """Checks every parameter and opens the data; raises ReproError, with a suggestion, before anything runs.

    `recipe` is a released one's name, a `Recipe`, or `mine.py:my_recipe`; `model` a ResNet's name or `mine.py:my_net`, by
    default the recipe's; `data` a data set's name or its folder; `shrink` by default laptop for our recipes and none for
    the user's. `options` are fields of `Settings` and of `schedule.SWITCHES`.
    """
    known = [field.name for field in fields(Settings)]
    for name in options:
        choose(
            "parameter", name, ["recipe", "data", "shrink", "model", "out", "decoders", "steps", "patience", *known, *SWITCHES]
        )
    original = recipes.find(recipe, **{name: value for name, value in options.items() if name in SWITCHES})
    ours = original.name in recipes.RECIPES
    shrink = recipes.shrink_for(original, shrink)
    asked = Settings(**{name: value for name, value in options.items() if name in known})
    whole_number("decoders", decoders, 0, MOST_THREADS)
    whole_number("steps", steps)
    whole_number("patience", patience, 1)
    splits = "train", asked.split
    train, test = (Images(data, split, normalization=asked.normalization, size=asked.size) for split in splits)
    if difference := compare_labels(train.classes, test.classes):
        raise ReproError(f"the label map of {test.packed.path} is not that of {train.packed.path}: {difference}")
    small = recipes.shrink(original, shrink, len(train))
    if model and model != small.model:
        small = replace(small, model=model, name=f"{small.name}-{model.rpartition(':')[2]}")
    if not ours:  # its author need not know how many images the data set has
        small = replace(small, epoch_images=min(small.epoch_images, len(train)))
    train = train.first(small.epoch_images)
    device = find_device(asked.device, comm.world().node_rank)
    settings = replace(asked, device=device, precision=find_precision(asked.precision, device, train.small))
    seen = train.preprocessing
    build = builder(small.model, len(train.classes), train.channels, seen.size, small.stride, small.zero_gamma)
    facts = {"name": train.name, "train": train.digest, "test": test.digest, "preprocessing": non_default(seen)}
    facts["originals"] = test.originals
    origin = {"base": original.name, "shrink": shrink, "variant": _variant(original, asked)}
    origin["model_source"] = own.source_digest(small.model) if own.is_own(small.model) else ""
    run = records.Run(out, small, settings, facts, **origin)
    return Task(small, build, train, test, settings, decoders, steps, patience, run)


def _variant(recipe: Recipe, asked: Settings) -> str:
    """The settings by which a run differs from its recipe's plain run, such as "lr_formula=as_designed"; "" if none."""
    plain = recipes.RECIPES.get(recipe.name, recipe)
    switched = {name: value for name, value in recipes.switches_of(recipe).items() if value != getattr(plain, name)}
    switched |= {name: value for name, value in non_default(asked).items() if name != "seed"}
    return ", ".join(f"{name}={value}" for name, value in switched.items())


def describe(recipe: str | Recipe, data: str = "digits", **parameters) -> dict:
    """Returns what `train` would do, as plain values: the run's folder, how much of it is done, its recipe and its images."""
    with comm.world().together():
        if comm.world().rank == 0:
            pack_embedded(data)
    task = prepare(recipe, data, **parameters)
    small = task.recipe
    done = small.iterations if task.run.complete else task.run.newest_step
    return {
        "folder": str(task.run.folder),
        "complete": task.run.complete,
        "step": done,
        "epoch": small.epochs(done),
        "recipe": small.name,
        "workers": small.workers,
        "global_batch": small.global_batch,
        "iterations": small.iterations,
        "epochs": small.epochs(),
        "images": small.iterations * small.global_batch,
    }


def train(recipe: str | Recipe, data: str = "digits", world: comm.Alone | None = None, **parameters) -> str:
    """Trains a recipe (parameters as for `prepare`) on all ranks of `world`; returns the run's folder. Collective.

    `world` is by default all ranks that were started together. A complete run of the same code, settings and data is left
    unchanged; an incomplete one is continued. Raises ReproError on every rank if any rank fails, records.Locked if another
    process is training this run, and records.Stopped if a rank was asked to stop or `steps` are done.
    """
    world = world or comm.world()
    world.leaving = False  # engines are used again after a call that failed
    with world.together():
        if world.rank == 0:
            pack_embedded(data)
    with world.together():
        task = prepare(recipe, data, **parameters)
        fits(task.recipe, world.size)
    _agree(world, task)
    with world.together():
        complete = world.rank == 0 and not task.run.begin(ranks=world.size, workers=task.recipe.workers)
    _share(world, task)
    folder = str(task.run.folder)
    if world.broadcast(complete):
        log.info("already complete: %s", folder)
        return folder
    processes = world.gather(f"process {os.getpid()} on {socket.gethostname()}")
    if world.size > 1:  # if a rank dies, a launcher names only its process
        log.info("ranks: %s", ", ".join(f"{rank} is {process}" for rank, process in enumerate(processes)))
    try:
        with watch.Watchdog(world, task.run.heartbeats, task.patience):
            facts = _train(world, task)
        with world.together():  # so that no rank returns before the run is complete on disk
            if world.rank == 0:
                task.run.finish(**facts)
    except BaseException as caught:
        status = "stopped" if isinstance(caught, records.Stopped) else "failed"
        if status == "failed" and not isinstance(caught, comm.PeerError):
            caught.add_note(f"(on rank {world.rank} of {world.size}, at {world.at}, run {folder})")
        if world.rank == 0:
            with suppress(ReproError):  # a full disk may be the reason why it failed
                task.run.update(status=status, end=records.now(), error=f"{type(caught).__name__}: {caught}")
        raise
    finally:
        task.run.release()
    return folder


def describe_all(tasks: list[dict]) -> list[dict]:
    """`describe` of each of these tasks."""
    return [describe(**task) for task in tasks]


def train_all(tasks: list[dict], ensembles: dict[str, list[tuple[list[str], str]]] | None = None) -> None:
    """Trains many independent runs, each on a rank of its own; every rank takes the next that no other has taken. Collective.

    `tasks` are the parameters of `train`. `ensembles` are (stages, average) by recipe, evaluated at the end of its run. On a
    machine with few cores this is faster than sharing each step of a small network. Complete runs are left unchanged.
    Raises as `train`, on every rank, after the other ranks have finished what they had taken.
    """
    world, alone = comm.world(), comm.Alone()
    with world.together():
        if world.rank == 0:
            for data in {task["data"] for task in tasks}:
                pack_embedded(data)
    with world.together():
        for task in tasks:
            with suppress(records.Locked):
                folder = train(world=alone, **task)
                recorded = [(entry["members"], entry["average"]) for entry in records.ensembles(folder)]
                for members, average in (ensembles or {}).get(task["recipe"], []):
                    if (members, average) not in recorded:
                        evaluate.ensemble(folder, members, average, task["data"], task.get("device", "auto"), alone)
            if watch.asked.is_set():
                raise records.Stopped("stopped on request between two runs: the same command continues")


def fits(recipe: Recipe, ranks: int) -> None:
    """Raises ReproError if so many ranks cannot share a step of the recipe."""
    if ranks > recipe.passes:
        raise ReproError(f"{too_many(recipe, ranks)}: start at most {recipe.passes} ranks")


def too_many(recipe: Recipe, ranks: int) -> str:
    """Says that so many ranks cannot share a step of the recipe."""
    one = recipe.workers_per_pass == 1
    what = f"{recipe.workers} workers" if one else f"{recipe.passes} passes of {recipe.workers_per_pass} workers"
    return f"{recipe.name} has {what}, which {ranks} ranks cannot share"


def _share(world, task: Task) -> None:
    """Raises on every rank if one does not see the run's folder as rank 0 has written it.

    A rank without the checkpoints would begin at step 0 while the others continue, and all would wait for each other.
    """
    written = world.broadcast(task.run.told() if world.rank == 0 else "")
    deadline = time.monotonic() + SHARED_SECONDS
    with world.together():
        while task.run.told() != written:
            if time.monotonic() > deadline:
                raise ReproError(
                    f"rank {world.rank} on {socket.gethostname()} does not see {task.run.folder} as rank 0 has written it: "
                    "--out must be on a file system that all nodes share"
                )
            time.sleep(0.1)


def _agree(world, task: Task) -> None:
    """Raises on every rank if one was started with another run than rank 0, or has other code, data or packages."""
    mine = task.run.record | {"out": str(task.run.folder.parent), "packages": records.package_versions()}
    first = world.broadcast(mine)
    with world.together():
        if difference := records.first_difference(mine, first):
            raise ReproError(f"rank {world.rank} does not agree with rank 0, so nothing was started: {difference}")
