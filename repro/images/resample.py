"""The views of `data` for many small square images at once, as array operations; one image at a time would cost more than a
small network's training step.

Scaling is OpenCV's INTER_CUBIC in its fixed-point form: weights are multiples of 2**-11, pixels are integers, so that every
sum is exact in float64 and does not depend on its order, the number of images or the machine.
"""

from functools import cache

import numpy as np

from repro.images.packed import Preprocessing

BITS = 11  # of a weight's fraction, as in OpenCV
SHARPNESS = np.float32(-0.75)  # the parameter of Keys' cubic kernel (1981) that OpenCV uses


def scale_aspect_boxes(numbers: np.ndarray, side: int, seen: Preprocessing, attempts: int) -> np.ndarray:
    """The boxes that `data.scale_aspect_view` cuts out of square images: (N, 4) integers, y, x, height, width.

    `numbers` (N, at least 5 * attempts) are in [0, 1): area, change, swap, x and y of each attempt to find a box that fits.
    Where none does, the box is the whole image.
    """
    area, change, swap, x, y = np.moveaxis(numbers[:, : 5 * attempts].reshape(-1, attempts, 5), 2, 0)
    length = np.sqrt(np.round(seen.smallest_area + area * (1 - seen.smallest_area), 3) * side * side)
    change = 0.75 + change * (4 / 3 - 0.75)
    narrow, wide = (np.maximum(1, np.rint(value)).astype(np.int64) for value in (length / change, length * change))
    width, height = np.where(swap < 0.5, (wide, narrow), (narrow, wide))
    fits = (width <= side) & (height <= side)
    chosen = np.arange(len(numbers)), fits.argmax(1)  # the first that fits
    width, height, x, y = width[chosen], height[chosen], x[chosen], y[chosen]
    boxes = np.stack([y * (side - height + 1), x * (side - width + 1), height, width], 1).astype(np.int64)
    return np.where(fits.any(1)[:, None], boxes, [0, 0, side, side])


def crop_boxes(numbers: np.ndarray, side: int, size: int) -> np.ndarray:
    """The boxes of `data.crop_view`: (N, 4) squares of `size` pixels; `numbers` (N, 2) are x and y, each in [0, 1)."""
    corners = (numbers[:, ::-1] * (side - size + 1)).astype(np.int64)
    return np.concatenate([corners, np.full_like(corners, size)], 1)


def cut(images: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Each image's box (y, x, height, width), scaled to a square: (N, side, side, C) -> (N, size, size, C) uint8."""
    number, side, _, channels = images.shape
    weights = _weights(side, size)
    rows, columns = (weights[length, start] for start, length in (boxes[:, [0, 2]].T, boxes[:, [1, 3]].T))
    scaled = rows @ images.reshape(number, side, side * channels).astype(np.float64)
    scaled = np.moveaxis(scaled.reshape(number, size, side, channels), 3, 1).reshape(number, channels * size, side)
    scaled = scaled @ columns.transpose(0, 2, 1)
    half = 1 << (2 * BITS - 1)
    pixels = np.floor((scaled + half) * 0.25**BITS).clip(0, 255).astype(np.uint8)
    return np.moveaxis(pixels.reshape(number, channels, size, size), 1, 3)


@cache
def _weights(side: int, size: int) -> np.ndarray:
    """The weight of each source pixel in each result, in units of 2**-BITS: (length, start, size, side), the box's as indices.

    Positions outside the box count for the nearest pixel inside, as if it had been cut out before it is scaled.
    """
    weights = np.zeros((side + 1, side + 1, size, side))
    for length in range(1, side + 1):
        position = (np.arange(size) + 0.5) * length / size - 0.5
        first = np.floor(position).astype(np.int64)
        taps = np.rint(_cubic((position - first).astype(np.float32)) * 2**BITS)
        for start in range(side - length + 1):
            for tap in range(4):
                pixel = start + np.clip(first - 1 + tap, 0, length - 1)
                weights[length, start, np.arange(size), pixel] += taps[:, tap]
    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """The weights (N, 4) of the pixels at -1, 0, 1 and 2 for the position x in [0, 1)."""
    outer = ((SHARPNESS * (x + 1) - 5 * SHARPNESS) * (x + 1) + 8 * SHARPNESS) * (x + 1) - 4 * SHARPNESS
    inner, other = (((SHARPNESS + 2) * z - (SHARPNESS + 3)) * z * z + 1 for z in (x, 1 - x))
    return np.stack([outer, inner, other, 1 - outer - inner - other], 1)
