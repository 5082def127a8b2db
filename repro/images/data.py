"""The sample stream, the views (train, collapse, test), and the data sets.

Which image a worker sees at a step, and how it is augmented, is a pure function of (seed, step, position in the batch):
no random state has to be saved, and any rank gets the same result. Random numbers are the raw outputs of NumPy's
Philox generator, a published counter-based function; only these raw bits are used, which NumPy keeps stable.
"""

import copy
from collections.abc import Generator, Iterable
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
import torch

from repro import ReproError
from repro.images import ahead
from repro.images.packed import Packed, Preprocessing, data_folder
from repro.images.views import DRAWS, TRAINING_VIEWS, many_views, test_view
from repro.schedule import Now

cv2.setNumThreads(1)  # images are decoded by several threads (`load_ahead`), which need no further threads each

ZOOM = 1.2  # about the median magnification of the main stages' view of digits (1.19) and of ImageNet against the test view

# torchvision's models expect RGB in [0, 1] minus these means, divided by these standard deviations (its documentation).
TORCHVISION: dict[str, Any] = dict(
    mean=tuple(255 * mean for mean in (0.485, 0.456, 0.406)),
    scale=tuple(1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)),
    bgr=False,
)


def adapted(stored: Preprocessing, name: str, normalization: str = "release", size: int = 0) -> Preprocessing:
    """The preprocessing of the data set `name`, with torchvision's normalization or another `size` if requested."""
    if normalization == "torchvision":
        if len(stored.mean) != 3:
            raise ReproError(
                f"normalization torchvision is for colour images, and {name} has {len(stored.mean)} channel: use release"
            )
        stored = replace(stored, **TORCHVISION)
    return replace(stored, size=size, short_side=round(size * stored.short_side / stored.size)) if size else stored


