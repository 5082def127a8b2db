"""Engines: results in rank order from one MPI world, failures named within seconds, and no process left, whatever ends.

Processes are counted by a mark in the environment, which everything that is started inherits.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from repro import ReproError
from repro.jupyter import engines, guard
from repro.ranks import comm

MARK = "REPRO_TEST_MARK"
SOON = 5  # seconds within which a failure must be named, and all processes gone


# --- What ranks run; engines import this file -------------------------------------------------------------------------


def describe():
    from mpi4py import MPI

    with open("/proc/self/maps") as maps:
        shared = [line for line in maps if "/dev/shm/mpich" in line]
    world = MPI.COMM_WORLD
    return {
        "rank": world.rank,
        "sum": world.allreduce(world.rank + 1),
        "pid": os.getpid(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "files": [line for line in shared if "(deleted)" not in line],
    }


def fail(rank, stuck=False):
    """Raises on `rank`; with `stuck`, the others wait for it in a collective."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == rank:
        raise ValueError("on purpose")
    if stuck:
        MPI.COMM_WORLD.Barrier()


def work(worker):
    """Is at work; with a `worker` that would outlive its rank."""
    if worker:
        subprocess.Popen(["sleep", "60"], start_new_session=True)
    print("at work", flush=True)
    time.sleep(60)


def fail_together():
    from mpi4py import MPI

    raise comm.PeerError("rank 1 failed: on purpose") if MPI.COMM_WORLD.rank == 0 else ValueError("on purpose")


def fail_differently():
    from mpi4py import MPI

    raise [ValueError, KeyError][MPI.COMM_WORLD.rank]("on purpose")


def fail_while_another_stops():
    from mpi4py import MPI

    from repro.run.records import Stopped

    raise [Stopped("asked to"), ValueError("on purpose")][MPI.COMM_WORLD.rank]


def refuse():
    error = ReproError("there is no such thing: choose another")
    error.add_note("(on purpose)")
    raise error


def asked_to_stop():
    from repro.ranks import stop

    return stop.asked.is_set()


# --- Processes that tests start ---------------------------------------------------------------------------------------


