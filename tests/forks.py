"""Forks of one process that has loaded torch, in place of processes that would each take seconds to load it.

    python tests/forks.py FOLDER                         serves, until its parent ends
    python tests/forked.py FOLDER/socket ARGUMENT...     as python tests/faulty.py ARGUMENT..., in a fraction of a second

tests/forked.py may be started by mpiexec. Its fork has its environment, standard streams, working directory and connection to
the launcher, gets its signals, and either ends with the other; the fork's process id is its own.
"""

import atexit
import ctypes
import fcntl
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

os.environ["OMP_NUM_THREADS"] = "1"  # a fork of a process with threads would hang

import repro.cli.commands
import repro.train  # noqa: F401  once, for all forks
from repro.run import identity

TESTS = Path(__file__).resolve().parent
for known in (identity.code_digest, identity.code_version, identity.package_versions, identity.processor):
    known()  # once, too


def command(arguments: list[str], folder: str, environment: dict) -> NoReturn:
    """The command `python tests/faulty.py ...`, in a fork of this process, which saves the seconds that torch takes to load."""
    atexit._clear()  # type: ignore[attr-defined]  those of the parent
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.update(environment)
    os.chdir(folder)
    for name, number in (("stdout", 1), ("stderr", 2)):  # the parent's may have been files, and these are pipes
        setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    sys.argv = ["repro", *arguments]
    status = 1
    try:
        runpy.run_path(str(TESTS / "faulty.py"), run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()  # type: ignore[attr-defined]  MPI_Finalize is one
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    ctypes.CDLL(None).exit(status)  # MPICH takes leave of its launcher when C's own functions end the process
    os._exit(status)


def serve(place: Path, ranks: int = sys.maxsize) -> None:
    """Forks a process for each tests/forked.py that connects, so many in all, and lets the two end together.

    The socket is `place`/socket; from when it is open, there is a file `place`/open. Returns when its parent ends.
    """
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place / "socket"))
        door.listen()
        (place / "open").touch()
        stubs: dict[int, socket.socket] = {}
        parent, begun = os.getppid(), 0
        while begun < ranks or stubs:
            if os.getppid() != parent or (place / "over").exists() and not stubs:
                return
            readable, _, _ = select.select([door, *stubs.values()], [], [], 0.01)
            if door in readable:
                stub, begun = door.accept()[0], begun + 1
                size, streams, _, _ = socket.recv_fds(stub, 8, 4)
                told = b""
                while size and len(told) < int.from_bytes(size, "big") and (more := stub.recv(1 << 16)):
                    told += more
                if not told:
                    continue
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(told), streams, place)
                for stream in streams:
                    os.close(stream)
                stubs[pid] = stub
                with suppress(OSError):
                    stub.sendall(str(pid).encode())
            for pid, stub in list(stubs.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with suppress(OSError), stubs.pop(pid):
                        stub.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                elif stub in readable:  # its end
                    os.kill(pid, signal.SIGKILL)


def _become(told: dict, streams: list[int], place: Path) -> NoReturn:
    """The fork takes the place of the process that connected."""
    os.setpgid(0, 0)
    environment = told["environment"]
    targets = [0, 1, 2, *([int(environment["PMI_FD"])] if "PMI_FD" in environment else [])]
    kept = [fcntl.fcntl(stream, fcntl.F_DUPFD, 100) for stream in streams]  # clear of the targets
    os.closerange(3, 100)
    for stream, target in zip(kept, targets):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    if library := environment.get("MPI4PY_LIBMPI"):  # LD_LIBRARY_PATH is only read when a program starts
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    rank = environment.get("PMI_RANK", environment.get("OMPI_COMM_WORLD_RANK", 0))
    (place / f"rank{rank}").write_text(str(os.getpid()))
    command(told["arguments"], told["folder"], environment)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
