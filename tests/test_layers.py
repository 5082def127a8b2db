"""Who may import whom, read from the syntax trees; and what costs an import of torch."""

import ast

import pytest
from conftest import ROOT, python

# From the bottom up: a module imports only from the layers under its own. `repro` itself (errors, `choose`) and `paths`
# are under all of them.
LAYERS = [
    {"schedule", "comm", "nccl", "model", "watch", "ahead", "labels", "memory", "scaling", "two_nodes"},
    {"packed", "recipes", "allreduce", "optim", "records", "archives", "stand_in", "engines"},
    {"data", "checkpoint", "notebooks", "tables", "figures", "packing", "staging", "doctor"},
    {"evaluate", "report"},
    {"train", "reproduce", "release"},
    {"probe", "bench_data"},
    {"plan", "bench", "bench_scaling"},
    {"__main__"},
]
LEVEL = {"__init__": -2, "paths": -1} | {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = ["watch", "schedule", "recipes", "paths", "records", "engines", "packed", "ahead", "labels", "memory", "scaling",
                 "two_nodes", "archives", "packing", "stand_in", "tables", "figures", "report", "notebooks", "reproduce",
                 "bench_scaling", "doctor", "__main__"]
MODULES = sorted((ROOT / "repro").glob("*.py"))


def imported(path):
    """The dotted names that a file imports anywhere in it: `from repro import data` gives repro.data."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_the_project(path):
    """The modules of repro that a file imports; a plain `from repro import choose` is of repro itself."""
    for name in imported(path):
        if name == "repro" or name.startswith("repro."):
            second = (name.split(".") + ["__init__"])[1]
            yield second if (ROOT / "repro" / f"{second}.py").exists() else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_from_lower_layers(path):
    assert path.stem in LEVEL, f"{path.name} is in no layer: give it a place in LAYERS"
    assert [name for name in of_the_project(path) if LEVEL[name] >= LEVEL[path.stem]] == []


@pytest.mark.parametrize("package, importers", [("mpi4py", ["comm"]), ("ipyparallel", ["engines"])])
def test_one_module_imports(package, importers):
    assert [path.stem for path in MODULES if any(name.split(".")[0] == package for name in imported(path))] == importers


def test_nothing_imports_the_folder_of_notebooks():
    """`repro.notebooks` is a module of ours; the folder notebooks/ is for readers."""
    assert [path.stem for path in MODULES if any(name.split(".")[0] == "notebooks" for name in imported(path))] == []


def test_data_preparation_needs_no_training_code():
    for path in (ROOT / "data_prep").glob("*.py"):
        assert set(of_the_project(path)) <= {"__init__", "packed", "paths", "packing", "archives", "labels"}, path.name


def test_what_needs_no_torch_does_not_load_it():
    there = [f"repro.{name}" for name in WITHOUT_TORCH if (ROOT / "repro" / f"{name}.py").exists()]
    code = (f"import importlib, sys\nfor name in ['repro', *{there}]:\n    importlib.import_module(name)\n"
            "    print(name, *[part for part in ('torch', 'mpi4py.MPI') if part in sys.modules])")
    said = python("-c", code)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == [f"{name} " .strip() for name in ["repro", *there]]


def test_no_torch_at_all_is_needed_to_list_recipes_and_rates():
    code = "import sys; sys.modules['torch'] = None; sys.argv[1:] = {}; from repro.__main__ import main; sys.exit(main())"
    for arguments in (["recipes"], ["lr", "one_model", "--steps", "0"]):
        said = python("-c", code.format(arguments))
        assert said.returncode == 0 and said.stdout, said.stderr


