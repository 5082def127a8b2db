"""`python -m repro doctor`: checks this machine, one line per check; a failed check names the command that fixes it.

docs/environment.md says what each check is for.
"""

import fcntl
import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from repro import ReproError, limits
from repro.images.packed import Packed
from repro.jupyter import engines
from repro.paths import DATA, RESULTS, ROOT, check_checkout, folder_of_sockets, replacing, writable_folder
from repro.ranks import comm, start, threads

LEAST_DISK = 1e9  # bytes: runs and the packed digits need less
LEAST_TEMPORARY = 100e6  # bytes: MPI's and Jupyter's files
LEAST_OPEN = 128  # files of one process: a controller of engines, with its sockets, has some 60 open
LEAST_SPACE = 6e9  # bytes of addresses, not of memory, with which digits were trained: torch, the heap, stacks of threads
SKEW = 5.0  # seconds between two clocks
BEGAN = time.time() - time.monotonic()  # changes only if somebody sets the clock
ASK_MPI = (
    "import json, os\nfrom mpi4py import MPI\nw, levels = MPI.COMM_WORLD, ('single', 'funneled', 'serialized', 'multiple')\n"
    "bound = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []\n"
    "found = [w.allreduce(1), levels[MPI.Query_thread()], MPI.Get_library_version(), w.allgather(bound)]\n"
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


def checkout() -> str:
    """This Python's virtual environment was made here, and not copied or moved with the folder that it is in."""
    check_checkout(Path(sys.prefix))
    try:
        made = re.search(r"^command = .* -m venv .*--clear (.*)$", (Path(sys.prefix) / "pyvenv.cfg").read_text(), re.M)
    except OSError:
        made = None
    if made and not (os.path.exists(made[1]) and os.path.samefile(made[1], sys.prefix)):
        raise ReproError(f"{sys.prefix} was made as {made[1]} and works only there: rm -r .venv; make setup")
    return str(ROOT)


def cores() -> str:
    return f"{limits.cores()} of {os.cpu_count()} usable"


def openmp() -> str:
    if bound := threads.bound():
        return f"{', '.join(bound)}: not used, since it would bind the threads of every rank to the same cores"
    return f"binds no threads, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"


def memory() -> str:
    import psutil

    if scarce := start.scarce():
        raise ReproError(scarce)
    machine, most = psutil.virtual_memory(), limits.memory()
    limit = f"; the batch system or container allows {most / 1e9:.1f} GB" if most < machine.total else ""
    return f"{machine.available / 1e9:.1f} GB free{limit}"


def ulimits() -> str:
    """The shell's limits leave room: for open files, and for a map of the largest packed data set."""
    space, files = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE))
    largest = max((path.stat().st_size for path in DATA.glob("*/*.lmdb")), default=0)
    if 0 <= space < largest + LEAST_SPACE:
        raise ReproError(
            f"{space / 1e9:.1f} GB of address space, too little for torch and {largest / 1e9:.1f} GB of data: "
            "raise ulimit -v, or the batch system's limit, such as h_vmem"
        )
    if 0 <= files < LEAST_OPEN:
        raise ReproError(f"{files} open files, and notebooks' engines need {LEAST_OPEN}: ulimit -n {LEAST_OPEN}")
    told = [f"{files} open files" if files >= 0 else "any number of open files"]
    return ", ".join([*told, f"{space / 1e9:.1f} GB of address space" if space >= 0 else "any address space"])


def clock() -> str:
    """Nobody sets the clock at this moment, and the file system of the results has the same time."""
    if abs(step := time.time() - time.monotonic() - BEGAN) > SKEW:
        raise ReproError(
            f"the clock was set by {step:+.0f} s meanwhile: records would have wrong times; see that one service sets it"
        )
    with tempfile.NamedTemporaryFile(dir=writable_folder(RESULTS)) as file:
        skew = os.stat(file.name).st_mtime - time.time()
    if abs(skew) > SKEW:
        raise ReproError(f"files in {RESULTS} get times {skew:+.0f} s from this machine's: have both clocks set (NTP, chrony)")
    return "as the file system's"


def home() -> str:
    """Jupyter, matplotlib and uv keep files there."""
    place = Path(os.path.expanduser("~"))
    try:
        with tempfile.TemporaryFile(dir=place):
            return str(place)
    except OSError as error:
        raise ReproError(
            f"{place} cannot be written ({error.strerror}), but Jupyter keeps files there: export HOME=FOLDER, one that can"
        ) from None


def temporary() -> str:
    """The folder of temporary files can be written, and a socket in it can have a name."""
    asked, folder = os.environ.get("TMPDIR"), tempfile.gettempdir()
    if asked and not (os.path.isdir(asked) and os.path.samefile(asked, folder)):
        raise ReproError(f"TMPDIR is {asked}, where nothing can be written: make that folder, or export TMPDIR={folder}")
    if shutil.disk_usage(folder).free < LEAST_TEMPORARY:
        raise ReproError(f"{folder} is full: free some space, or export TMPDIR=FOLDER, one on another disk")
    if (sockets := folder_of_sockets()) == folder:
        return folder
    if not os.access(sockets, os.W_OK):
        raise ReproError(
            f"TMPDIR's path is too long for sockets, and {sockets} cannot be written: export TMPDIR=FOLDER, a short one"
        )
    return f"{folder}; sockets, for whose paths this is too long, in {sockets}"


def encoding() -> str:
    found = sys.getfilesystemencoding()
    if found != "utf-8":
        raise ReproError(
            f"names of files are read as {found}, so those with other letters would be garbled: export LC_ALL=C.UTF-8"
        )
    return "names of files are UTF-8"


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
    mode = (folder / ".doctor").stat().st_mode & 0o777
    (folder / ".doctor").unlink()
    return f"{free / 1e9:.0f} GB free at {folder}, {locks}, new files have mode {mode:o}"


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
    size, threading, library, bound = found[0]
    library = " ".join(library.replace("\t", " ").split("\n")[0].strip("\0 ").split())
    if size != 2:
        raise ReproError(
            f"2 ranks were started, but each sees only itself: {mpiexec} belongs to another MPI than the library "
            f"that mpi4py loads ({library}): {engines.MPI_HELP}"
        )
    if len(bound[0]) == 1 and bound[0] == bound[1] and limits.cores() > 1:
        raise ReproError(
            f"{mpiexec} binds both of two ranks to core {bound[0][0]}: unset what makes it bind ranks (docs/cluster.md)"
        )
    return f"{library}, {size} ranks see each other, threads {threading}, {mpiexec}"


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
    "checkout": checkout,
    "packages": packages,
    "cores": cores,
    "OpenMP": openmp,
    "memory": memory,
    "ulimit": ulimits,
    "encoding": encoding,
    "home": home,
    "temporary": temporary,
    "disk": disk,
    "MPI": mpi,
    "engines": notebook_engines,
    "kernel": kernel,
    "data": data,
    "clock": clock,
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
