"""Packs the default data set: scikit-learn's 1,797 real handwritten digits, made hard enough to tell models apart.

The originals, 8 x 8 pixels, are too easy: any network reads nearly all of them. Here each is drawn at 10 x 10 with a
small random scale, rotation and shift, and Gaussian noise. The 900 training images come from 900 originals, the 4,000 test
images from the other 897, so that no original is on both sides. The random numbers are fixed: every machine packs the
same pixels.

    python data_prep/digits.py [--out data/digits]
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from repro import packed
from repro.paths import DATA

SIDE = 10  # stored; the network sees 8 x 8 of it
PREPROCESSING = packed.Preprocessing(size=8, short_side=SIDE, mean=(86,), scale=(1 / 90,), mirror=False, smallest_area=0.95)
NOISE = 0.3  # standard deviation, on a scale from 0 to 1
SPLITS = {"train": (slice(0, 900), 900), "test": (slice(900, None), 4000)}  # originals, images drawn


def draw(digit: np.ndarray, generator: np.random.Generator) -> bytes:
    """A PNG of one original (8 x 8, 0 to 16), distorted."""
    scale, angle = generator.uniform(0.85, 1.15), np.deg2rad(generator.uniform(-15, 15))
    shift = generator.uniform(-0.6, 0.6, size=2)
    # The inverse map, from a stored pixel to a position in the original, both measured from their centres.
    zoom = 8 / SIDE / scale
    cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)
    middle = SIDE / 2
    coefficients = (
        cosine,
        -sine,
        4 + shift[0] - cosine * middle + sine * middle,
        sine,
        cosine,
        4 + shift[1] - sine * middle - cosine * middle,
    )
    image = Image.fromarray((digit / 16).astype(np.float32))
    image = image.transform((SIDE, SIDE), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC)
    pixels = np.asarray(image) + generator.normal(0, NOISE, (SIDE, SIDE))
    file = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA / "digits", help="folder (default: %(default)s)")
    out = parser.parse_args().out
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the file is ordered by the people who wrote the digits
    for split, (originals, count) in SPLITS.items():
        chosen = order[originals]
        generator = np.random.default_rng([1, len(chosen)])
        items = [
            packed.Item(int(digits.target[i]), draw(digits.images[i], generator))
            for i in (chosen[n % len(chosen)] for n in range(count))
        ]

        def rest(start: int, items: list[packed.Item] = items) -> list[packed.Item]:
            return items[start:]

        manifest = packed.write(
            out / f"{split}.lmdb", "digits", split, [str(n) for n in range(10)], rest, stored="PNG", preprocessing=PREPROCESSING
        )
        print(f"{out / split}.lmdb: {manifest['count']} images, sha256 {manifest['sha256'][:12]}")


if __name__ == "__main__":
    main()
