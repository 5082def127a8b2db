"""The guard of a set of engines, a separate process: `python -m repro.jupyter.guard FOLDER OWNER LAUNCH...` (`engines.start`).

It owns the controller and mpiexec. When one of them, an engine, the owner or the connection file is gone, it ends all
others, prints the reason on its standard output, and removes the folder.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

CHECK_SECONDS = 0.2  # seconds between two checks that all processes are alive
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # from linux/prctl.h


def guard(folder: Path, owner: int, launch: list[str]) -> None:
    """Runs the controller and `launch` engines until one of them, the connection file or the owner is gone."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit())
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a dead mpiexec leaves behind stays our descendant
    run = [sys.executable, "-m", "repro.jupyter.engines"]
    client_file, engine_file = connection_path(folder, "client"), connection_path(folder, "engine")
    children, reason = {}, ""
    try:
        # On SIGTERM the controller ends its own children; mpiexec ends its ranks only when it is killed.
        children["controller"] = _spawn(folder, "controller", [*run, "controller", str(folder)], signal.SIGTERM)
        while not reason:
            reason = _ending(folder, children, owner)
            if "mpiexec" in children:
                reason = reason or ("" if client_file.exists() else "another process ended them")
            elif complete(engine_file):  # the controller writes it last
                children["mpiexec"] = _spawn(folder, "mpiexec", [*launch, *run, "engine", str(folder)], signal.SIGKILL)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        client_file.unlink(missing_ok=True)  # first, so that waiting processes see that the engines are gone
        _kill_descendants()
        quoted = "controller" if reason.startswith("controller") or "mpiexec" not in children else "mpiexec"
        last_words = (reason or "they were ended") + _tail(folder / f"{quoted}.log")
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # nobody reads it
            os.write(1, last_words.encode())


def _ending(folder: Path, children: dict[str, subprocess.Popen], owner: int) -> str:
    """Waits a moment; returns what has ended, "" if nothing has."""
    closed, _, _ = select.select([0], [], [], CHECK_SECONDS)  # nobody writes to it: readable means closed at the owner's end
    if closed or os.getppid() != owner:  # a process that the owner forked may hold that end open
        return "their owner ended them"
    gone = {name: child.returncode for name, child in children.items() if child.poll() is not None}
    ended = [file for file in folder.glob("*.engine") if not _runs(int(file.stem))]
    # When a rank dies, mpiexec soon ends the others and then itself. Its last lines say which rank it was.
    output = (folder / "mpiexec.log").read_text(errors="replace") if ended and "mpiexec" in children else ""
    first = [file for file in ended if f"PID {file.stem} " in output]
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
            preexec_fn=partial(prctl, PR_SET_PDEATHSIG, when_guard_dies),
        )


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _kill_descendants() -> None:
    """Kills leaves first: when its ranks are gone, mpiexec removes its own files and ends."""
    import psutil

    while True:
        with suppress(psutil.NoSuchProcess):  # one ended while we were looking: look again
            family = psutil.Process().children(recursive=True)
            running = [process for process in family if process.status() != psutil.STATUS_ZOMBIE]
            if not running:
                return
            parents = {process.ppid() for process in running}
            for process in running:
                if process.pid not in parents:
                    process.kill()
            psutil.wait_procs(running, timeout=CHECK_SECONDS)


def _tail(log: Path) -> str:
    """The last lines of a log, without mpiexec's frames, under its name; "" if there are none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8000))  # the owner need not read while we write: a pipe holds 64 KB
        last = [line for line in file.read().decode(errors="replace").splitlines() if line.strip(" =")]
    return "\n".join([f"\nlast lines of {log.name}:", *last[-15:]]) if last else ""


def connection_path(folder: Path, kind: str) -> Path:
    """Where the controller writes the connection file for a "client" or an "engine"."""
    return folder / "security" / f"ipcontroller-{kind}.json"


def complete(file: Path) -> bool:
    """Whether a connection file has been written completely."""
    try:
        return bool(json.loads(file.read_text()))
    except (FileNotFoundError, ValueError):
        return False


if __name__ == "__main__":
    guard(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
