"""The stand-in for ImageNet's archives, read back with tarfile, scipy and Pillow alone."""

import io
import re
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from repro import ReproError

import stand_in

CLASSES, IMAGES, VALIDATION = 3, 14, 7
GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def members(archive, mode="r:"):
    """Name -> bytes of the plain files of an archive, given as bytes, in its order."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode=mode) as opened:
        return {entry.name: opened.extractfile(entry).read() for entry in opened if entry.isfile()}


class Archives:
    """All three archives, read into memory."""

    def __init__(self, folder, **arguments):
        self.paths = stand_in.write(folder, **arguments)
        train, validation, kit = (path.read_bytes() for path in self.paths)
        self.bytes = [train, validation, kit]
        self.train = {name: members(inner) for name, inner in members(train).items()}
        self.validation = members(validation)
        self.kit = members(kit, "r:gz")
        self.truth = self.kit[GROUND_TRUTH].decode()
        self.synsets = loadmat(io.BytesIO(self.kit["ILSVRC2012_devkit_t12/data/meta.mat"]), squeeze_me=True)["synsets"]
        leaves = [row for row in self.synsets if row["num_children"] == 0]
        self.synset_of_id = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}

    def images(self):
        return [image for inner in self.train.values() for image in inner.values()]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return Archives(tmp_path_factory.mktemp("stand-in") / "made", classes=CLASSES, images=IMAGES, validation=VALIDATION)


def opened(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the damaged EXIF data
        image = Image.open(io.BytesIO(content))
        image.load()
        return image


def tint(content):
    """The mean share of red, green and blue, (3,): what a class's tint changes most."""
    mean = np.asarray(opened(content).convert("RGB"), float).mean((0, 1))
    return mean / mean.sum()


def nearest_class(archives):
    """The synset of the nearest mean tint for each validation image, from the training images alone."""
    means = {}
    for name, inner in archives.train.items():
        coloured = [image for image in inner.values() if opened(image).mode != "L"]
        means[name.removesuffix(".tar")] = np.mean([tint(image) for image in coloured], axis=0)
    tints = [tint(image) for image in archives.validation.values()]
    return [min(means, key=lambda name: np.linalg.norm(means[name] - one)) for one in tints]


def test_the_archives_have_the_names_and_nesting_of_ilsvrc2012(archives):
    assert [path.name for path in archives.paths] == [
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "ILSVRC2012_devkit_t12.tar.gz",
    ]
    assert sorted(archives.paths[0].parent.iterdir()) == sorted(archives.paths), "something else was left behind"
    for name, inner in archives.train.items():
        assert re.fullmatch(r"n\d{8}\.tar", name)
        assert all(re.fullmatch(name.removesuffix(".tar") + r"_\d+\.JPEG", member) for member in inner)
    assert list(archives.train) == sorted(archives.train)
    assert [len(inner) for inner in archives.train.values()] == [5, 5, 4]
    assert list(archives.validation) == [f"ILSVRC2012_val_0000000{number}.JPEG" for number in range(1, VALIDATION + 1)]
    assert list(archives.kit) == [
        f"ILSVRC2012_devkit_t12/{name}"
        for name in ("readme.txt", "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt")
    ]


def test_archive_members_bear_no_trace_of_who_made_them_and_when(archives):
    for path in archives.paths:
        with tarfile.open(path) as archive:
            assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in archive} == {(0, 0, "", 0)}


def test_a_thousand_synset_names_rise_with_gaps():
    names = [stand_in.synset(label) for label in range(1000)]
    numbers = [int(name[1:]) for name in names]
    assert all(re.fullmatch(r"n99\d{6}", name) for name in names)
    assert names == sorted(names) and min(np.diff(numbers)) > 1 and len(set(np.diff(numbers))) > 2


