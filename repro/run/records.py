"""The folder of one run: what it contains, and how it is written and read.

A run's folder is named after everything that determines its result (recipe, settings, data, code), so the same command
finds the same folder: a complete run is skipped, an incomplete one is continued.

    run.json       everything about the run; written before training starts, replaced atomically
    metrics.jsonl  one row per epoch
    snapshots/     the model at the end of each stage
    checkpoints/   where to continue from, while the run is incomplete
    ensembles.json results of the ensembles that were evaluated from the snapshots
    correct/       per evaluated model and view, which test images it recognised
    lock           held by the process that trains, so that no other process trains it too
    heartbeats/    signs of life of the ranks (`watch`), while the run is trained

Runs that `python -m repro keep` has put into few files (`kept`) are read by the same functions.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from repro import ReproError
from repro.paths import NUMBER, check_shape, checked, named, read_json, remove_temporary, replacing, writable_folder
from repro.run import kept, own
from repro.run.identity import TEXTS, code_digest, code_version, now, other_machinery, package_versions, processor
from repro.run.settings import non_default
from repro.run.shapes import ENSEMBLES, ROW, checked_run, recipe_of

log = logging.getLogger("repro")

FORMAT = 3  # of run.json
LONGEST_FOLDER = 240  # bytes, of a run's folder: most systems allow 255
LONGEST_NAME = 200  # of an ensemble's file; most systems allow 255 letters with suffixes
METRICS = "metrics.jsonl"
ATTEMPT = "start", "end", "status", "ranks", "host", "error", "version", "processor", "kernels", "packages"
OTHER_VIEWS = "zoom", "scale_aspect"  # besides the test's, in which ends of stages and ensembles are tested too


class Stopped(ReproError):
    """A run was stopped on request, after a whole step and with a checkpoint: the same command continues it."""


class Locked(ReproError):
    """Another process is training this run."""


class OldRun(ReproError):
    """A run folder that an earlier version of this project wrote."""


class Run:
    """The folder of one run. Written by rank 0; the other ranks only know its path."""

    def __init__(self, out: Path | str, recipe, settings, data: dict, **origin):
        """`data` has the data set's name, digests and preprocessing; `origin` describes where recipe and model come from.

        It has base (the recipe's name before it was made small), shrink, variant (see `task`), and, for a user's own
        model or rule, model_source and update_source (digests). Recipe, settings, data, code and these are the run's identity.
        """
        numbers = {name: value for name, value in non_default(recipe).items() if name not in TEXTS}
        for part in ("model", "update"):
            if own.is_own(getattr(recipe, part)):  # identified by its source, wherever the file is
                numbers[part] = own.short(getattr(recipe, part))
        identity = {
            "recipe": numbers,
            "settings": non_default(settings),
            "data": data,
            "code": code_digest(),
            "model_source": origin.get("model_source", ""),
        }
        if recipe.update:
            identity |= {"update_source": origin["update_source"]}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{recipe.name}-{data['name']}-seed{settings.seed}-{key}"
        if len(os.fsencode(name)) > LONGEST_FOLDER:
            raise ReproError(
                f"a run's folder would be named {name}, which is too long: give the data set's folder a shorter name"
            )
        self.folder = writable_folder(out) / name
        complete = {"recipe": asdict(recipe), "settings": asdict(settings), "model": own.short(recipe.model)}
        self.record = {"format": FORMAT, **origin, **identity, **complete}
        self.lock: IO[bytes] | None = None

    @property
    def complete(self) -> bool:
        return read(self.folder).get("status") == "complete"

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoints to continue from, newest first."""
        return generations(self.folder / "checkpoints")

    @property
    def newest_step(self) -> int:
        return saved_step(self.folder)

    def told(self) -> str:
        """The text of run.json, "" if there is none: what every rank must see alike."""
        with suppress(OSError):
            return (self.folder / "run.json").read_text()
        return ""

    def snapshot(self, stage: str) -> Path:
        """The path of the model at the end of `stage`, without a suffix."""
        return self.folder / "snapshots" / stage

    @property
    def continued(self) -> bool:
        """Whether there was an attempt before this one."""
        return bool(self.record.get("attempts"))

    @property
    def heartbeats(self) -> Path:
        return self.folder / "heartbeats"

    def begin(self, **facts) -> bool:
        """Writes run.json before the first step; the record of an earlier attempt is kept under `attempts`.

        Returns False if the run is complete, and then only removes what was left when it finished; warns if its models are
        gone. Raises Locked if another process is training it.
        """
        if self.complete:
            self._tidy()
            if not kept.find(self.folder):  # of which it is known that there are none
                self._warn_without_models()
            return False
        with named(self.folder):
            self.folder.mkdir(exist_ok=True)
            self.lock = take_lock(self.folder)
            if self.complete:  # by the process that had the lock
                self.release()
                return False
            remove_temporary(self.folder)
            self.heartbeats.mkdir(exist_ok=True)
            for path in self.heartbeats.glob("[!.]*"):  # what NFS has left under a name with a dot cannot be removed yet
                path.unlink()
        earlier = read(self.folder)
        attempts = earlier.get("attempts", []) + ([{key: earlier.get(key) for key in ATTEMPT}] if earlier else [])
        self.update(
            **facts,
            status="running",
            start=now(),
            end=None,
            error=None,
            attempts=attempts,
            host=platform.node(),
            cores=os.cpu_count(),
            processor=processor(),
            version=code_version(),
            packages=package_versions(),
        )
        if earlier and self.checkpoints and (changes := other_machinery(earlier, self.record)):
            log.warning("continued with %s: the weights may not be those of an uninterrupted run", changes)
        return True

    def _warn_without_models(self) -> None:
        """A complete run keeps its results when its snapshots are deleted, but has no models any more."""
        snapshots = [self.snapshot(stage["name"]) for stage in self.record["recipe"]["stages"]]
        files = [Path(f"{path}{suffix}") for path in snapshots for suffix in (".safetensors", ".json")]
        if gone := [file for file in files if not file.is_file()]:
            log.warning(
                "the results are complete, but %d of %d files of the models are gone, such as %s: what they are needed for "
                "(ensemble, export) fails; to train again, delete %s",
                len(gone),
                len(files),
                gone[0],
                self.folder,
            )

    def release(self) -> None:
        """Lets other processes train this run; this happens automatically when a process ends."""
        if self.lock:
            with suppress(OSError):
                self.lock.truncate(0)  # an engine lives on: nobody shall take it for one that trains
            self.lock.close()
        self.lock = None

    def update(self, **facts) -> None:
        record = self.record | facts
        self._check_owner("run.json")
        with replacing(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1))
        self.record = record

    def rewind(self, step: int, due: frozenset[int]) -> None:
        """Drops metric rows beyond the checkpoint that the run continues from; warns if one of the steps `due` has none."""
        rows = [row for row in metric_rows(self.folder) if row["step"] <= step]
        if lost := {number for number in due if number <= step} - {row["step"] for row in rows}:
            steps = ", ".join(map(str, sorted(lost)))
            log.warning("%s has no rows of steps %s: the curves have a gap, the weights do not", self.folder / METRICS, steps)
        with replacing(self.folder / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _check_owner(self, name: str) -> None:
        """Raises ReproError if the folder was deleted, even if another process has made it again and trains there."""
        with named(self.folder / name):
            if self.lock and not os.fstat(self.lock.fileno()).st_nlink:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))

    def metric(self, row: dict) -> None:
        self._check_owner(METRICS)
        with named(path := self.folder / METRICS), open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Returns when the metric rows are on the disk, where a power failure leaves them."""
        self._check_owner(METRICS)
        with named(path := self.folder / METRICS), open(path, "a") as file:
            os.fsync(file.fileno())

    def finish(self, **facts) -> None:
        self.update(**facts, status="complete", end=now())
        self._tidy()

    def end(self, status: str, error: str) -> None:
        """Records how an attempt ended, unless it was interrupted when the run was complete already."""
        if not self.complete:
            self.update(status=status, end=now(), error=error)
            shutil.rmtree(self.heartbeats, ignore_errors=True)  # from now on, ranks are not watched

    def _tidy(self) -> None:
        """Removes what a complete run does not need."""
        for folder in (self.folder / "checkpoints", self.heartbeats):
            shutil.rmtree(folder, ignore_errors=True)


def take_lock(folder: Path, what: str = "trained") -> IO[bytes]:
    """Takes a run's lock, which is released when the file is closed or this process ends. Raises Locked if another has it.

    `what` is what only one process at a time does to the run.
    """
    with named(folder / "lock"):
        lock = open(folder / "lock", "a+b", buffering=0)  # noqa: SIM115  the caller closes it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                owner = lock.readline().decode(errors="replace").strip() or "another process"
            raise Locked(f"{folder} is being {what} by {owner}: wait for it, or end it") from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not train this run twice at the same time", folder, error.strerror)
        try:
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}\n{started(os.getpid())}".encode())
        except OSError:
            lock.close()
            raise
    return lock


def generations(folder: Path) -> list[Path]:
    """The checkpoints in a folder, which are named after steps, newest first."""
    steps = [path.with_suffix("") for path in folder.glob("*.json") if path.stem.isdecimal()]
    return sorted(steps, key=lambda path: -int(path.name))


def saved_step(folder: Path | str) -> int:
    """The step of a run's newest checkpoint; 0 if there is none."""
    return max((int(path.name) for path in generations(Path(folder) / "checkpoints")), default=0)


