"""The notebooks as the site shows them: with their outputs where these can be had without training.

The notebooks that only read and draw are run on the reference run, once, into docs/_build, and show the parameters that they
were given. The others are shown as they are, with a sentence that says so. What `make reproduce` left in results/notebooks is
not shown: it may be of any profile, and the site is to say the same wherever it is built.
"""

from pathlib import Path

import nbformat

from repro.jupyter import notebooks
from repro.paths import REFERENCE, RESULTS, ROOT

BUILD = ROOT / "docs" / "_build" / "notebooks"
RUNS = str(REFERENCE / "runs")
DRAWING = {  # notebooks that only read and draw, and their parameters; what they write goes into the build
    "01-recipes": {"results": str(BUILD)},
    "20-tables": {"runs": RUNS, "results": str(BUILD)},
    "21-figures": {"runs": RUNS, "results": str(BUILD)},
}
NOT_RUN = "*This notebook trains, so it is shown here without its outputs: `make lab` opens it.*"


def replace(app, name: str, source: list[str]) -> None:
    """Sphinx's `source-read`: replaces a notebook's text by that of its executed copy."""
    folder, _, notebook = name.rpartition("/")
    if folder == "notebooks":
        source[0] = shown(notebook)


def shown(name: str) -> str:
    """The notebook of this name as JSON, with its outputs or the sentence that says why it has none."""
    source, copy = notebooks.FOLDER / f"{name}.ipynb", BUILD / f"{name}.ipynb"
    if name not in DRAWING:
        notebook = nbformat.read(source, as_version=4)
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_RUN))
        return nbformat.writes(notebook)
    if not copy.exists() or copy.stat().st_mtime < newest(source):
        notebooks.execute(name, DRAWING[name], copy, timeout=600)
    return copy.read_text().replace(f"{ROOT}/", "")


def newest(source: Path) -> float:
    """When anything that a drawing notebook shows was last changed."""
    inputs = [source, *(ROOT / "repro").rglob("*.py"), *(path for path in RESULTS.glob("reference/**/*") if path.is_file())]
    return max(path.stat().st_mtime for path in inputs)
