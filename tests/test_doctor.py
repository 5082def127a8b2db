"""`python -m repro doctor`: one line per check; what is broken is named with the command that fixes it, and the status is 3."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from repro import ReproError
from repro.cli import doctor
from repro.jupyter import engines
from repro.ranks import start

pytestmark = pytest.mark.counts_for("doctor")


def lines(capsys) -> dict[str, str]:
    """What doctor says of these checks, by their name."""
    well = doctor.doctor()
    said = {line[8:17].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert list(said) == list(doctor.CHECKS) and well == all(line.startswith("ok") for line in said.values())
    return said


@pytest.fixture
def only(monkeypatch):
    """only(name): doctor makes this check alone."""
    return lambda name: monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name]})


def test_a_sound_machine_is_told_so_and_the_status_is_0(cli):
    status, printed, _ = cli("doctor")
    assert status == 0, printed
    assert [line[8:17].strip() for line in printed.splitlines()] == list(doctor.CHECKS)
    if (Path(sys.executable).parent / "mpiexec").exists():
        assert "2 ranks see each other, threads " in printed


def test_what_is_broken_ends_the_command_with_status_3(cli, tmp_path, monkeypatch):
    """No mpiexec anywhere: MPI and the engines are broken, all else is looked at all the same."""
    bare = tmp_path / "bin"
    bare.mkdir()
    os.symlink(sys.executable, bare / "python")
    monkeypatch.setattr(sys, "executable", str(bare / "python"))
    monkeypatch.setenv("PATH", str(bare))
    status, printed, _ = cli("doctor")
    assert [line[8:17].strip() for line in printed.splitlines()] == list(doctor.CHECKS)
    broken = {line[8:17].strip(): line for line in printed.splitlines() if line.startswith("BROKEN")}
    assert status == 3 and {"MPI", "engines"} <= set(broken), printed
    assert "no mpiexec in " in broken["MPI"] and "make setup" in broken["MPI"]


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("Python", lambda patch: patch.setattr(sys, "version_info", (3, 9, 1)), "make setup PYTHON="),
        (
            "packages",
            lambda patch: patch.setattr(doctor, "requires", lambda _: ["nosuchpackage>=1"]),
            "nosuchpackage: make setup",
        ),
        ("packages", lambda patch: patch.setitem(sys.modules, "lmdb", None), "lmdb cannot be loaded"),
        ("memory", lambda patch: patch.setattr(start, "LEAST_SHARED", 1e18), "--shm-size"),
        ("disk", lambda patch: patch.setattr(doctor, "LEAST_DISK", 1e18), "--out"),
        ("disk", lambda patch: patch.setattr(doctor, "RESULTS", Path("/proc/nothing")), "cannot write to the folder"),
        ("MPI", lambda patch: patch.setattr(doctor, "ASK_MPI", "raise SystemExit('no fabric')"), "no fabric"),
        (
            "MPI",
            lambda patch: patch.setattr(doctor, "ASK_MPI", 'print(\'[1, "multiple", "X", [[0], [0]]]\')'),
            "belongs to another MPI",
        ),
        (
            "MPI",
            lambda patch: patch.setattr(doctor, "ASK_MPI", 'print(2 * \'[1, "multiple", "X", [[0], [0]]]\')'),
            "belongs to another MPI",
        ),
        ("engines", lambda patch: patch.setattr(engines, "start", lambda _: 1 / 0), "ZeroDivisionError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "broken",  # a function has another text in each process
)
def test_each_check_names_what_is_broken_and_the_fix(only, capsys, monkeypatch, name, change, words):
    only(name)
    change(monkeypatch)
    line = lines(capsys)[name]
    assert line.startswith("BROKEN") and words in line


def test_damaged_data_is_broken_and_missing_data_is_not(only, capsys, monkeypatch, tmp_path, digits):
    only("data")
    monkeypatch.setattr(doctor, "DATA", tmp_path)
    assert "make data" in lines(capsys)["data"]
    shutil.copytree(digits, tmp_path / "digits")
    assert "digits test (1000), digits train (2000), digits val (500)" in lines(capsys)["data"]
    os.truncate(tmp_path / "digits" / "train.lmdb", 5000)
    assert lines(capsys)["data"].startswith("BROKEN")


def test_ranks_of_an_mpiexec_are_no_place_for_it(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(ReproError, match="doctor starts mpiexec itself: call it without"):
        doctor.doctor()
