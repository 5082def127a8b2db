"""Two network namespaces on one Linux machine, joined by a wire with a known rate: two nodes to MPI. Needs root.

TCP is the only way from one to the other, so MPI's messages cross the kernel's network stack and are limited to that rate.
"""

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress

import psutil

from repro import ReproError

SETTLE = 5.0  # seconds until MPI can use a new wire: in the first second libfabric finds no address on it, and fails or hangs
FRAME = 1514 / 1448  # bytes on the wire per byte of a message: headers of Ethernet, IP and TCP (with time stamps)
DEVICE = "repro0"  # the name of the wire's end, the same in both namespaces
NETWORK = "10.77.0"  # the first namespace has address 1, the second 2
# MPICH 5: no shared memory between ranks, only libfabric's TCP through that device.
MPICH_BY_TCP = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": DEVICE}


class NoNamespaces(ReproError):
    """This machine does not allow network namespaces to be created."""


@contextmanager
def connected(megabits: int):
    """Yields, per namespace, the command that runs another one inside it; raises NoNamespaces. Removes both afterwards.

    The wire's rate is `megabits` per second each way (a token bucket; the kernels tried had no netem, so no added latency).
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
            limit = f"tc qdisc add dev {DEVICE} root tbf rate {megabits}mbit burst 256kb latency 50ms"
            _ip("netns", "exec", name, *limit.split())
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            with suppress(NoNamespaces):
                _ip("netns", "delete", name)


def _remove_orphans() -> None:
    """Removes namespaces left behind by killed processes."""
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