class Images:
    """One split of a packed data set; `images.load(i)` -> (label, pixels as (H, W, 3) BGR or (H, W) grey, uint8)."""

    def __init__(self, data: str, split: str, normalization: str = "release", size: int = 0):
        """`data` is a data set's name (packed under data/) or the path of its folder.

        `split` is "train", "test" or "val"; without a validation split the last raises a ReproError.
        """
        folder = data_folder(data)
        self.name = folder.name
        self.packed = Packed(folder / f"{split}.lmdb", self.name, split)
        self.preprocessing = adapted(self.packed.preprocessing, self.name, normalization, size)
        self.count = len(self.packed)
        self.originals = self.packed.originals  # image i is a drawing of original i % originals
        self.classes = self.packed.manifest["classes"]
        self.digest = self.packed.manifest["sha256"]
        self.small = self.preprocessing.short_side <= 64
        # Small images are decoded once and kept; ImageNet would not fit in memory.
        self.load = lru_cache(maxsize=None)(self._decode) if self.small else self._decode

    def __len__(self) -> int:
        return self.count

    def first(self, number: int) -> "Images":
        """The first `number` images of this split, or all if there are fewer."""
        part = copy.copy(self)
        part.count = min(number, self.count)
        part.originals = min(self.originals, part.count)
        vars(part).pop("arrays", None)  # of more images
        return part

    @property
    def channels(self) -> int:
        return len(self.preprocessing.mean)

    def _decode(self, index: int) -> tuple[int, np.ndarray]:
        label, encoded = self.packed[index]
        # The release's OpenCV did not rotate images by their EXIF orientation; neither does torchvision.
        colour = cv2.IMREAD_GRAYSCALE if self.channels == 1 else cv2.IMREAD_COLOR
        try:
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), colour | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:  # an empty record
            pixels = None
        if pixels is None:
            raise ReproError(f"{self.packed.path}: record {index} is not an image: pack the data set again")
        return label, pixels

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels (N,) and pixels (N, side, side, C) uint8 of all images, if they are small squares of one size; else None."""
        if not self.small:
            return None
        loaded = [self.load(index) for index in range(len(self))]
        if len({image.shape for _, image in loaded}) > 1 or loaded[0][1].shape[0] != loaded[0][1].shape[1]:
            return None
        pixels = np.stack([image for _, image in loaded])
        return np.array([label for label, _ in loaded]), pixels.reshape(*pixels.shape[:3], self.channels)

    def test_batch(self, start: int, stop: int, view: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
        """Images `start` to `stop`: (N, C, size, size) float32 and labels (N,).

        `view` is test, zoom (the centre, enlarged by `ZOOM`), or the name of a training view: then each image is seen in one
        random view, always the same.
        """
        if view not in ("test", "zoom"):
            bits = _bits(0, 0, purpose=2, start=start * DRAWS, count=(stop - start) * DRAWS)
            return self.seen(list(range(start, stop)), view, bits)
        if view == "test" and self.arrays is not None and self.arrays[1].shape[1] == self.preprocessing.short_side:
            labels, pixels = self.arrays  # the stored images need no scaling
            corner, size = (self.preprocessing.short_side - self.preprocessing.size) // 2, self.preprocessing.size
            return self.tensors(labels[start:stop], pixels[start:stop, corner : corner + size, corner : corner + size])
        loaded = [self.load(index) for index in range(start, stop)]
        zoom = ZOOM if view == "zoom" else 1
        return self.tensors([label for label, _ in loaded], [test_view(image, self.preprocessing, zoom) for _, image in loaded])

    def seen(self, samples: list[int], view: str, bits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The images of these numbers in a training view, each by DRAWS of the random `bits`: (N, C, size, size), (N,)."""
        numbers = (bits >> np.uint64(11)).reshape(-1, DRAWS) * 2.0**-53
        if self.arrays is not None and view in ("scale_aspect", "none"):
            labels, pixels = self.arrays
            return self.tensors(labels[samples], many_views(pixels[samples], view, self.preprocessing, numbers))
        loaded = [self.load(sample) for sample in samples]
        views = [TRAINING_VIEWS[view](image, self.preprocessing, draws.tolist()) for (_, image), draws in zip(loaded, numbers)]
        return self.tensors([label for label, _ in loaded], views)

    def tensors(self, labels, views) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images (N, C, size, size), channels last in memory, and labels (N,), of views (size, size[, C]) uint8."""
        seen, pixels = self.preprocessing, np.asarray(views)
        if self.channels == 3 and not seen.bgr:
            pixels = pixels[..., ::-1]
        pixels = np.ascontiguousarray(pixels, np.float32)
        rows = pixels.reshape(len(views), seen.size, -1)  # whole rows at a time: single pixels of three numbers would be slow
        rows -= np.tile(np.float32(seen.mean), seen.size)  # type: ignore[arg-type]
        rows *= np.tile(np.float32(seen.scale), seen.size)  # type: ignore[arg-type]
        pixels = pixels.reshape(len(views), seen.size, seen.size, self.channels)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.as_tensor(labels)


class Stream:
    """The training images of each worker at each step.

    As in the release, all workers share one shuffled list, which is shuffled again at its end, and take images from it
    alternately: of a step's images, worker w gets the w-th, the (w + workers)-th, and so on.
    """

    def __init__(self, images: Images, seed: int, images_per_worker: int):
        self.images, self.seed, self.images_per_worker = images, seed, images_per_worker
        self.order = lru_cache(maxsize=2)(self._order)  # a step may span the end of one epoch and the next one's start

    def _order(self, epoch: int) -> np.ndarray:
        return np.argsort(_bits(self.seed, epoch, purpose=0, start=0, count=len(self.images)), kind="stable")

    def samples(self, now: Now, worker: int) -> list[int]:
        """The record numbers that this worker sees at this step."""
        first = now.place.images
        positions = range(first + worker, first + now.workers * self.images_per_worker, now.workers)
        return [int(self.order(position // len(self.images))[position % len(self.images)]) for position in positions]

    def batch(self, now: Now, worker: int, number: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images (N, C, size, size) and labels (N,) of one worker at one step, or of `number` from this one on."""
        samples = [sample for each in range(worker, worker + number) for sample in self.samples(now, each)]
        bits = _bits(
            self.seed, now.place.steps, purpose=1, start=worker * self.images_per_worker * DRAWS, count=len(samples) * DRAWS
        )
        return self.images.seen(samples, now.stage.augmentation, bits)


def _bits(seed: int, key: int, purpose: int, start: int, count: int) -> np.ndarray:
    """64-bit words `start` to `start + count` (start divisible by 4) of the Philox stream of (seed, key, purpose)."""
    return np.random.Philox(key=[seed, key], counter=[start // 4, 0, 0, purpose]).random_raw(count)


def requests(steps: Iterable[Now], workers_per_pass: int, rank: int, ranks: int) -> Generator:
    """The arguments of `Stream.batch` for a rank's passes, one after the other, step after step."""
    for now in steps:
        for worker in range(0, now.workers, workers_per_pass)[rank::ranks]:
            yield now, worker, min(workers_per_pass, now.workers - worker)


def load_ahead(stream: Stream, requests: Iterable[tuple], threads: int) -> Generator:
    """Yields `stream.batch(*request)` for each (step, worker[, number of workers]), decoded by threads in advance.

    Small images are kept decoded, and threads would only take the interpreter from the training step, so none are used.
    """
    threads = 0 if stream.images.small else threads
    return ahead.ordered(stream.batch, requests, threads, ahead=2 * threads)
