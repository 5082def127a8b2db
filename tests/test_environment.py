"""What users' machines and settings do: limits of containers, OpenMP's binding, long paths, odd encodings, copied checkouts."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import lmdb
import nbformat
import psutil
import pytest

from repro import ReproError, limits, paths, print_any_text
from repro.cli import doctor
from repro.images import packed
from repro.jupyter import client, notebooks
from repro.ranks import comm, threads
from repro.run import identity, own, records
from repro.run.settings import Settings
from repro.schedule import Recipe, Stage

from conftest import ROOT, python

PAGE = (ROOT / "docs" / "environment.md").read_text()


def test_the_page_lists_the_doctors_checks_in_their_order():
    table = PAGE.partition("## What the doctor checks")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([^|]+) \| .{20,} \|$", table, re.M)[1:] == list(doctor.CHECKS)


def test_the_page_names_the_variables_that_are_not_used_and_those_that_are_recorded():
    from repro.model import CHOOSING

    told = PAGE + PAGE.replace("ONEDNN_", "DNNL_")  # "both also as DNNL_"
    assert not [name for name in (*threads.BINDING, *CHOOSING) if name not in told]


# --- Limits of containers and batch systems ------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(lines of /proc/self/cgroup, {file: content}) -> (cores, bytes of memory), on a machine of 8 cores and 64 GB."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(limits, "OURS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64 << 30, "available": 9 << 30}))

    def call(lines: str, files: dict[str, str]) -> tuple[int, int]:
        (tmp_path / "cgroup").write_text(lines)
        for name, content in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(content)
        return limits.cores(), limits.memory() >> 30

    return call


@pytest.mark.parametrize(
    "lines, files, found",
    [
        ("0::/\n", {}, (8, 64)),
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, (8, 64)),
        ("0::/\n", {"cpu.max": "200000 100000\n", "memory.max": f"{4 << 30}\n"}, (2, 4)),
        ("0::/job/step\n", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, (2, 64)),
        ("0::/job/step\n", {"job/memory.max": f"{6 << 30}\n", "job/step/memory.max": f"{7 << 30}\n"}, (8, 6)),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, (1, 64)),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, (8, 64)),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/\n",
            {
                "cpu/x/cpu.cfs_quota_us": "300000\n",
                "cpu/x/cpu.cfs_period_us": "100000\n",
                "memory/x/memory.limit_in_bytes": "2147483648",
            },
            (3, 2),
        ),
        (
            "4:memory:/machine/path\n3:cpu,cpuacct:/machine/path\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n", "memory/memory.limit_in_bytes": f"{3 << 30}"},
            (8, 3),
        ),
    ],
    ids=str,
)
def test_cores_and_memory_are_those_that_the_cgroup_allows(groups, lines, files, found):
    assert groups(lines, files) == found


def test_a_machine_without_cgroups_has_no_such_limit(groups, monkeypatch, tmp_path):
    groups("", {})
    monkeypatch.setattr(limits, "OURS", tmp_path / "none")
    assert (limits.cores(), limits.memory() >> 30) == (8, 64)


def test_doctor_names_the_containers_limit(groups):
    groups("0::/\n", {"memory.max": f"{4 << 30}"})
    assert doctor.memory() == "9.7 GB free; the batch system or container allows 4.3 GB"


# --- OpenMP --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def binding(monkeypatch):
    for name in threads.BINDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("OMP_PLACES", "cores")


def test_openmp_is_kept_from_binding_threads(binding, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert threads.unbind().startswith("OMP_PROC_BIND=close, OMP_PLACES=cores: not used, since")
    assert not {"OMP_PROC_BIND", "OMP_PLACES"} & set(os.environ) and threads.unbind() == ""


def test_a_program_that_has_loaded_torch_is_told_that_it_is_too_late(binding, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "torch", sys)
    comm.world.__wrapped__()
    assert "so training may be slow: unset it\n" in capfd.readouterr().err
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    comm.world.__wrapped__()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or limits.cores() < 2, reason="nothing to bind to")
def test_a_rank_keeps_its_cores_whatever_openmp_is_asked_for():
    code = (
        "import os, sys\nfrom repro.ranks import comm\nbefore = os.sched_getaffinity(0)\nif sys.argv[1:]: comm.world()\n"
        "import torch\ntorch.randn(99, 99) @ torch.randn(99, 99)\nprint(os.sched_getaffinity(0) == before)"
    )
    asked = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    kept, lost = python("-c", code, "world", **asked), python("-c", code, **asked)
    assert kept.stdout == "True\n" and kept.stderr.startswith("OMP_PROC_BIND=true, OMP_PLACES=cores: not used"), kept.stderr
    assert lost.stdout == "False\n", "OpenMP no longer binds: this test says nothing any more"


# --- Paths ---------------------------------------------------------------------------------------------------------------


def test_sockets_have_a_short_path_under_any_tmpdir(tmp_path, monkeypatch):
    for length, short in ((10, False), (90, True)):
        folder = tmp_path / ("a" * length)
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setattr(paths, "LONGEST_TEMPORARY", len(str(tmp_path)) + 20)
        assert paths.folder_of_sockets() == ("/tmp" if short else str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))
        assert doctor.temporary() == str(folder) + ("; sockets, for whose paths this is too long, in /tmp" if short else "")


def test_a_notebooks_socket_fits_under_the_longest_folder(monkeypatch, tmp_path):
    def sockets(*_, config, **__):
        raise OverflowError(config.KernelManager.ip)

    monkeypatch.setattr(client, "_Client", sockets)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 90)))
    with pytest.raises(ReproError, match="OverflowError: /tmp/repro-.*/kernel") as error:
        notebooks.execute("20-tables", {}, tmp_path / "out.ipynb")
    path = re.search(r"OverflowError: (\S+)", str(error.value))[1]
    assert len(path) + paths.LONGEST_TEMPORARY - len("/tmp") + len("-12345") < 108


@pytest.mark.parametrize("home", ["with files that IPython runs", "read-only"])
def test_a_notebook_runs_whatever_the_users_home_has(home, monkeypatch, tmp_path):
    start = tmp_path / ".ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "mine.py").write_text("print = 1\n")
    monkeypatch.setenv("HOME", str(tmp_path) if "files" in home else "/proc/nothing")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('as everywhere')")])
    client.run(book, tmp_path / "out.ipynb", tmp_path)
    assert [output.get("text") for output in book.cells[0].outputs] == ["as everywhere\n"]


def test_a_tmpdir_that_cannot_be_used_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(ReproError, match="TMPDIR is .*none, where nothing can be written: make that folder"):
        doctor.temporary()


def test_a_home_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nothing")
    with pytest.raises(ReproError, match="/proc/nothing cannot be written .* export HOME=FOLDER"):
        doctor.home()


@pytest.mark.parametrize(
    "kind, value, words", [("RLIMIT_NOFILE", 64, "ulimit -n 128"), ("RLIMIT_AS", 4 << 30, "raise ulimit -v")]
)
def test_limits_of_the_shell_are_named(monkeypatch, kind, value, words):
    getrlimit = doctor.resource.getrlimit
    chosen = getattr(doctor.resource, kind)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda asked: (value, value) if asked == chosen else getrlimit(asked))
    with pytest.raises(ReproError, match=words):
        doctor.ulimits()


def test_a_clock_that_steps_or_is_not_the_file_systems_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "RESULTS", tmp_path)
    assert doctor.clock() == "as the file system's"
    stat_of = os.stat
    late = lambda *asked, **options: os.stat_result([*stat_of(*asked, **options)[:8], 0, 0])  # noqa: E731
    monkeypatch.setattr(doctor.os, "stat", late)
    with pytest.raises(ReproError, match=r"get times -\d+ s from this machine's"):
        doctor.clock()
    monkeypatch.setattr(doctor, "BEGAN", doctor.BEGAN - 3600)
    with pytest.raises(ReproError, match=r"the clock was set by \+3600 s"):
        doctor.clock()


def test_ranks_that_are_bound_to_one_core_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "ASK_MPI", 'print(\'[2, "multiple", "X", [[3], [3]]]\')')
    monkeypatch.setattr(limits, "cores", lambda: 4)
    with pytest.raises(ReproError, match="binds both of two ranks to core 3"):
        doctor.mpi()


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the checkout, whose .venv still leads to the first one."""
    for name in ("repro", "data_prep", "notebooks"):
        (tmp_path / name).mkdir()
    for path in (ROOT / "data_prep").glob("*.py"):
        shutil.copy(path, tmp_path / "data_prep")
    shutil.copy(ROOT / "repro" / "paths.py", tmp_path / "repro")
    return tmp_path