def own_engines(ranks):
    """Owns engines that are at work, and a forked process that has inherited all that the owner holds open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    cluster = engines.start(ranks)
    job = cluster.submit(time.sleep, 60)
    forked = os.fork()
    if not forked:
        time.sleep(60)
        os._exit(0)
    print(forked, flush=True)
    job.result()


def join_engines(connection_file):
    with engines.start_or_join(connection_file, 1) as cluster:
        print(json.dumps(cluster.run("test_engines:describe")))


def join_and_fail(connection_file):
    with engines.join(connection_file) as cluster:
        began = time.monotonic()
        with pytest.raises(engines.RankError, match="Rank 1 did not finish, so the engines were ended"):
            cluster.run(fail, 0, stuck=True)
        assert time.monotonic() - began < SOON
        with pytest.raises(engines.EnginesEnded):
            cluster.run(describe)


def command(function, *arguments):
    return [sys.executable, "-c", f"import test_engines; test_engines.{function}(*{arguments!r})"]


def environment():
    paths = [str(Path(__file__).parent), str(Path(engines.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def in_another_process(function, *arguments):
    done = subprocess.run(command(function, *arguments), env=environment(), capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- Fixtures ---------------------------------------------------------------------------------------------------------


class Traces:
    """What the engines of one test may leave behind."""

    def __init__(self, folder):
        self.mark, self.folder = uuid.uuid4().hex, folder

    def processes(self):
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def assert_gone(self, within=SOON, but=()):
        deadline = time.monotonic() + within
        while any(process.pid not in but for process in self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [(process.pid, process.cmdline()) for process in self.processes() if process.pid not in but] == []
        assert list(self.folder.iterdir()) == []


def watch(folder, monkeypatch):
    traces = Traces(folder)
    monkeypatch.setenv(MARK, traces.mark)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return traces


@pytest.fixture
def traces(tmp_path, monkeypatch):
    """Everything that the test starts carries its mark, and keeps its files in an empty folder."""
    traces = watch(tmp_path, monkeypatch)
    yield traces
    for process in traces.processes():  # of a test that failed
        process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two engines for all tests that leave them usable."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        traces = watch(tmp_path_factory.mktemp("shared"), monkeypatch)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        with engines.start(2) as cluster:
            yield cluster
        traces.assert_gone(within=0)


def answers(cluster, function, *arguments, **named):
    """`cluster.run` that cannot hang."""
    job = cluster.submit(function, *arguments, **named)
    assert job.wait(20)
    return job.result()


def wait_for_print(cluster, text):
    """Waits until all ranks have printed `text`; mpiexec hands it on to the log."""
    deadline = time.monotonic() + 20
    while Path(cluster.log).read_text().count(text) < cluster.ranks:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def fake_mpiexec(folder, monkeypatch, script):
    file = folder.parent / f"{folder.name}-mpiexec"
    file.write_text(f"#!{sys.executable}\nimport os, subprocess, sys\nif '--version' in sys.argv: sys.exit()\n{script}")
    file.chmod(0o700)
    monkeypatch.setattr(engines, "find_mpiexec", lambda: str(file))
    return str(file)


# --- Engines at work --------------------------------------------------------------------------------------------------


def test_import_loads_neither_ipyparallel_nor_mpi():
    code = "import sys, repro.jupyter.engines; sys.exit(str({'ipyparallel', 'mpi4py', 'torch', 'psutil'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=20)
    assert done.stderr.strip() == "set()"


def _is_loaded(module):
    import sys

    return module in sys.modules


def test_a_job_waits_for_what_the_engines_load(cluster):
    cluster.load("wave")
    assert cluster.idle
    assert answers(cluster, _is_loaded, "wave") == [True, True]
    cluster.load("no_such_module")
    with pytest.raises(engines.RankError, match="No module named 'no_such_module'"):
        answers(cluster, _is_loaded, "wave")
    assert answers(cluster, _is_loaded, "no_such_module") == [False, False]


def test_results_come_in_rank_order_from_one_world(cluster):
    found = answers(cluster, describe)
    assert [one["rank"] for one in found] == [0, 1]
    assert [one["sum"] for one in found] == [3, 3]
    assert [one["pid"] for one in found] == cluster.pids and cluster.ranks == 2
    assert [one["threads"] for one in found] == ["1", "1"]
    assert [one["files"] for one in found] == [[], []]  # killed ranks would leave them behind


@pytest.mark.counts_for("security")
def test_files_are_private(cluster):
    assert Path(cluster.connection_file).parents[1].stat().st_mode & 0o777 == 0o700
    assert Path(cluster.connection_file).stat().st_mode & 0o777 == 0o600
    assert json.loads(Path(cluster.connection_file).read_text())["interface"] == "tcp://127.0.0.1"


def test_another_process_joins_the_same_engines_and_leaves_them(cluster):
    joined = json.loads(in_another_process("join_engines", cluster.connection_file))
    assert [one["pid"] for one in joined] == cluster.pids
    assert [one["rank"] for one in answers(cluster, describe)] == [0, 1]


def test_what_ranks_print_is_in_the_log(cluster):
    answers(cluster, print, "printed by a rank", flush=True)
    wait_for_print(cluster, "printed by a rank")


def test_a_rank_that_fails_while_others_finish_leaves_the_engines_usable(cluster):
    with pytest.raises(engines.RankError) as caught:
        answers(cluster, fail, 1)
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["rank 1 failed: ValueError: on purpose", "Traceback (most recent call last):"]
    assert caught.value.rank == 1 and caught.value.kind == "ValueError"
    assert "test_engines.py" in lines[2] and lines[-1] == "ValueError: on purpose" and "\x1b" not in str(caught.value)
    assert [one["rank"] for one in answers(cluster, describe)] == [0, 1]


def test_the_rank_that_failed_first_hand_is_named_before_those_that_repeat_it(cluster):
    with pytest.raises(engines.RankError, match="^rank 1 failed: ValueError: on purpose") as caught:
        answers(cluster, fail_together)
    assert caught.value.rank == 1 and "rank 0" not in str(caught.value)


def test_another_error_on_another_rank_is_named_too(cluster):
    with pytest.raises(engines.RankError, match="rank 1 also failed: KeyError: 'on purpose'$"):
        answers(cluster, fail_differently)


def test_a_failure_is_named_before_a_rank_that_was_asked_to_stop(cluster):
    """A caller that only sees the request would say that all is well."""
    with pytest.raises(engines.RankError, match="^rank 1 failed: ValueError: on purpose") as caught:
        answers(cluster, fail_while_another_stops)
    assert (caught.value.rank, caught.value.kind) == (1, "ValueError")


def test_of_an_error_that_the_user_can_fix_only_the_message_is_left(cluster):
    with pytest.raises(engines.RankError) as caught:
        answers(cluster, refuse)
    assert str(caught.value) == "there is no such thing: choose another (on purpose)" and caught.value.kind == "ReproError"


def test_a_function_that_cannot_be_found_is_named(cluster):
    with pytest.raises(engines.RankError, match="No module named 'repro.nothing'"):
        answers(cluster, "repro.nothing:train")


def test_a_second_job_is_refused_while_the_first_is_under_way(cluster):
    job = cluster.submit(time.sleep, 1)
    assert not job.done()
    with pytest.raises(engines.EnginesError, match="earlier job"):
        cluster.submit(describe)
    assert job.wait(20) and job.result() == [None, None]


def test_a_request_to_stop_reaches_the_ranks_and_can_be_forgotten(cluster):
    assert cluster.ask_to_stop()
    deadline = time.monotonic() + SOON
    while not all(answers(cluster, asked_to_stop)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answers(cluster, asked_to_stop) == [True, True]
    cluster.forget_request()
    assert answers(cluster, asked_to_stop) == [False, False]


def test_no_process_of_this_machine_is_asked_in_place_of_one_elsewhere(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "_hosts", ["elsewhere"] * 2)
    assert not cluster.ask_to_stop()
    time.sleep(0.2)
    assert answers(cluster, asked_to_stop) == [False, False]


@pytest.mark.slow
def test_a_second_call_returns_the_engines_of_the_first_unless_they_do_not_fit(traces):
    first = engines.start_or_join("", 1)
    assert engines.start_or_join("", 1) is first
    second = engines.start_or_join("", 2)
    assert second.ranks == 2 and not first.alive and not any(psutil.pid_exists(pid) for pid in first.pids)
    second.submit(time.sleep, 60)
    third = engines.start_or_join("", 2)
    assert third is not second and not second.alive
    third.close()
    traces.assert_gone(within=0)
    with engines.start_or_join("", 1) as fourth:
        assert fourth.alive
    traces.assert_gone(within=0)


def test_without_waiting_the_first_call_waits(traces):
    began = time.monotonic()
    with engines.start(2, wait=False) as cluster:
        assert time.monotonic() - began < 2 and cluster.alive and cluster.idle and cluster.pids == []
        assert len(cluster.run("os:getpid")) == 2 == len(cluster.pids)
    traces.assert_gone(within=0)


def test_engines_that_nobody_waited_for_can_be_closed(traces):
    cluster = engines.start(1, wait=False)
    cluster.close()
    with pytest.raises(engines.EnginesEnded, match="they were closed"):
        cluster.run("os:getpid")
    traces.assert_gone(within=0)


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_rank_that_fails_while_another_waits_for_it_ends_the_engines(traces):
    with engines.start(2) as cluster:
        began = time.monotonic()
        with pytest.raises(engines.RankError) as caught:
            answers(cluster, fail, 0, stuck=True)
        assert time.monotonic() - began < SOON
        assert "ValueError: on purpose" in str(caught.value) and "Rank 1 did not finish" in str(caught.value)
        traces.assert_gone(within=0)
        with pytest.raises(engines.EnginesEnded, match="a rank had failed"):
            cluster.run(describe)


@pytest.mark.slow
def test_a_process_that_joined_ends_stuck_engines_too(traces):
    with engines.start(2) as cluster:
        in_another_process("join_and_fail", cluster.connection_file)
        traces.assert_gone(within=0)
        with pytest.raises(engines.EnginesEnded, match="another process ended them"):
            cluster.run(describe)
    with pytest.raises(engines.EnginesEnded, match="no engines behind"):
        engines.join(cluster.connection_file)


def kill_engine(guard, cluster):
    os.kill(cluster.pids[-1], signal.SIGKILL)


def kill_controller(guard, cluster):
    next(child for child in guard.children() if "controller" in child.cmdline()).kill()


def kill_mpiexec(guard, cluster):
    next(child for child in guard.children() if "controller" not in child.cmdline()).kill()


def kill_guard(guard, cluster):
    guard.kill()


def close_pipe(guard, cluster):
    os.dup2(os.open(os.devnull, os.O_WRONLY), cluster._guard.stdin.fileno())


@pytest.mark.counts_for("orphans")
@pytest.mark.parametrize(
    "end, ranks, reason",
    [
        (kill_engine, 2, "an engine, .* ended|mpiexec ended"),
        pytest.param(kill_mpiexec, 1, "mpiexec ended with status -9", marks=pytest.mark.slow),
        pytest.param(kill_controller, 1, "controller ended with status -9", marks=pytest.mark.slow),
        pytest.param(kill_guard, 1, "an engine process died", marks=pytest.mark.slow),
        (close_pipe, 1, "their owner ended them"),
    ],
)
def test_whatever_dies_ends_the_call_and_all_others(traces, end, ranks, reason):
    with engines.start(ranks) as cluster:
        job = cluster.submit(work, worker=end is not kill_guard)
        wait_for_print(cluster, "at work")
        began = time.monotonic()
        end(psutil.Process(cluster._guard.pid), cluster)
        assert job.wait(SOON)
        with pytest.raises(engines.EnginesEnded, match=reason):
            job.result()
        assert time.monotonic() - began < SOON
        traces.assert_gone(within=began + SOON - time.monotonic())


@pytest.mark.counts_for("orphans")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))]
)
def test_nothing_outlives_an_owner_at_work(traces, number):
    with subprocess.Popen(
        command("own_engines", 1), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as owner:
        forked = int(owner.stdout.readline())
        kinds = " ".join(" ".join(process.cmdline()) for process in traces.processes())
        assert all(kind in kinds for kind in ("repro.jupyter.guard", "engines controller", "mpiexec", "engines engine"))
        owner.send_signal(number)
        traces.assert_gone(but=[forked])
        os.kill(forked, signal.SIGKILL)


def test_an_interrupt_ends_engines_at_work_and_says_so(traces):
    with engines.start(1) as cluster:
        job = cluster.submit(time.sleep, 60)
        with pytest.raises(engines.Interrupted, match="interrupted, so the engines were ended"), interrupted_in(0.5):
            job.result()
        traces.assert_gone(within=0)


def test_an_interrupt_while_engines_start_leaves_none(traces):
    with pytest.raises(engines.Interrupted, match="none of them is left"), interrupted_in(0.5):
        engines.start(1)
    traces.assert_gone(within=0)


@contextmanager
def interrupted_in(seconds):
    """Sends this process a SIGINT so long after its block began."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.mark.counts_for("orphans")
