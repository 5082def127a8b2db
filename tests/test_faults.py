"""Runs that are killed, stopped, frozen and damaged on purpose: nothing is lost, and the cause is named.

tests/faulty.py brings a run to a named place; from there real signals come from this process. `make test` leaves out what
is marked slow; `make test-faults` runs all that counts for a claim of docs/faults.md, here and in other files, and writes
the counts.
"""

import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import nbformat
import psutil
import pytest

from repro import journal, train
from repro.images import packed
from repro.jupyter import engines
from repro.jupyter.engines import EnginesError, find_mpiexec, mpiexec_options
from repro.run import checkpoint, records

from conftest import ROOT, launch, run

slow, counts_for = pytest.mark.slow, pytest.mark.counts_for
SOON = 5  # seconds within which a failure ends the command
try:
    MPIEXEC = find_mpiexec()
except EnginesError:
    MPIEXEC = ""
STEPS = 77
# collapsed_ensemble-smoke: 7 stages of 23, 11, 5, 14, 5, 14 and 5 steps, 4 workers of 8 images, 300 images an epoch
POINTS = {
    "the first step": "step-0",
    "in mid-epoch": "step-14",
    "an epoch's end": "step-19",
    "the evaluation": "evaluation-23",
    "the end of warm-up": "step-5",
    "init to cyc1": "step-23",
    "cyc1 to collapse1": "step-34",
    "collapse1 to cyc2": "step-39",
    "cyc2 to collapse2": "step-53",
    "collapse2 to cyc3": "step-58",
    "cyc3 to collapse3": "step-72",
    "after a snapshot": "snapshot-34",
    "in mid-save": "saving-38",
    "right after a save": "saved-38",
    "the last step": "step-76",
}


@pytest.fixture(scope="session")
def few(digits, tmp_path_factory) -> Path:
    """The digits with 600 test images: three chunks of an evaluation."""
    folder = tmp_path_factory.mktemp("few") / "digits"
    for split, count in (("train", 300), ("test", 600)):
        whole = packed.Packed(Path(digits) / f"{split}.lmdb", "digits", split)
        packed.write(
            folder / f"{split}.lmdb",
            "digits",
            split,
            whole.manifest["classes"],
            lambda start, whole=whole, count=count: (packed.Item(*whole[index]) for index in range(start, count)),
            preprocessing=whole.preprocessing,
        )
    return folder


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """The socket of a process that has loaded torch (tests/forks.py)."""
    place = tmp_path_factory.mktemp("f")
    process = launch(sys.executable, ROOT / "tests" / "forks.py", place)
    wait_for(place / "open")
    yield place / "socket"
    process.kill()
    process.communicate()


