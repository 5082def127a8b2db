"""One packed data set: an LMDB file of checksummed records with its manifest. Writer and reader.

Keys are record numbers, eight bytes big-endian, from 0. A record is the label (uint32), the CRC-32 of label and image
(uint32), both little-endian, then the encoded image (PNG or JPEG bytes). The value of the key of one zero byte is the
manifest as JSON, after its own CRC-32: format, data set, split, number of images, classes (the label map), number of
images per class, how images are stored and become the network's input, which were converted or left out, and a SHA-256
over all records in order. If several images are drawings of one original, it has the number of `originals`, and image i is
a drawing of original i % originals. The file contains its own digest, so a run can name exactly what it was trained on.
No torch.
"""

import fcntl
import hashlib
import json
import logging
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from repro import ReproError, choose
from repro.paths import DATA, ROOT, replacing, writable_folder

FORMAT = "scaleout-repro packed images, version 3"
HEADER = struct.Struct("<II")
MANIFEST = b"\0"  # sorts before every record's key, so that records can be appended in any case
# Packed when a run first needs them, from what scikit-learn, matplotlib and Debian's package of Fashion-MNIST bring.
EMBEDDED = ("digits", "letters", "fashion_mnist")
SPLITS = ("train", "val", "test")  # a data set may lack "val"
DATA_SETS = (*EMBEDDED, "cifar10", "imagenet", "places365")  # for which data_prep has a script of the same name
CHUNK = 500  # inputs per transaction: the most that a kill can cost
SPARE = 1 << 20  # bytes for what LMDB itself writes in a transaction, such as its list of free pages

log = logging.getLogger("repro")


class PackedError(ReproError):
    """A packed data set is missing, damaged, or made for something else."""


@dataclass(frozen=True)
class Preprocessing:
    """How the images of a data set become the network's input. The defaults are the release's, for photographs."""

    size: int = 224  # pixels per side that the network sees
    short_side: int = 256  # the test view scales the short side to this, then cuts the centre
    mean: tuple[float, ...] = (104, 117, 123)  # subtracted, 0 to 255, one per channel, in the order that the network sees
    scale: tuple[float, ...] = (1 / 128,) * 3  # multiplied after subtracting the mean
    bgr: bool = True  # as in OpenCV and the release; False: RGB. Ignored for one channel
    mirror: bool = True  # whether a mirrored image is an equally good example
    smallest_area: float = 0.08  # least share of the image's area that the training view shows


PHOTOGRAPHS = Preprocessing()


@dataclass(frozen=True)
class Item:
    """One input of a packed data set: an encoded image, or the reason why it is left out."""

    label: int
    image: bytes | None  # None: left out
    name: str = ""  # its origin, such as a path
    note: str = ""  # why it was converted or left out; listed in the manifest with its name


def write(
    path: Path | str,
    dataset: str,
    split: str,
    classes: list[str],
    items: Callable[[int], Iterable[Item]],
    stored: str = "as packed",
    fingerprint: str = "",
    preprocessing: Preprocessing = PHOTOGRAPHS,
    originals: int | None = None,
) -> dict:
    """Packs `items(0)` into one file, which appears under its name only when it is complete; returns the manifest.

    `fingerprint` is a digest of all inputs and settings. With one, a conversion that was killed is continued by the next
    call with the same fingerprint, from `items(n)`, the items from number n on, and the file is bit-identical to
    that of an uninterrupted conversion. `stored` describes in words what was done to the images. `originals`: image i is a
    drawing of original i % originals; by default each image is its own original.
    """
    path = Path(path)
    writable_folder(path.parent)
    manifest = {
        "format": FORMAT,
        "dataset": dataset,
        "split": split,
        "stored": stored,
        "preprocessing": asdict(preprocessing),
        "fingerprint": fingerprint,
        "inputs": 0,
        "count": 0,
        "classes": classes,
        "count_per_class": [0] * len(classes),
        "converted": [],
        "left_out": [],
        "sha256": "",
    }
    if originals:
        manifest["originals"] = originals
    try:
        with _continued(path, fingerprint) if fingerprint else replacing(path) as temporary:
            return _fill(temporary, manifest, items)
    except lmdb.MemoryError as error:
        raise PackedError(f"{path} could not be written: {too_large()}") from error
    except lmdb.Error as error:
        raise PackedError(f"{path} could not be written: {error}") from error


