"""Packs CIFAR-10 (50,000 training and 10,000 test images, 32 x 32), downloaded by torchvision; needs a network connection.

python data_prep/cifar10.py [--out data/cifar10] [--source FOLDER]
"""

import argparse
import io
import sys
from pathlib import Path

from repro import packed
from repro.paths import DATA

PREPROCESSING = packed.Preprocessing(size=28, short_side=32, mean=(114, 123, 125), scale=(1 / 64,) * 3)


def pack(dataset, out: Path, split: str) -> dict:
    """Packs a torchvision data set of (Pillow image, label) with `classes` as PNG, which is lossless."""

    def items(start):
        for index in range(start, len(dataset)):
            image, label = dataset[index]
            file = io.BytesIO()
            image.save(file, "PNG")
            yield packed.Item(int(label), file.getvalue())

    return packed.write(
        out / f"{split}.lmdb", "cifar10", split, list(dataset.classes), items, stored="PNG", preprocessing=PREPROCESSING
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA / "cifar10", help="folder (default: %(default)s)")
    parser.add_argument(
        "--source",
        type=Path,
        default=DATA / "downloads",
        help="folder that has cifar-10-python.tar.gz, or to download it into (default: %(default)s)",
    )
    arguments = parser.parse_args()
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
        manifest = pack(dataset, arguments.out, split)
        print(f"{arguments.out / split}.lmdb: {manifest['count']} images, sha256 {manifest['sha256'][:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
