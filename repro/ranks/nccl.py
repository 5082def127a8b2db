"""Collectives on vectors in GPU memory: torch.distributed's, over NCCL, in a group that is set up over MPI.

The group's ranks are MPI's. Its processes meet at a port of rank 0's machine, which they learn over MPI; as with
any torch launcher, that port and NCCL's own are open to the network between the nodes (see SECURITY.md).
"""

import atexit
import socket
from functools import cache

import torch
from torch import distributed


@cache
def collectives(world):
    """Returns an object with the operations of `world` for vectors on each rank's GPU (cached). Collective.

    It is `world` itself if there is one rank, or if ranks share a GPU, which NCCL refuses.
    """
    devices = world.gather(f"{socket.gethostname()} {torch.cuda.current_device()}")
    return Group(world, "nccl") if 1 < world.size == len(set(devices)) else world


class Group:
    """The operations of `comm.MPIWorld` for large vectors, which may be tensors on a GPU; see there."""

    def __init__(self, world, backend: str):
        """`backend` is torch.distributed's: nccl, or gloo, its equivalent on CPUs."""
        self.world, self.rank, self.size = world, world.rank, world.size
        host = world.broadcast(socket.gethostname() if world.nodes > 1 else "127.0.0.1")
        store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False) if self.rank == 0 else None
        port = world.broadcast(store and store.port)
        store = store or distributed.TCPStore(host, port, is_master=False)
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        atexit.register(distributed.destroy_process_group)

    def sum(self, vector) -> None:
        self.finish([self.start_sum(vector)])

    def start_sum(self, vector):
        return distributed.all_reduce(torch.as_tensor(vector), async_op=True)

    def progress(self, work) -> None:
        """Does nothing: NCCL makes progress by itself."""

    def finish(self, works: list) -> None:
        with self.world.waiting():
            for work in works:
                work.wait()
            if torch.cuda.is_initialized():  # there, `wait` only delays later work on the GPU
                torch.cuda.current_stream().synchronize()