class Run:
    """A run of the tiny net in processes of its own; `fault` brings it to a place, signals come from here.

    `forks` is the socket from which they come in a fraction of a second; without it they start as a user's do.
    """

    def __init__(self, out: Path, data: Path, forks: Path | None = None):
        self.out, self.data, self.forks = out, data, forks
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "paused"

    def command(self, ranks: int, *options) -> list:
        if ranks > 1 and not MPIEXEC:
            pytest.skip("no mpiexec: nothing can be tried on several ranks")
        start = [MPIEXEC, *mpiexec_options(MPIEXEC), "-n", str(ranks)] if ranks > 1 else []
        tests = ROOT / "tests"
        program = ["-I", "-S", str(tests / "forked.py"), str(self.forks)] if self.forks else [str(tests / "faulty.py")]
        return [
            *start,
            sys.executable,
            *program,
            "train",
            "collapsed_ensemble",
            "--shrink",
            "smoke",
            "--device",
            "cpu",
            "--data",
            str(self.data),
            "--out",
            str(self.out / "runs"),
            *options,
        ]

    def start(self, ranks: int = 1, fault: str = "none@0@nowhere", saves: str = "0,600", options=()) -> subprocess.Popen:
        return launch(*self.command(ranks, *options), FAULT=fault, FAULT_FILE=str(self.file), SAVES=saves)

    def finish(self, ranks: int = 1, **named) -> str:
        """Runs to the end, and hands back what was said. One rank does so in this process, which saves its imports."""
        if ranks == 1:
            said = io.StringIO()
            handler = logging.StreamHandler(said)
            logger = logging.getLogger("repro")
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            train.train("collapsed_ensemble", shrink="smoke", device="cpu", data=str(self.data), out=str(self.out / "runs"))
            logger.removeHandler(handler)
            return said.getvalue()
        process = self.start(ranks, **named)
        _, said = ended(process, 120)
        assert process.returncode == 0, said
        return said

    def pause(self, ranks: int, rank: int, place: str, earlier: str = "", **named) -> tuple[subprocess.Popen, int]:
        """The command, and the process id of the rank that waits at the place; `earlier` is a fault before it."""
        process = self.start(ranks, ",".join(filter(None, (earlier, f"pause@{rank}@{place}"))), **named)
        deadline = time.monotonic() + 60
        while not self.file.exists():
            assert process.poll() is None, f"{place} was never reached: {process.communicate()[1]}"
            assert time.monotonic() < deadline, f"{place} was not reached in time"
            time.sleep(0.01)
        return process, int(self.file.read_text())

    def kill(self, ranks: int, rank: int, place: str, **named) -> str:
        """SIGKILL to a rank at the place; hands back what the command said on standard error."""
        process, pid = self.pause(ranks, rank, place, **named)
        os.kill(pid, signal.SIGKILL)
        _, said = ended(process, SOON)
        self.file.unlink()
        return said

    @property
    def folder(self) -> Path:
        return next((self.out / "runs").iterdir())

    def result(self) -> tuple:
        """What must be the same bits: weights and statistics at each stage's end and the metric rows, less their seconds.

        Each stage's first step starts without momentum, so the last steps of a stage tell of a momentum that was lost.
        """
        record = records.read(self.folder)
        assert record["status"] == "complete"
        ends = {
            path.stem: checkpoint.digest(checkpoint.load(path.with_suffix(""))[0])
            for path in sorted((self.folder / "snapshots").glob("*.json"))
        }
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in records.metric_rows(self.folder)]
        counts = {stage: [end[key] for key in ("images", "top1", "top5")] for stage, end in record["ends"].items()}
        return record["weights_sha256"], ends, rows, counts


