"""`python -m repro doctor`: checks this machine, one line per check; a failed check names the command that fixes it."""

import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import repro
from repro import ReproError
from repro.images.packed import Packed
from repro.jupyter import engines
from repro.paths import DATA, RESULTS, replacing, writable_folder
from repro.ranks import comm, start

LEAST_DISK = 1e9  # bytes: runs and the packed digits need less
ASK_MPI = (
    "import json\nfrom mpi4py import MPI\nw, levels = MPI.COMM_WORLD, ('single', 'funneled', 'serialized', 'multiple')\n"
    "found = [w.allreduce(1), levels[MPI.Query_thread()], MPI.Get_library_version()]\n"
    "if w.rank == 0: print('\\n' + json.dumps(found), flush=True)"
)


def python() -> str:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036  in a checkout nothing has checked the version before
        raise ReproError(f"Python {found}, but 3.11 or newer is needed: make distclean; make setup PYTHON=python3.12")
    return f"{found}, {sys.executable}"


def packages() -> str:
    """All dependencies are installed, and those that are built for each other load together."""
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires("scaleout-repro") or [] if "extra ==" not in line]
    missing = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ReproError(f"not installed: {', '.join(missing)}: make setup (after rm .venv/options if it says all is ready)")
    for name in ("torch", "torchvision", "cv2", "lmdb", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:  # an incompatible build can raise anything
            raise ReproError(f"{name} cannot be loaded ({type(error).__name__}: {error}): make distclean; make setup") from None
    return f"all {len(names)}; torch {version('torch')}, torchvision {version('torchvision')}"


def cores() -> str:
    return f"{repro.cores()} of {os.cpu_count()} usable, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"


def memory() -> str:
    import psutil

    if scarce := start.scarce():
        raise ReproError(scarce)
    free = psutil.virtual_memory().available
    return f"{free / 1e9:.1f} GB free"


def disk() -> str:
    """Files in the results folder can be written, renamed and locked."""
    folder = writable_folder(RESULTS)
    free = shutil.disk_usage(folder).free
    if free < LEAST_DISK:
        raise ReproError(f"{folder} has {free / 1e9:.2f} GB free: free some space, or choose another folder with --out")
    locks = "locks"
    with replacing(folder / ".doctor") as temporary, open(temporary, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            locks = "no locks: do not train one run twice at the same time"
    (folder / ".doctor").unlink()
    return f"{free / 1e9:.0f} GB free at {folder}, {locks}"


def mpi() -> str:
    """Two ranks that mpiexec starts here see each other."""
    mpiexec = engines.find_mpiexec()
    command = [mpiexec, *engines.mpiexec_options(mpiexec), "-n", "2", sys.executable, "-c", ASK_MPI]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise ReproError(f"{mpiexec} has not ended after a minute: {engines.MPI_HELP}") from None
    # Two ranks that each think they are the only one may both print, and mpiexec may join their output in one line: the
    # first is used.
    found = [json.JSONDecoder().raw_decode(line)[0] for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not found:
        raise ReproError(
            f"{mpiexec} ended with status {done.returncode}: {' '.join(done.stderr.split()[-40:])}: {engines.MPI_HELP}"
        )
    size, threads, library = found[0]
    library = " ".join(library.replace("\t", " ").split("\n")[0].strip("\0 ").split())
    if size != 2:
        raise ReproError(
            f"2 ranks were started, but each sees only itself: {mpiexec} belongs to another MPI than the library "
            f"that mpi4py loads ({library}): {engines.MPI_HELP}"
        )
    return f"{library}, {size} ranks see each other, threads {threads}, {mpiexec}"


def notebook_engines() -> str:
    with engines.start(1) as cluster:
        rank, size, _, _ = cluster.run("repro.ranks.comm:introduce")[0]
    return "one started, answered and ended" if (rank, size) == (0, 1) else f"rank {rank} of {size}"


def kernel() -> str:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        started = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        raise ReproError(f"Jupyter has no kernel python3: {sys.executable} -m ipykernel install --sys-prefix") from None
    if started not in ("python", "python3") and Path(started).parent.resolve() != Path(sys.executable).parent.resolve():
        raise ReproError(
            f"Jupyter's kernel python3 is {started}, not this Python: {sys.executable} -m ipykernel install --sys-prefix"
        )
    return "Jupyter starts this Python"


def data() -> str:
    """Packed data under data/ is complete; having none is not an error."""
    found = []
    for path in sorted(DATA.glob("*/*.lmdb")):
        packed = Packed(path, path.parent.name, path.stem)
        packed[0]
        found.append(f"{path.parent.name} {path.stem} ({len(packed)})")
    return ", ".join(found) or "nothing is packed yet (make data packs the digits; the notebooks do so automatically)"


CHECKS = {
    "Python": python,
    "packages": packages,
    "cores": cores,
    "memory": memory,
    "disk": disk,
    "MPI": mpi,
    "engines": notebook_engines,
    "kernel": kernel,
    "data": data,
}


def doctor() -> bool:
    """Prints one line per check; returns whether all checks passed. Raises ReproError if mpiexec has started it."""
    if comm.launched()[1] > 1:
        raise ReproError("doctor starts mpiexec itself: call it without; `python -m repro ranks` checks those that it started")
    passed = True
    for name, check in CHECKS.items():
        try:
            state, found = "ok", check()
        except ReproError as error:
            state, found = "BROKEN", " ".join(str(error).split())
        except Exception as error:  # a bug in one check must not hide the others
            state, found = "BROKEN", f"{type(error).__name__}: {' '.join(str(error).split())}: make distclean; make setup"
        passed = passed and state == "ok"
        print(f"{state:6}  {name:9} {found}", flush=True)
    return passed
