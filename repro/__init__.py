"""Large-minibatch SGD by synchronous allreduce, and the Collapsed Ensemble, after Codreanu, Podareanu and Saletore (2017).

Start reading in `train.py`: it is the algorithm, top to bottom. `schedule.py` and `recipes.py` say what it trains,
`data.py` and `model.py` on what. Importing this package loads neither torch nor MPI.
"""

import difflib
import importlib

__version__ = "0.2.0"


class ReproError(Exception):
    """An error that the user can fix: its message says what was found and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: the message, without the frames that led to it."""
        return [str(self), *getattr(self, "__notes__", [])]


def runs(out=None):
    """All runs in the folder `out` (default: results/runs) as two tidy tables, (runs, evaluations): see `repro.tidy.runs`."""
    tidy = importlib.import_module("repro.tidy")  # here, since it loads pandas
    return tidy.runs(out) if out else tidy.runs()


def choose(kind: str, value, choices):
    """Return `value` if it is one of `choices`; otherwise raise an error that names the nearest and lists all."""
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ReproError(f"unknown {kind} {value!r}.{meant} There are: {', '.join(map(str, choices))}.")


def whole_number(name: str, value, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return `value` if it is a whole number from `least` to `most`; otherwise raise an error that says so."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        upper = "" if most == 2**63 - 1 else f" and at most {most}"
        raise ReproError(f"{name} is {value!r}: it must be a whole number, at least {least}{upper}")
    return value