def ended(process, timeout: float) -> tuple[str, str]:
    """What a process said by its end, which must come in time."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {timeout} s: {process.communicate()[1]}")


@pytest.fixture
def trial(tmp_path, few, forks) -> Run:
    return Run(tmp_path / "trial", few, forks)


@pytest.fixture
def real(tmp_path, few) -> Run:
    """The same without forks."""
    return Run(tmp_path / "trial", few)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, few) -> tuple:
    """The result of the run that nothing happens to, not even tests/faulty.py."""
    calm = Run(tmp_path_factory.mktemp("calm"), few)
    command = calm.command(1)
    done = run(sys.executable, "-m", "repro", *command[2:], timeout=120)
    assert done.returncode == 0, done.stderr
    return calm.result()


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@counts_for("resume")
@pytest.mark.parametrize(
    "point, ranks",
    [
        pytest.param(point, ranks, marks=() if (point, ranks) == ("in mid-save", 1) else slow)
        for ranks in (1, 2)
        for point in POINTS
    ],
)
def test_a_run_killed_at_a_point_continues_to_the_same_bits(trial, undisturbed, point, ranks):
    trial.kill(ranks, ranks - 1 if POINTS[point].startswith(("step", "evaluation")) else 0, POINTS[point])
    assert records.read(trial.folder)["status"] == "running"
    said = trial.finish(ranks)
    expected = "no checkpoint yet" if int(POINTS[point].split("-")[1]) < 10 else "continuing after step"
    assert expected in said
    assert trial.result() == undisturbed


@slow
@counts_for("five-kills", cases=5)
def test_five_kills_in_one_run_do_not_matter(trial, undisturbed):
    for ranks, rank, place in (
        (1, 0, "step-6"),
        (2, 1, "step-21"),
        (2, 0, "saving-34"),
        (1, 0, "evaluation-53"),
        (2, 1, "step-75"),
    ):
        trial.kill(ranks, rank, place)
    trial.finish(2)
    assert len(records.read(trial.folder)["attempts"]) == 5 and trial.result() == undisturbed


@slow
@counts_for("five-kills")
def test_a_run_goes_from_2_ranks_to_1_to_2(real, undisturbed):
    """It has two passes; tests/test_train.py continues one of seven on four ranks."""
    real.kill(2, 1, "step-21")
    real.kill(1, 0, "step-47")
    real.finish(2)
    assert real.result() == undisturbed
    assert [attempt["ranks"] for attempt in records.read(real.folder)["attempts"]] == [2, 1]


@slow
@counts_for("work-lost")
@pytest.mark.parametrize("ranks", [1, 2])
def test_where_epochs_take_long_a_checkpoint_comes_by_time(trial, undisturbed, ranks):
    """Checkpoints after any step that comes late enough, here after each, and none at rows: not one step is lost."""
    trial.kill(ranks, ranks - 1, "step-16", saves="1e9,0")
    assert "continuing after step 16," in trial.finish(ranks)
    assert trial.result() == undisturbed


@slow
@counts_for("work-lost")
def test_a_kill_costs_no_more_than_the_interval(trial, undisturbed, record_property):
    """Checkpoints every third of a second: when the kill comes, none is older than that and the step that it waited for."""
    process, pid = trial.pause(2, 1, "step-60", saves="1e9,0.3")
    newest = max((trial.folder / "checkpoints").glob("*.json"), key=lambda path: int(path.stem))
    lost = trial.file.stat().st_mtime - newest.stat().st_mtime
    os.kill(pid, signal.SIGKILL)
    ended(process, SOON)
    trial.file.unlink()
    assert lost < 0.3 + 2, "a step takes a few hundredths of a second, an evaluation some tenths"
    record_property("seconds", lost)
    assert f"continuing after step {newest.stem}," in trial.finish(2)
    assert trial.result() == undisturbed


def test_the_intervals_are_those_of_the_documents():
    assert journal.CHECKPOINT_SECONDS <= 600 and journal.LONGEST_SECONDS == 600
    assert "10 minutes" in (ROOT / "docs" / "faults.md").read_text()


# --- A rank raises, dies, hangs ---------------------------------------------------------------------------------------

PLACES = ["step-0", "work-14", "evaluation-23", "snapshot-34", "saved-38"]  # the last two are rank 0's alone


def step_at(place: str) -> str:
    """How messages call the place."""
    name, done = place.split("-")
    return f"step {int(done) + 1} of {STEPS}" if name in ("step", "work") else f"the end of step {done} of {STEPS}"


def failing_rank(place: str) -> int:
    return 0 if place.startswith(("snapshot", "saved")) else 1


@counts_for("rank-fails")
@pytest.mark.parametrize("place", [PLACES[1], *(pytest.param(place, marks=slow) for place in (PLACES[0], *PLACES[2:]))])
def test_a_rank_that_raises_ends_the_command_with_its_own_traceback_first(trial, place, record_property):
    process = trial.start(2, f"raise@{failing_rank(place)}@{place}")
    alarm = threading.Timer(90, os.killpg, [process.pid, signal.SIGKILL])
    alarm.start()
    for line in process.stderr:
        if line.startswith("Traceback"):
            break
    began = time.monotonic()
    said = process.stderr.read()
    seconds = time.monotonic() - began
    process.communicate()
    alarm.cancel()
    assert seconds < SOON
    record_property("seconds", seconds)
    first = said.split("\n\n")[0]
    assert process.returncode not in (0, 75) and "OSError: on purpose" in first
    assert f"(on rank {failing_rank(place)} of 2, at " in first and step_at(place) in first
    assert said.count("Traceback") == 0, "the other rank has nothing to add"
    record = records.read(trial.folder)  # rank 0's to write, unless it was ended while it waited
    assert record["status"] == "running" if place == "step-0" else "OSError: on purpose" in record["error"]


@counts_for("rank-fails")
@pytest.mark.parametrize("place", [PLACES[1], *(pytest.param(place, marks=slow) for place in (PLACES[0], *PLACES[2:]))])
def test_a_rank_that_is_killed_ends_the_command_and_is_named(real, place, record_property):
    process, pid = real.pause(2, failing_rank(place), place)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    said = "".join(ended(process, SOON))
    record_property("seconds", time.monotonic() - began)
    assert process.returncode != 0 and f"{failing_rank(place)} is process {pid} on " in said
    assert "EXIT CODE: 9" in said and f"PID {pid} RUNNING AT" in said, "the words of MPICH's mpiexec"


@pytest.fixture
def call(trial):
    """call(cluster, fault): a job of the tiny run on engines."""

    def submit(cluster, fault):
        return cluster.submit(
            "faulty:run",
            fault,
            str(trial.file),
            recipe="collapsed_ensemble",
            shrink="smoke",
            device="cpu",
            data=str(trial.data),
            out=str(trial.out / "runs"),
            patience=3,
        )

    return submit


@slow
@counts_for("rank-fails", cases=5)
def test_a_rank_that_raises_ends_the_call_with_its_own_traceback_first(trial, undisturbed, call, record_property):
    """Where it tells the other through the averaged vector, the engines stay and go on; elsewhere they are ended."""
    for places in (["work-14", "work-30", "evaluation-53", "work-60"], ["step-70"]):
        with engines.start(2) as cluster:
            for place in places:
                job = call(cluster, f"raise@1@{place}")
                with pytest.raises(engines.RankError) as caught:
                    job.result()
                lines = str(caught.value).splitlines()
                assert lines[:2] == ["rank 1 failed: OSError: on purpose", "Traceback (most recent call last):"]
                assert f"(on rank 1 of 2, at {step_at(place)}" in str(caught.value)
                assert cluster.alive == (place != "step-70")
    trial.finish(2)
    assert trial.result() == undisturbed


@slow
@counts_for("rank-fails")
@pytest.mark.parametrize("rank, place", [(1, "step-0"), (1, "work-14"), (0, "evaluation-23"), (0, "saving-34"), (0, "step-60")])
def test_a_rank_that_is_killed_ends_the_call_and_is_named(trial, call, rank, place, record_property):
    with engines.start(2) as cluster:
        job = call(cluster, f"pause@{rank}@{place}")
        wait_for(trial.file)
        began = time.monotonic()
        os.kill(int(trial.file.read_text()), signal.SIGKILL)
        with pytest.raises(engines.EnginesEnded, match=f"an engine, .*rank {rank} \\(process {cluster.pids[rank]}\\).*, ended"):
            job.result()
        record_property("seconds", time.monotonic() - began)
        assert time.monotonic() - began < SOON


@slow
@counts_for("rank-freezes")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_frozen_ends_the_call_and_is_named(trial, call, rank, record_property):
    with engines.start(2) as cluster:
        job = call(cluster, f"pause@{rank}@step-14")
        wait_for(trial.file)
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(cluster.pids[rank], signal.SIGSTOP)
        trial.file.unlink()
        with pytest.raises(engines.EnginesEnded, match=f"error: rank {rank} \\(process {cluster.pids[rank]} on .*is frozen"):
            job.result()
        record_property("seconds", time.monotonic() - began - 3)
        assert time.monotonic() - began < 3 + 10
        assert not any(runs(pid) for pid in cluster.pids)


def wait_for(file: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@counts_for("rank-freezes")
@pytest.mark.parametrize(
    "place, rank",
    [
        ("step-14", 1),
        *(pytest.param(place, rank, marks=slow) for place, rank in (("step-14", 0), ("evaluation-23", 1), ("saving-34", 0))),
    ],
)
def test_a_rank_that_is_frozen_is_named_with_a_stack_of_the_other(trial, place, rank, record_property):
    patience = 3
    process, pid = trial.pause(2, rank, place, options=["--patience", str(patience)])
    time.sleep(0.5)  # for its last sign of life to say where it is
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    trial.file.unlink()
    _, said = ended(process, patience + 10)
    record_property("seconds", time.monotonic() - began - patience)
    assert process.returncode != 0
    assert f"error: rank {rank} (process {pid} on " in said and "is frozen" in said and step_at(place) in said
    stack = (trial.folder / "heartbeats" / f"{1 - rank}.stack").read_text()
    assert "train.py" in stack and "in _train" in stack
    deadline = time.monotonic() + SOON
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)


@counts_for("rank-freezes")
@pytest.mark.parametrize(
    "earlier, options",
    [("raise@1@work-14", ()), pytest.param("", ("--steps", "15"), marks=slow)],
    ids=["after an error", "after a stop"],
)
def test_a_rank_that_freezes_while_it_records_the_end_is_named(trial, earlier, options, record_property):
    """The other one has nothing more to do; without the first one it cannot end."""
    patience = 3
    process, pid = trial.pause(2, 0, "ending-15", earlier, options=["--patience", str(patience), *options])
    time.sleep(0.5)  # for its first sign of life, which says which process it is
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    trial.file.unlink()
    _, said = ended(process, patience + 10)
    record_property("seconds", time.monotonic() - began - patience)
    assert process.returncode not in (0, 75) and f"error: rank 0 (process {pid} on " in said and "is frozen" in said


@slow
@counts_for("rank-freezes")
def test_a_rank_that_hangs_is_named_with_where(trial):
    process = trial.start(2, "hang@1@step-14", options=["--patience", "3"])
    _, said = ended(process, 60)
    assert process.returncode != 0 and "error: rank 1 (process " in said
    assert "hangs: it is alive but has made no progress for 3 seconds, at step 15 of 77" in said
    assert "faulty.py" in (trial.folder / "heartbeats" / "1.stack").read_text(), "its own stack tells where"


@slow
def test_a_rank_that_only_takes_long_is_let_be(trial):
    """It computes for longer than the others' patience, with beats in between: a step of many workers."""
    said = trial.finish(2, fault="slow@1@step-14", options=["--patience", "2"])
    assert "error" not in said


