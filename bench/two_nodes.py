"""Two network namespaces on one Linux machine with a wire of a known rate between them: to MPI, two nodes. Needs root.

Nothing but TCP leads from one to the other, so what MPI sends crosses the kernel's network stack and waits for the rate.
"""

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress

import psutil

from repro import ReproError

DEVICE = "repro0"  # the name of the wire's end, the same in both
NETWORK = "10.77.0"  # the first has address 1, the other 2
# MPICH 5: no shared memory between ranks; over libfabric's TCP, through that device.
MPICH_BY_TCP = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": DEVICE}


class NoNamespaces(ReproError):
    """This machine does not let us make network namespaces."""


@contextmanager
def connected(megabits: int):
    """Yields, for each of the two, the command that runs another one inside it; raises NoNamespaces. Removes both after.

    `megabits` a second go through the wire, each way (a token bucket; the kernels seen had no netem, so no added latency).
    """
    names = [f"repro-{os.getpid()}-{end}" for end in "ab"]
    _remove_orphans()
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", DEVICE, "netns", names[0], "type", "veth", "peer", "name", DEVICE, "netns", names[1])
        for number, name in enumerate(names, 1):
            _ip("-n", name, "address", "add", f"{NETWORK}.{number}/24", "dev", DEVICE)
            for device in (DEVICE, "lo"):
                _ip("-n", name, "link", "set", device, "up")
            _ip(
                "netns",
                "exec",
                name,
                "tc",
                "qdisc",
                "add",
                "dev",
                DEVICE,
                "root",
                "tbf",
                "rate",
                f"{megabits}mbit",
                "burst",
                "256kb",
                "latency",
                "50ms",
            )
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            with suppress(NoNamespaces):
                _ip("netns", "delete", name)


def _remove_orphans() -> None:
    """Removes what a process that was killed could not."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = name.removeprefix("repro-").removesuffix("-a").removesuffix("-b")
        if name.startswith("repro-") and owner.isdigit() and not psutil.pid_exists(int(owner)):
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    if not shutil.which("ip") or not shutil.which("tc"):
        raise NoNamespaces("ip and tc are not on PATH: apt-get install iproute2")
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise NoNamespaces(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