def started(process: int) -> str:
    """When a process of this machine began, in ticks since the machine did, which no step of a clock moves; "" if unknown."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]  # field 22
    return ""


TRAIN_AGAIN = "delete the folder to train again"


def read(folder: Path | str) -> dict:
    """A run's run.json (`shapes.checked_run`); empty if there is none.

    Raises ReproError if it cannot be read, OldRun if it has another format.
    """
    if found := kept.find(folder):
        run, place, again = kept.copied(found.run), found.place, kept.KEEP_AGAIN
    else:
        path = Path(folder) / "run.json"
        run, place, again = read_json(path, {"recipe": (dict, str)}, TRAIN_AGAIN), str(path), TRAIN_AGAIN
    if run is None:
        return {}
    if run.get("format") != FORMAT:
        raise OldRun(
            f"{folder} was written by an earlier version of this project, in a format that this one cannot read: use the "
            f"version that it names ({run.get('version', 'none')}), or delete the folder to train again"
        )
    return checked_run(run, place, again)


class Rows:
    """The metric rows of a run that goes on: each look parses only what was added since the last one."""

    def __init__(self, folder: Path | str):
        self.folder, self.path = Path(folder), Path(folder) / METRICS
        self.rows, self.last, self.end = [], b"", 0  # the last row as it was read, and where it ends in the file

    def look(self) -> list[dict]:
        """Returns the rows so far, without a last line that was cut short by a kill or is still being written."""
        if found := kept.find(self.folder):
            return checked(kept.copied(found.rows), [ROW], found.place, kept.KEEP_AGAIN, "row")
        try:
            with open(self.path, "rb") as file:
                file.seek(self.end - len(self.last))
                text = file.read()
                if not text.startswith(self.last):  # a run that was continued has dropped rows (`Run.rewind`)
                    self.rows, self.last, self.end = [], b"", 0
                    file.seek(0)
                    text = file.read()
            lines = text[len(self.last) :].splitlines(keepends=True)
            new = lines if text.endswith(b"\n") else lines[:-1]
            rows = [json.loads(line) for line in new]
            for number, row in enumerate(rows, start=len(self.rows)):
                check_shape(row, ROW, f"row[{number}]")
        except FileNotFoundError:
            return []
        except (ValueError, OSError, RecursionError) as error:
            raise ReproError(f"{self.path} is damaged ({error}): {TRAIN_AGAIN}") from error
        if rows:
            self.rows, self.last, self.end = self.rows + rows, new[-1], self.end + sum(map(len, new))
        return self.rows


def metric_rows(folder: Path | str) -> list[dict]:
    """Returns a run's rows so far (`Rows`)."""
    return Rows(folder).look()


