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
from repro.run.records import saved_step
from repro.run.shapes import recipe_of

FROZEN = 10.0  # seconds without a sign of life after which a rank is frozen: it gives one every two seconds
STILL = 20.0  # seconds without progress after which a run stands still; more if it has taken longer before
UNSEEN = 60.0  # the same for a run whose ranks have given no sign of life at all
LOST = 600.0  # seconds without any sign after which a run on another machine counts as ended


def find(run: str = "", out: Path | str = RUNS) -> Path:
    """The folder of a run: `run` is its path or its name in `out`.

    By default it is the one in `out` that was begun last of those that are being trained, or else of all.
    """
    for place in (Path(run), ROOT / run) if run else ():
        if (place / "run.json").is_file():
            return place
    known = sorted(Path(out).glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not known:
        raise ReproError(f"there are no runs in {out}: `python -m repro train` makes one; --out names another folder")
    if run:
        return Path(out) / choose("run", run.rstrip("/").rpartition("/")[2], [path.parent.name for path in known])
    trained = [path.parent for path in known if trained_by(path.parent)]  # a run that has ended has a newer run.json
    return max(trained, key=lambda folder: records.read(folder)["start"], default=known[0].parent)


def state(folder: Path) -> str:
    """complete, stopped, failed, running, or killed: recorded as running, but its process on this machine is gone."""
    recorded = records.read(folder).get("status", "running")
    owner = re.fullmatch(r"process (\d+) on (.*)\n?(.*)", _text(folder / "lock"))
    if recorded == "running" and owner and owner[2] == platform.node() and not _lives(int(owner[1]), owner[3]):
        return "killed"
    return recorded


def trained_by(folder: Path) -> str:
    """The process that trains a run, such as "process 12 on node3"; "" if none does.

    Whether a process on another machine still lives is not known: see `living` and `Pulse.over`.
    """
    owner = _owner(folder)
    return owner if owner and state(folder) == "running" and (folder / "run.json").exists() else ""


def elsewhere(folder: Path) -> bool:
    """Whether a run is trained on another machine."""
    owner = trained_by(folder)
    return bool(owner) and not owner.endswith(f" on {platform.node()}")


def living(folders: list[Path]) -> list[Path]:
    """Those whose runs are being trained; what other machines train is known by its signs of life, in `FROZEN` seconds."""
    pulses = {folder: Pulse(folder) for folder in folders if elsewhere(folder)}
    deadline = time.monotonic() + FROZEN
    while not all(pulse.lives for pulse in pulses.values()) and time.monotonic() < deadline:
        for folder, pulse in pulses.items():
            pulse.look(records.metric_rows(folder))
        time.sleep(0.2)
    return [folder for folder in folders if trained_by(folder) and (folder not in pulses or pulses[folder].lives)]


class Pulse:
    """Signs of life of a run, timed by the observer's clock: those of two machines need not agree."""

    def __init__(self, folder: Path):
        self.folder, self.signs = folder, {}  # signs: the last one of each rank, as `ranks.watchdog` writes it
        self.since: dict[str, tuple[object, float]] = {}  # what is looked at: its last value, and since when it has had that
        self.lives = False  # whether anything has changed since the first look
        self.still = self.longest = 0.0  # seconds without progress: now, and at the most

    def look(self, rows: list[dict]) -> str:
        """Returns what is wrong if the run stands still, else "". To be called every second or so, with the run's rows."""
        files = [path for path in (self.folder / "heartbeats").glob("*") if path.name.isdecimal()]
        found = {path.name: _text(path).split(" ", 5) for path in files}  # one may be gone, or just being written
        self.signs = {rank: sign if len(sign) == 6 else self.signs.get(rank) for rank, sign in found.items()}
        self.signs = {rank: sign for rank, sign in self.signs.items() if sign}
        beats = sorted((rank, sign[1]) for rank, sign in self.signs.items())
        before, self.still = self.still, self._same("progress", (len(rows), beats))
        if self.still < before:
            self.longest = max(self.longest, before)
        silent = {rank for rank, sign in self.signs.items() if self._same(rank, sign[0]) > FROZEN}
        if not silent and self.still < max(STILL if self.signs else UNSEEN, 3 * self.longest):
            return ""
        if not self.signs:
            return f"no news for {duration(self.still)}"
        late = sorted(silent or {rank for rank, sign in self.signs.items() if sign[2] == "0"} or self.signs, key=int)
        _, _, _, host, process, where = self.signs[late[0]]
        others = f" and {len(late) - 1} more" if len(late) > 1 else ""
        what = "gives no sign of life" if silent else "computes without progress"
        return f"stands still: rank {late[0]}{others} (process {process} on {host}) {what} at {where.strip()}"

    def over(self) -> bool:
        """Whether the run is no longer trained, as far as can be seen from here."""
        newest = max((since for _, since in self.since.values()), default=time.monotonic())
        return not trained_by(self.folder) or elsewhere(self.folder) and time.monotonic() - newest > LOST

    @property
    def step(self) -> int:
        """The number of steps that the ranks have done; 0 if unknown."""
        found = [re.search(r"step (\d+) of ", sign[5]) for sign in self.signs.values()]
        return max((int(match[1]) - 1 for match in found if match), default=0)

    def _same(self, name: str, value) -> float:
        """For how many seconds this has had the same value."""
        before, since = self.since.get(name, (None, 0.0))
        if before != value:
            self.lives = self.lives or before is not None
            since = time.monotonic()
            self.since[name] = value, since
        return time.monotonic() - since


def _lives(number: int, began: str) -> bool:
    # The lock itself is not tried: a run that is starting at that moment would believe that another process trains it.
    with suppress(psutil.NoSuchProcess, OSError):
        same = began in ("", records.started(number))  # otherwise another process has got its number
        return same and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False


def _owner(folder: Path) -> str:
    return _text(folder / "lock").partition("\n")[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")  # a failing disk or another program may have left anything
    except OSError:
        return ""


def outcome(folder: Path) -> tuple[str, str]:
    """The `state` of a run that is no longer trained, and its outcome in words."""
    record, now = records.read(folder), state(folder)
    if now == "complete":
        return now, f"complete: {attained(folder)} in {duration(record['seconds'])}"
    recipe, rows, saved = recipe_of(record), records.metric_rows(folder), saved_step(folder)
    last = max(saved, rows[-1]["step"] if rows else 0)
    at = f"at epoch {recipe.epochs(last):.4g} of {recipe.epochs():.4g}"
    start = f"from epoch {recipe.epochs(saved):.4g}" if saved else "from the start"
    again = f"the command that started it continues it{'' if saved == last else ' ' + start}"
    if now == "failed":
        return now, f"failed {at}: {record['error']}; {again}"
    owner = _owner(folder) or "no process has its lock"
    how = {"stopped": "stopped", "killed": f"was killed ({owner} is gone)"}.get(now, f"gives no sign of life ({owner})")
    return now, f"{how} {at}; {again}"


def attained(folder: Path) -> str:
    """The result of a complete run in words, such as "top-1 84.66%"; of an ensemble not yet evaluated, each member's."""
    run = records.read(folder)
    result = records.result(folder, run)
    members = recipe_of(run).result
    ends = [result] if result else [run["ends"][stage] for stage in members]
    top1 = ", ".join(f"{100 * end['top1'] / end['images']:.2f}" for end in ends)
    whose = "" if len(members) == 1 else f" (ensemble of {len(members)})" if result else " (members, not yet averaged)"
    return f"top-1 {top1}%{whose}"


def pace(rows: list[dict], last: int) -> float:
    """Steps per second over the last rows of a run, by its own clock; 0 if unknown."""
    start = {"step": 0, "seconds": 0.0}
    begin, end = rows[-last - 1] if len(rows) > last else start, rows[-1] if rows else start
    steps, seconds = end["step"] - begin["step"], end["seconds"] - begin["seconds"]
    return steps / seconds if steps > 0 and seconds > 0 else 0.0


def left(work: float, pace: float, more: float = 0.0) -> str:
    """How long the work takes at this pace, plus `more` seconds, such as ", about 5 minutes left"; "" if that is unknown."""
    seconds = work / pace + more if pace else 0.0
    return f", about {duration(seconds)} left" if seconds else ""


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
