"""Makes a small stand-in for ImageNet-1K's original archives, to run the whole ImageNet path without ImageNet.

Names, nesting, devkit and file formats are those of ILSVRC2012, including its odd files; the pixels come from three
photographs that scikit-learn and matplotlib contain. A class is a region of one photograph, rotated and tinted in its own
way; an image is a random crop of its class's region. The synsets are made up.

    python data_prep/stand_in.py --out data/stand-in
"""

import argparse
import filecmp
import gzip
import io
import os
import struct
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_sample_image

from repro import ReproError
from repro.paths import given, replacing, writable_folder

KIT = "ILSVRC2012_devkit_t12"
SIDE = 280  # width and height of a class's region in a photograph, in pixels
TINT = 0.45  # how far a class's tint separates the three channels
SIZES = {0: (1600, 1200), 1: (133, 100)}  # of the first images of each split; those of the others are random
ODD = ("CMYK", "PNG", "greyscale", "EXIF")  # one training image each, as ILSVRC2012 has some
# A TIFF directory that ends after two entries: orientation 6 (rotated), and a camera maker whose text is missing.
EXIF = b"Exif\0\0" + struct.pack(">2sHIHHHIIHHIHH", b"MM", 42, 8, 2, 0x010F, 2, 64, 9999, 0x0112, 3, 1, 6, 0)
README = """No part of ImageNet, but a stand-in in the layout of the ILSVRC2012 development kit, to test software with.
data/meta.mat lists the synsets.
data/ILSVRC2012_validation_ground_truth.txt has the ILSVRC2012_ID of each validation image.
"""


