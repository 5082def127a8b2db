"""Distorted, noisy drawings of small grey originals, packed as an embedded data set: the digits and the letters.

The sizes are ImageNet's, divided: 20,000 training images for 1.28 million, stored 18 x 18 and seen 16 x 16 as 256 and 224
are. Each drawing has its own rotation, scale, shear, shift and noise. Image i is a drawing of original i % originals.

Every machine packs the same bytes: the random numbers are raw outputs of NumPy's Philox generator, which NumPy keeps
stable. The geometry uses only +, -, * and /, which IEEE 754 defines to the last bit, the normal distribution is a rounded
table, and the PNGs are not compressed, since versions of zlib compress differently.
"""

import argparse
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from repro import ReproError
from repro.images import packed
from repro.paths import DATA, check_checkout, given

import packing

COUNTS = {"train": 20_000, "val": 5_000, "test": 20_000}
SIDE, SEEN = 18, 16  # pixels: stored, and seen by the network
EXTENT = SEEN  # stored pixels that an original spans before it is scaled

BACKGROUND, CONTRAST = 0.35, 0.3  # on a scale from 0 to 1: noise has as much room below as above
SMALLEST_AREA = 0.3  # not ImageNet's 0.08: most such views of a digit show too little to be read (docs/digits.md)
TURN = 0.13165  # the tangent of half of 15 degrees
SCALE, SHEAR, SHIFT = 0.15, 0.15, 1.0  # largest change either way, the last in stored pixels

NUMBERS = 5  # that distort a drawing: turn, scale, shear, right, down
NORMAL = ndtri((np.arange(2**16) + 0.5) / 2**16).round(6)  # of 16 random bits; the largest is 4.2
CHUNK = 1000  # drawings made at once: 50 MB

Originals = tuple[np.ndarray, np.ndarray]  # ink (N, S, S) from 0 to 1, labels (N,)


def run(
    description: str,
    name: str,
    classes: list[str],
    splits: Callable[[], dict[str, Originals]],
    noise: float,
    preprocessing: packed.Preprocessing,
) -> None:
    """The command line of the script `name`: draws and packs the originals of each of `splits()`, with noise of this deviation.

    The data set has the folder's name; what is drawn is the same under any.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--out", type=given, default=DATA / name, help="folder (default: %(default)s)")
    out = parser.parse_args().out
    try:
        check_checkout(Path(__file__).parent)
        packing.check_name(out, name)
        for split, originals in splits().items():
            count, items = len(originals[0]), partial(_items, name, split, originals, noise)
            stored, path = packed.written_by(name), out / f"{split}.lmdb"
            manifest = packed.write(path, out.name, split, classes, items, stored, preprocessing=preprocessing, originals=count)
            print(f"{path}: {manifest['count']:,} images of {count} originals, sha256 {manifest['sha256'][:12]}")
    except ReproError as error:
        parser.error(str(error))


def _items(name: str, split: str, originals: Originals, noise: float, start: int) -> Iterator[packed.Item]:
    ink, labels = originals
    for first in range(start, COUNTS[split], CHUNK):
        chosen = np.arange(first, min(first + CHUNK, COUNTS[split])) % len(ink)
        pixels = draw(ink[chosen], f"{name} {split}", first, noise)
        for label, image in zip(labels[chosen].tolist(), pixels):
            yield packed.Item(label, png(image))


def draw(originals: np.ndarray, stream: str, first: int, noise: float, size: float = 1) -> np.ndarray:
    """Originals (N, S, S) distorted and with noise: (N, SIDE, SIDE) uint8.

    They get the random numbers of the drawings `first` (divisible by 4) to `first` + N of the named stream. `size` enlarges
    what is drawn, but not the noise.
    """
    count = len(originals)
    bits = _bits(stream + " shape", first * 8, count * 8).reshape(count, 8)[:, :NUMBERS]
    ink = distort(originals, (bits >> np.uint64(11)) * 2.0**-52 - 1, size)
    # Of each word, sixteen bits a pixel, from the lowest; "<" for machines that store the highest first.
    words = _bits(stream + " noise", first * SIDE * SIDE // 4, count * SIDE * SIDE // 4).astype("<u8").view("<u2")
    grey = BACKGROUND + CONTRAST * ink + noise * NORMAL[words].reshape(ink.shape)
    return np.rint(grey.clip(0, 1) * 255).astype(np.uint8)


def _bits(stream: str, start: int, count: int) -> np.ndarray:
    """64-bit words `start` to `start` + `count` (start divisible by 4) of the Philox stream of this name."""
    return np.random.Philox(key=zlib.crc32(stream.encode()), counter=start // 4).random_raw(count)


def distort(originals: np.ndarray, numbers: np.ndarray, size: float = 1) -> np.ndarray:
    """Originals (N, S, S) drawn as (N, SIDE, SIDE), distorted by numbers (N, 5) from -1 to 1 and enlarged; without noise."""
    turn, scale, shear, right, down = (numbers * (TURN, SCALE, SHEAR, SHIFT, SHIFT)).T[:, :, None, None]
    cosine, sine = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    # Backwards, from a stored pixel to a place in the original, both measured from their centres.
    side = originals.shape[1]
    y, x = (np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2) / size
    x, y = (x - right) / (1 + scale), (y - down) / (1 + scale)
    x, y = cosine * x + sine * y, cosine * y - sine * x
    x, y = (x + shear * y) * (side / EXTENT), y * (side / EXTENT)
    return _cubic(originals, x + (side - 1) / 2, y + (side - 1) / 2)


def _cubic(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Images (N, S, S) at the places x, y (N, ...) by cubic convolution (a = -0.5, as Pillow's); outside of them 0."""
    side = images.shape[1]
    padded = np.pad(images, ((0, 0), (2, 3), (2, 3)))  # what a place between -1 and S reaches
    x, y = x.clip(-1, side), y.clip(-1, side)
    left, top = np.floor(x), np.floor(y)
    first = (np.arange(len(images))[:, None, None] * (side + 5) + top.astype(int) + 1) * (side + 5) + left.astype(int) + 1
    across, total = _weights(x - left), np.zeros_like(x)
    for row, down in enumerate(_weights(y - top)):
        line = np.zeros_like(x)
        for column, weight in enumerate(across):
            line += weight * padded.take(first + (row * (side + 5) + column))
        total += down * line
    return total


def _weights(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the four pixels around a place that is `t` beyond the second of them."""
    return (((1 - 0.5 * t) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((2 - 1.5 * t) * t + 0.5) * t, (0.5 * t - 0.5) * t * t)


def png(pixels: np.ndarray) -> bytes:
    """A grey image (H, W) uint8 as a PNG that is not compressed."""
    height, width = pixels.shape
    lines = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each begins with its filter, 0: none
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(lines, 0))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