def loss_rows(rows: list[dict]) -> list[dict]:
    """The training loss over a run's metric rows, without its one-step jumps: step, epoch, stage and train_loss.

    A row's `train_loss` is a mean over the steps since the row before. Where an evaluation is one step before the end of an
    epoch, the second row is the loss of a single step, whose noise looks like a jump of training. A row of less than a tenth
    of the steps of the row beside it in the same stage is joined with it, as the mean over the steps of both.
    """
    joined: list[dict] = []
    before = 0
    for row in rows:
        steps, before = row["step"] - before, row["step"]
        new = {"steps": steps, **{name: row[name] for name in ("step", "epoch", "stage", "train_loss")}}
        last = joined[-1] if joined and joined[-1]["stage"] == row["stage"] else None
        if last and 10 * min(steps, last["steps"]) < max(steps, last["steps"]):
            total = last["steps"] + steps
            new["train_loss"] = (last["steps"] * last["train_loss"] + steps * row["train_loss"]) / total
            new["steps"] = total
            joined.pop()
        joined.append(new)
    return joined


def describe(row: dict, epochs: float) -> str:
    """Formats one metric row as a line of text."""
    line = f"epoch {row['epoch']:6.2f}/{epochs:.1f}  {row['stage']:<10} rate {row['rate']:<8.4g} loss {row['train_loss']:.4f}"
    if "top1" in row:
        line += f"  top-1 {100 * row['top1'] / row['images']:.2f}%"
    return f"{line}  {row['seconds']:.0f} s"


