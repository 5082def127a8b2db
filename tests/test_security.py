"""The rules of SECURITY.md. Others are held where the code is tested: archives in test_archives.py and test_imagenet.py,
files of engines in test_engines.py, encryption in test_cluster.py, damaged and hostile models in test_release.py."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from repro import paths
from repro.jupyter import engines
from repro.paper import report
from repro.run import checkpoint
from repro.run.checkpoint import CheckpointError

from conftest import ROOT, launch

pytestmark = pytest.mark.counts_for("security")
SOURCES = [*ROOT.glob("repro/**/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("bench/*.py")]
TRACKED = [*SOURCES, *ROOT.glob("tests/*.py"), *ROOT.glob("slurm/*"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "Makefile"]


def calls(path):
    """Every call in a file: (line, what is called, the call)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_files_that_are_read_later_are_written_by_one_function():
    """Opening for writing, and what writes by a path: each only inside `replacing`, to a temporary name, or as listed."""
    allowed = {
        ("paths", "open"),  # replacing itself
        ("scale", "write_text"),  # folders for a measurement, which go with it
        ("loader", "write_bytes"),  # images for a measurement, in a folder that goes with it
        ("packed", "open"),  # a conversion that is continued, under a name of its own until it is whole
        ("records", "open"),  # appended to: a last line cut short is left out; and the lock
        ("engines", "open"),
        ("guard", "open"),
        ("engines", "write_text"),  # logs and marks of processes, gone with their folder
        ("curves", "savefig"),  # into memory
        ("watchdog", "open"),
        ("watchdog", "write_text"),  # signs of life and stacks, of no use after the run
    }
    found = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        inside = {
            id(child)
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and any("replacing(" in ast.unparse(item.context_expr) for item in node.items)
            for child in ast.walk(node)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in inside:
                continue
            name = ast.unparse(node.func).split(".")[-1]
            modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
            mode = next((value.value for value in modes if isinstance(value, ast.Constant)), "r")
            if (
                name in ("write_text", "write_bytes", "mkstemp", "to_csv", "savefig", "save_file")
                or name == "open"
                and isinstance(mode, str)
                and set(mode) & set("wax+")
            ):
                found.add((path.stem, name))
    assert found - allowed == set()


def test_the_controller_listens_on_loopback_alone():
    with engines.start(1) as cluster:
        family = psutil.Process(cluster._guard.pid).children(recursive=True)
        sockets = {
            process.name(): {
                connection.laddr
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            }
            for process in family
        }
        # mpiexec's own port is on all interfaces, and its children inherit it: SECURITY.md says so.
        addresses = {address.ip for listens in sockets.values() for address in listens - sockets.get("mpiexec", set())}
        key = json.loads(Path(cluster.connection_file).read_text())["key"]
        log = Path(cluster.log).read_text()
        words = " ".join(word for process in family for word in process.cmdline())
    assert addresses and addresses <= {"127.0.0.1", "::1"}
    assert len(key) > 20 and key not in words and key not in log


def test_jupyter_keeps_its_token_and_its_address():
    text = {path: path.read_text(errors="replace") for path in TRACKED if path.is_file() and path != Path(__file__)}
    forbidden = r"jupyter trust|token=['\"]?(?:['\"]|\s|$)|disable_check_xsrf|ip=0\.0\.0\.0|--ip=\*|0\.0\.0\.0|password=''"
    assert [f"{path.name}: {found[0]}" for path, content in text.items() if (found := re.search(forbidden, content))] == []
    lab = re.search(r"^lab:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert "--ServerApp.ip=127.0.0.1" in lab
    assert [
        path.name
        for path, content in text.items()
        if "allow-root" in content and not path.name.startswith("test_") and path.name not in ("engines.py", "Makefile")
    ] == []  # Open MPI's mpiexec has an option of that name too
    makefile = text[ROOT / "Makefile"]
    assert makefile.count("--allow-root") == makefile.count("$(if $(filter 0,$(shell id -u)),--allow-root)") == 1


@contextmanager
def refused():
    """urllib wraps what the socket raised."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise error.reason from None


def test_a_lab_asks_for_its_token(tmp_path):
    """The command of `make lab`, with no browser: a request without the token is refused."""
    process = launch(
        sys.executable,
        "-m",
        "jupyterlab",
        "--ServerApp.ip=127.0.0.1",
        "--no-browser",
        "--ServerApp.port=0",
        *(["--allow-root"] if os.geteuid() == 0 else []),
        str(tmp_path),
        JUPYTER_RUNTIME_DIR=str(tmp_path / "runtime"),
    )
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        deadline = time.monotonic() + 20
        with pytest.raises(urllib.error.HTTPError, match="403"):
            while time.monotonic() < deadline:  # it says its address before it listens there
                with suppress(ConnectionRefusedError), refused():
                    urllib.request.urlopen(f"{address}/api/contents", timeout=20)
                time.sleep(0.1)
        server = next((tmp_path / "runtime").glob("jpserver-*.json"))
        assert server.stat().st_mode & 0o077 == 0
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_text_from_data_is_text_in_the_report(tmp_path):
    hostile, reference = "<script>alert(1)</script>", ROOT / "results" / "reference"
    for kind in ("tables", "figures"):
        shutil.copytree(reference / kind, tmp_path / kind)
    for table in (tmp_path / "tables").glob("*.csv"):
        table.write_text(re.sub(r"resnet50|Collapsed|one_model-laptop|AMD", hostile, table.read_text()))
    page = report.write(tmp_path).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") > 50


def test_a_hostile_checkpoint_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"
    payload = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."  # what pickle would run
    for name in ("10.safetensors", "10.json"):
        checkpoint.save(tmp_path / "checkpoints" / "10", {}, {"step": 10})
        (tmp_path / "checkpoints" / name).write_bytes(payload)
        with pytest.raises(CheckpointError):
            checkpoint.newest(tmp_path / "checkpoints")
    sealed = {"format": checkpoint.FORMAT, "progress": {}, "sha256": checkpoint._seal(payload, {})}  # by who knows the seal
    (tmp_path / "checkpoints" / "10.safetensors").write_bytes(payload)
    (tmp_path / "checkpoints" / "10.json").write_text(json.dumps(sealed))
    with pytest.raises(CheckpointError):
        checkpoint.newest(tmp_path / "checkpoints")
    assert not canary.exists()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError), paths.replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_who_may_read_and_change_a_file_is_what_the_umask_says(tmp_path, umask):
    code = f"""
import os, sys; os.umask({umask})
import torch
from pathlib import Path
from repro import export, paths
from repro.images import packed
with paths.replacing("table") as temporary: temporary.write_text("x")
export._write(Path("model"), {{"weight": torch.zeros(3)}}, {{}})
for name, fingerprint in ("drawn", ""), ("images", "f"):
    packed.write(name + "/train.lmdb", name, "train", ["a"], lambda start: [packed.Item(0, b"x")], fingerprint=fingerprint)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert done.returncode == 0 and len(files) == 5
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: oct(0o666 & ~umask) for path in files}
