"""What the tests share: packed digits, processes under a hard time-out, one small run, and the same on several ranks."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import faults_table
from faults_table import pytest_addoption, pytest_sessionfinish  # noqa: F401  hooks

# The tensors here are small: threads would only wait for each other. Before torch is loaded, for all processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background has it ignored, and whatever these tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# The files whose tests take longest, which `make test` begins with, so that its two processes end at about the same time.
LONGEST = ["test_notebooks.py", "test_reproduce.py", "test_train.py", "test_faults.py", "test_engines.py"]
COUNTS = {"train": 2000, "val": 500, "test": 1000}  # images of the fixture `digits`
PACK_DIGITS = ROOT / "data_prep" / "digits.py"
SMOKE = {"recipe": "resnet50_448nodes", "shrink": "smoke", "seed": 5, "device": "cpu"}  # 14 workers, 24 steps


def pytest_collection_modifyitems(items):
    faults_table.check(items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    faults_table.count(item, outcome.get_result())


def launch(*command, **environment) -> subprocess.Popen:
    """Starts a process with this checkout's package, without a launcher's variables, in a session of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PMI", "OMPI_", "PRTE_"))}
    return subprocess.Popen(
        list(map(str, command)),
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # ignored in a shell's background


def run(*command, timeout=60, **environment) -> subprocess.CompletedProcess:
    """Runs a process to its end; one that takes too long is ended with all that it started, and fails the test."""
    process = launch(*command, **environment)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {timeout} s: {command}\n{process.communicate()[1]}")
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def python(*arguments, **options) -> subprocess.CompletedProcess:
    return run(sys.executable, *arguments, **options)


def mpiexec(ranks: int, *arguments, **options) -> subprocess.CompletedProcess:
    """Runs Python on so many ranks."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        pytest.skip("no mpiexec beside this Python or on PATH: nothing can be tried on several ranks")
    return run(found, "-n", ranks, sys.executable, *arguments, **options)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> str:
    """A folder of packed digits: the first ones of each split, since most tests only need some."""
    import drawing  # of data_prep, which processes that import this file need not have on their path

    folder = tmp_path_factory.mktemp("data") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "COUNTS", COUNTS)
        patch.setattr(sys, "argv", ["digits.py", "--out", str(folder)])
        runpy.run_path(str(PACK_DIGITS), run_name="__main__")
    return str(folder)


@pytest.fixture(scope="session")
def all_digits(tmp_path_factory) -> str:
    """All of them, made as the README says, in as much address space as a batch system may allow."""
    folder = tmp_path_factory.mktemp("all") / "digits"
    packing = run("bash", "-c", f"ulimit -v 16000000; exec {sys.executable} {PACK_DIGITS} --out {folder}")
    assert packing.returncode == 0, packing.stderr
    return str(folder)


@pytest.fixture(scope="session")
def whole(digits, tmp_path_factory) -> Path:
    """The folder of the smoke run, made in this process without a break."""
    from repro.train import train

    return Path(train(**SMOKE, data=digits, out=str(tmp_path_factory.mktemp("whole"))))


@pytest.fixture(scope="session")
def killed(digits, tmp_path_factory) -> Path:
    """The folder of the smoke run in another process, which SIGKILL ended after its first checkpoint."""
    return kill_after_first_checkpoint(tmp_path_factory.mktemp("killed"), **SMOKE, data=digits)


def kill_after_first_checkpoint(out: Path, **task) -> Path:
    """The folder of a run (parameters of `train.train`) in another process, which SIGKILL ended after a checkpoint."""
    task["out"] = str(out)
    code = f"from repro import journal, train; journal.CHECKPOINT_SECONDS = 0; train.train(**{task!r})"
    process = launch(sys.executable, "-c", code)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("*/checkpoints/*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, f"the run was not there to be killed: {said}"
    return next(out.iterdir())


@pytest.fixture(scope="session")
def on_ranks(digits, killed, tmp_path_factory):
    """on_ranks(n): what tests/on_ranks.py reports from n ranks, run once."""
    reports = {}

    def report(ranks: int) -> SimpleNamespace:
        if ranks not in reports:
            out = tmp_path_factory.mktemp(f"ranks{ranks}")
            shutil.copytree(killed, out / "killed" / killed.name)
            process = mpiexec(ranks, ROOT / "tests" / "on_ranks.py", json.dumps(SMOKE), digits, out, timeout=120)
            assert process.returncode == 0, process.stderr
            reports[ranks] = SimpleNamespace(out=out, **json.loads(process.stdout.splitlines()[-1]))
        return reports[ranks]

    return report


@pytest.fixture
def cli(monkeypatch, capsys):
    """cli(...): exit status, standard output and standard error of `python -m repro ...`, in this process."""

    from repro.cli import commands as __main__

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["repro", *arguments])
        try:
            status = __main__.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call