@counts_for("not-finite")
@pytest.mark.parametrize(
    "kind, ranks",
    [("nan", 1), *(pytest.param(kind, ranks, marks=slow) for kind, ranks in (("nan", 2), ("inf", 1), ("inf", 2)))],
)
def test_what_is_not_finite_stops_all_ranks_at_the_step_without_a_checkpoint_of_it(trial, undisturbed, kind, ranks):
    process = trial.start(ranks, f"{kind}@{ranks - 1}@work-14", saves="0,0")
    _, said = ended(process, 60)
    assert process.returncode == 2 and f"a gradient or batch statistic is {kind}: the run has diverged" in said
    assert f"on rank {ranks - 1} of {ranks}, at step 15 of 77" in said
    assert max(int(path.stem) for path in (trial.folder / "checkpoints").glob("*.json")) == 14
    trial.finish(ranks)
    assert trial.result() == undisturbed


# --- Ranks that disagree ----------------------------------------------------------------------------------------------


@counts_for("disagree")
@pytest.mark.parametrize(
    "change, difference",
    [
        (["--seed", "1"], "settings.seed is 1 here and 0 there"),
        pytest.param(["--bn-momentum", "0.1"], "recipe.bn_momentum is 0.4 here and 0.2 there", marks=slow),
        pytest.param(["--data", "other"], "data.train is ", marks=slow),
        pytest.param([], "packages.torch is '0.0' here", marks=slow),
    ],
    ids=["seed", "recipe", "data", "versions"],
)
def test_ranks_that_disagree_are_refused_before_the_first_step(trial, few, tmp_path, change, difference):
    if change[:1] == ["--data"]:
        other = tmp_path / "digits"
        shutil.copytree(few, other)
        (other / "train.lmdb").unlink()
        whole = packed.Packed(few / "train.lmdb", "digits", "train")
        packed.write(
            other / "train.lmdb",
            "digits",
            "train",
            whole.manifest["classes"],
            lambda start: (packed.Item(*whole[299 - index]) for index in range(start, 300)),
            preprocessing=whole.preprocessing,
        )
        change = ["--data", str(other)]
    first = trial.command(2)
    alone = trial.command(1)
    process = launch(
        *first[: first.index("-n")],
        "-n",
        "1",
        *alone,
        ":",
        "-n",
        "1",
        *alone,
        *change,
        FAULT="none@0@nowhere" if change else "versions@1@nowhere",
    )
    _, said = ended(process, 60)
    assert process.returncode == 2 and said.count("error:") == 1
    assert f"rank 1 does not agree with rank 0, so nothing was started: {difference}" in said
    assert not list(trial.out.glob("runs/*"))


