"""The data sets that the project packs."""

import gzip
import hashlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import digits as digits_set
import letters as letters_set
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from torchvision.datasets import FakeData

from data_prep import cifar10, fashion_mnist
from repro.images import packed, views
from repro.images.data import Images
from repro.images.packed import SPLITS, Packed, PackedError, pack_embedded
from repro.paths import ROOT

import drawing
from conftest import PACK_DIGITS, python, run

# Of the packed digits. A change of the drawings changes the result of every run on them, and must be meant.
DIGESTS = {
    "train": "98ca2337eac234dfb7e81eacdef742ea16e3aa6c1db29948224126ea53cd9258",
    "val": "830ed9b3b86469933e0379528acba45fc861c2f9211f906bc61c30b7b08162a9",
    "test": "584433b0f687058015d10c043d30794a6cc3d8c8b930239ab8db9298678774d8",
}


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> str:
    """The folder of the packed letters, made as the README says."""
    folder = tmp_path_factory.mktemp("data") / "letters"
    packing = python(ROOT / "data_prep" / "letters.py", "--out", folder)
    assert packing.returncode == 0, packing.stderr
    return str(folder)


@pytest.fixture(params=["all_digits", "letters"])
def drawn(request) -> SimpleNamespace:
    """A data set's name, its script, and the images of each of its splits."""
    folder = request.getfixturevalue(request.param)
    name = Path(folder).name
    script = {"digits": digits_set, "letters": letters_set}[name]
    return SimpleNamespace(name=name, script=script, folder=folder, **{split: Images(folder, split) for split in SPLITS})


def seen(images) -> np.ndarray:
    """The test views (N, 16, 16), before normalization."""
    return np.stack([images.load(index)[1] for index in range(len(images))])[:, 1:-1, 1:-1]


# --- Digits and letters --------------------------------------------------------------------------------------------------


def test_digits_are_the_same_bytes_on_every_machine(all_digits):
    assert {split: Images(all_digits, split).digest for split in SPLITS} == DIGESTS


@pytest.mark.slow  # the packed digests are compared with recorded ones in every run
def test_a_second_packing_gives_the_same_bytes(drawn, tmp_path):
    done = python(ROOT / "data_prep" / f"{drawn.name}.py", "--out", tmp_path / drawn.name)
    assert done.returncode == 0, done.stderr
    for split in SPLITS:
        assert Images(str(tmp_path / drawn.name), split).digest == getattr(drawn, split).digest


def test_drawings_are_named_after_their_folder_and_are_the_same_drawings(all_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "COUNTS", dict.fromkeys(drawing.COUNTS, 40))

    def draw(out: Path):
        monkeypatch.setattr(sys, "argv", ["digits.py", "--out", str(out)])
        drawing.run("", "digits", digits_set.CLASSES, digits_set.originals, digits_set.NOISE, digits_set.PREPROCESSING)

    draw(tmp_path / "mine")
    mine, whole = Images(str(tmp_path / "mine"), "val"), Images(all_digits, "val")
    assert mine.name == "mine" and [mine.packed[place] for place in range(40)] == [whole.packed[place] for place in range(40)]
    with pytest.raises(SystemExit):
        draw(tmp_path / "letters")
    assert "this, which is not letters, must not be packed under the name letters" in capsys.readouterr().err


def test_digits_that_cannot_be_written_are_told_in_one_line(tmp_path):
    packing = f"exec {sys.executable} {PACK_DIGITS} --out {tmp_path / 'digits'}"
    done = run("bash", "-c", f"ulimit -f 1000; trap '' XFSZ; {packing}")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"error: {tmp_path / 'digits' / 'train.lmdb'} could not be written: " in done.stderr.splitlines()[-1]


