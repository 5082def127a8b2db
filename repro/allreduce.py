"""Averages one vector over all workers, whichever ranks carry them: `exact` or `fast`.

A rank adds the vectors of its workers one at a time, so its memory does not grow with their number; an allreduce then
sums over the ranks. Between nodes it overlaps with the last worker's backward pass: gradients lie in the order in which
backward yields them, and a bucket of them is on its way as soon as it is whole. MPI moves it along when it is asked how
far it is, which each further gradient does. On one node there is nothing to hide behind: the cores that would copy are those
that compute.

In float32 the result depends on the order of summation, hence on the number of ranks. `exact` sums integers instead, whose
order cannot matter: every value is rounded once to a fixed binary scale and added to an int64, and the average is the same
bits on any number of ranks.

The scales need no agreement between ranks, so no second collective. Gradients: 2**-40. An error of half a unit in a
gradient moves a weight, at the highest released rate and momentum, by 4.8 / (1 - 0.9) * 2**-41 = 2e-11: less than
the float32 rounding of any weight above 4e-4. Batch statistics, losses and counts: 2**-24, less than batch norm's
epsilon of 1e-5 by a factor of 100. Values that do not fit (gradients of 4096 and more with 896 workers) are an error, as NaN
is: by then the run has diverged.
"""

from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from repro import ReproError, choose

REDUCTIONS = ("exact", "fast")
GRADIENT_BITS, STATISTIC_BITS = 40, 24
PIECE = 1 << 16  # elements converted at a time: their float32 and int64 copies stay in the cache
BUCKET = 1 << 20  # gradients that start on their way together


class NotFinite(ReproError):
    """A worker's gradient or statistic is NaN, infinite or out of range: the run has diverged."""


@dataclass(frozen=True)
class Mean:
    """What was averaged over all workers at one step: views of the network's contribution, until its next one."""

    gradient: torch.Tensor  # (P,)
    statistics: torch.Tensor  # (S,) batch means and variances
    loss: torch.Tensor  # mean over all images
    correct: torch.Tensor  # correct predictions a worker
    failed: bool  # a rank called `fail`: the rest is worthless
    save: bool  # a rank wants a checkpoint after this step
    stop: bool  # a rank was asked to stop after this step


class Average:
    """The mean over all workers of a network's contribution."""

    def __init__(self, reduction: str, world, workers: int, network, overlap: bool = False):
        """`overlap` is whether gradients are summed while backward runs: of use between nodes, and on CPUs only."""
        self.exact = choose("reduction", reduction, REDUCTIONS) == "exact"
        self.world, self.workers, self.overlap = world, workers, overlap
        self.split = len(network.weights)
        # Three elements more than the vector, so that all ranks learn of it in the same step: how many want a checkpoint,
        # how many were asked to stop, and how many failed.
        self.total = torch.zeros(len(network.contribution) + 3, dtype=torch.int64 if self.exact else torch.float32,
                                 device=network.contribution.device)
        self.result = network.contribution  # what the last worker wrote there has been added by then
        self.headroom = 62 - (workers - 1).bit_length()  # an int64 less the sign and the sum over workers
        self.ends = []  # of each parameter's gradient, in the vector's order: buckets end there
        if overlap:
            self.network, self.mine = network, len(range(world.rank, workers, world.size))
            self.ends = list(accumulate(parameter.numel() for parameter in network.parameters))
            for place, parameter in enumerate(network.parameters):
                parameter.register_post_accumulate_grad_hook(partial(self._arrives, place))
        self._start_anew()

    def add(self, vector: torch.Tensor) -> None:
        """Adds one worker's contribution; raises NotFinite if it holds what cannot be averaged."""
        self._add(vector, self.sent, self.split)
        self._add(vector, self.split, len(vector))
        self.added += 1

    def mean(self) -> Mean:
        """The average over all workers; the sums start anew. Collective."""
        if self.overlap:
            while self.due:
                self._send()
            self.world.finish(self.requests)
        else:
            sums = self.total.cpu()  # itself, unless it lies on a GPU
            self.world.sum(sums.numpy())
            self.total.copy_(sums)
        save, stop, failed = (self.total[-3:] > 0).tolist()
        for part, total, bits in self._parts(self.result, 0, len(self.result)):
            scale = (2.0**-bits if self.exact else 1.0) / self.workers
            for piece, sums in zip(part.split(PIECE), total.split(PIECE)):
                piece.copy_(sums.double().mul_(scale))  # an int64 has more bits than a float32: round only once
        self._start_anew()
        gradient, rest = self.result[: self.split], self.result[self.split :]
        return Mean(gradient, rest[:-2], rest[-2], rest[-1], failed, save, stop)

    def fail(self) -> None:
        """Tells all ranks, through the vector itself, that this one cannot compute its workers."""
        self.total[-1] = 1

    def save(self) -> None:
        """Tells all ranks that this one wants a checkpoint after this step."""
        self.total[-3] = 1

    def stop(self) -> None:
        """Tells all ranks that this one was asked to stop after this step."""
        self.total[-2] = 1

    def _add(self, vector: torch.Tensor, start: int, stop: int) -> None:
        for part, total, bits in self._parts(vector, start, stop):
            low, high = torch.aminmax(part)  # either is NaN if any element is
            largest = float(torch.maximum(-low, high))
            if not largest < (2.0 ** (self.headroom - bits) if self.exact else float("inf")):
                raise NotFinite(f"a gradient or batch statistic is {largest:g}: the run has diverged")
            if not self.exact:
                total += part
                continue
            for piece, sums in zip(part.split(PIECE), total.split(PIECE)):
                sums += (piece * 2.0**bits).round_().long()

    def _parts(self, vector: torch.Tensor, start: int, stop: int):
        """Views of the elements from `start` to `stop`, of gradients and of the rest, with the bits of their scale."""
        for low, high, bits in ((0, self.split, GRADIENT_BITS), (self.split, len(vector), STATISTIC_BITS)):
            low, high = max(start, low), min(stop, high)
            if low < high:
                yield vector[low:high], self.total[low:high], bits

    def _start_anew(self) -> None:
        self.total.zero_()
        self.added = 0  # workers of this rank
        self.arrived, self.whole = set(), 0  # gradients of the last of them, and how many are there without a gap
        self.sent, self.requests = 0, []  # how many elements are on their way
        self.due = deque()  # where the other buckets end: the same on every rank, whatever fails there
        for end in self.ends:
            if end == self.split or end - (self.due[-1] if self.due else 0) >= BUCKET:
                self.due.append(end)
        self.due.append(len(self.total))

    def _arrives(self, place: int, parameter: torch.Tensor) -> None:
        """Backward calls it when the gradient of the parameter in this place is there."""
        if self.added + 1 < self.mine:
            return
        self.arrived.add(place)
        while self.whole in self.arrived:
            self.whole += 1
        while self.whole and self.due[0] <= self.ends[self.whole - 1]:
            self._add(self.network.contribution, self.sent, self.due[0])
            self._send()
        if self.requests:
            self.requests[-1].Test()

    def _send(self) -> None:
        """Starts the sum of the next bucket."""
        end = self.due.popleft()
        self.requests.append(self.world.start_sum(self.total[self.sent : end].numpy()))
        self.sent = end
