"""Which image each worker sees, and what it sees of it, against plain arrays."""

import hashlib
import io

import digits as digits_set
import numpy as np
import pytest
import torch
from PIL import Image

from repro import ReproError
from repro.images import data, packed, views
from repro.images.data import Images, Stream
from repro.images.packed import PHOTOGRAPHS as IMAGENET
from repro.images.packed import Preprocessing
from repro.images.views import ATTEMPTS, DRAWS
from repro.schedule import Recipe, Stage, at

from conftest import COUNTS

DIGITS = digits_set.PREPROCESSING
SMALL = Preprocessing(size=28, short_side=32, mean=(114, 123, 125), scale=(1 / 64,) * 3)


def now(step, workers=3, images_per_worker=4, view="scale_aspect"):
    return at(Recipe("r", (Stage("s", 10**6, 0.1, augmentation=view),), workers, images_per_worker), step)


class Asked:
    """The stream of a recipe of one stage; asked for steps by their numbers."""

    def __init__(self, images, seed=0, workers=3, images_per_worker=4):
        self.stream, self.recipe = Stream(images, seed, images_per_worker), (workers, images_per_worker)

    def samples(self, step, worker):
        return self.stream.samples(now(step, *self.recipe), worker)

    def batch(self, step, worker, view, number=1):
        return self.stream.batch(now(step, *self.recipe, view), worker, number)


def stream(images=90, *options, **named):
    return Asked(range(images), *options, **named)  # samples() asks only for the number of images


def draws(seed, number):
    return np.random.default_rng(seed).random((number, DRAWS)).tolist()


def mapped(width, height):
    """An image whose pixel at (x, y) is (x, y, 0): a view shows where it comes from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], axis=2).astype(np.uint8)


def blank(kind, width, height):
    return np.zeros((height, width, 3) if len(kind.mean) == 3 else (height, width), np.uint8)


def cubic(line, length):
    """A line of pixels resampled to `length` by the cubic convolution with a = -0.75, straight from its definition."""

    def weight(t):
        t, a = abs(t), -0.75
        return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0

    places = [(i + 0.5) * len(line) / length - 0.5 for i in range(length)]
    around = [[int(np.floor(place)) + k for k in (-1, 0, 1, 2)] for place in places]
    return np.array(
        [sum(weight(place - k) * line[min(max(k, 0), len(line) - 1)] for k in near) for place, near in zip(places, around)]
    )


def plainly_scaled(image, width, height):
    """(H, W, C) resampled row by row and column by column."""
    rows = np.stack([cubic(row, width) for row in image.astype(float)])
    return np.stack([cubic(column, height) for column in rows.transpose(1, 0, 2)]).transpose(1, 0, 2)


# --- The stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images, workers, images_per_worker", [(90, 3, 4), (7, 3, 4), (96, 4, 8), (100, 1, 16)])
def test_an_epoch_is_a_permutation_that_the_workers_deal_out_in_turns(images, workers, images_per_worker):
    """Step after step, worker w gets the w-th, (w + workers)-th, ... of one shuffled list, made anew at its end."""
    one = stream(images, workers=workers, images_per_worker=images_per_worker)
    places = np.array([[one.samples(step, worker) for worker in range(workers)] for step in range(40)])
    seen = places.transpose(0, 2, 1).reshape(-1)  # image by image, the workers in turn
    epochs = seen[: len(seen) // images * images].reshape(-1, images)
    assert len(epochs) > 1 and all(sorted(epoch) == list(range(images)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has the same order"


def test_the_stream_is_what_it_always_was():
    """Pinned: a change of the stream changes every run's result, and must be meant."""
    samples = [
        stream(images, seed, workers).samples(step, worker)
        for images, seed, workers, step, worker in [
            (900, 0, 14, 0, 0),
            (900, 0, 14, 7, 13),
            (900, 1, 14, 7, 13),
            (1281167, 2**63 - 1, 896, 8039, 895),
        ]
    ]
    assert (
        hashlib.sha256(str(samples).encode()).hexdigest() == "126462c52787eaf59da821990642f9cc198e15a7b8977813d94bc5414a4ec54a"
    )