@counts_for("replicas")
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=slow)])
def test_a_rank_whose_weights_change_is_found_before_the_next_checkpoint(trial, undisturbed, rank):
    process = trial.start(2, f"flip@{rank}@step-12")
    _, said = ended(process, 60)
    assert process.returncode == 2 and "the weights, statistics or update of rank 1 are no longer those of rank 0" in said
    assert max(int(path.stem) for path in (trial.folder / "checkpoints").glob("*.json")) == 10
    trial.finish(2)
    assert trial.result() == undisturbed


# --- Requests to stop -------------------------------------------------------------------------------------------------


@counts_for("stop")
@pytest.mark.parametrize(
    "number, ranks, to",
    [
        (signal.SIGINT, 1, "rank"),
        (signal.SIGUSR1, 2, "launcher"),
        *(
            pytest.param(*case, marks=slow)
            for case in (
                (signal.SIGUSR1, 1, "rank"),
                (signal.SIGINT, 2, "launcher"),
                (signal.SIGINT, 2, "terminal"),
                (signal.SIGUSR1, 2, "rank"),
            )
        ),
    ],
)
def test_a_request_to_stop_loses_no_step(trial, undisturbed, number, ranks, to):
    process, pid = trial.pause(ranks, ranks - 1, "step-14")
    {
        "rank": lambda: os.kill(pid, number),
        "launcher": lambda: process.send_signal(number),
        "terminal": lambda: os.killpg(process.pid, number),
    }[to]()
    time.sleep(0.3)
    trial.file.unlink()
    told, said = ended(process, 30)
    assert process.returncode == 75, said
    assert "stopped on request after step 15 of 77" in told or "stopped on request after step 16 of 77" in told
    step = int(re.search(r"after step (\d+) of", told)[1])
    assert records.read(trial.folder)["status"] == "stopped"
    assert f"continuing after step {step}," in trial.finish(ranks)
    assert trial.result() == undisturbed