def test_image_i_is_a_drawing_of_original_i_modulo_originals(drawn):
    """Each is nearer to its own original, drawn without distortion, than to the next one's in nearly all cases."""
    for split, (ink, labels) in drawn.script.originals().items():
        images = getattr(drawn, split)
        assert images.originals == len(ink) == len(labels)
        assert [images.load(index)[0] for index in range(0, len(images), 7)] == [
            labels[index % len(ink)] for index in range(0, len(images), 7)
        ]
        plain = drawing.distort(ink, np.zeros((len(ink), drawing.NUMBERS)))[:, 1:-1, 1:-1]
        views = seen(images)[: 2 * len(ink)]

        def likeness(originals, views=views):
            originals = np.tile(originals - originals.mean((1, 2), keepdims=True), (2, 1, 1))
            return (views * originals).sum((1, 2)) / np.sqrt((originals**2).sum((1, 2)))

        assert (likeness(plain) > likeness(np.roll(plain, 1, axis=0))).mean() > 0.85


def test_the_first_images_have_no_more_originals(all_digits):
    assert [Images(all_digits, "train").first(number).originals for number in (10, 700, 701, 20_000)] == [10, 700, 700, 700]


def test_sizes_and_classes(drawn):
    assert [(len(getattr(drawn, split)), split) for split in SPLITS] == [(20_000, "train"), (5_000, "val"), (20_000, "test")]
    assert len(drawn.train.classes) == {"digits": 10, "letters": 26}[drawn.name]
    for split in SPLITS:
        counts = np.array(getattr(drawn, split).packed.manifest["count_per_class"])
        assert abs(counts / counts.mean() - 1).max() < 0.1, "a class is more than 10% rarer or more frequent than the mean"
    kind = drawn.train.preprocessing
    assert (kind.size, kind.short_side, kind.mirror, kind.smallest_area) == (16, 18, False, 0.3)
    assert drawn.train.load(0)[1].shape == (18, 18)


def test_the_splits_have_no_original_in_common(drawn):
    inks = {split: {each.tobytes() for each in ink} for split, (ink, _) in drawn.script.originals().items()}
    assert all(inks[one].isdisjoint(inks[other]) for one, other in (("train", "val"), ("train", "test"), ("val", "test")))


def test_every_digit_is_in_one_split():
    drawn = [each for ink, _ in digits_set.originals().values() for each in ink]
    every = digits_set.load_digits().images / 16
    assert sorted(each.tobytes() for each in drawn) == sorted(each.tobytes() for each in every)


def test_no_font_and_no_family_of_fonts_is_in_two_splits():
    def family(font):
        for name in ("DejaVuSans", "DejaVuSerif", "STIX", "cm"):  # the Mono of DejaVuSans is derived from it
            if font.startswith(name):
                return name
        raise AssertionError(f"of which family is {font}?")

    families = [{family(font) for font in fonts} for fonts in letters_set.FONTS.values()]
    assert len(set.union(*families)) == sum(map(len, families))


@pytest.mark.parametrize("font", [font for fonts in letters_set.FONTS.values() for font in fonts])
def test_each_font_has_52_glyphs_of_their_own(font):
    ink = letters_set.glyphs(font)
    assert ink.shape == (52, 16, 16) and ink.min() == 0 and ink.max() == 1
    assert ink.sum((1, 2)).min() > 15 and len({each.tobytes() for each in ink}) == 52
    rows, columns = ink.any(2), ink.any(1)  # each fills its picture from side to side in one direction
    assert ((rows[:, 0] & rows[:, -1]) | (columns[:, 0] & columns[:, -1])).all()


def test_mean_and_scale_are_those_of_the_training_images(drawn):
    pixels, kind = seen(drawn.train), drawn.script.PREPROCESSING
    assert drawn.train.preprocessing == kind
    assert kind.mean[0] == pytest.approx(pixels.mean(), abs=1) and 1 / kind.scale[0] == pytest.approx(pixels.std(), abs=1)


