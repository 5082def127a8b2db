"""One table or figure: the notebook that makes it is run, and no other."""

import ast
import json
from pathlib import Path

from repro import choose
from repro.jupyter import notebooks
from repro.paper.tables import runs_or_reference
from repro.paths import RESULTS

NOTEBOOKS = "20-tables", "21-figures", "01-recipes"  # those that only read and draw; if two make the same, the first does
READING_RUNS = NOTEBOOKS[:2]


def make(kind: str, name: str, results: Path = RESULTS, runs: Path | str = "", **parameters) -> list[Path]:
    """Writes one of the "tables" or "figures" into `results`, from `runs` (`tables.runs_or_reference`). Returns the files.

    What its notebook makes beside it is written, too. `parameters` are the notebook's, such as data="letters".
    """
    known = names(kind)
    notebook = known[choose(kind.removesuffix("s"), name, known)]
    values: dict = {"results": str(results)}
    if notebook in READING_RUNS:
        values["runs"] = str(runs_or_reference(runs, results))
    notebooks.execute(notebook, values | parameters, results / "notebooks" / f"{notebook}.ipynb")
    return sorted((results / kind).glob(f"{name}[.-]*"))


def names(kind: str) -> dict[str, str]:
    """The names of all "tables" or "figures" that can be made, each with its notebook."""
    return {name: notebook for notebook in reversed(NOTEBOOKS) for of_kind, name in sorted(_saved(notebook)) if of_kind == kind}


def _saved(notebook: str) -> set[tuple[str, str]]:
    """What a notebook saves by `tables.save` or `figures.save`: ("tables" or "figures", name).

    A loop over (name, table) pairs saves all names that it lists.
    """
    cells = json.loads((notebooks.FOLDER / f"{notebook}.ipynb").read_text())["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in ast.parse("".join(cell["source"])).body]
    found = set()
    for line in lines:
        for call in ast.walk(line):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("tables.save", "figures.save"):
                pairs = [pair.elts[0] for pair in ast.walk(line) if isinstance(pair, ast.Tuple)]
                for name in [call.args[-1]] if isinstance(call.args[-1], ast.Constant) else pairs:
                    if isinstance(name, ast.Constant):
                        found.add((ast.unparse(call.func).removesuffix(".save"), str(name.value)))
    return found
