"""The step-time model: its formulas against algorithms run message by message, its fits and bands against known truths."""

import dataclasses
import json

import numpy as np
import pytest

from bench import scaling as bench_scaling
from bench import two_nodes
from repro import ReproError
from repro.paper import tables
from repro.paths import REFERENCE
from repro.scaling import accuracy, steptime
from repro.scaling.steptime import Fit, Interconnect, Layout, Link, Load

LINK = Link(latency=3e-6, byte=2e-9)
WITHIN = Link(latency=1e-6, byte=1e-9)


# --- Allreduce, message by message ------------------------------------------------------------------------------------
class Ranks:
    """Vectors of some ranks, and a clock for each: a message starts when both are free and holds both to its end."""

    def __init__(self, count: int, elements: int):
        self.vectors = np.random.default_rng(count).integers(0, 1000, (count, elements)).astype(float)
        self.sum, self.clocks = self.vectors.sum(0), np.zeros(count)

    def exchange(self, messages: list[tuple[int, int, slice, bool]], link: Link) -> None:
        """All messages (from, to, part, whether it is added) of one round at once; a rank sends and receives at a time."""
        before, clocks = self.vectors.copy(), self.clocks.copy()
        for source, target, part, adds in messages:
            end = max(clocks[source], clocks[target]) + link.latency + link.byte * 8 * len(before[source][part])
            for rank in (source, target):
                self.clocks[rank] = max(self.clocks[rank], end)
            self.vectors[target][part] = before[source][part] + (before[target][part] if adds else 0)

    def seconds(self) -> float:
        assert (self.vectors == self.sum).all()  # it is an allreduce
        return self.clocks.max()


def run_rabenseifner(ranks: Ranks, members: list[int], link: Link) -> None:
    elements, whole = ranks.vectors.shape[1], slice(None)
    power = 1
    while 2 * power <= len(members):
        power *= 2
    extra = len(members) - power
    ranks.exchange([(members[2 * pair], members[2 * pair + 1], whole, True) for pair in range(extra)], link) if extra else None
    active = [members[2 * pair + 1] for pair in range(extra)] + members[2 * extra :]
    parts = [(0, elements)] * power
    history = []
    distance = 1
    while distance < power:  # recursive halving
        messages, halves = [], list(parts)
        for place in range(power):
            low, high = parts[place]
            middle = (low + high) // 2
            kept, sent = ((low, middle), (middle, high)) if place & distance == 0 else ((middle, high), (low, middle))
            messages.append((active[place], active[place ^ distance], slice(*sent), True))
            halves[place] = kept
        ranks.exchange(messages, link)
        history.append(parts)
        parts, distance = halves, 2 * distance
    while distance > 1:  # recursive doubling
        distance //= 2
        ranks.exchange([(active[place], active[place ^ distance], slice(*parts[place]), False) for place in range(power)], link)
        parts = history.pop()
    ranks.exchange([(members[2 * pair + 1], members[2 * pair], whole, False) for pair in range(extra)], link) if extra else None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23])
def test_rabenseifner_is_its_messages(count):
    ranks = Ranks(count, 64)
    run_rabenseifner(ranks, list(range(count)), LINK)
    assert steptime.rabenseifner(LINK, count, 8 * 64) == pytest.approx(ranks.seconds())


@pytest.mark.parametrize("nodes, per_node", [(2, 2), (4, 2), (8, 4), (3, 2)])
def test_the_allreduce_is_within_nodes_around_that_between_them(nodes, per_node):
    within, between = Ranks(per_node, 64), Ranks(nodes, 64)
    run_rabenseifner(within, list(range(per_node)), WITHIN)
    run_rabenseifner(between, list(range(nodes)), LINK)
    assert steptime.allreduce(LINK, nodes, 8 * 64, WITHIN, per_node) == pytest.approx(within.seconds() + between.seconds())


def test_off_powers_of_two_mpich_sends_about_twice_the_bytes():
    for nodes, power in ((448, 256), (1536, 1024)):
        wide, narrow = (steptime.rabenseifner(Link(0, 1e-9), count, 1e8) for count in (nodes, power))
        assert wide / narrow == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("buckets", [1, 2, 5, 20])
