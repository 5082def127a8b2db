"""The average between nodes: communication overlaps with the last backward pass.

Gradients are stored in the order in which backward yields them, and the sum of a bucket starts as soon as the bucket is
complete. MPI makes progress on it when it is polled, which happens with each further gradient. Within one node there is
nothing to gain: the cores that would copy are those that compute.
"""

from collections import deque
from functools import partial

import torch

from repro.allreduce import Average, as_array

BUCKET = 1 << 20  # elements of gradients that are sent together


class OverlappedAverage(Average):
    """`Average` that sums bucket by bucket; after `attach`, during the backward pass already."""

    def __init__(self, reduction: str, world, workers: int, network, workers_per_pass: int = 1):
        self.ends = network.ends
        super().__init__(reduction, world, workers, network, workers_per_pass)

    def attach(self, network) -> "OverlappedAverage":
        """Makes each of the network's parameters notify this average when its gradient is ready."""
        network.graphs = None  # a graph on a GPU would notify nobody
        for index, parameter in enumerate(network.parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._arrives, index))
        return self

    def _start_again(self) -> None:
        super()._start_again()
        self.arrived, self.whole = set(), 0  # the last worker's gradients, and how many of them without a gap
        self.due, self.requests = deque(self._buckets()), []  # ends of the buckets not yet sent, and requests of those that are

    def _buckets(self):
        """The ends of the buckets: the same on every rank, whatever fails there."""
        start = 0
        for end in self.ends:
            if end == self.split or end - start >= BUCKET:
                yield (start := end)
        yield len(self.total)

    def _arrives(self, index: int, parameter: torch.Tensor) -> None:
        """Called by backward when the gradient of the parameter with this index is ready."""
        if self.added + 1 < self.mine:
            return
        self.arrived.add(index)
        while self.whole in self.arrived:
            self.whole += 1
        while self.whole and self.due[0] <= self.ends[self.whole - 1]:
            self._check(self.result, self.sent, self.due[0])
            self._add(self.result, self.sent, self.due[0])
            self._send()
        if self.requests:
            self.world.progress(self.requests[-1])

    def _send(self) -> None:
        """Starts the sum of the next bucket."""
        start, self.sent = self.sent, self.due.popleft()
        self.requests.append(self.world.start_sum(as_array(self.total[start : self.sent])))

    def _sum_over_ranks(self) -> None:
        while self.due:
            if self.last is not None:
                self._add(self.last, self.sent, self.due[0])
            self._send()
        self.world.finish(self.requests)
        self._divide(0, len(self.result))


def average_for(reduction: str, world, workers: int, network, workers_per_pass: int = 1) -> Average:
    """Returns the average that suits the ranks' machines: overlapped between nodes, plain within one. Collective on GPUs."""
    if world.nodes > 1:
        return OverlappedAverage(reduction, world, workers, network, workers_per_pass).attach(network)
    return Average(reduction, world, workers, network, workers_per_pass)
