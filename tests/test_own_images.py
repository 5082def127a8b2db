"""Folders of images as users have them: linked, changed in between, of two splits in one, with odd names and odd files."""

import itertools
import os
import shutil
from pathlib import Path

import digits as digits_set
import numpy as np
import pytest
from PIL import Image

from data_prep import folder
from repro import ReproError, task
from repro.images import packed
from repro.images.copies import copy_to_nodes
from repro.images.data import Images

import drawing
import packing
from conftest import python


def draw(place: Path, seed: int, classes="ab", count=8) -> None:
    """Images without compression: those of another seed have the same names and sizes."""
    random = np.random.default_rng(seed)
    for name in classes:
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).save(place / name / f"{number:02}.bmp")


@pytest.fixture
def images(tmp_path) -> Path:
    draw(tmp_path / "images", seed=0)
    return tmp_path / "images"


@pytest.fixture
def pack(capsys):
    """pack(out, train, *options) -> (exit status, standard output, standard error)."""

    def call(out, train, *options):
        few = ("--size", "8", "--test-share", "0.3", "--threads", "1")
        return folder.main([*map(str, ("--train", train, "--out", out, *few, *options))]), *capsys.readouterr()

    return call


def test_images_that_are_all_smaller_than_what_a_network_sees_are_named(pack, images, tmp_path):
    note = "note: a network will see 16 pixels a side, and these images have 9 to 9 (a sample of 16): they are enlarged"
    status, said, _ = pack(tmp_path / "small", images, "--size", "16")
    assert status == 0 and said.startswith(note) and "; --size 9 is enough\n" in said
    assert "note:" not in pack(tmp_path / "fitting", images, "--size", "9")[1]
    Image.new("RGB", (16, 16)).save(images / "a" / "00.bmp")
    assert "note:" not in pack(tmp_path / "mixed", images, "--size", "16")[1]


# --- Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["the folder", "a chain", "the folder above", "the file inside", "to what is not there yet"])
def test_a_data_set_behind_a_symbolic_link_has_the_links_name(images, pack, tmp_path, monkeypatch, case):
    for name in ("data", "large/deep"):
        (tmp_path / name).mkdir(parents=True)
    out, large = tmp_path / "data" / "cats", tmp_path / "large" / "deep"
    if case == "a chain":
        (tmp_path / "between").symlink_to(large)
        out.symlink_to(tmp_path / "between")
    elif case == "the folder above":
        out = tmp_path / "linked" / "cats"
        (tmp_path / "linked").symlink_to(large)
    elif case == "the file inside":
        out.mkdir()
        (out / "train.lmdb").symlink_to(large / "train")
    else:
        out.symlink_to(large if case == "the folder" else large / "new")
    monkeypatch.chdir(tmp_path)
    for given in (out, f"{os.path.relpath(out)}/", f"{tmp_path}/images/../{os.path.relpath(out)}"):
        status, said, error = pack(given, images)
        assert status == 0, error
        assert Images(str(given), "train").name == Images(str(given), "test").name == "cats"
    assert "already packed" in said
    done = python("-m", "repro", "copy-data", out, "--to", tmp_path / "disk")
    assert done.returncode == 0 and Images(str(tmp_path / "disk" / "cats"), "test").name == "cats", done.stderr


def test_the_default_name_is_that_of_the_link_that_was_given(pack, images, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "DATA", tmp_path / "data")
    (tmp_path / "cats").mkdir()
    for place, link in (("cats", "train"), (".", "dogs")):
        (tmp_path / place / link).symlink_to(images)
        assert folder.main(["--train", str(tmp_path / place / link), "--size", "8"]) == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"cats", "dogs"}


@pytest.mark.parametrize("script", ["digits", "letters"])
def test_a_drawn_data_set_behind_a_symbolic_link_has_the_links_name(script, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "COUNTS", dict.fromkeys(drawing.COUNTS, 8))
    (tmp_path / "mine").symlink_to(tmp_path / "large")
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--out", str(tmp_path / "mine")])
    drawing.run("", script, digits_set.CLASSES, digits_set.originals, 0.1, digits_set.PREPROCESSING)
    assert Images(str(tmp_path / "mine"), "train").name == "mine" and (tmp_path / "large" / "val.lmdb").is_file()


