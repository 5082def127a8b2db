"""MPI engines for notebooks: start them or join running ones, call a function on all ranks, leave nothing behind.

A small guard process (`guard`), not the process that called `start`, owns the controller and mpiexec: however the owner
ends, the guard notices and ends everything. The connection file represents the cluster: it exists as long as the engines
do, and deleting it ends them. Everything stays on this machine, on the loopback interface.

Only this module imports ipyparallel. Importing it loads neither ipyparallel nor MPI.
"""

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION
from concurrent.futures import wait as wait_for
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from repro import ReproError
from repro.jupyter.guard import CHECK_SECONDS, PR_SET_PDEATHSIG, complete, connection_path, prctl
from repro.paths import folder_of_sockets
from repro.ranks import stop, threads
from repro.ranks.start import LIMIT, limit
from repro.ranks.start import PATIENCE as LATE

GRACE = 1.0  # seconds that the other ranks have to finish by themselves after one has failed
PATIENCE = 10.0  # seconds for the guard to end everything; it needs less than one
START = 60.0  # seconds in which engines must answer; they take 3 to 7
MPI_HELP = "`make setup` installs MPICH's; on a cluster, load its MPI module."
START_AGAIN = "Start them again (in a notebook: run it from the top)."


class EnginesError(ReproError):
    """Engines cannot be started, joined or used."""


class StartTimeout(EnginesError):
    """The engines did not answer in time."""


class EnginesEnded(EnginesError):
    """The engines are gone, because one of their processes died or they were ended."""


class RankError(EnginesError):
    """The function raised on `rank`.

    If the function raised a ReproError, the message is the same. For any other error, the message starts with the error and
    includes that rank's traceback. `kind` is the name of the error's class.
    """

    def __init__(self, message: str, rank: int, kind: str):
        super().__init__(message)
        self.rank, self.kind = rank, kind


class Interrupted(KeyboardInterrupt):
    """An interrupt while ranks computed or engines started: the engines have been ended. A notebook shows only the message."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


# --- Using engines ----------------------------------------------------------------------------------------------------


class Job:
    """One call on all ranks, running or done."""

    def __init__(self, cluster: "Cluster", calls: list):
        self._cluster, self._calls = cluster, calls  # ipyparallel's futures, in rank order

    def done(self) -> bool:
        """Whether `result` would return or raise without waiting for the ranks' work. Raises nothing itself."""
        return all(call.done() for call in self._calls) or bool(self._failed()) or not self._cluster.alive

    def wait(self, timeout: float = float("inf")) -> bool:
        """Waits until `done`, for at most `timeout` seconds; returns whether it is."""
        deadline = time.monotonic() + timeout
        while not self.done() and time.monotonic() < deadline:
            wait_for(self._calls, timeout=CHECK_SECONDS, return_when=FIRST_EXCEPTION)
        return self.done()

    def result(self) -> list:
        """Waits; returns what the ranks returned, in rank order.

        Raises RankError if the function raised on a rank, EnginesEnded if a process died. A rank that waits for a
        failed one in a collective can only be killed: if there is one after a second, the engines are ended. An interrupt
        (KeyboardInterrupt) ends them too, even if another process owns them, so that nothing keeps running unnoticed. It
        is raised again as Interrupted.
        """
        try:
            self.wait()
            if self._failed():
                wait_for(self._calls, timeout=GRACE)
                raise self._error()
            if not all(call.done() for call in self._calls):
                self._cluster.end()
                raise self._cluster._ended_error()
        except KeyboardInterrupt:
            self._cluster.end("they were interrupted")
            raise Interrupted(f"interrupted, so the engines were ended. {START_AGAIN}") from None
        return [call.result() for call in self._calls]

    def _failed(self) -> dict:
        return {rank: call.exception() for rank, call in enumerate(self._calls) if call.done() and call.exception()}

    def _error(self) -> RankError:
        errors = {rank: _details(error) for rank, error in self._failed().items()}
        weak = {"Stopped": 1, "PeerError": 2}  # a request to stop hides no failure; a PeerError repeats another's error
        first = min(errors, key=lambda rank: (weak.get(errors[rank]["kind"], 0), rank))
        kind, line, frames = (errors[first][key] for key in ("kind", "line", "traceback"))
        lines = [f"rank {first} failed: {line}", frames.rstrip()] if frames else [line]
        others = {rank: one["line"] for rank, one in errors.items() if one["kind"] not in weak and one["line"] != line}
        lines += [f"rank {rank} also failed: {other}" for rank, other in others.items()]
        stuck = [str(rank) for rank, call in enumerate(self._calls) if not call.done()]
        if stuck:
            self._cluster.end("a rank had failed and others did not finish")
            lines.append(f"Rank {', '.join(stuck)} did not finish, so the engines were ended. {START_AGAIN}")
        return RankError("\n".join(lines), first, kind)


