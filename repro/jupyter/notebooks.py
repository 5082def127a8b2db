"""Strict notebooks: parameters are checked before anything runs, and only a notebook whose last cell ran passes.

Inside a notebook: `check_parameters` and `check_run` (in the cell after the parameters), `begin`, `train` (with a
bar and curves, or with lines of text) and `complete` (the last cell). Outside: `execute` runs a whole notebook.
"""

import ast
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from repro import ReproError, choose, cores, recipes, whole_number
from repro.images.packed import Packed, data_folder, pack_embedded
from repro.jupyter import progress
from repro.jupyter.engines import START_AGAIN, Cluster, EnginesEnded, Job, RankError, start_or_join
from repro.paths import DATA, ROOT, check_checkout, writable_folder
from repro.ranks import stop
from repro.run import own, records
from repro.run.settings import Settings
from repro.run.state import saved_step
from repro.schedule import Recipe

FOLDER = ROOT / "notebooks"
MARK = "This notebook ran to its end."
TELL = 15.0  # seconds between two lines on the progress of many runs, where no line is written over
QUIET = 1.0  # seconds that a cell may take without a word
LOOK = 0.2  # seconds between two looks at what is being packed
PACKED_BYTES = {"digits": 20_791_296, "letters": 20_791_296, "fashion_mnist": 72_212_480}  # of the files of the embedded ones
AGAIN_SECONDS = 10.0  # between two looks at whether another process still trains a run


# --- Parameters: `name: type = value  # help` -------------------------------------------------------------------------

