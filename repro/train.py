"""The algorithm: for each step, every worker's forward and backward, one average over all workers, one update.

    prepare                checks what was asked for, before anything runs
    train, _train          the loop
    average_over_workers   one step's gradient and batch statistics

Everything that it uses is a value or a pure function: the learning rate (`schedule`), the sample stream and its
augmentation (`data`), the batch statistics (`model`). So a checkpoint is weights, momentum, running statistics and
one integer (beside the losses since the last metric row), and the result is the same bits on any number of ranks (`allreduce`).
"""

import inspect
import logging
import os
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from repro import ReproError, checkpoint, choose, comm, evaluate, recipes, records, watch
from repro.allreduce import REDUCTIONS, Average, Mean
from repro.data import Images, Stream, load_ahead
from repro.labels import compare_labels
from repro.memory import keep_freed
from repro.model import MODELS, Network, build, find_device, find_precision
from repro.optim import SGD
from repro.paths import RUNS
from repro.schedule import SWITCHES, Recipe, learning_rate

log = logging.getLogger("repro")

CHECKPOINT_SECONDS = 30  # at epoch ends, no more often than this
LONGEST_SECONDS = 600  # after any step that comes so long after the last checkpoint: what a kill can cost


@dataclass(frozen=True)
class Task:
    """One run, checked."""

    recipe: Recipe
    train: Images
    test: Images
    parameters: dict  # seed, reduction, precision, ...: with recipe, data and code, they determine the result
    decoders: int  # threads that decode images ahead of the step
    steps: int  # to stop after, counted from this call's start; 0: at the recipe's end
    patience: int  # seconds that a rank may give no sign of life
    run: records.Run


