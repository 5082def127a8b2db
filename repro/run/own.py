"""Users' own recipes and models, named as `mine.py:my_net` or `package.module:my_net`."""

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TypeGuard

from repro import ReproError, choose
from repro.paths import ROOT, given
from repro.run.identity import meaning

# What is in these folders is no user's: it is part of the training code, or in the record by its version.
INSTALLED = ROOT / "repro", *(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib"))


def is_own(name) -> TypeGuard[str]:
    """Whether a name is the location of a user's object, rather than the name of one of ours.

    Raises ReproError if it names a file and nothing in it.
    """
    if isinstance(name, str) and name.endswith(".py"):
        raise ReproError(f"{name} is a file: name also what is in it, as in {name}:my_recipe or {name}:my_net")
    return isinstance(name, str) and ":" in name


def short(name: str) -> str:
    """The name without the folder that its file is in; one of ours as it is."""
    place, colon, wanted = name.rpartition(":")
    return f"{Path(place).name}:{wanted}" if colon else name


def load(name: str):
    """Loads the object that `mine.py:object` (a path, relative to the working directory) or `module:object` names.

    The file is executed, like any Python program. Raises ReproError if there is no such file, it fails, or lacks the object.
    """
    location, _, wanted = name.rpartition(":")
    try:
        module = _from_file(_file(location)) if location.endswith(".py") else importlib.import_module(location)
    except ReproError:
        raise
    except ModuleNotFoundError as error:
        raise ReproError(f"{name}: {error}. Name a file as mine.py:{wanted}, or a module that Python can import") from error
    except Exception as error:
        raise ReproError(f"{name}: {location} fails when it is imported ({type(error).__name__}: {error}): fix it") from error
    public = {attribute: value for attribute, value in vars(module).items() if not attribute.startswith("_")}
    here = [attribute for attribute, value in public.items() if not _imports(module, value)]
    return public[choose(f"object in {location}", wanted, public if wanted in public else here)]


def _imports(module: ModuleType, value) -> bool:
    """Whether this value of a module's is a module, or a class or function that another one defines."""
    return isinstance(value, ModuleType) or isinstance(value, (type, FunctionType)) and value.__module__ != module.__name__


def source_digest(name: str) -> str:
    """SHA-256 over the meaning of the file that `name` is loaded from, and of the user's own files that it imports.

    Raises ReproError if one of these has changed since this process has imported it: it would compute by the former source.
    """
    location = name.rpartition(":")[0]
    if location.endswith(".py"):
        module, file, known = _from_file(_file(location)), _file(location), []
    else:
        module = sys.modules.get(location) or importlib.import_module(location)
        file = Path(getattr(module, "__file__", None) or "")
        known = [file]
    if file.suffix != ".py":
        raise ReproError(f"{name} is not in a Python file: put it into one, such as mine.py")
    others = _imported(module, file)
    for path in (*known, *others):
        if _meant.setdefault(path, meaning(path)) != meaning(path):
            raise ReproError(
                f"{path} has changed since this process imported it: start the notebook's kernel and engines again"
            )
    first, *rest = map(meaning, (file, *others))
    return hashlib.sha256("\n".join([first, *rest]).encode()).hexdigest() if rest else first


def found(name: str) -> str:
    """The name itself, or, if its file is gone, that of a file of the same name in the working directory, if there is one."""
    place, _, wanted = name.rpartition(":")
    here = Path(place).name
    return f"{here}:{wanted}" if place.endswith(".py") and not given(place).is_file() and Path(here).is_file() else name


_meant: dict[Path, str] = {}  # the meaning of files that this process has imported


def _imported(module: ModuleType, file: Path) -> list[Path]:
    """The files of the user's own modules that a module imports, directly or not, sorted."""
    found, waiting = {file.resolve()}, [(module, file)]
    while waiting:
        importer, path = waiting.pop()
        for name in _names(path, importer.__package__ or ""):
            other = sys.modules.get(name)
            place = Path(getattr(other, "__file__", None) or "/").resolve()
            if other and place.suffix == ".py" and place not in found and not any(map(place.is_relative_to, INSTALLED)):
                found.add(place)
                waiting.append((other, place))
    return sorted(found - {file.resolve()})


def _names(path: Path, package: str) -> Iterator[str]:
    """The full names of all modules that a file may import: of `from a import b`, a and a.b."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield from (part for part in (parent, *(f"{parent}.{alias.name}" for alias in node.names)) if part)


def _file(location: str) -> Path:
    path = given(location)
    if not path.is_file():
        raise ReproError(f"there is no file {path}: name one in the working directory, such as mine.py:my_net")
    return path.resolve()


def _from_file(path: Path):
    """The module of a file, executed again whenever its source has changed."""
    version = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{version}", path)
    assert spec is not None and spec.loader is not None  # for a name that ends in .py, there always is one
    if spec.name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # so that classes of the file know their module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
    return sys.modules[spec.name]