def partial_path(path: Path, fingerprint: str) -> Path:
    """The path where `write` keeps an unfinished conversion."""
    return path.with_name(f".{path.name}.{fingerprint[:16]}.partial")


def begun(partial: Path) -> tuple[int, int]:
    """Returns the number of inputs that an earlier call of `write` has processed, and how many of them it left out."""
    if not partial.exists() or not partial.stat().st_size:
        return 0, 0
    try:
        with _environment(partial, readonly=True) as environment, environment.begin() as transaction:
            written = transaction.get(MANIFEST)
    except lmdb.Error:  # `write` reports it and what to do
        return 0, 0
    manifest: dict = _unseal_manifest(partial, written) if written else {"inputs": 0, "left_out": []}
    return manifest["inputs"], len(manifest["left_out"])


@contextmanager
def _continued(path: Path, fingerprint: str):
    """Like `replacing`, but the unfinished file stays after an error or a kill, for the next call."""
    partial = partial_path(path, fingerprint)
    with open(partial, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PackedError(f"another process is packing {path} ({partial.name} is locked): wait for it") from error
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): do not pack it twice at the same time", path, error.strerror)
        yield partial
        os.replace(partial, path)


def _fill(path: Path, manifest: dict, items: Callable[[int], Iterable[Item]]) -> dict:
    digest = hashlib.sha256()
    with _environment(path) as environment, environment.begin() as transaction:
        if (written := transaction.get(MANIFEST)) is not None:
            manifest = _unseal_manifest(path, written)
            for number in range(manifest["count"]):
                record = transaction.get(number.to_bytes(8, "big"))
                assert record is not None  # they were committed with the manifest that counts them
                digest.update(record)
    inputs = iter(items(manifest["inputs"]))
    while not manifest["sha256"]:
        chunk = list(islice(inputs, CHUNK))
        # Opened again for each chunk: which pages LMDB uses depends on the state of the open environment, which a
        # continued conversion does not have.
        with _environment(path) as environment:
            _make_room(environment, manifest, chunk)
            with environment.begin(write=True) as transaction:
                for item in chunk:
                    if item.note:
                        manifest["left_out" if item.image is None else "converted"].append([item.name, item.note])
                    if item.image is not None:
                        record = _seal(item.label, item.image)
                        transaction.put(manifest["count"].to_bytes(8, "big"), record, append=True)
                        digest.update(record)
                        manifest["count"] += 1
                        manifest["count_per_class"][item.label] += 1
                manifest["inputs"] += len(chunk)
                if len(chunk) < CHUNK:
                    manifest["sha256"] = digest.hexdigest()
                transaction.put(MANIFEST, _seal(0, json.dumps(manifest).encode()))
    return manifest


def _make_room(environment: lmdb.Environment, manifest: dict, chunk: list[Item]) -> None:
    """Enlarges the map of the file to what it takes with these items at most.

    It is of address space, not of memory, but batch systems limit that, too. The file depends on its size, which therefore
    depends on nothing but what is packed.
    """
    page = environment.stat()["psize"]
    sizes = [len(item.image or b"") + len(json.dumps([item.name, item.note])) + 2 * page for item in chunk]
    used = (environment.info()["last_pgno"] + 1) * page
    environment.set_mapsize(used + sum(sizes) + len(json.dumps(manifest)) + SPARE)


def _environment(path: Path, **options) -> lmdb.Environment:
    return lmdb.open(os.fsencode(path), subdir=False, lock=False, **options)  # bytes: names need not be Unicode


