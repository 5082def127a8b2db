"""Averages one vector over all workers, however they are distributed over ranks: `exact` or `fast`.

Each rank adds the vectors of its passes one at a time, so its memory use does not grow with their number; an allreduce
then sums over the ranks. A pass computes one worker, or several: then its vector is the sum over them.

In float32 (`fast`) the result depends on the order of summation, and hence on the number of ranks. `exact` sums integers,
for which the order does not matter: every value is rounded once to a fixed binary scale and added to an int64, and the
average is bit-identical on any number of ranks.

The scales are fixed, so ranks need not agree on them in a second collective. Gradients: 2**-40. An error of half a unit in a
gradient moves a weight, at the highest released rate and momentum, by 4.8 / (1 - 0.9) * 2**-41 = 2e-11: less than
the float32 rounding of any weight above 4e-4. Batch statistics, losses and counts: 2**-24, less than batch norm's
epsilon of 1e-5 by a factor of 100. Values that do not fit (gradients of 4096 and more with 896 workers) are an error, like
NaN: by then the run has diverged.

On GPUs the vectors stay in GPU memory and are summed by NCCL (`nccl`). Between nodes the sum overlaps with the backward
pass (`overlap`).
"""

from dataclasses import dataclass

import torch

from repro import ReproError, choose
from repro.ranks import nccl
from repro.ranks.comm import MESSAGE

GRADIENT_BITS, STATISTIC_BITS = 40, 24
PIECE = 1 << 16  # elements converted at a time on a CPU, so that their copies stay in the cache


# --- Arithmetic: how values are summed and turned into a mean -----------------------------------------------------------


class Exact:
    """Integers in units of 2**-bits: the sum does not depend on the order."""

    dtype = torch.int64

    def __init__(self, workers: int):
        self.workers = workers
        self.headroom = 62 - (workers - 1).bit_length()  # bits of an int64, less the sign and the sum over workers

    def limit(self, bits: int) -> float:
        """Values of this magnitude or more do not fit."""
        return 2.0 ** (self.headroom - bits)

    def scaled(self, values: torch.Tensor, bits: int) -> torch.Tensor:
        """Float values, ready to be added to the sums."""
        return (values * 2.0**bits).round_()

    def mean(self, sums: torch.Tensor, bits: int) -> torch.Tensor:
        """In float64, since an int64 has more bits than a float32: the mean is rounded only once, when it is stored."""
        return sums.double().mul_(2.0**-bits / self.workers)


class Fast:
    """Plain float32: half the bytes, and a result that depends on the order of summation."""

    dtype = torch.float32

    def __init__(self, workers: int):
        self.workers = workers

    def limit(self, bits: int) -> float:
        return float("inf")

    def scaled(self, values: torch.Tensor, bits: int) -> torch.Tensor:
        return values

    def mean(self, sums: torch.Tensor, bits: int) -> torch.Tensor:
        return sums.double().mul_(1.0 / self.workers)


ARITHMETIC: dict[str, type[Exact | Fast]] = {"exact": Exact, "fast": Fast}


# --- The average over all workers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """The averages over all workers at one step: views of the network's contribution, valid until the next one."""

    gradient: torch.Tensor  # (P,)
    statistics: torch.Tensor  # (S,) batch means and variances
    loss: torch.Tensor  # mean over all images
    correct: torch.Tensor  # correct predictions per worker
    failed: bool  # a rank called `fail`: the other fields are meaningless
    save: bool  # a rank wants a checkpoint after this step
    stop: bool  # a rank was asked to stop after this step


