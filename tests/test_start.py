"""What is said before MPI starts and while it hangs. The hang is real: MPICH waits for a launcher that never answers."""

import os
import signal
import sys
import time

import pytest

from repro import ReproError
from repro.ranks import start

from conftest import launch, mpiexec, python, run

HANG = """
import os, socket, sys
ours, theirs = socket.socketpair()
os.environ |= {"PMI_FD": str(theirs.fileno()), "PMI_RANK": sys.argv[1], "PMI_SIZE": "8"}
from repro.ranks import start
start.PATIENCE, start.GRACE = 1, 1
from repro.__main__ import main
sys.argv[1:] = ["ranks"]
sys.exit(main())
"""
WITH_MPICH = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print('MPICH' in MPI.Get_library_version())"


@pytest.fixture(scope="module")
def mpich():
    if python("-c", WITH_MPICH).stdout != "True\n":
        pytest.skip("mpi4py loads no MPICH here, and no other MPI waits for a launcher in the same way")


def test_a_start_that_hangs_is_named_and_ends_on_request(mpich):
    process = launch(sys.executable, "-c", HANG, 1)
    began = time.monotonic()
    told = process.stderr.readline()
    assert told.startswith("rank 1 of 8 on ") and "has waited 1 s for MPI to start, and waits on until 600 s: " in told, told
    assert "mpiexec is not the one for MPICH Version: " in told and told.endswith("see Troubleshooting in docs/cluster.md\n")
    assert 1 < time.monotonic() - began < 20
    process.send_signal(signal.SIGUSR1)
    stdout, said = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (75, ""), said
    assert said.startswith("rank 1 of 8 on ") and said.count("\n") == 1
    assert said.endswith(" was asked to stop by SIGUSR1 while it waited for MPI to start; the same command tries again\n")


def test_of_many_ranks_two_say_it_and_each_can_be_stopped(mpich):
    process = launch(sys.executable, "-c", HANG, 2)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75 and said.startswith("rank 2 of 8 on "), said
    assert said.count("\n") == 1 and " was asked to stop by SIGINT while" in said


def test_a_start_that_hangs_ends_at_its_limit_with_a_status_and_a_line(mpich):
    done = python("-c", HANG, 0, REPRO_START_SECONDS="2", SLURM_STEP_ID="0")
    named, ended = done.stderr.splitlines()
    assert done.returncode == start.STATUS_NOT_STARTED == 69 and "has waited 1 s for MPI to start" in named
    assert ended.startswith("error: rank 0 of 8 on ") and " has waited 2 s for MPI to start, its limit (REPRO_" in ended
    assert "srun --mpi=pmi2 cuts MPICH's longest lines: set MPIR_CVAR_CH4_NETMOD=ofi, or use MPICH's mpiexec; see" in ended


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan", "inf"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(monkeypatch, said):
    monkeypatch.setenv(start.LIMIT, said)
    with pytest.raises(ReproError, match=f"REPRO_START_SECONDS is '{said}': it must be a positive number of seconds"):
        start.limit()


FIRST_SUM = """
import sys, time
from repro.ranks import comm, start
start.PATIENCE = 1
rank, ranks = comm.launched()
if rank == 1:
    comm._start(rank, ranks)
    time.sleep(60)
comm.world()
"""


ABSENT = FIRST_SUM.replace("comm._start(rank, ranks)", "pass")


def test_a_rank_that_never_begins_on_another_node_does_not_keep_the_others(mpich):
    """MPICH's mpiexec would wait for it, however the others have ended."""
    launcher = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    nodes = "-launcher", "fork", "-hosts", "one,two", "-ppn", 1
    done = run(launcher, *nodes, "-n", 2, sys.executable, "-c", ABSENT, REPRO_START_SECONDS="2", timeout=30)
    assert done.returncode == 69 and "error: rank 0 of 2 on " in done.stderr, done.stderr


def test_a_first_allreduce_that_hangs_is_named_and_ends_at_its_limit():
    done = mpiexec(2, "-c", FIRST_SUM, REPRO_START_SECONDS="4")
    named, ended = [line for line in done.stderr.splitlines() if "rank 0 of 2 on " in line]
    assert done.returncode == 69 and " has waited 1 s for the first allreduce, and waits on until 4 s: nodes may not" in named
    assert ended.startswith("error: ") and " has waited 4 s for the first allreduce, its limit" in ended


SLOW = """
import signal, sys, time
from repro.ranks import start, stop
start.PATIENCE, start.GRACE = float(sys.argv[1]), 20
with stop.listening(signal.SIGUSR1), start.attended("MPI to start", 0, 8, "no reason"):
    print("ready", flush=True)
    time.sleep(2)
print(stop.asked.is_set())
"""


def test_a_request_while_mpi_starts_slowly_is_one_to_training():
    process = launch(sys.executable, "-c", SLOW, 60)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=30) == ("True\n", "") and process.returncode == 0


def test_a_slow_start_goes_on_after_it_was_named():
    told = python("-c", SLOW, "0.5")
    assert told.returncode == 0 and told.stdout == "ready\nFalse\n" and told.stderr.count("\n") == 1


def test_nothing_is_left_of_a_start(capfd):
    files, before = len(os.listdir("/proc/self/fd")), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with start.attended("MPI to start", 0, 1, "no reason"):
        pass
    assert len(os.listdir("/proc/self/fd")) == files and signal.set_wakeup_fd(before) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small /dev/shm for a process")
def test_a_small_shared_memory_is_told_before_mpi_ends_without_a_word(mpich):
    tiny = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    if run("unshare", "-m", "sh", "-c", tiny, "-", "true").returncode:
        pytest.skip("this machine allows no mounts")
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    said = run("unshare", "-m", "sh", "-c", tiny, "-", mpiexec, "-n", 2, sys.executable, "-m", "repro", "ranks")
    assert "/dev/shm has 1 MB free, MPI needs more: " in said.stderr, said.stderr
    assert "/dev/shm" not in run(mpiexec, "-n", 2, sys.executable, "-m", "repro", "ranks").stderr