@counts_for("stop")
@pytest.mark.parametrize(
    "number, ranks",
    [(signal.SIGINT, 1), pytest.param(signal.SIGUSR1, 1, marks=slow), pytest.param(signal.SIGINT, 2, marks=slow)],
)
def test_a_second_request_stops_at_once(trial, undisturbed, number, ranks):
    process, pid = trial.pause(ranks, ranks - 1, "step-14")
    process.send_signal(number)
    time.sleep(1.5)
    process.send_signal(number)
    _, said = ended(process, SOON)
    trial.file.unlink()
    assert process.returncode not in (0, 75), said
    assert ranks == 2 or process.returncode == 130 and "stopped at once, at step 15 of 77" in said
    trial.finish(ranks)
    assert trial.result() == undisturbed


@counts_for("stop")
@pytest.mark.parametrize(
    "again, status, unbuffered",
    [(False, 75, ""), *(pytest.param(*case, marks=slow) for case in ((False, 75, "1"), (True, 130, ""), (True, 130, "1")))],
)
def test_nobody_who_listens_does_not_change_the_status(real, undisturbed, again, status, unbuffered, monkeypatch):
    """As in `2>&1 | tee log`, where Ctrl-C ends tee as well."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process, _ = real.pause(1, 0, "step-14")
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    if again:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
    else:
        real.file.unlink()
    assert process.wait(timeout=30) == status
    assert again or records.read(real.folder)["status"] == "stopped"
    real.file.unlink(missing_ok=True)
    real.finish(1)
    assert real.result() == undisturbed


# --- The disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@counts_for("storage")
def test_two_processes_do_not_train_one_run(trial, undisturbed):
    first, pid = trial.pause(1, 0, "step-12")
    second = trial.start(1)
    _, said = ended(second, 60)
    assert second.returncode == 2 and f"is being trained by process {pid} on " in said and "wait for it" in said
    trial.file.unlink()
    ended(first, 60)
    assert first.returncode == 0 and trial.result() == undisturbed


@counts_for("storage")
def test_a_folder_that_vanishes_is_named_and_not_made_again(trial):
    process, _ = trial.pause(1, 0, "step-12")
    folder = trial.folder
    shutil.rmtree(folder)
    trial.file.unlink()
    _, said = ended(process, 60)
    assert process.returncode == 2 and f"error: {folder}/metrics.jsonl cannot be written" in said
    assert "its folder has been deleted" in said
    assert f"at the end of step 19 of {STEPS}" in said and not folder.exists()


def in_a_small_disk(trial, mount: str, *command) -> subprocess.CompletedProcess:
    """Runs a command with a disk of its own at trial.out/runs, whose files are at trial.out/kept afterwards."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount (unshare -rm): no disk can be made full")
    (trial.out / "runs").mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {mount} tmpfs "$0/runs"; "$@"; s=$?; cp -r "$0/runs" "$0/kept"; exit $s'
    return run("unshare", "-rm", "sh", "-c", script, trial.out, *command, timeout=120, SAVES="0,600")