def too_large() -> str:
    """Why LMDB could not map a file."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    known = "" if limit == resource.RLIM_INFINITY else f", here to {limit / 1e9:.1f} GB"
    return (
        f"all of it must fit into the address space of this process, which is limited{known}: raise `ulimit -v`, or the "
        f"limit of the batch system, such as h_vmem"
    )


def _seal(label: int, image: bytes) -> bytes:
    return HEADER.pack(label, zlib.crc32(image, label)) + image


def _unseal_manifest(path: Path, record: bytes) -> dict:
    if _seal(0, record[HEADER.size :]) != record:
        raise PackedError(f"{path} is damaged, or not a packed data set: delete it and pack again")
    manifest = json.loads(record[HEADER.size :])
    if manifest["format"] != FORMAT:
        raise PackedError(f"{path} is not in this version's format ({FORMAT}): delete it and pack again")
    return manifest


_opened: dict[tuple[int, int, int], lmdb.Environment] = {}


def _open(path: Path, file: os.stat_result) -> lmdb.Environment:
    """One environment per file, by whatever path, for all its readers in this process: LMDB forbids a second one."""
    key = file.st_dev, file.st_ino, file.st_mtime_ns
    if key not in _opened:
        _opened[key] = _environment(path, readonly=True, readahead=False, max_spare_txns=16)
    return _opened[key]


class Packed:
    """Reads a packed file: `len(packed)`, `packed[i]` -> (label, encoded image), `packed.manifest`, `packed.preprocessing`."""

    def __init__(self, path: Path | str, dataset: str, split: str):
        self.path = Path(path)
        if not os.path.isfile(path):
            if split == "val" and self.path.with_name("train.lmdb").is_file():
                raise PackedError(
                    f"{dataset} has no validation split ({path} is missing): name a data set that has one, such as digits, or "
                    f"pack it again with one (`.venv/bin/python data_prep/{_script(dataset)}.py --help`)"
                )
            raise PackedError(f"no packed data at {path}: {_how_to_pack(dataset, self.path.parent)}")
        try:
            file = self.path.stat()
            self.environment = _open(self.path, file)
            # LMDB maps the file: reading a page beyond its end would raise a signal, not an error.
            if file.st_size < (self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"]:
                raise PackedError(f"{path} was cut short: pack it again")
            with self.environment.begin() as transaction:
                manifest = transaction.get(MANIFEST) or b""
                entries = transaction.stat()["entries"]
        except lmdb.MemoryError as error:
            raise PackedError(f"{path} ({file.st_size / 1e9:.1f} GB) cannot be opened: {too_large()}") from error
        except (lmdb.Error, OSError) as error:
            if not os.access(path, os.R_OK):
                raise PackedError(f"{path} must not be read by you: ask its owner for permission (chmod a+r)") from error
            raise PackedError(f"{path} is not a packed data set, or it was cut short ({error}): pack it again") from error
        self.manifest = _unseal_manifest(self.path, manifest)
        if not self.manifest["sha256"]:
            raise PackedError(f"{path} was not packed to its end: run the same packing command again to continue")
        found = self.manifest["dataset"], self.manifest["split"]
        if found != (dataset, split):
            raise PackedError(
                f"{path} was packed as {found[0]}, {found[1]} split, not as {dataset}, {split} split: "
                f"name the right data set with --data, or pack it again"
            )
        try:
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in self.manifest["preprocessing"].items()
            }
            self.preprocessing = Preprocessing(**values)
        except (KeyError, AttributeError, TypeError) as error:
            raise PackedError(
                f"{path}: its manifest does not say how its images become input ({error}): pack it again"
            ) from error
        if entries != len(self) + 1:
            raise PackedError(f"{path} has {entries - 1} records, but its manifest says {len(self)}: pack it again")

    def __len__(self) -> int:
        return self.manifest["count"]

    @property
    def originals(self) -> int:
        """Image i is a drawing of original i % originals."""
        return self.manifest.get("originals", len(self))

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        with self.environment.begin(buffers=False) as transaction:
            record = transaction.get(index.to_bytes(8, "big"))
        if record is None or len(record) < HEADER.size:
            raise PackedError(f"{self.path}: record {index} is missing: pack the data set again")
        (label, checksum), image = HEADER.unpack_from(record), record[HEADER.size :]
        if zlib.crc32(image, label) != checksum or label >= len(self.manifest["classes"]):
            raise PackedError(f"{self.path}: record {index} is damaged: pack the data set again")
        return label, image

    def verify(self) -> None:
        """Reads every record; raises PackedError if any is damaged or their digest is not the manifest's."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(_seal(*self[index]))
        if digest.hexdigest() != self.manifest["sha256"]:
            raise PackedError(f"{self.path}: the digest of its records is not its manifest's: pack the data set again")


