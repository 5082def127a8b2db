"""The archive of a reproduction: what it holds, that its checksums fit, and that the same files give the same bytes."""

import hashlib
import os
import shutil
import zipfile

import pytest

from repro import ReproError, __version__
from repro.paper import archive, tables
from repro.paths import REFERENCE, ROOT

TOP = f"scaleout-repro-{__version__}/"


@pytest.fixture(scope="module")
def results(whole, tmp_path_factory):
    """A results folder with one run, and with what must not be published."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(whole, folder / "runs" / whole.name)
    for name in ("report/index.html", "tables/ledger.csv", "figures/headline.svg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REFERENCE / name, folder / name)
    (folder / "notebooks" / "collapse").mkdir(parents=True)
    for name in ("12-questions.ipynb", "12-questions.failed.ipynb"):
        (folder / "notebooks" / "collapse" / name).write_text(f"read from {ROOT}/results")
    return folder


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """The run is a tiny one, which would not count."""
    monkeypatch.setattr(tables, "of_size", lambda runs: True)


def contents(path):
    with zipfile.ZipFile(path) as file:
        assert all(entry.filename.startswith(TOP) for entry in file.infolist())
        return {entry.filename.removeprefix(TOP): file.read(entry) for entry in file.infolist()}


def test_it_has_everything_that_is_needed_and_nothing_that_is_not(results, whole):
    found = contents(archive.archive(results))
    code = {name for name in found if name.startswith("code/")}
    assert {"code/Makefile", "code/repro/train.py", "code/notebooks/12-questions.ipynb"} <= code
    assert not any("reference" in name for name in code if name.startswith("code/results"))
    run = {f"runs/{whole.name}/{path.relative_to(whole)}" for path in whole.rglob("*") if path.is_file()}
    assert {name for name in run if name.endswith(("run.json", "metrics.jsonl"))} <= found.keys()
    assert not any(word in name for name in found.keys() - code for word in ("snapshots", "checkpoints", "failed", "lock/"))
    assert found["notebooks/collapse/12-questions.ipynb"] == b"read from results", "without this machine's folders"
    for name in ("CITATION.cff", "LICENSE", "environment/requirements.lock"):
        assert found[name] == (ROOT / name.removeprefix("environment/")).read_bytes()
    assert b'"torch"' in found["environment/machines.json"]
    assert found["report/index.html"] == (results / "report" / "index.html").read_bytes()


def test_the_checksums_are_of_all_other_files(results):
    found = contents(archive.archive(results))
    lines = [line.split("  ", 1) for line in found.pop("checksums.sha256").decode().splitlines()]
    assert {name: digest for digest, name in lines} == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items()
    }


def test_its_readme_says_what_each_file_is(results):
    found = contents(archive.archive(results))
    readme = found["README.md"].decode()
    assert "1 complete runs, trained by this code." in readme and "PASS" in readme
    first = {name.partition("/")[0] for name in found} - {"README.md"}
    assert all(f"`{name}" in readme for name in first), first
    assert "forecasts.json" not in readme, "what is not there is not named"


def test_outside_of_a_checkout_it_says_that_the_code_is_not_in_it(results, monkeypatch):
    def git(*words):
        raise ValueError("not a git repository")

    monkeypatch.setattr(archive.identity, "git", git)
    monkeypatch.setattr(archive.identity, "code_version", lambda: __version__)
    found = contents(archive.archive(results))
    assert not any(name.startswith("code/") for name in found) and b"`code/`" not in found["README.md"]
    assert b"The code is not in this archive" in found["README.md"]


def test_the_same_files_give_the_same_bytes_and_a_change_gives_others(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("*.zip"))
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    first, second = archive.archive(results), archive.archive(copy, tmp_path / "new folder" / "other name.zip")
    assert first.name == f"scaleout-repro-{__version__}.zip" and first.read_bytes() == second.read_bytes()
    (copy / "figures" / "headline.svg").write_text("changed")
    assert archive.archive(copy).read_bytes() != first.read_bytes()


def test_without_a_report_there_is_no_archive(results, tmp_path):
    with pytest.raises(ReproError, match="there is no report in .*: `make reproduce` makes it"):
        archive.archive(shutil.copytree(results / "runs", tmp_path / "runs").parent)