def test_little_of_the_noise_is_clipped(drawn):
    """At most what a background of 0.25 and this noise make inevitable: 20% of the digits' pixels, 5% of the letters'."""
    for split in SPLITS:
        pixels = seen(getattr(drawn, split))
        assert ((pixels == 0) | (pixels == 255)).mean() < {"digits": 0.2, "letters": 0.05}[drawn.name]


# --- How they are drawn --------------------------------------------------------------------------------------------------


def test_a_drawing_is_the_original_turned_scaled_sheared_and_shifted():
    """Against SciPy's cubic splines, which are another interpolation: on a smooth original they agree."""
    generator = np.random.default_rng(0)
    ink = ndimage.gaussian_filter(np.pad(generator.random((20, 60, 60)), ((0, 0), (20, 20), (20, 20))), (0, 4, 4))
    numbers = generator.uniform(-1, 1, (20, drawing.NUMBERS))
    middle, side = (drawing.SIDE - 1) / 2, ink.shape[1]
    for original, drawn, (turn, scale, shear, right, down) in zip(ink, drawing.distort(ink, numbers), numbers):
        angle = 2 * np.arctan(turn * np.tan(np.deg2rad(7.5)))
        turned = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]  # of (down, right)
        matrix = [[1, 0], [0.15 * shear, 1]] @ np.array(turned) * side / drawing.EXTENT / (1 + 0.15 * scale)
        offset = (side - 1) / 2 - matrix @ (middle + np.array([down, right]))
        plain = ndimage.affine_transform(original, matrix, offset, output_shape=(drawing.SIDE,) * 2, order=3)
        assert np.abs(drawn - plain).max() < 0.002


def test_the_distortions_fill_their_ranges_and_the_noise_is_normal(monkeypatch):
    numbers = []
    monkeypatch.setattr(drawing, "distort", lambda ink, n, size: numbers.append(n) or np.full((len(ink), 18, 18), 0.5))
    pixels = drawing.draw(np.zeros((2000, 8, 8)), "trial", 0, 0.1) / 255
    assert pixels.mean() == pytest.approx(0.5, abs=0.001) and pixels.std() == pytest.approx(0.1, abs=0.001)
    assert [(abs(pixels - 0.5) < width).mean() for width in (0.1, 0.2)] == pytest.approx([0.683, 0.954], abs=0.01)
    assert numbers[0].shape == (2000, drawing.NUMBERS)
    for each in numbers[0].T:
        assert -1 <= each.min() < -0.99 and 0.99 < each.max() < 1 and abs(each.mean()) < 0.05
    correlations = np.corrcoef(np.concatenate([numbers[0], pixels[:, :3, 0]], axis=1).T) - np.eye(drawing.NUMBERS + 3)
    assert abs(correlations).max() < 0.1


def test_drawings_do_not_depend_on_how_many_are_made_at_once():
    ink = np.random.default_rng(0).random((24, 8, 8))
    whole = drawing.draw(ink, "trial", 0, 0.2)
    assert np.array_equal(whole, np.concatenate([drawing.draw(ink[at : at + 8], "trial", at, 0.2) for at in (0, 8, 16)]))
    assert not np.array_equal(whole, drawing.draw(ink, "another", 0, 0.2))


