"""Where things are: the project's folders, and writing a file so that it is either complete or absent."""

import errno
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

FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up: free some space",
    errno.EROFS: "the disk is read-only: choose another one with --out, or mount it for writing",
    errno.ENOENT: "its folder has been deleted: find out what deletes it",
}


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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from a group that shares the folder
            yield Path(name)
            with open(name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def writable_folder(path: Path | str) -> Path:
    """Returns the folder, created if it is missing; raises ReproError if nothing can be written there."""
    path = Path(path)
    try:
        path = path.resolve()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:  # a circle of symbolic links is a RuntimeError before Python 3.13
        reason = getattr(error, "strerror", None) or error
        raise ReproError(f"cannot write to the folder {path} ({reason}): choose another one with --out") from error
    return path
