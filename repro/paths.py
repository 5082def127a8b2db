"""The project's folders; files that are either complete or absent; and the shape that a JSON file must have. No torch."""

import errno
import json
import os
import re
import secrets
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from repro import ReproError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
RESULTS = ROOT / "results"
RUNS = RESULTS / "runs"
PUBLISHED = RESULTS / "published"
REFERENCE = RESULTS / "reference"
LONGEST_TEMPORARY = 60  # bytes: of the 108 that the path of a Unix socket may have, MPI's and Jupyter's names take up to 45

FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up: free some space",
    errno.EROFS: "the disk is read-only: choose another one with --out, or mount it for writing",
    errno.EFBIG: "it exceeds this shell's limit on the size of files (ulimit -f): raise it",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOENT: "its folder has been deleted: find out what deletes it",
}


def given(path: Path | str) -> Path:
    """The absolute path that a user means: `~` is their home, and a symbolic link keeps its name, which may be a data set's."""
    return Path(os.path.expanduser(path)).absolute()


@contextmanager
def named(path: Path | str):
    """Context for writing `path`: an OSError becomes a ReproError that names the file and what to do."""
    try:
        yield
    except OSError as error:
        fix = FIXES.get(error.errno or 0, "check that folder and its disk")
        raise ReproError(f"{path} cannot be written ({error}): {fix}, then run the same command again") from error


@contextmanager
def replacing(path: Path | str):
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path` in one step.

    Raises ReproError if the disk is full or read-only or the folder was deleted; an existing file at `path` is then unchanged.
    """
    path = Path(path)
    with named(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.open("x").close()  # with the permissions that the umask allows; tempfile's would always be 0600
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_temporary(folder: Path) -> None:
    """Removes what `replacing` left in a folder, and in those below, when its process was killed. Nothing may write there."""
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name):
            path.unlink(missing_ok=True)


def writable_folder(path: Path | str) -> Path:
    """Returns the folder, created if it is missing; raises ReproError if nothing can be written there."""
    path = Path(os.path.expanduser(path))
    try:
        path = path.resolve()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:  # a circle of symbolic links is a RuntimeError before Python 3.13
        reason = getattr(error, "strerror", None) or error
        raise ReproError(f"cannot write to the folder {path} ({reason}): choose another one with --out") from error
    return path


def folder_of_sockets() -> str:
    """Where folders for sockets are made: the folder of temporary files, or /tmp if its path is too long for that."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= LONGEST_TEMPORARY else "/tmp"


def check_checkout(folder: Path) -> None:
    """Raises ReproError if the program that runs is in this folder of another checkout, as in a copy made with its .venv."""
    other = folder.resolve().parent
    if other != ROOT and (other / "repro" / "paths.py").is_file():
        raise ReproError(
            f"this is in {other}, but its Python, {sys.executable}, uses {ROOT}: a .venv works only where it was made, so "
            f"remove the copy (rm -r .venv) and call make setup in {other}"
        )


def is_name(text: str) -> bool:
    """Whether a text can name a file or folder and leads nowhere else."""
    return text == Path(text).name and text not in ("", "..")


NUMBER = (int, float)
WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def check_shape(value, shape, name: str = "it") -> None:
    """Raises ValueError unless `value`, as JSON gives it, has this shape; the message calls it `name`.

    A shape is a type or a tuple of types, {key: shape} for the keys that an object must have (it may have others),
    {str: shape} if all its values are such, or [shape] for a list of such. True is no whole number, as it is none in JSON.
    """
    kinds = shape if isinstance(shape, tuple) else (type(shape) if isinstance(shape, (dict, list)) else shape,)
    if type(value) not in kinds:
        said = WORDS[type(value)] if isinstance(value, (dict, list)) else repr(value)[:50]
        raise ValueError(f"{name} is {said}, not {' or '.join(WORDS[kind] for kind in kinds)}")
    if isinstance(shape, dict):
        for wanted, part in shape.items():
            for key in value if wanted is str else [wanted]:
                if key not in value:
                    raise ValueError(f"{key} is missing in {name}")
                check_shape(value[key], part, key if name == "it" else f"{name}.{key}")
    elif isinstance(shape, list):
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{name}[{number}]")


def checked(value, shape, place: Path | str, otherwise: str, name: str = "it"):
    """Returns `value` if it has this shape (`check_shape`); otherwise raises ReproError, which names where it comes from."""
    try:
        check_shape(value, shape, name)
    except ValueError as error:
        raise ReproError(f"{place} is damaged ({error}): {otherwise}") from error
    return value


def read_json(path: Path, shape, otherwise: str):
    """What a JSON file holds, in this shape; None if there is no such file. Raises ReproError that names the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise ReproError(f"{path} is damaged ({error}): {otherwise}") from error
    return checked(value, shape, path, otherwise)