def test_the_stream_does_not_remember_what_was_asked(digits):
    images = Images(digits, "train")
    forward, backward = Asked(images, 3, 4, 6), Asked(images, 3, 4, 6)
    asked = [(step, worker) for step in (0, 1, 40, 150) for worker in range(4)]
    there = {key: forward.batch(*key, "scale_aspect") for key in asked}
    back = {key: backward.batch(*key, "scale_aspect") for key in reversed(asked)}
    for key in asked:
        assert all(map(torch.equal, there[key], back[key]))
        assert forward.samples(*key) == backward.samples(*key)
    alone = Asked(Images(digits, "train"), 3, 4, 6).batch(40, 2, "scale_aspect")  # as a rank that carries worker 2 only
    assert all(map(torch.equal, alone, there[40, 2]))


@pytest.mark.parametrize("augmentation", ["scale_aspect", "scale", "none"])
def test_the_batch_of_several_workers_is_theirs_one_after_the_other(digits, augmentation):
    one = Asked(Images(digits, "train"), 3, 5, 6)
    for first, workers in ((0, 5), (0, 2), (2, 2), (4, 1)):
        images, labels = one.batch(7, first, augmentation, workers)
        each = [one.batch(7, worker, augmentation) for worker in range(first, first + workers)]
        assert torch.equal(images, torch.cat([part for part, _ in each]))
        assert torch.equal(labels, torch.cat([part for _, part in each]))


@pytest.mark.parametrize("view", ["test", "zoom", "scale_aspect"])
def test_a_test_image_looks_the_same_in_every_batch(digits, view):
    images = Images(digits, "test").first(40)
    whole, labels = images.test_batch(0, 40, view)
    for start, stop in ((0, 1), (13, 20), (39, 40)):
        part, of_part = images.test_batch(start, stop, view)
        assert torch.equal(part, whole[start:stop]) and torch.equal(of_part, labels[start:stop])
    others = [images.test_batch(0, 40, other)[0] for other in ("test", "zoom", "scale_aspect") if other != view]
    assert not any(torch.equal(whole, other) for other in others)


def test_each_seed_step_worker_and_place_has_random_numbers_of_its_own(digits, monkeypatch):
    """Uniform in [0, 1): of 16 x 3 images, none shares any of its numbers with another."""
    seen, images = [], Images(digits, "train")
    monkeypatch.setitem(views.TRAINING_VIEWS, "scale", lambda image, kind, numbers: seen.extend(numbers) or image[:16, :16])
    for seed in (0, 1):
        for step in range(4):
            for worker in range(2):
                Asked(images, seed, 2, 3).batch(step, worker, "scale")
    assert len(seen) == len(set(seen)) == 16 * 3 * DRAWS
    counts = np.histogram(seen, bins=10, range=(0, 1))[0]
    assert counts.sum() == len(seen) and abs(counts - len(seen) / 10).max() < 5 * (0.09 * len(seen)) ** 0.5
    assert stream(seed=0).samples(0, 0) != stream(seed=1).samples(0, 0)


def test_labels_belong_to_the_images(digits):
    images = Images(digits, "train")
    one = Asked(images, 0, 2, 5)
    batch, labels = one.batch(3, 1, "none")
    assert batch.shape == (5, 1, images.preprocessing.size, images.preprocessing.size) and batch.dtype == torch.float32
    assert labels.tolist() == [images.packed[sample][0] for sample in one.samples(3, 1)]


# --- The views ---------------------------------------------------------------------------------------------------------


def test_the_collapses_view_is_a_part_of_the_stored_image_mirrored_half_the_time():
    image, corners, mirrored = mapped(256, 240), set(), 0
    pixels = np.asarray(image)
    for numbers in draws(0, 300):
        view = np.asarray(views.crop_view(image, IMAGENET, numbers))
        flip = view[0, 0, 0] > view[0, -1, 0]
        view = view[:, ::-1] if flip else view
        x, y = view[0, 0, :2].tolist()
        assert np.array_equal(view, pixels[y : y + 224, x : x + 224])
        corners.add((x, y))
        mirrored += flip
    assert 100 < mirrored < 200
    assert {x for x, _ in corners} >= {0, 32} and {y for _, y in corners} == set(range(17)), "not every place is reached"