@pytest.mark.parametrize("backward", [0.0, 0.01, 0.3, 5.0])
def test_exposed_is_what_a_queue_of_buckets_leaves(buckets, backward):
    def seconds(size):
        return 0.002 + size * 1e-9

    free = 0.0
    for bucket in range(buckets):
        ready = backward * (bucket + 1) / buckets
        free = max(free, ready) + seconds(1e8 / buckets)
    assert steptime.exposed(seconds, 1e8, buckets, backward) == pytest.approx(free - backward)


@pytest.mark.parametrize("ranks, spread", [(1, 0.1), (2, 0.05), (64, 0.03), (896, 0.1)])
def test_the_slowest_rank_is_the_mean_maximum_of_many_draws(ranks, spread):
    draws = np.exp(spread * np.random.default_rng(0).standard_normal((4000, ranks))).max(1)
    assert steptime.slowest(ranks, spread) == pytest.approx(draws.mean(), abs=5 * draws.std() / 4000**0.5)


@pytest.mark.parametrize("ranks, backup", [(1, 1), (8, 1), (64, 4), (96, 30)])
def test_backup_ranks_are_waited_for_until_enough_of_many_draws_are_done(ranks, backup):
    draws = np.sort(np.exp(0.2 * np.random.default_rng(0).standard_normal((4000, ranks + backup))))[:, ranks - 1]
    assert steptime.slowest(ranks, 0.2, backup) == pytest.approx(draws.mean(), abs=5 * draws.std() / 4000**0.5)
    waiting = [steptime.step(TRUTH, Layout(per_node=ranks, backup=b), 8)["waiting"] for b in (0, backup)]
    assert waiting[1] < waiting[0]


@pytest.mark.parametrize("groups", [1, 3, 40])
def test_asynchronous_groups_take_turns_at_a_server(groups):
    """The first to be done exchanges as soon as the server is free, then computes again: for a long time."""
    layout, link = Layout(nodes=2, per_node=2), Link(1e-5, 1e-9)
    computes, exchange = steptime.step(TRUTH, layout, 8, 1, link)["total"], 2e-5 + 2e-9 * TRUTH.size
    done, free, turns = [computes] * groups, 0.0, 2000
    for _ in range(turns):
        first = done.index(min(done))
        free = max(free, done[first]) + exchange
        done[first] = free + computes
    assert steptime.asynchronous(TRUTH, layout, groups, 8, link) == pytest.approx(free / turns * groups, rel=0.03)


def test_of_groups_only_those_that_are_synchronous_wait_for_one_another():
    r3 = steptime.Published("R3", 448, 2, 16, 50_000)
    rows = [row for groups in (1, 8) for row in steptime.of_groups(r3, 32, groups, 16, 0.05, [0.0, 0.3], draws=20)]
    seconds = {(row["line"], row["groups"], row["spread"]): row["seconds"] for row in rows}
    assert {row["label"] for row in rows} == {steptime.MODEL} and len(seconds) == 12
    assert seconds["synchronous", 8, 0.0] == seconds["synchronous, with backup ranks", 8, 0.0] < seconds["asynchronous", 8, 0.0]
    assert seconds["synchronous, with backup ranks", 8, 0.3] < seconds["asynchronous", 8, 0.3] < seconds["synchronous", 8, 0.3]
    assert seconds["asynchronous", 8, 0.3] == pytest.approx(seconds["asynchronous", 1, 0.3], rel=0.02)


# --- Fitting ----------------------------------------------------------------------------------------------------------
TRUTH = Fit(
    per_step=0.05, per_worker=0.02, per_image=0.01, loading=0.001, link=Link(2e-5, 1.5e-9), spread=0.03, ranks=2, size=1 << 26
)


