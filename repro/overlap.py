"""The average between nodes: sums travel while the last worker's backward pass still runs.

Gradients lie in the order in which backward yields them, and a bucket of them is on its way as soon as it is whole. MPI moves
it along when it is asked how far it is, which each further gradient does. Within one node there is nothing to hide behind:
the cores that would copy are those that compute.
"""

from collections import deque
from functools import partial
from itertools import accumulate

import torch

from repro.allreduce import Average, as_array

BUCKET = 1 << 20  # gradients that start on their way together


class OverlappedAverage(Average):
    """`Average` that sums bucket by bucket; after `attach`, already during backward."""

    def __init__(self, reduction: str, world, workers: int, network):
        self.ends = list(accumulate(parameter.numel() for parameter in network.parameters))
        super().__init__(reduction, world, workers, network)

    def attach(self, network) -> "OverlappedAverage":
        """Has each of the network's parameters tell this average when its gradient is there."""
        for place, parameter in enumerate(network.parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._arrives, place))
        return self

    def _start_again(self) -> None:
        super()._start_again()
        self.arrived, self.whole = set(), 0  # gradients of the last worker, and how many are there without a gap
        self.due, self.requests = deque(self._buckets()), []  # buckets to come, by their ends; and those on their way

    def _buckets(self):
        """Where buckets end: the same on every rank, whatever fails there."""
        start = 0
        for end in self.ends:
            if end == self.split or end - start >= BUCKET:
                yield (start := end)
        yield len(self.total)

    def _arrives(self, place: int, parameter: torch.Tensor) -> None:
        """Backward calls it when the gradient of the parameter in this place is there."""
        if self.added + 1 < self.mine:
            return
        self.arrived.add(place)
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


def average_for(reduction: str, world, workers: int, network) -> Average:
    """The average that suits where the ranks are: overlapped between nodes, plain within one. Collective on GPUs."""
    if world.nodes > 1:
        return OverlappedAverage(reduction, world, workers, network).attach(network)
    return Average(reduction, world, workers, network)
