"""Notebooks, strictly: parameters are checked before anything runs, and only a notebook whose last cell ran passes.

Inside a notebook: `check_parameters` (in the cell after the parameters), `Progress` (a bar and a curve, or lines) and
`complete` (the last cell). Outside: `execute` runs one by papermill.
"""

import ast
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from repro import ReproError, choose
from repro.paths import DATA, ROOT, writable_folder
from repro.records import describe
from repro.schedule import Recipe

FOLDER = ROOT / "notebooks"
MARK = "This notebook ran to its end."


class NotebookError(ReproError):
    """A notebook's parameters are wrong, or it did not run to its end."""


# --- Parameters: `name: type = value  # help` -------------------------------------------------------------------------


def declared(source: str) -> dict:
    """The parameters of a cell: {name: (type name, default)}; raises NotebookError if one is not a literal."""
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign):
            raise NotebookError("a parameters cell holds only lines such as `seed: int = 0  # help`")
        found[node.target.id] = node.annotation.id, ast.literal_eval(node.value)
    return found


def check(parameters: dict, known: dict) -> None:
    """Raises NotebookError if a parameter is unknown (saying what was meant) or of another type than its default."""
    for name, value in parameters.items():
        kind = known[choose("parameter", name, known)][0]
        kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}[kind]
        if not isinstance(value, kinds) or isinstance(value, bool) and kind != "bool":
            raise NotebookError(f"parameter {name} is {value!r}: it must be of type {kind}")


def check_parameters() -> None:
    """In the cell after the parameters: checks what papermill injected, which it does not do itself."""
    cells = [source for source in get_ipython().user_ns["In"] if source.strip()]  # noqa: F821
    if len(cells) < 2 or not cells[-2].startswith("# Parameters\n"):  # the first line of papermill's cell
        return
    injected = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cells[-2]).body}
    check(injected, declared(cells[-3]))


# --- While it runs ----------------------------------------------------------------------------------------------------


def ensure_data(data: str) -> None:
    """Packs the embedded digits if they are asked for and not there yet."""
    if data == "digits" and not all((DATA / "digits" / f"{split}.lmdb").exists() for split in ("train", "test")):
        subprocess.run([sys.executable, str(ROOT / "data_prep" / "digits.py")], check=True)


def ranks_for(recipes: list[Recipe]) -> int:
    """As many ranks as this machine has cores and each of the recipes has workers."""
    return min(cores(), *(recipe.workers for recipe in recipes))


def cores() -> int:
    """Of this machine."""
    return os.cpu_count() or 1


class Progress:
    """Shows a run's metric rows as they come: a curve and a bar that update in place, or one line an epoch."""

    def __init__(self, plan: dict, live: bool):
        """`plan` as `train.plan` gives it; `live` for JupyterLab, False for a log."""
        self.plan, self.live, self.rows = plan, live, []
        if live:
            from IPython.display import display
            from tqdm import tqdm

            # The figure comes first, and the bar below it: text around a figure would be cut into two outputs.
            self.handle = display(self._figure(), display_id=True)
            self.bar = tqdm(total=round(plan["epochs"]), unit="epoch", desc=plan["recipe"], file=sys.stdout)

    def show(self, row: dict) -> None:
        self.rows.append(row)
        if not self.live:
            print(describe(row, self.plan["epochs"]), flush=True)
            return
        self.bar.set_postfix_str(f"{row['stage']}, loss {row['train_loss']:.3f}", refresh=False)
        self.bar.update(round(row["epoch"]) - self.bar.n)
        if "top1" in row:  # drawing takes longer than an epoch of a small run
            self.handle.update(self._figure())

    def _figure(self):
        import matplotlib.pyplot as plt

        tested = [row for row in self.rows if "top1" in row]
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
        left.plot([row["epoch"] for row in self.rows], [row["train_loss"] for row in self.rows])
        left.set(xlabel="epoch", ylabel="training loss", xlim=(0, self.plan["epochs"]))
        right.plot([row["epoch"] for row in tested], [100 * row["top1"] / row["images"] for row in tested], "o-")
        right.set(xlabel="epoch", ylabel="test top-1, %", xlim=(0, self.plan["epochs"]))
        figure.tight_layout()
        plt.close(figure)  # shown by hand
        return figure


def complete() -> None:
    """The last cell of every notebook: its output is what tells a finished notebook from one that died."""
    print(MARK)


# --- From outside -----------------------------------------------------------------------------------------------------


def execute(name: str, parameters: dict, output: Path, log: bool = False, timeout: int | None = None) -> Path:
    """Runs notebooks/`name`.ipynb by papermill into `output`; `log` prints what its cells print.

    A cell may take `timeout` seconds (None: any time). While it runs, and if it fails, the copy is called
    `output`.failed.ipynb; only a notebook whose last cell ran takes the name `output`. Raises NotebookError with the
    failing cell's error.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    source = FOLDER / f"{choose('notebook', name, [path.stem for path in sorted(FOLDER.glob('*.ipynb'))])}.ipynb"
    cells = nbformat.read(source, as_version=4).cells
    known = next((declared(cell.source) for cell in cells if "parameters" in cell.metadata.get("tags", [])), {})
    check(parameters, known)
    writable_folder(output.parent)
    unfinished = output.with_suffix(".failed.ipynb")
    try:
        papermill.execute_notebook(
            str(source),
            str(unfinished),
            parameters,
            cwd=str(FOLDER),
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
            execution_timeout=timeout,
            stdout_file=sys.stdout if log else None,
            config=Config(KernelManager={"transport": "ipc"}),
        )  # not TCP: others could listen
    except PapermillExecutionError as error:
        raise NotebookError(
            f"notebook {name} failed in cell {error.exec_count}: {error.ename}: {error.evalue} (see {unfinished})"
        ) from error
    except Exception as error:
        raise NotebookError(f"notebook {name} failed: {type(error).__name__}: {error} (see {unfinished})") from error
    last = [cell for cell in nbformat.read(unfinished, as_version=4).cells if cell.cell_type == "code"][-1]
    if not any(MARK in output_.get("text", "") for output_ in last.outputs):
        raise NotebookError(f"notebook {name} ended before its last cell (see {unfinished})")
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(output)
    return output


def end_kernels() -> None:
    """Kills the kernels that this process has started: `execute`, in another thread, then raises."""
    import psutil

    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "ipykernel_launcher" in process.cmdline():
                process.kill()
