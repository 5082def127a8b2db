"""MPI engines for notebooks: start them or join running ones, call a function on all ranks, leave nothing behind.

A small guard process owns the controller and mpiexec, not the process that called `start`: whichever way the owner
ends, the guard sees it and ends everything. The connection file stands for the cluster: it is there as long as the
engines are, and whoever deletes it ends them. All of it stays on this machine, on the loopback interface.

The one importer of ipyparallel. Importing this module loads neither that nor MPI.
"""

import ctypes
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION
from concurrent.futures import wait as wait_for
from contextlib import suppress
from functools import partial
from pathlib import Path

from repro import ReproError, watch

POLL = 0.2  # seconds between two looks at whether everybody is still alive
GRACE = 1.0  # seconds that the other ranks have, after one has failed, to finish by themselves
PATIENCE = 10.0  # seconds for the guard to end all; it needs less than one
MPI_HELP = "`make setup` installs MPICH's; on a cluster, load its MPI module."
AGAIN = "Start them again (in a notebook: run it from the top)."


class EnginesError(ReproError):
    """Engines cannot be started, joined or used."""


class NoMpiexec(EnginesError):
    """There is no mpiexec beside this Python nor on PATH."""


class MixedMPI(EnginesError):
    """mpiexec and mpi4py belong to different MPIs, so that each engine is a world of its own."""


class StartTimeout(EnginesError):
    """The engines did not answer in time."""


class EnginesEnded(EnginesError):
    """The engines are gone, because one of the processes died or somebody ended them."""


class RankError(EnginesError):
    """The function raised on `rank`; the message has that rank's traceback."""

    def __init__(self, message: str, rank: int):
        super().__init__(message)
        self.rank = rank


# --- Using engines ----------------------------------------------------------------------------------------------------


class Job:
    """One call on all ranks, on its way or done."""

    def __init__(self, cluster: "Cluster", calls: list):
        self._cluster, self._calls = cluster, calls  # ipyparallel's futures, in rank order

    def done(self) -> bool:
        """Whether `result` would return or raise without waiting for the ranks' work. Raises nothing itself."""
        return all(call.done() for call in self._calls) or bool(self._failed()) or not self._cluster.alive

    def wait(self, timeout: float = float("inf")) -> bool:
        """Waits until `done`, for at most `timeout` seconds; returns whether it is."""
        deadline = time.monotonic() + timeout
        while not self.done() and time.monotonic() < deadline:
            wait_for(self._calls, timeout=POLL, return_when=FIRST_EXCEPTION)
        return self.done()

    def result(self) -> list:
        """Waits; returns what the ranks returned, in rank order.

        Raises RankError if the function raised on a rank, EnginesEnded if a process died. A rank that waits for a
        failed one in a collective can only be killed: if such a rank is left after a second, the engines are ended.
        An interrupt (KeyboardInterrupt) ends them too, also if another process owns them: nothing computes unseen.
        """
        try:
            self.wait()
            if self._failed():
                wait_for(self._calls, timeout=GRACE)
                raise self._error()
            if not all(call.done() for call in self._calls):
                raise self._cluster._why_ended()
        except KeyboardInterrupt:
            self._cluster._end("they were interrupted")
            raise
        return [call.result() for call in self._calls]

    def _failed(self) -> dict:
        return {rank: call.exception() for rank, call in enumerate(self._calls) if call.done() and call.exception()}

    def _error(self) -> RankError:
        texts = {rank: _text(error) for rank, error in self._failed().items()}
        first = min(texts, key=lambda rank: ("\nrepro.comm.PeerError:" in texts[rank], rank))  # that repeats another's
        lines = [f"rank {first} failed:", texts.pop(first).rstrip()]
        lines += [f"rank {rank} failed too: {text.rstrip().splitlines()[-1]}" for rank, text in texts.items()]
        stuck = [str(rank) for rank, call in enumerate(self._calls) if not call.done()]
        if stuck:
            self._cluster._end("a rank had failed and others did not finish")
            lines.append(f"Rank {', '.join(stuck)} did not finish, so the engines were ended. {AGAIN}")
        return RankError("\n".join(lines), first)