class Cluster:
    """Engines that form one MPI world, as `start` and `join` return them; leaving a `with` block closes it.

    `ranks` is their number, `pids` are their process ids in rank order, `connection_file` is the argument of `join`. The
    output of the ranks goes to the file `log`, which exists as long as the engines do.
    """

    def __init__(self, connection_file: Path, guard: subprocess.Popen | None = None):
        self._folder, self._guard = connection_file.parents[1], guard  # only the owner has a guard
        self.connection_file, self.log = str(connection_file), str(self._folder / "mpiexec.log")
        self.ranks, self.pids, self._hosts = 0, [], []
        self._client: Any = None
        self._job: Job | None = None
        self._loading: Job | None = None  # it imports a module: the next job waits for it
        self._views, self._ended = [], ""
        self._starting: tuple[str, float] | None = None  # mpiexec and time-out of engines that `ready` has to wait for

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def idle(self) -> bool:
        """Whether no job of this object is running that a new one would not wait for."""
        return not self._job or self._job is self._loading or self._job.done()

    @property
    def alive(self) -> bool:
        """Whether the engines can be used."""
        running = self._guard.poll() is None if self._guard else os.path.exists(self.connection_file)
        return running and not self._ended

    def ready(self) -> None:
        """Waits until the engines answer, if they were started without waiting; raises what `start` raises."""
        if not self._starting or self._ended:
            return
        mpiexec, timeout = self._starting
        self._starting = None
        try:
            _, size, _, library = self._connect(self.ranks, timeout)[0]
            if size != self.ranks:
                raise EnginesError(
                    f"{self.ranks} engines were started, but each sees a world of {size}: {mpiexec} belongs to "
                    f"another MPI than the library that mpi4py loads ({library}). Use that library's own "
                    f"mpiexec: {MPI_HELP}"
                )
        except BaseException as error:
            reason = self.end()
            self.close()
            if isinstance(error, StartTimeout):
                raise StartTimeout(f"{error}\n{reason}") from None
            if isinstance(error, EnginesEnded):
                raise EnginesEnded(
                    f"the engines ended while they started: {reason}\n{mpiexec} started them; it must "
                    f"belong to the same MPI as the library that mpi4py loads: {MPI_HELP}"
                ) from None
            if isinstance(error, RankError):
                raise EnginesError(f"MPI does not work on the engines: {error}\n{MPI_HELP}") from None
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("interrupted while the engines started: none of them is left") from None
            raise

    def run(self, function: Callable | str, /, *args, **kwargs) -> list:
        """Calls `function` on all ranks and waits: `submit(...).result()`."""
        return self.submit(function, *args, **kwargs).result()

    def submit(self, function: Callable | str, /, *args, **kwargs) -> Job:
        """Starts `function(*args, **kwargs)` on all ranks and returns at once.

        `function` is one that engines can import, or its name "module:function", so that the caller need not import it
        (a function defined in a notebook must contain its own imports). Raises EnginesError while an earlier job of this
        object is running, EnginesEnded if the engines are gone.
        """
        self.ready()
        if self._loading:
            loading, self._loading = self._loading, None
            loading.result()
        if not self.alive:
            self.end()
            raise self._ended_error()
        if not self.idle:
            raise EnginesError(
                "the engines are still busy with an earlier job: wait for its result(), or close() and start them again"
            )
        self._job = Job(self, [view.apply_async(_call, function, args, kwargs) for view in self._views])
        return self._job

    def load(self, module: str) -> None:
        """Imports a module on all ranks and returns at once; the next job waits for that, and raises if it failed."""
        self._loading = self.submit("repro.jupyter.engines:_load", module)

    def close(self) -> None:
        """Ends the engines if this process started them; otherwise only disconnects from them."""
        if self._guard:
            self.end("they were closed")
        self._ended = self._ended or "this connection to them was closed"
        if self._client:
            self._client.close(linger=0)

    def ask_to_stop(self) -> bool:
        """Asks training on these engines to stop after its step, with a checkpoint: its job then raises records.Stopped.

        One rank is enough, so only those on this machine are asked; returns False if there are none.
        """
        here = [pid for pid, host in zip(self.pids, self._hosts) if host == socket.gethostname()]
        for pid in here:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        return bool(here)

    def forget_request(self) -> None:
        """Drops a stop request that came too late for its job, so that the next job does not stop because of it."""
        self.run("repro.jupyter.engines:_forget_request")

    def end(self, reason: str = "") -> str:
        """Ends the engines, whichever process owns them, and waits until they are gone; returns why, perhaps from the guard."""
        if self._ended:
            return self._ended
        self._ended = reason or "an engine process died, or another process ended them"
        if not self._guard:
            Path(self.connection_file).unlink(missing_ok=True)  # the guard checks for it
        else:
            self._guard.terminate()  # closing its stdin would not be enough if this process has forked
            try:
                output, _ = self._guard.communicate(timeout=PATIENCE)
                self._ended = reason or output.strip() or self._ended
            except subprocess.TimeoutExpired:
                self._guard.kill()
            if self._guard.wait() < 0:  # it was killed, and mpiexec with it; Open MPI's mpiexec leaves its ranks behind
                for pid in self.pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self._folder, ignore_errors=True)  # the guard has done this, unless it was killed
        deadline = time.monotonic() + PATIENCE
        while self._folder.exists() and time.monotonic() < deadline:
            time.sleep(CHECK_SECONDS / 2)
        return self._ended

    def _connect(self, ranks: int, timeout: float) -> list[tuple]:
        """Waits until `ranks` engines answer; returns (rank, world size, pid, MPI library) of each, in rank order."""
        late = threading.Timer(LATE, print, [self._late(timeout)], {"flush": True})
        late.daemon = True
        late.start()
        try:
            return self._meet(ranks, timeout)
        finally:
            late.cancel()

    def _late(self, timeout: float) -> str:
        """A line for the one who waits; nothing is wrong yet."""
        reasons = "a busy machine, a slow disk, or an mpiexec of another MPI" if self._guard else "another job, or they hang"
        return f"the engines have not answered for {LATE:g} s ({reasons}): waiting until {timeout:g} s; see {self.log}"

    def _meet(self, ranks: int, timeout: float) -> list[tuple]:
        import ipyparallel

        deadline = time.monotonic() + timeout
        while not complete(Path(self.connection_file)):
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
        job = Job(self, [view.apply_async(_call, "repro.ranks.comm:introduce", (), {}) for view in views])
        if not job.wait(deadline - time.monotonic()):
            raise StartTimeout(
                f"the engines do not answer: {timeout:g} s were not enough ({LIMIT} allows more), or they are busy"
            )
        answers = sorted(zip(job.result(), views), key=lambda pair: pair[0])
        self._views = [view for _, view in answers]
        self.ranks, self.pids = len(answers), [pid for (_, _, pid, _), _ in answers]
        self._hosts = [socket.gethostname()] * self.ranks if self._guard else self.run("socket:gethostname")
        return [answer for answer, _ in answers]

    def _pause(self, deadline: float) -> None:
        time.sleep(CHECK_SECONDS / 2)
        if not self.alive:
            self.end()
            raise self._ended_error()
        if time.monotonic() > deadline:
            raise StartTimeout(f"the engines were not ready in time: on a busy machine, allow them more seconds by {LIMIT}=600")

    def _ended_error(self) -> EnginesEnded:
        return EnginesEnded(f"the engines have ended: {self._ended}\n{START_AGAIN}")