def synthetic(truth: Fit = TRUTH, n: int = 30, spread: float = 0.0, seed: int = 0) -> list[dict]:
    """Rows of a probe on a machine of which all is known; ranks differ by `spread`."""
    generator, rows = np.random.default_rng(seed), []

    def times(seconds: float, noise: float = spread) -> list[list[float]]:
        return (seconds * np.exp(noise * generator.standard_normal((truth.ranks, n)))).tolist()

    for images, workers in ((2, 1), (4, 1), (8, 1), (2, 2)):
        shared = {"ranks": truth.ranks, "vector": truth.size, "images": images, "workers": workers}
        compute = truth.compute(images, workers)
        rows.append({"kind": "compute", **shared, "seconds": times(compute)})
        total = steptime.step(truth, Layout(per_node=truth.ranks), images, workers)["total"]
        rows.append({"kind": "step", **shared, "seconds": times(total, 0)})
        rows.append({"kind": "loading", **shared, "seconds": times(total + truth.loading * images * workers, 0)})
    for size in (1 << 12, 1 << 14, 1 << 20, 1 << 23, 1 << 26) if truth.ranks > 1 else ():
        rows.append(
            {
                "kind": "allreduce",
                "ranks": truth.ranks,
                "vector": truth.size,
                "bytes": size,
                "seconds": times(steptime.rabenseifner(truth.link, truth.ranks, size), 0),
            }
        )
    return rows


def test_the_fit_finds_the_parameters_that_made_the_data():
    found = steptime.fit(synthetic())
    assert (found.per_step, found.per_worker, found.per_image) == pytest.approx((0.05, 0.02, 0.01))
    assert found.loading == pytest.approx(0.001)
    assert (found.link.latency, found.link.byte) == pytest.approx((2e-5, 1.5e-9), rel=1e-3)
    assert (found.ranks, found.size) == (2, 1 << 26)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_fit_finds_the_spread_between_ranks(ranks):
    rows = synthetic(dataclasses.replace(TRUTH, ranks=ranks), n=2000, spread=0.04)
    assert steptime.fit(rows).spread == pytest.approx(0.04, rel=0.1)


def test_what_slows_all_ranks_alike_is_no_spread():
    rows = synthetic()
    for row in rows:
        row["seconds"] = [[each * (1 + 0.5 * (number % 2)) for number, each in enumerate(times)] for times in row["seconds"]]
    assert steptime.fit(rows).spread == pytest.approx(0, abs=1e-9)


def test_no_coefficient_is_negative():
    falling = [
        {"kind": "compute", "ranks": 1, "vector": 8, "images": images, "workers": 1, "seconds": [[1 / images]]}
        for images in (1, 2, 4)
    ]
    found = steptime.fit(falling)
    assert min(found.per_step, found.per_worker, found.per_image) >= 0


def test_steps_are_held_back_from_the_fit():
    rows, changed = synthetic(), synthetic()
    for row in changed:
        if row["kind"] == "step":
            row["seconds"] = [[9.0]] * 2
    assert dataclasses.replace(steptime.fit(rows), loading=0) == dataclasses.replace(steptime.fit(changed), loading=0)
    assert all(abs(row["error_percent"]) < 0.1 for row in steptime.held_back(rows, dataclasses.replace(TRUTH), "x"))
    assert all(row["error_percent"] < -90 for row in steptime.held_back(changed, TRUTH, "x"))


def test_without_rows_the_error_names_the_command():
    with pytest.raises(ReproError, match="mpiexec -n 3 python -m repro probe"):
        steptime.fit(synthetic(), ranks=3)


# --- Predicting -------------------------------------------------------------------------------------------------------
KNOWN = Interconnect("known", (1e-5, 1e-5), (1e9, 1e9), "a test")


def test_parts_of_a_step_by_hand():
    link, layout = Link(1e-5, 1e-9), Layout(nodes=4, per_node=2)
    parts = steptime.step(dataclasses.replace(TRUTH, spread=0.0), layout, 8, 3, link, loaded=True)
    assert parts["compute"] == pytest.approx(0.05 + 3 * (0.02 + 8 * 0.01))
    assert parts["waiting"] == pytest.approx(0)
    assert parts["allreduce"] == pytest.approx(2 * 2e-5 + (1 << 26) * 1.5e-9 + 4 * 1e-5 + 2 * 3 / 4 * (1 << 26) * 1e-9)
    assert parts["loading"] == pytest.approx(0.001 * 24)
    assert parts["total"] == pytest.approx(
        sum(parts[part] for part in ("compute", "waiting", "copying", "allreduce", "loading"))
    )
    assert parts["copying"] == 0, "nothing is hidden"


