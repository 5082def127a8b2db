"""Averages one vector over all workers, whichever ranks carry them: `exact` or `fast`.

A rank adds the vectors of its workers one at a time, so its memory does not grow with their number; one allreduce then
sums over the ranks. In float32 the result depends on the order of summation, hence on the number of ranks. `exact`
sums integers instead, whose order cannot matter: every value is rounded once to a fixed binary scale and added to an
int64, and the average is the same bits on any number of ranks.

The scales need no agreement between ranks, so no second collective. Gradients: 2**-40. An error of half a unit in a
gradient moves a weight, at the highest released rate and momentum, by 4.8 / (1 - 0.9) * 2**-41 = 2e-11: less than
the float32 rounding of any weight above 4e-4. Batch statistics, losses and counts: 2**-24, less than batch norm's
epsilon of 1e-5 by a factor of 100. Values that do not fit (gradients of 4096 and more with 896 workers) are an error, as NaN
is: by then the run has diverged.
"""

from dataclasses import dataclass

import torch

from repro import ReproError, choose

REDUCTIONS = ("exact", "fast")
GRADIENT_BITS, STATISTIC_BITS = 40, 24
PIECE = 1 << 16  # elements converted at a time: their float32 and int64 copies stay in the cache


class NotFinite(ReproError):
    """A worker's gradient or statistic is NaN, infinite or out of range: the run has diverged."""


@dataclass(frozen=True)
class Mean:
    """What was averaged over all workers at one step: views of one vector, valid until the next average."""

    gradient: torch.Tensor  # (P,)
    statistics: torch.Tensor  # (S,) batch means and variances
    loss: torch.Tensor  # mean over all images
    correct: torch.Tensor  # correct predictions a worker
    failed: bool  # a rank called `fail`: the rest is worthless
    stop: bool  # a rank was asked to stop after this step


class Average:
    """The mean over all workers of a network's contribution."""

    def __init__(self, reduction: str, world, workers: int, network):
        self.exact = choose("reduction", reduction, REDUCTIONS) == "exact"
        self.world, self.workers = world, workers
        self.split = len(network.weights)
        # Two elements more than the vector, so that all ranks learn of it in the same step: how many were asked to stop,
        # and how many failed.
        self.total = torch.zeros(len(network.contribution) + 2, dtype=torch.int64 if self.exact else torch.float32,
                                 device=network.contribution.device)
        self.result = torch.empty_like(network.contribution)
        self.headroom = 62 - (workers - 1).bit_length()  # an int64 less the sign and the sum over workers

    def add(self, vector: torch.Tensor) -> None:
        """Adds one worker's contribution; raises NotFinite if it holds what cannot be averaged."""
        for part, total, bits in self._parts(vector):
            low, high = torch.aminmax(part)  # either is NaN if any element is
            largest = float(torch.maximum(-low, high))
            if not largest < (2.0 ** (self.headroom - bits) if self.exact else float("inf")):
                raise NotFinite(f"a gradient or batch statistic is {largest:g}: the run has diverged")
            if not self.exact:
                total += part
                continue
            for piece, sums in zip(part.split(PIECE), total.split(PIECE)):
                sums += (piece * 2.0**bits).round_().long()

    def mean(self) -> Mean:
        """The average over all workers; the sums start anew. Collective."""
        sums = self.total.cpu()
        self.world.sum(sums.numpy())
        self.total.copy_(sums)
        stop, failed = (sums[-2:] > 0).tolist()
        for part, total, bits in self._parts(self.result):
            scale = (2.0**-bits if self.exact else 1.0) / self.workers
            for piece, sums in zip(part.split(PIECE), total.split(PIECE)):
                piece.copy_(sums.double().mul_(scale))  # an int64 has more bits than a float32: round only once
        self.total.zero_()
        gradient, rest = self.result[: self.split], self.result[self.split :]
        return Mean(gradient, rest[:-2], rest[-2], rest[-1], failed, stop)

    def fail(self) -> None:
        """Tells all ranks, through the vector itself, that this one cannot compute its workers."""
        self.total[-1] = 1

    def stop(self) -> None:
        """Tells all ranks that this one was asked to stop after this step."""
        self.total[-2] = 1

    def _parts(self, vector):
        yield vector[: self.split], self.total[: self.split], GRADIENT_BITS
        yield vector[self.split :], self.total[self.split : -2], STATISTIC_BITS
