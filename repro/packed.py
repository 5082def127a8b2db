"""One packed data set: an LMDB file of checksummed records, its manifest inside. Writer and reader.

Keys are record numbers, eight bytes big-endian, from 0. A record is the label (uint32), the CRC-32 of label and image
(uint32), both little-endian, then the encoded image (PNG or JPEG bytes). The key `manifest` holds, behind its own CRC-32,
JSON: format, data set, split, count, classes, counts per class, and a SHA-256 over all records in order. The file
carries its own digest, so a run can name exactly what it was trained on.
"""

import hashlib
import json
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import lmdb

from repro import ReproError
from repro.paths import replacing

FORMAT = "scaleout-repro packed images, version 1"
HEADER = struct.Struct("<II")


class PackedError(ReproError):
    """A packed data set is missing, damaged, or made for something else."""


def write(path: Path | str, dataset: str, split: str, classes: list[str], records) -> dict:
    """Packs `records`, an iterable of (label, encoded image), into one file; returns the manifest.

    The file appears under its name only when it is whole.
    """
    path, digest, counts = Path(path), hashlib.sha256(), [0] * len(classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # LMDB maps address space, not memory: 2**40 is only the most that the file may grow to.
        with lmdb.open(str(temporary), subdir=False, lock=False, map_size=1 << 40, sync=False) as environment:
            count = 0
            for chunk in _chunks(records, 1000):
                with environment.begin(write=True) as transaction:
                    for label, image in chunk:
                        record = _seal(label, image)
                        transaction.put(count.to_bytes(8, "big"), record, append=True)
                        digest.update(record)
                        counts[label] += 1
                        count += 1
            manifest = {"format": FORMAT, "dataset": dataset, "split": split, "count": count, "classes": classes,
                        "count_per_class": counts, "sha256": digest.hexdigest()}
            with environment.begin(write=True) as transaction:
                transaction.put(b"manifest", _seal(0, json.dumps(manifest).encode()))
            environment.sync(True)
    return manifest


def _seal(label: int, image: bytes) -> bytes:
    return HEADER.pack(label, zlib.crc32(image, label)) + image


def _chunks(items, size):
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    yield chunk


@lru_cache(maxsize=None)
def _open(path: str, inode: int, changed: int) -> lmdb.Environment:
    """One environment for a file's every reader in this process: LMDB forbids a second one."""
    return lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=16)


class Packed:
    """Reads a packed file: `len(packed)`, `packed[i]` -> (label, encoded image), `packed.manifest`."""

    def __init__(self, path: Path | str, dataset: str, split: str):
        self.path = Path(path)
        if not self.path.is_file():
            raise PackedError(f"no packed data at {path}: make it with `python data_prep/{dataset}.py --out "
                              f"{self.path.parent}`")
        try:
            file = self.path.stat()
            self.environment = _open(str(self.path.resolve()), file.st_ino, file.st_mtime_ns)
            # LMDB maps the file: to read a page beyond its end would be a signal, not an error.
            if file.st_size < (self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"]:
                raise PackedError(f"{path} was cut short: pack it again")
            with self.environment.begin() as transaction:
                manifest = transaction.get(b"manifest") or b""
                entries = transaction.stat()["entries"]
        except lmdb.Error as error:
            raise PackedError(f"{path} is not a packed data set, or it was cut short ({error}): pack it again") from error
        if len(manifest) < HEADER.size or _seal(0, manifest[HEADER.size :]) != manifest:
            raise PackedError(f"{path} is damaged, or not a packed data set: pack it again")
        self.manifest = json.loads(manifest[HEADER.size :])
        if self.manifest["format"] != FORMAT:
            raise PackedError(f"{path} is not in this version's format ({FORMAT}): pack it again")
        found = self.manifest["dataset"], self.manifest["split"]
        if found != (dataset, split):
            raise PackedError(f"{path} was packed as {found[0]}, {found[1]} split, not as {dataset}, {split} split: "
                              f"name the right data set with --data, or pack it again")
        if entries != len(self) + 1:
            raise PackedError(f"{path} holds {entries - 1} records, its manifest says {len(self)}: pack it again")

    def __len__(self) -> int:
        return self.manifest["count"]

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        with self.environment.begin(buffers=False) as transaction:
            record = transaction.get(index.to_bytes(8, "big"))
        if record is None or len(record) < HEADER.size:
            raise PackedError(f"{self.path}: record {index} is missing: pack the data set again")
        (label, checksum), image = HEADER.unpack_from(record), record[HEADER.size:]
        if zlib.crc32(image, label) != checksum or label >= len(self.manifest["classes"]):
            raise PackedError(f"{self.path}: record {index} is damaged: pack the data set again")
        return label, image
