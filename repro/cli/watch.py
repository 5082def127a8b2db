"""`python -m repro watch RUN`: follows a run in a terminal, whoever started it: a notebook, mpiexec, a batch system.

Only reads the run's folder (`records`): no torch, no MPI, and nothing that the run could notice. From any machine that sees it.
"""

import importlib
from datetime import UTC, datetime
from pathlib import Path

from repro import ReproError
from repro.jupyter.progress import follow
from repro.paths import RUNS
from repro.run import records
from repro.run.state import duration, find, outcome, pace, recipe_of, trained_by

EARLIER = 10  # rows before the present that are printed


def watch(run: str = "", out: Path | str = RUNS, tensorboard: str = "") -> str:
    """Prints a run's metric rows as they come, until it ends; on a terminal, a bar below them. Returns the outcome.

    `run` and `out` are as for `find`. `tensorboard` is a folder in which a folder of event files is written for the run.
    Raises records.Stopped if the run can be continued, ReproError if it failed.
    """
    folder = find(run, out)
    record = records.read(folder)
    if not run and not trained_by(folder):
        print("no run is being trained now (a run that was just started appears after some seconds); this is the last one")
    begun = f"since {record['start']} on {record['ranks']} rank{'s' * (record['ranks'] > 1)} of {record['host']}"
    print(f"{folder.name}: {recipe_of(record).epochs():.4g} epochs, {begun}", flush=True)
    board = Board(tensorboard, folder, record) if tensorboard else None
    follow(folder, live=False, earlier=EARLIER, board=board)
    now, words = outcome(folder)
    if now == "failed":
        raise ReproError(f"{folder.name} {words}")
    if now != "complete":
        raise records.Stopped(f"{folder.name} {words}")
    began = (datetime.now(UTC) - datetime.fromisoformat(record["start"])).total_seconds()
    return f"{words}, begun {duration(max(0.0, began))} ago: {folder}"


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
            values = {"train/loss": row["train_loss"], "train/top-1 %": 100 * row["train_top1"], "train/rate": row["rate"]}
            if steps := pace(rows[max(0, number - 1) : number + 1], last=1):
                values["images per second"] = steps * self.batch
            if "top1" in row:
                values |= {f"test/top-{k} %": 100 * row[f"top{k}"] / row["images"] for k in (1, 5)}
                values["test/loss"] = row["loss"]
            for name, value in values.items():
                self.writer.add_scalar(name, value, row["step"], walltime=self.start + row["seconds"])
        self.written = max(self.written, len(rows))
        self.writer.flush()
