"""Measures the times that the model of a step (`steptime`) is fitted to, on the ranks that run it, with the trainer's own code.

All settings are measured alternately, round by round, until time is up, so that drift affects all of them equally. The
result is plain JSON.
"""

import os
import platform
import resource
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from repro import ReproError, evaluate, whole_number
from repro.allreduce import Average
from repro.images.data import Images, Stream, load_ahead, requests
from repro.images.packed import PHOTOGRAPHS
from repro.model import Network, builder, find_device, find_precision
from repro.optim import SGD
from repro.overlap import BUCKET, average_for
from repro.ranks import comm
from repro.ranks.comm import World
from repro.ranks.memory import keep_freed
from repro.replica import Replica
from repro.run import identity
from repro.run.settings import MOST_THREADS, Settings
from repro.scaling import steptime
from repro.schedule import Recipe, Stage, at
from repro.train import step

CLASSES, CHANNELS = 1000, 3  # of the network, unless a data set determines them
BURST, MOST = 0.3, 40  # seconds and steps of a burst at most: short steps are timed in a hot cache
ROUNDS = 40
# Bytes per allreduce: 4 KB to 64 MB, and also the step's vector and half of it.
SIZES = tuple(4**power for power in range(6, 14))


def steady(workers: int, images_per_worker: int, rate: float = 0.0) -> Recipe:
    """A recipe whose steps are all alike, without an end, for measuring: at rate 0 the weights stay finite however long."""
    return Recipe("steady", (Stage("steady", 10**9, rate, power=0),), workers, images_per_worker)


class _Steps:
    """Training steps of one network, with images in memory or from the loader."""

    def __init__(
        self,
        world,
        model: str,
        stride: str,
        images: Images | None,
        size: int,
        settings: Settings,
        decoders: int,
        images_per_worker: int,
    ):
        classes, channels = (len(images.classes), images.channels) if images else (CLASSES, CHANNELS)
        self.images, self.size, self.channels, self.classes = images, size, channels, classes
        self.settings, self.decoders = settings, decoders
        build = builder(model, classes, channels, size, stride)
        self.network = Network(build(), settings.device, images_per_worker)
        # Between nodes the trainer's average is attached to its network, which then calls it at every backward pass.
        shared = Network(build(), settings.device, images_per_worker) if world.nodes > 1 else self.network
        self.shared = self._replica(world, shared, average_for(settings.reduction, world, world.size, shared))
        self.average = self.shared.average

    def _replica(self, world, network: Network, average: Average) -> Replica:
        return Replica(world, network, SGD(network, steady(1, 1)), average, self.settings.precision)

    def in_memory(self, count: int):
        pixels = torch.randn(count, self.channels, self.size, self.size).contiguous(memory_format=torch.channels_last)
        return repeat((pixels, torch.randint(self.classes, (count,))))

    def loaded(self, world, count: int):
        assert self.images is not None
        recipe = steady(world.size, count)
        steps = (at(recipe, number) for number in range(recipe.iterations))
        return load_ahead(Stream(self.images, 0, count), requests(steps, 1, world.rank, world.size), self.decoders)

    def apart(self, batches, workers: int, steps: int) -> list[float]:
        """Seconds of each of `steps` steps of this rank alone, with `workers` workers."""
        average = Average(self.settings.reduction, World(), workers, self.network)
        return _burst(self._replica(World(), self.network, average), batches, steps, workers)

    def averaged(self, batches, steps: int) -> list[float]:
        """Seconds of each of `steps` steps of all ranks, with one worker per rank."""
        return _burst(self.shared, batches, steps, self.shared.world.size)


def _burst(replica: Replica, batches, steps: int, workers: int) -> list[float]:
    now, seconds, start = at(steady(workers, 1), 0), [], time.perf_counter()
    for _ in range(steps):
        mean = step(replica, batches, now)
        float(mean.loss)  # as in the trainer; on a GPU this waits for the step
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds


