"""Views of many images at once, against the views of one image."""

import cv2
import numpy as np
import pytest

from repro.images import views
from repro.images.packed import Preprocessing


def seen(side, smallest_area=0.08):
    return Preprocessing(size=16, short_side=side, mirror=True, smallest_area=smallest_area)


def images(number, side, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("side", [18, 16, 20])
@pytest.mark.parametrize("view", ["scale_aspect", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_many_views_at_once_are_the_views_of_each_image(side, view, channels):
    many, numbers = images(200, side, channels), np.random.default_rng(1).random((200, views.DRAWS))
    together = views.many_views(many, view, seen(side), numbers)
    for image, draws, found in zip(many, numbers, together):
        alone = views.TRAINING_VIEWS[view](image if channels == 3 else image[..., 0], seen(side), draws.tolist())
        # OpenCV computes the same weights, and sums some of them in float32.
        assert np.abs(found.astype(int) - alone.reshape(16, 16, channels)).max() <= 1


def test_a_box_that_never_fits_is_the_whole_image():
    numbers = np.tile([0.999, 0.999, 0.1, 0.5, 0.5], (3, views.ATTEMPTS))
    assert views.scale_aspect_boxes(numbers, 18, seen(18), views.ATTEMPTS).tolist() == [[0, 0, 18, 18]] * 3


def test_every_box_is_inside_the_image_and_of_the_smallest_area_at_least():
    numbers = np.random.default_rng(2).random((20_000, views.DRAWS))
    y, x, height, width = views.scale_aspect_boxes(numbers, 18, seen(18, 0.3), views.ATTEMPTS).T
    assert min(y.min(), x.min()) >= 0 and max((y + height).max(), (x + width).max()) == 18
    assert (height * width / 18**2).min() > 0.3 - 2 * 18**-1  # sides are rounded to whole pixels


@pytest.mark.parametrize("number", [1, 7, 64])
def test_an_image_comes_out_the_same_among_any_others(number):
    many, numbers = images(64, 18, 1), np.random.default_rng(3).random((64, views.DRAWS))
    boxes = views.scale_aspect_boxes(numbers, 18, seen(18), views.ATTEMPTS)
    assert np.array_equal(views.cut(many, boxes, 16)[:number], views.cut(many[:number], boxes[:number], 16))


def test_a_scaled_box_is_the_cut_box_scaled():
    image = images(1, 18, 1)
    found = views.cut(image, np.array([[3, 5, 9, 11]]), 16)[0, ..., 0].astype(int)
    plain = cv2.resize(image[0, 3:12, 5:16, 0].astype(np.float64), (16, 16), interpolation=cv2.INTER_CUBIC)
    assert np.abs(found - plain.clip(0, 255)).max() <= 1
