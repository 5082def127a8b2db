"""What this process may use of its machine, where a batch system or a container allows it less than all. No torch, no MPI."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS, OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of either version, cgroups(7)


def cores() -> int:
    """The number of cores that this process may use: those that it is bound to, or its cgroup's share of their time if less.

    Where a system binds no process to some of them, all there are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = [*_told("cpu", "cpu.max"), *_told("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    shares = [int(quota) / int(period) for quota, period in told if quota.isdecimal()]  # "max" or -1: no limit
    return max(1, round(min([bound, *shares])))


def memory() -> int:
    """The bytes of memory that this process may use at most: the machine's, or its cgroup's, whichever has less."""
    import psutil

    told = [*_told("memory", "memory.max"), *_told("memory", "memory.limit_in_bytes")]
    return min([psutil.virtual_memory().total, *(int(limit) for (limit,) in told if limit.isdecimal())])


def _told(controller: str, *files: str) -> Iterator[list[str]]:
    """The words in these files of this process's cgroup and of those around it: a group that lacks one has no such limit."""
    try:
        lines = [line.split(":", 2) for line in OURS.read_text().splitlines()]  # number, controllers (none: version 2), group
    except OSError:
        return
    for _, controllers, group in lines:
        if not controllers or controller in controllers.split(","):
            top = CGROUPS / controller if controllers else CGROUPS
            inner = top / group.lstrip("/")  # in a container, the path may be that of the machine: then it is not there
            for place in [inner, *inner.parents]:
                if place.is_relative_to(top):
                    with suppress(OSError):
                        yield [word for file in files for word in (place / file).read_text().split()]
