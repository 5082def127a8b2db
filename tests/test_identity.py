"""What a run records of the code that trained it: a commit only if it is this code's."""

import os
import subprocess

import pytest

from repro import __version__
from repro.run import identity


def git(folder, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    return subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with some code, a notebook and a commit; `repro` is asked about this one."""
    folder = tmp_path / "checkout"
    for file in ("repro/train.py", "notebooks/00.ipynb", "mine.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("1\n")
    git(tmp_path, "init", folder)
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    monkeypatch.setattr(identity, "ROOT", folder)
    return folder


def version() -> str:
    identity.code_version.cache_clear()
    return identity.code_version()


@pytest.fixture(autouse=True)
def forget():
    yield
    identity.code_version.cache_clear()


def commit(folder) -> str:
    return git(folder, "rev-parse", "--short", "HEAD")


def test_a_commit_is_dirty_only_by_code_that_it_tracks(checkout):
    clean = f"{__version__}+{commit(checkout)}"
    assert version() == clean
    (checkout / "notebooks" / "00.ipynb").write_text("saved with outputs\n")
    (checkout / "mine.py").write_text("2\n")
    (checkout / "repro" / "notes.txt").write_text("of the user\n")
    os.utime(checkout / "repro" / "train.py", (1, 1))
    assert version() == clean
    (checkout / "repro" / "train.py").write_text("2\n")
    assert version() == f"{clean}-dirty"


def test_code_in_another_repository_has_no_commit(checkout, monkeypatch, caplog):
    (checkout / "unpacked" / "repro").mkdir(parents=True)
    monkeypatch.setattr(identity, "ROOT", checkout / "unpacked")
    assert version() == __version__
    assert caplog.messages == [f"the version {__version__} is written without a commit: {checkout} is another repository"]


def test_code_unpacked_over_another_repository_has_no_commit(tmp_path, monkeypatch, caplog):
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "thesis")
    (tmp_path / "repro").mkdir()
    (tmp_path / "repro" / "train.py").touch()
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    assert version() == __version__
    assert f"without a commit: {tmp_path} is another repository" in caplog.text


def test_a_hooks_variables_do_not_lead_to_another_repository(checkout, tmp_path, monkeypatch):
    git(tmp_path, "init", tmp_path / "other")
    git(tmp_path / "other", "commit", "--allow-empty", "-m", "thesis")
    for name, value in {"GIT_DIR": ".git", "GIT_WORK_TREE": ".", "GIT_INDEX_FILE": ".git/index"}.items():
        monkeypatch.setenv(name, str(tmp_path / "other" / value))
    found = version()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    assert found == f"{__version__}+{commit(checkout)}"


def test_git_that_will_not_say_is_quoted_once(checkout, tmp_path, monkeypatch, caplog):
    def said() -> str:
        caplog.clear()
        assert version() == identity.code_version() == __version__
        (line,) = caplog.messages
        return line

    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        assert said().endswith(f"without a commit: detected dubious ownership in repository at '{checkout}'")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert "No such file or directory: 'git'" in said()
    with monkeypatch.context() as patch:
        patch.setattr(identity, "ROOT", tmp_path)
        patch.setenv("LANGUAGE", "de")
        assert "not a git repository" in said()


def test_code_of_the_same_bits_makes_no_other_run(tmp_path, monkeypatch):
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text("def f(x):\n    return x + x\n")
    after.write_text("def f(x):\n    return 2 * x\n")
    digests = [identity.definitions(file)["f"] for file in (before, after)]

    def known(file):
        monkeypatch.setattr(identity, "definitions", lambda *_: {"f": digests[file == after]})
        return identity.code_definitions.__wrapped__()

    assert known(before) != known(after)
    monkeypatch.setitem(identity.SAME_BITS, digests[1], digests[0])
    assert known(before) == known(after) == {"f": digests[0]}


def test_each_definition_of_the_same_bits_is_in_this_code():
    """One that has been changed since is no longer what was compared: take it out, and train again."""
    files = (identity.ROOT / "repro" / f"{name}.py" for name in identity.TRAINING_CODE)
    assert set(identity.SAME_BITS) <= set(identity.definitions(*files).values())
