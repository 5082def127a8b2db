"""The sample stream, the views (train, collapse, test), and the data sets.

Which image a worker sees at a step, and how it is augmented, is a pure function of (seed, step, place in the batch):
nothing random has to be saved, and it does not matter which rank asks. Random numbers are raw outputs of NumPy's
Philox generator, a published counter-based function; only its bits are used, which NumPy keeps stable.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from repro import ReproError, choose
from repro.packed import Packed
from repro.paths import DATA

ATTEMPTS = 10  # at an area and aspect that fit, before the fallback
DRAWS = 5 * ATTEMPTS + 6  # random numbers an image, a multiple of 4: (area, change, swap, x, y) an attempt, ...,
#                           and the last three are (mirror, x, y) of the square views


@dataclass(frozen=True)
class Kind:
    """What the views need to know of a data set."""

    size: int  # pixels a side that the network sees
    short_side: int  # the test view scales the short side to this, then cuts the centre
    mode: str  # Pillow's: "RGB" or "L"
    mean: tuple[float, ...]  # subtracted, 0 to 255, in the order of the channels that the network sees
    scale: float  # multiplied afterwards
    bgr: bool = False  # the release reads images as OpenCV does
    mirror: bool = True
    smallest_area: float = 0.08


IMAGENET = Kind(size=224, short_side=256, mode="RGB", mean=(104, 117, 123), scale=1 / 128, bgr=True)
KINDS = {
    "digits": Kind(size=8, short_side=10, mode="L", mean=(86,), scale=1 / 90, mirror=False, smallest_area=0.95),
    "cifar10": Kind(size=28, short_side=32, mode="RGB", mean=(114, 123, 125), scale=1 / 64, bgr=True),
    "imagenet": IMAGENET,
    "places365": IMAGENET,
}


class Images:
    """One split of a packed data set; `images.load(i)` -> (label, Pillow image)."""

    def __init__(self, data: str, split: str, limit: int | None = None):
        """`data` is a data set's name (packed under data/) or the path of a folder that bears it; `limit` images."""
        folder = Path(data) if "/" in data else DATA / data
        self.name = choose("data set", folder.name, KINDS)
        self.kind = KINDS[self.name]
        self.packed = Packed(folder / f"{split}.lmdb", self.name, split)
        self.count = min(len(self.packed), limit or len(self.packed))
        self.classes = self.packed.manifest["classes"]
        self.digest = self.packed.manifest["sha256"]
        # A small set is decoded once; ImageNet would not fit.
        self.load = lru_cache(maxsize=None)(self._decode) if self.kind.size <= 32 else self._decode

    def __len__(self) -> int:
        return self.count

    @property
    def channels(self) -> int:
        return len(self.kind.mean)

    def _decode(self, index: int) -> tuple[int, Image.Image]:
        label, encoded = self.packed[index]
        try:
            return label, Image.open(io.BytesIO(encoded)).convert(self.kind.mode)
        except (OSError, Image.DecompressionBombError) as error:
            raise ReproError(f"{self.packed.path}: record {index} is not an image ({error})") from error

    def test_batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `start` to `stop` in the test view: (N, C, size, size) float32 and labels (N,)."""
        loaded = [self.load(index) for index in range(start, stop)]
        return self.tensors([label for label, _ in loaded], [test_view(image, self.kind) for _, image in loaded])

    def tensors(self, labels: list[int], views: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images (N, C, size, size), channels last in memory, and labels (N,)."""
        pixels = np.stack([np.asarray(view) for view in views])
        pixels = pixels[..., None] if self.channels == 1 else pixels[..., :: -1 if self.kind.bgr else 1]
        pixels = (pixels - np.float32(self.kind.mean)) * np.float32(self.kind.scale)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels)