@pytest.mark.parametrize("size", [(256, 256), (300, 256), (256, 400)])
def test_the_test_view_is_the_centre_and_never_mirrored(size):
    image = mapped(*size)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    assert np.array_equal(np.asarray(views.test_view(image, IMAGENET)), np.asarray(image)[top : top + 224, left : left + 224])


@pytest.mark.parametrize("width, height", [(120, 100), (40, 56), (90, 60)])
def test_the_test_view_scales_the_short_side_by_the_plain_cubic(width, height):
    """To 32 where 28 are seen: in the whole image, then the centre; OpenCV computes with 11 bits, so within 1."""
    image = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    kind = data.adapted(IMAGENET, "imagenet", size=28)
    assert kind.short_side == 32
    wide, high = round(32 * width / min(width, height)), round(32 * height / min(width, height))
    top, left = (high - 28) // 2, (wide - 28) // 2
    plain = plainly_scaled(image, wide, high).clip(0, 255)[top : top + 28, left : left + 28]
    assert np.abs(views.test_view(image, kind) - plain).max() <= 1


def test_the_training_view_is_the_plain_cut_scaled_by_the_plain_cubic():
    image, kind = (
        np.random.default_rng(1).integers(256, size=(60, 80, 3), dtype=np.uint8),
        data.adapted(IMAGENET, "imagenet", size=28),
    )
    numbers = [0.5, 0.25, 0.9, 0.5, 0.25] + [0.0] * (DRAWS - 8) + [0.9, 0.0, 0.0]  # not swapped, not mirrored
    area, change = 0.54 * 60 * 80, 0.75 + 0.25 * (4 / 3 - 0.75)
    width, height = round(area**0.5 / change), round(area**0.5 * change)
    x, y = int(0.5 * (80 - width + 1)), int(0.25 * (60 - height + 1))
    plain = plainly_scaled(image[y : y + height, x : x + width], 28, 28).clip(0, 255)
    assert np.abs(views.scale_aspect_view(image, kind, numbers) - plain).max() <= 1
    numbers[-3] = 0.1
    assert np.abs(views.scale_aspect_view(image, kind, numbers) - plain[:, ::-1]).max() <= 1


@pytest.mark.parametrize("size", [(256, 256), (500, 256)])
def test_scale_aspect_fills_the_released_ranges_and_stays_within_the_image(monkeypatch, size):
    cuts, original = [], views._cut
    monkeypatch.setattr(views, "_cut", lambda image, *box: cuts.append(box) or original(image, *box))
    image, areas, aspects = blank(IMAGENET, *size), [], []
    for numbers in draws(1, 1000):
        assert views.scale_aspect_view(image, IMAGENET, numbers).shape == (224, 224, 3)
    for x, y, width, height, _ in cuts:
        assert x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
        areas.append(width * height / (size[0] * size[1]))
        aspects.append(width / height)
    whole = 1 / 64  # rounding to whole pixels, of sides that are hardly shorter than this
    assert 0.08 * (1 - whole) <= min(areas) < 0.085 and 0.8 < max(areas) <= 1
    assert 0.5625 * (1 - whole) <= min(aspects) < 0.6 and 1.7 < max(aspects) <= 1.7778 * (1 + whole)


def test_the_areas_and_the_change_of_the_aspect_are_uniform(monkeypatch):
    """In a square image with a small area every draw fits, so the cuts are what was drawn."""
    cuts, original = [], views._cut
    monkeypatch.setattr(views, "_cut", lambda image, *box: cuts.append(box) or original(image, *box))
    numbers = draws(5, 1000)
    for each in numbers:
        each[0] *= 0.4  # at most 45% of the area, so that a side of 4/3 its root fits
        views.scale_aspect_view(blank(IMAGENET, 1000, 1000), IMAGENET, each)
    for (_, _, width, height, _), (area, change, swap, *_) in zip(cuts, numbers):
        root, change = (0.08 + 0.92 * area) ** 0.5 * 1000, 0.75 + change * (4 / 3 - 0.75)
        plain = (root / change, root * change)
        assert (width, height) == pytest.approx(plain[::-1] if swap < 0.5 else plain, abs=2)


