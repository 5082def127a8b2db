"""The average over workers: its error, its independence of order and ranks, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch

from repro import ReproError, allreduce, overlap
from repro.allreduce import Average
from repro.model import Network
from repro.overlap import OverlappedAverage
from repro.ranks import comm
from repro.ranks.comm import World
from repro.resnet import build

SPLIT, STATISTICS = 70_000, 40  # gradients (more than one piece of the conversion), then statistics, loss and count
NETWORK = SimpleNamespace(weights=torch.zeros(SPLIT), contribution=torch.zeros(SPLIT + STATISTICS))


class Share(World):
    """A simulated rank's world: the sums, one part after the other, add what the `others` hand over for that part."""

    def __init__(self, rank, size, others=()):
        self.rank, self.size, self.others = rank, size, others

    def sum(self, array):
        if not self.others:
            self.sent = [*getattr(self, "sent", ()), array.copy()]
        for other in self.others:
            array += other.sent.pop(0)


def average(shares, reduction="exact"):
    """The mean of the vectors in `shares`, one list of workers a simulated rank, as the first rank sees it."""
    worlds = [Share(rank, len(shares)) for rank in range(len(shares))]
    worlds[0].others = worlds[1:]
    for world, share in reversed(list(zip(worlds, shares))):
        one = Average(reduction, world, sum(map(len, shares)), NETWORK)
        assert one.mine == len(share)
        for vector in share:
            one.add(vector)
        mean = one.mean()
    assert not mean.failed and not mean.stop
    return torch.cat([mean.gradient, mean.statistics, mean.loss[None], mean.correct[None]]).clone()


def contributions(workers=14):
    generator = torch.Generator().manual_seed(0)
    vectors = []
    for _ in range(workers):
        sizes = 10.0 ** torch.empty(SPLIT + STATISTICS).uniform_(-9, 1.5, generator=generator)
        vectors.append(torch.randn(SPLIT + STATISTICS, generator=generator) * sizes)
    return vectors


def naive(vectors):
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    return total / len(vectors)


@pytest.mark.parametrize("workers", [1, 14])
def test_exact_is_the_float64_mean_within_half_a_unit_and_one_rounding(workers):
    vectors = contributions(workers)
    mean = torch.stack(vectors).double().mean(0)
    error = (average([vectors]).double() - mean).abs()
    allowed = mean.abs() * 2**-24 * 1.0001
    allowed[:SPLIT] += 2**-41
    allowed[SPLIT:] += 2**-25
    assert (error <= allowed).all()
    assert error[SPLIT:].max() > 2**-31, "this test cannot tell the two scales apart"


def test_exact_depends_neither_on_order_nor_on_ranks_but_float32_does():
    vectors = contributions()
    one = average([vectors])
    for ranks in (2, 3, 4, 14):
        assert torch.equal(average([vectors[rank::ranks] for rank in range(ranks)]), one)
    assert torch.equal(average([vectors[::-1]]), one)
    assert not torch.equal(naive(vectors[::-1]), naive(vectors))
    fast = average([vectors], "fast")
    assert any(not torch.equal(average([vectors[rank::ranks] for rank in range(ranks)], "fast"), fast) for ranks in (2, 3))


def test_fast_is_close_to_the_float64_mean():
    vectors = contributions()
    magnitude = torch.stack(vectors).double().abs().mean(0)
    error = (average([vectors[::2], vectors[1::2]], "fast").double() - torch.stack(vectors).double().mean(0)).abs()
    assert (error <= 14 * 2**-24 * magnitude).all()


def test_each_average_starts_again():
    vectors, again = contributions(4), Average("exact", World(), 2, NETWORK)
    for pair in (vectors[:2], vectors[2:]):
        for vector in pair:
            again.add(vector)
        assert torch.equal(again.mean().gradient.clone(), average([pair])[:SPLIT])


@pytest.mark.parametrize(
    "reduction, values",
    [
        ("exact", (float("nan"), float("inf"), -float("inf"), 4096.0, -1e9)),
        ("fast", (float("nan"), float("inf"), -float("inf"))),
    ],
)
@pytest.mark.parametrize("place", [0, SPLIT - 1, SPLIT + 3])
def test_what_cannot_be_averaged_is_refused(reduction, values, place):
    for value in values:
        if value == 4096 and place >= SPLIT:
            continue  # statistics have a coarser scale and more room
        vector = torch.zeros(SPLIT + STATISTICS)
        vector[place] = value
        with pytest.raises(ReproError, match="diverged"):
            Average(reduction, World(), 896, NETWORK).add(vector)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_values_of_896_workers_do_not_overflow(sign):
    largest = torch.full((SPLIT + STATISTICS,), 4096.0)
    largest[SPLIT:] = 2.0**28
    vector = sign * torch.nextafter(largest, torch.zeros(()))
    assert torch.equal(average([[vector] * 448, [vector] * 448]), vector)