class Stream:
    """The training images of each worker at each step.

    As in the release, all workers share one shuffled list, made anew at its end, and take turns: of a step's images
    worker w gets the w-th, the (w + workers)-th, and so on.
    """

    def __init__(self, images: Images, seed: int, workers: int, images_per_worker: int):
        self.images, self.seed, self.workers, self.images_per_worker = images, seed, workers, images_per_worker
        self.order = lru_cache(maxsize=2)(self._order)  # a step may span the end of one epoch and the next one's start

    def _order(self, epoch: int) -> np.ndarray:
        return np.argsort(_bits(self.seed, epoch, purpose=0, start=0, count=len(self.images)), kind="stable")

    def samples(self, step: int, worker: int) -> list[int]:
        """The records that this worker sees at this step."""
        first = step * self.workers * self.images_per_worker + worker
        places = range(first, first + self.workers * self.images_per_worker, self.workers)
        return [int(self.order(place // len(self.images))[place % len(self.images)]) for place in places]

    def batch(self, step: int, worker: int, augmentation: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images (N, C, size, size) and labels (N,) of one worker at one step."""
        view = VIEWS[augmentation]
        bits = _bits(self.seed, step, purpose=1, start=worker * self.images_per_worker * DRAWS,
                     count=self.images_per_worker * DRAWS)
        random = (bits >> np.uint64(11)).reshape(-1, DRAWS) * 2.0**-53
        loaded = [self.images.load(sample) for sample in self.samples(step, worker)]
        views = [view(image, self.images.kind, numbers.tolist()) for (_, image), numbers in zip(loaded, random)]
        return self.images.tensors([label for label, _ in loaded], views)


def _bits(seed: int, key: int, purpose: int, start: int, count: int) -> np.ndarray:
    """64-bit words `start` to `start + count` (start divisible by 4) of the Philox stream of (seed, key, purpose)."""
    return np.random.Philox(key=[seed, key], counter=[start // 4, 0, 0, purpose]).random_raw(count)


# --- Views: from a stored image to the square that the network sees --------------------------------------------------


def _cut(image: Image.Image, x: float, y: float, width: float, height: float, size: int) -> Image.Image:
    """The rectangle, scaled to (size, size). Pillow's cubic filter widens where it shrinks; OpenCV's does not."""
    if (width, height) == (size, size) and x == int(x) and y == int(y):
        return image.crop((int(x), int(y), int(x) + size, int(y) + size))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))


def _mirrored(image: Image.Image, kind: Kind, number: float) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if kind.mirror and number < 0.5 else image


def _random_square(image: Image.Image, kind: Kind, side: float, numbers: list[float]) -> Image.Image:
    """A square of `side` stored pixels at a random place, scaled to the network's size, mirrored half the time."""
    mirror, x, y = numbers
    corner = int(x * (image.width - ceil(side) + 1)), int(y * (image.height - ceil(side) + 1))
    return _mirrored(_cut(image, *corner, side, side, kind.size), kind, mirror)


def scale_aspect_view(image: Image.Image, kind: Kind, numbers: list[float]) -> Image.Image:
    """The released training view: a random part of the area, its sides changed by one factor, scaled to the square.

    The factor multiplies one side and divides the other, so the aspect ratio spans [0.5625, 1.7778].
    """
    for attempt in range(ATTEMPTS):
        area, change, swap, x, y = numbers[5 * attempt : 5 * attempt + 5]
        area = round(kind.smallest_area + area * (1 - kind.smallest_area), 3) * image.width * image.height
        change = 0.75 + change * (4 / 3 - 0.75)
        width, height = round(area**0.5 / change), round(area**0.5 * change)
        if swap < 0.5:
            width, height = height, width
        if width <= image.width and height <= image.height:
            corner = int(x * (image.width - width + 1)), int(y * (image.height - height + 1))
            return _mirrored(_cut(image, *corner, width, height, kind.size), kind, numbers[-3])
    return _random_square(image, kind, min(image.size), numbers[-3:])


def scale_view(image: Image.Image, kind: Kind, numbers: list[float]) -> Image.Image:
    """Scale alone: the short side to 256 to 480 (for 224 seen), then a random square."""
    short = round(kind.size / 224 * (256 + numbers[0] * (480 - 256)))
    return _random_square(image, kind, kind.size * min(image.size) / short, numbers[-3:])


def crop_view(image: Image.Image, kind: Kind, numbers: list[float]) -> Image.Image:
    """The collapse's view: a random square of the stored image, not scaled, mirrored half the time."""
    return _random_square(image, kind, min(kind.size, *image.size), numbers[-3:])


def test_view(image: Image.Image, kind: Kind) -> Image.Image:
    """The short side scaled to `short_side`, the centre cut out: one look, no mirror."""
    side = kind.size * min(image.size) / kind.short_side
    return _cut(image, (image.width - side) / 2, (image.height - side) / 2, side, side, kind.size)


VIEWS = {"scale_aspect": scale_aspect_view, "scale": scale_view, "none": crop_view}