def test_meta_mat_lists_the_leaves_by_id_and_then_the_inner_nodes(archives):
    assert archives.synsets.dtype.names == (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    rows = archives.synsets
    assert rows["ILSVRC2012_ID"].tolist() == list(range(1, CLASSES + 3))
    assert rows["num_children"].tolist()[:CLASSES] == [0] * CLASSES and min(rows["num_children"][CLASSES:]) > 0
    for row in rows:
        assert row["children"].size == row["num_children"]
    below = [int(child) for row in rows for child in np.atleast_1d(row["children"])]
    assert sorted(below) == [1, 2, 3, 5], "all but the root, 4, are somewhere under it"
    for row in rows[:CLASSES]:
        assert row["num_train_images"] == len(archives.train[f"{row['WNID']}.tar"])
        assert re.fullmatch(r"stand-in class \d", row["words"])


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_devkit_ids_are_a_permutation_that_leaves_no_class_at_its_sorted_place(classes):
    ids = [stand_in.devkit_id(label, classes) for label in range(classes)]
    assert sorted(ids) == list(range(1, classes + 1))
    assert all(ids[label] != label + 1 for label in range(classes))


def test_each_validation_image_is_of_the_class_that_the_ground_truth_says(archives):
    """By colour alone: no name or number of the archives enters but through the devkit's tables."""
    truth = [archives.synset_of_id[int(line)] for line in archives.truth.splitlines()]
    assert len(truth) == VALIDATION and nearest_class(archives) == truth


def test_validation_images_are_of_all_classes_in_no_order(archives):
    ids = [int(line) for line in archives.truth.splitlines()]
    assert sorted(ids.count(number) for number in range(1, CLASSES + 1)) == [2, 2, 3]
    assert ids != sorted(ids) and ids != sorted(ids, reverse=True) and archives.truth.endswith("\n")


def test_ten_classes_can_be_learnt(tmp_path):
    archives = Archives(tmp_path, classes=10, images=50, validation=50, seed=1)
    truth = [archives.synset_of_id[int(line)] for line in archives.truth.splitlines()]
    assert [truth.count(name) for name in set(truth)] == [5] * 10
    right = sum(map(str.__eq__, truth, nearest_class(archives)))
    assert right >= 30, "chance is 5"


def test_among_the_training_images_are_the_odd_files_of_ilsvrc2012_one_of_each(archives):
    images = [opened(image) for image in archives.images()]
    kinds = [(image.format, image.mode) for image in images]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("JPEG", "RGB"): IMAGES - 3,
        ("JPEG", "CMYK"): 1,
        ("PNG", "RGB"): 1,
        ("JPEG", "L"): 1,
    }
    assert [opened(image).format for image in archives.validation.values()] == ["JPEG"] * VALIDATION


def test_one_training_image_is_turned_by_exif_data_that_are_damaged(archives):
    turned = [image for image in archives.images() if b"Exif\0\0" in image]
    assert len(turned) == 1
    with pytest.warns(UserWarning, match="EXIF|Tag"):
        image = Image.open(io.BytesIO(turned[0]))
        orientation = image.getexif().get(0x0112)
    image.load()
    assert orientation == 6 and (image.format, image.mode) == ("JPEG", "RGB")


def test_sizes_and_encodings_vary(archives):
    images = [opened(image) for image in [*archives.images(), *archives.validation.values()]]
    sizes = [image.size for image in images]
    assert len(set(sizes)) >= 5 and (1600, 1200) in sizes and (133, 100) in sizes
    assert any(width > height for width, height in sizes) and any(width < height for width, height in sizes)
    jpegs = [image for image in images if (image.format, image.mode) == ("JPEG", "RGB")]
    assert len({tuple(image.quantization[0]) for image in jpegs}) >= 5
    assert {image.layer[0][1:3] for image in jpegs} == {(1, 1), (2, 2)}, "4:4:4 and 4:2:0"


def test_no_two_images_are_alike(archives):
    images = [*archives.images(), *archives.validation.values()]
    assert len(set(images)) == IMAGES + VALIDATION


def test_same_arguments_give_same_bytes_and_another_seed_others(archives, tmp_path, monkeypatch):
    monkeypatch.setattr("time.asctime", lambda: "another day")
    monkeypatch.setattr("time.time", lambda: 2e9)
    again = Archives(tmp_path / "again", classes=CLASSES, images=IMAGES, validation=VALIDATION, seed=0)
    assert again.bytes == archives.bytes
    other = Archives(tmp_path / "other", classes=CLASSES, images=IMAGES, validation=VALIDATION, seed=1)
    assert not set(other.images()) & set(archives.images())
    assert not set(other.validation.values()) & set(archives.validation.values())


def test_four_training_images_suffice_for_the_four_odd_files(tmp_path):
    images = Archives(tmp_path, classes=4, images=4, validation=4).images()
    assert sorted((opened(image).format, opened(image).mode, b"Exif\0\0" in image) for image in images) == [
        ("JPEG", "CMYK", False),
        ("JPEG", "L", False),
        ("JPEG", "RGB", True),
        ("PNG", "RGB", False),
    ]


def test_one_image_a_class_is_enough(tmp_path):
    archives = Archives(tmp_path, classes=2, images=2, validation=2)
    assert [len(inner) for inner in archives.train.values()] == [1, 1] and len(archives.validation) == 2
    assert all(opened(image).size[0] for image in archives.images())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(classes=1), "classes is 1: it must be at least 2"),
        (dict(classes=1001, images=2000, validation=2000), "classes is 1001: ILSVRC2012 has 1000"),
        (dict(classes=5, images=4), "images is 4: it must be at least 5, one for each class"),
        (dict(classes=5, validation=4), "validation is 4: it must be at least 5, one for each class"),
        (dict(seed=-1), "seed is -1: it must be at least 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(tmp_path, arguments, said):
    with pytest.raises(ReproError, match=said):
        stand_in.write(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReproError, match="cannot write to the folder .*file"):
        stand_in.write(tmp_path / "file")
