"""Large-minibatch SGD by synchronous allreduce, and the Collapsed Ensemble, after Codreanu, Podareanu and Saletore (2017).

Start reading in `train.py`: it is the algorithm, top to bottom. `schedule.py` and `recipes.py` say what it trains,
`data.py` and `model.py` on what. Importing this package loads neither torch nor MPI.
"""

import difflib

__version__ = "0.2.0"


class ReproError(Exception):
    """An error that the user can fix: its message says what was found and what to do next."""


def choose(kind: str, value, choices):
    """Return `value` if it is one of `choices`; otherwise raise an error that names the nearest and lists all."""
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ReproError(f"unknown {kind} {value!r}.{meant} There are: {', '.join(map(str, choices))}.")
