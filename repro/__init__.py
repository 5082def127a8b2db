"""Large-minibatch SGD by synchronous allreduce, and the Collapsed Ensemble, after Codreanu, Podareanu and Saletore (2017).

Start with `schedule.py`, which says what is trained, then `train.py`, which is the algorithm, top to bottom. `recipes/` has the
recipes, `images/` and `model.py` the data and the models. Importing this package loads neither torch nor MPI.
"""

import difflib
import importlib
import io
import sys

from repro.limits import cores as cores

__version__ = "0.2.0"

MANY = 40  # choices, such as the recipes, are too many to list in an error


class ReproError(Exception):
    """An error that the user can fix: its message states what is wrong and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the message, without the traceback."""
        return [str(self), *getattr(self, "__notes__", [])]


def runs(out=None):
    """Return all runs in the folder `out` (default: results/runs) as two tidy tables (runs, evaluations), see `tidy.runs`."""
    tidy = importlib.import_module("repro.run.tidy")  # imported here because it loads pandas
    return tidy.runs(out) if out else tidy.runs()


def models(out=None):
    """Return all models of the complete runs in `out` (default: results/runs) as a tidy table, see `paper.tables.models`."""
    tables, paths = (importlib.import_module(f"repro.{name}") for name in ("paper.tables", "paths"))
    return tables.models(out or paths.RUNS)


def ask(questions, seeds, **parameters):
    """Train what questions of your own need, and return their answers as a tidy table, see `paper.ask.ask`."""
    return importlib.import_module("repro.paper.ask").ask(questions, seeds, **parameters)


def __getattr__(name):
    """`repro.Question` and `repro.Side`, of which the questions for `ask` are made: loaded when asked for, with pandas."""
    if name in ("Question", "Side"):
        return getattr(importlib.import_module("repro.paper.answering"), name)
    raise AttributeError(f"module 'repro' has no attribute {name!r}")


def live(folder=None) -> None:
    """In a notebook, follow a run that any process trains until it ends (default: in results/runs), see `progress.live`."""
    progress = importlib.import_module("repro.jupyter.progress")
    progress.live(folder) if folder else progress.live()


def load(file, model: str = ""):
    """Return the model in a file that `python -m repro export` wrote, ready for evaluation, see `export.load`."""
    return importlib.import_module("repro.export").load(file, model)  # imported here because it loads torch


def choose(kind: str, value, choices):
    """Return `value` if it is one of `choices`; otherwise raise an error that suggests the closest one.

    The error also lists all of them; of more than `MANY`, those that are close, if any are.
    """
    choices = list(choices)
    if value in choices:
        return value
    names = [str(choice) for choice in choices]
    closest = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    letters, number = _split(str(value))
    # resnet49: not resnet34, which shares more signs; but batch_3276 lacks one of batch_32768
    if closest and letters == _split(closest[0])[0] != closest[0] and not closest[0].startswith(str(value)):
        closest = [min((name for name in names if _split(name)[0] == letters), key=lambda name: abs(_split(name)[1] - number))]
    suggestion = f" Did you mean {closest[0]}?" if closest else ""
    if closest and len(names) > MANY:
        near = difflib.get_close_matches(str(value), names, n=8, cutoff=0.5)
        raise ReproError(f"unknown {kind} {value!r}.{suggestion} Of all {len(names)}, these are close: {', '.join(near)}.")
    raise ReproError(f"unknown {kind} {value!r}.{suggestion} Choose one of: {', '.join(names)}.")


def _split(name: str) -> tuple[str, int]:
    """A name without the digits in which it ends, and their number; 0 if there are none."""
    letters = name.rstrip("0123456789")
    return letters, int(name[len(letters) :] or 0)


def whole_number(name: str, value, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return `value` if it is an integer from `least` to `most`; otherwise raise an error that says so."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        told = most < 2**63 - 1 or isinstance(value, int) and value > most
        upper = f" and at most {most}" if told else ""
        raise ReproError(f"{name} is {value!r}: it must be a whole number, at least {least}{upper}")
    return value


def print_any_text() -> None:
    """Lets standard output and error take any text: what their encoding lacks is printed as \\xe9, for example."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be closed, or a notebook's
            stream.reconfigure(errors="backslashreplace")
