"""Where things lie: the project's folders, and writing a file so that it is either whole or not there."""

import os
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


@contextmanager
def replacing(path: Path | str):
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path` in one step."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from a group that shares the folder
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def writable_folder(path: Path | str) -> Path:
    """The folder, made if it is missing; raises ReproError if nothing can be written there."""
    path = Path(path).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ReproError(f"cannot write to the folder {path} ({error.strerror}): choose another with --out") from error
    return path
