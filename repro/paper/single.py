"""One table or figure, made by the lines of a notebook that it needs: in seconds, while all of them take a minute."""

import ast
import json
from pathlib import Path

from repro import ReproError, choose, notebooks, records
from repro.paper.tables import runs_or_reference
from repro.paths import RESULTS

NOTEBOOKS = "20-tables", "21-figures", "01-recipes"  # those that only read and draw; if two make the same, the first does


def make(kind: str, name: str, results: Path = RESULTS, **parameters) -> list[Path]:
    """Writes one of the "tables" or "figures" into `results`, from the runs there or, without any, from the reference's.

    `parameters` are those of the notebook that makes it, such as data="letters". Returns the files.
    """
    known = names(kind)
    lines = statements(notebook := known[choose(kind.removesuffix("s"), name, known)])
    last = next(number for number, line in enumerate(lines) if (kind, name) in _saved(line))
    runs = results / "runs"
    values = {"runs": str(runs_or_reference(str(runs) if records.complete_runs(runs) else "")), "results": str(results)}
    _set(lines, values | parameters)
    program = ast.Module(needed(lines[: last + 1]), type_ignores=[])
    exec(compile(program, f"{notebook}.ipynb", "exec"), {})
    return sorted((results / kind).glob(f"{name}[.-]*"))


def names(kind: str) -> dict[str, str]:
    """The names of all "tables" or "figures" that can be made, each with its notebook."""
    return {
        name: notebook
        for notebook in reversed(NOTEBOOKS)
        for of_kind, name in sorted(set().union(*map(_saved, statements(notebook))))
        if of_kind == kind
    }


def statements(notebook: str) -> list[ast.stmt]:
    """The statements of a notebook's code cells, in order."""
    cells = json.loads((notebooks.FOLDER / f"{notebook}.ipynb").read_text())["cells"]
    return [line for cell in cells if cell["cell_type"] == "code" for line in ast.parse("".join(cell["source"])).body]


def needed(lines: list[ast.stmt]) -> list[ast.stmt]:
    """The last of these statements and those before it that define what it uses, or what they use, in their order.

    Expressions only check or show something. A loop is taken to change whatever it mentions.
    """
    chosen, used = lines[-1:], _names(lines[-1])
    for line in reversed(lines[:-1]):
        loops = isinstance(line, (ast.For, ast.While, ast.With, ast.If))
        if not isinstance(line, ast.Expr) and used & (_names(line) if loops else _names(line, ast.Store)):
            chosen.append(line)
            used |= _names(line)
    return chosen[::-1]


def _names(line: ast.AST, how: type = ast.expr_context) -> set[str]:
    """The names that a statement uses, or, with ast.Store, defines."""
    found = {node.id for node in ast.walk(line) if isinstance(node, ast.Name) and isinstance(node.ctx, how)}
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(line)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    return found | imported


def _saved(line: ast.stmt) -> set[tuple[str, str]]:
    """What a statement saves by `tables.save` or `figures.save`: ("tables" or "figures", name).

    A loop over (name, table) pairs saves all names that it lists.
    """
    found = set()
    for call in ast.walk(line):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("tables.save", "figures.save"):
            pairs = [pair.elts[0] for pair in ast.walk(line) if isinstance(pair, ast.Tuple)]
            for name in [call.args[-1]] if isinstance(call.args[-1], ast.Constant) else pairs:
                if isinstance(name, ast.Constant):
                    found.add((ast.unparse(call.func).removesuffix(".save"), str(name.value)))
    return found


def _set(lines: list[ast.stmt], values: dict) -> None:
    """Gives the notebook's parameters, `name: type = value`, these values; those that it does not have are an error."""
    declared = {line.target.id: line for line in lines if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)}
    for name, value in values.items():
        if name in declared:
            declared[name].value = ast.parse(repr(value), mode="eval").body
        elif name != "runs":  # not every notebook reads runs
            raise ReproError(f"{name} is no parameter here; there are: {', '.join(declared)}")