def write(out: Path | str, classes: int = 10, images: int = 200, validation: int = 50, seed: int = 0) -> list[Path]:
    """Writes the training, validation and devkit archives into the folder `out`; returns their three paths.

    `images` and `validation` count training and validation images over all `classes` (2 to 1000; at least one image per
    class in each split). The same arguments give the same bytes (with the same versions of Pillow and zlib); another `seed`
    draws other images of the same classes. Raises ReproError for numbers out of range.
    """
    for name, value, least in (
        ("classes", classes, 2),
        ("images", images, classes),
        ("validation", validation, classes),
        ("seed", seed, 0),
    ):
        if value < least:
            why = ", one for each class" if name in ("images", "validation") else ""
            raise ReproError(f"{name} is {value}: it must be at least {least}{why}")
    if classes > 1000:
        raise ReproError(f"classes is {classes}: ILSVRC2012 has 1000, so use at most 1000")
    out = writable_folder(out)
    paths = [out / "ILSVRC2012_img_train.tar", out / "ILSVRC2012_img_val.tar", out / f"{KIT}.tar.gz"]
    counts = [images // classes + (label < images % classes) for label in range(classes)]
    labels = np.random.default_rng([seed, 2]).permutation(np.arange(validation) % classes)
    _write_train(paths[0], counts, seed)
    _write_validation(paths[1], labels, seed)
    _write_devkit(paths[2], counts, labels)
    return paths


def synset(label: int) -> str:
    """The made-up name of a class; names increase with the label, in steps of varying size."""
    return f"n{99_000_100 + 113 * label + label * label % 113}"


def devkit_id(label: int, classes: int) -> int:
    """The class's id, from 1; never its position among the sorted names: the real kit's ids are in another order as well."""
    return 1 + (label + 1) % classes


@contextmanager
def _replacing(path: Path):
    """Like `replacing`, but a file that is the same as before also keeps its time of change, by which packing knows it."""
    with replacing(path) as temporary:
        yield temporary
        if path.exists() and filecmp.cmp(path, temporary, shallow=False):
            os.utime(temporary, ns=(time := path.stat().st_mtime_ns, time))


def _write_train(path: Path, counts: list[int], seed: int) -> None:
    images = sum(counts)
    odd = {place * images // (len(ODD) + 1): kind for place, kind in enumerate(ODD, 1)}
    number = 0
    with _replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as outer:
        for label, count in enumerate(counts):
            with tempfile.TemporaryFile(dir=path.parent) as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as inner:
                    for place in range(count):
                        image = _image(label, number, np.random.default_rng([seed, 0, number]), odd.get(number))
                        # The originals' numbers also have gaps and no padding.
                        _add(inner, f"{synset(label)}_{5 + 7 * place}.JPEG", io.BytesIO(image))
                        number += 1
                _add(outer, f"{synset(label)}.tar", file)


def _write_validation(path: Path, labels: np.ndarray, seed: int) -> None:
    with _replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, label in enumerate(labels.tolist()):
            image = _image(label, number, np.random.default_rng([seed, 1, number]))
            _add(archive, f"ILSVRC2012_val_{number + 1:08d}.JPEG", io.BytesIO(image))


def _write_devkit(path: Path, counts: list[int], labels: np.ndarray) -> None:
    truth = "".join(f"{devkit_id(label, len(counts))}\n" for label in labels.tolist())
    with (
        _replacing(path) as temporary,
        open(temporary, "wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for folder in (KIT, f"{KIT}/data"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        _add(archive, f"{KIT}/readme.txt", io.BytesIO(README.encode()))
        _add(archive, f"{KIT}/data/meta.mat", io.BytesIO(_meta(counts)))
        _add(archive, f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt", io.BytesIO(truth.encode()))


def _add(archive: tarfile.TarFile, name: str, file) -> None:
    """Adds a whole file; owner, mode and time keep tarfile's defaults (0, 0644, 1970)."""
    entry = tarfile.TarInfo(name)
    entry.size = file.seek(0, io.SEEK_END)
    file.seek(0)
    archive.addfile(entry, file)


def _meta(counts: list[int]) -> bytes:
    """meta.mat: the classes in the order of their ids, then a root and, below it, a node with half of them."""
    classes = len(counts)
    leaves = [
        (
            devkit_id(label, classes),
            synset(label),
            f"stand-in class {label}",
            "a region of a photograph",
            0,
            [],
            0,
            counts[label],
        )
        for label in range(classes)
    ]
    root, node, half = classes + 1, classes + 2, classes // 2
    inner = [
        (root, "n99000000", "stand-in entity", "all classes", 1 + half, [node, *range(1, half + 1)], 2, 0),
        (node, "n99000300", "stand-in group", "half of the classes", classes - half, list(range(half + 1, classes + 1)), 1, 0),
    ]
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    synsets = np.empty((classes + len(inner), 1), [(field, object) for field in fields.split()])
    for row, values in enumerate(sorted(leaves) + inner):  # numbers are doubles, as in Matlab
        synsets[row, 0] = tuple(value if isinstance(value, str) else np.array(value, float) for value in values)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets})
    return b"MATLAB 5.0 MAT-file".ljust(116) + file.getvalue()[116:]  # savemat puts the date into this text


@lru_cache(maxsize=1)
def _photographs() -> list[Image.Image]:
    hopper = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    return [*(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")), hopper]


def _region(label: int) -> Image.Image:
    """The region from which all images of a class are cropped, SIDE pixels per side."""
    photograph = _photographs()[label % 3]
    x, y = np.random.default_rng([3, label]).integers(0, np.array(photograph.size) - SIDE).tolist()
    turned = photograph.crop((x, y, x + SIDE, y + SIDE)).rotate(90 * (label // 3 % 4))
    hue = 2 * np.pi * (0.618 * label + np.arange(3) / 3)  # golden-ratio steps keep any number of hues distinct
    curves = np.outer(1 + TINT * np.cos(hue), np.arange(256)).clip(0, 255)
    return turned.point(curves.astype(int).ravel().tolist())


def _image(label: int, number: int, generator: np.random.Generator, odd: str | None = None) -> bytes:
    """One encoded image: a random crop of its class's region, mirrored or not, of random size and quality."""
    width, height = SIZES.get(number) or _size(generator)
    zoom = SIDE * generator.uniform(0.6, 1) / max(width, height)
    cut = np.array([width, height]) * zoom
    start = generator.uniform(0, SIDE - cut)
    image = _region(label).resize((width, height), Image.Resampling.BICUBIC, box=(*start, *(start + cut)))
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if odd in ("CMYK", "greyscale"):
        image = image.convert("CMYK" if odd == "CMYK" else "L")
    sampling = "4:4:4" if generator.random() < 0.2 else "4:2:0"
    file = io.BytesIO()
    image.save(
        file,
        "PNG" if odd == "PNG" else "JPEG",
        quality=int(generator.integers(75, 96)),
        subsampling=sampling,
        exif=EXIF if odd == "EXIF" else b"",
    )
    return file.getvalue()


def _size(generator: np.random.Generator) -> tuple[int, int]:
    """Width and height: mostly ILSVRC2012's most frequent, 500 x 375, and one in four upright."""
    longer = 500 if generator.random() < 0.7 else int(generator.integers(150, 640))
    shorter = round(longer * (0.75 if generator.random() < 0.6 else generator.uniform(0.65, 1)))
    return (shorter, longer) if generator.random() < 0.25 else (longer, shorter)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=10, help="2 to 1000 (default: %(default)s)")
    parser.add_argument("--images", type=int, default=200, help="training images in all (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=50, help="validation images in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images (default: %(default)s)")
    parser.add_argument("--out", type=given, required=True, help="folder")
    try:
        for path in write(**vars(parser.parse_args())):
            print(path)
    except ReproError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
