"""The data sets that the project packs."""

import subprocess
import sys

from torchvision.datasets import FakeData

from data_prep import cifar10
from repro.data import Images
from repro.paths import ROOT


def test_digits_are_the_same_pixels_every_time(digits, tmp_path):
    done = subprocess.run([sys.executable, "data_prep/digits.py", "--out", str(tmp_path / "digits")], cwd=ROOT, timeout=60)
    assert done.returncode == 0
    for split in ("train", "test"):
        again, first = Images(str(tmp_path / "digits"), split), Images(str(digits), split)
        assert again.digest == first.digest and len(again) == len(first)


def test_no_original_is_on_both_sides(digits):
    train, test = (Images(str(digits), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (900, 4000)
    assert sum(train.packed.manifest["count_per_class"]) == 900


def test_cifar10_is_packed_pixel_by_pixel(tmp_path):
    fake = FakeData(size=25, image_size=(3, 32, 32), num_classes=10)  # as CIFAR10 gives them, without the download
    fake.classes = [f"class {n}" for n in range(10)]
    cifar10.pack(fake, tmp_path / "cifar10", "train")
    images = Images(str(tmp_path / "cifar10"), "train")
    assert len(images) == 25 and images.classes == fake.classes
    for index in range(25):
        label, image = images.load(index)
        original, expected = fake[index]
        assert label == int(expected) and image[..., ::-1].tobytes() == original.tobytes()  # BGR


def test_without_a_network_cifar10_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "data_prep/cifar10.py", "--source", str(tmp_path), "--out", str(tmp_path / "o")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""},
    )
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: CIFAR-10 could not")
