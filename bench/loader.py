"""Benchmarks of `make bench-data`: the loader against torchvision's, its share of a training step, packing, memory.

Each number is the ratio of two medians over rounds, measured alternately in one run on the same images.
Writes results/bench/data.json and prints it as a table.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from itertools import repeat
from pathlib import Path

import torch

from bench import photographs
from bench.report import Goal, publish, row
from repro import cores
from repro.allreduce import Average
from repro.images.data import Images, Stream, load_ahead
from repro.images.packed import PHOTOGRAPHS
from repro.model import Network
from repro.optim import SGD
from repro.ranks.comm import World
from repro.replica import Replica
from repro.resnet import build
from repro.scaling.probe import steady
from repro.schedule import at
from repro.train import step

BATCH, ROUNDS = 16, 5
STORED = {"full size": 0, "short side 256": 256}  # short side as packed: 0 keeps the original bytes, 256 is the default


# --- Decode and augment, on one core ----------------------------------------------------------------------------------


def ours(data: str) -> float:
    """Images per second of one decoding thread over an epoch, after one batch."""
    images = Images(data, "train")
    return _rate(_batches(images, len(images) // BATCH, threads=1))


def _batches(images: Images, number: int, threads: int):
    recipe = steady(1, BATCH)
    return load_ahead(Stream(images, 0, BATCH), ((at(recipe, step), 0) for step in range(number)), threads)


def torchvision_pil(folder: str) -> float:
    """The same for torchvision's transforms on Pillow images, the default of its reference training; one worker process."""
    from torchvision.transforms import v2

    return _rate(_loader(folder, [v2.PILToTensor()], at_end=True))


def torchvision_tensor(folder: str) -> float:
    """The same for its transforms on tensors, decoded by torchvision itself."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    return _rate(_loader(folder, [], loader=lambda path: decode_image(read_file(path), ImageReadMode.RGB)))


def _loader(folder, conversion, at_end=False, **options):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    crop = [v2.RandomResizedCrop(PHOTOGRAPHS.size, antialias=True), v2.RandomHorizontalFlip()]
    steps = crop + conversion if at_end else conversion + crop
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    dataset = ImageFolder(folder, v2.Compose(steps), **options)
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=1, multiprocessing_context="fork")


def _rate(batches) -> float:
    batches = iter(batches)
    next(batches)
    start, count = time.perf_counter(), 0
    for images, _ in batches:
        count += len(images)
    return count / (time.perf_counter() - start)


def on_one_core(function, argument: str) -> float:
    """The function's result in a process that, with its children, may use only one core."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_pinned, args=(sender, function.__name__, argument))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def _pinned(sender, name: str, argument: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    sender.send(globals()[name](argument))


# --- The loader's share of a step ---------------------------------------------------------------------------------------


def steps(data: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of ResNet-50 steps with images loaded ahead and with images in memory, measured alternately.

    All cores compute, and the next batch is decoded during the step, so the step includes the cost of decoding.
    """
    torch.set_num_threads(cores())
    images = Images(data, "train")
    network = Network(build("resnet50", 1000))
    replica = Replica(World(), network, SGD(network, steady(1, BATCH)), Average("exact", World(), 1, network), "fp32")
    batches, now = _batches(images, 10**6, threads=2), at(steady(1, BATCH), 0)
    in_memory = Stream(images, 0, BATCH).batch(now, 0)
    seconds = [], []
    for number in range(2 * (rounds + 1)):
        start = time.perf_counter()
        step(replica, repeat(in_memory) if number % 2 else batches, now)
        if number > 1:  # the first step of each kind warms up
            seconds[number % 2].append(time.perf_counter() - start)
    batches.close()
    return seconds


# --- Packing, and memory ----------------------------------------------------------------------------------------------


def memory(data: str) -> list[float]:
    """MB of this process's own memory at the start of each of ten epochs of loading."""
    images = Images(data, "train")
    readings = []
    for number, _ in enumerate(_batches(images, 10 * len(images) // BATCH, threads=2)):
        if number % (len(images) // BATCH) == 0:
            status = Path("/proc/self/status").read_text()
            readings.append(int(status.split("RssAnon:")[1].split()[0]) / 1000)
    return readings


# --- All of it --------------------------------------------------------------------------------------------------------


def loading(name: str, folder: Path, data: Path) -> list[dict]:
    peers = {
        "torchvision ImageFolder, v2 transforms on Pillow images, DataLoader": torchvision_pil,
        "torchvision ImageFolder, v2 transforms on its decoder's tensors, DataLoader": torchvision_tensor,
    }
    rates = {function: [] for function in (ours, *peers.values())}
    for _ in range(ROUNDS):
        for function, measured in rates.items():
            measured.append(on_one_core(function, str(data if function is ours else folder)))
    goal, unit = Goal(">=", 1.5) if name == "full size" else None, "images/s on one core"
    return [
        row(f"decode and augment, {name}", rates[ours], rates[function], peer, unit, goal) for peer, function in peers.items()
    ]


def measure(folder: Path) -> list[dict]:
    source, rows = photographs.write(folder / "jpegs"), []
    for name, short_side in STORED.items():
        out, seconds, copies = folder / str(short_side) / "photographs", [], []
        for number in range(ROUNDS):
            seconds.append(photographs.pack(source, out, short_side, threads=cores()))
            start = time.perf_counter()
            shutil.copytree(source, folder / "copies" / str(number))
            os.sync()  # as in packing
            copies.append(time.perf_counter() - start)
            shutil.rmtree(folder / "copies")
        packing, copying = ([photographs.IMAGES / second for second in each] for each in (seconds, copies))
        unit = f"images/s, {cores()} threads"
        rows.append(row(f"packing, {name}", packing, copying, "plain copy of the files", unit))
        # The peer reads the same JPEGs as files: those of the packed records.
        files, images = folder / f"files{short_side}", Images(str(out), "train")
        for index in range(len(images)):
            label, encoded = images.packed[index]
            path = files / images.classes[label] / f"{index:04}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
        rows += loading(name, files, out)
    for name, short_side in STORED.items():
        loaded, in_memory = steps(str(folder / str(short_side) / "photographs"), ROUNDS)
        peer, unit = "the same step with its images at hand", f"s for {BATCH} images, {cores()} threads"
        rows.append(row(f"ResNet-50 step, fp32, {name}", loaded, in_memory, peer, unit, Goal("<=", 1.03)))
    readings = memory(str(folder / "256" / "photographs"))
    first, last = readings[1:2], readings[-1:]
    rows.append(row("own memory over ten epochs of loading", last, first, "after the first epoch", "MB", Goal("<=", 1.05)))
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    publish("data", rows, {"command": "make bench-data", "images": photographs.IMAGES, "rounds": ROUNDS})


if __name__ == "__main__":
    main()