@pytest.mark.parametrize("script", ["digits.py", "folder.py --train . --out ./x"])
def test_a_script_of_a_copy_does_not_write_into_the_first_checkout(copy, script):
    said = python(*f"{copy}/data_prep/{script}".split())
    assert said.returncode == 2 and f"error: this is in {copy}, but its Python, " in said.stderr, said.stderr
    assert f"call make setup in {copy}" in said.stderr


def test_a_notebook_of_a_copy_does_not_write_into_the_first_checkout(copy, monkeypatch):
    monkeypatch.chdir(copy / "notebooks")
    with pytest.raises(ReproError, match=f"this is in {copy}, but its Python"):
        notebooks.check_parameters()


def test_doctor_names_a_venv_of_another_folder(copy, monkeypatch):
    assert doctor.checkout() == str(ROOT)
    (copy / ".venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(copy / ".venv"))
    with pytest.raises(ReproError, match="a .venv works only where it was made"):
        doctor.checkout()
    shutil.rmtree(copy / "repro")
    (copy / ".venv" / "pyvenv.cfg").write_text("command = /usr/bin/python3 -m venv --clear /some/where else/.venv\n")
    with pytest.raises(ReproError, match="was made as /some/where else/.venv and works only there: rm -r .venv"):
        doctor.checkout()


def test_a_folder_of_runs_whose_names_are_too_long_is_refused_before_anything_is_written(tmp_path):
    recipe = Recipe("tiny", (Stage("main", 1, 0.1),), 1, 1)
    for letters in (60, 230):
        facts = {"name": "ä" * (letters // 2), "train": "", "test": ""}
        if letters == 60:
            assert records.Run(tmp_path, recipe, Settings(), facts).folder.parent == tmp_path
        else:
            with pytest.raises(ReproError, match="too long: give the data set's folder a shorter name"):
                records.Run(tmp_path, recipe, Settings(), facts)


# --- Text ----------------------------------------------------------------------------------------------------------------


def test_text_that_the_output_cannot_take_is_printed_as_escapes():
    code = "import repro; repro.print_any_text(); print('caf\\xe9 \\udcff')"
    assert python("-c", code, PYTHONIOENCODING="ascii").stdout == "caf\\xe9 \\udcff\n"
    assert python("-c", code, PYTHONIOENCODING="utf-8").stdout == "café \\udcff\n"


def test_no_output_at_all_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_any_text()


def test_a_reader_that_has_enough_is_no_error():
    code = (
        "import os, sys\nsys.argv[1:] = ['recipes', '--json']\nout, into = os.pipe()\nos.close(out)\nos.dup2(into, 1)\n"
        "from repro.cli.commands import main\nsys.exit(main())"
    )
    said = python("-c", code)
    assert (said.returncode, said.stderr) == (141, "")


# --- Files of one's own --------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine(name, text): writes a file and forgets what this process has imported of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own, "_meant", {})

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        for module in ("helper", "deeper", "nets", "nets.wide"):
            sys.modules.pop(module, None)
        own._meant.clear()
        return f"{path}:net"

    return write


def test_a_file_without_imports_of_ones_own_is_known_by_its_own_meaning(mine, tmp_path):
    name = mine("mine.py", "import json, os.path\nfrom torch import nn\nfrom repro.schedule import Stage\nnet = 1\n")
    assert own.source_digest(name) == identity.meaning(tmp_path / "mine.py")


@pytest.mark.parametrize(
    "how", ["import helper", "from helper import WIDTH", "from nets.wide import *", "import nets.wide as w"]
)
def test_a_change_of_an_imported_file_of_ones_own_is_another_network(mine, how):
    mine("helper.py", "from deeper import WIDTH\n")
    mine("nets/wide.py", "from deeper import WIDTH\n")
    mine("deeper.py", "import helper\nWIDTH = 8\n" if "helper" in how else "WIDTH = 8\n")  # in a circle
    if "helper" in how:
        mine("helper.py", "WIDTH = 1\nimport deeper\n")
    name = mine("mine.py", f"{how}\nnet = 1\n")
    first = own.source_digest(name)
    assert first == own.source_digest(name)
    mine("deeper.py", "import helper\nWIDTH = 16\n" if "helper" in how else "WIDTH = 16\n")
    sys.modules.pop(next(loaded for loaded in sys.modules if loaded.startswith("mine_")))
    assert own.source_digest(name) != first


def test_a_file_that_has_changed_since_it_was_imported_is_named(mine, tmp_path):
    mine("helper.py", "WIDTH = 8\n")
    name = mine("mine.py", "from helper import WIDTH\nnet = 2\n")
    own.source_digest(name)
    (tmp_path / "helper.py").write_text("WIDTH = 16\n")
    with pytest.raises(ReproError, match="helper.py has changed since this process imported it: start"):
        own.source_digest(name)


def test_a_file_that_was_moved_is_looked_for_in_the_working_directory(mine, tmp_path, monkeypatch):
    name = mine("mine.py", "net = 3\n")
    assert own.found(name) == name and own.found("resnet11") == "resnet11"
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "mine.py", tmp_path / "new" / "mine.py")
    assert own.found(name) == name
    monkeypatch.chdir(tmp_path / "new")
    assert own.found(name) == "mine.py:net"


def test_variables_that_choose_kernels_are_part_of_them(monkeypatch):
    from repro.model import CHOOSING, kernels

    for variable in CHOOSING:
        monkeypatch.delenv(variable, raising=False)
    plain = kernels("cpu")
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert kernels("cpu") == f"{plain}, ONEDNN_DEFAULT_FPMATH_MODE=BF16"


def test_data_that_must_not_be_read_is_named(digits, monkeypatch):
    def refused(*_):
        raise lmdb.Error("Permission denied")

    monkeypatch.setattr(packed, "_open", refused)
    with pytest.raises(ReproError, match="is not a packed data set, or it was cut short"):
        packed.Packed(f"{digits}/val.lmdb", "digits", "val")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ReproError, match="val.lmdb must not be read by you: ask its owner"):
        packed.Packed(f"{digits}/val.lmdb", "digits", "val")