def test_what_is_hidden_costs_the_cores_that_compute():
    link, layout = Link(1e-5, 1e-9), Layout(nodes=4, per_node=2, buckets=4)
    free = steptime.step(TRUTH, layout, 8, 3, link)
    paid = steptime.step(dataclasses.replace(TRUTH, copying=1e-9), layout, 8, 3, link)
    assert paid["copying"] == pytest.approx((2 * 3 / 4 + 1) * (1 << 26) * 1e-9)  # what a rank sends between nodes and within
    assert paid["total"] == pytest.approx(free["total"] + paid["copying"])


def test_copying_is_found_where_communication_is_hidden_and_what_it_used_is_not_predicted():
    truth = dataclasses.replace(TRUTH, spread=0.0, copying=1.2e-9)
    rows = wired(8000, truth)["rows"]
    found, left = steptime.copying(rows, steptime.fit(rows), buckets=4)
    assert found == pytest.approx(1.2e-9, rel=0.02)
    assert {row["images"] for row in left if row["kind"] == "step"} == {2, 4}
    assert steptime.copying(wired(8000)["rows"], steptime.fit(rows), buckets=4)[0] == pytest.approx(0, abs=1e-13)


def test_noise_is_the_difference_of_two_halves():
    def row(*seconds):
        return {"kind": "compute", "seconds": [list(seconds)]}

    assert steptime.noise([row(1, 1, 1.1, 1.1)]) == pytest.approx(100 / 11)
    assert steptime.noise([row(1, 1, 1, 1), row(1, 1, 2, 2), row(1, 1, 2, 2)]) == pytest.approx(50)
    assert np.isnan(steptime.noise([row(1, 2, 3)]))


def test_bytes_beyond_the_cache_have_a_price_of_their_own():
    link = Link(1e-6, 1e-10, beyond=1e-9)
    assert link.seconds(2, 1 << 20) == pytest.approx(2e-6 + (1 << 20) * 1e-10)
    assert link.seconds(2, 3 << 20) == pytest.approx(2e-6 + (1 << 20) * 1e-10 + (2 << 20) * 1e-9)
    truth = dataclasses.replace(TRUTH, link=link)
    rows = synthetic(truth)
    found = steptime.fit(rows).link
    assert (found.latency, found.byte, found.beyond) == pytest.approx((1e-6, 1e-10, 1e-9), rel=0.02)


def test_the_band_covers_the_truth_about_as_often_as_it_says():
    layout, covered = Layout(per_node=2), 0
    truth = steptime.step(TRUTH, Layout(16, 2), 8, 1, KNOWN.link())["total"]
    for seed in range(40):
        row = steptime.extrapolate(
            synthetic(n=25, spread=TRUTH.spread, seed=seed), Load("weak", 8), [16], layout, KNOWN, draws=60
        )[0]
        assert row["seconds_low"] < row["seconds"] < row["seconds_high"]
        covered += row["seconds_low"] <= truth <= row["seconds_high"]
    assert covered >= 28  # 90% of 40 is 36; a bootstrap of few times covers somewhat less than it says


def test_of_too_few_steps_there_is_no_band():
    row = steptime.extrapolate(synthetic(n=2), Load("weak", 8), [16], Layout(per_node=2), KNOWN, draws=5)[0]
    assert row["n"] == 2 and np.isnan(row["seconds_low"]) and np.isnan(row["efficiency_high"]) and row["seconds"] > 0


def test_an_uncertain_network_widens_the_band():
    wide = dataclasses.replace(KNOWN, rate=(1e8, 1e9))
    rows = [steptime.extrapolate(synthetic(), Load("weak", 8), [64], Layout(per_node=2), each)[0] for each in (KNOWN, wide)]
    widths = [row["seconds_high"] - row["seconds_low"] for row in rows]
    assert widths[1] > 10 * widths[0] + 1e-6


