"""Users' own recipes and models, named as `mine.py:my_net` or `package.module:my_net`."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TypeGuard

from repro import ReproError, choose
from repro.paths import given
from repro.run.identity import meaning


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
    public = [attribute for attribute in vars(module) if not attribute.startswith("_")]
    return getattr(module, choose(f"object in {location}", wanted, public))


def source_digest(name: str) -> str:
    """SHA-256 over the meaning of the file that `name` is loaded from; files that it imports are not included."""
    location = name.rpartition(":")[0]
    if location.endswith(".py"):
        return meaning(_file(location))
    file = getattr(sys.modules.get(location) or importlib.import_module(location), "__file__", None)
    if not file or not file.endswith(".py"):
        raise ReproError(f"{name} is not in a Python file: put it into one, such as mine.py")
    return meaning(Path(file))


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
