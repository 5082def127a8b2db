"""A Slurm of two nodes on this machine, for tests: munged, slurmctld and two slurmd in a folder of their own.

Both nodes have this machine's name and cores, and are told apart by their ports. Whoever runs the tests owns all of it: root,
or another user, for whose jobs alone it then works.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

NODES = "n1", "n2"
CPUS = 2  # of each node in Slurm's eyes
PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol"
SYSTEM = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"  # where daemons are; a user's PATH need not have them
UP = 20.0  # seconds until all nodes are idle; it takes 2
DOWN = 8  # seconds without a sign of life after which Slurm calls a node lost
CONFIGURATION = """\
ClusterName=two
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=2
SlurmdTimeout={down}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE PriorityTier=2
"""


def missing() -> str:
    """What this machine lacks, in words; "" if Slurm can be started."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM)]
    return f"no {', '.join(absent)} here: `make test-slurm` installs Debian's Slurm where it can" if absent else ""


class Nodes:
    """Two nodes that are up. `environment` makes Slurm's commands use them."""

    def __init__(self, folder: Path, daemons: dict[str, subprocess.Popen]):
        self.folder, self.daemons = folder, daemons
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SYSTEM}

    def command(self, *words, **environment) -> str:
        """The output of one of Slurm's commands, which must succeed."""
        done = subprocess.run(
            list(map(str, words)), env=os.environ | self.environment | environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start_node(self, name: str) -> None:
        log = open(self.folder / f"{name}.log", "a")  # noqa: SIM115  the daemon's, for as long as it lives
        self.daemons[name] = subprocess.Popen(
            ["slurmd", "-D", "-N", name], env=os.environ | self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + UP
        # A planned node is idle, and meant for a waiting job: if that is gone, backfill takes its time to forget the plan.
        while set(self.command("sinfo", "-h", "-N", "-p", "all", "-o", "%T").split()) - {"idle", "planned"}:
            assert time.monotonic() < deadline, f"the nodes are not idle: {self.command('sinfo', '-N', '-l')}{self.logs()}"
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All processes of jobs: slurmstepd and what it has started, whoever is their parent now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and (process.name().startswith("slurmstepd") or "SLURMD_NODENAME" in process.environ()):
                    found.append(process)
        return found

    def end(self, processes: list[psutil.Process]) -> None:
        """Kills these processes; waits until those that it can kill are gone."""
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                process.kill()
        psutil.wait_procs(processes, timeout=5)

    def lose(self, name: str) -> None:
        """Ends all processes of a node at once, as a power failure does."""
        ranks = [process for process in self.processes() if process.environ().get("SLURMD_NODENAME") == name]
        steps = {parent for process in ranks if (parent := process.parent()) and parent.name().startswith("slurmstepd")}
        self.daemons[name].kill()
        self.daemons[name].wait()
        self.end([*steps, *ranks])

    def clear(self) -> None:
        """Cancels all jobs, waits until nothing of them is left, and brings both nodes back."""
        self.command("scancel", "--user", getpass.getuser())
        deadline = time.monotonic() + UP
        while self.command("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.1)
        self.end(self.processes())
        for name in NODES:
            if self.daemons[name].poll() is not None:
                self.start_node(name)
        self.wait_until_idle()

    def logs(self) -> str:
        return "".join(f"\n--- {file}\n{file.read_text()[-2000:]}" for file in sorted(self.folder.glob("*.log")))


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def two_nodes(folder: Path):
    """Two idle nodes, whose daemons and jobs end with the block. `folder` is new; its path should be short."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    for name in NODES:
        (folder / f"spool-{name}").mkdir()
        (folder / f"tmp-{name}").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, user=getpass.getuser(), ports=_free_ports(3), cpus=CPUS, down=DOWN)
    )
    daemons: dict[str, subprocess.Popen] = {}
    nodes = Nodes(folder, daemons)
    munge = [
        "--force",
        "--foreground",
        "--key-file",
        key,
        "--socket",
        folder / "munge.socket",
        "--pid-file",
        folder / "munge.pid",
    ]
    commands = {
        "munged": ["munged", *munge, "--log-file", folder / "munge.log", "--seed-file", folder / "munge.seed"],
        "slurmctld": ["slurmctld", "-D", "-c"],
    }
    try:
        for name, command in commands.items():
            log = open(folder / f"{name}.log", "a")  # noqa: SIM115  the daemon's, for as long as it lives
            daemons[name] = subprocess.Popen(
                list(map(str, command)), env=os.environ | nodes.environment, stdout=log, stderr=log, start_new_session=True
            )
            deadline = time.monotonic() + UP
            while name == "munged" and not (folder / "munge.socket").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        for name in NODES:
            nodes.start_node(name)
        nodes.wait_until_idle()
        yield nodes
        nodes.clear()
    finally:
        for daemon in reversed(daemons.values()):
            daemon.terminate()
        for daemon in daemons.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=5)
            daemon.kill()
            daemon.wait()
        nodes.end(nodes.processes())
