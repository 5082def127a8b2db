"""The start of MPI, in which ranks find each other and may wait forever: what is said before and meanwhile, and how it ends.

MPI starts in C, in the main thread. No signal handler of Python runs there, so another thread attends to it.
"""

import os
import select
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from repro import ReproError

PATIENCE = 20.0  # seconds: a thousand ranks that load Python from one disk may take longer, so it is no error yet
LIMIT = "REPRO_START_SECONDS"  # variable: seconds within which ranks must meet; by the launchers it reaches all of them
LONGEST = 600.0  # seconds, where it is not set; notebooks, with all ranks on one machine, have a shorter one
STATUS_NOT_STARTED = 69  # EX_UNAVAILABLE: the ranks did not meet in time
GRACE = 5.0  # seconds that a start which is merely slow has to end after a request to stop
MPICHS = {"MPI_LOCALNRANKS"}  # a variable that the mpiexec of MPICH and of Intel MPI sets, and no other launcher
SHARED = Path("/dev/shm")  # through which ranks on one machine send messages
LEAST_SHARED = 64e6  # bytes that MPI and the engines need there


def say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def scarce() -> str:
    """Says that MPI may end without a word for want of shared memory; "" if there is enough."""
    if not SHARED.is_dir() or shutil.disk_usage(SHARED).free >= LEAST_SHARED:
        return ""
    return (
        f"{SHARED} has {shutil.disk_usage(SHARED).free / 1e6:.0f} MB free, MPI needs more: remove files there "
        f"(ls -l {SHARED}); in a container, start it with --shm-size=1g"
    )


def limit(otherwise: float = LONGEST) -> float:
    """Seconds within which ranks must meet; `otherwise` if not set. Raises ReproError if the variable is no positive number."""
    said = os.environ.get(LIMIT) or str(otherwise)
    with suppress(ValueError):
        if 0 < float(said) < float("inf"):
            return float(said)
    raise ReproError(f"{LIMIT} is {said!r}: it must be a positive number of seconds, or not set for {otherwise:g}")


def advice(library: str) -> str:
    """Likely reasons why MPI does not start, by the launcher of this process and the library that it loads."""
    srun = "SLURM_STEP_ID" in os.environ and not (MPICHS | {"OMPI_COMM_WORLD_LOCAL_RANK"}) & set(os.environ)
    if srun and library.startswith("MPICH"):
        return "srun --mpi=pmi2 cuts MPICH's longest lines: set MPIR_CVAR_CH4_NETMOD=ofi, or use MPICH's mpiexec"
    launcher = "srun's --mpi" if srun else "mpiexec"
    return f"a rank is not running yet, or {launcher} is not the one for {' '.join(library.partition(',')[0].split())}"


NETWORK = "nodes may not reach each other by the network that MPI has chosen: name it (FI_TCP_IFACE or UCX_NET_DEVICES for \
MPICH, OMPI_MCA_btl_tcp_if_include for Open MPI)"


@contextmanager
def attended(what: str, rank: int, ranks: int, reasons: str):
    """Within its block ranks wait for each other, for `what`. After 20 seconds ranks 0 and 1 name likely reasons, and wait on.

    The process ends with status 69 after `limit()` seconds, or with 75 if it is asked to: by SIGINT or SIGUSR1, if Python
    handles it, and unless the block ends within 5 seconds. Raises ReproError as `limit`.
    """
    longest = limit()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    in_main = threading.current_thread() is threading.main_thread()  # others may not ask for signals
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False) if in_main else None
    name = f"rank {rank} of {ranks} on {socket.gethostname()}"
    thread = threading.Thread(
        target=_attend, args=(woken, what, name, rank < 2, reasons, longest), name="start of MPI", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        if before is not None:
            signal.set_wakeup_fd(before)
        os.close(wake)
        thread.join()
        os.close(woken)


def _attend(woken: int, what: str, name: str, says: bool, reasons: str, longest: float) -> None:
    """Reads the numbers of signals until the other end is closed, which says that the block has ended."""
    began, asked = time.monotonic(), ""
    deadline = began + min(PATIENCE, longest)
    see = "see Troubleshooting in docs/cluster.md"
    while True:
        if select.select([woken], [], [], max(0.0, deadline - time.monotonic()))[0]:
            signals = os.read(woken, 64)
            if not signals:
                return
            ours = [signal.Signals(number).name for number in signals if number in (signal.SIGINT, signal.SIGUSR1)]
            if ours and not asked:
                asked, deadline = ours[0], time.monotonic() + GRACE
        elif asked:
            say(f"{name} was asked to stop by {asked} while it waited for {what}; the same command tries again")
            os._exit(os.EX_TEMPFAIL)
        elif time.monotonic() < began + longest:
            deadline = began + longest
            if says:
                say(
                    f"{name} has waited {time.monotonic() - began:.0f} s for {what}, and waits on until {longest:g} s: "
                    f"{reasons}; {see}"
                )
        else:
            if says:
                say(f"error: {name} has waited {longest:g} s for {what}, its limit ({LIMIT}): {reasons}; {see}")
            _end_all()
            os._exit(STATUS_NOT_STARTED)


def _end_all() -> None:
    """Asks MPICH's mpiexec to end all ranks: otherwise it waits for those on other nodes, which may not even have begun.

    In the line protocol between it and its ranks, PMI-1. Other launchers end all ranks when one has failed.
    """
    if not MPICHS & set(os.environ):
        return
    with suppress(KeyError, ValueError, OSError):
        time.sleep(1)  # so that mpiexec has passed on what was said: what it has not when it is asked to abort is lost
        os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={STATUS_NOT_STARTED}\n".encode())
        time.sleep(1)  # so that the request arrives before this end of the line is closed
