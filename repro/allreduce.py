"""Averages one vector over all workers, whichever ranks carry them: `exact`, `fast` or `fast_bf16`.

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

`fast_bf16` is for slow networks: gradients travel as bfloat16, half the bytes of `fast`. Each rank adds up one part of all
ranks' buckets in float32 and sends the sum to all: a gradient is rounded twice, however many ranks there are. The second
half of a bucket's way begins when the next one starts, so that all ranks start everything in one order. Statistics, losses
and counts stay float32.

On GPUs the vectors stay there, and NCCL sums them (`nccl`).
"""

from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from repro import ReproError, choose, nccl
from repro.comm import MESSAGE

REDUCTIONS = ("exact", "fast", "fast_bf16")
WIRE = {"exact": 8, "fast": 4, "fast_bf16": 2}  # bytes of a gradient between ranks
GRADIENT_BITS, STATISTIC_BITS = 40, 24
PIECE = 1 << 16  # elements converted at a time on a CPU: their copies stay in the cache
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
        """`overlap` is whether gradients are summed while backward runs: of use between nodes. Collective on GPUs."""
        self.exact = choose("reduction", reduction, REDUCTIONS) == "exact"
        self.bf16 = reduction == "fast_bf16" and world.size > 1  # alone, nothing is sent
        self.world, self.workers, self.overlap = world, workers, overlap
        self.split, device = len(network.weights), network.contribution.device
        if device.type == "cuda":
            self.world = nccl.collectives(world)
            device = "cpu" if self.world is world and world.size > 1 else device  # MPI sums in the host's memory
        # Three elements more than the vector, so that all ranks learn of it in the same step: how many want a checkpoint,
        # how many were asked to stop, and how many failed.
        self.total = torch.zeros(
            len(network.contribution) + 3, dtype=torch.int64 if self.exact else torch.float32, device=device
        )
        self.piece = len(self.total) if self.total.is_cuda else PIECE
        self.result = network.contribution  # a bucket of it is written when the last worker's has been added
        self.headroom = 62 - (workers - 1).bit_length()  # an int64 less the sign and the sum over workers
        self.mine = len(range(world.rank, workers, world.size))
        self.ends = list(accumulate(parameter.numel() for parameter in network.parameters)) if self.overlap else []
        self.buckets = list(self._buckets())  # where they end: the same on every rank, whatever fails there
        for place in range(len(self.ends)):
            network.parameters[place].register_post_accumulate_grad_hook(partial(self._arrives, place))
        self._start_anew()

    def add(self, vector: torch.Tensor) -> None:
        """Adds one worker's contribution; raises NotFinite if it holds what cannot be averaged.

        That of this rank's last worker is only looked at: `mean` takes it through the cache together with its sum.
        """
        self._check(vector, self.sent, len(vector))
        if self.added + 1 < self.mine:
            self._add(vector, 0, len(vector))
            self.added += 1
        else:
            self.last = vector

    def mean(self) -> Mean:
        """The average over all workers; the sums start anew. Collective."""
        while self.due:
            start, stop = self.sent, self.due[0]
            if self.last is not None:
                self._add(self.last, start, stop)
            if self.overlap or self.bf16:
                self._send()
                continue
            self.world.sum(_array(self.total[start:stop]))
            self._average(start, stop)
            self.sent = self.due.popleft()
        if self.requests:
            self.world.finish(self.requests)
            for whole, bucket in self.collected:
                bucket.copy_(torch.as_tensor(whole).view(torch.bfloat16)[: len(bucket)])
            self._average(0, len(self.result))
        save, stop, failed = (self.total[-3:] > 0).tolist()
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

    def _check(self, vector: torch.Tensor, start: int, stop: int) -> None:
        for part, _, bits in self._parts(vector, start, stop):
            low, high = torch.aminmax(part)  # either is NaN if any element is
            largest = float(torch.maximum(-low, high))
            if not largest < (2.0 ** (self.headroom - bits) if self.exact else float("inf")):
                raise NotFinite(f"a gradient or batch statistic is {largest:g}: the run has diverged")

    def _add(self, vector: torch.Tensor, start: int, stop: int) -> None:
        """Adds a part of a worker's vector; the first worker's replaces the last step's sums."""
        for part, total, bits in self._parts(vector, start, stop):
            for piece, sums in zip(part.split(self.piece), total.split(self.piece)):
                if self.exact:
                    piece = (piece * 2.0**bits).round_()
                if self.added:
                    sums += piece.to(sums)
                else:
                    sums.copy_(piece)

    def _average(self, start: int, stop: int) -> None:
        """Turns sums over all workers into their mean."""
        for part, total, bits in self._parts(self.result, start, stop):
            scale = (2.0**-bits if self.exact else 1.0) / self.workers
            for piece, sums in zip(part.split(self.piece), total.split(self.piece)):
                piece.copy_(sums.double().mul_(scale))  # an int64 has more bits than a float32: round only once

    def _parts(self, vector: torch.Tensor, start: int, stop: int):
        """Views of the elements from `start` to `stop`, of gradients and of the rest, with the bits of their scale."""
        for low, high, bits in ((0, self.split, GRADIENT_BITS), (self.split, len(vector), STATISTIC_BITS)):
            low, high = max(start, low), min(stop, high)
            if low < high:
                yield vector[low:high], self.total[low:high], bits

    def _buckets(self):
        """Where the parts of the vector end that are summed over the ranks one after the other."""
        start, length = 0, len(self.total)
        if self.overlap:
            for end in self.ends:
                if end == self.split or end - start >= BUCKET:
                    yield (start := end)
        elif self.bf16:
            yield self.split  # then the rest follows it, which is a sum
        elif not self.total.is_cuda:
            yield from range(MESSAGE, length, MESSAGE)
        yield length

    def _start_anew(self) -> None:
        self.total[-3:] = 0
        self.added, self.last = 0, None  # workers of this rank in the sums; and its last one, which is not yet
        self.arrived, self.whole = set(), 0  # gradients of the last one, and how many are there without a gap
        self.sent, self.requests = 0, []  # how many elements are on their way
        self.swapped, self.collected = None, []  # of bf16: the bucket on the first half of its way, and those on the second
        self.due = deque(self.buckets)

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
        if self.swapped or self.requests:
            self.world.progress(self.swapped[0] if self.swapped else self.requests[-1])

    def _send(self) -> None:
        """Starts the sum of the next bucket."""
        bucket, end = self.total[self.sent : self.due[0]], self.due.popleft()
        self._send_back()
        if self.bf16 and end <= self.split:
            rows = bucket.new_zeros(self.world.size, -(-len(bucket) // self.world.size), dtype=torch.bfloat16)
            rows.view(-1)[: len(bucket)] = bucket
            self.swapped = *self.world.start_swap(_array(rows.view(torch.uint8))), bucket
        else:
            self.requests.append(self.world.start_sum(_array(bucket)))
        self.sent = end

    def _send_back(self) -> None:
        """Adds up this rank's part of the bfloat16 bucket that is on its way, and starts sending the sum to all."""
        if self.swapped:
            request, came, bucket = self.swapped
            self.world.finish([request])
            rows = torch.as_tensor(came).view(torch.bfloat16)
            total = rows[0].float()
            for row in rows[1:]:
                total += row
            request, whole = self.world.start_collect(_array(total.bfloat16().view(torch.uint8)))
            self.requests.append(request)
            self.collected.append((whole, bucket))
        self.swapped = None


def _array(tensor: torch.Tensor):
    """What collectives take: NumPy's view of a tensor in the host's memory; a GPU's as it is."""
    return tensor if tensor.is_cuda else tensor.numpy()