def test_everything_that_the_model_says_is_labelled():
    for load in (Load("weak", 8), Load("strong", 16, 896)):
        rows = steptime.extrapolate(synthetic(), load, [1, 64, 448], Layout(per_node=2), steptime.OMNI_PATH, draws=5)
        assert [row["label"] for row in rows] == ["MODEL"] * 3
    assert set(tables.published_checks().label) == {"MODEL"}


@pytest.mark.parametrize("buckets", [1, 50])
def test_efficiency_is_against_a_node_that_does_not_average_and_never_above_100(buckets):
    layout = Layout(per_node=2, buckets=buckets)
    rows = steptime.extrapolate(synthetic(), Load("weak", 8), [1, 2, 448], layout, KNOWN, draws=5)
    for row in rows:  # without spread between ranks, efficiency is the share of the step that computes
        assert row["efficiency"] == pytest.approx(100 * TRUTH.compute(8) / row["seconds"])
        assert 0 < row["efficiency"] < 100


def test_on_nodes_of_a_published_run_the_fit_returns_its_rate_and_the_shares_of_its_step():
    r3 = tables.published_runs()[0]
    rows = steptime.on_known_nodes(r3, [r3.nodes, 448], r3.images, draws=50)
    for row in rows:
        assert row["label"] == "MODEL" and 0 < row["efficiency_low"] <= row["efficiency"] <= row["efficiency_high"] <= 100
        if row["nodes"] == r3.nodes:
            assert row["images_per_s"] == pytest.approx(r3.images_per_s)
    hidden = {(row["nodes"], row["buckets"]): row["efficiency"] for row in rows}
    assert hidden[448, 53] > hidden[448, 1]


def test_strong_scaling_shares_the_workers_then_divides_them():
    load = Load("strong", images=16, workers=896)
    assert load.on(896) == (16, 1, 14336) and load.on(2) == (16, 448, 14336) and load.on(512) == (16, 2, 14336)
    assert load.on(1792) == (8, 1, 14336)
    assert Load("weak", 16).on(100) == (16, 1, 1600)


def test_more_ranks_than_images_are_left_out():
    rows = steptime.extrapolate(synthetic(), Load("strong", 1, 8), [4, 5], Layout(per_node=2), KNOWN, draws=2)
    assert [row["nodes"] for row in rows] == [4]


def test_epochs_are_read_between_the_published_points_only():
    points = [(1000.0, 30.0), (4000.0, 50.0)]
    assert accuracy.published_epochs(points, 1000) == 30 and accuracy.published_epochs(points, 2000) == pytest.approx(40)
    assert np.isnan(accuracy.published_epochs(points, 999)) and np.isnan(accuracy.published_epochs(points, 4001))


def test_epochs_to_an_accuracy_are_read_between_the_lengths_that_were_tried():
    lengths = [(8.0, 90.0), (2.0, 60.0), (4.0, 80.0)]
    assert accuracy.epochs_to(lengths, 70) == pytest.approx(8**0.5)  # half-way from 2 to 4, in the logarithm
    assert accuracy.epochs_to(lengths, 80) == pytest.approx(4) and accuracy.epochs_to(lengths, 90) == 8
    assert accuracy.epochs_to(lengths, 50) == 2, "no shorter one was tried"
    assert np.isnan(accuracy.epochs_to(lengths, 91)) and np.isnan(accuracy.epochs_to([], 1))
    fell = [(2.0, 60.0), (4.0, 80.0), (8.0, 50.0)]  # the shortest that reaches it counts
    assert accuracy.epochs_to(fell, 70) == pytest.approx(8**0.5)


