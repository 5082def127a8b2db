"""Tar archives and folders as lists of members that are read in place: nothing is ever extracted.

A member records in which plain file its bytes are, and where. A member of a tar can itself be indexed as a tar, so an
archive of archives is read through its outer file. Anything but a regular file with an expected, relative name is an error.
"""

import gzip
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from repro import ReproError

MOST_MEMBERS = 3_000_000  # of one archive; the largest supported one, Places365, has 1.8 million
LARGEST = 1 << 28  # bytes of a member that is read at once
LARGEST_UNPACKED = 1 << 26  # bytes of a compressed archive; ImageNet's development kit unpacks to a few million
LONGEST_HEADER = 1 << 16
AGAIN = "compare its size and checksum with its source's, and fetch it again"
WRONG = "this is not the archive that it should be, fetch it from its source"


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file, or the bytes of one inside a plain tar. Strings, not Paths: there are millions of them."""

    name: str  # inside its archive, or the plain file's own
    file: str
    offset: int  # 0: the plain file itself, as a tar starts with a header
    size: int
    changed: int = 0  # when the file was changed last, in nanoseconds; 0: not known

    @classmethod
    def of(cls, path: Path | str) -> "Member":
        """A plain file; raises ReproError if there is none."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise ReproError(f"{path} cannot be read ({error.strerror})") from error
        if not stat.S_ISREG(status.st_mode):
            raise ReproError(f"{path} is {_kind(status.st_mode)}, where a plain file is expected")
        return cls(os.path.basename(path), str(path), 0, status.st_size, status.st_mtime_ns)

    @property
    def place(self) -> str:
        return f"{self.file}, member {self.name}" if self.offset else self.file

    def read(self) -> bytes:
        """All bytes; raises ReproError if some are missing, or if there are too many for one image or one list."""
        if self.size > LARGEST:
            raise ReproError(f"{self.place} has {self.size:,} bytes, more than {LARGEST:,}: {AGAIN}")
        with self.opened() as read_at:
            content = read_at(0, self.size)
        if len(content) < self.size:
            raise ReproError(f"{self.place} is cut short: {AGAIN}")
        if self.changed and Member.of(self.file).changed != self.changed:
            raise ReproError(f"{self.file} was changed while it was packed: wait until nothing changes it, and pack again")
        return content

    @contextmanager
    def opened(self) -> Iterator[Callable[[int, int], bytes]]:
        """Yields `read_at(offset, size)`, which never reads beyond this member."""
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ReproError(f"{self.place} cannot be read ({error.strerror})") from error

        def read_at(offset: int, size: int) -> bytes:
            size = min(size, self.size - offset)
            try:
                return os.pread(descriptor, size, self.offset + offset) if size > 0 else b""
            except OSError as error:
                raise ReproError(f"{self.place} cannot be read ({error.strerror})") from error

        try:
            yield read_at
        finally:
            os.close(descriptor)


# --- Folders ---------------------------------------------------------------------------------------------------------


def find(folder: Path, *places: str) -> Path:
    """The first of several archives or folders that exists; prints which one, because indexing it can take minutes."""
    for place in places:
        if (folder / place).exists():
            print(f"reading {folder / place}", flush=True)
            return folder / place
    raise ReproError(f"{folder} holds none of {', '.join(places)}: name the folder that does with --source")


def files(folder: Path | str, pattern: str = ".*") -> list[Member]:
    """The files of a folder, sorted by name; hidden ones are ignored. Anything but files that match is an error."""
    return [
        Member(entry.name, entry.path, 0, status.st_size, status.st_mtime_ns)
        for entry in _entries(folder, stat.S_ISREG, "an image file", pattern)
        for status in [_stat(entry)]
    ]