def test_scale_aspect_falls_back_to_a_square_only_where_no_attempt_fits():
    image, kind = mapped(240, 40), IMAGENET
    numbers = [0.9, 0.5, 0.9, 0.0, 0.0] * ATTEMPTS + [0.0] * 3 + [0.9, 0.5, 0.0]  # wider than high by nothing: never fits
    view = np.asarray(views.scale_aspect_view(image, kind, numbers[:DRAWS]))
    assert view[:, 0, 0].max() == pytest.approx(100, abs=2) and view[:, -1, 0].min() == pytest.approx(139, abs=2)
    numbers[:5] = [0.0, 0.5, 0.9, 0.0, 0.0]  # the first attempt fits: 8% of the area, at the left end
    assert np.asarray(views.scale_aspect_view(image, kind, numbers[:DRAWS]))[:, -1, 0].max() < 40


@pytest.mark.parametrize("size", [(256, 256), (300, 257), (14, 14), (1, 1), (1, 5000), (5000, 1)], ids=str)
@pytest.mark.parametrize("view", views.TRAINING_VIEWS)
def test_every_view_shows_every_size_of_image(view, size):
    for kind in (IMAGENET, DIGITS):
        image = blank(kind, *size)
        for numbers in [*draws(2, 10), [0.0] * DRAWS, [1 - 2**-53] * DRAWS]:
            assert views.TRAINING_VIEWS[view](image, kind, numbers).shape[:2] == (kind.size, kind.size)
        assert views.test_view(image, kind).shape[:2] == (kind.size, kind.size)


def test_scale_shows_224_of_a_short_side_of_256_to_480(monkeypatch):
    shorts, original = [], views._short_side
    monkeypatch.setattr(views, "_short_side", lambda image, side: shorts.append(side) or original(image, side))
    for numbers in draws(3, 300):
        view = views.scale_view(mapped(300, 256), IMAGENET, numbers)
        wide = np.ptp(view[:, :, 1].astype(int)) * shorts[-1] / 256  # the stored rows that are seen, scaled
        assert view.shape == (224, 224, 3) and wide == pytest.approx(224, abs=4)
    assert 256 <= min(shorts) < 262 and 474 < max(shorts) <= 480


@pytest.mark.parametrize("view", views.TRAINING_VIEWS)
def test_digits_are_never_mirrored_and_photographs_half_the_time(view):
    ramp = np.tile(np.arange(0, 256, dtype=np.uint8), (256, 1))
    for kind, low, high in ((DIGITS, 0, 0), (IMAGENET, 70, 130)):
        image = ramp[:20, ::13] if kind is DIGITS else np.stack([ramp] * 3, axis=2)
        sides = []
        for numbers in draws(4, 200):
            numbers[-3:] = numbers[-3], 0.5, 0.5
            pixels = views.TRAINING_VIEWS[view](image, kind, numbers).astype(int)
            sides.append(pixels[:, 0].sum() > pixels[:, -1].sum())
        assert low <= sum(sides) <= high