def test_the_time_to_an_accuracy_is_its_epochs_over_the_throughput():
    r3 = steptime.Published("R3", 64, 2, 32, 6303)
    epochs = {4096: 40.0, 100: 20.0, 16384: 50.0, 32768: np.nan}
    rows = accuracy.over_nodes(epochs, r3, [1, 64, 2048], 1_281_167, draws=20)
    found = {(row["batch"], row["nodes"]): row for row in rows}
    assert {batch for batch, _ in found} == {4096, 100, 16384}, "32768 does not reach it"
    assert (100, 64) not in found, "128 processes cannot share 100 images"
    known = found[4096, 64]  # at R3's own batch and nodes the model has R3's rate
    assert known["minutes"] == pytest.approx(40 * 1_281_167 / 6303 / 60) and known["label"] == "MODEL"
    assert known["images_per_s"] == pytest.approx(6303) and known["node_hours"] == pytest.approx(64 * known["minutes"] / 60)
    assert known["minutes_low"] == pytest.approx(known["minutes"]) == known["minutes_high"]
    assert found[4096, 2048]["minutes_low"] < found[4096, 2048]["minutes"] < found[4096, 2048]["minutes_high"]
    first = {row["nodes"]: row["batch"] for row in rows if row["first"]}
    assert first == {1: 100, 64: 4096, 2048: 16384}
    # The obvious: each machine's step by itself.
    drawn = list(steptime.fitted_machines(r3, steptime.Assumed(buckets=(53,)), 20))
    seconds = [steptime.step(machine, Layout(2048, 2, 53), 16384 / 4096, 1, link)["total"] for machine, link, _ in drawn]
    assert found[16384, 2048]["minutes"] == pytest.approx(np.median(seconds) * 50 * 1_281_167 / 16384 / 60)


def test_one_published_run_predicts_another_of_the_same_machine():
    assumed = steptime.Assumed(between=KNOWN, within_rate=(5e9, 5e9), buckets=(1,), fixed=(0.1, 0.1), spread=(0.02, 0.02))
    machine = Fit(0, 0.1 / 0.9 * 32 * 0.01, 0.01, 0, Link(1e-6, 1 / 5e9), 0.02, 2, assumed.size)

    def published(name, nodes, images):
        seconds = steptime.step(machine, Layout(nodes, 2), images, 1, KNOWN.link())["total"]
        return steptime.Published(name, nodes, 2, images, nodes * 2 * images / seconds)

    (row,) = steptime.infer(published("small", 64, 32), [published("large", 448, 16)], assumed, draws=3)
    assert row["error_percent"] == pytest.approx(0, abs=1e-3) and row["known"] == "small"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"per_node": 0}, "ranks per node is 0"),
        ({"buckets": 0}, "buckets is 0"),
        ({"nodes": 2}, "need a link"),
    ],
)
def test_a_layout_that_cannot_be_is_named(change, said):
    link = None if change == {"nodes": 2} else LINK
    with pytest.raises(ReproError, match=said):
        steptime.step(TRUTH, dataclasses.replace(Layout(per_node=2), **change), 8, 1, link)


def test_a_saved_probe_is_found_by_its_facts(tmp_path):
    steptime.save({"probes": [{"ranks": 1, "code": "a"}, {"ranks": 2, "code": "a"}]}, tmp_path / "scaling.json")
    steptime.save({"ranks": 2, "code": "b"}, tmp_path / "probe.json")
    assert steptime.saved(tmp_path, {"ranks": 2, "code": "a"}) == {"ranks": 2, "code": "a"}
    assert steptime.saved(tmp_path, {"code": "b"}) == {"ranks": 2, "code": "b"}
    assert steptime.saved(tmp_path, {"code": "c"}) == {}


# --- The checks of `make bench-scaling` -------------------------------------------------------------------------------
def probe_of(truth: Fit, **facts) -> dict:
    alone = [row | {"ranks": 1, "seconds": row["seconds"][:1]} for row in synthetic(truth) if row["kind"] == "compute"]
    return {
        "rows": synthetic(truth) + alone,
        "model": "m",
        "size": 8,
        "reduction": "exact",
        "precision": "fp32",
        "buckets": 4,
        "noise": 1.0,
    } | facts


def wired(megabits: int, truth: Fit = TRUTH) -> dict:
    """A probe of two nodes: of the bytes' seconds, 1e-9 are the software's and the rest the wire's, with its headers."""
    truth = dataclasses.replace(truth, spread=0.0, link=Link(2e-5, 1e-9 + two_nodes.FRAME * 8e-6 / megabits))
    found = probe_of(truth)
    for row in found["rows"]:
        if row["kind"] == "step":
            layout = Layout(nodes=2, buckets=4)
            row["seconds"] = [[steptime.step(truth, layout, row["images"], row["workers"], truth.link)["total"]] * 3] * 2
    return found


