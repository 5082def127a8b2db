"""Packs CIFAR-10 (50,000 training and 10,000 test images, 32 x 32), downloaded by torchvision; needs a network connection.

    python data_prep/cifar10.py [--out data/cifar10] [--source FOLDER] [--val N]

With --val, the last N training images of each class become a validation split and leave the training split.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repro import ReproError
from repro.images import packed
from repro.paths import DATA, check_checkout, given, named

import packing

PREPROCESSING = packed.Preprocessing(size=28, short_side=32, mean=(114, 123, 125), scale=(1 / 64,) * 3)


def pack(dataset, out: Path, split: str, chosen: Sequence[int] | None = None) -> dict:
    """Packs a torchvision data set of (Pillow image, label) with `classes`, or the `chosen` of it, as lossless PNG.

    The data set has the folder's name.
    """
    chosen = range(len(dataset)) if chosen is None else chosen

    def items(start):
        for index in chosen[start:]:
            image, label = dataset[index]
            file = io.BytesIO()
            image.save(file, "PNG")
            yield packed.Item(int(label), file.getvalue())

    path, classes = given(out) / f"{split}.lmdb", list(dataset.classes)
    return packed.write(path, path.parent.name, split, classes, items, stored="PNG", preprocessing=PREPROCESSING)


def held_out(labels: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """The places of all labels but the last `count` of each class, and the places of these."""
    last = [place for label in set(labels) for place in np.flatnonzero(np.equal(labels, label))[-count:].tolist()]
    return sorted(set(range(len(labels))) - set(last)), sorted(last)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given, default=DATA / "cifar10", help="folder (default: %(default)s)")
    parser.add_argument(
        "--source",
        type=given,
        default=DATA / "downloads",
        help="folder that has cifar-10-python.tar.gz, or to download it into (default: %(default)s)",
    )
    parser.add_argument("--val", type=int, default=0, metavar="N", help="training images per class to validate on (default: 0)")
    arguments = parser.parse_args()
    if not 0 <= arguments.val < 5000:
        parser.error(f"--val is {arguments.val}: it must be between 0 and 4999, as there are 5000 images per class")
    try:
        check_checkout(Path(__file__).parent)
        packing.check_name(arguments.out, "cifar10")
    except ReproError as error:
        parser.error(str(error))
    from torchvision.datasets import CIFAR10  # takes seconds to import: only once the arguments are valid

    for split in ("train", "test"):
        try:
            dataset = CIFAR10(str(arguments.source), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, a wrong digest is a RuntimeError
            print(
                f"error: CIFAR-10 could not be downloaded ({error}). Put cifar-10-python.tar.gz into "
                f"{arguments.source} by hand, or name its folder with --source.",
                file=sys.stderr,
            )
            return 2
        parts: dict[str, list[int] | None] = {split: None}
        try:
            if split == "train":
                with named(val := arguments.out / "val.lmdb"):
                    val.unlink(missing_ok=True)  # of an earlier call: its images may be trained on now
                if arguments.val:
                    parts["train"], parts["val"] = held_out(dataset.targets, arguments.val)
            for part, chosen in parts.items():
                manifest = pack(dataset, arguments.out, part, chosen)
                print(f"{arguments.out / part}.lmdb: {manifest['count']} images, sha256 {manifest['sha256'][:12]}")
        except ReproError as error:
            parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
