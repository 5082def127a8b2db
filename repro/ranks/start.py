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

PATIENCE = 60.0  # seconds: a thousand ranks that load Python from one disk take as long, so it is no error
GRACE = 5.0  # seconds that a start which is merely slow has to end after a request to stop
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


@contextmanager
def attended(rank: int, ranks: int):
    """Within its block MPI starts. After a minute, ranks 0 and 1 say what may be wrong, and wait on.

    SIGINT or SIGUSR1, if Python handles it, ends the process with status 75 unless MPI has started 5 seconds later.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    in_main = threading.current_thread() is threading.main_thread()  # others may not ask for signals
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False) if in_main else None
    thread = threading.Thread(target=_attend, args=(woken, rank, ranks), name="start of MPI", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if before is not None:
            signal.set_wakeup_fd(before)
        os.close(wake)
        thread.join()
        os.close(woken)


def _attend(woken: int, rank: int, ranks: int) -> None:
    """Reads the numbers of signals until the other end is closed, which says that MPI has started."""
    began, asked = time.monotonic(), ""
    deadline: float | None = began + PATIENCE
    while True:
        left = deadline and max(0.0, deadline - time.monotonic())
        if select.select([woken], [], [], left)[0]:
            signals = os.read(woken, 64)
            if not signals:
                return
            ours = [signal.Signals(number).name for number in signals if number in (signal.SIGINT, signal.SIGUSR1)]
            if ours and not asked:
                asked, deadline = ours[0], time.monotonic() + GRACE
        elif asked:
            say(f"rank {rank} was asked to stop by {asked} while it waited for MPI to start; the same command tries again")
            os._exit(os.EX_TEMPFAIL)
        else:
            deadline = None
            if rank < 2:
                say(
                    f"rank {rank} of {ranks} on {socket.gethostname()} has waited {time.monotonic() - began:.0f} s for MPI to "
                    "start: a rank is not running yet, or mpiexec or srun is not that of the MPI library; if this lasts, stop "
                    "it and see Troubleshooting in docs/cluster.md"
                )