def probe(
    model: str = "resnet50",
    images: Iterable[int] = (2, 4, 8),
    data: str = "",
    stride: str = "v1.5",
    decoders: int = 2,
    seconds: float = 60.0,
    least: int = 1,
    images_per_worker: int = 0,
    **settings,
) -> dict:
    """Measures for about `seconds`; returns the same result on every rank. Collective.

    If a row has fewer than `least` times by then, it goes on until each has as many. `busy` of the result is the share of this
    node's cores that other programs used meanwhile, `noise` what `steptime.noise` says of the rows: if either is high, the
    timings are unreliable.

    For each number of `images` per worker, times steps with one worker per rank: on the first 1, 2, 4, ... ranks without
    communication (`compute`), and on all ranks with it (`step`); for the smallest number, also with two workers per rank. Also
    times allreduces of several sizes and, with `data`, steps with the loader, decoding and evaluation. The rows are those that
    `steptime.fit` expects. With `images_per_worker`, `images` are those of a pass of several workers, which counts as one.
    `settings` are fields of `Settings`. Raises ReproError for an invalid parameter.
    """
    world = comm.world()
    images = list(images)
    with world.together():
        asked = Settings(**settings)
        images = [whole_number("images (per worker)", count, 1) for count in images]
        if not images:
            raise ReproError("images is empty: it must be a list of whole numbers of images per worker, such as [2, 4, 8]")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
            raise ReproError(f"seconds is {seconds!r}: it must be a positive number of seconds to measure for")
        whole_number("decoders", decoders, 0, MOST_THREADS)
        whole_number("least", least, 1)
        view: dict[str, Any] = dict(normalization=asked.normalization, size=asked.size)
        train_images = Images(data, "train", **view) if data else None
        device = find_device(asked.device, world.node_rank)
        pixels = train_images.preprocessing.size if train_images else asked.size or PHOTOGRAPHS.size
        small = bool(train_images and train_images.small)
        asked = replace(asked, device=device, precision=find_precision(asked.precision, device, small))
        torch.manual_seed(0)
        steps = _Steps(world, model, stride, train_images, pixels, asked, decoders, images_per_worker)
    began, load = time.monotonic(), os.getloadavg()[0]
    keep_freed()
    torch.set_num_threads(asked.threads)
    before = _core_seconds(world)
    rows = _measure(world, steps, images, began + seconds, least)
    busy = (_core_seconds(world) - before) / (time.monotonic() - began) / (os.cpu_count() or 1)
    facts = {
        "model": model,
        "data": train_images.name if train_images else "",
        "size": pixels,
        "stride": stride,
        "normalization": asked.normalization,
        "reduction": asked.reduction,
        "precision": asked.precision,
        "device": asked.device,
        "threads": asked.threads,
        "decoders": decoders,
        "parameters": sum(parameter.numel() for parameter in steps.network.parameters),
        "buckets": -(-len(steps.network.weights) // BUCKET),
        "nodes": world.nodes,
        "state_bytes": 4 * (len(steps.network.weights) + len(steps.network.statistics)),
    }
    if train_images:
        facts |= _rates(world, steps, Images(data, "test", **view), min(images))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KB
    return facts | {
        "ranks": world.size,
        "rows": rows,
        "peak_bytes": max(world.gather(peak)),
        "when": identity.now(),
        "wall": round(time.monotonic() - began, 1),
        "load_before": load,
        "busy": round(max(0.0, busy), 3),
        "noise": round(steptime.noise(rows), 2),
        "version": identity.code_version(),
        **machine(),
    }


def _core_seconds(world) -> float:
    """Seconds that this node's cores have worked since it was started, except for the ranks that run on it."""
    used, times = time.process_time(), psutil.cpu_times()
    own = sum(seconds for node, seconds in world.gather((platform.node(), used)) if node == platform.node())
    # Not the kernel's interrupts: the messages of the ranks themselves make most of them.
    return times.user + times.nice + times.system + getattr(times, "steal", 0.0) - own


def _measure(world, steps: _Steps, images: list[int], deadline: float, least: int) -> list[dict]:
    """The rows, with at least one time of each kind even if the deadline has passed; if `least` is not 1, of each row."""
    kind = np.int64 if steps.settings.reduction == "exact" else np.float32
    vector = steps.average.bytes
    sizes = sorted({*SIZES, vector // 16 * 8, vector}, key=lambda size: (size != vector, size))
    groups = [1 << power for power in range(world.size.bit_length()) if 1 << power < world.size]
    # (kind, images or bytes, workers per rank, ranks): the indispensable ones first, in case time is short
    settings = [("compute", count, 1, world.size) for count in images]
    if world.size > 1:
        settings += [("step", count, 1, world.size) for count in images]
        settings += [("allreduce", size, 1, world.size) for size in sizes]
    settings += [("loading", count, 1, world.size) for count in images if steps.images]
    settings += [("compute", count, 1, ranks) for ranks in groups for count in images]
    settings.append(("compute", min(images), 2, world.size))
    loaders = {count: steps.loaded(world, count) for count in images if steps.images}
    arrays = {size: np.zeros(size // np.dtype(kind).itemsize, kind) for size in sizes}

    def burst(setting, length: int) -> list[float]:
        name, count, workers, ranks = setting
        world.gather(None)  # all ranks begin together
        if name == "allreduce":
            return _allreduces(world, arrays[count], length)
        batches = loaders[count] if name == "loading" else steps.in_memory(count)
        if name == "compute":
            return steps.apart(batches, workers, length) if world.rank < ranks else [0.0] * length
        return steps.averaged(batches, length)

    def over() -> bool:
        return world.broadcast(time.monotonic() > deadline)

    first, times = {}, {}
    for setting in settings:
        if least > 1 or not over() or setting[0] not in {name for name, *_ in first}:
            first[setting], times[setting] = burst(setting, 1), []  # warms up, and determines how many steps make a burst
    lengths = {setting: int(min(MOST, max(1, BURST / max(world.gather(one[0]))))) for setting, one in first.items()}
    for setting in (setting for _ in range(max(ROUNDS, least)) for setting in first):
        if over() and (least == 1 or min(map(len, times.values())) >= least):
            break
        seconds = burst(setting, lengths[setting])
        times[setting] += seconds[1:] if len(seconds) > 3 else seconds  # the first has cold caches
    for loader in loaders.values():
        loader.close()
    rows = []
    for setting in first:
        name, count, workers, ranks = setting
        what = {"bytes": count} if name == "allreduce" else {"images": count, "workers": workers}
        rows.append(
            {
                "kind": name,
                "ranks": ranks,
                **what,
                "vector": vector,
                "seconds": world.gather([round(second, 7) for second in times[setting] or first[setting]])[:ranks],
            }
        )
    return rows


def _allreduces(world, array, length: int) -> list[float]:
    seconds = []
    for _ in range(length):
        world.gather(None)
        start = time.perf_counter()
        world.sum(array)
        seconds.append(time.perf_counter() - start)
    return seconds


def _rates(world, steps: _Steps, test: Images, count: int, limit: int = 100) -> dict:
    """Images per second: of a rank's decoders without a training step beside them, and of evaluation."""
    batches, start, decoded = steps.loaded(world, count), time.perf_counter(), 0
    next(batches)
    while time.perf_counter() - start < 1.0:
        decoded += len(next(batches)[1])
    decoding = decoded / (time.perf_counter() - start)
    batches.close()
    test = test.first(limit * world.size)
    start = time.perf_counter()
    evaluate.counts(
        world,
        [(steps.network.model, steps.network.state())],
        test,
        device=str(steps.network.weights.device),
        precision=steps.settings.precision,
        threads=steps.decoders,
    )
    evaluated = len(test) / (time.perf_counter() - start)
    return {"decoded_per_second": decoding, "evaluated_per_second": min(world.gather(evaluated))}


def machine() -> dict:
    """The facts that identify what was measured: training code, versions, processor, cores."""
    return {
        "code": identity.code_digest(),
        "packages": identity.package_versions(),
        "processor": identity.processor(),
        "cores": os.cpu_count(),
    }


def probe_into(out: str = "", **parameters) -> dict | None:
    """Calls `probe`; rank 0 writes the result into the file `out`, or it is returned if `out` is empty. Collective."""
    measured = probe(**parameters)
    if not out:
        return measured
    if comm.world().rank == 0:
        steptime.save(measured, Path(out))
    return None
