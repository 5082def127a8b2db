"""Source notebooks are clean and uniform; the runner lets none pass that did not run to its end."""

import ast
import shutil
import subprocess
import sys

import nbformat
import pytest

from repro import ReproError, notebooks

SOURCES = sorted(notebooks.FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in SOURCES]


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_all_are_there():
    assert NAMES == [
        "00-start-here",
        "01-recipes",
        "02-from-archives",
        "10-train",
        "11-scaling",
        "12-collapsed-ensemble",
        "20-tables",
        "21-figures",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_source_carries_no_outputs(path):
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(path))


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_opens_with_title_imports_parameters_check_and_ends_with_the_mark(path):
    everything = nbformat.read(path, as_version=4).cells
    assert everything[0].cell_type == "markdown" and everything[0].source.startswith("# ")
    assert "**Writes:**" in everything[0].source
    assert everything[2].metadata.get("tags") == ["parameters"]
    assert everything[3].source.startswith("notebooks.check_parameters()")
    assert everything[-1].source.endswith("notebooks.complete()")
    assert all("# " in line for line in everything[2].source.splitlines())
    assert notebooks.declared(everything[2].source)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_cells_are_short(path):
    for cell in cells(path):
        ast.parse(cell.source.replace(";", ""))
        if "parameters" not in cell.metadata.get("tags", []):  # which are a list
            assert len(cell.source.splitlines()) <= 14, cell.source


# --- Parameters -------------------------------------------------------------------------------------------------------
KNOWN = {"seed": ("int", 0), "data": ("str", "digits"), "live": ("bool", True), "rate": ("float", 0.1)}


@pytest.mark.counts_for("parameters")
def test_a_misspelt_parameter_says_what_was_meant():
    with pytest.raises(ReproError, match="unknown parameter 'sed'. Did you mean seed?"):
        notebooks.check({"sed": 1}, KNOWN)


@pytest.mark.counts_for("parameters")
@pytest.mark.parametrize("parameters", [{"seed": "1"}, {"seed": True}, {"seed": 1.5}, {"data": 3}, {"live": 1}])
def test_a_mistyped_parameter_is_refused(parameters):
    with pytest.raises(ReproError, match="must be of type"):
        notebooks.check(parameters, KNOWN)


def test_fitting_parameters_pass():
    notebooks.check({"seed": 1, "data": "x", "live": False, "rate": 1}, KNOWN)


# --- Nothing is falsely green -----------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks with one, `trial`, whose middle cell the test writes."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)

    def write(middle: str) -> None:
        new = nbformat.v4
        parameters = new.new_code_cell("seed: int = 0  # help", metadata={"tags": ["parameters"]})
        book = new.new_notebook(
            cells=[
                new.new_code_cell("from repro import notebooks"),
                parameters,
                new.new_code_cell("notebooks.check_parameters()"),
                new.new_code_cell(middle),
                new.new_code_cell("notebooks.complete()"),
            ],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(book, tmp_path / "trial.ipynb")

    return write


def test_a_notebook_that_runs_through_passes(folder, tmp_path):
    folder("print(seed)")
    output = notebooks.execute("trial", {"seed": 7}, tmp_path / "out" / "trial.ipynb")
    assert any("7" in str(cell.outputs) for cell in cells(output))
    assert not output.with_suffix(".failed.ipynb").exists()


@pytest.mark.counts_for("green")
@pytest.mark.parametrize(
    "middle",
    [
        "raise ValueError('broken')",
        "import sys; sys.exit(0)",
        pytest.param("import sys; sys.exit(1)", marks=pytest.mark.slow),
        pytest.param("import os; os._exit(0)", marks=pytest.mark.slow),
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", marks=pytest.mark.slow),
    ],
    ids=["raise", "exit0", "exit1", "kernel-exit", "kernel-killed", "kernel-terminated"],
)
def test_a_notebook_that_does_not_reach_its_end_fails_and_keeps_the_last_good_copy(folder, tmp_path, middle):
    folder(middle)
    output = tmp_path / "out" / "trial.ipynb"
    output.parent.mkdir()
    output.write_text("the last good copy")
    with pytest.raises(notebooks.NotebookError, match="trial"):
        notebooks.execute("trial", {}, output)
    assert output.read_text() == "the last good copy"
    assert output.with_suffix(".failed.ipynb").exists()


@pytest.mark.counts_for("green")
def test_a_cell_that_takes_too_long_fails(folder, tmp_path):
    folder("import time; time.sleep(60)")
    with pytest.raises(notebooks.NotebookError, match="trial failed: .*imeout"):
        notebooks.execute("trial", {}, tmp_path / "out" / "trial.ipynb", timeout=2)


@pytest.mark.counts_for("green")
def test_a_full_disk_fails_and_keeps_the_last_good_copy(folder, tmp_path):
    """The disk is a small one of our own: its namespace, and all in it, ends with the shell."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount (unshare -rm): no disk can be made full")
    folder("print('x' * 1_000_000)")
    (tmp_path / "out").mkdir()
    code = (
        "import sys; from pathlib import Path; from repro import notebooks; notebooks.FOLDER = Path(sys.argv[1])\n"
        "output = Path(sys.argv[1], 'out', 'trial.ipynb'); output.write_text('good')\n"
        "try: notebooks.execute('trial', {}, output)\n"
        "except notebooks.NotebookError as error: print(output.read_text(), error)"
    )
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            'mount -t tmpfs -o size=100k tmpfs "$0/out"; "$@"',
            tmp_path,
            sys.executable,
            "-c",
            code,
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("good notebook trial failed") and "No space left" in done.stdout, done.stdout + done.stderr


@pytest.mark.counts_for("green", cases=2)
def test_wrong_parameters_are_refused_before_the_first_cell(folder, tmp_path):
    folder("open('ran', 'w')")
    for parameters in ({"sed": 1}, {"seed": "1"}):
        with pytest.raises(ReproError):
            notebooks.execute("trial", parameters, tmp_path / "out" / "trial.ipynb")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_papermill_by_hand_with_a_misspelt_parameter_fails_too(folder, tmp_path):
    folder("print(seed)")
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "trial.ipynb", "out.ipynb", "-p", "sed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and "Did you mean seed?" in done.stderr