def test_the_png_is_one(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(18, 20), dtype=np.uint8)
    (tmp_path / "image.png").write_bytes(drawing.png(pixels))
    with Image.open(tmp_path / "image.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), pixels)


# --- Packed when they are needed -----------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch, tmp_path, all_digits) -> list:
    """data/ in another place, and a list of the scripts that were run for it; they copy what is packed already."""
    runs = []
    monkeypatch.setattr(packed, "DATA", tmp_path)

    def run(command, **_):
        runs.append(Path(command[1]).name)
        (tmp_path / "digits").mkdir(exist_ok=True)
        for split in SPLITS:
            (tmp_path / "digits" / f"{split}.lmdb").unlink(missing_ok=True)
            shutil.copy(Path(all_digits, f"{split}.lmdb"), tmp_path / "digits")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(packed.subprocess, "run", run)
    return runs


def test_embedded_data_are_packed_when_missing_incomplete_or_drawn_otherwise(elsewhere, tmp_path):
    for _ in range(2):
        pack_embedded("digits")
        assert elsewhere == ["digits.py"], "packed again without a reason"
    (tmp_path / "digits" / "val.lmdb").unlink()  # as before there were validation splits
    pack_embedded("digits")
    assert len(elsewhere) == 2
    packed.write(tmp_path / "digits" / "train.lmdb", "digits", "train", ["0"], lambda start: [packed.Item(0, b"old")])
    pack_embedded("digits")
    assert len(elsewhere) == 3 and len(Packed(tmp_path / "digits" / "train.lmdb", "digits", "train")) == 20_000
    pack_embedded("cifar10")
    assert len(elsewhere) == 3


def test_a_failed_packing_is_told_in_one_line(elsewhere, monkeypatch):
    monkeypatch.setattr(packed.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="...\nOSError: full\n"))
    with pytest.raises(PackedError, match="the letters could not be packed: OSError: full .*letters.py --out FOLDER/letters"):
        pack_embedded("letters")


# --- CIFAR-10 ------------------------------------------------------------------------------------------------------------


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


def test_cifar10_is_named_after_its_folder(tmp_path, capsys, monkeypatch):
    fake = FakeData(size=5, image_size=(3, 32, 32), num_classes=10)
    fake.classes = [f"class {n}" for n in range(10)]
    cifar10.pack(fake, tmp_path / "mine", "train")
    assert Images(str(tmp_path / "mine"), "train").name == "mine"
    monkeypatch.setattr(sys, "argv", ["cifar10.py", "--out", str(tmp_path / "digits")])
    with pytest.raises(SystemExit):
        cifar10.main()
    assert "this, which is not digits, must not be packed under the name digits" in capsys.readouterr().err


def test_cifar10_holds_out_the_last_images_of_each_class(tmp_path):
    fake = FakeData(size=40, image_size=(3, 32, 32), num_classes=3)
    fake.classes, labels = ["a", "b", "c"], [int(label) for _, label in fake]
    train, val = cifar10.held_out(labels, 2)
    assert sorted(train + val) == list(range(40)) and sorted(labels[place] for place in val) == [0, 0, 1, 1, 2, 2]
    assert all(place > max(t for t in train if labels[t] == labels[place]) for place in val)
    for split, chosen in (("train", train), ("val", val)):
        cifar10.pack(fake, tmp_path / "cifar10", split, chosen)
        images = Images(str(tmp_path / "cifar10"), split)
        assert [images.load(index)[1][..., ::-1].tobytes() for index in range(len(images))] == [
            fake[place][0].tobytes() for place in chosen
        ]


def test_without_a_validation_split_it_is_said(tmp_path):
    fake = FakeData(size=5, image_size=(3, 32, 32), num_classes=3)
    fake.classes = ["a", "b", "c"]
    cifar10.pack(fake, tmp_path / "cifar10", "train")
    with pytest.raises(PackedError, match=r"cifar10 has no validation split .*`.venv/bin/python data_prep/cifar10.py --help`"):
        Images(str(tmp_path / "cifar10"), "val")
    with pytest.raises(PackedError, match="no packed data at"):
        Images(str(tmp_path / "nothing"), "val")