def start(ranks: int = 2, timeout: float = 0.0, wait: bool = True) -> Cluster:
    """Starts `ranks` MPI engines on this machine; they end with this process, or on `close`.

    They run in this process's working directory, import what it can import, and compute with one OpenMP thread unless
    OMP_NUM_THREADS says otherwise. Raises EnginesError if there is no mpiexec or it belongs to another MPI than mpi4py's
    library, StartTimeout after `timeout` seconds (0: REPRO_START_SECONDS, or 60), or EnginesEnded with the last lines of the
    log. Says after 20 seconds that it waits. With `wait=False` it returns at once, and the first use of the engines waits.
    """
    if ranks < 1:
        raise EnginesError(f"{ranks} engines cannot be started: ask for 1 or more")
    longest = timeout or limit(START)
    mpiexec = find_mpiexec()
    launch = [mpiexec, *mpiexec_options(mpiexec), "-n", str(ranks)]
    folder = Path(tempfile.mkdtemp(prefix="repro-engines-", dir=folder_of_sockets()))  # only this user can enter it
    guard = subprocess.Popen(  # in a session of its own: Ctrl-C on the terminal is the owner's to handle
        [sys.executable, "-m", "repro.jupyter.guard", str(folder), str(os.getpid()), *launch],
        env=_environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    cluster = Cluster(connection_path(folder, "client"), guard)
    cluster.ranks, cluster._starting = ranks, (mpiexec, longest)
    if wait:
        cluster.ready()
    return cluster


def join(connection_file: str, timeout: float = START) -> Cluster:
    """Uses engines that another process started; its `close` leaves them running.

    Raises EnginesEnded if there are none, StartTimeout if they do not answer within `timeout` seconds. Jobs of several
    processes should not overlap: ranks could run them in different orders and wait for each other forever.
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


_started: Cluster | None = None  # most recently, by `start_or_join`


def start_or_join(connection_file: str, ranks: int, wait: bool = True) -> Cluster:
    """Joins the engines of `connection_file`, whatever their number; if it is "", returns `ranks` engines of this process.

    A process has one such set: the engines of an earlier call are returned again if they are alive, idle and of the same
    number; otherwise they are closed before new ones are started. So a notebook that runs again, after it failed or was
    interrupted, does not start a second set. `wait` is as for `start`. Prints that engines are started, which takes seconds.
    """
    global _started
    if connection_file:
        return join(connection_file)
    if _started and not (_started.alive and _started.idle and _started.ranks == ranks):
        _started.close()
        _started = None
    if not _started:
        print(f"starting {ranks} {'engine' if ranks == 1 else 'engines'} ...", flush=True)
        _started = start(ranks, wait=wait)
    return _started


def find_mpiexec() -> str:
    """The mpiexec beside this Python (a virtual environment need not be activated), otherwise the one on PATH."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if not found:
        raise EnginesError(f"no mpiexec in {beside} nor on PATH: {MPI_HELP}")
    return found


def mpiexec_options(mpiexec: str) -> list[str]:
    """Options that this kind of mpiexec needs to start any number of ranks here, each free to use all cores."""
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    if "Open MPI" in version or "OpenRTE" in version:
        return ["--bind-to", "none", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    if "HYDRA" in version:
        return ["-launcher", "fork"]  # under Slurm it would ask srun, and the ranks would not be our descendants
    return []


def end_with_make() -> None:
    """Ends this process when make ends, even by SIGKILL, if make started it; otherwise it would keep running unnoticed."""
    if "MAKELEVEL" in os.environ:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(folder: Path) -> dict:
    """The owner's environment, without variables that would lead engines to another controller, and with its import path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IPP_")}
    paths = [str(Path(__file__).resolve().parents[2]), *(path or os.getcwd() for path in sys.path)]
    # All ranks are on this machine, so MPICH's networks (UCX, libfabric) need not listen beyond it.
    loopback = {"UCX_NET_DEVICES": "lo", "FI_TCP_IFACE": "lo"} if sys.platform == "linux" else {}
    return {
        "OMP_NUM_THREADS": "1",
        **loopback,
        **environment,
        "PYTHONPATH": os.pathsep.join(paths),
        "IPYTHONDIR": str(folder),
        "TMPDIR": str(folder),
    }  # files that MPI and IPython leave behind are removed with the folder


def _details(error) -> dict:
    """A rank's error: `kind`, `line` and `traceback` as `_call` sent them; or the error that kept `_call` from running."""
    if error.ename == _Raised.__name__:
        return json.loads(error.evalue)
    return {"kind": error.ename, "line": f"{error.ename}: {error.evalue}", "traceback": ""}


# --- Controller and engine: `python -m repro.jupyter.engines controller FOLDER`, and then `engine FOLDER` on each rank ------

# Heartbeats only serve to register engines quickly: whoever starts them checks whether a process is alive, however busy it is.
CONTROLLER = "--nodb", "--ping=250", "--HeartMonitor.max_heartmonitor_misses=1000000000", "--log-level=CRITICAL"
ENGINE = "--timeout=300", "--IPEngine.max_heartbeat_misses=0", "--IPEngine.enable_nanny=False", "--log-level=ERROR"


def _controller(folder: Path, address: str = "127.0.0.1", *more: str) -> None:
    """Runs the controller of a set of engines, which listens on one address alone; `more` are options of ipyparallel's."""
    from ipyparallel.controller.app import IPController

    listens = f"--IPController.client_ip={address}", f"--IPController.engine_ip={address}", f"--location={address}"
    IPController.launch_instance([*listens, *CONTROLLER, f"--profile-dir={folder}", *more])


def _engine(folder: Path) -> None:
    """Runs one engine, as `python -m ipyparallel.engine` would, after telling the guard its process id."""
    rank = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or "of unknown number"
    (folder / f"{os.getpid()}.engine").write_text(rank)
    threads.unbind()
    stop.listen(signal.SIGUSR1)  # the default action would end the engine; training checks for the request
    sys.modules["debugpy"] = None  # type: ignore[assignment]  # ipykernel works without it; importing it takes half a second
    from ipyparallel.engine.app import IPEngine

    class Engine(IPEngine):
        def init_signal(self):
            super().init_signal()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ipykernel's handler lets a call run to its end

        def redirect_output(self, iopub_socket):
            """Does nothing: output goes to mpiexec's log, where it outlives the rank, and not to the clients."""

    Engine.launch_instance([f"--file={connection_path(folder, 'engine')}", *ENGINE, f"--profile-dir={folder}"])


class _Raised(Exception):
    """Carries an error as text, in JSON: ipyparallel's own traceback has colours and half a page per frame."""


def _call(function: Callable | str, args: tuple, kwargs: dict):
    try:
        if isinstance(function, str):
            module, name = function.split(":")
            function = cast(Callable, getattr(importlib.import_module(module), name))
        return function(*args, **kwargs)
    except BaseException as error:
        details = {"kind": type(error).__name__, "traceback": ""}
        if isinstance(error, ReproError):  # its message is all that the user needs
            details["line"] = " ".join([str(error), *getattr(error, "__notes__", [])])
        else:
            frames = error.__traceback__ and error.__traceback__.tb_next  # without this frame
            details["traceback"] = "".join(traceback.format_exception(type(error), error, frames))
            details["line"] = traceback.format_exception_only(error)[0].strip()
        raise _Raised(json.dumps(details)) from None


def _forget_request() -> None:
    stop.asked.clear()


def _load(module: str) -> None:
    importlib.import_module(module)


if __name__ == "__main__":
    {"controller": _controller, "engine": _engine}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