def test_checks_of_a_machine_that_is_as_the_model_says_find_no_error():
    two = probe_of(dataclasses.replace(TRUTH, spread=0.0))
    rows = bench_scaling.checks(two, {500: wired(500), 2000: wired(2000)})
    errors = {row["check"]: [] for row in rows}
    for row in rows:
        errors[row["check"]].append(abs(row["error_percent"]))
    assert len(errors) == 4 + 2 * 4
    assert all(max(found) < 0.5 for found in errors.values()), errors
    assert {(row["state"], row["allowed_percent"]) for row in rows} == {("PASS", 10.0)}
    without = bench_scaling.checks(two, {})  # on a machine without network namespaces
    assert without == [row for row in rows if "TCP" not in row["check"]]


def test_four_ranks_that_share_two_cores_are_predicted_from_the_links_of_two():
    cost = 2e-10
    two, pair = probe_of(dataclasses.replace(TRUTH, spread=0.0)), wired(2000, dataclasses.replace(TRUTH, copying=cost))
    shared = dataclasses.replace(TRUTH, ranks=4, spread=0.0, per_image=0.02, copying=2 * cost)
    between = Link(2e-5, 1e-9 + two_nodes.FRAME * 8e-6 / 2000)
    four = probe_of(shared, ranks=4, cores=2)
    for row in four["rows"]:
        if row["kind"] == "step":
            total = steptime.step(shared, Layout(2, 2, buckets=4), row["images"], row["workers"], between)["total"]
            row["seconds"] = [[total] * 3] * 4
    rows = bench_scaling.four_ranks(four, two, pair)
    links = [row for row in rows if "with the links of 2" in row["check"]]
    assert len(rows) == 2 * len(links) == 8 and max(abs(row["error_percent"]) for row in links) < 0.5
    alone = bench_scaling.four_ranks(four | {"cores": 4}, two, pair)
    assert alone[-1]["predicted"] < rows[-1]["predicted"], "with a core for each rank, copying is half as dear"


def test_a_wrong_term_is_missed(monkeypatch):
    """Without the slowest rank's time, or with a backward pass that hides everything."""
    two, tcp = probe_of(TRUTH), {500: wired(500), 2000: wired(2000)}
    monkeypatch.setattr(steptime, "exposed", lambda communication, size, buckets, backward: 0.0)
    assert "MISSED" in {row["state"] for row in bench_scaling.checks(two, tcp)}


@pytest.mark.parametrize("path", sorted((REFERENCE / "bench").glob("scaling*.json")), ids=lambda path: path.stem)
def test_the_references_checks_are_what_is_said_of_its_probes_now(path):
    saved = json.loads(path.read_text())
    found = bench_scaling.judge(saved["probes"])
    assert [row["check"] for row in found] == [row["check"] for row in saved["checks"]] and len(found) == 72
    assert [row["predicted"] for row in found] == pytest.approx([row["predicted"] for row in saved["checks"]])


def test_noise_widens_what_is_allowed():
    row = {"error_percent": -14.0}
    assert bench_scaling.judged(row, [{"noise": 2.0}]) == {"allowed_percent": 10.0, "state": "MISSED"}
    assert bench_scaling.judged(row, [{"noise": 2.0}, {"noise": 8.0}]) == {"allowed_percent": 16.0, "state": "PASS"}


def test_no_check_sees_what_it_predicts():
    two = probe_of(dataclasses.replace(TRUTH, spread=0.0))
    changed = probe_of(dataclasses.replace(TRUTH, spread=0.0))
    for row in changed["rows"]:
        if row["kind"] == "step" or row.get("bytes") == row["vector"]:
            row["seconds"] = [[10 * each for each in times] for times in row["seconds"]]
    for before, after in zip(bench_scaling.checks(two, {}), bench_scaling.checks(changed, {})):
        assert after["predicted"] == before["predicted"] and after["measured"] == pytest.approx(10 * before["measured"])