class Average:
    """The mean over all workers of a network's contribution: call `add` for each pass, then `mean`."""

    last: torch.Tensor | None
    sent: int

    def __init__(self, reduction: str, world, workers: int, network, workers_per_pass: int = 1):
        """`reduction` is exact or fast; the means are written into `network.contribution`. Collective on GPUs."""
        self.arithmetic = ARITHMETIC[choose("reduction", reduction, ARITHMETIC)](workers)
        self.world, self.result, self.split = world, network.contribution, len(network.weights)
        device = self.result.device
        if device.type == "cuda":
            self.world = nccl.collectives(world)
            device = "cpu" if self.world is world and world.size > 1 else device  # MPI sums in the host's memory
        # Three more elements than the vector, which all ranks learn in the same step: how many ranks want a checkpoint,
        # how many were asked to stop, and how many failed.
        self.total = torch.zeros(len(self.result) + 3, dtype=self.arithmetic.dtype, device=device)
        self.piece, self.message = (len(self.total),) * 2 if self.total.is_cuda else (PIECE, MESSAGE)
        self.workers_per_pass = workers_per_pass
        self.begin(workers)
        self._start_again()

    def begin(self, workers: int) -> int:
        """From now on this many workers share a step; returns the number of passes of this rank."""
        self.arithmetic = type(self.arithmetic)(workers)
        self.mine = len(range(self.world.rank, -(-workers // self.workers_per_pass), self.world.size))
        return self.mine

    @property
    def bytes(self) -> int:
        """Size of the vector that the ranks sum at each step."""
        return self.total.numel() * self.total.element_size()

    def add(self, vector: torch.Tensor) -> None:
        """Adds one pass's contribution; raises ReproError if it cannot be averaged.

        The contribution of this rank's last pass is only checked here: `mean` adds it piece by piece, while the sums
        are in the cache.
        """
        self._check(vector, self.sent, len(vector))
        if self.added + 1 < self.mine:
            self._add(vector, 0, len(vector))
            self.added += 1
        else:
            self.last = vector

    def mean(self) -> Mean:
        """The average over all workers; the sums start again from zero. Collective."""
        self._sum_over_ranks()
        save, stop, failed = (self.total[-3:] > 0).tolist()
        self._start_again()
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

    def _start_again(self) -> None:
        self.total[-3:] = 0
        self.added, self.last = 0, None  # number of this rank's passes in the sums; the last one's vector, not in them yet
        self.sent = 0  # elements that are already on their way to the other ranks

    def _sum_over_ranks(self) -> None:
        """Per message: adds the last pass's part, sums over the ranks and divides, while the data is in the cache."""
        for start in range(0, len(self.total), self.message):
            stop = min(start + self.message, len(self.total))
            if self.last is not None:
                self._add(self.last, start, stop)
            self.world.sum(as_array(self.total[start:stop]))
            self._divide(start, stop)

    def _check(self, vector: torch.Tensor, start: int, stop: int) -> None:
        for part, _, bits in self._parts(vector, start, stop):
            low, high = torch.aminmax(part)  # either is NaN if any element is
            largest = float(torch.maximum(-low, high))
            if not largest < self.arithmetic.limit(bits):
                raise ReproError(f"a gradient or batch statistic is {largest:g}: the run has diverged")

    def _add(self, vector: torch.Tensor, start: int, stop: int) -> None:
        """Adds a part of a pass's vector; the first one's part replaces the previous step's sums."""
        for part, total, bits in self._parts(vector, start, stop):
            for piece, sums in zip(part.split(self.piece), total.split(self.piece)):
                scaled = self.arithmetic.scaled(piece, bits)
                if self.added:
                    sums += scaled.to(sums)
                else:
                    sums.copy_(scaled)

    def _divide(self, start: int, stop: int) -> None:
        """Turns sums over all workers into their mean."""
        for part, total, bits in self._parts(self.result, start, stop):
            for piece, sums in zip(part.split(self.piece), total.split(self.piece)):
                piece.copy_(self.arithmetic.mean(sums, bits))

    def _parts(self, vector: torch.Tensor, start: int, stop: int):
        """Views of the elements from `start` to `stop`: gradients, then the rest, each with the bits of its scale."""
        for low, high, bits in ((0, self.split, GRADIENT_BITS), (self.split, len(vector), STATISTIC_BITS)):
            low, high = max(start, low), min(stop, high)
            if low < high:
                yield vector[low:high], self.total[low:high], bits


def as_array(tensor: torch.Tensor):
    """A tensor as collectives accept it: a NumPy view if it is in host memory; unchanged if it is on a GPU."""
    return tensor if tensor.is_cuda else tensor.numpy()
