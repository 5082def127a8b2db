"""`python -m repro watch RUN`: follows a run in a terminal, whoever started it: a notebook, mpiexec, a batch system.

Only reads the run's folder (`records`): no torch, no MPI, and nothing that the run could notice. From any machine that sees it.
"""

import importlib
import time
from datetime import datetime
from pathlib import Path

from repro import ReproError
from repro.jupyter.progress import Line
from repro.paths import RUNS
from repro.run import records
from repro.run.state import duration, find, outcome, recipe_of, state, step_now
from repro.schedule import Recipe

ALONE = 60.0  # seconds without a row after which a run without heartbeats stands still; more if its rows take longer
TOGETHER = 20.0  # seconds without a beat of any rank, likewise
SILENT = 10.0  # seconds without a sign of life after which a rank is frozen: it gives one every two seconds
EARLIER = 10  # rows before the present that are printed


class Pulse:
    """Signs of life of a run, as seen by the clock of the one who looks: machines' clocks need not agree."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.changed: dict[str, tuple[object, float]] = {}  # what is looked at: its last value, and since when it has that

    def look(self, rows: list[dict]) -> str:
        """Returns what is wrong if the run stands still, else "". To be called every second or so, with the run's rows."""
        signs = {path.name: path.read_text().split(" ", 5) for path in self._heartbeats()}
        signs = {rank: sign for rank, sign in signs.items() if len(sign) == 6}  # others are just being written
        longest = max((b["seconds"] - a["seconds"] for a, b in zip(rows, rows[1:])), default=0)
        limit = TOGETHER if signs else max(ALONE, 3 * longest)
        still = min([self._same("rows", len(rows)), *(self._same(f"beats {rank}", sign[1]) for rank, sign in signs.items())])
        silent = {rank for rank, sign in signs.items() if self._same(f"number {rank}", sign[0]) > SILENT}
        if still < limit and not silent:
            return ""
        if not signs:
            return f"no news for {duration(still)}"
        late = sorted(silent or {rank for rank, sign in signs.items() if sign[2] == "0"} or signs, key=int)
        _, _, _, host, process, where = signs[late[0]]
        others = f" and {len(late) - 1} more" if len(late) > 1 else ""
        what = "gives no sign of life" if silent else "computes without progress"
        return f"stands still: rank {late[0]}{others} (process {process} on {host}) {what} at {where.strip()}"

    def _heartbeats(self) -> list[Path]:
        return [path for path in (self.folder / "heartbeats").glob("*") if path.name.isdecimal()]

    def _same(self, name: str, value) -> float:
        """For how many seconds this has had the same value."""
        before, since = self.changed.get(name, (None, 0.0))
        if before != value:
            since = time.monotonic()
            self.changed[name] = value, since
        return time.monotonic() - since


def watch(run: str = "", out: Path | str = RUNS, tensorboard: str = "", interval: float = 1.0) -> str:
    """Prints a run's metric rows as they come, until it ends; on a terminal, a bar below them. Returns what came of it.

    `run` and `out` are as for `find`. `tensorboard` is a folder in which a folder of event files is written for the run.
    `interval` in seconds. Raises records.Stopped if the run can be continued, ReproError if it failed.
    """
    folder = find(run, out)
    record = records.read(folder)
    recipe = recipe_of(record)
    begun = f"since {record['start']} on {record['ranks']} rank{'s' * (record['ranks'] > 1)} of {record['host']}"
    print(f"{folder.name}: {recipe.epochs():.4g} epochs, {begun}", flush=True)
    board = Board(tensorboard, folder, record) if tensorboard else None
    pulse, shown, warned, line = Pulse(folder), 0, "", Line()
    while True:
        now = state(folder)  # before the rows, so that those of the end are read, too
        rows = records.metric_rows(folder)
        for row in rows[shown or max(0, len(rows) - EARLIER) :]:
            line.print(records.describe(row, recipe.epochs()))
        if board:
            board.write(rows)
        shown = len(rows)
        if now != "running":
            break
        wrong = pulse.look(rows)
        if wrong and not warned:
            line.print(wrong)
        elif warned and not wrong:
            line.print("goes on")
        warned = wrong
        line.update(progress(rows, recipe, step_now(folder)) + (f"; {wrong}" if wrong else ""))
        time.sleep(interval)
    line.clear()
    now, words = outcome(folder)
    if now == "failed":
        raise ReproError(f"{folder.name} {words}")
    if now != "complete":
        raise records.Stopped(f"{folder.name} {words}")
    return f"{words}: {folder}"


def progress(rows: list[dict], recipe: Recipe, step: int = 0) -> str:
    """A bar, the epoch, and, by the pace of the last rows, images per second and the time left."""
    last: dict = rows[-1] if rows else {"step": 0, "seconds": 0.0, "stage": "begins"}
    step = max(step, last["step"])
    share = step / recipe.iterations
    text = f"[{'#' * round(20 * share):.<20}] {share:4.0%}  epoch {recipe.epochs(step):.1f} of {recipe.epochs():.4g}"
    before: dict = rows[-6] if len(rows) > 5 else {"step": 0, "seconds": 0.0}
    if rows and last["seconds"] > before["seconds"] and last["step"] > before["step"]:
        pace = (last["step"] - before["step"]) / (last["seconds"] - before["seconds"])
        text += f", {pace * recipe.global_batch:.3g} images/s, about {duration((recipe.iterations - step) / pace)} left"
    return f"{text}  ({last['stage']})"


class Board:
    """Event files for TensorBoard, of a run's metric rows: an earlier call's are replaced by the same numbers."""

    def __init__(self, out: str, folder: Path, record: dict):
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ReproError(
                f"--tensorboard needs the package tensorboard ({error}): "
                "`.venv/bin/uv pip install --python .venv/bin/python tensorboard` installs it"
            ) from error
        self.writer = module.SummaryWriter(str(Path(out) / folder.name), purge_step=0)
        self.batch, self.written = recipe_of(record).global_batch, 0
        self.start = datetime.fromisoformat(record["start"]).timestamp()

    def write(self, rows: list[dict]) -> None:
        """Adds those of the run's rows that are new."""
        for number, row in enumerate(rows[self.written :], start=self.written):
            before = rows[number - 1] if number else {"step": 0, "seconds": 0.0}
            values = {"train/loss": row["train_loss"], "train/top-1 %": 100 * row["train_top1"], "train/rate": row["rate"]}
            if row["seconds"] > before["seconds"]:
                pace = (row["step"] - before["step"]) / (row["seconds"] - before["seconds"])
                values["images per second"] = pace * self.batch
            if "top1" in row:
                values |= {f"test/top-{k} %": 100 * row[f"top{k}"] / row["images"] for k in (1, 5)}
                values["test/loss"] = row["loss"]
            for name, value in values.items():
                self.writer.add_scalar(name, value, row["step"], walltime=self.start + row["seconds"])
        self.written = max(self.written, len(rows))
        self.writer.flush()
