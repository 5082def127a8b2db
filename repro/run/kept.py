"""Finished runs in three files for each data set, as `python -m repro keep` leaves them to be committed.

digits-runs.jsonl.gz   a run a line: its folder's name, run.json and ensembles.json. A recipe is written once: a run that has
                       the recipe of an earlier line names that run. `ends` is left out where the metric rows repeat it.
digits-metrics.csv.gz  a metric row a line; the first row of a run names its folder. A view's counts are columns of their own.
digits-correct.npz     for each model that the questions compare, which test images it recognised: a bit per image and model

Such a run has the path that its folder would have, and `records` reads it like a folder.
"""

import csv
import gzip
import io
import json
import zipfile
import zlib
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repro import ReproError
from repro.paths import check_shape, is_name, replacing

FILES = "runs.jsonl.gz", "metrics.csv.gz", "correct.npz"
TEXTS = "folder", "stage"  # columns of text; the others are JSON
DAMAGE = ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError  # of JSON or arrays that are none
KEEP_AGAIN = "restore it, or make it again by `python -m repro keep`"


class Kept(NamedTuple):
    """What is kept of a run."""

    run: dict  # run.json
    rows: list[dict]  # metrics.jsonl
    ensembles: list[dict]  # ensembles.json
    correct: dict[str, np.ndarray]  # by model, of the test view: booleans (N,)
    place: str = ""  # for messages


def keep_runs(out: Path, data: str, runs: dict[str, Kept]) -> None:
    """Writes runs of a data set, by their folders' names. The same runs make the same bytes."""
    lines, rows = [], []
    correct: dict[str, np.ndarray] = {}
    recipes: dict[str, str] = {}
    for folder, kept in sorted(runs.items()):
        first = recipes.setdefault(json.dumps(kept.run["recipe"]), folder)
        run = kept.run | ({} if first == folder else {"recipe": first})
        if run["ends"] == _ends(kept.rows):
            del run["ends"]
        lines.append(json.dumps({"folder": folder, "run": run, "ensembles": kept.ensembles}) + "\n")
        rows += [{"folder": "" if number else folder} | _flat(row) for number, row in enumerate(kept.rows)]
        correct |= {f"{folder}/{model}": kept.correct[model] for model in sorted(kept.correct)}
    # Most models recognise the same images, so that an image's bits, side by side, compress best.
    bits = np.zeros((max(map(len, correct.values()), default=0), len(correct)), bool)
    for place, recognised in enumerate(correct.values()):
        bits[: len(recognised), place] = recognised
    arrays = {"models": np.array(list(correct), np.str_), "images": np.array([len(each) for each in correct.values()], int)}
    texts, metrics, predictions = (out / f"{data}-{name}" for name in FILES)
    with replacing(texts) as temporary:
        temporary.write_bytes(_packed("".join(lines)))
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with replacing(metrics) as temporary:
        temporary.write_bytes(_packed(text.getvalue()))
    with replacing(predictions) as temporary, open(temporary, "wb") as binary:
        np.savez_compressed(binary, correct=np.packbits(bits, axis=1), **arrays)  # type: ignore[arg-type]


def names(out: Path | str) -> set[str]:
    """The names of the folders whose runs are kept in files in `out`."""
    return {name for path in _paths(out) for name in _read(path)}


def data_sets(out: Path | str) -> set[str]:
    """The names of the data sets with kept runs in the folder `out`."""
    return {path.name.removesuffix(f"-{FILES[0]}") for path in _paths(out)}


def find(folder: Path | str) -> Kept | None:
    """What is kept of the run that had this folder, not to be changed; None if the folder is there, or nothing is kept."""
    folder = Path(folder)
    for path in [] if folder.is_dir() else _paths(folder.parent):
        if found := _read(path).get(folder.name):
            return found
    return None


def copied(value):
    """A copy that may be changed, of values from JSON."""
    return json.loads(json.dumps(value))


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)  # without the time, which is not what is kept


def _paths(out: Path | str) -> list[Path]:
    return sorted(Path(out).glob(f"*-{FILES[0]}"))


def _read(path: Path) -> dict[str, Kept]:
    files = [path.with_name(path.name.removesuffix(FILES[0]) + name) for name in FILES]
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise ReproError(f"{error.filename} cannot be read ({error.strerror}): {KEEP_AGAIN}") from error
    return _parsed(*files, *((each.st_ino, each.st_mtime_ns, each.st_size) for each in stats))


@lru_cache(maxsize=4)
def _parsed(texts: Path, metrics: Path, bits: Path, *versions: tuple[int, ...]) -> dict[str, Kept]:
    with _reading(metrics):
        rows = _rows(metrics)
    with _reading(bits):
        correct = _correct(bits)
    runs: dict[str, Kept] = {}
    with _reading(texts), gzip.open(texts, "rt") as file:
        for line in map(json.loads, file):
            check_shape(line, {"folder": str, "run": {"recipe": (dict, str)}, "ensembles": list})
            folder, run = line["folder"], line["run"]
            if not is_name(folder):
                raise ValueError(f"{folder!r} is no name of a folder")
            if isinstance(run["recipe"], str):
                run["recipe"] = runs[run["recipe"]].run["recipe"]
            run.setdefault("ends", _ends(rows.get(folder, [])))
            runs[folder] = Kept(run, rows.get(folder, []), line["ensembles"], correct.get(folder, {}), f"{texts}: {folder}")
    return runs


@contextmanager
def _reading(path: Path):
    """Context in which an error is one of this file."""
    try:
        yield
    except OSError as error:
        raise ReproError(f"{path} cannot be read ({error}): {KEEP_AGAIN}") from error
    except (*DAMAGE, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise ReproError(f"{path} is damaged ({type(error).__name__}: {error}): {KEEP_AGAIN}") from error


def _rows(path: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    rows: list[dict] = []
    with gzip.open(path, "rt", newline="") as file:
        for cells in csv.DictReader(file):
            values = {name: cell if name in TEXTS else json.loads(cell) for name, cell in cells.items() if cell}
            if folder := values.pop("folder", ""):
                rows = found[folder] = []
            rows.append(_nested(values))
    return found


def _correct(path: Path) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        models, images, packed = arrays["models"].tolist(), arrays["images"].tolist(), arrays["correct"]
    check_shape({"models": models, "images": images}, {"models": [str], "images": [int]})
    if packed.shape != (max(images, default=0), -(-len(models) // 8)):
        raise ValueError(f"{packed.shape} bytes for {len(models)} models")
    bits = np.unpackbits(packed, axis=1, count=len(models)).astype(bool).T
    for model, number, recognised in zip(models, images, bits, strict=True):
        folder, _, name = model.partition("/")
        found.setdefault(folder, {})[name] = recognised[:number]
    return found


def _ends(rows: list[dict]) -> dict[str, dict]:
    """The last row of each stage."""
    return {row["stage"]: row for row in rows}


def _flat(row: dict, prefix: str = "") -> dict[str, str]:
    """A row's cells: {"views": {"zoom": {"top1": 9}}} is a column views.zoom.top1."""
    cells = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells |= _flat(value, f"{prefix}{name}.")
        else:
            cells[prefix + name] = value if name in TEXTS else json.dumps(value)
    return cells


def _nested(cells: dict[str, Any]) -> dict:
    row: dict[str, Any] = {}
    for name, value in cells.items():
        *outer, inner = name.split(".")
        part = row
        for key in outer:
            part = part.setdefault(key, {})
        part[inner] = value
    return row