# --- From pixels to tensors ---------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    """Three random 32 x 32 photographs packed as cifar10, and their pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)

    def png(array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return file.getvalue()

    packed.write(
        tmp_path / "cifar10" / "test.lmdb",
        "cifar10",
        "test",
        ["a", "b"],
        lambda start: [packed.Item(i % 2, png(p)) for i, p in enumerate(pixels)],
        preprocessing=SMALL,
    )
    return str(tmp_path / "cifar10"), pixels


def test_photographs_become_bgr_less_the_mean_times_the_scale(photographs):
    folder, pixels = photographs
    images = Images(folder, "test")
    found, labels = images.test_batch(0, 3)
    kind = images.preprocessing
    margin = (32 - kind.size) // 2
    assert labels.tolist() == [0, 1, 0] and found.shape == (3, 3, kind.size, kind.size)
    for channel, (stored, mean, scale) in enumerate(zip((2, 1, 0), kind.mean, kind.scale)):  # blue, green, red
        plain = (pixels[:, margin : margin + kind.size, margin : margin + kind.size, stored].astype(float) - mean) * scale
        assert np.allclose(found[:, channel].numpy(), plain, atol=1e-6)


def test_torchvisions_normalization_is_torchvisions(photographs):
    from torchvision.transforms.v2 import functional

    folder, pixels = photographs
    found, _ = Images(folder, "test", normalization="torchvision").test_batch(0, 3)
    plain = torch.from_numpy(pixels[:, 2:30, 2:30]).permute(0, 3, 1, 2).float() / 255
    plain = functional.normalize(plain, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert torch.allclose(found, plain, atol=1e-5)


def test_the_network_may_see_another_size(photographs, digits):
    images = Images(photographs[0], "test", size=14)
    assert (images.preprocessing.size, images.preprocessing.short_side) == (14, 16)
    assert images.test_batch(0, 3)[0].shape == (3, 3, 14, 14)
    with pytest.raises(ReproError, match="torchvision is for colour images"):
        Images(digits, "train", normalization="torchvision")


def test_a_misspelt_data_set_is_told_what_was_meant():
    with pytest.raises(ReproError, match="Did you mean digits?"):
        Images("digist", "train")


def test_imagenets_numbers_are_the_releases():
    assert (IMAGENET.mean, IMAGENET.scale, IMAGENET.bgr) == ((104, 117, 123), (0.0078125,) * 3, True)
    assert data.adapted(IMAGENET, "my-flowers") == IMAGENET
    assert (IMAGENET.size, IMAGENET.short_side, IMAGENET.smallest_area, IMAGENET.mirror) == (224, 256, 0.08, True)


def test_the_tensors_are_channels_last(photographs):
    batch, _ = Images(photographs[0], "test").test_batch(0, 3)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_record_that_is_no_image_is_named(tmp_path):
    packed.write(
        tmp_path / "digits" / "train.lmdb",
        "digits",
        "train",
        ["0"],
        lambda start: [packed.Item(0, b""), packed.Item(0, b"<html>")],
    )
    for index in (0, 1):
        with pytest.raises(ReproError, match=f"train.lmdb: record {index} is not an image"):
            Images(str(tmp_path / "digits"), "train").load(index)


def test_the_first_images_are_a_set_of_their_own(digits):
    whole = Images(digits, "train")
    before, labels, pixels = whole.first(7), *whole.arrays
    for first in (before, whole.first(7)):  # and after all images were decoded
        assert (len(first), len(whole), len(whole.first(10**6))) == (7, COUNTS["train"], COUNTS["train"])
        assert np.array_equal(first.arrays[0], labels[:7]) and np.array_equal(first.arrays[1], pixels[:7])


# --- Loading ahead -----------------------------------------------------------------------------------------------------


@pytest.fixture
def large(photographs):
    """The three photographs as large images, which threads decode ahead."""
    images = Images(photographs[0], "test", size=64)
    assert not images.small
    return images


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_loaded_ahead_are_the_streams_in_the_order_of_the_requests(large, threads):
    one = Stream(large, 7, images_per_worker=2)
    requests = [(now(step, 3, 2, "none" if step > 2 else "scale_aspect"), worker) for step in range(5) for worker in (0, 2)]
    found = list(data.load_ahead(one, requests, threads))
    assert len(found) == len(requests)
    for request, batch in zip(requests, found):
        assert all(map(torch.equal, batch, one.batch(*request)))


def test_loading_ahead_goes_no_further_than_memory_allows(large, monkeypatch):
    asked = []
    monkeypatch.setattr(Stream, "batch", lambda self, step, worker: asked.append(step) or step)
    batches = data.load_ahead(Stream(large, 0, 1), ((step, 0) for step in range(10**9)), threads=2)
    assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert max(asked) <= 4 + 2 * 2
    batches.close()


def test_an_error_in_a_thread_is_raised_where_its_batch_is_due(large, monkeypatch):
    def batch(self, step, worker):
        if step == 3:
            raise OSError("the disk is gone")
        return step

    monkeypatch.setattr(Stream, "batch", batch)
    batches = data.load_ahead(Stream(large, 0, 1), [(step, 0) for step in range(9)], threads=2)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