class Cluster:
    """Engines that form one MPI world, as `start` and `join` return them; leaving a `with` block closes it.

    `ranks` is their number, `pids` are their process ids in rank order, `connection_file` is what `join` takes. What
    the ranks print goes to the file `log`, which is there as long as the engines are.
    """

    def __init__(self, connection_file: Path, guard: subprocess.Popen | None = None):
        self._folder, self._guard = connection_file.parents[1], guard  # only the owner has a guard
        self.connection_file, self.log = str(connection_file), str(self._folder / "mpiexec.log")
        self.ranks, self.pids = 0, []
        self._client, self._views, self._job, self._ended = None, [], None, ""

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the engines can be used."""
        there = self._guard.poll() is None if self._guard else os.path.exists(self.connection_file)
        return there and not self._ended

    def run(self, function: Callable | str, /, *args, **kwargs) -> list:
        """Calls `function` on all ranks and waits: `submit(...).result()`."""
        return self.submit(function, *args, **kwargs).result()

    def submit(self, function: Callable | str, /, *args, **kwargs) -> Job:
        """Starts `function(*args, **kwargs)` on all ranks and returns at once.

        `function` is one that engines can import, or its name "module:function", so that the caller need not import it
        (one defined in a notebook has to bring its own imports). Raises EnginesError while an earlier job of this
        object is under way, EnginesEnded if the engines are gone.
        """
        if not self.alive:
            raise self._why_ended()
        if self._job and not self._job.done():
            raise EnginesError(
                "the engines are still at an earlier job: wait for its result(), or close() and start them again"
            )
        self._job = Job(self, [view.apply_async(_call, function, args, kwargs) for view in self._views])
        return self._job

    def close(self) -> None:
        """Ends the engines if this process started them; else only lets go of them."""
        if self._guard:
            self._end("they were closed")
        self._ended = self._ended or "this connection to them was closed"
        if self._client:
            self._client.close(linger=0)

    def ask_to_stop(self) -> None:
        """Asks training on these engines to stop after its step, with a checkpoint: its job then raises records.Stopped."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def _connect(self, ranks: int, timeout: float) -> list[tuple]:
        """Waits until `ranks` engines answer; returns (rank, world size, pid, MPI library) of each, in rank order."""
        import ipyparallel

        deadline = time.monotonic() + timeout
        while not _complete(Path(self.connection_file)):
            self._pause(deadline)
        try:
            self._client = ipyparallel.Client(
                self.connection_file, timeout=max(1.0, deadline - time.monotonic()), ipython_dir=str(self._folder)
            )
        except OSError as error:  # TimeoutError is one
            raise StartTimeout(f"the controller does not answer: {error}") from error
        while len(self._client.ids) < ranks:
            self._pause(deadline)
        views = [self._client[engine] for engine in self._client.ids]  # an engine's id need not be its rank
        job = Job(self, [view.apply_async(_call, "repro.comm:introduce", (), {}) for view in views])
        if not job.wait(deadline - time.monotonic()):
            raise StartTimeout(f"the engines do not answer: {timeout:.0f} seconds were not enough, or they are at work")
        answers = sorted(zip(job.result(), views), key=lambda pair: pair[0])
        self._views = [view for _, view in answers]
        self.ranks, self.pids = len(answers), [pid for (_, _, pid, _), _ in answers]
        return [answer for answer, _ in answers]

    def _pause(self, deadline: float) -> None:
        time.sleep(POLL / 2)
        if not self.alive:
            raise self._why_ended()
        if time.monotonic() > deadline:
            raise StartTimeout("the engines were not ready in time; give `start` a longer timeout on a busy machine")

    def _why_ended(self) -> EnginesEnded:
        return EnginesEnded(f"the engines have ended: {self._end()}\n{AGAIN}")

    def _end(self, reason: str = "") -> str:
        """Ends the engines, whoever owns them, and waits until they are gone; returns why, which the guard may know."""
        if self._ended:
            return self._ended
        self._ended = reason or "a process of them died, or another process ended them"
        if not self._guard:
            Path(self.connection_file).unlink(missing_ok=True)  # the guard looks for it
        else:
            self._guard.terminate()  # closing its stdin would not do if this process has forked
            try:
                told, _ = self._guard.communicate(timeout=PATIENCE)
                self._ended = reason or told.strip() or self._ended
            except subprocess.TimeoutExpired:
                self._guard.kill()
            if self._guard.wait() < 0:  # it was killed, and mpiexec with it; Open MPI's leaves its ranks behind
                for pid in self.pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self._folder, ignore_errors=True)  # the guard has done this, unless it was killed
        deadline = time.monotonic() + PATIENCE
        while self._folder.exists() and time.monotonic() < deadline:
            time.sleep(POLL / 2)
        return self._ended