def prepare(
    recipe: str,
    data: str = "digits",
    shrink: str = "laptop",
    seed: int = 0,
    out: str = str(RUNS),
    model: str = "",
    size: int = 0,
    normalization: str = "release",
    reduction: str = "exact",
    precision: str = "auto",
    device: str = "auto",
    threads: int = 1,
    decoders: int = 2,
    steps: int = 0,
    patience: int = 600,
    **switches,
) -> Task:
    """Checks every parameter and opens the data; raises ReproError, with what was meant, before anything runs."""
    known = [name for name in inspect.signature(prepare).parameters if name != "switches"]
    for name in switches:
        choose("parameter", name, [*known, *SWITCHES])
    original = recipes.find(recipe, **switches)
    choose("reduction", reduction, REDUCTIONS)
    device = find_device(device, comm.world().node_rank)
    for name, value, least in (
        ("seed", seed, 0),
        ("threads", threads, 1),
        ("decoders", decoders, 0),
        ("steps", steps, 0),
        ("patience", patience, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            raise ReproError(f"{name} is {value!r}: it must be a whole number, at least {least}")
    train, test = (Images(data, split, normalization=normalization, size=size) for split in ("train", "test"))
    if difference := compare_labels(train.classes, test.classes):
        raise ReproError(f"the label map of {test.packed.path} is not that of {train.packed.path}: {difference}")
    small = recipes.shrink(original, shrink, len(train))
    if model and choose("model", model, MODELS) != small.model:
        small = replace(small, model=model, name=f"{small.name}-{model}")
    precision = find_precision(precision, device, train.small)
    train.count = min(len(train), small.epoch_images)
    parameters = dict(
        seed=seed,
        size=size,
        normalization=normalization,
        reduction=reduction,
        precision=precision,
        device=device,
        threads=threads,
    )
    digests = {"name": train.name, "train": train.digest, "test": test.digest}
    return Task(small, train, test, parameters, decoders, steps, patience, records.Run(out, small, parameters, digests))


def plan(recipe: str, **parameters) -> dict:
    """What `train` would do, as plain values: the run's folder, whether it is complete, its recipe and its images."""
    task = prepare(recipe, **parameters)
    small = task.recipe
    return {
        "folder": str(task.run.folder),
        "complete": task.run.complete,
        "recipe": small.name,
        "workers": small.workers,
        "global_batch": small.global_batch,
        "iterations": small.iterations,
        "epochs": small.epochs(),
        "images": small.iterations * small.global_batch,
    }


def train(recipe: str, **parameters) -> str:
    """Trains a recipe (parameters as `prepare` takes them) on all ranks; returns the run's folder. Collective.

    A complete run of the same code, parameters and data is left as it is; an incomplete one is continued. Raises
    ReproError on every rank if any rank fails, and records.Stopped if a rank was asked to stop or `steps` are done.
    """
    world = comm.world()
    world.leaving = False  # engines stay after a call that failed
    with world.together():
        task = prepare(recipe, **parameters)
        if world.size > task.recipe.workers:
            raise ReproError(
                f"{task.recipe.name} has {task.recipe.workers} workers, which {world.size} ranks cannot "
                f"share: start at most {task.recipe.workers} ranks"
            )
    _agree(world, task)
    with world.together():
        complete = world.rank == 0 and not task.run.begin(ranks=world.size, workers=task.recipe.workers)
    folder = str(task.run.folder)
    if world.broadcast(complete):
        log.info("already complete: %s", folder)
        return folder
    processes = world.gather(f"process {os.getpid()} on {socket.gethostname()}")
    if world.size > 1:  # a launcher names one that dies by its process
        log.info("ranks: %s", ", ".join(f"{rank} is {process}" for rank, process in enumerate(processes)))
    try:
        with watch.Watchdog(world, task.run.heartbeats, task.patience):
            facts = _train(world, task)
        with world.together():  # so no rank returns before the run is complete on disk
            if world.rank == 0:
                task.run.finish(**facts)
    except BaseException as caught:
        status = "stopped" if isinstance(caught, records.Stopped) else "failed"
        if status == "failed" and not isinstance(caught, comm.PeerError):
            caught.add_note(f"(on rank {world.rank} of {world.size}, at {world.at}, run {folder})")
        if world.rank == 0:
            with suppress(ReproError):  # a full disk may be what it failed of
                task.run.update(status=status, end=records.now(), error=f"{type(caught).__name__}: {caught}")
        raise
    finally:
        task.run.release()
    return folder


def _agree(world, task: Task) -> None:
    """Raises on every rank if one was asked for another run than rank 0, or has other code, data or packages."""
    mine = task.run.record | {"out": str(task.run.folder.parent), "packages": records.package_versions()}
    first = world.broadcast(mine)
    with world.together():
        if difference := records.first_difference(mine, first):
            raise ReproError(f"rank {world.rank} does not agree with rank 0, so nothing was started: {difference}")


def _train(world, task: Task) -> dict:
    recipe, parameters, run = task.recipe, task.parameters, task.run
    network, optimizer, average = _assemble(world, task)
    progress = {"step": 0, "seconds": 0.0, "losses": [], "corrects": []}
    with world.together():
        if run.checkpoints:
            progress = _resume(run, network, optimizer)
        elif run.continued:
            log.info("an earlier attempt left no checkpoint yet in %s: starting anew", run.folder)
        if world.rank == 0:
            run.rewind(progress["step"])
    first = step = progress["step"]
    seconds = progress["seconds"]
    losses, corrects = progress["losses"], progress["corrects"]  # since the last metric row
    batches = _batches(world, task, step)
    clock = saved = time.monotonic()
    while step < recipe.iterations:
        world.at = f"step {step + 1} of {recipe.iterations}"
        stage, iteration = recipe.stage_at(step)
        if iteration == 0:
            optimizer.history.zero_()
            if stage.starts_from:
                with world.together():
                    network.load(checkpoint.load(run.snapshot(stage.starts_from))[0])
        rate = learning_rate(recipe, step, recipe.lr_formula)
        corrected = recipe.momentum_correction == "warmup" and 0 < iteration < stage.warmup_iterations
        previous_rate = learning_rate(recipe, step - 1, recipe.lr_formula) if corrected else 0.0

        if watch.asked.is_set() or step + 1 == first + task.steps:
            average.stop()
        if world.rank == 0 and time.monotonic() - saved > LONGEST_SECONDS:
            average.save()
        mean = average_over_workers(world, average, network, batches, parameters["precision"])
        optimizer.step(mean.gradient, rate, stage.weight_decay, previous_rate)
        network.update_statistics(mean.statistics, recipe.bn_momentum)
        losses.append(float(mean.loss))
        corrects.append(float(mean.correct))
        step += 1

        ends_stage = iteration + 1 == stage.iterations
        evaluates = ends_stage or _completes(recipe, step, recipe.evaluate_every)
        records_row = evaluates or _completes(recipe, step, recipe.record_every)
        if not (records_row or mean.save or mean.stop):
            continue
        world.at = f"the end of {world.at}"
        check_replicas(world, network, optimizer)
        row = {
            "step": step,
            "epoch": recipe.epochs(step),
            "stage": stage.name,
            "rate": rate,
            "train_loss": sum(losses) / len(losses),
            "train_top1": sum(corrects) / len(corrects) / recipe.images_per_worker,
        }
        if evaluates:
            counted = evaluate.counts(
                world,
                [(network.model, network.state())],
                task.test,
                device=parameters["device"],
                precision=parameters["precision"],
                threads=task.decoders,
            )
            row |= {"images": counted["images"], **counted["members"][0]}
        row["seconds"] = seconds + time.monotonic() - clock
        if records_row:
            losses, corrects = [], []
        with world.together():
            if world.rank == 0:
                if records_row:
                    run.metric(row)
                    log.info(records.describe(row, recipe.epochs()))
                if ends_stage:
                    checkpoint.save(run.snapshot(stage.name), network.state(), row)
                if ends_stage or mean.save or mean.stop or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    _save(
                        run,
                        network,
                        optimizer,
                        {"step": step, "seconds": row["seconds"], "losses": losses, "corrects": corrects},
                    )
                    saved = time.monotonic()
        if mean.stop and step < recipe.iterations:
            watch.asked.clear()
            raise records.Stopped(_outlook(recipe, step, step - first, time.monotonic() - clock, world.size))

    if world.rank != 0:
        return {}
    ends = {stage.name: checkpoint.load(run.snapshot(stage.name))[1] for stage in recipe.stages}
    last = ends[recipe.stages[-1].name]
    return {
        "ends": ends,
        "images": last["images"],
        "top1": last["top1"],
        "top5": last["top5"],
        "seconds": seconds + time.monotonic() - clock,
        "weights_sha256": checkpoint.digest(network.state()),
    }


def _assemble(world, task: Task) -> tuple[Network, SGD, Average]:
    recipe, parameters = task.recipe, task.parameters
    keep_freed()
    torch.set_num_threads(parameters["threads"])  # kernels split their sums by thread, so the bits depend on it
    torch.manual_seed(parameters["seed"])
    network = Network(
        build(recipe.model, len(task.train.classes), task.train.channels, recipe.stride, recipe.zero_gamma),
        parameters["device"],
    )
    optimizer = SGD(network.weights, recipe.momentum, decayed=None if recipe.decay_bn else network.undecayed)
    return network, optimizer, Average(parameters["reduction"], world, recipe.workers, network, overlap=world.nodes > 1)


def _batches(world, task: Task, first: int) -> Iterator:
    """What this rank's workers see, one worker after the other, step after step, from step `first` on."""
    recipe = task.recipe
    stream = Stream(task.train, task.parameters["seed"], recipe.workers, recipe.images_per_worker)
    return load_ahead(
        stream,
        (
            (step, worker, recipe.stage_at(step)[0].augmentation)
            for step in range(first, recipe.iterations)
            for worker in range(world.rank, recipe.workers, world.size)
        ),
        task.decoders,
    )


def average_over_workers(world, average: Average, network: Network, batches: Iterator, precision: str) -> Mean:
    """One step's gradient, batch statistics, loss and correct count, averaged over all workers. Collective.

    This rank computes its share of the workers, one after the other. If a rank cannot, all raise at this step.
    """
    error = None
    try:
        for _ in range(world.rank, average.workers, world.size):
            images, labels = next(batches)
            average.add(network.contribute(images, labels, precision))
            world.beat()
    except Exception as caught:  # whatever it is: the other ranks are on their way into the collective below
        error = caught
        average.fail()
    mean = average.mean()
    if mean.failed:
        world.check(error)
    return mean


def check_replicas(world, network: Network, optimizer: SGD) -> None:
    """Raises on every rank if weights, statistics and momentum are not rank 0's bits. Collective, of a number a rank."""
    digest = 0
    for vector in (network.weights, network.statistics, optimizer.history):
        digest = zlib.crc32(vector.cpu().numpy(), digest)
    with world.together():
        if digest != world.broadcast(digest):
            raise ReproError(
                f"the weights, statistics or momentum of rank {world.rank} are no longer those of rank 0: faulty "
                f"memory, or an MPI that does not give all ranks the same sum. The last checkpoint is from "
                f"before; the same command continues from it."
            )


def _outlook(recipe: Recipe, step: int, done: int, seconds: float, ranks: int) -> str:
    rate, left = done * recipe.global_batch / seconds, recipe.iterations - step
    hours = left * recipe.global_batch / rate / 3600
    return (
        f"stopped on request after step {step} of {recipe.iterations}. At this call's {rate:.3g} images/s on {ranks} "
        f"{'rank' if ranks == 1 else 'ranks'} (evaluations included), the other {left} steps of {recipe.global_batch} "
        f"images take {hours:.3g} hours ({hours / 24:.3g} days). The same command continues the run."
    )


def _completes(recipe: Recipe, step: int, epochs: float) -> bool:
    """Whether the step before `step` completed another `epochs` epochs."""
    return recipe.epochs(step) // epochs > recipe.epochs(step - 1) // epochs


def _save(run, network: Network, optimizer: SGD, progress: dict) -> None:
    state = network.state() | {"momentum": optimizer.history.cpu()}
    checkpoint.save(run.folder / "checkpoints" / str(progress["step"]), state, {"run": run.folder.name} | progress)
    checkpoint.prune(run.folder / "checkpoints")


def _resume(run, network: Network, optimizer: SGD) -> dict:
    folder = run.folder / "checkpoints"
    state, progress = checkpoint.newest(folder)
    if progress.get("run") != run.folder.name:
        raise checkpoint.CheckpointError(
            f"the checkpoint in {folder} is of the run {progress.get('run')}: it does not belong there"
        )
    try:
        optimizer.history.copy_(state.pop("momentum"))
        network.load(state)
    except (KeyError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"the checkpoint in {folder} is not of this network: {error}") from error
    log.info("continuing after step %d, from %s", progress["step"], run.folder)
    return progress
