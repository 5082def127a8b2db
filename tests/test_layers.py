"""Which room may import which, read from the syntax trees; and what costs an import of torch."""

import ast
from graphlib import TopologicalSorter

import pytest

from conftest import ROOT, python

GROUND = {"repro", "repro.paths", "repro.limits", "repro.schedule"}  # every room may import them
METHOD = {"repro", "repro.ranks", "repro.run", "repro.images", "repro.recipes"}  # the files of repro/ itself, and its rooms
ROOMS = {  # the rooms that a room may import, besides itself and the ground
    "repro.ranks": set(),
    "repro.run": set(),
    "repro.images": {"repro.ranks"},
    "repro.recipes": {"repro.run"},
    "repro.baselines": {"repro"},
    "repro": METHOD,
    "repro.jupyter": METHOD,
    "repro.scaling": METHOD,
    "repro.paper": METHOD | {"repro.jupyter", "repro.scaling"},
    "repro.cli": METHOD | {"repro.jupyter", "repro.scaling", "repro.paper"},
    "data_prep": {"repro.images"},
    "bench": METHOD | {"repro.jupyter", "repro.scaling", "repro.paper", "data_prep"},
}
PACKING_MAY_USE = {"repro.images.packed", "repro.images.ahead"}  # no training code
WITHOUT_TORCH = [
    "schedule",
    "paths",
    "limits",
    "recipes",
    "ranks.stop",
    "ranks.watchdog",
    "ranks.memory",
    "ranks.start",
    "ranks.threads",
    "run.identity",
    "run.records",
    "run.kept",
    "run.shapes",
    "run.trained",
    "run.state",
    "images.packed",
    "images.ahead",
    "jupyter.engines",
    "jupyter.guard",
    "jupyter.client",
    "jupyter.mine",
    "jupyter.notebooks",
    "jupyter.progress",
    "jupyter.curves",
    "scaling.steptime",
    "paper.choice",
    "scaling.accuracy",
    "paper.plan",
    "paper.profiles",
    "paper.statistics",
    "paper.ask",
    "paper.tables",
    "paper.figures",
    "paper.report",
    "paper.reproduce",
    "cli.arguments",
    "cli.watch",
    "cli.doctor",
    "cli.commands",
    "cli.results",
]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for room in ROOMS for path in sorted(ROOT.glob(f"{room.replace('.', '/')}/*.py"))}


def room_of(name):
    return name if name in ROOMS else name.rpartition(".")[0]


def imported(path):
    """The dotted names that a file imports anywhere in it: `from repro import train` gives repro.train."""
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


def test_every_folder_of_the_package_is_a_room():
    assert {f"repro.{path.parent.name}" for path in ROOT.glob("repro/*/*.py")} == {room for room in ROOMS if "repro." in room}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"repro.__main__"}))
def test_a_module_imports_only_from_the_rooms_that_its_own_may_see(name):
    others = set(of_the_project(name)) - GROUND
    assert {room_of(other) for other in others} - ROOMS[room_of(name)] <= {room_of(name)}


def test_nothing_imports_the_baselines():
    """They are loaded by name, so each can be removed with its recipes and questions. Nor do they import one another: a rule's
    source, which identifies a run, is that of its own file (`own.source_digest`)."""
    assert not [name for name in MODULES for other in of_the_project(name) if room_of(other) == "repro.baselines"]


def test_only_the_program_imports_the_command_line():
    importers = {name for name in MODULES if any(room_of(other) == "repro.cli" for other in of_the_project(name))}
    assert {name for name in importers if room_of(name) != "repro.cli"} == {"repro.__main__"}


def test_there_is_no_circle_of_imports():
    TopologicalSorter({name: set(of_the_project(name)) - {name} for name in MODULES}).prepare()  # raises CycleError


@pytest.mark.parametrize("package, importer", [("mpi4py", "repro.ranks.comm"), ("ipyparallel", "repro.jupyter.engines")])
def test_one_module_imports(package, importer):
    assert [name for name, path in MODULES.items() if any(n.split(".")[0] == package for n in imported(path))] == [importer]


def test_data_preparation_needs_no_training_code():
    for name in MODULES:
        if room_of(name) == "data_prep":
            others = {other for other in of_the_project(name) if room_of(other) != "data_prep"}
            assert others <= PACKING_MAY_USE | GROUND, name


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
