"""The user's copies of the notebooks, which `make lab` opens: the checkout stays clean, and an update loses nothing."""

import json
import shutil
import subprocess

import pytest

from repro.jupyter import mine, notebooks

from conftest import ROOT


def git(folder, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def clone(tmp_path):
    """A checkout that has two of the notebooks, and its folder of copies."""
    (tmp_path / "notebooks").mkdir()
    for name in ("00-start-here.ipynb", "12-questions.ipynb"):
        shutil.copy(notebooks.FOLDER / name, tmp_path / "notebooks")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(tmp_path, *words)
    return tmp_path


def copy_all(clone):
    return mine.copy_all(clone / "notebooks", clone / "mine")


def change(path, cell: int, old: str, new: str, outputs=()) -> None:
    """As an editor saves it: another text of a cell, outputs, and metadata of its own."""
    book = json.loads(path.read_text())
    source = "".join(book["cells"][cell]["source"])
    assert old in source
    book["cells"][cell] |= {"source": source.replace(old, new), "outputs": list(outputs), "execution_count": 3}
    book["metadata"]["language_info"] = {"name": "python", "version": "3.13"}
    path.write_text(json.dumps(book))


def test_what_is_saved_leaves_the_checkout_clean_and_an_update_replaces_only_what_was_not_changed(clone):
    first, second = (clone / "mine" / name for name in ("00-start-here.ipynb", "12-questions.ipynb"))
    assert copy_all(clone) == [] and first.exists() and second.exists()
    stream = {"output_type": "stream", "name": "stdout", "text": "hello"}
    change(first, 2, "", "", [stream])  # run and saved
    change(second, 2, "[0, 1, 2]", "[7]", [stream])  # its parameters, too
    (clone / "mine" / "mine.py").write_text("x = 1")
    (clone / "mine.py").write_text("x = 1")
    assert git(clone, "status", "--porcelain") == ""
    saved = [first.read_text(), second.read_text()]
    assert copy_all(clone) == [] and [first.read_text(), second.read_text()] == saved, "nothing is new"

    for original in (clone / "notebooks").iterdir():  # a pull
        change(original, 1, "from repro", "import os\nfrom repro")
    told = copy_all(clone)
    assert told[0] == "00-start-here.ipynb was updated" and "import os" in first.read_text()
    assert told[1].startswith("12-questions.ipynb has a new version, but you have changed your copy, which stays")
    assert second.read_text() == saved[1] and len(told) == 2
    assert copy_all(clone) == told[1:]
    second.rename(second.with_name("my questions.ipynb"))
    assert copy_all(clone) == [] and "import os" in second.read_text()


@pytest.mark.parametrize("content", ["", "not JSON", "{}", '{"metadata": {}, "cells": []}'])
def test_a_file_of_the_users_with_a_notebooks_name_stays(clone, content):
    (clone / "mine").mkdir()
    own = clone / "mine" / "12-questions.ipynb"
    own.write_text(content)
    (told,) = copy_all(clone)
    assert told.startswith("12-questions.ipynb has a new version") and own.read_text() == content


def test_make_lab_opens_the_copies():
    recipe = (ROOT / "Makefile").read_text().partition("\nlab: ")[2].partition("\n\n")[0].splitlines()
    assert recipe[1].endswith("-m repro.jupyter.mine") and recipe[-1].endswith("$(ARGS) mine")
    assert mine.MINE == ROOT / "mine"