def test_nothing_outlives_an_owner_that_dies_during_start(traces):
    with subprocess.Popen(command("own_engines", 1), env=environment()) as owner:
        deadline = time.monotonic() + 20
        while len(traces.processes()) < 4 and time.monotonic() < deadline:  # the owner, the guard and its children
            time.sleep(0.1)
        owner.kill()
        traces.assert_gone()


# --- Starting that fails ----------------------------------------------------------------------------------------------


def test_mpiexec_is_found_beside_this_python_although_nothing_is_activated(monkeypatch):
    monkeypatch.setenv("PATH", "")
    if not (Path(sys.executable).parent / "mpiexec").exists():
        pytest.skip("the MPI of this environment comes from elsewhere")
    assert engines.find_mpiexec() == str(Path(sys.executable).parent / "mpiexec")


def test_missing_mpiexec_is_named(traces, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(traces.folder / "python"))
    with pytest.raises(engines.EnginesError, match="make setup"):
        engines.start(2)
    traces.assert_gone(within=0)


def test_mpiexec_of_another_mpi_is_named(traces, monkeypatch):
    mpiexec = fake_mpiexec(
        traces.folder,
        monkeypatch,
        """
for name in [name for name in os.environ if name.startswith(("PMI", "OMPI_", "HYD"))]:
    del os.environ[name]
at = sys.argv.index("-n")
for process in [subprocess.Popen(sys.argv[at + 2:]) for _ in range(int(sys.argv[at + 1]))]:
    process.wait()
""",
    )
    with pytest.raises(engines.EnginesError) as caught:
        engines.start(2)
    assert "each sees a world of 1" in str(caught.value) and mpiexec in str(caught.value)
    traces.assert_gone(within=0)


