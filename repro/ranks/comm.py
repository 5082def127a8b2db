"""Ranks and a few collective operations over MPI; a single process is a world of size 1. Only this module imports mpi4py.

Collectives work in place on contiguous NumPy arrays; the caller passes views of its tensors.
"""

import atexit
import ctypes
import os
import socket
import sys
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np

from repro import ReproError, cores
from repro.ranks import start, threads

MESSAGE = 1 << 18  # elements: an allreduce of 100 MB passes through the cache in pieces, in half the time (MPICH, one node)


class PeerError(ReproError):
    """Another rank failed; its own error says why."""


class World:
    """The ranks that train together: of this class itself, a single process, whose collectives have nothing to do."""

    rank, size = 0, 1
    node_rank = 0  # among the ranks on this machine
    nodes = 1  # machines that the ranks run on
    leaving = False  # all ranks know of an error and end by themselves
    beats = 0  # signs of progress, counted for the watchdog
    waits = False  # whether it waits for the other ranks, in a collective
    at = "the start"  # where this rank is, in words for messages

    def beat(self) -> None:
        """Signals progress; called after each part of the work that takes long."""
        self.beats += 1

    @contextmanager
    def waiting(self):
        """Context for code that waits for the other ranks."""
        yield

    def sum(self, array) -> None:
        """Adds up `array` (n,) over all ranks, in place, on every rank."""

    def start_sum(self, array):
        """Starts `sum` in the background; returns a request for `progress` and `finish`. All ranks use the same order."""

    def progress(self, request) -> None:
        """Advances a request: MPI makes progress only while it is called."""

    def finish(self, requests: list) -> None:
        """Waits until all requests are complete."""

    def gather(self, value) -> list:
        """Returns every rank's `value` in rank order, on every rank (pickled, so for small objects)."""
        return [value]

    def broadcast(self, value):
        """Returns rank 0's `value` on every rank."""
        return value

    def check(self, error: Exception | None) -> None:
        """Raises on every rank if any rank passes an error: its own if it differs from the first rank's, else a PeerError."""
        failures = self.gather(error and f"{type(error).__name__}: {error}")
        first = next((rank for rank, failure in enumerate(failures) if failure), None)
        if first is None:
            return
        self.leaving = True
        if error and not all(failures):  # otherwise what is wrong is wrong everywhere
            error.add_note(f"(on rank {self.rank} of {self.size}, {socket.gethostname()})")
        if error and (self.rank == first or failures[self.rank] != failures[first]):
            raise error
        raise PeerError(f"rank {first} failed: {failures[first]}")

    @contextmanager
    def together(self):
        """Context for code that can fail on one rank only: if it fails on any, all raise instead of waiting for each other."""
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.check(error)

    def abort(self) -> None:
        """Ends all ranks at once, including those that wait in a collective, unless they are already ending."""


class MPIWorld(World):
    """All ranks that mpiexec (or the engines) started together, over MPI."""

    def __init__(self, mpi):
        self.mpi, self.all = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.all.Get_rank(), self.all.Get_size()
        self.node_rank = self.all.Split_type(mpi.COMM_TYPE_SHARED).Get_rank()
        self.nodes = self.gather(self.node_rank).count(0)

    @contextmanager
    def waiting(self):
        self.waits = True
        yield
        self.waits = False
        self.beat()

    def sum(self, array) -> None:
        array = array.reshape(-1)
        with self.waiting():
            for start in range(0, len(array), MESSAGE):
                self.all.Allreduce(self.mpi.IN_PLACE, array[start : start + MESSAGE], op=self.mpi.SUM)

    def start_sum(self, array):
        return self.all.Iallreduce(self.mpi.IN_PLACE, array, op=self.mpi.SUM)

    def progress(self, request) -> None:
        request.Test()

    def finish(self, requests: list) -> None:
        with self.waiting():
            for request in requests:
                request.Wait()

    def gather(self, value) -> list:
        with self.waiting():
            return self.all.allgather(value)

    def broadcast(self, value):
        with self.waiting():
            return self.all.bcast(value)

    def abort(self) -> None:
        if not self.leaving:
            sys.stdout.flush()
            sys.stderr.flush()
            self.all.Abort(1)


LAUNCHERS = (  # variables of MPICH and Intel MPI, Open MPI, and Slurm's srun: the rank, the number of ranks
    ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"),
    ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),
)


def launched() -> tuple[int, int]:
    """This process's rank and the number of ranks, as its launcher says, before MPI is loaded.

    In a shell of `srun --pty`, Slurm's variables tell of the shell, unless it has started this process by another srun.
    """
    pty = {"SLURM_PTY_PORT", "SLURM_PTY_WIN_COL"} & set(os.environ)
    slurm = not pty or os.environ.get("SLURM_TASK_PID") == str(os.getpid())
    told = {name: value for name, value in os.environ.items() if slurm or not name.startswith("SLURM_")}
    found = (next(filter(None, map(told.get, names)), None) for names in LAUNCHERS)
    rank, ranks = (int(number or fallback) for number, fallback in zip(found, (0, 1)))
    return rank, ranks


