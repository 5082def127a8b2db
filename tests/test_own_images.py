"""Folders of images as users have them: linked, changed in between, of two splits in one, with odd names and odd files."""

import os
from pathlib import Path

import digits as digits_set
import numpy as np
import pytest
from PIL import Image

from data_prep import folder
from repro.images.data import Images

import drawing
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "elsewhere", "images", "mine.py", "packed", "runs"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