def start(ranks: int = 2, timeout: float = 60.0) -> Cluster:
    """Starts `ranks` MPI engines on this machine; they end with this process, or by `close`.

    They run in this process's working directory, import what it can import, and compute with one OpenMP thread unless
    OMP_NUM_THREADS says otherwise. Raises NoMpiexec, MixedMPI, StartTimeout after `timeout` seconds, or EnginesEnded
    with the last lines of the log.
    """
    if ranks < 1:
        raise EnginesError(f"{ranks} engines cannot be started: ask for 1 or more")
    mpiexec = find_mpiexec()
    launch = [mpiexec, *mpiexec_options(mpiexec), "-n", str(ranks)]
    folder = Path(tempfile.mkdtemp(prefix="repro-engines-"))  # only this user may enter
    guard = subprocess.Popen(  # in a session of its own: Ctrl-C on the terminal is the owner's to handle
        [sys.executable, "-m", "repro.engines", "guard", str(folder), str(os.getpid()), *launch],
        env=_environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    cluster = Cluster(_connection_file(folder, "client"), guard)
    try:
        _, size, _, library = cluster._connect(ranks, timeout)[0]
        if size != ranks:
            raise MixedMPI(
                f"{ranks} engines were started, but each sees a world of {size}: {mpiexec} belongs to "
                f"another MPI than the library that mpi4py loads ({library}). Use that library's own "
                f"mpiexec: {MPI_HELP}"
            )
    except BaseException as error:
        told = cluster._end()
        cluster.close()
        if isinstance(error, StartTimeout):
            raise StartTimeout(f"{error}\n{told}") from None
        if isinstance(error, EnginesEnded):
            raise EnginesEnded(
                f"the engines ended while they started: {told}\n{mpiexec} started them; it has to "
                f"belong to the same MPI as the library that mpi4py loads: {MPI_HELP}"
            ) from None
        if isinstance(error, RankError):
            raise EnginesError(f"MPI does not work on the engines: {error}\n{MPI_HELP}") from None
        raise
    return cluster


def join(connection_file: str, timeout: float = 60.0) -> Cluster:
    """Uses engines that another process started; its `close` leaves them running.

    Raises EnginesEnded if there are none, StartTimeout if they do not answer within `timeout` seconds. Jobs of several
    processes should not overlap: ranks could take them in different order and wait for each other for ever.
    """
    if not Path(connection_file).is_file():
        raise EnginesEnded(f"there are no engines behind {connection_file}: the process that started them has ended")
    cluster = Cluster(Path(connection_file).resolve())
    try:
        cluster._connect(1, timeout)
    except BaseException:
        cluster.close()
        raise
    return cluster


def start_or_join(connection_file: str, ranks: int) -> Cluster:
    """Joins the engines of `connection_file`, however many they are; starts `ranks` if it is ""."""
    return join(connection_file) if connection_file else start(ranks)


def find_mpiexec() -> str:
    """The mpiexec beside this Python (a virtual environment need not be activated), else the one on PATH.

    Raises NoMpiexec.
    """
    beside = os.path.dirname(sys.executable)
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if not found:
        raise NoMpiexec(f"no mpiexec in {beside} nor on PATH: {MPI_HELP}")
    return found


def mpiexec_options(mpiexec: str) -> list[str]:
    """What this kind of mpiexec needs to start any number of ranks here, each free to use all cores."""
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    if "Open MPI" in version or "OpenRTE" in version:
        return ["--bind-to", "none", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    if "HYDRA" in version:
        return ["-launcher", "fork"]  # under Slurm it would ask srun, and the ranks would not be our descendants
    return []


def _environment(folder: Path) -> dict:
    """The owner's environment, less what would lead engines to another controller; they import what the owner can."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IPP_")}
    paths = [str(Path(__file__).resolve().parents[1]), *(path or os.getcwd() for path in sys.path)]
    # All ranks are on this machine, so MPICH's networks (UCX, libfabric) need not listen beyond it.
    loopback = {"UCX_NET_DEVICES": "lo", "FI_TCP_IFACE": "lo"} if sys.platform == "linux" else {}
    return {
        "OMP_NUM_THREADS": "1",
        **loopback,
        **environment,
        "PYTHONPATH": os.pathsep.join(paths),
        "IPYTHONDIR": str(folder),
        "TMPDIR": str(folder),
    }  # what MPI and IPython leave behind goes with the folder


def _connection_file(folder: Path, kind: str) -> Path:
    """Where the controller writes it, for a "client" or an "engine"."""
    return folder / "security" / f"ipcontroller-{kind}.json"


def _complete(file: Path) -> bool:
    """Whether a connection file has been written to its end."""
    try:
        return bool(json.loads(file.read_text()))
    except (FileNotFoundError, ValueError):
        return False


def _text(error: Exception) -> str:
    """What a rank raised: the traceback that `_call` sent, or the error that kept `_call` from running."""
    return error.evalue if error.ename == _Raised.__name__ else f"{error.ename}: {error.evalue}"


# --- On an engine -----------------------------------------------------------------------------------------------------


def _engine(folder: Path, arguments: list[str]) -> None:
    """Runs one engine, as `python -m ipyparallel.engine` would, after telling the guard its process id."""
    rank = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or "of unknown number"
    (folder / f"{os.getpid()}.engine").write_text(rank)
    watch.listen(signal.SIGUSR1)  # its default would end the engine; training looks at it
    sys.modules["debugpy"] = None  # ipykernel does without; importing it takes half a second
    from ipyparallel.engine.app import IPEngine

    class Engine(IPEngine):
        def init_signal(self):
            super().init_signal()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # theirs lets a call go on to its end

        def redirect_output(self, iopub_socket):
            """What a rank prints goes to mpiexec's log, where it outlives the rank, and not to the clients."""

    Engine.launch_instance(arguments)


class _Raised(Exception):
    """Carries a traceback as plain text: ipyparallel's own has colours and half a page for each frame."""


def _call(function: Callable | str, args: tuple, kwargs: dict):
    try:
        if isinstance(function, str):
            module, name = function.split(":")
            function = getattr(importlib.import_module(module), name)
        return function(*args, **kwargs)
    except BaseException as error:
        frames = error.__traceback__.tb_next  # without this one
        raise _Raised("".join(traceback.format_exception(type(error), error, frames))) from None


# --- The guard --------------------------------------------------------------------------------------------------------

# Heartbeats serve only to register engines soon: whether a process lives is the guard's to see, however busy it is.
CONTROLLER = [
    "-m",
    "ipyparallel.controller",
    "--ip=127.0.0.1",
    "--location=127.0.0.1",
    "--nodb",
    "--ping=250",
    "--HeartMonitor.max_heartmonitor_misses=1000000000",
    "--log-level=CRITICAL",
]
ENGINE = ["--timeout=60", "--IPEngine.max_heartbeat_misses=0", "--IPEngine.enable_nanny=False", "--log-level=ERROR"]
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # from linux/prctl.h


def _guard(folder: Path, owner: int, launch: list[str]) -> None:
    """Runs the controller and `launch` engines until one of them, the connection file or the owner is gone."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit())
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a dead mpiexec leaves behind stays our descendant
    python, profile = sys.executable, f"--profile-dir={folder}"
    client_file, engine_file = _connection_file(folder, "client"), _connection_file(folder, "engine")
    children, reason = {}, ""
    try:
        # On SIGTERM the controller ends its own children; mpiexec ends its ranks only when it is killed.
        children["controller"] = _spawn(folder, "controller", [python, *CONTROLLER, profile], signal.SIGTERM)
        while not reason:
            reason = _ending(folder, children, owner)
            if "mpiexec" in children:
                reason = reason or ("" if client_file.exists() else "another process ended them")
            elif _complete(engine_file):  # the controller writes it last
                engine = [python, "-m", "repro.engines", "engine", str(folder), *ENGINE, profile]
                children["mpiexec"] = _spawn(folder, "mpiexec", [*launch, *engine, f"--file={engine_file}"], signal.SIGKILL)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        client_file.unlink(missing_ok=True)  # first: all who wait see that it is over
        _kill_descendants()
        quoted = "controller" if reason.startswith("controller") or "mpiexec" not in children else "mpiexec"
        last_words = (reason or "they were ended") + _tail(folder / f"{quoted}.log")
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # nobody listens
            os.write(1, last_words.encode())


def _ending(folder: Path, children: dict[str, subprocess.Popen], owner: int) -> str:
    """Waits a moment; says what has ended, "" if nothing has."""
    closed, _, _ = select.select([0], [], [], POLL)  # nobody writes there: readable means closed at the owner's end
    if closed or os.getppid() != owner:  # a process that the owner forked may hold that end open
        return "their owner ended them"
    gone = {name: child.returncode for name, child in children.items() if child.poll() is not None}
    ended = [file for file in folder.glob("*.engine") if not _runs(int(file.stem))]
    # When a rank dies, mpiexec soon ends the others and then itself. It says which one it was, in its last lines.
    said = (folder / "mpiexec.log").read_text(errors="replace") if ended and "mpiexec" in children else ""
    first = [file for file in ended if f"PID {file.stem} " in said]
    if gone and not (first and gone.get("mpiexec", 0) > 0):
        return ", ".join(f"{name} ended with status {status}" for name, status in gone.items())
    names = sorted(f"rank {file.read_text()} (process {file.stem})" for file in first or ended)
    return f"an engine, {', '.join(names)}, ended" if names else ""


def _runs(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _spawn(folder: Path, name: str, command: list[str], when_guard_dies: signal.Signals) -> subprocess.Popen:
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(_prctl, PR_SET_PDEATHSIG, when_guard_dies),
        )


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def end_with_make() -> None:
    """Has make's end, even by SIGKILL, end this process, if make started it; else it would go on unseen."""
    if "MAKELEVEL" in os.environ:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _kill_descendants() -> None:
    """Leaves first: when its ranks are gone, mpiexec removes its own files and ends."""
    import psutil

    while True:
        with suppress(psutil.NoSuchProcess):  # one ended while we looked: look again
            family = psutil.Process().children(recursive=True)
            running = [process for process in family if process.status() != psutil.STATUS_ZOMBIE]
            if not running:
                return
            parents = {process.ppid() for process in running}
            for process in running:
                if process.pid not in parents:
                    process.kill()
            psutil.wait_procs(running, timeout=POLL)


def _tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, less mpiexec's frames, with its name above; "" if there are none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8000))  # the owner need not read while we write: a pipe holds 64 KB
        said = [line for line in file.read().decode(errors="replace").splitlines() if line.strip(" =")]
    return "\n".join([f"\nlast lines of {log.name}:", *said[-lines:]]) if said else ""


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        _engine(Path(sys.argv[2]), sys.argv[3:])
    else:
        _guard(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
