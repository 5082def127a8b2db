"""The algorithm: for each step, every worker's forward and backward, one average over all workers, one update.

    train      one run, and `_train`, its loop
    step       one step of it
    train_all  many runs, each on a rank of its own

All its inputs are values or pure functions: the learning rate (`schedule`), the sample stream and its augmentation
(`data`), the batch statistics (`model`). So a checkpoint consists of weights, momentum, running statistics and one
integer (besides the losses since the last metric row), and the weights are bit-identical on any number of ranks
(`allreduce`). `journal` writes, evaluates and saves while a run trains.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch

from repro import ReproError, evaluate, recipes
from repro.allreduce import Mean
from repro.images.data import Stream, load_ahead, requests
from repro.images.packed import pack_embedded
from repro.journal import Journal
from repro.model import kernels
from repro.ranks import comm, stop, watchdog
from repro.replica import Replica, assemble
from repro.run import checkpoint, records
from repro.schedule import NEW_WEIGHTS, Now, Recipe, Stage, at
from repro.task import Task, check_agreement, check_shared, prepare

log = logging.getLogger("repro")


# --- The loop -----------------------------------------------------------------------------------------------------------


def _train(world, task: Task) -> dict:
    recipe = task.recipe
    replica = assemble(world, task)
    journal = Journal(task, replica)  # restores the newest checkpoint, if there is one
    batches = _batches(world, task, journal.step)
    for number in range(journal.step, recipe.iterations):
        world.at = f"step {number + 1} of {recipe.iterations}"
        now = at(recipe, number)
        if now.iteration == 0:
            _begin_stage(task, now.stage, replica)
        journal.announce()
        mean = step(replica, batches, now)
        journal.record(now, mean)
    return journal.facts()


def step(replica: Replica, batches: Iterator, now: Now) -> Mean:
    """One synchronous step over all workers, by the recipe's update rule. Collective.

    `batches` yields (images, labels) of this rank's passes, one after the other. Returns the mean over workers, whose gradient
    the update may have overwritten.
    """
    mean = average_over_workers(replica, batches, now.workers)
    replica.update.step(mean.gradient, now)
    replica.network.update_statistics(mean.statistics, replica.bn_momentum)
    return mean


def average_over_workers(replica: Replica, batches: Iterator, workers: int) -> Mean:
    """Averages one step's gradient, batch statistics, loss and correct predictions over all workers. Collective.

    This rank computes its share of the passes, one after the other. If this fails on a rank, all ranks raise at this step.
    """
    world, average, error = replica.world, replica.average, None
    try:
        for _ in range(average.begin(workers)):
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


def _begin_stage(task: Task, stage: Stage, replica: Replica) -> None:
    """Loads the weights and statistics that the stage starts from, unless they are in place, then resets the update."""
    network, origin = replica.network, task.recipe.origin(stage)
    if stage.starts_from == NEW_WEIGHTS:
        # torch's generator uses 32 bits of a seed: of (seed, stage), mixed, so that no other run starts from the same weights.
        mixed = np.random.SeedSequence([task.settings.seed, task.recipe.stages.index(stage)])
        torch.manual_seed(int(mixed.generate_state(1)[0]))
        network.load(task.build().state_dict())
    elif origin and not stage.keep_momentum and (stage.starts_from or replica.update.finished() is not network.weights):
        with replica.world.together():
            network.load(checkpoint.load(task.run.snapshot(origin.name))[0])
    replica.update.begin(stage)


def _batches(world, task: Task, first: int) -> Iterator:
    """The batches of this rank's passes, one after the other, step after step, from step `first` on."""
    recipe = task.recipe
    stream = Stream(task.train_images, task.settings.seed, recipe.images_per_worker)
    steps = (at(recipe, number) for number in range(first, recipe.iterations))
    return load_ahead(stream, requests(steps, recipe.workers_per_pass, world.rank, world.size), task.decoders)


# --- Runs ---------------------------------------------------------------------------------------------------------------