@cache
def world() -> World:
    """The ranks that this process belongs to (cached); raises ReproError if its MPI is not the one that launched it."""
    rank, ranks = launched()
    if (told := threads.unbind()) and rank == 0:
        start.say(told)
    try:
        MPI = _start(rank, ranks)
    except (ImportError, RuntimeError) as error:
        if ranks > 1:
            raise ReproError(
                f"{ranks} ranks were started, but mpi4py cannot load an MPI library ({error}). "
                "Install the one that belongs to this mpiexec (`make setup` installs MPICH's), or load its "
                "module."
            ) from error
        return World()
    if MPI.COMM_WORLD.Get_size() == 1 and ranks > 1:
        raise ReproError(
            f"{ranks} ranks were started on {socket.gethostname()}, but each sees only itself: mpiexec belongs "
            f"to another MPI than mpi4py's library ({_library(MPI)}). Use that library's own mpiexec; "
            f"`make setup` puts one beside {sys.executable}."
        )
    with _meeting(MPI):
        found = MPIWorld(MPI) if MPI.COMM_WORLD.Get_size() > 1 else World()
        found.sum(np.zeros(MESSAGE, np.int64))  # long messages may take another way than short ones
    _unname_shared_memory()
    return found


def _meeting(mpi):
    """Context for the first collectives, which may wait forever where MPI has chosen a network that leads nowhere."""
    return start.attended("the first allreduce", mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size(), start.NETWORK)


def _start(rank: int, ranks: int):
    """Loads mpi4py's module and starts MPI, unless that is done. Raises ImportError or RuntimeError if there is no library.

    Raises ReproError if Open MPI's mpiexec has started a process that loads another MPI, which would end it at once.
    """
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    if MPI.Is_initialized():
        return MPI
    library = _library(MPI)  # one of the few questions that may be asked before MPI is initialised
    if "OMPI_COMM_WORLD_SIZE" in os.environ and "PMI_SIZE" not in os.environ and "Open MPI" not in library:
        raise ReproError(
            f"Open MPI's mpiexec started this on {socket.gethostname()}, but mpi4py loads another MPI ({library}): use that "
            f"library's own mpiexec; `make setup` puts one beside {sys.executable}"
        )
    if ranks > 1 and (scarce := start.scarce()):
        start.say(f"warning: {socket.gethostname()}: {scarce}")
    # By the library's own function, since mpi4py's holds Python's lock, and no thread could attend to a start that hangs.
    with start.attended("MPI to start", rank, ranks, start.advice(library)):
        failed = ctypes.CDLL(MPI.__file__).MPI_Init_thread(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    if failed:
        raise RuntimeError(f"MPI_Init_thread returned {failed}")
    for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):  # what mpi4py does after it has started MPI by itself
        comm.Set_errhandler(MPI.ERRORS_RETURN)
    atexit.register(MPI.Finalize)
    return MPI


def roll_call() -> list[str]:
    """Returns a line per rank, in order, and one that all ranks see each other; raises if they do not. Collective."""
    me, total = world(), np.ones(1, np.int64)
    me.sum(total)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    lines = me.gather(
        f"rank {me.rank} of {me.size} on {socket.gethostname()}, rank {me.node_rank} there: "
        f"{cores()} cores, OMP_NUM_THREADS {threads}, process {os.getpid()}"
    )
    if int(total[0]) != me.size or len(lines) != me.size:
        raise ReproError(f"an allreduce over {me.size} ranks counted {int(total[0])}: the MPI library is broken")
    library = "no MPI: a single process" if not isinstance(me, MPIWorld) else _library(me.mpi)
    return [*lines, f"all {me.size} ranks see each other ({library})" if me.size > 1 else f"one rank ({library})"]


def introduce() -> tuple[int, int, int, str]:
    """What an engine reports when it has started: rank, size of its world, process id, MPI library."""
    MPI = _start(*launched())
    with _meeting(MPI):
        MPI.COMM_WORLD.Barrier()
    _unname_shared_memory()
    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size(), os.getpid(), _library(MPI)


def _unname_shared_memory() -> None:
    """Removes the name of MPICH's shared-memory file, which it leaves behind (2 MB and more) when ranks are killed.

    Called when the ranks have met in a collective: each has opened the file by then, and it lasts as long as one of them lives.
    """
    with suppress(OSError), open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "/dev/shm/mpich_shm_" in line and "(deleted)" not in line}
        for file in files:
            Path(file).unlink(missing_ok=True)  # another rank may have been faster


def _library(mpi) -> str:
    return mpi.Get_library_version().splitlines()[0].strip("\0 ")
