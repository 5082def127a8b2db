"""Packs Fashion-MNIST (Xiao et al., 2017, arXiv 1708.07747): 70,000 photographs of clothes in ten classes, 28 x 28 and grey.

From the four IDX files, compressed or not, in a folder: one that you name, where Debian's package dataset-fashion-mnist puts
them, or where torchvision downloads them to. The last 500 training images of each class are for validation, so there are
55,000 training, 5,000 validation and 10,000 test images.

    python data_prep/fashion_mnist.py [--source FOLDER] [--out data/fashion_mnist]
"""

import argparse
import gzip
import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from cifar10 import held_out

from repro import ReproError
from repro.images import packed
from repro.paths import DATA, check_checkout, given

import drawing
import packing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADED = DATA / "downloads" / "FashionMNIST" / "raw"  # where torchvision puts them
HELD_OUT = 500  # of each class, for validation
# The views keep ImageNet's ratios (seen of stored side: 224 / 256), its smallest area and its mirroring.
PREPROCESSING = packed.Preprocessing(size=24, short_side=28, mean=(73,), scale=(1 / 90,))  # of the training images, rounded
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHA256 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
ADVICE = (
    "on Debian or Ubuntu, apt-get install dataset-fashion-mnist; elsewhere, name the folder of the four files *-ubyte.gz with "
    "--source"
)


def read(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels (N, 28, 28) and labels (N,) of each split, from the four files in a folder."""
    parts = {
        part: (idx(contents(folder, images), 3), idx(contents(folder, labels), 1)) for part, (images, labels) in FILES.items()
    }
    images, labels = parts["train"]
    learnt, validated = held_out(labels.tolist(), HELD_OUT)
    return {"train": (images[learnt], labels[learnt]), "val": (images[validated], labels[validated]), "test": parts["test"]}


def contents(folder: Path, name: str) -> bytes:
    """The uncompressed bytes of an IDX file. Raises ReproError if it is not there, or not as published."""
    plain, compressed = folder / name, folder / f"{name}.gz"
    try:
        found = plain.read_bytes() if plain.exists() else gzip.decompress(compressed.read_bytes())
    except (OSError, EOFError) as error:
        raise ReproError(f"{compressed} cannot be read ({error}): {ADVICE}") from error
    if hashlib.sha256(found).hexdigest() != SHA256[name]:
        raise ReproError(f"{plain if plain.exists() else compressed} is not the file that was published: copy it again")
    return found


def idx(content: bytes, dimensions: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: two zeros, 8, the number of dimensions, and each as a big-endian integer."""
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise ReproError(
            f"an IDX file of {dimensions} dimensions begins with 0, 0, 8, {dimensions}, not with {list(content[:4])}"
        )
    shape = np.frombuffer(content[4:header], ">u4")
    return np.frombuffer(content[header:], np.uint8).reshape(shape)


def _items(images: np.ndarray, labels: np.ndarray, start: int) -> Iterator[packed.Item]:
    for image, label in zip(images[start:], labels[start:]):
        yield packed.Item(int(label), drawing.png(image))


def source(asked: Path | None) -> Path:
    """The folder of the four files: the one asked for, Debian's, or the one into which torchvision downloads them."""
    if asked:
        return asked
    if DEBIAN.is_dir():
        return DEBIAN
    print(f"downloading Fashion-MNIST to {DOWNLOADED}; without a network, {ADVICE}", flush=True)
    from torchvision.datasets import FashionMNIST  # takes seconds to import

    try:
        FashionMNIST(str(DOWNLOADED.parents[1]), download=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, a wrong digest is a RuntimeError
        raise ReproError(f"Fashion-MNIST could not be downloaded ({error}): {ADVICE}") from error
    return DOWNLOADED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given, default=DATA / "fashion_mnist", help="folder (default: %(default)s)")
    parser.add_argument("--source", type=given, help=f"folder of the four files (default: {DEBIAN}, or a download)")
    arguments = parser.parse_args()
    try:
        check_checkout(Path(__file__).parent)
        packing.check_name(arguments.out, "fashion_mnist")
        folder = source(arguments.source)
        for split, (images, labels) in read(folder).items():
            path, items = arguments.out / f"{split}.lmdb", partial(_items, images, labels)
            stored = packed.written_by("fashion_mnist")
            manifest = packed.write(path, path.parent.name, split, CLASSES, items, stored, preprocessing=PREPROCESSING)
            print(f"{path}: {manifest['count']:,} images, sha256 {manifest['sha256'][:12]}")
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