@counts_for("storage")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])
def test_a_full_disk_is_named_and_the_last_checkpoint_is_kept(real, undisturbed, ranks):
    done = in_a_small_disk(real, "size=900k", *real.command(ranks))
    assert done.returncode == 2 and "No space left on device" in done.stderr
    assert "free some space, then run the same command again" in done.stderr
    assert re.search(r"error: \S+/(checkpoints|snapshots)/\w+\.safetensors cannot be written", done.stderr)
    assert f"rank 0 of {ranks}, at the end of step " in done.stderr and done.stderr.count("error:") == 1
    shutil.rmtree(real.out / "runs")
    (real.out / "kept").rename(real.out / "runs")
    assert "continuing after step" in real.finish(ranks)
    assert real.result() == undisturbed


@counts_for("storage")
def test_a_read_only_disk_is_named_before_anything_starts(real):
    done = in_a_small_disk(real, "ro", *real.command(1))
    assert done.returncode == 2 and "error: cannot write to the folder " in done.stderr and "Read-only" in done.stderr


# --- Processes that outlive their owner -------------------------------------------------------------------------------

MARK = "REPRO_TEST_MARK"
BOOK = """from repro.jupyter import engines
cluster = engines.start(2)
open({file!r}, "w").close()
cluster.run("test_engines:work", False)"""


