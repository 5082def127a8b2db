"""Runs under mpiexec for the fixture of the same name: trains, continues a killed run, evaluates, and fails on purpose.

    mpiexec -n R python tests/on_ranks.py SMOKE DIGITS OUT

The last line on standard output is a JSON object. A launch costs seconds of imports, so one serves several tests.
"""

import json
import sys
import time
from functools import partial

import torch

from repro import allreduce, evaluate, overlap, train
from repro.allreduce import Average
from repro.images.data import Images, Stream
from repro.model import Network
from repro.overlap import OverlappedAverage
from repro.ranks import comm, nccl
from repro.resnet import build

FAILING_STEP = 2


def trained(digits, out, smoke):
    """The folders of a run from its start, and of one that this many ranks continue."""
    return {name: train.train(**smoke, data=digits, out=f"{out}/{name}") for name in ("whole", "killed")}


def overlapping(world, function, *arguments):
    """What the function returns when ranks seem to be on several nodes, so that buckets are summed during backward."""
    nodes, bucket = world.nodes, overlap.BUCKET
    start_sum, started = world.start_sum, []

    def counted(array):
        started.append(len(array))
        return start_sum(array)

    world.nodes, overlap.BUCKET, world.start_sum = 2, 4096, counted
    try:
        return {"result": function(*arguments), "buckets": started}
    finally:
        world.nodes, overlap.BUCKET, world.start_sum = nodes, bucket, start_sum


def evaluated(world, digits):
    """Counts of two random models and their ensemble over 601 images, which no number of ranks divides."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(build("resnet11", 10, 1).state_dict())
    model = build("resnet11", 10, 1)
    counts = evaluate.counts(world, [(model, state) for state in states], Images(digits, "test").first(601))
    for row in (*counts["members"], counts["ensemble"]):
        row["correct"] = row["correct"].tolist()
    return counts


def failed(world, digits, out, smoke):
    """What each rank raises when the last one cannot read its images, at which step, and after how many seconds."""
    original, steps, times = Stream.batch, [], []

    def batch(self, now, worker, number=1):
        steps.append(now.step)
        if now.step == FAILING_STEP and world.rank == world.size - 1:
            times.append(time.monotonic())
            raise OSError("the disk is gone")
        return original(self, now, worker, number)

    Stream.batch = batch
    try:
        train.train(**smoke, data=digits, out=out)
        raised = None
    except Exception as error:
        raised = [type(error).__name__, str(error)]
    finally:
        Stream.batch = original
    return {
        "raised": world.gather(raised),
        "steps": world.gather(steps[-1]),
        "seconds": max(time.monotonic() - min(times, default=time.monotonic()) for times in world.gather(times)),
    }


def averaged(world, reduction, verbs, kind=Average):
    """Two steps' averages of one worker a rank, by the verbs of `verbs`: the world's or a group's."""
    torch.manual_seed(0)
    network = Network(build("resnet11", 10, 1))
    average, means = kind(reduction, verbs, world.size, network), []
    if kind is OverlappedAverage:
        average.attach(network)
    for step in range(2):
        generator = torch.Generator().manual_seed(world.size * step + world.rank)
        images = torch.randn(8, 1, 8, 8, generator=generator)
        average.add(network.contribute(images, torch.arange(8)))
        mean = average.mean()
        means += [mean.gradient.clone(), mean.statistics.clone(), torch.stack([mean.loss, mean.correct])]
    return means


def difference(means, others):
    """The largest one, relative to the largest magnitude of the tensor it is in."""
    return max(float((mean - other).abs().max() / other.abs().max()) for mean, other in zip(means, others))


def same(world, means):
    """Whether all ranks have the same bits."""
    return len(set(world.gather(tuple(mean.numpy().tobytes() for mean in means)))) == 1


def grouped(world):
    """Each reduction by torch.distributed and with overlap, against MPI after backward."""
    group, report = nccl.Group(world, "gloo"), {}
    overlap.BUCKET = 4096
    for reduction in allreduce.ARITHMETIC:
        by_mpi, by_group = averaged(world, reduction, world), averaged(world, reduction, group)
        overlapped = [averaged(world, reduction, verbs, OverlappedAverage) for verbs in (world, group)]
        report[reduction] = {
            "difference": max(difference(means, by_mpi) for means in (by_group, *overlapped)),
            "equal": all(same(world, means) for means in (by_mpi, by_group, *overlapped)),
        }
    return report


if __name__ == "__main__":
    smoke, digits, out = json.loads(sys.argv[1]), *sys.argv[2:]
    world = comm.world()
    folders = trained(digits, out, smoke)
    report = {
        "folders": folders,
        "mean_of_weights": evaluate.ensemble(folders["whole"], ["main", "collapse"], "weights", digits, world=world),
        "counts": evaluated(world, digits),
        "failure": failed(world, digits, f"{out}/failed", smoke),
    }
    if world.size > 1:
        report["group"] = grouped(world)
        whole = partial(train.train, **smoke, data=digits, out=f"{out}/overlapped")
        report["overlapped"] = overlapping(world, whole)
        report["overlapped_failure"] = overlapping(world, failed, world, digits, f"{out}/failed overlapped", smoke)["result"]
    if world.rank == 0:
        print(json.dumps(report))
