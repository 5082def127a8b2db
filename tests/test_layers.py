"""Who may import whom, read from the syntax trees; and what costs an import of torch."""

import ast
from graphlib import TopologicalSorter

import pytest

from conftest import ROOT, python

# The method: the algorithm and what it is made of. It imports nothing else of the project.
METHOD = {
    "repro",
    "repro.paths",
    "repro.schedule",
    "repro.recipes",
    "repro.released",
    "repro.controls",
    "repro.comm",
    "repro.nccl",
    "repro.allreduce",
    "repro.model",
    "repro.graph",
    "repro.resnet",
    "repro.optim",
    "repro.memory",
    "repro.packed",
    "repro.ahead",
    "repro.labels",
    "repro.data",
    "repro.resample",
    "repro.evaluate",
    "repro.checkpoint",
    "repro.records",
    "repro.watch",
    "repro.own",
    "repro.settings",
    "repro.shapes",
    "repro.overlap",
    "repro.replica",
    "repro.journal",
    "repro.train",
}
# A folder's modules import from these folders beside their own; the command line opens all of the package.
FOLDERS = {
    "repro": set(),
    "repro.scaling": {"repro"},
    "repro.paper": {"repro", "repro.scaling"},
    "data_prep": {"repro"},
    "bench": {"repro", "repro.scaling", "repro.paper", "data_prep"},
}
PACKING_MAY_USE = {"repro", "repro.paths", "repro.packed", "repro.ahead", "repro.labels"}  # no training code
WITHOUT_TORCH = [
    "watch",
    "state",
    "monitor",
    "curves",
    "arguments",
    "schedule",
    "recipes",
    "paths",
    "records",
    "shapes",
    "engines",
    "guard",
    "packed",
    "ahead",
    "labels",
    "memory",
    "notebooks",
    "progress",
    "doctor",
    "scaling.steptime",
    "paper.profiles",
    "paper.statistics",
    "paper.tables",
    "paper.figures",
    "paper.report",
    "paper.reproduce",
    "__main__",
]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder.replace('.', '/')}/*.py"))}


def folder_of(name):
    return name if name in FOLDERS else name.rpartition(".")[0]


def imported(path):
    """The dotted names that a file imports anywhere in it: `from repro import data` gives repro.data."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_the_project(name):
    """The project's modules that a module imports; scripts under data_prep/ import one another by their bare names."""
    for found in imported(MODULES[name]):
        while found and found not in MODULES and f"data_prep.{found}" not in MODULES:
            found = found.rpartition(".")[0]
        if found:
            yield found if found in MODULES else f"data_prep.{found}"


def test_the_method_imports_nothing_but_the_method():
    assert {name: set(of_the_project(name)) - METHOD for name in METHOD if set(of_the_project(name)) - METHOD} == {}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"repro.__main__"}))
def test_a_module_imports_only_from_the_folders_that_its_own_may_see(name):
    folder = folder_of(name)
    assert {folder_of(other) for other in of_the_project(name)} - FOLDERS[folder] <= {folder}


def test_there_is_no_circle_of_imports():
    TopologicalSorter({name: set(of_the_project(name)) - {name} for name in MODULES}).prepare()  # raises CycleError


@pytest.mark.parametrize("package, importers", [("mpi4py", ["repro.comm"]), ("ipyparallel", ["repro.engines"])])
def test_one_module_imports(package, importers):
    assert [name for name, path in MODULES.items() if any(n.split(".")[0] == package for n in imported(path))] == importers


def test_data_preparation_needs_no_training_code():
    for name in MODULES:
        if folder_of(name) == "data_prep":
            assert {other for other in of_the_project(name) if folder_of(other) != "data_prep"} <= PACKING_MAY_USE, name


def test_what_needs_no_torch_does_not_load_it():
    there = ["repro", *(f"repro.{name}" for name in WITHOUT_TORCH)]
    code = (
        f"import importlib, sys\nfor name in {there}:\n    importlib.import_module(name)\n"
        "    print(name, *[part for part in ('torch', 'mpi4py.MPI') if part in sys.modules])"
    )
    said = python("-c", code)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == there


def test_no_torch_at_all_is_needed_to_list_recipes_and_rates():
    code = "import sys; sys.modules['torch'] = None; sys.argv[1:] = {}; from repro.__main__ import main; sys.exit(main())"
    for arguments in (["recipes"], ["lr", "one_model", "--steps", "0"]):
        said = python("-c", code.format(arguments))
        assert said.returncode == 0 and said.stdout, said.stderr


def test_training_loads_neither_torchvision_nor_torchs_compiler():
    """Which take longer to load than torch itself."""
    said = python("-c", "import sys, repro.train; print(*{'torchvision', 'torch._dynamo', 'sympy'} & set(sys.modules))")
    assert said.returncode == 0 and said.stdout == "\n", said.stdout + said.stderr