def test_a_tilde_is_the_users_home(images, pack, tmp_path, monkeypatch, cli):
    """Shells leave it to the program in --out=~/here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pack("~/packed", "~/images")[0] == 0 and len(Images("~/packed", "train")) + len(Images("~/packed", "test")) == 16
    assert cli("copy-data", "~/packed", "--to=~/disk")[:2] == (0, f"{tmp_path / 'disk' / 'packed'}\n")
    (tmp_path / "mine.py").write_text(
        "from repro.schedule import Recipe, Stage\nmine = Recipe('mine', (Stage('a', 2, 0.1),), 2, images_per_worker=4)\n"
    )
    task = ["train", "~/mine.py:mine", "--model=resnet11", "--data=~/packed", "--out=~/runs", "--device=cpu"]
    status, said, error = cli(*task)
    assert status == 0 and Path(said.strip()).parent == tmp_path / "runs", error
    assert cli("watch", "--out=~/runs")[0] == 0
    made = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}  # of mine.py, where Python keeps bytecode
    assert made == {"disk", "elsewhere", "images", "mine.py", "packed", "runs"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- Images that change --------------------------------------------------------------------------------------------------


def records(place) -> dict[str, list]:
    """All records of both splits."""
    readers = {split: Images(str(place), split).packed for split in ("train", "test")}
    return {split: [reader[index] for index in range(len(reader))] for split, reader in readers.items()}


def test_other_content_under_the_same_names_and_sizes_is_not_taken_for_the_same_images(images, pack, tmp_path):
    out = tmp_path / "packed"
    pack(out, images)
    before = records(out)
    status, said, _ = pack(out, images)
    assert status == 0 and said.count("already packed from the same images with the same options (compared: names, sizes ") == 2
    draw(images, seed=1)
    status, _, error = pack(out, images)
    assert status == 2 and "not from the same images with the same options (compared: names, sizes and times of ch" in error
    assert records(out) == before
    assert pack(out, images, "--overwrite")[0] == pack(tmp_path / "anew", images)[0] == 0
    assert records(out) == records(tmp_path / "anew") != before


def test_a_copy_that_keeps_its_times_is_the_same_images(images, pack, tmp_path):
    pack(tmp_path / "packed", images)
    shutil.copytree(images, tmp_path / "copy")  # with the times, as `cp -p` and rsync do
    assert "already packed" in pack(tmp_path / "packed", tmp_path / "copy")[1]


def test_an_interrupted_packing_is_not_continued_with_other_images(images, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "CHUNK", 4)
    convert, count = packing.convert, itertools.count()

    def interrupted(*arguments):
        if next(count) == 16 + 6:  # 16 for the estimate
            raise KeyboardInterrupt
        return convert(*arguments)

    monkeypatch.setattr(packing, "convert", interrupted)
    assert pack(tmp_path / "packed", images)[0] == 130
    monkeypatch.setattr(packing, "convert", convert)
    draw(images, seed=1)
    status, said, _ = pack(tmp_path / "packed", images)
    assert status == 0 and "started from other images or with other options" in said and "already done" not in said
    pack(tmp_path / "anew", images)
    assert records(tmp_path / "packed") == records(tmp_path / "anew")


@pytest.mark.parametrize("change", ["rewritten", "replaced", "longer", "gone"])
def test_an_image_that_changes_while_it_is_packed_is_named(images, pack, tmp_path, monkeypatch, change):
    image, estimate = images / "a" / "03.bmp", packing._estimate
    content = (images / "b" / "03.bmp").read_bytes()

    def changed(*arguments):
        estimate(*arguments)
        if change == "replaced":
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(image)
        elif change == "gone":
            image.unlink()
        else:
            image.write_bytes(content + b"x" * (change == "longer"))

    monkeypatch.setattr(packing, "_estimate", changed)
    status, _, error = pack(tmp_path / "packed", images)
    why = "cannot be read" if change == "gone" else "was changed while it was packed: wait until nothing changes it"
    assert status == 2 and f"error: {image} {why}" in error


def test_an_overwriting_that_ends_early_leaves_no_mixture_of_two_packings(images, pack, tmp_path):
    out = tmp_path / "packed"
    pack(out, images)
    draw(images, seed=1)
    (images / "b" / "00.bmp").write_bytes(b"")  # which is a test image
    before = records(out)
    assert pack(out, images, "--overwrite")[0] == 2
    assert Images(str(out), "train").packed[0] not in before["train"]
    with pytest.raises(ReproError, match="no packed data at .*test.lmdb"):
        Images(str(out), "test")


def test_splits_of_two_packings_are_not_trained_and_tested_on_together(images, pack, tmp_path):
    for name, size in (("packed", 8), ("other", 9)):
        assert pack(tmp_path / name / "packed", images, "--size", size)[0] == 0
    (tmp_path / "other" / "packed" / "test.lmdb").replace(tmp_path / "packed" / "packed" / "test.lmdb")
    with pytest.raises(ReproError, match="test.lmdb was packed with other options than .*train.lmdb: pack both again"):
        task.prepare("one_model", str(tmp_path / "packed" / "packed"), out=str(tmp_path))


@pytest.mark.parametrize("change", [("--no-mirror",), ("--size", "9")])
def test_a_copy_of_an_earlier_packing_is_replaced(images, pack, tmp_path, change):
    """Also where the stored images are the same, and only what is done with them is not."""
    pack(tmp_path / "packed", images)
    copy = copy_to_nodes(str(tmp_path / "packed"), str(tmp_path / "disk"))
    assert pack(tmp_path / "packed", images, "--overwrite", *change)[0] == 0
    copy_to_nodes(str(tmp_path / "packed"), str(tmp_path / "disk"))
    assert Images(copy, "train").preprocessing == Images(str(tmp_path / "packed"), "train").preprocessing


# --- Images of two splits ------------------------------------------------------------------------------------------------


def refused(outcome) -> str:
    status, _, error = outcome
    assert status == 2 and error.splitlines()[-1].startswith("error: "), error
    return error.splitlines()[-1]


@pytest.mark.parametrize("case", ["the same", "a link to it", "a test folder inside", "a training folder inside"])
def test_one_folder_to_train_and_test_on_is_refused(images, pack, tmp_path, case):
    test, train = images, images
    if case == "a link to it":
        test = tmp_path / "test"
        test.symlink_to(images)
    if case == "a test folder inside":
        draw(test := images / "test", seed=1)
    if case == "a training folder inside":
        draw(train := images / "train", seed=1)
    kind = "one in the other" if "inside" in case else "one folder"
    assert f"--train and --test are {kind}, {images}" in refused(pack(tmp_path / "packed", train, "--test", test))
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("case", ["linked", "hard links", "linked classes"])
def test_a_file_in_two_splits_is_refused(images, pack, tmp_path, case):
    draw(test := tmp_path / "test", seed=1)
    draw(more := tmp_path / "more", seed=2)
    if case == "linked classes":
        shutil.rmtree(test / "b")
        (test / "b").symlink_to(images / "b")
        one, other = images / "b" / "00.bmp", test / "b" / "00.bmp"
    else:
        one, other = images / "a" / "05.bmp", test / "a" / "other.bmp"
        (other.symlink_to if case == "linked" else other.hardlink_to)(one)
    told = f"{one} is a training image, and the same file as {other}, which is not to be trained on: remove one of them"
    assert told in refused(pack(tmp_path / "packed", images, "--test", test))
    assert pack(tmp_path / "packed", images, "--test", more)[0] == 0


def test_one_file_under_two_names_is_not_set_apart_from_itself(images, pack, tmp_path):
    """One of its names is to be trained on, the other to be tested on."""
    (images / "a" / "0.bmp").hardlink_to(images / "a" / "01.bmp")
    assert folder._hash("a/01.bmp") < 0.3 <= folder._hash("a/0.bmp")
    assert "0.bmp is a training image, and the same file as" in refused(pack(tmp_path / "packed", images))


def test_copies_of_training_images_are_counted(images, pack, tmp_path):
    draw(test := tmp_path / "test", seed=1)
    assert "warning" not in pack(tmp_path / "packed", images, "--test", test)[2]
    for name in ("a/03.bmp", "b/06.bmp", "b/07.bmp"):
        shutil.copy(images / name, test / name)
    status, _, error = pack(tmp_path / "copies" / "packed", images, "--test", test)
    assert status == 0 and f"warning: 3 of 16 test images are copies of training images, such as {test}/a/03.bmp" in error


@pytest.mark.parametrize("names", ["the same", "others"])
def test_a_copy_of_the_training_folder_is_no_test(images, pack, tmp_path, names):
    shutil.copytree(images, test := tmp_path / "test")
    if names == "others":
        for path in list(test.glob("*/*")):
            path.rename(path.with_name(f"x{path.name}"))
    for _ in range(2):  # also where it is packed already
        status, _, error = pack(tmp_path / "packed", images, "--test", test)
        assert status == 0 and "warning: test has the same images as train" in error
        assert "16 of 16 test images are copies" in error


def test_copies_of_training_images_are_found_under_other_names_and_in_other_classes(images, pack, tmp_path):
    draw(test := tmp_path / "test", seed=1)
    shutil.copy(images / "a" / "03.bmp", test / "a" / "other.bmp")
    shutil.copy(images / "a" / "04.bmp", test / "b" / "04 (1).bmp")
    error = pack(tmp_path / "packed", images, "--test", test)[2]
    assert f"warning: 2 of 18 test images are copies of training images, such as {test}/a/other.bmp" in error


def test_a_class_without_test_images_is_named(images, pack, tmp_path):
    draw(test := tmp_path / "test", seed=1, classes="a")
    status, _, error = pack(tmp_path / "packed", images, "--test", test)
    assert status == 0 and "warning: test has no images of class b: its results say nothing of them" in error


def test_a_class_without_training_images_says_where_its_images_are(images, pack, tmp_path):
    draw(images, seed=2, classes="c", count=0)
    assert "there are no training images of class c: complete or remove them" in refused(pack(tmp_path / "packed", images))
    number = next(number for number in range(99) if folder._hash(f"c/{number}.bmp") < 0.3)
    shutil.copy(images / "a" / "00.bmp", images / "c" / f"{number}.bmp")
    told = "all images of class c are set apart, and none is left to train on: add some, or set fewer apart"
    assert told in refused(pack(tmp_path / "packed", images))


# --- Names and files as users have them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"caf\xe9", b"new\nline", b"a b", "\N{CAT FACE}".encode(), b"-x", b"*"], ids=repr)
def test_a_class_and_an_image_may_have_any_name(images, pack, tmp_path, name):
    odd = os.fsdecode(name)
    shutil.copytree(images / "a", images / odd)
    for path in (images / odd).iterdir():
        path.rename(path.with_name(f"{odd}{path.name}.png"))  # they are no PNGs, so they are listed
    status, said, error = pack(tmp_path / "packed", images)
    assert status == 0 and "  odd: " in said, error
    assert Images(str(tmp_path / "packed"), "train").classes == sorted(["a", "b", odd])
    assert not [line for line in said.splitlines() if line.startswith("line")]


def test_an_error_that_names_an_odd_file_is_one_line(images, pack, tmp_path):
    (images / "a" / "\x1b[31m\n.bmp").write_bytes(b"")
    assert "a/\\x1b[31m\\n.bmp is empty: fetch it again" in refused(pack(tmp_path / "packed", images))


def test_hidden_files_and_folders_are_no_images(images, pack, tmp_path):
    (images / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "._00.bmp"):
        (images / "a" / name).write_bytes(b"x")
    assert pack(tmp_path / "packed", images)[0] == 0
    assert Images(str(tmp_path / "packed"), "train").classes == ["a", "b"]


def test_names_that_only_look_the_same_are_named(images, pack, tmp_path):
    """macOS writes accents as letters of their own."""
    (images / "b").rename(images / "caf\xe9")
    draw(test := tmp_path / "test", seed=1, classes=["a", "cafe\u0301"])
    told = refused(pack(tmp_path / "packed", images, "--test", test))
    assert "look the same, but are two names in Unicode, 'cafe\\u0301' and 'caf\\xe9'" in told
