"""Packs the default data set: scikit-learn's 1,797 real handwritten digits, made hard enough to tell models apart.

The originals, 8 x 8 pixels, are too easy: any network reads nearly all of them. Here they are drawn larger, distorted
and with noise (drawing.py). No original is in two splits: training has 700 of them, validation 200, test the other 897,
and in each the ten digits are about equally frequent. People are not kept apart: the same 13 wrote the digits of all
three. Every machine packs the same bytes.

    python data_prep/digits.py [--out data/digits]
"""

import numpy as np
from sklearn.datasets import load_digits

from repro.images import packed

import drawing

NOISE = 0.18  # standard deviation, on a scale from 0 to 1
# Mean and deviation are those of the training images; the smallest area is not the paper's 0.08.
PREPROCESSING = packed.Preprocessing(
    size=drawing.SEEN, short_side=drawing.SIDE, mean=(112,), scale=(1 / 52,), mirror=False, smallest_area=drawing.SMALLEST_AREA
)
SPLITS = {"train": slice(0, 700), "val": slice(700, 900), "test": slice(900, None)}  # of the originals, in `order`
CLASSES = [str(n) for n in range(10)]


def originals() -> dict[str, drawing.Originals]:
    """The originals of each split: ink (N, 8, 8) from 0 to 1 and digits (N,)."""
    digits = load_digits()
    chosen = order(digits.target)
    return {split: (digits.images[chosen[part]] / 16, digits.target[chosen[part]]) for split, part in SPLITS.items()}


def order(labels: np.ndarray) -> np.ndarray:
    """A random permutation in which the classes take turns; the file is ordered by the people who wrote the digits."""
    shuffled = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    labels = labels[shuffled]
    turns = [np.count_nonzero(labels[:place] == label) for place, label in enumerate(labels)]
    return shuffled[np.argsort(turns, kind="stable")]


if __name__ == "__main__":
    drawing.run(__doc__, "digits", CLASSES, originals, NOISE, PREPROCESSING)
