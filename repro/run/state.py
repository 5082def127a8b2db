"""What a run's folder says of the run: which one it is, who trains it, how far it is, how it ended. No torch, no MPI.

Only files are read, so all of it is known in any process, on any machine that sees the folder.
"""

import platform
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil

from repro import ReproError, choose
from repro.paths import ROOT, RUNS
from repro.run import records
from repro.schedule import Recipe, Stage

SILENT = 600.0  # seconds after which a run on another machine counts as ended, if it gives no sign of life


def find(run: str = "", out: Path | str = RUNS) -> Path:
    """The folder of a run: `run` is its path or its name in `out`; by default the one in `out` that was begun last."""
    for place in (Path(run), ROOT / run) if run else ():
        if (place / "run.json").is_file():
            return place
    known = sorted(Path(out).glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not known:
        raise ReproError(f"there are no runs in {out}: `python -m repro train` makes one; --out names another folder")
    names = [path.parent.name for path in known]
    return Path(out) / (choose("run", run.rstrip("/").rpartition("/")[2], names) if run else names[0])


def recipe_of(record: dict) -> Recipe:
    """The recipe that a run's record (`records.read`) has."""
    stages = tuple(Stage(**stage | {"drops": tuple(stage["drops"])}) for stage in record["recipe"]["stages"])
    return Recipe(**record["recipe"] | {"stages": stages})


def state(folder: Path) -> str:
    """complete, stopped, failed, running, or killed: recorded as running, but its process on this machine is gone."""
    recorded = records.read(folder).get("status", "running")
    owner = re.fullmatch(r"process (\d+) on (.*)", _text(folder / "lock"))
    if recorded == "running" and owner and owner[2] == platform.node() and not _lives(int(owner[1]), folder / "lock"):
        return "killed"
    return recorded


def trained_by(folder: Path) -> str:
    """The process that trains a run, such as "process 12 on node3"; "" if none does.

    A process on another machine counts as long as something in the folder is less than `SILENT` seconds old.
    """
    if state(folder) != "running" or not (folder / "run.json").exists():
        return ""
    with suppress(OSError):
        owner = (folder / "lock").read_text()
        signs = [folder / "run.json", folder / "metrics.jsonl", *folder.glob("heartbeats/*")]
        newest = max(sign.stat().st_mtime for sign in signs if sign.exists())
        here = owner.endswith(f" on {platform.node()}")
        return owner if here or time.time() - newest < SILENT else ""
    return ""


def _lives(number: int, lock: Path) -> bool:
    # The lock itself is not tried: a run that is starting at that moment would believe that another process trains it.
    with suppress(psutil.NoSuchProcess, OSError):
        process = psutil.Process(number)
        later = process.create_time() > lock.stat().st_mtime + 1  # another process, which has got its number
        return not later and process.status() != psutil.STATUS_ZOMBIE
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def step_now(folder: Path) -> int:
    """The step that the ranks are at, by their heartbeats; 0 if unknown."""
    found = [re.search(r" step (\d+) of ", _text(path)) for path in (folder / "heartbeats").glob("*")]
    return max((int(match[1]) - 1 for match in found if match), default=0)


def saved_step(folder: Path | str) -> int:
    """The step of a run's newest checkpoint; 0 if there is none."""
    return max((int(path.stem) for path in Path(folder, "checkpoints").glob("*.json") if path.stem.isdecimal()), default=0)


def outcome(folder: Path) -> tuple[str, str]:
    """The `state` of a run that is no longer trained, and what has become of it in words."""
    record, now = records.read(folder), state(folder)
    if now == "complete":
        return now, f"complete: top-1 {100 * record['top1'] / record['images']:.2f}% in {duration(record['seconds'])}"
    recipe, rows, saved = recipe_of(record), records.metric_rows(folder), saved_step(folder)
    last = max(saved, rows[-1]["step"] if rows else 0)
    at = f"at epoch {recipe.epochs(last):.4g} of {recipe.epochs():.4g}"
    start = f"from epoch {recipe.epochs(saved):.4g}" if saved else "from the start"
    again = f"the command that started it continues it{'' if saved == last else ' ' + start}"
    if now == "failed":
        return now, f"failed {at}: {record['error']}; {again}"
    owner = _text(folder / "lock") or "no process has its lock"
    how = {"stopped": "stopped", "killed": f"was killed ({owner} is gone)"}.get(now, f"gives no sign of life ({owner})")
    return now, f"{how} {at}; {again}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