def predict(out: Path | str, forecasts: dict[str, dict]) -> None:
    """Records forecasts of runs, by the names of their folders, beside the folder `out` of the runs."""
    with replacing(writable_folder(Path(out).parent) / "forecasts.json") as temporary:
        temporary.write_text(json.dumps(predictions(out) | forecasts, indent=1))


def predictions(out: Path | str) -> dict[str, dict]:
    """Returns what `predict` recorded; empty if it was never called."""
    path = Path(out).parent / "forecasts.json"
    return read_json(path, {str: {"ranks": int, "seconds": NUMBER}}, "delete it; `python -m repro plan` makes it again") or {}


def ensembles(folder: Path | str) -> list[dict]:
    """The ensembles that were evaluated from a run's snapshots."""
    if found := kept.find(folder):
        return checked(kept.copied(found.ensembles), ENSEMBLES, found.place, kept.KEEP_AGAIN)
    path = Path(folder) / "ensembles.json"
    return read_json(path, ENSEMBLES, "delete it; `python -m repro ensemble` makes it again") or []


def result(folder: Path | str, run: dict | None = None) -> dict:
    """What a run has attained: {"images", "top1", "top5", ...} of its recipe's result (`Recipe.result`).

    They are of a stage's end, or of the mean of several softmax. Empty if the run is not complete, or `evaluate.ensemble` has
    not evaluated those stages together. `run` is its run.json, if that was read already.
    """
    run = run or read(folder)
    if run.get("status") != "complete":
        return {}
    members = recipe_of(run).result
    if len(members) == 1:
        return run["ends"][members[0]]
    found = [entry for entry in ensembles(folder) if entry["members"] == members and entry["average"] == "softmax"]
    return found[0] if found else {}


def add_ensemble(folder: Path | str, entry: dict) -> None:
    """Records an evaluated ensemble; an earlier one with the same members and average is replaced."""
    identity = ("members", "average")
    others = [old for old in ensembles(folder) if any(old[key] != entry[key] for key in identity)]
    with replacing(Path(folder) / "ensembles.json") as temporary:
        temporary.write_text(json.dumps([*others, entry], indent=1))


def ensemble_name(members: list[str], average: str) -> str:
    """The name of an ensemble's file, such as collapse1+collapse2.softmax; a short one if there are too many members."""
    name = "+".join(members)
    if len(name) > LONGEST_NAME:
        name = f"{len(members)}-members-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}.{average}"


def save_correct(folder: Path | str, model: str, correct: dict[str, np.ndarray]) -> None:
    """Records which test images a model (a stage's name, or an ensemble's) recognised: per view, an array of booleans (N,)."""
    with named(path := Path(folder) / "correct" / f"{model}.npz"):
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **correct)  # type: ignore[arg-type]


def tested(folder: Path | str) -> list[str]:
    """The models of a run, and its ensembles, of which `load_correct` knows which images they recognised."""
    if found := kept.find(folder):
        return sorted(found.correct)
    return sorted(path.name.removesuffix(".npz") for path in Path(folder).glob("correct/*.npz"))


def load_correct(folder: Path | str, model: str) -> dict[str, np.ndarray]:
    """Returns what `save_correct` recorded; of a kept run only the test view. Raises ReproError if it is missing or damaged."""
    path = Path(folder) / "correct" / f"{model}.npz"
    if found := kept.find(folder):
        if model not in found.correct:
            raise ReproError(f"{found.place} has no predictions of {model}: {kept.KEEP_AGAIN}")
        return {"test": found.correct[model].copy()}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ReproError(f"{path} cannot be read ({error}): delete the folder to train again") from error


def read_all(out: Path | str) -> dict[Path, dict]:
    """Every run's run.json, by its folder, sorted by name; runs of an earlier version are skipped, with a warning.

    A run that is kept in files (`kept`) has the path that its folder would have.
    """
    return dict(each(out))


def each(out: Path | str) -> Iterator[tuple[Path, dict]]:
    """`read_all`, one run after the other, for those who need not read all."""
    old = []
    for name in sorted({path.parent.name for path in Path(out).glob("*/run.json")} | kept.names(out)):
        try:
            yield Path(out) / name, read(Path(out) / name)
        except OldRun:
            old.append(name)
    if old:
        log.warning("skipped %d run folder(s) of an earlier version in %s, such as %s", len(old), out, old[0])


def all_runs(out: Path | str) -> list[Path]:
    """The folders of all runs (`read_all`), sorted by name, complete or not."""
    return list(read_all(out))


def complete_runs(out: Path | str) -> list[Path]:
    """The folders of all complete runs, sorted by name."""
    return [folder for folder, run in read_all(out).items() if run.get("status") == "complete"]