KINDS: dict[str, Any] = {"str": (str, os.PathLike), "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


def declared(source: str) -> dict[str, str]:
    """The parameters of a cell: {name: type}; raises ReproError if it has any other line."""
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            raise ReproError("a parameters cell has only lines such as `seed: int = 0  # help`")
        found[node.target.id] = ast.unparse(node.annotation)
    return found


def check(parameters: dict, known: dict[str, str]) -> None:
    """Raises ReproError if a parameter is unknown (with a suggestion) or not of the declared type."""
    for name, value in parameters.items():
        kind = choose("type", known[choose("parameter", name, known)], KINDS)
        if not isinstance(value, KINDS[kind]) or isinstance(value, bool) and kind != "bool":
            raise ReproError(f"parameter {name} is {value!r}: it must be of type {kind}")


def check_parameters() -> None:
    """In the cell after the parameters: checks values edited by hand, or injected by papermill, which does not check them.

    A text that begins with `~` is a path from the user's home, and becomes that.
    """
    check_checkout(Path.cwd())
    values = get_ipython().user_ns  # type: ignore[name-defined]  # noqa: F821
    cells = [source for source in values["In"][:-1] if source.strip()]
    known = declared(next(filter(_declares, reversed(cells)), ""))
    injected = cells[-1] if cells and cells[-1].startswith("# Parameters\n") else ""  # the first line of papermill's cell
    assigned: list[Any] = ast.parse(injected).body
    names = [*known, *(node.targets[0].id for node in assigned)]
    check({name: values.get(name) for name in names}, known)
    values.update({name: os.path.expanduser(values[name]) for name in known if known[name] == "str"})


def _declares(source: str) -> bool:
    try:
        return any(isinstance(node, ast.AnnAssign) for node in ast.parse(source).body)
    except SyntaxError:  # a magic command, or a cell that failed
        return False


# --- Checks of a run, without torch and before any engine starts ------------------------------------------------------


def check_run(
    names: list[str],
    data: str,
    shrink: str,
    seeds: list[int],
    ranks: int,
    model: str = "",
    settings: dict | None = None,
    switches: dict | None = None,
) -> int:
    """Raises ReproError if recipes cannot be trained with these parameters; returns the ranks to start (see `ranks_for`).

    `names` and `switches` are as for `recipes.find`, `shrink`, `model` and `settings` as for `train.train`. `data` is "" if the
    notebook makes it later. A user's own model is tried, which loads torch.
    """
    for name in settings or {}:
        choose("setting", name, [field.name for field in fields(Settings)])
    asked = Settings(**(settings or {}))
    originals = [recipes.find(name, **(switches or {})) for name in names]
    shrinks = [recipes.shrink_for(recipe, shrink) for recipe in originals]
    if not isinstance(seeds, list) or not seeds:
        raise ReproError(f"seeds is {seeds!r}: it must be a list of whole numbers, such as [0, 1, 2]")
    for seed in seeds:
        whole_number("seed", seed)
    ranks = ranks_for([recipes.shrink(recipe, size) for recipe, size in zip(originals, shrinks)], ranks)
    if data:
        pack(data)
        folder = data_folder(data)
        train, _ = (Packed(folder / f"{split}.lmdb", folder.name, split) for split in ("train", asked.split))
        for recipe, size in zip(originals, shrinks):
            recipes.shrink(recipe, size, len(train))
            if own.is_own(model or recipe.model):
                from repro.model import builder

                seen = train.preprocessing
                builder(model or recipe.model, len(train.manifest["classes"]), len(seen.mean), seen.size)
    return ranks


def ranks_for(chosen: list[Recipe], asked: int = 0) -> int:
    """Returns the number of ranks to start for these recipes: `asked`, or, if that is 0, as many as cores and passes allow.

    Raises ReproError if more are requested than a recipe has passes, or than there are cores, where they would only
    wait for each other. Two are always allowed, so that several ranks can be tried on any machine.
    """
    whole_number("ranks", asked)
    for recipe in chosen:
        if asked > recipe.passes:
            raise ReproError(
                f"ranks is {asked}: {recipe.name} has {recipe.workers} workers, {recipe.workers_per_pass} in a pass, and each "
                f"rank needs a pass"
            )
    if asked > max(2, cores()):
        raise ReproError(
            f"ranks is {asked}: this process may use {cores()} cores, so start at most {max(2, cores())}. For more all the "
            f"same, set cluster to the connection_file of engines.start({asked})"
        )
    return asked or min([cores(), *(recipe.passes for recipe in chosen)])


# --- What takes a while before training ------------------------------------------------------------------------------


def begin(connection_file: str, ranks: int, data: str) -> Cluster:
    """As `engines.start_or_join`, but returns at once: engines start, and `data` is packed, while the notebook goes on.

    The first use of the engines waits for them; `train` also waits for the data.
    """
    _Packing(data).start()  # if it fails, `train` tries again, and then it is an error
    return start_or_join(connection_file, ranks, wait=False)


class _Packing(threading.Thread):
    """Packs an embedded data set in the background, unless it is packed; waits for another thread that is packing."""

    one = threading.Lock()

    def __init__(self, data: str):
        super().__init__(daemon=True)
        self.data, self.error = data, None

    def run(self):
        try:
            with self.one:
                pack_embedded(self.data)
        except Exception as error:  # `pack` raises it where the notebook waits
            self.error = error


def pack(data: str) -> None:
    """Packs an embedded data set, unless it is packed, and shows a bar; waits if `begin` is already packing it.

    An interrupt ends the waiting at once: it raises records.Stopped. JupyterLab interrupts the script that packs, too; if only
    this process is interrupted, the script goes on in the background. Either way, the next call continues.
    """
    packing, line, began = _Packing(data), progress.Line(live=progress.in_notebook()), time.monotonic()
    packing.start()
    try:
        with nullcontext() if line.live else saying(f"packing {data}, once ..."):
            while packing.is_alive() and not stop.asked.is_set():
                packing.join(LOOK)
                if time.monotonic() - began > QUIET:
                    line.update(f"packing {data}, once  {progress.hashes(_packed(data))}")
        stopped = packing.is_alive() or stop.asked.is_set() and packing.error
    except KeyboardInterrupt:
        stopped = True
    line.clear()
    if stopped:
        raise records.Stopped(f"stopped while {data} was packed; run this cell again to continue")
    if packing.error:
        raise packing.error


def _packed(data: str) -> float:
    """The share of an embedded data set that is packed, from the size of the files."""
    with suppress(FileNotFoundError):  # a file may be renamed meanwhile
        return min(1.0, sum(path.stat().st_size for path in (DATA / data).glob("*lmdb*")) / PACKED_BYTES[data])
    return 0.0


@contextmanager
def saying(text: str):
    """Prints `text` if the block takes longer than `QUIET` seconds, so that no cell is silent for long."""
    timer = threading.Timer(QUIET, print, [text], {"flush": True})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- Training in a notebook -------------------------------------------------------------------------------------------


def train(engine: Cluster, recipe: str, live: bool = True, **task) -> str:
    """Trains a recipe on the engines, shows its progress, and returns the run's folder.

    `task` has the other parameters of `repro.train.train`; `live` is as for `progress.Progress`. A complete run is left
    unchanged, an incomplete one is continued. An interrupt makes all ranks stop after their step, with a checkpoint: it raises
    records.Stopped, which says how far they got, and the engines stay. A second interrupt ends the engines at once: it
    raises EnginesEnded. Raises RankError if a rank fails.
    """
    plan = {}
    with saying("waiting for the engines ..."):
        engine.ready()
    with _interruptible(engine, lambda: f", {_reached(plan)} is saved" if plan else ""):
        engine.load("repro.train")
        pack(task.get("data", "digits"))
        with saying("the engines load torch and check the run ..."):
            plan = engine.run("repro.task:describe", recipe, **task)[0]
        if plan["complete"]:
            print(f"already complete: {Path(plan['folder']).name}")
        elif not stop.asked.is_set():
            _train(engine, plan, live, recipe, task)
            plan["complete"] = True
        if stop.asked.is_set():
            done = "this run is complete" if plan["complete"] else "nothing was started"
            raise records.Stopped(f"stopped: {done}; run this cell again to continue")
    return plan["folder"]


def _train(engine: Cluster, plan: dict, live: bool, recipe: str, task: dict) -> None:
    saved = saved_step(plan["folder"])
    if saved:
        print(f"continuing at {_reached(plan)}")
    job = engine.submit("repro.train:train", recipe, **task)
    progress.follow(plan["folder"], live, saved, over=lambda: job.done() or stop.asked.is_set())
    if _end(engine, job, "Stopped"):
        raise records.Stopped(f"stopped at {_reached(plan)}, saved; run this cell again to continue")


def train_all(engine: Cluster, tasks: list[dict], ensembles: dict, live: bool = True, apart: bool = True) -> list[str]:
    """Trains many runs on the engines, shows the progress, and returns their folders. Also evaluates `ensembles`.

    `apart`: each rank trains runs of its own (`repro.train.train_all`); otherwise all share every step, which suits large
    images. Runs that other processes are training are waited for. An interrupt makes every rank stop after its step, with a
    checkpoint, and raises records.Stopped, as does a request from outside; the engines stay. A second interrupt ends the
    engines at once: it raises EnginesEnded. Raises RankError if a rank fails.
    """
    if not apart:
        for task in tasks:
            train(engine, live=live, **task)
        return train_all(engine, tasks, ensembles, live=False)  # all are complete: only ensembles are left
    with _interruptible(engine):
        with saying("the engines check the runs ..."):
            plans = engine.run("repro.task:describe_all", tasks)[0]
        runs = [
            progress.Planned(
                getattr(task["recipe"], "name", task["recipe"]),
                task["seed"],
                Path(plan["folder"]),
                plan["iterations"],
                plan["epochs"],
                plan["global_batch"],
            )
            for task, plan in zip(tasks, plans)
        ]
        many, told = progress.Many(runs, progress.Line(live, TELL)), ""
        while others := _train_all(engine, tasks, ensembles, many):
            if others != told:
                many.line.print(f"{others}. Waiting ...")
            told = others
    return [plan["folder"] for plan in plans]


def _train_all(engine: Cluster, tasks: list[dict], ensembles: dict, many: progress.Many) -> str:
    """Returns "" if all is complete, otherwise, after a while, what other processes are training, in words."""
    job = engine.submit("repro.train:train_all", tasks, ensembles)
    many.follow(lambda: job.done() or stop.asked.is_set())
    if stop.asked.is_set():
        many.line.end()  # what is said next begins below it
    error = _end(engine, job, "Stopped", "Locked")
    if error and error.kind == "Locked":
        again = time.monotonic() + AGAIN_SECONDS
        many.follow(lambda: time.monotonic() > again or stop.asked.is_set())
    many.close()
    if stop.asked.is_set() or error and error.kind == "Stopped":
        raise records.Stopped(f"stopped: {many.share:.0%} of the images are done; run this again to continue")
    return str(error or "")


@contextmanager
def _interruptible(engine: Cluster, saved: Callable[[], str] = lambda: ""):
    """Within this block the first interrupt only sets `stop.asked`, and a second one ends the engines."""
    with stop.listening(signal.SIGINT):
        try:
            yield
        except KeyboardInterrupt:
            engine.end("they were interrupted twice")
            raise EnginesEnded(f"interrupted twice: the engines were ended at once{saved()}. {START_AGAIN}") from None
        finally:
            stop.asked.clear()


def _end(engine: Cluster, job: Job, *expected: str) -> RankError | None:
    """Waits for a job, which is asked to stop if this process was; returns its error if it is of an expected kind."""
    asked = stop.asked.is_set() and not job.done()
    if asked:
        how = "after this step" if engine.ask_to_stop() else "at the end, since no rank is on this machine"
        if not job.wait(1):
            print(f"stopping {how}; interrupt again to end the engines at once", flush=True)
    try:
        job.result()
    except RankError as error:
        if error.kind not in expected:
            raise
        return error
    if asked:
        engine.forget_request()
    return None


def _reached(plan: dict) -> str:
    return f"epoch {saved_step(plan['folder']) * plan['epochs'] / plan['iterations']:.1f} of {plan['epochs']:.1f}"


def complete() -> None:
    """Called in the last cell of every notebook: its output distinguishes a finished notebook from one that died."""
    print(MARK)


# --- Running notebooks ------------------------------------------------------------------------------------------------


def execute(name: str, parameters: dict, output: Path, log: bool = False, timeout: int | None = None) -> Path:
    """Runs notebooks/`name`.ipynb with these parameters and writes it to `output`; with `log`, what its cells print is printed.

    A cell may take `timeout` seconds (None: no limit). While the notebook runs, and if it fails, its copy has the name
    `output`.failed.ipynb; only if its last cell ran is it renamed to `output`. Raises ReproError with the
    failing cell's error, records.Stopped if its training was stopped on request.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError

    from repro.jupyter import client

    source = FOLDER / f"{choose('notebook', name, [path.stem for path in sorted(FOLDER.glob('*.ipynb'))])}.ipynb"
    book = nbformat.read(source, as_version=4)
    known = next((declared(cell.source) for cell in book.cells if "parameters" in cell.metadata.get("tags", [])), {})
    check(parameters, known)
    writable_folder(output.parent)
    unfinished = output.with_suffix(".failed.ipynb")
    client.inject(book, parameters)
    try:
        client.run(book, unfinished, FOLDER, log, timeout)
    except CellExecutionError as error:
        if error.ename == records.Stopped.__name__:
            raise records.Stopped(f"notebook {name}: {error.evalue}") from error
        number = max(cell.execution_count or 0 for cell in book.cells if cell.cell_type == "code")
        raise ReproError(
            f"notebook {name} failed in cell {number}: {error.ename}: {error.evalue} (see {unfinished})"
        ) from error
    except Exception as error:
        raise ReproError(f"notebook {name} failed: {type(error).__name__}: {error} (see {unfinished})") from error
    last = [cell for cell in book.cells if cell.cell_type == "code"][-1]
    if not any(MARK in output_.get("text", "") for output_ in last.outputs):
        raise ReproError(f"notebook {name} ended before its last cell (see {unfinished})")
    unfinished.replace(output)
    return output


def end_kernels() -> None:
    """Kills the kernels that this process has started; `execute`, running in another thread, then raises."""
    import psutil

    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "ipykernel_launcher" in process.cmdline():
                process.kill()
