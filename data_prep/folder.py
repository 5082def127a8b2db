"""Packs any folder of class folders: FOLDER/CLASS/image. Classes are numbered in the order of their sorted names.

    python data_prep/folder.py --train FOLDER [--test FOLDER] --out data/NAME

Without test images, a share of the training images is set aside, and another one for validation with --val-share. They
are chosen by a hash of class and file name: the same images on every machine, and no image changes sides when others are
added.
"""

import argparse
import hashlib
import os
import sys
import unicodedata
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from repro import ReproError, whole_number
from repro.images import packed
from repro.images.packed import compare_labels
from repro.paths import DATA, given

import archives
import packing
from packing import Source, some_of


def prepare(
    train: Path, test: Path | None, test_share: float, val_share: float, out: Path | None, size: int, mirror: bool, **options
) -> None:
    out = out or DATA / (train.parent.name if train.name == "train" else train.name)
    packing.check_name(out, "folder")
    if not 0 < test_share < 1:
        raise ReproError(f"--test-share is {test_share}: it must be between 0 and 1, such as 0.1")
    test_share = 0 if test else test_share
    if not 0 <= val_share < 1 - test_share:
        raise ReproError(f"--val-share is {val_share}: it must be at least 0, and leave images to train on")
    if test and (one := nested(train, test)):
        raise ReproError(
            f"--train and --test are {one}: name a folder of other images to test on, or leave out --test to set a share of "
            f"the images apart"
        )
    classes = [folder.name for folder in archives.folders(train)]
    if len(classes) < 2:
        raise ReproError(f"{train} has {len(classes)} class folders: it must have at least two")
    images = sources(train, classes)
    if test:
        test_classes = [folder.name for folder in archives.folders(test)]
        if unknown := sorted(set(test_classes) - set(classes)):
            if twin := next((name for name in classes if _composed(name) == _composed(unknown[0])), ""):
                raise ReproError(
                    f"{test / unknown[0]} and {train / twin} look the same, but are two names in Unicode, {unknown[0]!a} and "
                    f"{twin!a} (macOS writes accents so): rename one"
                )
            raise ReproError(
                f"{test} has the class {some_of(unknown)}, which {train} does not have "
                f"({compare_labels(classes, test_classes)})"
            )
    splits: dict[str, list[Source]] = {"train": [], "val": [], "test": sources(test, classes) if test else []}
    for source in images:
        place = _hash(source.name)
        splits["test" if place < test_share else "val" if place < test_share + val_share else "train"].append(source)
    if not val_share:
        del splits["val"]
    check_apart(splits)
    whole_number("--size", size, 8, 4096)
    note_enlarged(images, size)
    usual = packed.PHOTOGRAPHS
    seen = replace(usual, size=size, short_side=round(size * usual.short_side / usual.size), mirror=mirror)
    packing.pack(out, classes, splits, preprocessing=seen, **options)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def note_enlarged(images: list[Source], size: int) -> None:
    """Says so if a sample of the images is smaller than what a network will see of them."""
    sides = []
    for source in images[:: -(-len(images) // packing.SAMPLE) or 1]:
        with suppress(OSError, Image.DecompressionBombError, ReproError):  # packing says what is wrong with it
            sides.append(min(Image.open(source.member.file).size))
    if sides and max(sides) < size:
        print(
            f"note: a network will see {size} pixels a side, and these images have {min(sides)} to {max(sides)} (a sample of "
            f"{len(sides)}): they are enlarged, which costs time and shows nothing new; --size {max(8, min(sides))} is enough",
            flush=True,
        )


def nested(train: Path, test: Path) -> str:
    """How the two folders are one, or one in the other; "" if they are not."""
    train, test = Path(os.path.realpath(train)), Path(os.path.realpath(test))
    if train == test:
        return f"one folder, {train}"
    return f"one in the other, {train} and {test}" if train in test.parents or test in train.parents else ""


def check_apart(splits: dict[str, list[Source]]) -> None:
    """Raises ReproError if a file is both trained and tested on; warns of copies, under whatever names."""
    others = [source for split in splits if split != "train" for source in splits[split]]
    files, sizes = {_file(source): source for source in others}, {source.member.size for source in splits["train"]}
    for source in splits["train"]:
        if other := files.get(_file(source)):
            raise ReproError(
                f"{source.member.file} is a training image, and the same file as {other.member.file}, which is not to be "
                f"trained on: remove one of them"
            )
    # Only files of equal size are read.
    alike = [source.member for source in others if source.member.size in sizes]
    sizes = {member.size for member in alike}
    trained = {_content(source.member) for source in splits["train"] if source.member.size in sizes}
    copies = [member.file for member in alike if _content(member) in trained]
    if copies:
        print(
            f"warning: {len(copies):,} of {len(others):,} test images are copies of training images, such as "
            f"{packing.shown(copies[0])}: on these, a network shows what it remembers",
            file=sys.stderr,
        )


def _content(member: archives.Member) -> bytes:
    return hashlib.sha256(member.read()).digest()


def _file(source: Source) -> tuple[int, int]:
    """What identifies the file, by whatever path."""
    try:
        status = os.stat(source.member.file)
    except OSError as error:
        raise ReproError(f"{source.member.file} cannot be read ({error.strerror})") from error
    return status.st_dev, status.st_ino


def sources(folder: Path, classes: list[str]) -> list[Source]:
    return [
        Source(f"{name}/{member.name}", label, member)
        for label, name in enumerate(classes)
        if (folder / name).exists()
        for member in archives.files(folder / name)
    ]


def _hash(name: str) -> float:
    """A number between 0 and 1, evenly distributed over names."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=given, required=True, metavar="FOLDER", help="training images, one folder per class")
    parser.add_argument(
        "--test", type=given, metavar="FOLDER", help="test images of the same classes (default: a share of the training images)"
    )
    parser.add_argument("--test-share", type=float, default=0.1, help="share to test on without --test (default: %(default)s)")
    parser.add_argument("--val-share", type=float, default=0, help="share to validate on (default: none)")
    parser.add_argument(
        "--out", type=given, help="folder, which names the data set (default: data/ and the name of the images' folder)"
    )
    parser.add_argument("--size", type=int, default=224, help="pixels per side that a network sees (default: %(default)s)")
    parser.add_argument(
        "--no-mirror", dest="mirror", action="store_false", help="do not mirror images when training, for example letters"
    )
    packing.options(parser)
    return packing.run(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