def train(recipe: str | Recipe, data: str = "digits", world: comm.World | None = None, **parameters) -> str:
    """Trains a recipe (parameters as for `prepare`) on all ranks of `world`; returns the run's folder. Collective.

    `world` is by default all ranks that were started together. A complete run of the same code, settings and data is left
    unchanged; an incomplete one is continued. Raises ReproError on every rank if any rank fails, records.Locked if another
    process is training this run, and records.Stopped if a rank was asked to stop or `steps` are done.
    """
    world = world or comm.world()
    world.leaving, world.at = False, "the start"  # engines are used again after a call that failed
    task = prepare(recipe, data, world=world, **parameters)
    with world.together():
        recipes.check_ranks(task.recipe, world.size)
    check_agreement(world, task)
    try:
        with world.together():
            facts = {"ranks": world.size, "workers": task.recipe.workers, "kernels": kernels(task.settings.device)}
            begun = world.rank == 0 and task.run.begin(**facts)
        _attempt(world, task, begun)
    finally:
        task.run.release()
    return str(task.run.folder)


def _attempt(world, task: Task, begun: bool) -> None:
    """Trains a run, unless it is complete, and records how that ended. `begun`: rank 0 has begun it. Collective."""
    folder = task.run.folder
    try:
        check_shared(world, task)
        if not world.broadcast(begun):
            log.info("already complete: %s", folder)
            return
        processes = world.gather(f"process {os.getpid()} on {socket.gethostname()}")
        if world.size > 1:  # if a rank dies, a launcher names only its process
            log.info("ranks: %s", ", ".join(f"{rank} is {process}" for rank, process in enumerate(processes)))
        with watchdog.Watchdog(world, task.run.heartbeats, task.patience):
            facts = _train(world, task)
        with world.together():  # so that no rank returns before the run is complete on disk
            if world.rank == 0:
                task.run.finish(**facts)
    except BaseException as caught:
        status = "stopped" if isinstance(caught, (records.Stopped, KeyboardInterrupt)) else "failed"
        if status == "failed" and not isinstance(caught, comm.PeerError):
            caught.add_note(f"(on rank {world.rank} of {world.size}, at {world.at}, run {folder})")
        if begun:
            with suppress(ReproError):  # a full disk may be the reason why it failed
                task.run.end(status, f"{type(caught).__name__}: {caught}")
        raise


def train_all(tasks: list[dict], ensembles: dict[str, list[tuple[list[str], str]]] | None = None) -> None:
    """Trains many independent runs, each on a rank of its own; each rank takes the next unclaimed run. Collective.

    `tasks` are the parameters of `train`. `ensembles` are (stages, average) by recipe, evaluated at the end of its run. On a
    machine with few cores this is faster than sharing each step of a small network. Complete runs are left unchanged.
    Raises as `train`, on every rank, after the other ranks have gone through all tasks: records.Stopped if a rank was asked to
    stop, records.Locked if nothing is left but runs that other processes are training, which it names.
    """
    world, alone = comm.world(), comm.World()
    with world.together():
        if world.rank == 0:
            for data in {task["data"] for task in tasks}:
                pack_embedded(data)
    locked = {}  # what this rank has left to another process, by its place in `tasks`
    try:
        with world.together():
            for place, task in enumerate(tasks):
                try:
                    folder = train(world=alone, **task)
                    recorded = [(entry["members"], entry["average"]) for entry in records.ensembles(folder)]
                    for members, average in (ensembles or {}).get(task["recipe"], []):
                        if (members, average) not in recorded:
                            evaluate.ensemble(folder, members, average, task["data"], task.get("device", "auto"), alone)
                except records.Locked as error:
                    locked[place] = str(error)
                if stop.asked.is_set():
                    raise records.Stopped("stopped on request between two runs: the same command continues")
    except (records.Stopped, comm.PeerError):
        stop.asked.clear()  # so that the next job of these ranks does not stop because of the same request
        raise
    everywhere = set.intersection(*map(set, world.gather(locked)))  # ranks also leave runs to one another
    with world.together():
        if everywhere:
            named = "; ".join(locked[place] for place in sorted(everywhere))
            raise records.Locked(f"{len(everywhere)} of {len(tasks)} runs could not be done here: {named}")