def _how_to_pack(dataset: str, folder: Path) -> str:
    return f"make it with `.venv/bin/python data_prep/{_script(dataset)}.py --out {folder}` (--help lists all options)"


def _script(dataset: str) -> str:
    return dataset if (ROOT / "data_prep" / f"{dataset}.py").exists() else "folder"


def data_folder(data: str) -> Path:
    """The folder of the packed data set `data`: itself if it has a slash, else data/NAME; a misspelt NAME is an error.

    Its name is the data set's, also where it is a symbolic link.
    """
    if "/" in data:
        return Path(os.path.expanduser(data))
    if not (DATA / data).exists():
        choose("data set", data, dict.fromkeys([*DATA_SETS, *sorted(path.parent.name for path in DATA.glob("*/train.lmdb"))]))
    return DATA / data


def written_by(data: str) -> str:
    """What `stored` says of an embedded data set: another text after any change of its scripts."""
    digest = hashlib.sha256(b"".join((ROOT / "data_prep" / f"{name}.py").read_bytes() for name in (data, "drawing")))
    return f"PNG, written by data_prep/{data}.py and drawing.py (sha256 {digest.hexdigest()[:12]})"


def pack_embedded(data: str) -> None:
    """Packs the data set `data` if it is an embedded one and its splits are not there as its script makes them now."""
    if data not in EMBEDDED:
        return
    try:
        if all(Packed(DATA / data / f"{split}.lmdb", data, split).manifest["stored"] == written_by(data) for split in SPLITS):
            return
    except PackedError:  # missing, damaged, or in an earlier version's format
        pass
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # this package need not be installed
    done = subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / f"{data}.py")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": found, "PYTHONSAFEPATH": ""},  # scripts import one another from their own folder
    )
    if done.returncode:
        raise PackedError(
            f"the {data} could not be packed: {done.stderr.strip().splitlines()[-1]} (`.venv/bin/python data_prep/{data}.py "
            f"--out FOLDER/{data}` packs them elsewhere, and --data FOLDER/{data} names that place)"
        )


def compare_labels(expected: list[str], found: list[str]) -> str:
    """Describes how the label map `found` (class names in the order of their numbers) differs from `expected`; "" if equal.

    A wrong map causes no error by itself, only an accuracy near chance, so the common mistakes are distinguished.
    """
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"{len(found)} classes instead of {len(expected)}{_extra(expected, found)}"
    number = next(number for number, (one, other) in enumerate(zip(expected, found)) if one != other)
    example = f"class {number} is {found[number]} instead of {expected[number]}"
    if len(found) > 1 and (found[1:] == expected[:-1] or found[:-1] == expected[1:]):
        return f"the classes are shifted by one: {example}"
    if sorted(found) == sorted(expected):
        return f"the same classes are in another order (permuted): e.g. {example}"
    others = sum(one != other for one, other in zip(expected, found))
    return f"{others} of the {len(found)} classes differ: e.g. {example}"


def _extra(expected: list[str], found: list[str]) -> str:
    longer, shorter = sorted((expected, found), key=len, reverse=True)
    if longer[1:] == shorter:
        return f" (of the {len(longer)}, index 0 is {longer[0]}: a background class? The others are the same, shifted by one)"
    if longer[:-1] == shorter:
        return f" (of the {len(longer)}, the last is {longer[-1]}; the others are the same)"
    return f" (do the {len(longer)} have a background class at index 0?)" if len(longer) == len(shorter) + 1 else ""
