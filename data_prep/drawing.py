"""Draws an image data set from few originals: each drawing is another distortion of one of them, with noise.

The random numbers are fixed, and a pixel is rounded to 1 of 256 levels, so that every machine packs the same pixels.
"""

from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from repro import packed

SIDE, SEEN = 18, 16  # pixels per side that are stored, and that the network sees: 8/9, as 224 of 256
BACKGROUND, CONTRAST = 0.35, 0.3  # grey level of nothing, and what an original's full intensity adds to it
SPLITS = {"train": 20_000, "val": 5_000, "test": 20_000}  # drawings


def draw(original: np.ndarray, noise: float, generator: np.random.Generator) -> bytes:
    """A PNG of SIDE x SIDE pixels: a square original (0 to 1), distorted, on a grey background, with Gaussian noise.

    `original` are its cubic spline coefficients. `noise` is a standard deviation in units of the contrast. Rotation up to 15 degrees, scale 0.85 to 1.15, shear up to 0.15, shift up to a sixteenth of the side.
    """
    scale, shear = generator.uniform(0.85, 1.15), generator.uniform(-0.15, 0.15)
    angle, shift = np.deg2rad(generator.uniform(-15, 15)), generator.uniform(-1 / 16, 1 / 16, 2)
    size = len(original)
    # The inverse map, from a stored pixel to a position in the original, both measured from their centres.
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = size / SIDE / scale * rotation @ np.array([[1, shear], [0, 1]])
    offset = (size - 1) / 2 + size * shift - matrix @ np.full(2, (SIDE - 1) / 2)
    pixels = BACKGROUND + CONTRAST * ndimage.affine_transform(
        original, matrix, offset, (SIDE, SIDE), prefilter=False
    )
    pixels += generator.normal(0, CONTRAST * noise, (SIDE, SIDE))
    return cv2.imencode(".png", (pixels.clip(0, 1) * 255).round().astype(np.uint8))[1].tobytes()


def pack(
    out: Path,
    name: str,
    classes: list[str],
    originals: dict[str, list[tuple[int, np.ndarray]]],
    noise: float,
    mean: float,
    deviation: float,
) -> None:
    """Packs the three splits, each from its own originals, (label, image) pairs: drawing i is of original i modulo their number.

    `mean` and `deviation` are those of all pixels of the drawings, 0 to 255; the network sees (pixel - mean) / deviation.
    """
    preprocessing = packed.Preprocessing(
        size=SEEN, short_side=SIDE, mean=(mean,), scale=(1 / deviation,), mirror=False
    )
    for number, (split, count) in enumerate(SPLITS.items()):
        chosen = [(label, ndimage.spline_filter(image)) for label, image in originals[split]]
        generator = np.random.default_rng([2, number])
        items = [
            packed.Item(label, draw(image, noise, generator))
            for label, image in (chosen[drawing % len(chosen)] for drawing in range(count))
        ]

        def rest(start: int, items: list[packed.Item] = items) -> list[packed.Item]:
            return items[start:]

        manifest = packed.write(
            out / f"{split}.lmdb", name, split, classes, rest, stored="PNG", preprocessing=preprocessing, originals=len(chosen)
        )
        print(f"{out / split}.lmdb: {manifest['count']} images of {len(chosen)} originals, sha256 {manifest['sha256'][:12]}")
