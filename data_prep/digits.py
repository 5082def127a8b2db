"""Packs the default data set: scikit-learn's 1,797 real handwritten digits, made hard enough to tell models apart.

The originals, 8 x 8 pixels, are too easy: any network reads nearly all of them. Here each is drawn many times, distorted and
with noise (`drawing`): 20,000 training images from 700 originals, 5,000 for validation from 200, 20,000 test images from
the other 897, so that no original is in two splits.

    python data_prep/digits.py [--out data/digits]
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import drawing
from repro.paths import DATA

ORIGINALS = {"train": slice(0, 700), "val": slice(700, 900), "test": slice(900, None)}
NOISE = 0.6  # standard deviation, in units of the contrast; chosen on validation images (see docs/digits.md)
MEAN, DEVIATION = 110.0, 54.0  # of all training pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA / "digits", help="folder (default: %(default)s)")
    out = parser.parse_args().out
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the file is ordered by the people who wrote the digits
    originals = {
        split: [(int(digits.target[i]), digits.images[i] / 16) for i in order[chosen]] for split, chosen in ORIGINALS.items()
    }
    drawing.pack(out, "digits", [str(n) for n in range(10)], originals, NOISE, MEAN, DEVIATION)


if __name__ == "__main__":
    main()
