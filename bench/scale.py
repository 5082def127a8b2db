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


def _step(folder: Path, ranks: int) -> Callable:
    images, step = stream(), at(RECIPE, 4000)
    images.samples(step, 0)  # has shuffled the epoch

    def run():
        for now, worker, number in requests([at(RECIPE, 4000)], RECIPE.workers_per_pass, 0, ranks):
            for each in range(worker, worker + number):
                images.samples(now, each)

    return run


def step_1(folder: Path) -> Callable:
    return _step(folder, 1)


def step_2(folder: Path) -> Callable:
    return _step(folder, 2)


def step_4(folder: Path) -> Callable:
    return _step(folder, 4)


def shuffle(folder: Path) -> Callable:
    images, epochs = stream(), iter(range(TIMES))
    return lambda: images.order(next(epochs))


def begin(folder: Path) -> Callable:
    longest = max(RECIPES.values(), key=lambda recipe: recipe.iterations)
    return lambda: due(longest, longest.record_every)


def pack(folder: Path) -> Callable:
    names = iter("abc")
    return lambda: make_records(folder / next(names) / "train.lmdb", RECORDS)


def open_records(folder: Path) -> Callable:
    return lambda: Packed(folder / "images" / "train.lmdb", "images", "train")


def verify_records(folder: Path) -> Callable:
    return Packed(folder / "images" / "train.lmdb", "images", "train").verify


def tidy_runs(folder: Path) -> Callable:
    return lambda: tidy.runs(folder / "runs")


def models(folder: Path) -> Callable:
    return lambda: tables.models(folder / "runs")


def verify(folder: Path) -> Callable:
    ledger.verify(REFERENCE)  # has loaded torch, to count parameters
    return lambda: ledger.verify(folder)


def living(folder: Path) -> Callable:
    return lambda: state.living(records.all_runs(folder / "runs"))


def newest(folder: Path) -> Callable:
    return lambda: state.find("", folder / "runs")


def describe(folder: Path) -> Callable:
    tasks = [{"recipe": "one_model", "data": DATA, "seed": seed, "out": str(folder / "runs")} for seed in range(RUNS)]
    return lambda: describe_all(tasks)


def first_look(folder: Path) -> Callable:
    (run,) = (folder / "long").iterdir()
    return lambda: Progress(run, live=False).look()


def next_look(folder: Path) -> Callable:
    (run,) = (folder / "long").iterdir()
    progress = Progress(run, live=False)
    progress.look()
    return progress.look


def tidy_rows(folder: Path) -> Callable:
    return lambda: tidy.runs(folder / "long")


PARTS: dict[Callable[[Path], Callable], tuple[str, str]] = {
    step_1: ("which images 896 workers see at a step", "1 rank"),
    step_2: ("the same", "2 ranks"),
    step_4: ("the same", "4 ranks"),
    shuffle: ("shuffling an epoch, on each rank", "1.28 million images"),
    begin: ("which steps are recorded, once a run", "112,600 steps"),
    pack: ("packing records of 16 bytes", "1.28 million"),
    open_records: ("opening them", "1.28 million"),
    verify_records: ("reading and checking all of them", "1.28 million"),
    newest: ("`watch`: which run was begun last", "1,000 runs"),
    living: ("`repro.live`: which runs are being trained", "1,000 runs"),
    tidy_runs: ("`repro.runs`: the tables of runs and of evaluations", "1,000 runs"),
    models: ("the table of models", "1,000 runs"),
    verify: ("`verify`: the ledger", "1,000 runs"),
    describe: ("`describe`: what `train` would do", "1,000 runs"),
    first_look: ("`watch`: the first look at a run's rows", "10 MB"),
    next_look: ("`watch`: each later look", "10 MB"),
    tidy_rows: ("`repro.runs` of that run", "10 MB"),
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def _peak() -> float:
    """MB that this process has taken at the most since `_forget`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def _forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _measure(sender, name: str, folder: str) -> None:
    run = globals()[name](Path(folder))
    _forget()
    before, seconds = _peak(), []
    for _ in range(TIMES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    sender.send({"seconds": seconds, "megabytes": _peak() - before})


def measured(folder: Path) -> Iterator[dict]:
    context = multiprocessing.get_context("spawn")
    for part, (what, size) in PARTS.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(sender, part.__name__, str(folder)))
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
