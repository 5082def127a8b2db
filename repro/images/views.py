"""Views: from a stored image to the square that the network sees; of one image, then of many small ones at once.

Cubic is OpenCV's INTER_CUBIC, as in the release: unlike Pillow's filter, it does not widen its support when shrinking.
"""

from functools import cache

import cv2
import numpy as np

from repro.images.packed import Preprocessing

ATTEMPTS = 10  # to find an area and aspect ratio that fit, before the fallback
DRAWS = 5 * ATTEMPTS + 6  # random numbers per image, a multiple of 4: (area, change, swap, x, y) per attempt, ...,
#                           and the last three are (mirror, x, y) of the square views


def _scaled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    same = image.shape[:2] == (height, width)
    return image if same else cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _short_side(image: np.ndarray, side: int) -> np.ndarray:
    """The image scaled so that its short side is `side`."""
    height, width = image.shape[:2]
    short = min(height, width)
    longest = 16 * short  # of a very long image only the middle is used: scaled up, 1 x 5000 pixels would fill the memory
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    image = image[top : top + longest, left : left + longest]
    height, width = image.shape[:2]
    return _scaled(image, max(side, round(width * side / short)), max(side, round(height * side / short)))


def _mirrored(image: np.ndarray, seen: Preprocessing, number: float) -> np.ndarray:
    return image[:, ::-1] if seen.mirror and number < 0.5 else image


def _cut(image: np.ndarray, x: int, y: int, width: int, height: int, size: int) -> np.ndarray:
    return _scaled(image[y : y + height, x : x + width], size, size)


def _random_square(image: np.ndarray, seen: Preprocessing, numbers: list[float]) -> np.ndarray:
    """A square of the network's input size at a random position, not scaled, mirrored half the time."""
    mirror, x, y = numbers
    height, width = image.shape[:2]
    corner = int(x * (width - seen.size + 1)), int(y * (height - seen.size + 1))
    return _mirrored(_cut(image, *corner, seen.size, seen.size, seen.size), seen, mirror)


def scale_aspect_view(image: np.ndarray, seen: Preprocessing, numbers: list[float]) -> np.ndarray:
    """The released training view: a random share of the area with a random aspect ratio, scaled to the square.

    One random factor multiplies one side and divides the other, so the aspect ratio is in [0.5625, 1.7778].
    """
    full_height, full_width = image.shape[:2]
    for attempt in range(ATTEMPTS):
        area, change, swap, x, y = numbers[5 * attempt : 5 * attempt + 5]
        area = round(seen.smallest_area + area * (1 - seen.smallest_area), 3) * full_width * full_height
        change = 0.75 + change * (4 / 3 - 0.75)
        width, height = max(1, round(area**0.5 / change)), max(1, round(area**0.5 * change))
        if swap < 0.5:
            width, height = height, width
        if width <= full_width and height <= full_height:
            corner = int(x * (full_width - width + 1)), int(y * (full_height - height + 1))
            return _mirrored(_cut(image, *corner, width, height, seen.size), seen, numbers[-3])
    return _random_square(_short_side(image, seen.size), seen, numbers[-3:])


def scale_view(image: np.ndarray, seen: Preprocessing, numbers: list[float]) -> np.ndarray:
    """Scale only: the short side to between 256 and 480 (for an input of 224), then a random square."""
    short = round(seen.size / 224 * (256 + numbers[0] * (480 - 256)))
    return _random_square(_short_side(image, short), seen, numbers[-3:])


def crop_view(image: np.ndarray, seen: Preprocessing, numbers: list[float]) -> np.ndarray:
    """The collapse's view: a random square of the stored image, not scaled, mirrored half the time."""
    if min(image.shape[:2]) < seen.size:  # the release's images were stored large enough
        image = _short_side(image, seen.size)
    return _random_square(image, seen, numbers[-3:])


def test_view(image: np.ndarray, seen: Preprocessing, zoom: float = 1) -> np.ndarray:
    """The short side scaled to `zoom` times `short_side`, the centre cut out: one view, not mirrored."""
    image = _short_side(image, round(zoom * seen.short_side))
    height, width = image.shape[:2]
    return _cut(image, (width - seen.size) // 2, (height - seen.size) // 2, seen.size, seen.size, seen.size)


TRAINING_VIEWS = {"scale_aspect": scale_aspect_view, "scale": scale_view, "none": crop_view}


# --- Many small square images at once -----------------------------------------------------------------------------------
# As array operations: one image at a time would cost more than a small network's training step. Scaling is INTER_CUBIC in its
# fixed-point form: weights are multiples of 2**-11, pixels are integers, so that every sum is exact in float64 and does not
# depend on its order, the number of images or the machine.

BITS = 11  # of a weight's fraction, as in OpenCV
SHARPNESS = np.float32(-0.75)  # the parameter of Keys' cubic kernel (1981) that OpenCV uses


def many_views(images: np.ndarray, view: str, seen: Preprocessing, numbers: np.ndarray) -> np.ndarray:
    """`scale_aspect_view` or `crop_view` of many square images at once: (N, side, side, C) -> (N, size, size, C)."""
    side = images.shape[1]
    if view == "scale_aspect":
        boxes = scale_aspect_boxes(numbers, side, seen, ATTEMPTS)
    else:
        boxes = crop_boxes(numbers[:, -2:], side, min(side, seen.size))
    views = cut(images, boxes, seen.size)
    if seen.mirror:
        mirrored = numbers[:, -3] < 0.5
        views[mirrored] = views[mirrored, :, ::-1]
    return views


def scale_aspect_boxes(numbers: np.ndarray, side: int, seen: Preprocessing, attempts: int) -> np.ndarray:
    """The boxes that `scale_aspect_view` cuts out of square images: (N, 4) integers, y, x, height, width.

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
    """The boxes of `crop_view`: (N, 4) squares of `size` pixels; `numbers` (N, 2) are x and y, each in [0, 1)."""
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