def marked(mark: str) -> list[psutil.Process]:
    """All processes that were started, at whatever remove, with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def victim(processes: list[psutil.Process], words: str) -> psutil.Process:
    return next(process for process in processes if words in " ".join(process.cmdline()[:4]))


WHERE = {
    "kernel": "ipykernel_launcher",
    "papermill": "-m papermill",
    "controller": "repro.jupyter.engines controller",
    "mpiexec": "mpiexec ",
}


@slow
@counts_for("orphans")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("who", [*WHERE, "make"])
def test_nothing_outlives_whoever_dies(tmp_path, who, number, record_property):
    mark, started = uuid.uuid4().hex, tmp_path / "started"
    if who == "make":
        if Path(sys.executable).parent != ROOT / ".venv" / "bin":
            pytest.skip("make starts the Python of .venv, and this is another")
        command = ["make", "-C", ROOT, "reproduce", f"ARGS=--results {tmp_path}/results"]
    else:
        new = nbformat.v4
        book = new.new_notebook(
            cells=[new.new_code_cell(BOOK.format(file=str(started)))],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(book, tmp_path / "trial.ipynb")
        command = [sys.executable, "-m", "papermill", tmp_path / "trial.ipynb", tmp_path / "out.ipynb"]
    process = launch(*command, **{MARK: mark, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    try:
        deadline = time.monotonic() + 90
        while not (started.exists() or list(tmp_path.glob("results/runs/*/metrics.jsonl"))):
            assert process.poll() is None and time.monotonic() < deadline, ended(process, 1)
            time.sleep(0.1)
        time.sleep(1)
        family = marked(mark)
        assert {"ipykernel_launcher", "controller"} <= {word for process in family for word in process.cmdline()}
        began = time.monotonic()
        if who == "make" and number == signal.SIGINT:  # as Ctrl-C on a terminal: to make and all that it started there
            os.killpg(process.pid, number)
        elif who == "make":
            process.send_signal(number)
        else:
            victim(family, WHERE[who]).send_signal(number)
        while (left := marked(mark)) and time.monotonic() - began < SOON:
            time.sleep(0.05)
        record_property("seconds", time.monotonic() - began)
        assert [" ".join(orphan.cmdline()) for orphan in left] == []
        assert process.wait(timeout=1) != 0
    finally:
        for orphan in marked(mark):
            orphan.kill()
        process.communicate()


@counts_for("orphans")
@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=slow)])
def test_a_command_that_is_killed_leaves_nothing_in_shared_memory(real, ranks):
    """SIGKILL to mpiexec and all that it started, at once, so that nobody can clean up."""
    process, pid = real.pause(ranks, ranks - 1, "step-3")
    mapped = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm/mpich_shm_" in line]
    if not mapped:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.skip("this MPI is not MPICH, or has no shared memory here")
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate()
    files = {line.split("/dev/shm/")[1].removesuffix(" (deleted)") for line in mapped}
    assert [name for name in files if (Path("/dev/shm") / name).exists()] == []


# --- make reproduce, and the page -------------------------------------------------------------------------------------


@slow
@counts_for("stop")
def test_a_reproduction_stops_on_request_and_continues(tmp_path):
    """Its engines finish their step and save; the same command goes on from there, and stops again when the run is complete."""

    def stopped_when(ready):
        process = launch(sys.executable, "-m", "repro", "reproduce", "--profile", "smoke", "--results", tmp_path)
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, ended(process, 1)
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        told, said = ended(process, 60)
        assert process.returncode == 75 and "The same command continues." in told and "asked to stop by SIGINT" in said

    stopped_when(lambda: any("epoch" in path.read_text() for path in tmp_path.glob("runs/*/metrics.jsonl")))
    (stopped,) = [path.parent for path in tmp_path.glob("runs/*/run.json") if records.read(path.parent)["status"] == "stopped"]
    assert list(stopped.glob("checkpoints/*.json"))
    stopped_when(lambda: records.read(stopped)["status"] == "complete")
    assert [attempt["status"] for attempt in records.read(stopped)["attempts"]] == ["stopped"]