def test_without_a_network_cifar10_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(sys, "argv", ["cifar10.py", "--source", str(tmp_path), "--out", str(tmp_path / "o")])
    assert cifar10.main() == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: CIFAR-10 could not be downloaded (")


# --- Fashion-MNIST -------------------------------------------------------------------------------------------------------


def write_idx(path, array, compressed):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    content = header + array.tobytes()
    path = path.with_name(f"{path.name}.gz") if compressed else path
    path.write_bytes(gzip.compress(content) if compressed else content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def clothes(tmp_path, monkeypatch, request):
    """A folder of four small IDX files that count as the published ones, and what is in them."""
    random, arrays, digests = np.random.default_rng(0), {}, {}
    for part, number in (("train", 40), ("test", 20)):
        arrays[part] = random.integers(256, size=(number, 28, 28), dtype=np.uint8), np.arange(number, dtype=np.uint8) % 10
        for name, array in zip(fashion_mnist.FILES[part], arrays[part]):
            digests[name] = write_idx(tmp_path / name, array, request.param)
    monkeypatch.setattr(fashion_mnist, "SHA256", digests)
    monkeypatch.setattr(fashion_mnist, "HELD_OUT", 1)
    return tmp_path, arrays


def pack_clothes(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", *map(str, options)])
    return fashion_mnist.main()


def test_clothes_are_packed_pixel_by_pixel(clothes, monkeypatch):
    folder, arrays = clothes
    assert pack_clothes(monkeypatch, "--source", folder, "--out", folder / "fashion_mnist") == 0
    places = {"train": range(30), "val": range(30, 40), "test": range(20)}  # the last of each class is held out
    for split, expected in places.items():
        images, (pixels, labels) = Images(str(folder / "fashion_mnist"), split), arrays["test" if split == "test" else "train"]
        assert len(images) == len(expected) and images.classes == fashion_mnist.CLASSES and images.channels == 1
        for index, place in enumerate(expected):
            label, image = images.load(index)
            assert label == labels[place] and np.array_equal(image, pixels[place])


def test_clothes_that_are_not_the_published_ones_are_refused(clothes, monkeypatch, capsys):
    folder, _ = clothes
    name = fashion_mnist.FILES["test"][1]
    (file,) = folder.glob(f"{name}*")
    file.write_bytes(gzip.compress(b"other") if file.suffix == ".gz" else b"other")
    assert pack_clothes(monkeypatch, "--source", folder, "--out", folder / "o") == 2
    assert f"{file} is not the file that was published" in capsys.readouterr().err
    file.unlink()
    assert pack_clothes(monkeypatch, "--source", folder, "--out", folder / "o") == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err and not (folder / "o").exists()


def test_without_package_and_network_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "DOWNLOADED", tmp_path / "FashionMNIST" / "raw")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert pack_clothes(monkeypatch, "--out", tmp_path / "o") == 2
    said = capsys.readouterr()
    assert said.out.startswith("downloading") and fashion_mnist.ADVICE in said.out, "before it waits"
    assert "apt-get install dataset-fashion-mnist" in said.err.splitlines()[-1]


def test_photographs_are_seen_as_imagenets_images_are():
    seen, large = fashion_mnist.PREPROCESSING, packed.PHOTOGRAPHS
    assert (seen.mirror, seen.smallest_area) == (large.mirror, large.smallest_area) == (True, 0.08)
    assert seen.size / seen.short_side == pytest.approx(large.size / large.short_side, rel=0.03)
    numbers = np.random.default_rng(0).random((1000, 50))
    areas = views.scale_aspect_boxes(numbers, seen.short_side, seen, views.ATTEMPTS)[:, 2:].prod(1) / seen.short_side**2
    assert 0.07 < areas.min() < 0.09 and areas.max() > 0.95, "in whole pixels"


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason=f"Debian's package is not installed: no {fashion_mnist.DEBIAN}")
def test_the_real_clothes_have_the_mean_and_deviation_that_are_subtracted():
    parts = fashion_mnist.read(fashion_mnist.DEBIAN)
    assert {split: len(labels) for split, (_, labels) in parts.items()} == {"train": 55_000, "val": 5_000, "test": 10_000}
    assert all(len(set(np.bincount(labels))) == 1 for _, labels in parts.values())
    pixels, seen = parts["train"][0], fashion_mnist.PREPROCESSING
    assert seen.mean == (round(pixels.mean()),) and seen.scale == (1 / round(pixels.std()),)