@pytest.mark.parametrize("reduction", ["exact", "fast"])
def test_a_failure_is_in_the_vector_itself(reduction):
    worlds = [Share(0, 2), Share(1, 2)]
    worlds[0].others = worlds[1:]
    one, other = (Average(reduction, world, 2, NETWORK) for world in worlds)
    for fails in (True, False):
        if fails:
            other.fail()
        else:
            other.add(contributions(1)[0])
        other.mean()
        one.add(contributions(1)[0])
        assert one.mean().failed is fails


@pytest.mark.parametrize("reduction", ["exact", "fast"])
def test_a_request_to_stop_is_in_the_vector_and_leaves_the_average_alone(reduction):
    vectors, worlds = contributions(2), [Share(0, 2), Share(1, 2)]
    worlds[0].others = worlds[1:]
    one, other = (Average(reduction, world, 2, NETWORK) for world in worlds)
    for stops in (True, False):
        if stops:
            other.stop()
        other.add(vectors[1])
        other.mean()
        one.add(vectors[0])
        mean = one.mean()
        assert mean.stop is stops and mean.failed is False
        assert torch.allclose(mean.gradient, naive(vectors)[:SPLIT])


@pytest.mark.parametrize(
    "ranks, how", [(2, "blocking"), pytest.param(3, "blocking", marks=pytest.mark.slow), (2, "overlapping")]
)
def test_when_one_rank_fails_all_raise_at_that_step_and_name_the_cause(on_ranks, ranks, how):
    failure = on_ranks(ranks).failure if how == "blocking" else on_ranks(ranks).overlapped_failure
    *others, last = failure["raised"]
    assert last == ["OSError", "the disk is gone"]
    assert others == [["PeerError", f"rank {ranks - 1} failed: OSError: the disk is gone"]] * (ranks - 1)
    assert failure["steps"] == [2] * ranks
    assert failure["seconds"] < 5


def test_only_the_last_workers_gradients_are_sent_during_backward_and_nothing_is_left_out(monkeypatch):
    """Against the blocking average of the same two workers, with the sums held back until they are waited for."""
    monkeypatch.setattr(overlap, "BUCKET", 4096)
    started = []

    class Later(World):
        def start_sum(self, array):
            started.append((len(array), len(averages[1].arrived)))
            return len(started)

        def progress(self, request):
            assert request == len(started)

        def finish(self, requests):
            pass

    torch.manual_seed(0)
    networks = [Network(build("resnet11", 10, 1)) for _ in range(2)]
    networks[1].load(networks[0].state())
    averages = [
        Average("exact", Later(), 2, networks[0]),
        OverlappedAverage("exact", Later(), 2, networks[1]).attach(networks[1]),
    ]
    for _ in range(2):
        means = []
        started.clear()
        for network, average_ in zip(networks, averages):
            generator = torch.Generator().manual_seed(1)
            for _ in range(2):
                average_.add(network.contribute(torch.randn(4, 1, 8, 8, generator=generator), torch.arange(4)))
            means.append(average_.mean())
        assert torch.equal(means[0].gradient, means[1].gradient) and torch.equal(means[0].statistics, means[1].statistics)
        assert sum(size for size, _ in started) == len(averages[1].total)
        assert 0 < started[0][1] < len(networks[1].parameters), "the first bucket left before backward had ended"


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reduction", allreduce.ARITHMETIC)
def test_what_gpus_use_gives_the_same_average(on_ranks, reduction, ranks):
    """torch.distributed's group, here over gloo on CPUs: the verbs of nccl.Group, in both reductions and overlapping."""
    found = on_ranks(ranks).group[reduction]
    assert found["difference"] <= {"exact": 0.0}.get(reduction, 4 * 2**-24) and found["equal"]


def test_an_error_of_one_rank_alone_says_of_which():
    """What is wrong on all ranks is not one rank's."""
    for failures, noted in (([None, "OSError: gone"], True), (["OSError: gone"] * 2, False)):
        world = comm.World()
        world.rank, world.size, world.gather = 1, 2, lambda value, failures=failures: failures
        error = OSError("gone")
        with pytest.raises(OSError if noted else comm.PeerError) as raised:
            world.check(error)
        notes = getattr(error, "__notes__", [])
        assert (len(notes) == 1 and notes[0].startswith("(on rank 1 of 2, ")) == noted, raised