def test_mpiexec_that_fails_is_quoted(traces, monkeypatch):
    fake_mpiexec(traces.folder, monkeypatch, "sys.exit('not enough slots')")
    with pytest.raises(engines.EnginesEnded, match="(?s)mpiexec ended with status 1.*not enough slots"):
        engines.start(2)
    traces.assert_gone(within=0)


def test_engines_that_never_come_are_named_and_given_up(traces, monkeypatch, capsys):
    fake_mpiexec(traces.folder, monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(engines, "LATE", 1)
    monkeypatch.setenv("REPRO_START_SECONDS", "2")
    with pytest.raises(engines.StartTimeout, match="not ready in time: .* allow them more seconds by REPRO_START_SECONDS=600"):
        engines.start(2, wait=False).run("os:getpid")
    assert re.fullmatch(r"the engines have not answered for 1 s \(.*\): waiting until 2 s; see .*\n", capsys.readouterr().out)
    traces.assert_gone(within=0)


@pytest.mark.parametrize(
    "status, said, told",
    [
        (9, "=   PID {second} RUNNING AT here\n=   EXIT CODE: 9\n", "an engine, rank 1 (process {second}), ended"),
        (9, "", "mpiexec ended with status 9"),
        (-9, "=   PID {second} RUNNING AT here\n", "mpiexec ended with status -9"),
    ],
    ids=["a rank died", "it ended by itself", "it was killed"],
)
def test_whom_mpiexec_names_is_told_also_when_all_have_ended(tmp_path, monkeypatch, status, said, told):
    """The guard looks five times a second: by then mpiexec may have ended the other ranks and itself."""
    dead = [subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2)]
    for rank, process in enumerate(dead):
        process.wait()
        (tmp_path / f"{process.pid}.engine").write_text(str(rank))
    (tmp_path / "mpiexec.log").write_text(said.format(second=dead[1].pid))
    monkeypatch.setattr(guard.select, "select", lambda *_: ([], [], []))
    children = {"mpiexec": SimpleNamespace(poll=lambda: status, returncode=status)}
    assert guard._ending(tmp_path, children, os.getppid()) == told.format(second=dead[1].pid)