def folders(folder: Path | str, pattern: str = ".*") -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones are ignored. Anything but folders that match is an error."""
    return [Path(entry.path) for entry in _entries(folder, stat.S_ISDIR, "a folder", pattern)]


def _entries(folder: Path | str, expected: Callable[[int], bool], kind: str, pattern: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise ReproError(f"{folder} cannot be read as a folder ({error.strerror})") from error
    for entry in entries:
        mode = _stat(entry).st_mode
        if not expected(mode):
            raise ReproError(f"{entry.path} is {_kind(mode)}, where {kind} is expected: move it elsewhere")
        if not re.fullmatch(pattern, entry.name, re.DOTALL):
            raise ReproError(f"{entry.path} is not expected there: its name is not of the form {pattern}; move it elsewhere")
    return entries


def _stat(entry: os.DirEntry) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:  # a link to nowhere
        raise ReproError(f"{entry.path} cannot be read ({error.strerror})") from error


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a plain file" if stat.S_ISREG(mode) else "not a plain file"


# --- Archives --------------------------------------------------------------------------------------------------------


def index(tar: Member, pattern: str) -> list[Member]:
    """The members of a plain tar, in its order; folders in it are skipped.

    Raises ReproError if any member's name does not match `pattern` or leads out of the archive, if it is a link or a
    device or appears twice, or if the archive is cut short or not a tar.
    """
    inside = f"{tar.name}/" if tar.offset else ""
    with tar.opened() as read_at:
        return [
            Member(inside + name, tar.file, tar.offset + offset, size, tar.changed)
            for name, offset, size in _scan(read_at, tar.size, tar.place, pattern)
        ]


def unpacked(file: Path | str, pattern: str) -> dict[str, bytes]:
    """The members of a small .tar.gz whose names match, in memory. Raises ReproError as `index` does."""
    try:
        with gzip.open(file) as stream:
            content = stream.read(LARGEST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        with Member.of(file).opened() as read_at:
            what = _looks_like(read_at(0, 512)) or error
        raise ReproError(f"{file} cannot be unpacked ({what}): {AGAIN}") from error
    if len(content) > LARGEST_UNPACKED:
        raise ReproError(f"{file} unpacks to more than {LARGEST_UNPACKED:,} bytes, far more than it should: {AGAIN}")
    members = _scan(lambda offset, size: content[offset : offset + size], len(content), str(file), ".*")
    return {name: content[offset : offset + size] for name, offset, size in members if re.fullmatch(pattern, name, re.DOTALL)}


class _Headers:
    """The part of a file that tarfile needs. It reads only headers, so a long read means that a size is damaged."""

    def __init__(self, read_at: Callable[[int, int], bytes]):
        self.read_at, self.position = read_at, 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < 0:
            raise tarfile.ReadError("negative size")
        self.position = position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"header of {size:,} bytes")
        content = self.read_at(self.position, size)
        self.position += len(content)
        return content


def _scan(read_at: Callable[[int, int], bytes], size: int, place: str, pattern: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each member of the tar in `size` bytes."""
    names, entries = set(), 0
    try:
        with tarfile.TarFile(fileobj=_Headers(read_at)) as tar:  # type: ignore[arg-type]  # it is only read
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                entries += 1
                if entries > MOST_MEMBERS:
                    raise ReproError(f"{place} has more than {MOST_MEMBERS:,} members: {AGAIN}")
                if entry.isdir():
                    _check_name(entry.name, place)
                    continue
                name = _checked(entry, place, pattern)
                if entry.offset_data + entry.size > size:
                    raise ReproError(f"{place} is cut short in its member {name}: {AGAIN}")
                if name in names:
                    raise ReproError(f"{place} has two members {name}: {AGAIN}")
                names.add(name)
                yield name, entry.offset_data, entry.size
            # At a damaged header or the end of the file, tarfile stops as at the end of the archive.
            end = read_at(tar.offset, tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        what = _looks_like(read_at(0, 512)) or error
        raise ReproError(f"{place} is not a complete tar archive ({what}): {AGAIN}") from error
    if end != bytes(tarfile.BLOCKSIZE):
        raise ReproError(
            f"{place} is {'damaged' if len(end) == tarfile.BLOCKSIZE else 'cut short'} after {len(names):,} members: {AGAIN}"
        )
    if not names:
        raise ReproError(f"{place} has no members: {AGAIN}")


def _checked(entry: tarfile.TarInfo, place: str, pattern: str) -> str:
    name = _check_name(entry.name, place)
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
        kind = (
            "a symbolic link"
            if entry.issym()
            else "a hard link"
            if entry.islnk()
            else "a device or pipe"
            if entry.isdev()
            else f"of the unexpected type {entry.type!r}"
        )
        raise ReproError(f"{place}: member {name} is {kind}, not a plain file: {WRONG}")
    if entry.size < 0:
        raise ReproError(f"{place}: member {name} has the size {entry.size}: {AGAIN}")
    if not re.fullmatch(pattern, name, re.DOTALL):
        raise ReproError(f"{place}: member {name!r} is not expected there: its name is not of the form {pattern}")
    return name


def _check_name(name: str, place: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ReproError(f"{place}: member {name!r} points out of the archive: {WRONG}")
    return name.removeprefix("./")


def _looks_like(start: bytes) -> str:
    """What a file seems to be, from its first bytes; "" if they do not tell."""
    if not start:
        return "it is empty"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    return "it is compressed" if start[:2] == b"\x1f\x8b" else ""
