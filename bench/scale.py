"""What grows with workers, ranks, images, runs and metric rows: seconds and memory, on files that this script makes.

Nothing is trained. Each part runs in a process of its own, three times; its memory is what the process took in addition.
Writes results/bench/scale.json and prints it:

    python -m bench.scale
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench import report
from repro.images.data import Stream, requests
from repro.images.packed import Item, Packed, write
from repro.jupyter.progress import Progress
from repro.paper import ledger, tables
from repro.paths import REFERENCE
from repro.recipes import RECIPES
from repro.run import records, state, tidy
from repro.schedule import IMAGENET_IMAGES, at, due
from repro.task import describe_all

RECIPE = RECIPES["resnet50_448nodes"]  # 896 workers
DATA = "digits"
LONGEST = max(RECIPES.values(), key=lambda recipe: recipe.iterations)
RUNS = 1000
RECORDS = IMAGENET_IMAGES
ROWS = 10_000_000  # bytes of metric rows of one run
TIMES = 3


# --- Files ------------------------------------------------------------------------------------------------------------


def make_runs(out: Path, number: int) -> None:
    """Folders of complete runs: those of the reference, again and again with other seeds."""
    known = records.all_runs(REFERENCE / "runs")
    for place in range(number):
        source = known[place % len(known)]
        run = records.read(source)
        run["settings"]["seed"] += 1000 * (place // len(known))
        folder = out / f"{run['recipe']['name']}-{run['data']['name']}-seed{run['settings']['seed']}-{place:08x}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run, indent=1))
        (folder / "ensembles.json").write_text(json.dumps(records.ensembles(source)))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records.metric_rows(source)))
        (folder / "lock").touch()
        for model in records.tested(source):
            records.save_correct(folder, model, records.load_correct(source, model))


def make_rows(folder: Path, size: int) -> None:
    """Gives a run this many bytes of metric rows, all of its first stage, as if it had written one after each step."""
    first = records.metric_rows(folder)[0]
    lines: list[str] = []
    while size > 0:
        lines.append(json.dumps(first | {"step": len(lines) + 1, "seconds": 0.5 * len(lines)}) + "\n")
        size -= len(lines[-1])
    (folder / "metrics.jsonl").write_text("".join(lines))


def make_records(path: Path, number: int) -> None:
    """A packed file of this many records of 16 bytes in 1000 classes."""
    items = (Item(place % 1000, b"\0" * 16) for place in range(number))
    write(path, path.parent.name, path.stem, [f"class {name}" for name in range(1000)], lambda start: items)


def make_files(folder: Path) -> None:
    make_runs(folder / "runs", RUNS)
    make_runs(folder / "long", 1)
    make_rows(next((folder / "long").iterdir()), ROWS)
    make_records(folder / "images" / "train.lmdb", RECORDS)


# --- Parts: each gets the folder of the files ready, and returns what is timed ----------------------------------------


def stream() -> Stream:
    numbers: Any = range(IMAGENET_IMAGES)  # of images: only their number counts
    return Stream(numbers, 0, RECIPE.images_per_worker)


def sampled(ranks: int) -> Callable:
    images, step = stream(), at(RECIPE, 4000)
    images.samples(step, 0)  # has shuffled the epoch

    def run():
        for now, worker, number in requests([at(RECIPE, 4000)], RECIPE.workers_per_pass, 0, ranks):
            for each in range(worker, worker + number):
                images.samples(now, each)

    return run


def verify(folder: Path) -> Callable:
    ledger.verify(REFERENCE)  # has loaded torch, to count parameters
    return lambda: ledger.verify(folder)


def describe(folder: Path) -> Callable:
    tasks = [{"recipe": "one_model", "data": DATA, "seed": seed, "out": str(folder / "runs")} for seed in range(RUNS)]
    return lambda: describe_all(tasks)


def shuffle(folder: Path) -> Callable:
    images, epochs = stream(), iter(range(TIMES))
    return lambda: images.order(next(epochs))


def pack(folder: Path) -> Callable:
    names = iter("abc")
    return lambda: make_records(folder / next(names) / "train.lmdb", RECORDS)


def opened(folder: Path) -> Packed:
    return Packed(folder / "images" / "train.lmdb", "images", "train")


def followed(folder: Path) -> Progress:
    return Progress(next((folder / "long").iterdir()), live=False)


def later_look(folder: Path) -> Callable:
    progress = followed(folder)
    progress.look()
    return progress.look


PARTS: dict[tuple[str, str], Callable[[Path], Callable]] = {
    ("which images 896 workers see at a step", "1 rank"): lambda _: sampled(ranks=1),
    ("the same", "2 ranks"): lambda _: sampled(ranks=2),
    ("the same", "4 ranks"): lambda _: sampled(ranks=4),
    ("shuffling an epoch, on each rank", "1.28 million images"): shuffle,
    ("which steps are recorded, once a run", "112,600 steps"): lambda _: lambda: due(LONGEST, LONGEST.record_every),
    ("packing records of 16 bytes", "1.28 million"): pack,
    ("opening them", "1.28 million"): lambda folder: lambda: opened(folder),
    ("reading and checking all of them", "1.28 million"): lambda folder: opened(folder).verify,
    ("`watch`: which run was begun last", "1,000 runs"): lambda folder: lambda: state.find("", folder / "runs"),
    ("`repro.live`: which runs are being trained", "1,000 runs"): lambda folder: (
        lambda: state.living(records.all_runs(folder / "runs"))
    ),
    ("`repro.runs`: the tables of runs and of evaluations", "1,000 runs"): lambda folder: lambda: tidy.runs(folder / "runs"),
    ("the table of models", "1,000 runs"): lambda folder: lambda: tables.models(folder / "runs"),
    ("`verify`: the ledger", "1,000 runs"): verify,
    ("`describe`: what `train` would do", "1,000 runs"): describe,
    ("`watch`: the first look at a run's rows", "10 MB"): lambda folder: lambda: followed(folder).look(),
    ("`watch`: each later look", "10 MB"): later_look,
    ("`repro.runs` of that run", "10 MB"): lambda folder: lambda: tidy.runs(folder / "long"),
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def _peak() -> float:
    """MB that this process has taken at the most since `_forget`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def _forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _measure(sender, part: tuple[str, str], folder: Path) -> None:
    run = PARTS[part](folder)
    _forget()
    before, seconds = _peak(), []
    for _ in range(TIMES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    sender.send({"seconds": seconds, "megabytes": _peak() - before})


def measured(folder: Path) -> Iterator[dict]:
    context = multiprocessing.get_context("spawn")
    for what, size in PARTS:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(sender, (what, size), folder))
        process.start()
        sender.close()
        row = {"what": what, "size": size, **receiver.recv()}
        process.join()
        print(f"{what:50} {size:20} {median(row['seconds']):8.3g} s {row['megabytes']:6.0f} MB", flush=True)
        yield row


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        report.save("scale", list(measured(folder)), {"command": "python -m bench.scale"})


if __name__ == "__main__":
    main()
