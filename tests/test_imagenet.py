"""The packing scripts end to end: each layout gives the same records, each wrong label map and count is named."""

import io
import itertools
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_prep import folder, imagenet, places365
from repro.images.packed import Packed

import packing
import stand_in
from conftest import ROOT, python

COUNTS = {"classes": 4, "images": 14, "validation": 8}
CLASSES = [stand_in.synset(label) for label in range(4)]
TRAIN_TAR, VAL_TAR, KIT_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", f"{imagenet.KIT}.tar.gz"


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}


def write_tar(path, contents, **attributes):
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, kind in attributes.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)


def write_files(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def everything(out: Path, split: str):
    """The records and the manifest, but for the fingerprint: it depends on when the source's files were changed."""
    reader = Packed(out / f"{split}.lmdb", out.name, split)
    return [reader[index] for index in range(len(reader))], reader.manifest | {"fingerprint": ""}


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("archives")
    stand_in.write(out, **COUNTS)
    return out


@pytest.fixture(scope="module")
def contents(archives):
    """Training images by SYNSET/FILE, validation images by file, the kit's files, each validation image's synset."""
    tars = members((archives / TRAIN_TAR).read_bytes())
    train = {
        f"{tar.removesuffix('.tar')}/{name}": image for tar, content in tars.items() for name, image in members(content).items()
    }
    kit = members((archives / KIT_TAR).read_bytes())
    # Read without the project's reader: the stand-in's ids are its own function's.
    synsets = {stand_in.devkit_id(label, 4): synset for label, synset in enumerate(CLASSES)}
    truth = [synsets[int(line)] for line in kit[imagenet.TRUTH].split()]
    validation = members((archives / VAL_TAR).read_bytes())
    return train, validation, kit, dict(zip(sorted(validation), truth, strict=True))


LAYOUTS = ("archives", "tree", "tree of folders", "kaggle")


@pytest.fixture
def layout(archives, contents, tmp_path):
    """layout(name): a folder of the stand-in in that layout."""
    train, validation, kit, truth = contents

    def make(name) -> Path:
        source = tmp_path / name
        if name == "archives":
            source.mkdir()
            for file in (TRAIN_TAR, VAL_TAR, KIT_TAR):
                shutil.copy(archives / file, source / file)
        elif name == "tree":
            write_files(
                source,
                {f"train/{name}": image for name, image in train.items()}
                | {f"val/{name}": image for name, image in validation.items()}
                | kit,
            )
        elif name == "tree of folders":
            write_files(
                source,
                {f"train/{name}": image for name, image in train.items()}
                | {f"val/{truth[name]}/{name}": image for name, image in validation.items()},
            )
        else:
            table = "ImageId,PredictionString\n" + "".join(
                f"{name.removesuffix('.JPEG')},{synset} 1 2 30 40 {synset} 5 6 70 80 \n"
                for name, synset in reversed(truth.items())
            )
            mapping = "".join(f"{synset} some words, others\n" for synset in CLASSES)
            write_files(
                source,
                {f"ILSVRC/Data/CLS-LOC/train/{name}": image for name, image in train.items()}
                | {f"ILSVRC/Data/CLS-LOC/val/{name}": image for name, image in validation.items()}
                | {"LOC_val_solution.csv": table, "LOC_synset_mapping.txt": mapping},
            )
        return source

    return make


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(packing, "SAMPLE", 2)


@pytest.fixture
def pack(tmp_path, capsys):
    """pack(source, *options) -> (exit status, standard output, standard error); into `pack.out`."""

    def call(source, *options, subset=True):
        status = imagenet.main([*map(str, ("--source", source, "--out", call.out, *options)), *["--subset"] * subset])
        return status, *capsys.readouterr()

    call.out = tmp_path / "out" / "imagenet-subset"
    return call


def refused(outcome) -> str:
    status, _, error = outcome
    assert status == 2 and error.strip().splitlines()[-1].startswith("error: "), error
    return error


# --- Layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_layout_gives_the_same_records(layout, pack, tmp_path, contents):
    packed = {}
    for name in LAYOUTS:
        pack.out = tmp_path / f"from {name}" / "imagenet-subset"
        status, said, error = pack(layout(name))
        assert status == 0, error
        packed[name] = [everything(pack.out, split) for split in ("train", "test")]
    assert all(packed[name] == packed["archives"] for name in LAYOUTS)
    train, validation, _, truth = contents
    for split, expected in (
        ("train", [(name.split("/")[0], name) for name in sorted(train)]),
        ("test", sorted((truth[name], name) for name in validation)),
    ):
        reader = Packed(pack.out / f"{split}.lmdb", "imagenet-subset", split)
        assert reader.manifest["classes"] == CLASSES
        assert [CLASSES[reader[index][0]] for index in range(len(reader))] == [synset for synset, _ in expected]
        images = train | validation
        for index, (_, name) in enumerate(expected):  # those that need no scaling came through untouched
            original = Image.open(io.BytesIO(images[name]))
            if min(original.size) <= 256 and original.format == "JPEG" and original.mode != "CMYK":
                assert reader[index][1] == images[name]
    assert len(reader) == 8


def test_the_stand_ins_odd_images_are_listed(layout, pack):
    status, said, _ = pack(layout("archives"))
    assert status == 0 and said.count("  odd: ") == 2 and "JPEG of mode CMYK" in said and "PNG named .JPEG" in said


def test_archives_are_the_same_images_until_they_change(pack, tmp_path):
    """The stand-in that is made again is what it was."""
    for seed, said in ((0, "about"), (0, "already packed"), (1, "already, but not from the same images")):
        stand_in.write(tmp_path / "source", **COUNTS, seed=seed)
        assert said in "".join(pack(tmp_path / "source")[1:])
    stand_in.write(tmp_path / "source", **COUNTS)
    assert pack(tmp_path / "source", "--overwrite")[0] == 0
    os.utime(tmp_path / "source" / VAL_TAR)  # fetched again: that its content is the same cannot be known
    assert "test.lmdb exists already, but not from the same images" in refused(pack(tmp_path / "source"))


def test_the_script_runs_from_anywhere(layout, tmp_path):
    done = python(
        ROOT / "data_prep" / "imagenet.py",
        "--source",
        layout("tree"),
        "--subset",
        "--out",
        tmp_path / "out" / "imagenet-subset",
        "--short-side",
        "128",
    )
    assert done.returncode == 0 and "14 images of 4 classes" in done.stdout and "short side at most 128" in done.stdout


def test_a_folder_without_images_names_what_was_looked_for(pack, tmp_path):
    assert f"holds none of {TRAIN_TAR}, train, ILSVRC/Data/CLS-LOC/train" in refused(pack(tmp_path))


# --- Hostile and damaged archives ------------------------------------------------------------------------------------


FOURTH = "ILSVRC2012_val_00000004.JPEG"


@pytest.mark.counts_for("archives")
@pytest.mark.parametrize(
    "name, change, message",
    [
        ("../../escaped.JPEG", lambda image: b"x", "img_val.tar: member '../../escaped.JPEG' points out of the archive"),
        ("/escaped.JPEG", lambda image: b"x", "img_val.tar: member '/escaped.JPEG' points out of the archive"),
        ("readme.txt", lambda image: b"x", "img_val.tar: member 'readme.txt' is not expected there"),
        (FOURTH, lambda image: b"", f"img_val.tar, member {FOURTH} is empty"),
        (FOURTH, lambda image: image[: len(image) // 2], f"img_val.tar, member {FOURTH} is damaged or cut short"),
        (FOURTH, lambda image: b"<html>", f"img_val.tar, member {FOURTH} is a web page"),
    ],
    ids=["traversal", "absolute", "unexpected", "empty image", "half an image", "web page"],
)
def test_hostile_archives_write_nothing_elsewhere(layout, pack, contents, tmp_path, name, change, message):
    source, validation = layout("archives"), contents[1]
    write_tar(source / VAL_TAR, validation | {name: change(validation.get(name, b""))})
    before = {*tmp_path.rglob("*"), *tmp_path.parent.iterdir()}
    assert message in refused(pack(source))
    written = {*tmp_path.rglob("*"), *tmp_path.parent.iterdir()} - before
    assert all(path.is_relative_to(tmp_path / "out") for path in written)
    assert not Path("/escaped.JPEG").exists() and not (pack.out / "test.lmdb").exists()


@pytest.mark.counts_for("archives")
@pytest.mark.parametrize(
    "name, change, message",
    [
        (TRAIN_TAR, lambda content: content[: len(content) // 2], "img_train.tar"),
        (TRAIN_TAR, lambda content: b"<html>" + content, "img_train.tar is not a complete tar archive (it is a web page)"),
        (VAL_TAR, lambda content: content[: len(content) // 2], "img_val.tar is cut short"),
        (VAL_TAR, lambda content: b"", "img_val.tar is not a complete tar archive (it is empty)"),
        (KIT_TAR, lambda content: content[: len(content) // 2], "devkit_t12.tar.gz cannot be unpacked"),
        (KIT_TAR, lambda content: b"<html>", "devkit_t12.tar.gz cannot be unpacked (it is a web page)"),
    ],
    ids=["train cut", "train is a web page", "validation cut", "validation empty", "kit cut", "kit is a web page"],
)
def test_damaged_archives_are_named_before_anything_is_packed(layout, pack, name, change, message):
    source = layout("archives")
    (source / name).write_bytes(change((source / name).read_bytes()))
    assert message in refused(pack(source))
    assert not pack.out.exists()


@pytest.mark.counts_for("archives")
def test_a_training_archive_inside_that_is_cut_or_links_is_named(layout, pack, archives):
    tars = members((archives / TRAIN_TAR).read_bytes())
    first = f"{CLASSES[0]}.tar"
    source = layout("archives")
    write_tar(source / TRAIN_TAR, tars | {first: tars[first][:9000]})
    assert f"img_train.tar, member {first} is cut short" in refused(pack(source))
    del tars[first]
    write_tar(source / TRAIN_TAR, tars, **{first: tarfile.SYMTYPE})
    assert f"img_train.tar: member {first} is a symbolic link" in refused(pack(source))


def test_an_image_in_another_classs_folder_is_named(layout, pack):
    source = layout("tree")
    image = next((source / "train" / CLASSES[0]).iterdir())
    image.rename(source / "train" / CLASSES[1] / image.name)
    assert f"{image.name} is not expected there" in refused(pack(source))


@pytest.mark.counts_for("images")
def test_a_folder_in_place_of_an_image_is_named(layout, pack):
    source = layout("tree")
    image = next((source / "train" / CLASSES[0]).iterdir())
    image.unlink()
    image.mkdir()
    assert f"{image.name} is a folder, where an image file is expected" in refused(pack(source))


def test_damaged_images_are_left_out_when_that_is_asked_for(layout, pack):
    source = layout("tree")
    image = sorted((source / "train" / CLASSES[0]).iterdir())[1]
    image.write_bytes(image.read_bytes()[:2000])
    assert f"{image} is damaged or cut short" in refused(pack(source))
    status, said, _ = pack(source, "--on-error", "skip", "--max-skipped", 1)
    assert status == 0 and "13 images of 4 classes" in said
    assert f"left out: {CLASSES[0]}/{image.name}: is damaged" in said


# --- Counts and names ------------------------------------------------------------------------------------------------


def test_a_part_does_not_pass_for_imagenet(layout, pack):
    source = layout("archives")
    said = refused(pack(source, subset=False))
    assert "4 classes instead of 1,000, 14 training images instead of 1,281,167, 8 validation images instead" in said
    assert "--subset" in said
    pack.out = pack.out.parent / "imagenet"
    assert "must not be packed under the name imagenet" in refused(pack(source))
    assert not pack.out.exists()


@pytest.mark.counts_for("archives")
def test_a_validation_set_that_is_not_50_a_class_is_named():
    counts = dict.fromkeys(map(str, range(1000)), 50)
    train = dict.fromkeys(counts, 1281) | {"0": 1281167 - 999 * 1281}
    imagenet.check_counts(train, imagenet.Counter(counts), subset=False)
    with pytest.raises(imagenet.ReproError, match="51 validation images of 0 instead of 50, 49 validation"):
        imagenet.check_counts(train, imagenet.Counter(counts | {"0": 51, "1": 49}), subset=False)


@pytest.mark.counts_for("archives")
@pytest.mark.parametrize(
    "case, message",
    [
        ("extra", "the development kit does not list class n98000000: move"),
        ("missing", f"there are no training images of class {CLASSES[2]} of the development kit"),
        ("few", f"according to the development kit {CLASSES[2]} has 2 training images instead of 3: complete"),
        ("empty", f"according to the development kit {CLASSES[2]} has 0 training images instead of 3: complete"),
        ("stray", "train/readme.txt is a plain file, where a folder is expected"),
    ],
)
def test_classes_and_counts_must_be_those_of_the_kit(layout, pack, case, message):
    source = layout("tree")
    one = source / "train" / CLASSES[2]
    if case == "extra":
        write_files(source, {"train/n98000000/n98000000_1.JPEG": next(one.iterdir()).read_bytes()})
    if case == "missing":
        shutil.rmtree(one)
    if case == "few":
        next(one.iterdir()).unlink()
    if case == "empty":
        shutil.rmtree(one)
        one.mkdir()
    if case == "stray":
        write_files(source, {"train/readme.txt": ""})
    said = refused(pack(source, subset=False))
    assert message in said


@pytest.mark.parametrize("validation", ["of all classes", "of its classes"])
def test_a_part_beside_the_whole_kit_is_packed(layout, pack, contents, validation):
    """Three of the kit's four classes, one of them with an image less; the kit labels validation images by their numbers."""
    source, truth = layout("tree"), contents[3]
    shutil.rmtree(source / "train" / CLASSES[1])
    next((source / "train" / CLASSES[2]).iterdir()).unlink()
    if validation == "of its classes":
        for name in (name for name, synset in truth.items() if synset == CLASSES[1]):
            (source / "val" / name).unlink()
    status, _, error = pack(source)
    assert status == 0, error
    train, test = (Packed(pack.out / f"{split}.lmdb", "imagenet-subset", split) for split in ("train", "test"))
    assert train.manifest["classes"] == [CLASSES[0], *CLASSES[2:]] and train.manifest["count_per_class"] == [4, 2, 3]
    kept = sorted((synset, name) for name, synset in truth.items() if synset != CLASSES[1])
    assert [train.manifest["classes"][test[index][0]] for index in range(len(test))] == [synset for synset, _ in kept]


@pytest.mark.parametrize("case", ["extra", "more", "no line"])
def test_what_the_kit_does_not_have_is_no_part_of_it(layout, pack, case):
    source = layout("tree")
    image = next((source / "train" / CLASSES[2]).iterdir()).read_bytes()
    name, message = {
        "extra": ("train/n98000000/n98000000_1.JPEG", "does not list class n98000000: move"),
        "more": (f"train/{CLASSES[2]}/{CLASSES[2]}_99.JPEG", f"{CLASSES[2]} has 4 training images instead of 3"),
        "no line": ("val/ILSVRC2012_val_00000009.JPEG", "ground truth has 8 lines, and none for ILSVRC2012_val_00000009.JPEG"),
    }[case]
    write_files(source, {name: image})
    assert message in refused(pack(source))


def test_kaggles_class_list_is_checked(layout, pack):
    source = layout("kaggle")
    mapping = source / "LOC_synset_mapping.txt"
    mapping.write_text("".join(f"{synset} words\n" for synset in CLASSES[:3]))
    assert f"{mapping} does not list class {CLASSES[3]}: move" in refused(pack(source))
    mapping.write_text("".join(f"{synset} words\n" for synset in [*CLASSES, "n99999999"]))
    assert pack(source)[0] == 0  # a part of the list's classes


# --- Label maps ------------------------------------------------------------------------------------------------------


def test_the_kits_numbers_are_not_the_order_of_the_synsets(contents):
    """Else the tests below could not tell one from the other."""
    *_, kit, truth = contents
    sorted_order = [CLASSES[int(number) - 1] for number in kit[imagenet.TRUTH].split()]
    assert sorted(sorted_order) == sorted(truth.values()) and sorted_order != list(truth.values())


LISTS = {  # forms of --validation-labels, from file -> synset
    "synset": lambda truth: [f"{name} {synset}" for name, synset in reversed(truth.items())],
    "path and synset": lambda truth: [f"val/{name} {synset}" for name, synset in truth.items()],
    "number": lambda truth: [f"{name} {CLASSES.index(synset)}" for name, synset in truth.items()],
    "lines": lambda truth: list(truth.values()),
    "kaggle": lambda truth: ["ImageId,PredictionString", *(f"{name[:-5]},{synset} 1 2 3 4" for name, synset in truth.items())],
}


def without_labels(layout) -> Path:
    source = layout("tree")
    shutil.rmtree(source / imagenet.KIT)
    return source


@pytest.mark.parametrize("form", LISTS)
def test_every_form_of_label_list_gives_the_same_labels(layout, pack, contents, tmp_path, form):
    *_, truth = contents
    write_files(tmp_path, {"labels.txt": "\n".join(LISTS[form](truth)) + "\n"})
    status, _, error = pack(without_labels(layout), "--validation-labels", tmp_path / "labels.txt")
    assert status == 0, error
    reader = Packed(pack.out / "test.lmdb", "imagenet-subset", "test")
    assert [reader[index][0] for index in range(8)] == sorted(CLASSES.index(synset) for synset in truth.values())
    images = {name: reader[index][1] for index, (_, name) in enumerate(sorted((s, n) for n, s in truth.items()))}
    for name, image in images.items():  # each label at its own image, where the bytes show which that is
        original = contents[1][name]
        assert image == original or min(Image.open(io.BytesIO(original)).size) > 256


def changed(truth, **changes):
    return {name: changes.get(name.removesuffix(".JPEG"), synset) for name, synset in truth.items()}


WRONG = {  # lines of the list, and what is said of them
    "numbers of the kit": (
        lambda truth, kit: kit[imagenet.TRUTH].decode().split(),
        "has only numbers, as in the development kit. Those follow the kit's own order of "
        "classes, not that of the sorted synsets",
    ),
    "off by one": (
        lambda truth, kit: [f"{name} {CLASSES.index(synset) + 1}" for name, synset in truth.items()],
        "has numbers from 1 to 4, but there are 4 classes, 0 to 3. It seems that its classes count from 1",
    ),
    "background class": (
        lambda truth, kit: [
            f"{name} {0 if place == 0 else CLASSES.index(synset) + 1}" for place, (name, synset) in enumerate(truth.items())
        ],
        "has numbers from 0 to 4, but there are 4 classes, 0 to 3. It seems that number 0 is a background class",
    ),
    "other classes": (
        lambda truth, kit: [f"{name} {place * 9}" for place, name in enumerate(truth)],
        "has numbers from 0 to 63, but there are 4 classes, 0 to 3. It seems that it lists other classes",
    ),
    "an unknown file": (
        lambda truth, kit: [*LISTS["synset"](truth), f"ILSVRC2012_val_00000099.JPEG {CLASSES[0]}"],
        "names a file that is not among the validation images: ILSVRC2012_val_00000099.JPEG: give",
    ),
    "a missing file": (
        lambda truth, kit: LISTS["number"](truth)[1:],
        "lacks 1 of 8 validation images, the first is ILSVRC2012_val_00000001.JPEG",
    ),
    "a file twice": (
        lambda truth, kit: [*LISTS["synset"](truth), LISTS["synset"](truth)[0]],
        "names a file twice: ILSVRC2012_val_00000008.JPEG: give",
    ),
    "an unknown synset": (
        lambda truth, kit: LISTS["synset"](changed(truth, ILSVRC2012_val_00000003="n00000001")),
        "ILSVRC2012_val_00000003.JPEG is of class n00000001 according to",
    ),
    "too few synsets": (lambda truth, kit: LISTS["lines"](truth)[:-1], "has 7 lines, but there are 8 validation images"),
    "mixed lines": (lambda truth, kit: [*LISTS["synset"](truth), "x"], "has the line 'x'"),
    "a web page": (lambda truth, kit: ["<!DOCTYPE html><html lang=en>", "<body>"], "has the line"),
    "nothing": (lambda truth, kit: [], "has the line ''"),
}


@pytest.mark.counts_for("packed")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_label_lists_are_refused_with_the_reason(layout, pack, contents, tmp_path, case):
    *_, kit, truth = contents
    lines, message = WRONG[case]
    write_files(tmp_path, {"labels.txt": "\n".join(lines(truth, kit))})
    said = refused(pack(without_labels(layout), "--validation-labels", tmp_path / "labels.txt"))
    assert message in said and "labels.txt" in said
    assert not pack.out.exists()


def test_without_any_labels_it_says_which_there_could_be(layout, pack):
    said = refused(pack(without_labels(layout)))
    assert f"{KIT_TAR} or LOC_val_solution.csv" in said and "--validation-labels" in said


def test_the_kits_numbers_are_taken_where_the_kit_is_there(layout, pack, contents, tmp_path):
    *_, kit, _ = contents
    write_files(tmp_path, {"labels.txt": kit[imagenet.TRUTH]})
    assert pack(layout("archives"), "--validation-labels", tmp_path / "labels.txt")[0] == 0


@pytest.mark.parametrize(
    "name, message",
    [
        ("devkit order in place of sorted order", "the classes are shifted by one"),
        ("two classes exchanged", "the same classes are in another order (permuted)"),
        ("one image", "1 of 8 differ, the first is ILSVRC2012_val_00000003.JPEG"),
    ],
)
def test_labels_that_disagree_with_the_kit_are_named(layout, pack, contents, tmp_path, name, message):
    *_, kit, truth = contents
    if name == "one image":
        other = next(synset for synset in CLASSES if synset != truth["ILSVRC2012_val_00000003.JPEG"])
        truth = changed(truth, ILSVRC2012_val_00000003=other)
        lines = LISTS["synset"](truth)
    elif name == "two classes exchanged":
        exchanged = dict(zip(CLASSES, [CLASSES[1], CLASSES[0], *CLASSES[2:]]))
        lines = [f"{file} {exchanged[synset]}" for file, synset in truth.items()]
    else:
        lines = [f"{file} {int(number) - 1}" for file, number in zip(sorted(truth), kit[imagenet.TRUTH].split())]
    write_files(tmp_path, {"labels.txt": "\n".join(lines)})
    said = refused(pack(layout("archives"), "--validation-labels", tmp_path / "labels.txt"))
    assert message in said and "labels.txt are not those of the development kit" in said


def test_folders_that_disagree_with_the_kit_are_named(layout, pack, contents):
    source = layout("tree of folders")
    write_files(source, contents[2])
    name = "ILSVRC2012_val_00000005.JPEG"
    is_of = contents[3][name]
    other = next(synset for synset in CLASSES if synset != is_of)
    (source / "val" / is_of / name).rename(source / "val" / other / name)
    assert f"1 of 8 differ, the first is {name} ({is_of} instead of {other})" in refused(pack(source))


def test_a_missing_validation_image_is_named_with_the_kit(layout, pack):
    source = layout("tree")
    (source / "val" / "ILSVRC2012_val_00000005.JPEG").unlink()
    assert "validation image number 5 is missing" in refused(pack(source, subset=False))


def test_a_kit_with_another_classs_number_is_named(layout, pack):
    source = layout("tree")
    truth = source / imagenet.TRUTH
    truth.write_text(truth.read_text().replace("1\n", "6\n"))  # the stand-in's nodes above the classes are 5 and 6
    assert "has the class '6', which the development kit's meta.mat does not have" in refused(pack(source))


def test_a_damaged_meta_mat_is_named(layout, pack):
    source = layout("tree")
    meta, generator = source / imagenet.META, random.Random(0)
    original = meta.read_bytes()
    for damaged in (b"", b"x", original[:200], original[: len(original) // 2], generator.randbytes(3000)):
        meta.write_bytes(damaged)
        assert "meta.mat cannot be read" in refused(pack(source))
    meta.unlink()
    assert "meta.mat cannot be read" in refused(pack(source))


# --- Places365 -------------------------------------------------------------------------------------------------------

CATEGORIES = ["/a/airfield", "/a/apartment_building/outdoor", "/f/field/wild", "/f/field_road"]


def photograph(number) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30 + number, 20), (7 * number % 256, 50, 90)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def places(tmp_path):
    """places(archives): a small Places365 of four categories, in archives or in folders."""
    numbers = itertools.count()
    train = {f"data_256{category}/{n:08d}.jpg": photograph(next(numbers)) for category in CATEGORIES for n in (1, 2, 5)}
    validation = {f"val_256/Places365_val_{n:08d}.jpg": photograph(next(numbers)) for n in range(1, 9)}
    lists = {
        "categories_places365.txt": "".join(f"{category} {n}\n" for n, category in enumerate(CATEGORIES)),
        "places365_val.txt": "".join(f"{Path(name).name} {n * 3 % 4}\n" for n, name in enumerate(validation)),
        "places365_train_standard.txt": "".join(f"{name[8:]} {n // 3}\n" for n, name in enumerate(train)),
    }

    def make(archives: bool) -> Path:
        source = tmp_path / f"places {archives}"
        source.mkdir()
        if archives:
            write_tar(source / "train_256_places365standard.tar", train)
            write_tar(source / "val_256.tar", validation)
            write_tar(source / places365.KIT, {name: text.encode() for name, text in lists.items()})
        else:
            write_files(source, train | validation | lists)
        return source

    return make


def pack_places(source, out, *options):
    return places365.main(["--source", str(source), "--out", str(out), *options])


def test_places365_gives_the_same_records_from_archives_and_folders(places, tmp_path):
    files = []
    for archives in (True, False):
        out = tmp_path / str(archives) / "places365-subset"
        assert pack_places(places(archives), out, "--subset") == 0
        files.append([everything(out, split) for split in ("train", "test")])
    assert files[0] == files[1]
    train, test = (Packed(out / f"{split}.lmdb", "places365-subset", split) for split in ("train", "test"))
    assert train.manifest["classes"] == CATEGORIES and train.manifest["count_per_class"] == [3] * 4
    assert [train[index] for index in range(12)] == [(index // 3, photograph(index)) for index in range(12)]
    assert [test[index] for index in range(8)] == sorted(
        ((n * 3 % 4, photograph(12 + n)) for n in range(8)), key=lambda record: record[0]
    )


def test_a_part_of_places365_is_one(places, tmp_path, capsys):
    source = places(False)
    shutil.rmtree(source / "data_256" / "f" / "field")
    assert pack_places(source, tmp_path / "places365-subset", "--subset") == 0
    reader = Packed(tmp_path / "places365-subset" / "test.lmdb", "places365-subset", "test")
    assert reader.manifest["count_per_class"] == [2, 2, 2] and len(reader.manifest["classes"]) == 3
    assert pack_places(source, tmp_path / "places365", "--subset") == 2
    assert "a part of places365 must not" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case, message",
    [
        ("few categories", "this is not Places365: 4 categories instead of 365"),
        ("extra", "categories_places365.txt does not list category /z/zoo: move"),
        ("missing", "there are no training images of category /f/field/wild of categories_places365.txt"),
        ("unlisted", "places365_val.txt lacks 1 of 8 validation images"),
        ("absent", "1 of the validation images that places365_val.txt lists are missing"),
        ("number", "has the category number 9 for Places365_val_00000001.jpg"),
        ("line", "has the line '<html>', where a name and a number are expected"),
        ("no lists", "has neither filelist_places365-standard.tar nor categories_places365.txt"),
        ("no images", "holds none of train_256_places365standard.tar"),
    ],
)
def test_a_wrong_places365_is_named(places, tmp_path, capsys, case, message):
    source = places(False)
    val = source / "places365_val.txt"
    if case == "extra":
        write_files(source, {"data_256/z/zoo/00000001.jpg": photograph(1)})
    if case == "missing":
        shutil.rmtree(source / "data_256" / "f" / "field")
    if case == "unlisted":
        val.write_text("".join(val.read_text().splitlines(True)[1:]))
    if case == "absent":
        (source / "val_256" / "Places365_val_00000003.jpg").unlink()
    if case == "number":
        val.write_text(val.read_text().replace("00000001.jpg 0", "00000001.jpg 9"))
    if case == "line":
        val.write_text("<html>\n")
    if case == "no lists":
        (source / "categories_places365.txt").unlink()
    if case == "no images":
        (source / "data_256").rename(source / "elsewhere")
    assert pack_places(source, tmp_path / "places365") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "places365").exists()


def test_places365s_training_images_are_counted_by_their_list(places):
    source = places(False)
    train = places365.training_images(source / "data_256")
    lists = places365.read_lists(source)
    places365.check_counts(train, lists[places365.TRAIN])
    train["/f/field_road"].pop()
    with pytest.raises(places365.ReproError, match="/f/field_road has 2 training images instead of 3"):
        places365.check_counts(train, lists[places365.TRAIN])


# --- Any folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path):
    for side, count in (("train", 60), ("test", 3)):
        write_files(
            tmp_path, {f"images/{side}/{name}/{n}.jpg": photograph(n) for name in ("cat", "dog", "été") for n in range(count)}
        )
    write_files(tmp_path, {"images/train/.DS_Store": "x", "images/train/cat/.hidden": "x"})
    return tmp_path / "images"


def pack_folder(out, *options):
    return folder.main([*map(str, options), "--out", str(out)])


def test_folders_of_classes_are_packed(classes, tmp_path):
    out = tmp_path / "animals"
    assert pack_folder(out, "--train", classes / "train", "--test", classes / "test") == 0
    train, test = (Packed(out / f"{split}.lmdb", "animals", split) for split in ("train", "test"))
    assert train.manifest["classes"] == ["cat", "dog", "été"]
    assert (train.manifest["count_per_class"], test.manifest["count_per_class"]) == ([60] * 3, [3] * 3)
    assert test[4] == (1, photograph(1))


def test_a_share_is_set_apart_by_name_alone(classes, tmp_path):
    records = {}
    others = {"train/cat/new.jpg": photograph(70), "train/dog/another.jpg": photograph(71)}
    for name, more in (("one", {}), ("more", others)):
        write_files(classes, more)
        assert pack_folder(tmp_path / name, "--train", classes / "train", "--test-share", "0.2") == 0
        for split in ("train", "test"):
            reader = Packed(tmp_path / name / f"{split}.lmdb", name, split)
            records[name, split] = {reader[index] for index in range(len(reader))}
    assert len(records["one", "train"]) + len(records["one", "test"]) == 180
    assert 15 < len(records["one", "test"]) < 60 and not records["one", "train"] & records["one", "test"]
    assert all(records["one", split] <= records["more", split] for split in ("train", "test"))


@pytest.mark.parametrize("test", [[], ["--test"]])
def test_a_share_to_validate_on_leaves_the_training_images(classes, tmp_path, capsys, test):
    def pack(*options):
        return pack_folder(tmp_path / "animals", "--train", classes / "train", *test, *[classes / "test"] * len(test), *options)

    assert pack("--val-share", "0.2") == 0
    train, val = (Packed(tmp_path / "animals" / f"{split}.lmdb", "animals", split) for split in ("train", "val"))
    assert 15 < len(val) < 60 and not {train[index] for index in range(len(train))} & {val[index] for index in range(len(val))}
    assert len(train) + len(val) == 180 if test else len(train) + len(val) < 180
    assert pack("--overwrite") == 2 and "val.lmdb is of an earlier packing" in capsys.readouterr().err
    assert pack("--val-share", "1") == 2 and "leave images to train on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda images: write_files(images, {"test/cow/1.jpg": photograph(1)}), "test has the class cow, which"),
        (lambda images: write_files(images, {"train/dog/notes.txt": "x"}), "dog/notes.txt is no image of a known format"),
        (lambda images: write_files(images, {"train/notes.txt": "x"}), "train/notes.txt is a plain file, where a folder"),
        (lambda images: (images / "train" / "elk").mkdir(), "there are no training images of class elk: complete"),
        (lambda images: (images / "train" / "dog" / "sub").mkdir(), "dog/sub is a folder, where an image file is expected"),
        (lambda images: [shutil.rmtree(images / "train" / name) for name in ("cat", "dog")], "has 1 class folders"),
        (lambda images: shutil.rmtree(images / "train"), "train cannot be read as a folder"),
    ],
    ids=["unknown test class", "no image", "stray file", "empty class", "nested", "one class", "absent"],
)
def test_wrong_folders_are_named(classes, tmp_path, capsys, change, message):
    change(classes)
    assert pack_folder(tmp_path / "animals", "--train", classes / "train", "--test", classes / "test") == 2
    assert message in capsys.readouterr().err


def test_a_folder_does_not_take_the_name_of_a_known_data_set(classes, tmp_path, capsys):
    assert pack_folder(tmp_path / "imagenet", "--train", classes / "train") == 2
    assert "must not be packed under the name imagenet" in capsys.readouterr().err
